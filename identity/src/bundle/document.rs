//! SPIFFE bundle documents (SPIFFE_Trust_Domain_and_Bundle.md): a trust domain's keys as a JSON Web Key set.
//!
//! A document does not say whose it is, so the trust domain comes from whoever configured where it is found. A document
//! without usable keys is taken, and says that nobody of the trust domain is believed (section 4.1.3). Elements of kinds
//! not known here are passed over; elements that cannot be right are left out, and [`BundleDocument::findings`] says so.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Authority, AuthorityError, BundleError, TrustBundle};
use crate::jwt::bundle::{JwtAuthority, JwtBundle, JwtBundleError};
use crate::jwt::json::{self, JsonError};
use crate::jwt::jwks::key_id;
use crate::jwt::{KeyMaterialError, VerificationKey};
use crate::spiffe_id::TrustDomain;
use crate::x509;

/// The largest document that is parsed.
pub const MAX_DOCUMENT_BYTES: usize = 256 * 1024;
/// The most elements of a document's `keys`.
pub const MAX_DOCUMENT_KEYS: usize = 100;
/// How often a document is fetched anew where it does not say (section 6.1).
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);

/// Why a document is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is too long.
    #[error("the bundle document has {found} bytes; at most {allowed} are taken")]
    TooLarge {
        /// How long it is.
        found: usize,
        /// How long it may be.
        allowed: usize,
    },
    /// It is not one JSON object without repeated members.
    #[error("the bundle document cannot be read: {0}")]
    Json(#[from] JsonError),
    /// A member is missing or of the wrong type.
    #[error("the bundle document's '{name}' must be {expected}")]
    Member {
        /// Which.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// It holds more than [`MAX_DOCUMENT_KEYS`].
    #[error("the bundle document holds {0} keys; at most {MAX_DOCUMENT_KEYS} are taken")]
    TooManyKeys(usize),
    /// Its X.509 authorities are no bundle.
    #[error(transparent)]
    X509(#[from] BundleError),
    /// Its JWT authorities are no bundle.
    #[error(transparent)]
    Jwt(#[from] JwtBundleError),
}

/// Why an element of a document's `keys` was left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElementError {
    /// It is for something that is not known here, which the standard says to pass over.
    #[error("its 'use' is not x509-svid or jwt-svid")]
    UnknownUse,
    /// Its kind of key is not known here, which the standard says to pass over.
    #[error("its kind of key is not known")]
    UnknownKeyType,
    /// An X.509 authority without a certificate, which the standard says to pass over.
    #[error("an x509-svid key without a certificate in 'x5c'")]
    NoCertificate,
    /// It is no object.
    #[error("not a JSON object")]
    NotAnObject,
    /// The key cannot be used.
    #[error("its key cannot be used: {0}")]
    Key(#[from] KeyMaterialError),
    /// The certificate is not base64.
    #[error("the first entry of 'x5c' is not base64")]
    Base64,
    /// The certificate cannot be an authority of the trust domain.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The certificate has ended.
    #[error("its certificate has expired")]
    Expired,
    /// The element's key and its certificate's differ.
    #[error("its key is not the key of its certificate")]
    OtherKey,
    /// A JWT authority without a name.
    #[error("a jwt-svid key without a 'kid' of 1 to 256 bytes")]
    NoKeyId,
}

impl ElementError {
    /// Whether somebody should look into it. What the standard says to pass over is not worth an alarm.
    pub fn is_alarm(&self) -> bool {
        !matches!(
            self,
            Self::UnknownUse | Self::UnknownKeyType | Self::NoCertificate
        )
    }
}

/// An element that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its place in `keys`, from 1.
    pub position: usize,
    /// Why.
    pub reason: ElementError,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", self.position, self.reason)
    }
}

/// A trust domain's keys for both kinds of SVID, as one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleDocument {
    x509: TrustBundle,
    jwt: JwtBundle,
    refresh_hint: Option<Duration>,
    findings: Vec<Finding>,
}

/// What to do with a newly fetched document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// It is newer: take it.
    Accept,
    /// It is the present one.
    Unchanged,
    /// It is older than the present one: keep that, and raise an alarm. Somebody may be bringing back a key that was
    /// taken out.
    Rollback,
    /// It says something else under the same sequence: take it, and raise an alarm. Both came from the same authenticated
    /// place, the later may hold a revocation, and its publisher fails to count.
    SameSequenceOtherContent,
}

