//! Names of authorities: `arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID`.

use std::fmt;
use std::str::FromStr;

/// The name of an authority of AWS Private CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityArn {
    text: String,
    partition: String,
    region: String,
}

/// Why a text is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the ARN of an authority of AWS Private CA; it is like arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/ID"
)]
pub struct ArnError(String);

impl FromStr for AuthorityArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let error = || ArnError(text.chars().take(128).collect());
        let mut parts = text.splitn(6, ':');
        let (
            Some("arn"),
            Some(partition),
            Some("acm-pca"),
            Some(region),
            Some(account),
            Some(rest),
        ) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        )
        else {
            return Err(error());
        };
        let word = |text: &str| {
            let fits =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=64).contains(&text.len()) && text.bytes().all(fits)
        };
        let id = rest.strip_prefix("certificate-authority/");
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let is_partition = matches!(partition, "aws" | "aws-cn" | "aws-us-gov");
        if !is_partition || !word(region) || !is_account || !id.is_some_and(word) {
            return Err(error());
        }
        Ok(Self {
            text: text.to_owned(),
            partition: partition.to_owned(),
            region: region.to_owned(),
        })
    }
}

impl AuthorityArn {
    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The region that it is in.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The host that answers for it.
    #[must_use]
    pub fn host(&self) -> String {
        let suffix = match self.partition.as_str() {
            "aws-cn" => "amazonaws.com.cn",
            _ => "amazonaws.com",
        };
        format!("acm-pca.{}.{suffix}", self.region)
    }
}

impl fmt::Display for AuthorityArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_where_their_authority_answers() {
        for (arn, host) in [
            (
                "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/2f6c-1",
                "acm-pca.eu-west-1.amazonaws.com",
            ),
            (
                "arn:aws-cn:acm-pca:cn-north-1:123456789012:certificate-authority/a",
                "acm-pca.cn-north-1.amazonaws.com.cn",
            ),
        ] {
            assert_eq!(arn.parse::<AuthorityArn>().unwrap().host(), host);
        }
        for bad in [
            "",
            "arn:aws:acm-pca:eu-west-1:123456789012",
            "arn:aws:iam:eu-west-1:123456789012:certificate-authority/a",
            "arn:aws:acm-pca:evil.example/:123456789012:certificate-authority/a",
            "arn:aws:acm-pca::123456789012:certificate-authority/a",
            "arn:aws:acm-pca:eu-west-1:12345:certificate-authority/a",
            "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/",
            "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/a/certificate/b",
            "arn:evil:acm-pca:eu-west-1:123456789012:certificate-authority/a",
        ] {
            assert!(bad.parse::<AuthorityArn>().is_err(), "{bad:?}");
        }
    }
}
