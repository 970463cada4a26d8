//! A token for a workload: who is asking, for whom it is, the signature, the audit.

use super::super::Refusal;
use super::super::issuer::Issuer;
use super::JwtKeys;
use crate::store::{AuditRecord, GRANTED, Registration};
use sidewind_api::{Reason, duration, v1};
use sidewind_identity::PeerIdentity;
use sidewind_identity::jwt::signer::{
    JwtSignError, MAX_JWT_TTL, MIN_JWT_TTL, SignedJwt, check_audience,
};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What the audit and the metrics call it.
const EVENT: &str = "mint-jwt";

/// Signs JWT-SVIDs for attested workloads.
#[derive(Debug)]
pub struct JwtMint {
    issuer: Arc<Issuer>,
    keys: Arc<JwtKeys>,
    ttl: Duration,
}

impl JwtMint {
    /// A mint whose tokens live this long where a registration says nothing else.
    #[must_use]
    pub fn new(issuer: Arc<Issuer>, keys: Arc<JwtKeys>, ttl: Duration) -> Self {
        Self { issuer, keys, ttl }
    }

    /// Signs a token for the identity of a living certificate. Needs no store.
    ///
    /// # Errors
    /// Why not; the refusal is in the audit already.
    pub async fn mint(
        &self,
        request: &v1::MintJwtSvidRequest,
        peer: Option<&PeerIdentity>,
        caller: IpAddr,
    ) -> Result<v1::MintJwtSvidResponse, Refusal> {
        let mut audit = AuditRecord {
            at: SystemTime::now(),
            event: EVENT,
            outcome: GRANTED,
            detail: None,
            spiffe_id: peer.map(|peer| peer.id.to_string()),
            registration: None,
            serial: None,
            not_after: None,
            caller: caller.to_string(),
            csr_sha256: None,
        };
        match self.try_mint(request, peer, &mut audit).await {
            Ok((signed, registration)) => {
                self.issuer.granted(audit);
                Ok(v1::MintJwtSvidResponse {
                    token: signed.token,
                    spiffe_id: registration.spiffe_id.to_string(),
                    expires_at_unix: crate::store::unix_seconds(signed.expires),
                    issued_at_unix: crate::store::unix_seconds(signed.issued_at),
                })
            }
            Err(refusal) => Err(self.issuer.refused(audit, refusal)),
        }
    }

    async fn try_mint(
        &self,
        request: &v1::MintJwtSvidRequest,
        peer: Option<&PeerIdentity>,
        audit: &mut AuditRecord,
    ) -> Result<(SignedJwt, Arc<Registration>), Refusal> {
        let registration = self.issuer.registration_now(peer, audit.at).await?;
        check_audience(&request.audience).map_err(|error| refusal(&error))?;
        let signer = self.keys.signer();
        let asked = registration.jwt_ttl.unwrap_or(self.ttl);
        // What a token says must not hold for longer than what it was given for: the certificate. Nor for longer
        // than its key is published.
        let ends = peer.map_or(audit.at, |peer| peer.not_after.min(signer.expires()));
        let left = ends.duration_since(audit.at).unwrap_or_default();
        let ttl = asked.min(registration.svid_ttl).min(left);
        let id = &registration.spiffe_id;
        let signed = signer.sign(id, &request.audience, ttl, audit.at);
        let signed = signed.map_err(|error| refusal(&error))?;
        audit.registration = Some(super::super::registrations::name(&registration));
        audit.serial = Some(signed.token_id.clone());
        audit.not_after = Some(signed.expires);
        audit.detail = Some(format!("for {}", request.audience.join(", ")));
        Ok((signed, registration))
    }
}

fn refusal(error: &JwtSignError) -> Refusal {
    let reason = match error {
        JwtSignError::Audiences(_) | JwtSignError::Audience(_) => Reason::AudienceRefused,
        JwtSignError::Ttl(_) | JwtSignError::OutlivesKey { .. } => Reason::LifetimeRefused,
        JwtSignError::NotAWorkload(_) => Reason::NotAWorkload,
        JwtSignError::Clock | JwtSignError::Library => Reason::Internal,
    };
    if reason == Reason::Internal {
        tracing::error!(%error, "signing a JWT-SVID failed");
        return Refusal::new(reason, "the control plane could not sign; see its log");
    }
    Refusal::new(reason, error.to_string())
}

/// Checks the lifetime of tokens that a flag asks for.
///
/// # Errors
/// When it is out of range.
pub fn check_jwt_lifetime(asked: Duration) -> Result<(), Refusal> {
    if (MIN_JWT_TTL..=MAX_JWT_TTL).contains(&asked) {
        return Ok(());
    }
    let message = format!(
        "a JWT-SVID lives from 1 minute to 1 hour, not {}",
        duration::format(asked)
    );
    Err(Refusal::new(Reason::LifetimeRefused, message))
}
