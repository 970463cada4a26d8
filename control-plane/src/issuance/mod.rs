//! The one place that certificates leave from.
//!
//! - [`authority`]: the root, the signing intermediate made from it, the trust bundle
//! - [`bans`]: who gets none although the evidence is good
//! - [`registrations`]: what each living certificate may be renewed to
//! - [`admission`]: which registration a workload's facts come to
//! - [`issuer`]: attest and renew: who is asking, what they may have, the certificate, the audit
//! - [`tasks`]: certificates of Airflow tasks, derived from those of their workers
//! - [`jwt`]: the keys of JWT-SVIDs, and a token for a workload
//! - [`own`]: the control plane's own identity

pub mod admission;
pub mod authority;
pub mod bans;
pub mod issuer;
pub mod jwt;
pub mod own;
mod refusals;
pub mod registrations;
pub mod tasks;

use sidewind_api::Reason;

/// Why a call is refused: the word for programs and the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The word.
    pub reason: Reason,
    /// The sentence, fit to be sent to the caller.
    pub message: String,
}

impl Refusal {
    /// A refusal for a reason, with a sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message }
    }

    /// The refusal of what needs the store while it is away. The cause is logged, not sent.
    pub fn store(error: &crate::store::StoreError) -> Self {
        static FAILED: crate::telemetry::Throttle = crate::telemetry::Throttle::new();
        if let Some(unsaid) = FAILED.admit("store") {
            let error = crate::telemetry::chain(error);
            tracing::error!(error, unsaid, "the store failed");
        }
        Self::new(
            Reason::StoreUnavailable,
            "the control plane cannot reach its store just now; try again",
        )
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        refusal.reason.status(refusal.message)
    }
}