impl BundleDocument {
    /// Joins the parts of a document to be written.
    ///
    /// # Errors
    /// [`DocumentError::Member`] where the parts are of two trust domains.
    pub fn new(
        x509: TrustBundle,
        jwt: JwtBundle,
        refresh_hint: Duration,
    ) -> Result<Self, DocumentError> {
        if x509.trust_domain() != jwt.trust_domain() {
            return Err(DocumentError::Member {
                name: "keys",
                expected: "of one trust domain",
            });
        }
        Ok(Self {
            x509,
            jwt,
            refresh_hint: Some(refresh_hint),
            findings: Vec::new(),
        })
    }

    /// Parses the document of a trust domain.
    ///
    /// # Errors
    /// [`DocumentError`] where the document as a whole cannot be relied on.
    pub fn parse(
        trust_domain: TrustDomain,
        text: &[u8],
        now: SystemTime,
    ) -> Result<Self, DocumentError> {
        let members = parse_bounded(text, MAX_DOCUMENT_BYTES)?;
        Self::from_members(trust_domain, &members, now)
    }

    pub(super) fn from_members(
        trust_domain: TrustDomain,
        members: &Map<String, Value>,
        now: SystemTime,
    ) -> Result<Self, DocumentError> {
        let Some(Value::Array(elements)) = members.get("keys") else {
            return Err(DocumentError::Member {
                name: "keys",
                expected: "an array",
            });
        };
        if elements.len() > MAX_DOCUMENT_KEYS {
            return Err(DocumentError::TooManyKeys(elements.len()));
        }
        // A document that does not count its versions has the oldest.
        let sequence = whole_number(members, "spiffe_sequence")?.unwrap_or(0);
        let refresh_hint = whole_number(members, "spiffe_refresh_hint")?;
        let (mut certificates, mut keys, mut findings) = (Vec::new(), Vec::new(), Vec::new());
        for (index, element) in elements.iter().enumerate() {
            match parse_element(&trust_domain, element, now) {
                Ok(Element::X509(certificate)) => certificates.push(certificate),
                Ok(Element::Jwt(authority)) => keys.push(authority),
                Err(reason) => findings.push(Finding {
                    position: index + 1,
                    reason,
                }),
            }
        }
        Ok(Self {
            jwt: JwtBundle::new(trust_domain.clone(), keys)?,
            x509: TrustBundle::from_der(trust_domain, sequence, certificates)?,
            refresh_hint: refresh_hint.map(Duration::from_secs),
            findings,
        })
    }

    /// The trust domain whose keys these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.x509.trust_domain()
    }

    /// The version of the document: grows with each change; 0 where the document does not say.
    pub fn sequence(&self) -> u64 {
        self.x509.sequence()
    }

    /// The X.509 authorities; none means that no certificate of the trust domain is believed.
    pub fn x509(&self) -> &TrustBundle {
        &self.x509
    }

    /// The JWT authorities; none means that no token of the trust domain is believed.
    pub fn jwt(&self) -> &JwtBundle {
        &self.jwt
    }

    /// How long until the document should be fetched anew.
    pub fn refresh_hint(&self) -> Duration {
        self.refresh_hint.unwrap_or(DEFAULT_REFRESH_HINT)
    }

    /// What was left out of the document when it was parsed.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether nobody of the trust domain is believed.
    pub fn is_empty(&self) -> bool {
        self.x509.authorities().is_empty() && self.jwt.authorities().is_empty()
    }

    /// What to do with this document where `current` is the present one.
    pub fn succeeds(&self, current: &Self) -> Succession {
        let same = self.content() == current.content();
        match self.sequence().cmp(&current.sequence()) {
            std::cmp::Ordering::Less => Succession::Rollback,
            std::cmp::Ordering::Greater => Succession::Accept,
            std::cmp::Ordering::Equal if same => Succession::Unchanged,
            // Neither counts.
            std::cmp::Ordering::Equal if self.sequence() == 0 => Succession::Accept,
            std::cmp::Ordering::Equal => Succession::SameSequenceOtherContent,
        }
    }

    /// Everything that is believed because of the document, in an order of its own.
    fn content(&self) -> BTreeSet<(&str, &[u8])> {
        let certificates = self.x509.authorities().iter();
        // A certificate has no name, and a key never an empty one.
        let certificates = certificates.map(|one| ("", one.certificate().as_ref()));
        let keys = self.jwt.authorities().iter();
        let keys = keys.map(|one| (one.key_id.as_str(), one.key.spki_der()));
        certificates.chain(keys).collect()
    }

    /// Whether an X.509 authority of both has the same key. A key that signs for two trust domains makes one of them
    /// able to speak for the other (section 6.2 discourages it).
    pub fn shares_a_key_with(&self, other: &TrustBundle) -> bool {
        let keys = |bundle: &TrustBundle| -> Vec<Vec<u8>> {
            bundle.authorities().iter().filter_map(spki).collect()
        };
        let (own, others) = (keys(&self.x509), keys(other));
        own.iter().any(|key| others.contains(key))
    }

    /// The document as JSON.
    pub fn to_json(&self) -> String {
        let x509 = self.x509.authorities().iter().filter_map(x509_jwk);
        let jwt = self.jwt.authorities().iter().map(JwtAuthority::to_jwk);
        let keys: Vec<Value> = x509.chain(jwt).map(Value::Object).collect();
        let document = json!({
            "spiffe_sequence": self.sequence(),
            "spiffe_refresh_hint": self.refresh_hint().as_secs(),
            "keys": keys,
        });
        document.to_string()
    }
}

