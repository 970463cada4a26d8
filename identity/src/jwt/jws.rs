//! Compact JWS (RFC 7515 section 7.1), and the verification of tokens that OIDC issuers sign.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::claims;
use super::error::{JwtError, Part, cut};
use super::json;
use super::jwks::{JwkSet, key_id};
use super::key::VerificationKey;

/// The longest token that is parsed.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The longest name of a key.
pub const MAX_KEY_ID_BYTES: usize = 256;
/// By how much the clocks of issuer and verifier may differ.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// Which headers a token may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// `alg`, `typ` and `kid` alone, and `kid` always (JWT-SVID section 2; the standard leaves `kid` optional, but no
    /// implementation works without).
    Svid,
    /// Others too, except those that bring or point to a key, or change how the token is read.
    Oidc,
}

/// What is refused in [`Headers::Oidc`]: headers with a key or the way to one (RFC 7515 sections 4.1.2 to 4.1.6, of
/// which the thumbprints are harmless), those that must be understood (4.1.11, RFC 7797), and those of encryption.
const NEVER_ALLOWED: [&str; 8] = ["jku", "jwk", "x5u", "x5c", "crit", "b64", "enc", "zip"];

/// What a token must say.
#[derive(Clone, Debug)]
pub struct Rules<'a> {
    headers: Headers,
    issuer: Option<&'a str>,
    audiences: Vec<&'a str>,
    /// By how much the clocks may differ.
    pub leeway: Duration,
}

impl<'a> Rules<'a> {
    /// The rules for JWT-SVIDs: `exp`, `aud` with this audience, no header beyond three.
    ///
    /// # Errors
    /// [`JwtError::NoExpectedAudience`] for an empty audience.
    pub fn svid(audience: &'a str) -> Result<Self, JwtError> {
        Self::new(Headers::Svid, None, vec![audience])
    }

    /// The rules for tokens of one OIDC issuer: `iss` exactly this, `exp`, and `aud` with one of these audiences.
    ///
    /// # Errors
    /// [`JwtError::NoExpectedAudience`] without audiences or for an empty one, [`JwtError::NoExpectedIssuer`] likewise.
    pub fn oidc<A: AsRef<str>>(issuer: &'a str, audiences: &'a [A]) -> Result<Self, JwtError> {
        if issuer.is_empty() {
            return Err(JwtError::NoExpectedIssuer);
        }
        let audiences = audiences.iter().map(AsRef::as_ref).collect();
        Self::new(Headers::Oidc, Some(issuer), audiences)
    }

    /// The rules for tokens that are for one audience, of an issuer where one is named: for issuers that are known by
    /// their keys, and may say no name.
    ///
    /// # Errors
    /// [`JwtError::NoExpectedAudience`] for an empty audience.
    pub fn audience(audience: &'a str, issuer: Option<&'a str>) -> Result<Self, JwtError> {
        Self::new(Headers::Oidc, issuer, vec![audience])
    }

    fn new(
        headers: Headers,
        issuer: Option<&'a str>,
        audiences: Vec<&'a str>,
    ) -> Result<Self, JwtError> {
        if audiences.is_empty() || audiences.iter().any(|audience| audience.is_empty()) {
            return Err(JwtError::NoExpectedAudience);
        }
        Ok(Self {
            headers,
            issuer,
            audiences,
            leeway: LEEWAY,
        })
    }

    /// Whose tokens are taken; none where the subject's trust domain says it.
    pub fn expected_issuer(&self) -> Option<&str> {
        self.issuer
    }

    pub(super) fn headers(&self) -> Headers {
        self.headers
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.issuer
    }

    pub(super) fn audiences(&self) -> &[&'a str] {
        &self.audiences
    }
}

/// What a token's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it is signed.
    pub algorithm: Algorithm,
    /// With which key.
    pub key_id: Option<String>,
}

/// A token whose signature, audience, issuer and times have been checked.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The header.
    pub header: Header,
    /// All claims.
    pub claims: Map<String, Value>,
    /// For whom the token is: at least one.
    pub audience: Vec<String>,
    /// When it ends.
    pub expires: SystemTime,
    /// When it was made, if it says so.
    pub issued_at: Option<SystemTime>,
}

impl Verified {
    /// A claim that is a text.
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }
}

/// Verifies a token with the key of a set that it names, and checks what it says.
///
/// # Errors
/// [`JwtError`], which names the rule that the token breaks. [`JwtError::KeyUnknown`] may mean that the issuer has
/// rotated its keys since the set was fetched.
pub fn verify(
    token: &str,
    keys: &JwkSet,
    rules: &Rules<'_>,
    now: SystemTime,
) -> Result<Verified, JwtError> {
    let token = Unverified::parse(token, rules.headers)?;
    let key = keys.find(token.header.key_id.as_deref(), token.header.algorithm)?;
    token.verify(key, rules, now)
}

