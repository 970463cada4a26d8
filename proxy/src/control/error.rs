//! What goes wrong between the proxy and its control plane.

use std::io;

use sidewind_api::Reason;
use sidewind_identity::{SpiffeId, VerifyError};

/// One failed exchange with the control plane. Its `Display` says what failed and, where it helps, what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("{host} cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("TLS handshake with {address} failed: {}", tls_cause(.source))]
    Tls { address: String, source: io::Error },
    #[error("{address} is {found}, not {expected}; nothing was sent to it")]
    WrongPeer {
        address: String,
        found: String,
        expected: SpiffeId,
    },
    #[error("{address} took longer than {seconds} s")]
    TimedOut { address: String, seconds: u64 },
    #[error("HTTP/2 with {address} failed: {source}")]
    Transport {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("the control plane at {address} answered {}: {}", .status.code(), .status.message())]
    Refused {
        address: String,
        status: tonic::Status,
    },
    /// What the control plane sent cannot be used.
    #[error("the control plane at {address} sent {problem}")]
    BadAnswer { address: String, problem: String },
    /// No evidence that could be tried.
    #[error("{0}")]
    NoEvidence(String),
    /// A task gets no identity, for a reason on this side.
    #[error("no identity for the task: {0}")]
    Task(String),
    /// A task's name makes no identity.
    #[error("no identity for the task: {0}")]
    TaskName(String),
    /// The trust bundle file is not there, or not usable.
    #[error("{0}")]
    NoTrustBundle(String),
    /// The cryptographic library failed.
    #[error("cannot {what}: {problem}")]
    Local { what: &'static str, problem: String },
}

impl ControlError {
    /// Whether the control plane has said that the present certificate gets this proxy no further.
    pub(super) fn needs_attestation(&self) -> bool {
        self.reason().is_some_and(Reason::needs_attestation)
    }

    /// What the control plane says of its refusal, if it has refused.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { status, .. } => Reason::of(status),
            _ => None,
        }
    }

    /// How long the control plane has asked to be left alone, if it has.
    pub(super) fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Refused { status, .. } => Reason::retry_after(status),
            _ => None,
        }
    }

    /// Whether the control plane has said that this workload is to have no identity.
    ///
    /// While there is a valid SVID, only what speaks of the identity itself counts: evidence may be refused for reasons
    /// of its own, such as a clock.
    pub(super) fn is_refusal_of_identity(&self, has_valid_svid: bool) -> bool {
        let Self::Refused { status, .. } = self else {
            return false;
        };
        match Reason::of(status) {
            Some(Reason::Banned | Reason::NotRegistered | Reason::NoRegistrationMatches) => true,
            _ => !has_valid_svid && status.code() == tonic::Code::PermissionDenied,
        }
    }
}

/// The rule that a peer's certificate broke, when rustls wraps one.
fn tls_cause(error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match tls.and_then(VerifyError::from_tls) {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}
