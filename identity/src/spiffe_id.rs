//! Trust domains and SPIFFE IDs, parsed byte by byte (SPIFFE-ID sections 2, 2.1, 2.2, 2.3).
//!
//! A URL library is the wrong tool here: it decodes percents, resolves `..`, strips tabs and folds
//! case, and each of those makes two spellings of one identity.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest trust domain name in bytes (SPIFFE-ID section 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// The longest SPIFFE ID in bytes (SPIFFE-ID section 2.3). Longer ones are neither made nor accepted.
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;

const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID, a trust domain name or a pattern for SPIFFE IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SpiffeIdError {
    /// The text does not begin with `spiffe://`, which is compared with its case.
    #[error("a SPIFFE ID begins with 'spiffe://', in lower case")]
    Scheme,
    /// Nothing stands between `spiffe://` and the path.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain holds a byte outside `[a-z0-9._-]`.
    #[error(
        "the trust domain holds the byte {0:#04x}; only a-z, 0-9, '.', '-' and '_' are allowed"
    )]
    TrustDomainByte(u8),
    /// The trust domain is longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain is {0} bytes long; at most 255 are allowed")]
    TrustDomainTooLong(usize),
    /// The whole text is longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("the SPIFFE ID is {0} bytes long; at most 2048 are allowed")]
    TooLong(usize),
    /// The path ends with `/`.
    #[error("the path ends with '/'")]
    TrailingSlash,
    /// Two slashes stand side by side.
    #[error("the path holds an empty segment")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("the path holds the segment '.' or '..'")]
    RelativeSegment,
    /// A path segment holds a byte outside `[a-zA-Z0-9._-]`.
    #[error(
        "the path holds the byte {0:#04x}; only a-z, A-Z, 0-9, '.', '-' and '_' are allowed in its segments"
    )]
    PathByte(u8),
    /// A path given by itself does not begin with `/`.
    #[error("a path begins with '/'")]
    PathWithoutSlash,
    /// A pattern's wildcard shares its segment with other bytes, as in `ab*` or `**`.
    #[error("'*' stands for a whole segment and cannot be part of one")]
    PartialWildcard,
}

/// The name of a trust domain, such as `sidewind.local`.
///
/// Never interpreted as a host name or an address (SPIFFE-ID section 2.1). Clones share the text.
///
/// ```
/// # use sidewind_identity::TrustDomain;
/// let trust_domain = TrustDomain::parse("sidewind.local")?;
/// assert_eq!(trust_domain.as_str(), "sidewind.local");
/// assert!(TrustDomain::parse("Sidewind.local").is_err());
/// # Ok::<(), sidewind_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare trust domain name (not its SPIFFE ID).
    ///
    /// # Errors
    /// Says which rule of SPIFFE-ID section 2.1 or 2.3 the name breaks.
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(name.as_bytes())?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself: the one without a path, which a CA certificate may hold.
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            uri: format!("{SCHEME}{}", self.0).into(),
            trust_domain: self.clone(),
        }
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TrustDomain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for TrustDomain {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

/// A SPIFFE ID, such as `spiffe://sidewind.local/ns/airflow/sa/worker`.
///
/// Whatever exists is valid, and equal exactly when its bytes are: the parser accepts one spelling of
/// each identity. Clones share the text.
///
/// ```
/// # use sidewind_identity::SpiffeId;
/// let id = SpiffeId::parse("spiffe://sidewind.local/ns/airflow/sa/worker")?;
/// assert_eq!(id.trust_domain().as_str(), "sidewind.local");
/// assert_eq!(id.path(), "/ns/airflow/sa/worker");
/// assert!(id.is_workload());
/// # Ok::<(), sidewind_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Parses a SPIFFE ID.
    ///
    /// # Errors
    /// Says which rule of SPIFFE-ID section 2 the text breaks. Beyond the standard, upper case in the
    /// scheme or trust domain is refused and not folded, and so is an ID of more than 2048 bytes.
    pub fn parse(uri: &str) -> Result<Self, SpiffeIdError> {
        // Bounds the work before looking at the text.
        if uri.len() > MAX_SPIFFE_ID_BYTES {
            return Err(SpiffeIdError::TooLong(uri.len()));
        }
        let (trust_domain, path) = split(uri)?;
        check_trust_domain(trust_domain.as_bytes())?;
        check_path(path, check_segment)?;
        Ok(Self {
            uri: uri.into(),
            trust_domain: TrustDomain(trust_domain.into()),
        })
    }

    /// Joins a trust domain and a path. The path is empty, or begins with `/`.
    ///
    /// The result is validated as a whole, so a template's value that holds `/` or `..` cannot pass unseen.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`].
    pub fn from_parts(trust_domain: &TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(SpiffeIdError::PathWithoutSlash);
        }
        Self::parse(&format!("{SCHEME}{trust_domain}{path}"))
    }

    /// The trust domain that this identity belongs to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading `/`, or nothing.
    pub fn path(&self) -> &str {
        self.uri
            .get(SCHEME.len() + self.trust_domain.0.len()..)
            .unwrap_or_default()
    }

    /// The segments of the path, in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Whether this ID has a path and so can be a workload's (X509-SVID section 3.1).
    pub fn is_workload(&self) -> bool {
        !self.path().is_empty()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        Self::parse(uri)
    }
}

impl AsRef<str> for SpiffeId {
    fn as_ref(&self) -> &str {
        &self.uri
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.uri)
    }
}

/// Splits `spiffe://td/path` before the path's first slash, without validating either part.
pub(crate) fn split(uri: &str) -> Result<(&str, &str), SpiffeIdError> {
    let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
    Ok(match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    })
}

pub(crate) fn check_trust_domain(name: &[u8]) -> Result<(), SpiffeIdError> {
    if name.is_empty() {
        return Err(SpiffeIdError::EmptyTrustDomain);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainTooLong(name.len()));
    }
    let allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    match name.iter().find(|byte| !allowed(byte)) {
        Some(byte) => Err(SpiffeIdError::TrustDomainByte(*byte)),
        None => Ok(()),
    }
}

/// Checks an empty path, or one that begins with `/`, with a rule for each segment.
pub(crate) fn check_path(
    path: &str,
    check: impl Fn(&str) -> Result<(), SpiffeIdError>,
) -> Result<(), SpiffeIdError> {
    if path.is_empty() {
        return Ok(());
    }
    if path.ends_with('/') {
        return Err(SpiffeIdError::TrailingSlash);
    }
    path.split('/').skip(1).try_for_each(check)
}

pub(crate) fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    match segment {
        "" => return Err(SpiffeIdError::EmptySegment),
        "." | ".." => return Err(SpiffeIdError::RelativeSegment),
        _ => {}
    }
    let allowed =
        |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    match segment.as_bytes().iter().find(|byte| !allowed(byte)) {
        Some(byte) => Err(SpiffeIdError::PathByte(*byte)),
        None => Ok(()),
    }
}