/// What a token says of itself, not to be believed: to pick the issuer's keys by.
///
/// # Errors
/// [`JwtError`] for what is no token within the rules of [`Headers::Oidc`].
pub fn claimed_issuer(token: &str) -> Result<String, JwtError> {
    let token = Unverified::parse(token, Headers::Oidc)?;
    let issuer = token.claims.get("iss").and_then(Value::as_str);
    let issuer = issuer.ok_or(JwtError::ClaimMissing("iss"))?;
    Ok(issuer.to_owned())
}

/// What a token consists of, read and not verified. `A` is what may be made of the algorithm that it names.
pub(super) struct Parts<'a, A> {
    algorithm: A,
    key_id: Option<String>,
    pub(super) claims: Map<String, Value>,
    pub(super) signed: &'a str,
    pub(super) signature: Vec<u8>,
}

impl<'a, A> Parts<'a, A> {
    /// Reads a token. The header is checked before anything else is decoded.
    pub(super) fn parse(
        token: &'a str,
        headers: Headers,
        algorithm: impl FnOnce(&str) -> Option<A>,
    ) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLarge(token.len()));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            let parts = token.split('.').count();
            return Err(JwtError::NotCompact { parts });
        };
        let header = object(header, Part::Header)?;
        let (algorithm, key_id) = read_header(&header, headers, algorithm)?;
        let signed = token.get(..token.len() - signature.len() - 1);
        Ok(Self {
            algorithm,
            key_id,
            claims: object(claims, Part::Claims)?,
            signed: signed.unwrap_or_default(),
            signature: decode(signature, Part::Signature)?,
        })
    }
}

/// A token that has been read and not verified.
pub(super) struct Unverified<'a> {
    pub(super) header: Header,
    pub(super) claims: Map<String, Value>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Reads a token that is signed with a private key.
    pub(super) fn parse(token: &'a str, headers: Headers) -> Result<Self, JwtError> {
        let Parts {
            algorithm,
            key_id,
            claims,
            signed,
            signature,
        } = Parts::parse(token, headers, |name| {
            let known = Algorithm::parse(name);
            known.filter(|known| headers == Headers::Oidc || known.is_of_svids())
        })?;
        Ok(Self {
            header: Header { algorithm, key_id },
            claims,
            signed,
            signature,
        })
    }

    pub(super) fn verify(
        self,
        key: &VerificationKey,
        rules: &Rules<'_>,
        now: SystemTime,
    ) -> Result<Verified, JwtError> {
        let (algorithm, signed) = (self.header.algorithm, self.signed.as_bytes());
        key.verify(algorithm, signed, &self.signature)?;
        let common = claims::check(&self.claims, rules, now)?;
        Ok(Verified {
            header: self.header,
            claims: self.claims,
            audience: common.audience,
            expires: common.expires,
            issued_at: common.issued_at,
        })
    }
}

fn decode(text: &str, part: Part) -> Result<Vec<u8>, JwtError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JwtError::Base64(part))
}

fn object(text: &str, part: Part) -> Result<Map<String, Value>, JwtError> {
    let text = decode(text, part)?;
    json::parse_object(&text).map_err(|reason| JwtError::Json { part, reason })
}

fn read_header<A>(
    header: &Map<String, Value>,
    headers: Headers,
    known: impl FnOnce(&str) -> Option<A>,
) -> Result<(A, Option<String>), JwtError> {
    let algorithm = header.get("alg").and_then(Value::as_str);
    let algorithm = algorithm.and_then(known).ok_or(JwtError::Algorithm)?;
    let allowed = |name: &&String| match headers {
        Headers::Svid => matches!(name.as_str(), "alg" | "typ" | "kid"),
        Headers::Oidc => !NEVER_ALLOWED.contains(&name.as_str()),
    };
    if let Some(name) = header.keys().find(|name| !allowed(name)) {
        return Err(JwtError::Header(cut(name)));
    }
    check_type(header.get("typ"), headers)?;
    let key_id = match header.get("kid") {
        Some(name) => Some(key_id(name).ok_or(JwtError::KeyId)?),
        None if headers == Headers::Svid => return Err(JwtError::KeyId),
        None => None,
    };
    Ok((algorithm, key_id))
}

/// A token of one kind is never taken for one of another (RFC 8725 section 3.11). Access tokens of RFC 9068 are what
/// some issuers give workloads.
fn check_type(value: Option<&Value>, headers: Headers) -> Result<(), JwtError> {
    let Some(value) = value else { return Ok(()) };
    let value = value.as_str().ok_or(JwtError::Type)?;
    let known = match headers {
        Headers::Svid => matches!(value, "JWT" | "JOSE"),
        Headers::Oidc => {
            let short = value.strip_prefix("application/").unwrap_or(value);
            ["JWT", "JOSE", "at+jwt"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(short))
        }
    };
    if known { Ok(()) } else { Err(JwtError::Type) }
}
