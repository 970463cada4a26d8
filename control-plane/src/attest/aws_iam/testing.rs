//! Evidence as a proxy makes it, with any signature: STS alone can tell a right one.

use super::region::Region;
use crate::config::attestor_config::AwsRegion;
use sidewind_api::evidence::STS_BODY as BODY;
use sidewind_api::v1;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// 2026-08-22T10:00:00Z.
pub(super) fn signed_at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_787_392_800)
}

pub(super) const DATE: &str = "20260822T100000Z";
pub(super) const SERVER: &str = "sidewind://example.org";
pub(super) const SIGNED: &str = "content-type;host;x-amz-date;x-amz-security-token;x-sidewind-key;x-sidewind-nonce;x-sidewind-server-id";

pub(super) fn region() -> Region {
    Region::new("eu-west-1", None).unwrap()
}

/// The region, in the form that is configured.
pub(super) fn taken(name: &str, endpoint: Option<&str>) -> Arc<AwsRegion> {
    Arc::new(AwsRegion {
        region: Region::new(name, endpoint).unwrap(),
        accounts: vec![ACCOUNT.to_owned()],
        ca_file: None,
    })
}

pub(super) const ACCOUNT: &str = "123456789012";

pub(super) fn authorization(date: &str, region: &str, signed: &str) -> String {
    let signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
    format!(
        "AWS4-HMAC-SHA256 Credential=ASIAIOSFODNN7EXAMPLE/{date}/{region}/sts/aws4_request, SignedHeaders={signed}, Signature={signature}"
    )
}

pub(super) fn evidence(nonce: &str, key: &str) -> v1::AwsIam {
    let authorization = authorization("20260822", "eu-west-1", SIGNED);
    let headers = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/x-www-form-urlencoded"),
        ("x-amz-date", DATE),
        (
            "x-amz-security-token",
            "IQoJb3JpZ2luX2VjEXAMPLE/token+with==",
        ),
        ("x-sidewind-server-id", SERVER),
        ("x-sidewind-nonce", nonce),
        ("x-sidewind-key", key),
    ];
    v1::AwsIam {
        region: "eu-west-1".to_owned(),
        headers: headers.into_iter().map(header).collect(),
        body: BODY.into(),
    }
}

pub(super) fn header((name, value): (&str, &str)) -> v1::HttpHeader {
    v1::HttpHeader {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// Gives a header another value, or takes it away.
pub(super) fn set(evidence: &mut v1::AwsIam, name: &str, value: Option<&str>) {
    evidence.headers.retain(|header| header.name != name);
    if let Some(value) = value {
        evidence.headers.push(header((name, value)));
    }
}
