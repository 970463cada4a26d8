//! What the rest of the crate reads from certificates, in one strict place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
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

/// Key identifiers of a certificate (RFC 5280 sections 4.2.1.1 and 4.2.1.2), each in lower-case hexadecimal: what
/// tells authorities apart when their certificates are replaced, and what is tainted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyIds {
    /// Of the certificate's own key. Where the certificate does not say, what this crate writes into the certificates
    /// that such a key signs: the first 20 bytes of the SHA-256 of the SubjectPublicKeyInfo.
    pub subject: String,
    /// Of the issuer's key, where the certificate says.
    pub authority: Option<String>,
}

impl KeyIds {
    /// Reads them from a certificate.
    ///
    /// # Errors
    /// [`MalformedCertificate`] when it cannot be read.
    pub fn of(der: &[u8]) -> Result<Self, MalformedCertificate> {
        Ok(Self::read(&parse(der)?))
    }

    pub(crate) fn read(certificate: &X509Certificate<'_>) -> Self {
        let mut subject = None;
        let mut authority = None;
        for extension in certificate.iter_extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => subject = Some(hex(id.0)),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    authority = id.key_identifier.as_ref().map(|id| hex(id.0));
                }
                _ => {}
            }
        }
        let derived = || {
            let digest = digest(&SHA256, certificate.public_key().raw);
            hex(digest.as_ref().get(..20).unwrap_or_default())
        };
        Self {
            subject: subject.unwrap_or_else(derived),
            authority,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower-case hexadecimal of a serial number without leading zero bytes.
pub(crate) fn serial_hex(raw: &[u8]) -> String {
    let first = raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len());
    let significant = raw.get(first..).unwrap_or_default();
    hex(significant)
}
