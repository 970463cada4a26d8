//! Attestation: evidence in, what its bearer may have out.
//!
//! Each attestor is one module behind [`Attestor`]. It answers twice: [`Attestor::attest`] says what the
//! evidence grants and changes nothing; [`Attestor::settle`] makes it final, in one transaction with
//! whatever uses the evidence up, once the certificate is signed and before it leaves.

pub mod join_token;

use crate::issuance::Refusal;
use crate::issuance::authority::Issued;
use crate::store::{AuditRecord, Registration};
use sidewind_api::Reason;
use sidewind_api::v1::attest_request::Evidence;
use std::future::Future;
use std::pin::Pin;
use std::time::SystemTime;

/// A future of an attestor's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// What is to be made final.
#[derive(Debug, Clone, Copy)]
pub struct Settlement<'a> {
    /// What the evidence granted.
    pub registration: &'a Registration,
    /// The certificate about to leave.
    pub issued: &'a Issued,
    /// The record of it.
    pub audit: &'a AuditRecord,
}

/// Checks one kind of evidence.
pub trait Attestor: std::fmt::Debug + Send + Sync {
    /// What the evidence grants. Nothing is used up.
    fn attest<'a>(&'a self, evidence: &'a Evidence, now: SystemTime) -> Answer<'a, Registration>;

    /// Uses the evidence up and writes the registration and the record, all or nothing.
    fn settle<'a>(&'a self, evidence: &'a Evidence, settlement: Settlement<'a>) -> Answer<'a, ()>;
}

/// The attestors of this control plane.
#[derive(Debug)]
pub struct Attestors {
    /// Takes join tokens.
    pub join_token: join_token::JoinTokenAttestor,
}

impl Attestors {
    /// The attestor of a kind of evidence.
    ///
    /// # Errors
    /// When there is no evidence, or none that this version knows.
    pub fn of<'a>(
        &'a self,
        evidence: Option<&'a Evidence>,
    ) -> Result<(&'a dyn Attestor, &'a Evidence), Refusal> {
        match evidence {
            Some(evidence @ Evidence::JoinToken(_)) => Ok((&self.join_token, evidence)),
            Some(_) => Err(Refusal::new(
                Reason::AttestorNotConfigured,
                "this control plane is not configured for this kind of evidence; it takes join tokens",
            )),
            None => Err(Refusal::new(
                Reason::EvidenceMissing,
                "the request holds no evidence that this control plane takes; it takes join tokens",
            )),
        }
    }
}
