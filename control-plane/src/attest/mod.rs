//! Attestation: evidence in, what its bearer may have out.
//!
//! Each attestor is one module behind [`Attestor`]: it checks evidence and says what is true of its bearer,
//! as [`selectors`]. Registrations (`issuance::admission`) map selectors to one identity. Join tokens name the
//! identity themselves. Nothing is used up before [`Attestors::settle`], which makes it final in one
//! transaction, once the certificate is signed and before it leaves.

pub mod airflow;
pub mod aws_iam;
pub mod challenge;
pub mod join_token;
pub mod keys;
pub mod kubernetes;
pub mod oidc;
mod places;
pub mod selectors;
#[cfg(test)]
mod testing;
pub mod x509;

pub use places::ASKING_AT_ONCE;
pub use selectors::{Selector, Selectors};

use crate::config::Live;
use crate::issuance::Refusal;
use crate::issuance::authority::Issued;
use crate::store::{Attestation, AuditRecord, ChangedFact, PinnedFact, Registration, Store};
use crate::telemetry::{Throttle, chain};
use sidewind_api::Reason;
use sidewind_api::v1::attest_request::Evidence;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

/// A future of an attestor's answer.
pub type Answer<'a, T> = std::pin::Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// Evidence, and what it was brought with.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The evidence.
    pub evidence: &'a Evidence,
    /// The certificate signing request in DER, within its bound and not checked yet: evidence can be bound
    /// to its key.
    pub csr: &'a [u8],
    /// When.
    pub now: SystemTime,
}

/// What evidence came to.
#[derive(Debug)]
pub enum Attested {
    /// The evidence names what it grants, and is used up by it.
    Granted(Registration),
    /// These are facts about its bearer; registrations say what they are worth.
    Facts(Facts),
}

/// What is true of a workload.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The attestor's kind, as registrations are stored with it: `kubernetes`, `aws-iam`, ...
    pub attestor: &'static str,
    /// The facts.
    pub selectors: Selectors,
    /// What must not change from one attestation to the next.
    pub pins: Vec<Pin>,
}

/// A fact that is kept when it is first seen, for as long as another stays the same: the unique id of a
/// role whose name can be given to another one. A registration that names the fact's key itself decides
/// instead, and what it let in is kept from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// What it is about: `aws-iam:role-arn`.
    pub subject: Selector,
    /// What is kept: `aws-iam:role-id`.
    pub fact: Selector,
}

impl Pin {
    /// The form that is stored. `named`: a registration names the fact's key.
    #[must_use]
    pub fn to_stored(&self, named: bool) -> PinnedFact {
        PinnedFact {
            subject: format!("{} {}", self.subject, self.fact.key()),
            value: self.fact.value().to_owned(),
            named,
        }
    }
}

/// What is to be made final.
#[derive(Debug, Clone, Copy)]
pub struct Settlement<'a> {
    /// What the evidence granted.
    pub registration: &'a Registration,
    /// The certificate about to leave.
    pub issued: &'a Issued,
    /// The record of it.
    pub audit: &'a AuditRecord,
    /// What must be as it was before, and is kept where it is new.
    pub pins: &'a [PinnedFact],
}

/// Checks one kind of evidence.
pub trait Attestor: std::fmt::Debug + Send + Sync {
    /// What the evidence comes to. Nothing lasting is used up: the request may fail yet.
    fn attest<'a>(&'a self, presented: Presented<'a>) -> Answer<'a, Attested>;
}

/// The attestors of this control plane.
#[derive(Debug)]
pub struct Attestors {
    store: Store,
    join_token: join_token::JoinTokenAttestor,
    kubernetes: kubernetes::KubernetesAttestor,
    oidc: oidc::OidcAttestor,
    aws_iam: aws_iam::AwsIamAttestor,
    x509: x509::X509Attestor,
    challenges: Arc<challenge::Challenges>,
}

impl Attestors {
    /// The attestors of a store, and of the clusters, issuers, regions and authorities of a configuration.
    /// Evidence that is signed for the occasion is for `server_id`.
    #[must_use]
    pub fn new(store: Store, config: Live, server_id: String) -> Self {
        let keys = Arc::new(keys::KeyCache::default());
        let challenges = Arc::new(challenge::Challenges::new(server_id));
        Self {
            aws_iam: aws_iam::AwsIamAttestor::new(config.clone(), Arc::clone(&challenges)),
            x509: x509::X509Attestor::new(config.clone(), Arc::clone(&challenges)),
            challenges,
            join_token: join_token::JoinTokenAttestor::new(store.clone()),
            kubernetes: kubernetes::KubernetesAttestor::new(config.clone(), Arc::clone(&keys)),
            oidc: oidc::OidcAttestor::new(config, keys),
            store,
        }
    }

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
            Some(evidence @ Evidence::Kubernetes(_)) => Ok((&self.kubernetes, evidence)),
            Some(evidence @ Evidence::Oidc(_)) => Ok((&self.oidc, evidence)),
            Some(evidence @ Evidence::AwsIam(_)) => Ok((&self.aws_iam, evidence)),
            Some(evidence @ Evidence::X509(_)) => Ok((&self.x509, evidence)),
            None => Err(Refusal::new(
                Reason::EvidenceMissing,
                "the request holds no evidence of a kind that this control plane knows; it takes join tokens, and what its AttestorConfig names",
            )),
        }
    }

    /// The nonces that evidence is signed over.
    #[must_use]
    pub fn challenges(&self) -> &challenge::Challenges {
        &self.challenges
    }

    /// Makes an attestation final: registration, certificate and record, and whatever uses the evidence up,
    /// all or nothing.
    ///
    /// # Errors
    /// When the evidence has been used meanwhile, a pinned fact is another, or the store fails.
    pub async fn settle(
        &self,
        evidence: &Evidence,
        settlement: Settlement<'_>,
    ) -> Result<(), Refusal> {
        if let Evidence::JoinToken(_) = evidence {
            return self.join_token.settle(evidence, settlement).await;
        }
        let attestation = Attestation {
            registration: settlement.registration,
            svid: &settlement.issued.record(),
            audit: settlement.audit,
            pins: settlement.pins,
        };
        let settled = self.store.settle_attestation(&attestation).await;
        match settled.map_err(|error| Refusal::store(&error))? {
            None => Ok(()),
            Some(changed) => Err(changed_fact(&changed)),
        }
    }
}

static UNVERIFIABLE: Throttle = Throttle::new();

/// The refusal of evidence that cannot be checked just now. The cause is logged, not sent: it names what
/// only operators need to know.
fn unverifiable(
    cause: &'static str,
    what: &str,
    error: &(dyn std::error::Error + 'static),
) -> Refusal {
    if let Some(unsaid) = UNVERIFIABLE.admit(cause) {
        let error = chain(error);
        tracing::warn!(error, unsaid, what, "evidence cannot be checked");
    }
    Refusal::new(
        Reason::EvidenceUnverifiable,
        format!("{what} cannot be asked just now; try again"),
    )
}

fn changed_fact(changed: &ChangedFact) -> Refusal {
    Refusal::new(
        Reason::EvidenceRefused,
        format!(
            "{} is now {}, which is another one than at first; if that is meant, name it in the registration",
            changed.subject, changed.value
        ),
    )
}