enum Element {
    X509(Vec<u8>),
    Jwt(JwtAuthority),
}

pub(super) fn parse_bounded(
    text: &[u8],
    allowed: usize,
) -> Result<Map<String, Value>, DocumentError> {
    if text.len() > allowed {
        return Err(DocumentError::TooLarge {
            found: text.len(),
            allowed,
        });
    }
    Ok(json::parse_object(text)?)
}

/// A count, which JSON can write larger than a float holds.
pub(super) fn whole_number(
    members: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<u64>, DocumentError> {
    let Some(value) = members.get(name) else {
        return Ok(None);
    };
    let number = value.as_u64().ok_or(DocumentError::Member {
        name,
        expected: "a whole number, not negative",
    })?;
    Ok(Some(number))
}

fn parse_element(
    trust_domain: &TrustDomain,
    element: &Value,
    now: SystemTime,
) -> Result<Element, ElementError> {
    let jwk = element.as_object().ok_or(ElementError::NotAnObject)?;
    // Compared with its case (section 4.2.2).
    let parse = match jwk.get("use").and_then(Value::as_str) {
        Some("x509-svid") => parse_x509,
        Some("jwt-svid") => parse_jwt,
        _ => return Err(ElementError::UnknownUse),
    };
    let key = VerificationKey::from_jwk(jwk).map_err(|error| match error {
        KeyMaterialError::Kind => ElementError::UnknownKeyType,
        other => ElementError::Key(other),
    })?;
    parse(trust_domain, jwk, key, now)
}

/// X509-SVID section 6.2: the certificate is the first of `x5c`, and only it.
fn parse_x509(
    trust_domain: &TrustDomain,
    jwk: &Map<String, Value>,
    key: VerificationKey,
    now: SystemTime,
) -> Result<Element, ElementError> {
    let entries = jwk.get("x5c").and_then(Value::as_array);
    let first = entries.and_then(|entries| entries.first());
    let text = first.ok_or(ElementError::NoCertificate)?.as_str();
    let der = text.and_then(|text| STANDARD.decode(text).ok());
    let der = der.ok_or(ElementError::Base64)?;
    let (authority, _) = Authority::load(trust_domain, der)?;
    if spki(&authority).as_deref() != Some(key.spki_der()) {
        return Err(ElementError::OtherKey);
    }
    if authority.not_after() < now {
        return Err(ElementError::Expired);
    }
    Ok(Element::X509(authority.certificate().to_vec()))
}

/// JWT-SVID section 6.1: the name is what tokens find the key by.
fn parse_jwt(
    _: &TrustDomain,
    jwk: &Map<String, Value>,
    key: VerificationKey,
    _: SystemTime,
) -> Result<Element, ElementError> {
    let key_id = jwk.get("kid").and_then(key_id);
    Ok(Element::Jwt(JwtAuthority {
        key_id: key_id.ok_or(ElementError::NoKeyId)?,
        key,
        expires: None,
    }))
}

/// The authority's public key in the form of [`VerificationKey::spki_der`].
fn verification_key(authority: &Authority) -> Option<VerificationKey> {
    let certificate = x509::parse(authority.certificate()).ok()?;
    VerificationKey::from_spki_der(certificate.public_key().raw).ok()
}

fn spki(authority: &Authority) -> Option<Vec<u8>> {
    let key = verification_key(authority)?;
    Some(key.spki_der().to_vec())
}

/// An element with `x5c` and without `kid` (X509-SVID section 6.1). Authorities with kinds of keys that JSON Web Keys
/// have no form for here (Ed25519) are left out.
fn x509_jwk(authority: &Authority) -> Option<Map<String, Value>> {
    let mut jwk = verification_key(authority)?.to_jwk();
    jwk.insert("use".to_owned(), "x509-svid".into());
    let certificate = STANDARD.encode(authority.certificate());
    jwk.insert("x5c".to_owned(), json!([certificate]));
    Some(jwk)
}
