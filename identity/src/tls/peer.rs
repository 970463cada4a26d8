//! Who stands at the other end of a connection whose handshake has succeeded.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::oid_registry::{Oid, OidRegistry};
use x509_parser::x509::X509Name;

use crate::spiffe_id::SpiffeId;
use crate::verify::{self, VerifyError};
use crate::x509;

/// Subjects longer than this are given as empty: they end in headers, and are no identity.
const MAX_SUBJECT_BYTES: usize = 512;

/// A connection has no peer identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    Anonymous,
    /// The certificate breaks the rules; no verified connection has such a one.
    #[error("the peer's certificate is no X.509-SVID: {0}")]
    Invalid(#[from] VerifyError),
}

/// What a verified peer's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// Until when, inclusive, the certificate is valid.
    pub not_after: SystemTime,
    /// The serial number in lower-case hexadecimal.
    pub serial_hex: String,
    /// Key identifier of the authority that signed the certificate, in lower-case hexadecimal; empty where the
    /// certificate does not say.
    pub issuer_key_id: String,
    /// SHA-256 of the certificate's DER form: `Hash` in `x-forwarded-client-cert`.
    pub certificate_sha256: [u8; 32],
    /// The subject in RFC 2253 form: `Subject` in `x-forwarded-client-cert`. Usually empty; never an identity.
    pub subject: String,
}

/// Reads the identity from the certificates of a connection, after its handshake: give it what rustls'
/// `peer_certificates()` gives.
///
/// This believes the certificates: only a connection made with this module's configurations has verified them.
///
/// # Errors
/// [`PeerError::Anonymous`] without a certificate.
pub fn peer_identity(
    certificates: Option<&[CertificateDer<'_>]>,
) -> Result<PeerIdentity, PeerError> {
    let der = certificates
        .and_then(<[_]>::first)
        .ok_or(PeerError::Anonymous)?;
    let certificate = x509::parse(der).map_err(VerifyError::from)?;
    let leaf = verify::check_leaf(&certificate)?;
    let mut certificate_sha256 = [0; 32];
    certificate_sha256.copy_from_slice(digest(&SHA256, der).as_ref());
    Ok(PeerIdentity {
        id: leaf.id,
        not_after: leaf.not_after,
        serial_hex: leaf.serial_hex,
        issuer_key_id: x509::KeyIds::read(&certificate)
            .authority
            .unwrap_or_default(),
        certificate_sha256,
        subject: Some(rfc2253(certificate.subject()))
            .filter(|subject| subject.len() <= MAX_SUBJECT_BYTES)
            .unwrap_or_default(),
    })
}

/// A distinguished name as RFC 2253 writes it: the last part first, separators and control characters escaped.
fn rfc2253(name: &X509Name<'_>) -> String {
    let registry = OidRegistry::default().with_x509();
    let mut parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            let attributes = rdn.iter().map(|attribute| {
                let value = match attribute.as_str() {
                    Ok(text) => escape(text),
                    Err(_) => format!("#{}", hex(attribute.as_slice())),
                };
                format!(
                    "{}={value}",
                    attribute_name(attribute.attr_type(), &registry)
                )
            });
            attributes.collect::<Vec<_>>().join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

fn attribute_name(oid: &Oid<'_>, registry: &OidRegistry<'_>) -> String {
    match registry.get(oid).map(|entry| entry.sn()) {
        Some("commonName") => "CN".to_owned(),
        Some("countryName") => "C".to_owned(),
        Some("localityName") => "L".to_owned(),
        Some("stateOrProvinceName") => "ST".to_owned(),
        Some("organizationName") => "O".to_owned(),
        Some("organizationalUnit" | "organizationalUnitName") => "OU".to_owned(),
        _ => oid.to_string(),
    }
}

fn escape(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => escaped.extend(['\\', character]),
            '#' if index == 0 => escaped.push_str("\\#"),
            ' ' if index == 0 || index == last => escaped.push_str("\\ "),
            // Not even the control characters reach a header or a log line.
            _ if character.is_control() || !character.is_ascii() => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    escaped.push_str(&format!("\\{byte:02X}"));
                }
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
