//! The header that tells a workload who its caller is.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

/// Names the caller to the workload. Only ever set by the proxy beside the workload, from the certificate that it
/// verified.
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");

/// The value of `x-forwarded-client-cert` in Envoy's form: `By=<own SPIFFE ID>;Hash=<SHA-256 of the caller's
/// certificate in hexadecimal>;Subject="<its subject>";URI=<its SPIFFE ID>`. Made once for each mesh connection.
pub(crate) fn forwarded_client_cert(
    own_id: &str,
    certificate_sha256: &[u8; 32],
    subject: &str,
    peer_id: &str,
) -> Option<HeaderValue> {
    let mut text = String::with_capacity(120 + own_id.len() + subject.len() + peer_id.len());
    text.push_str("By=");
    text.push_str(own_id);
    text.push_str(";Hash=");
    for byte in certificate_sha256 {
        let _ = write!(text, "{byte:02x}");
    }
    text.push_str(";Subject=\"");
    for character in subject.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            // No other character can stand in a header's value and mean itself to every reader.
            ' '..='~' => text.push(character),
            _ => text.push('?'),
        }
    }
    text.push_str("\";URI=");
    text.push_str(peer_id);
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_in_envoys_form() {
        let value = forwarded_client_cert(
            "spiffe://td/ns/data/sa/orders",
            &[0xab; 32],
            r#"CN="x",O=y"#,
            "spiffe://td/ns/airflow/sa/worker",
        )
        .unwrap();
        let expected = format!(
            "By=spiffe://td/ns/data/sa/orders;Hash={};Subject=\"CN=\\\"x\\\",O=y\";URI=spiffe://td/ns/airflow/sa/worker",
            "ab".repeat(32)
        );
        assert_eq!(value, expected);
    }

    #[test]
    fn a_subject_cannot_end_the_header_or_forge_a_field() {
        let value =
            forwarded_client_cert("a", &[0; 32], "x\r\nY: \u{e9}\";URI=evil", "spiffe://td/b")
                .unwrap();
        let text = value.to_str().unwrap();
        assert!(
            text.ends_with(r#";Subject="x??Y: ?\";URI=evil";URI=spiffe://td/b"#),
            "{text}"
        );
    }
}
