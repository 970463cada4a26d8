//! Patterns that say which SPIFFE IDs a policy means.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::spiffe_id::{
    MAX_SPIFFE_ID_BYTES, SpiffeId, SpiffeIdError, TrustDomain, check_path, check_segment, split,
};

const WILDCARD: &str = "*";

/// A SPIFFE ID in which path segments may be `*`, matched segment by segment and never by prefix.
///
/// - The trust domain is mandatory and literal.
/// - `*` between slashes matches exactly one segment, whatever it is.
/// - `*` as the last segment matches one or more segments.
/// - Everything else matches itself, with its case.
///
/// A pattern without a path matches only the trust domain's own ID; one that ends in `/*` never matches
/// what stands before it: `…/ns/airflow/*` matches `…/ns/airflow/sa/worker`, but neither
/// `…/ns/airflow` nor `…/ns/airflow2/sa/worker`.
///
/// ```
/// # use sidewind_identity::{SpiffeId, SpiffeIdPattern};
/// let workers = SpiffeIdPattern::parse("spiffe://sidewind.local/ns/*/sa/worker")?;
/// assert!(workers.matches(&SpiffeId::parse("spiffe://sidewind.local/ns/airflow/sa/worker")?));
/// assert!(!workers.matches(&SpiffeId::parse("spiffe://sidewind.local/ns/a/b/sa/worker")?));
/// # Ok::<(), sidewind_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeIdPattern {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeIdPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// Says which rule is broken: those of a SPIFFE ID, and that `*` stands for a whole segment of the path.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let (trust_domain, path) = split(text)?;
        let trust_domain = TrustDomain::parse(trust_domain)?;
        check_path(path, check_pattern_segment)?;
        Ok(Self {
            text: text.into(),
            trust_domain,
        })
    }

    /// Whether the pattern means this ID.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if self.trust_domain != *id.trust_domain() {
            return false;
        }
        let mut wanted = self.segments().peekable();
        let mut actual = id.segments();
        while let Some(segment) = wanted.next() {
            let Some(candidate) = actual.next() else {
                return false;
            };
            if segment == WILDCARD {
                if wanted.peek().is_none() {
                    return true;
                }
            } else if segment != candidate {
                return false;
            }
        }
        actual.next().is_none()
    }

    /// The trust domain that the pattern is bound to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        let path = split(&self.text).map_or("", |(_, path)| path);
        path.split('/').skip(1)
    }
}

fn check_pattern_segment(segment: &str) -> Result<(), SpiffeIdError> {
    if segment == WILDCARD {
        return Ok(());
    }
    if segment.contains(WILDCARD) {
        return Err(SpiffeIdError::PartialWildcard);
    }
    check_segment(segment)
}

impl From<&SpiffeId> for SpiffeIdPattern {
    /// The pattern that matches this ID alone.
    fn from(id: &SpiffeId) -> Self {
        Self {
            text: id.as_str().into(),
            trust_domain: id.trust_domain().clone(),
        }
    }
}

impl FromStr for SpiffeIdPattern {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeIdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeIdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeIdPattern({})", self.text)
    }
}
