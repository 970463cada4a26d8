//! Regions, and where their STS is: this process decides it, never the evidence.

use crate::https::{HttpsUrl, HttpsUrlError};
use sidewind_api::evidence::sts_host;

/// A region that requests are taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    name: String,
    partition: &'static str,
    host: String,
    endpoint: HttpsUrl,
}

/// Why a region or endpoint cannot be configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// It does not look like a region.
    #[error("{0:?} is not the name of a region, like eu-west-1")]
    Name(String),
    /// The override is no HTTPS server.
    #[error(transparent)]
    Endpoint(#[from] HttpsUrlError),
    /// The override has a path.
    #[error("{0} has a path; STS answers at the root of a host")]
    Path(HttpsUrl),
}

impl Region {
    /// A region with AWS's own endpoint, or with one in its place: a VPC endpoint's host, or a test's.
    ///
    /// Requests to another endpoint still carry AWS's name of the region's host, which is what they are
    /// signed for. It must be HTTPS: signed requests carry session tokens.
    ///
    /// # Errors
    /// When the name or the endpoint cannot be used.
    pub fn new(name: &str, endpoint: Option<&str>) -> Result<Self, RegionError> {
        let host = sts_host(name).ok_or_else(|| RegionError::Name(name.to_owned()));
        let (partition, host) = host?;
        let endpoint = match endpoint {
            Some(endpoint) => HttpsUrl::parse(endpoint)?,
            None => HttpsUrl::from_host(&host, 443)?,
        };
        if endpoint.path() != "/" {
            return Err(RegionError::Path(endpoint));
        }
        Ok(Self {
            name: name.to_owned(),
            partition,
            host,
            endpoint,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its partition: `aws`, `aws-cn`, `aws-us-gov`, ...
    #[must_use]
    pub fn partition(&self) -> &'static str {
        self.partition
    }

    /// The Host header that requests to it are signed for.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where requests go.
    #[must_use]
    pub fn endpoint(&self) -> &HttpsUrl {
        &self.endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_has_awss_endpoint_by_default() {
        let region = Region::new("cn-north-1", None).unwrap();
        assert_eq!(
            (region.name(), region.partition()),
            ("cn-north-1", "aws-cn")
        );
        assert_eq!(region.host(), "sts.cn-north-1.amazonaws.com.cn");
        let endpoint = region.endpoint().to_string();
        assert_eq!(endpoint, "https://sts.cn-north-1.amazonaws.com.cn");
        let error = Region::new("evil#eu-west-1", None).unwrap_err();
        assert_eq!(error, RegionError::Name("evil#eu-west-1".to_owned()));
    }

    #[test]
    fn another_endpoint_changes_where_requests_go_and_not_what_they_are_signed_for() {
        let vpc = "https://vpce-1.sts.eu-west-1.vpce.amazonaws.com";
        let region = Region::new("eu-west-1", Some(vpc)).unwrap();
        assert_eq!(region.host(), "sts.eu-west-1.amazonaws.com");
        assert_eq!(region.endpoint().to_string(), vpc);
        for bad in [
            "http://sts.eu-west-1.amazonaws.com",
            "http://127.0.0.1:5000",
            "sts.eu-west-1.amazonaws.com",
            "https://sts.amazonaws.com@evil",
            "https://evil#sts.amazonaws.com",
            "https://a/b",
            "https://a?b",
            "",
        ] {
            assert!(Region::new("eu-west-1", Some(bad)).is_err(), "{bad}");
        }
    }
}
