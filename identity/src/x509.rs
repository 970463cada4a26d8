//! What the rest of the crate reads from certificates, in one strict place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

/// The context-specific tag of `uniformResourceIdentifier` (RFC 5280 section 4.2.1.6).
const URI_TAG: u32 = 6;

/// A certificate cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedCertificate {
    /// Not the DER form of an X.509 certificate.
    #[error("not a DER-encoded X.509 certificate")]
    Der,
    /// Bytes follow the certificate.
    #[error("bytes follow the certificate")]
    TrailingBytes,
    /// An extension that decides about trust is there twice or cannot be read.
    #[error("the {0} extension is there twice or is malformed")]
    Extension(&'static str),
}

/// Parses one certificate with nothing after it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, MalformedCertificate> {
    let (rest, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| MalformedCertificate::Der)?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(MalformedCertificate::TrailingBytes)
    }
}

/// A URI subject alternative name, which may be malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UriName<'a> {
    Text(&'a str),
    NotUtf8,
}

/// Counts a name with the URI tag as one even when its bytes are no text: a parser that skips it lets a
/// second URI pass unseen.
pub(crate) fn uri_name<'a>(name: &GeneralName<'a>) -> Option<UriName<'a>> {
    match name {
        GeneralName::URI(text) => Some(UriName::Text(text)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(UriName::NotUtf8),
        _ => None,
    }
}

/// The URI names of a certificate, in order.
pub(crate) fn uri_names<'a>(
    certificate: &X509Certificate<'a>,
) -> Result<Vec<UriName<'a>>, MalformedCertificate> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|_| MalformedCertificate::Extension("subject alternative name"))?;
    Ok(extension.map_or_else(Vec::new, |extension| {
        let names = extension.value.general_names.iter();
        names.filter_map(uri_name).collect()
    }))
}

/// The moment as the system's wall clock; years before 1970 count as 1970.
pub(crate) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The wall clock as seconds since 1970, which is how certificates count.
pub(crate) fn unix_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The inverse of [`unix_time`].
pub(crate) fn system_time_of(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// A distinguished name for people to read, escaped and cut: peers choose their own, and it goes to logs.
pub(crate) fn readable(name: &X509Name<'_>) -> String {
    const MAX_CHARACTERS: usize = 256;
    let text = name.to_string();
    text.chars()
        .flat_map(char::escape_debug)
        .take(MAX_CHARACTERS)
        .collect()
}

/// Lower-case hexadecimal of a serial number without leading zero bytes.
pub(crate) fn serial_hex(raw: &[u8]) -> String {
    let first = raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len());
    let significant = raw.get(first..).unwrap_or_default();
    significant
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
