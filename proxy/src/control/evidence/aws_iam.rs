//! A signed request to STS, "who am I", which the control plane sends in this workload's stead.

use std::time::SystemTime;

use sidewind_api::evidence::{KEY_HEADER, NONCE_HEADER, SERVER_ID_HEADER, STS_BODY, sts_host};
use sidewind_api::sigv4::{Credentials, Request, amz_date};
use sidewind_api::v1;

use super::{Binding, hex};
use crate::config::AwsCredentials;

const FORM: &str = "application/x-www-form-urlencoded";

/// The request, bound to a challenge and to the key that is to be certified.
pub(super) fn evidence(
    region: &str,
    credentials: &AwsCredentials,
    binding: &Binding,
    now: SystemTime,
) -> Result<v1::AwsIam, String> {
    let (_, host) = sts_host(region).ok_or_else(|| format!("{region:?} is no AWS region"))?;
    let date = amz_date(now)?;
    let key = hex(&binding.key_sha256);
    let mut headers = vec![
        ("content-type", FORM),
        ("x-amz-date", &date),
        (SERVER_ID_HEADER, &binding.server_id),
        (NONCE_HEADER, &binding.nonce),
        (KEY_HEADER, &key),
    ];
    if let Some(token) = &credentials.session_token {
        headers.push(("x-amz-security-token", token.expose()));
    }
    let mut signed = headers.clone();
    signed.push(("host", &host));
    let request = Request {
        region,
        service: "sts",
        headers: signed,
        body: STS_BODY.as_bytes(),
    };
    let credentials = Credentials {
        access_key_id: credentials.access_key_id.expose(),
        secret_access_key: credentials.secret_access_key.expose(),
    };
    let authorization = request.sign(&credentials, &date);
    headers.push(("authorization", &authorization));
    let headers = headers.into_iter().map(|(name, value)| v1::HttpHeader {
        name: name.to_owned(),
        value: value.to_owned(),
    });
    Ok(v1::AwsIam {
        region: region.to_owned(),
        headers: headers.collect(),
        body: STS_BODY.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Secret;

    #[test]
    fn everything_that_binds_the_request_is_signed() {
        let credentials = AwsCredentials {
            access_key_id: Secret::new("ASIAIOSFODNN7EXAMPLE"),
            secret_access_key: Secret::new("secret"),
            session_token: Some(Secret::new("token")),
        };
        let binding = Binding {
            server_id: "sidewind://sidewind.local".to_owned(),
            nonce: "n".to_owned(),
            key_sha256: [0xab; 32],
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let evidence = evidence("eu-west-1", &credentials, &binding, now).unwrap();
        let header = |name: &str| {
            let mut named = evidence.headers.iter().filter(|header| header.name == name);
            let value = named.next().map(|header| header.value.as_str());
            assert!(named.next().is_none(), "{name} once");
            value.unwrap_or_else(|| panic!("no {name}"))
        };
        let scope = "AWS4-HMAC-SHA256 Credential=ASIAIOSFODNN7EXAMPLE/20150830/eu-west-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-sidewind-key;x-sidewind-nonce;x-sidewind-server-id, Signature=";
        assert!(header("authorization").starts_with(scope));
        assert_eq!(header("x-sidewind-server-id"), "sidewind://sidewind.local");
        assert_eq!(header("x-sidewind-nonce"), "n");
        assert_eq!(header("x-sidewind-key"), "ab".repeat(32));
        assert_eq!(header("x-amz-security-token"), "token");
        assert_eq!(header("x-amz-date"), "20150830T123600Z");
        assert_eq!(evidence.headers.len(), 7);
        assert_eq!(evidence.body, STS_BODY.as_bytes());
    }
}
