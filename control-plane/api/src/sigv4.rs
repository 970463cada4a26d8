//! AWS Signature Version 4, as much of it as one POST to `/` with a short body needs.
//!
//! By hand because the SDK's signing crate brings some thirty others, a second HMAC and SHA-2 among them, into every
//! sidecar for these hundred lines. Held against the vectors that AWS publishes. The proxy signs requests to STS with
//! it, the control plane those to AWS Private CA.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};

/// What is signed with.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// Which key.
    pub access_key_id: &'a str,
    /// The key.
    pub secret_access_key: &'a str,
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// A POST to the root of a host.
#[derive(Debug)]
pub struct Request<'a> {
    /// Of the host.
    pub region: &'a str,
    /// As AWS calls it in signatures.
    pub service: &'a str,
    /// Names in lower case, each once, in any order; `host` among them. Values without white space at their ends or
    /// doubled within, which the canonical form would change.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The whole body.
    pub body: &'a [u8],
}

/// `YYYYMMDDTHHMMSSZ`.
///
/// # Errors
/// When the clock is beyond what a calendar holds.
pub fn amz_date(now: SystemTime) -> Result<String, String> {
    let time = jiff::Timestamp::try_from(now);
    let time = time.map_err(|error| format!("this machine's clock cannot be read: {error}"))?;
    Ok(time.strftime("%Y%m%dT%H%M%SZ").to_string())
}

impl Request<'_> {
    /// The `Authorization` header for a time in the form of [`amz_date`].
    #[must_use]
    pub fn sign(&self, credentials: &Credentials<'_>, date: &str) -> String {
        let mut headers = self.headers.clone();
        headers.sort_unstable();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"));
        let lines: String = lines.collect();
        let body = hex(sha256(self.body).as_ref());
        let canonical = format!("POST\n/\n\n{lines}\n{names}\n{body}");

        let day = date.get(..8).unwrap_or_default();
        let (region, service) = (self.region, self.service);
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let canonical = hex(sha256(canonical.as_bytes()).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        let key = signing_key(credentials, [day, region, service]);
        let signature = hex(hmac_sha256(key.as_ref(), to_sign.as_bytes()).as_ref());
        let id = credentials.access_key_id;
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
    }
}

fn signing_key(credentials: &Credentials<'_>, scope: [&str; 3]) -> hmac::Tag {
    let secret = zeroize::Zeroizing::new(format!("AWS4{}", credentials.secret_access_key));
    let [day, region, service] = scope;
    let mut key = hmac_sha256(secret.as_bytes(), day.as_bytes());
    for part in [region, service, "aws4_request"] {
        key = hmac_sha256(key.as_ref(), part.as_bytes());
    }
    key
}

fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The credentials of AWS's Signature Version 4 test suite.
    fn credentials() -> Credentials<'static> {
        Credentials {
            access_key_id: "AKIDEXAMPLE",
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        }
    }

    const DATE: &str = "20150830T123600Z";
    const HOST: (&str, &str) = ("host", "example.amazonaws.com");

    fn signature(headers: &[(&str, &str)], body: &str) -> String {
        let request = Request {
            region: "us-east-1",
            service: "service",
            headers: headers.to_vec(),
            body: body.as_bytes(),
        };
        let signed = request.sign(&credentials(), DATE);
        signed.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    #[test]
    fn the_posts_of_awss_test_suite_have_its_signatures() {
        let date = ("x-amz-date", DATE);
        let form = ("content-type", "application/x-www-form-urlencoded");
        let utf8 = (
            "content-type",
            "application/x-www-form-urlencoded; charset=utf8",
        );
        let token = (
            "x-amz-security-token",
            "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==",
        );
        for (name, headers, body, expected) in [
            (
                "post-vanilla",
                vec![HOST, date],
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-header-key-sort",
                vec![HOST, ("my-header1", "value1"), date],
                "",
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                "post-sts-header-before",
                vec![HOST, date, token],
                "",
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
            (
                "post-x-www-form-urlencoded",
                vec![form, HOST, date],
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "post-x-www-form-urlencoded-parameters",
                vec![utf8, HOST, date],
                "Param1=value1",
                "1a72ec8f64bd914b0e42e42607c7fbce7fb2c7465f63e3092b3b0d39fa77a6fe",
            ),
        ] {
            assert_eq!(signature(&headers, body), expected, "{name}");
        }
    }

    #[test]
    fn the_signing_key_of_awss_guide_is_derived() {
        let key = signing_key(&credentials(), ["20150830", "us-east-1", "iam"]);
        let expected = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
        assert_eq!(hex(key.as_ref()), expected);
    }

    #[test]
    fn times_are_written_as_aws_does() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        assert_eq!(amz_date(time).unwrap(), DATE);
        assert!(amz_date(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50)).is_err());
    }
}
