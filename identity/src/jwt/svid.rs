//! JWT-SVIDs (JWT-SVID.md): whose is this token.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::bundle::JwtBundles;
use super::error::{JwtError, cut};
use super::jws::{Headers, Rules, Unverified};
use crate::spiffe_id::SpiffeId;

/// A JWT-SVID that has been verified.
#[derive(Clone, Debug)]
pub struct JwtSvid {
    id: SpiffeId,
    audience: Vec<String>,
    expires: SystemTime,
    issued_at: Option<SystemTime>,
    claims: Map<String, Value>,
}

impl JwtSvid {
    /// Validates a token for one audience, with the keys of the subject's own trust domain and no others.
    ///
    /// Tokens with several audiences are taken, and the standard advises against them (section 7.2): any of those
    /// audiences can replay the token at the others. The same token is taken any number of times (section 7.1).
    ///
    /// # Errors
    /// [`JwtError`], which names the rule that the token breaks.
    pub fn validate(
        token: &str,
        audience: &str,
        bundles: &JwtBundles,
        now: SystemTime,
    ) -> Result<Self, JwtError> {
        let rules = Rules::svid(audience)?;
        let token = Unverified::parse(token, Headers::Svid)?;
        let id = subject(&token.claims)?;
        let trust_domain = id.trust_domain();
        let bundle = bundles
            .get(trust_domain)
            .filter(|bundle| !bundle.authorities().is_empty())
            .ok_or_else(|| JwtError::UnknownTrustDomain(trust_domain.clone()))?;
        let key_id = token.header.key_id.as_deref().ok_or(JwtError::KeyId)?;
        let key = bundle.find(key_id, now);
        let key = key.ok_or_else(|| JwtError::KeyUnknown {
            key_id: cut(key_id),
            of: trust_domain.to_string(),
        })?;
        let verified = token.verify(key, &rules, now)?;
        Ok(Self {
            id,
            audience: verified.audience,
            expires: verified.expires,
            issued_at: verified.issued_at,
            claims: verified.claims,
        })
    }

    /// Whose token it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// For whom it is: at least one, and more are worth a warning.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// When it ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// When it was made, if it says so.
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    /// All its claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// Section 3.1: the subject is the workload's SPIFFE ID.
fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtError> {
    let subject = claims.get("sub").ok_or(JwtError::ClaimMissing("sub"))?;
    let subject = subject.as_str().ok_or(JwtError::ClaimType {
        name: "sub",
        expected: "a SPIFFE ID",
    })?;
    let id = SpiffeId::parse(subject)?;
    if id.is_workload() {
        Ok(id)
    } else {
        Err(JwtError::SubjectTrustDomain)
    }
}
