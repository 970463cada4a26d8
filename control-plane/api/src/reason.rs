//! Machine-readable reasons of refused calls.
//!
//! A gRPC status has few codes, and its message is for people. The metadata entry [`METADATA_KEY`]
//! carries one of these words, so that a proxy can tell "attest again" from "try again later" without
//! reading prose.

use std::fmt;
use std::time::Duration;

/// The metadata key of a status that carries a [`Reason`].
pub const METADATA_KEY: &str = "sidewind-reason";

/// The metadata key of a status that says after how many milliseconds to try again. Whoever does adds a
/// random part, so that those who were refused together do not come back together.
pub const RETRY_AFTER_KEY: &str = "retry-after-ms";

macro_rules! reasons {
    ($($(#[$meta:meta])* $variant:ident = $word:literal,)+) => {
        /// Why a call was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$meta])* $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// The stable word of the reason, as it is sent, counted and audited.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// The request holds no evidence, or of a kind that no attestor takes.
    EvidenceMissing = "evidence-missing",
    /// The join token was never made here.
    JoinTokenUnknown = "join-token-unknown",
    /// The join token has been used.
    JoinTokenUsed = "join-token-used",
    /// The join token has expired.
    JoinTokenExpired = "join-token-expired",
    /// The control plane is not configured for this kind of evidence.
    AttestorNotConfigured = "attestor-not-configured",
    /// The evidence was checked and is not good.
    EvidenceRefused = "evidence-refused",
    /// What checks the evidence (an API server, STS, an issuer's keys) cannot be reached just now.
    EvidenceUnverifiable = "evidence-unverifiable",
    /// The nonce was not given by this process, was used, or is too old: ask for another challenge.
    ChallengeUnknown = "challenge-unknown",
    /// The evidence is good, and no registration has its selectors.
    NoRegistrationMatches = "no-registration-matches",
    /// The identity or certificate is banned.
    Banned = "banned",
    /// The caller asks more often than it may; [`RETRY_AFTER_KEY`] says when to try again.
    RateLimited = "rate-limited",
    /// The workload may have no identity for this task, or the task's name makes none.
    TaskRefused = "task-refused",
    /// The audience of a JWT-SVID is missing or cannot be used.
    AudienceRefused = "audience-refused",
    /// The authority that is meant does not exist or may not be changed so.
    AuthorityRefused = "authority-refused",
    /// This control plane does not offer the call.
    NotOffered = "not-offered",
    /// The certificate signing request cannot be taken: form, signature, key type or size.
    CsrRefused = "csr-refused",
    /// The call needs a client certificate, and none was presented.
    CertificateRequired = "certificate-required",
    /// The client certificate has expired since the connection was made.
    CertificateExpired = "certificate-expired",
    /// The identity has no registration (any more): attest again.
    NotRegistered = "not-registered",
    /// The identity may not use this call.
    NotAWorkload = "not-a-workload",
    /// A message is not as the API demands.
    InvalidMessage = "invalid-message",
    /// The address of the registration is not the one that the connection comes from.
    AddressRefused = "address-refused",
    /// A limit of size or number was passed.
    LimitExceeded = "limit-exceeded",
    /// The signing authority cannot honour the lifetime.
    LifetimeRefused = "lifetime-refused",
    /// Another stream of the same instance took this one's place.
    Replaced = "replaced",
    /// The control plane is stopping.
    ShuttingDown = "shutting-down",
    /// The store cannot be written or read just now.
    StoreUnavailable = "store-unavailable",
    /// The control plane is at its limit of work just now.
    Overloaded = "overloaded",
    /// A fault inside the control plane.
    Internal = "internal",
}

impl Reason {
    /// The reason of a word, if it is one that this version knows.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == word)
    }

    /// The reason that a status carries, if any.
    #[must_use]
    pub fn of(status: &tonic::Status) -> Option<Self> {
        Self::parse(status.metadata().get(METADATA_KEY)?.to_str().ok()?)
    }

    /// How long a status asks to wait before the next try, if it says.
    #[must_use]
    pub fn retry_after(status: &tonic::Status) -> Option<Duration> {
        let value = status.metadata().get(RETRY_AFTER_KEY)?.to_str().ok()?;
        value.parse().ok().map(Duration::from_millis)
    }

    /// Whether a proxy that is refused for this reason should attest again: its present certificate
    /// will not get it further.
    #[must_use]
    pub const fn needs_attestation(self) -> bool {
        matches!(
            self,
            Self::CertificateRequired | Self::CertificateExpired | Self::NotRegistered
        )
    }

    /// The gRPC code that goes with the reason.
    #[must_use]
    pub const fn code(self) -> tonic::Code {
        match self {
            Self::EvidenceMissing
            | Self::CsrRefused
            | Self::InvalidMessage
            | Self::AudienceRefused => tonic::Code::InvalidArgument,
            Self::JoinTokenUnknown
            | Self::JoinTokenUsed
            | Self::JoinTokenExpired
            | Self::NotRegistered
            | Self::EvidenceRefused
            | Self::ChallengeUnknown
            | Self::NoRegistrationMatches
            | Self::Banned
            | Self::TaskRefused
            | Self::NotAWorkload
            | Self::AddressRefused => tonic::Code::PermissionDenied,
            Self::CertificateRequired | Self::CertificateExpired => tonic::Code::Unauthenticated,
            Self::LimitExceeded | Self::RateLimited => tonic::Code::ResourceExhausted,
            Self::LifetimeRefused | Self::AuthorityRefused | Self::AttestorNotConfigured => {
                tonic::Code::FailedPrecondition
            }
            Self::NotOffered => tonic::Code::Unimplemented,
            Self::Replaced => tonic::Code::Aborted,
            Self::ShuttingDown
            | Self::StoreUnavailable
            | Self::EvidenceUnverifiable
            | Self::Overloaded => tonic::Code::Unavailable,
            Self::Internal => tonic::Code::Internal,
        }
    }

    /// The status that refuses a call for this reason, with a sentence for people.
    #[must_use]
    pub fn status(self, message: impl Into<String>) -> tonic::Status {
        let mut status = tonic::Status::new(self.code(), message);
        status.metadata_mut().insert(
            METADATA_KEY,
            tonic::metadata::MetadataValue::from_static(self.as_str()),
        );
        status
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_its_reason_to_the_other_side() {
        for reason in Reason::ALL {
            let status = reason.status("because");
            assert_eq!(Reason::of(&status), Some(*reason));
            assert_eq!(status.code(), reason.code());
        }
    }

    #[test]
    fn the_documentation_lists_every_reason_with_its_code() {
        let page = include_str!("../../../docs/errors.md");
        let (_, section) = page
            .split_once("## Reasons of the control plane\n")
            .unwrap();
        let listed: Vec<_> = section
            .lines()
            .filter_map(|line| line.strip_prefix("- ")?.split_once(':'))
            .map(|(word, _)| word.to_owned())
            .collect();
        let expected: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| format!("`{reason}` ({})", i32::from(reason.code())))
            .collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_status_says_when_to_try_again() {
        let mut status = Reason::RateLimited.status("too many calls");
        assert_eq!(Reason::retry_after(&status), None);
        for (value, expected) in [("1500", Some(1500)), ("soon", None), ("-1", None)] {
            let value = value.parse().unwrap();
            status.metadata_mut().insert(RETRY_AFTER_KEY, value);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(Reason::retry_after(&status), expected);
        }
    }

    #[test]
    fn an_unknown_word_is_no_reason() {
        assert_eq!(Reason::parse("made-up"), None);
        assert_eq!(Reason::of(&tonic::Status::internal("no metadata")), None);
    }
}
