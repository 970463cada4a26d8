//! What handshakes and retries are counted by: small closed sets, so that no peer makes series.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use super::family::Labels;
use super::labels::{Name, encode_as_str};
use crate::errors::ErrorCode;
use crate::telemetry::record::Direction;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The label value.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

pub(super) use words;

words! {
    /// Which part of a TLS handshake the proxy played.
    Side {
        /// It connected.
        Client = "client",
        /// It accepted.
        Server = "server",
        /// It accepted, as a gateway, from outside the mesh.
        Gateway = "gateway",
    }
}

words! {
    /// Why a handshake failed.
    HandshakeFailure {
        /// The other side did not answer in time.
        Timeout = "timeout",
        /// The connection ended or failed underneath.
        Closed = "closed",
        /// What arrived is not TLS, or breaks its rules.
        Protocol = "protocol",
        /// No version, cipher suite, key exchange or ALPN protocol in common.
        Incompatible = "incompatible",
        /// The other side presented no certificate.
        NoCertificate = "no-certificate",
        /// The other side's certificate chains to no trusted root or is malformed.
        BadCertificate = "bad-certificate",
        /// The other side's certificate has expired or is not valid yet.
        ExpiredCertificate = "expired-certificate",
        /// The certificate is good and it, or its SPIFFE ID, is banned.
        Banned = "banned",
        /// The certificate is good and its SPIFFE ID is not the expected one.
        WrongIdentity = "wrong-identity",
        /// The other side refused this one, by a TLS alert.
        RefusedByPeer = "refused-by-peer",
        /// As many handshakes are under way as may be, in all or from that address.
        TooMany = "too-many",
        /// Anything else.
        Other = "other",
    }
}

impl From<&rustls::Error> for HandshakeFailure {
    fn from(error: &rustls::Error) -> Self {
        use rustls::{CertificateError as Certificate, Error};
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(reason) => match reason {
                Certificate::Expired
                | Certificate::ExpiredContext { .. }
                | Certificate::NotValidYet
                | Certificate::NotValidYetContext { .. } => Self::ExpiredCertificate,
                _ => Self::BadCertificate,
            },
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Incompatible,
            Error::AlertReceived(_) => Self::RefusedByPeer,
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidMessage(_)
            | Error::DecryptError
            | Error::PeerMisbehaved(_)
            | Error::PeerSentOversizedRecord => Self::Protocol,
            _ => Self::Other,
        }
    }
}

impl From<&std::io::Error> for HandshakeFailure {
    /// tokio-rustls wraps the error of rustls in an I/O error.
    fn from(error: &std::io::Error) -> Self {
        if let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            return Self::from(tls);
        }
        match error.kind() {
            std::io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Closed,
        }
    }
}

words! {
    /// Why a request was, or would have been, sent again.
    RetryReason {
        /// No response came: no connection, one that broke off, or none in time.
        ConnectFailed = "connect-failed",
        /// The response's status says so.
        Status = "status",
        /// The response's `grpc-status` says so.
        GrpcStatus = "grpc-status",
    }
}

words! {
    /// What became of it.
    RetryOutcome {
        /// It was sent again.
        Retried = "retried",
        /// The retry budget of the service is used up.
        BudgetExhausted = "budget-exhausted",
    }
}

words! {
    /// What became of a request that met no endpoint that is up, under a route that lets requests wait.
    HoldOutcome {
        /// It waits.
        Held = "held",
        /// As many wait as may.
        Refused = "refused",
    }
}

words! {
    /// What became of a copy of a request.
    MirrorOutcome {
        /// It was answered.
        Answered = "answered",
        /// It was not.
        Failed = "failed",
        /// As many copies were under way as may be, or its body was too large or incomplete.
        Dropped = "dropped",
    }
}

words! {
    /// Why a mesh connection was cut off.
    CutOff {
        /// Its peer was banned.
        Banned = "banned",
        /// Nobody of its peer's trust domain is believed any more.
        Distrusted = "distrusted",
        /// Its peer's certificate has ended, and the peer has not come with another.
        CertificateEnded = "certificate-ended",
    }
}

words! {
    /// Why an endpoint was ejected.
    Ejection {
        /// So many requests in a row failed.
        ConsecutiveFailures = "consecutive-failures",
        /// Too few requests of an interval succeeded.
        SuccessRate = "success-rate",
        /// The request that was to find out whether it is back failed.
        FailedProbe = "failed-probe",
    }
}

impl Ejection {
    /// For people.
    pub(crate) const fn as_sentence(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "too many requests in a row failed",
            Self::SuccessRate => "too few requests succeeded",
            Self::FailedProbe => "it was tried again and failed",
        }
    }
}

words! {
    /// How a handshake ended.
    Outcome {
        /// It completed.
        Ok = "ok",
        /// It did not.
        Error = "error",
    }
}

words! {
    /// Why a connection to the admin port was closed without an answer to a whole request.
    AdminRefusal {
        /// What came is no HTTP.
        Garbage = "garbage",
        /// The header of a request is larger than the port takes.
        HeaderTooLarge = "header-too-large",
        /// A request began, and its header did not end in time or at all.
        Incomplete = "incomplete",
        /// Nothing came in time.
        Silent = "silent",
        /// A request came, and its body or the reading of its response took too long.
        Slow = "slow",
        /// It was the oldest of too many.
        Displaced = "displaced",
    }
}

words! {
    /// What became of the search for the Airflow task behind a connection.
    TaskLookup {
        /// It was found.
        Task = "task",
        /// Its task instance was found, and not what it is called.
        Instance = "instance",
        /// It is the worker's own connection.
        NoTask = "no-task",
        /// The connection was closed before it was looked at.
        SocketGone = "socket-gone",
        /// No process that can be seen holds the connection.
        NoOwner = "no-owner",
        /// The proxy may not read the open files of some processes.
        Denied = "denied",
        /// Its process works for several tasks.
        Ambiguous = "ambiguous",
        /// It shows a task, and does not surely descend from the worker beside it.
        Stray = "stray",
        /// It shows another run than Airflow has named.
        Contradicted = "contradicted",
        /// Looking took too long.
        TimedOut = "timed-out",
        /// Too many connections were waiting to be looked at.
        Busy = "busy",
    }
}

words! {
    /// What became of something that Airflow's own requests say of a task.
    TaskFact {
        /// It was taken over.
        Learned = "learned",
        /// Something else was known already.
        Contradicted = "contradicted",
        /// It is not of the form that Airflow sends, or not what it claims to be.
        Unreadable = "unreadable",
        /// It is larger than such a message can be.
        TooLarge = "too-large",
        /// Too many were being read.
        Busy = "busy",
        /// A task began, and which process it runs in was not sure, so that it gets no identity.
        Unproven = "unproven",
        /// No process said it that supervises a task.
        Unsupervised = "unsupervised",
        /// A service said it that is not named as Airflow's.
        OtherService = "other-service",
    }
}

words! {
    /// As whom connections to peers go where tasks have identities of their own.
    TaskCaller {
        /// As the task.
        Task = "task",
        /// As the workload: a process of Airflow's own has the connection.
        Worker = "worker",
        /// As the workload, since it was not sure whose the connection is.
        Unproven = "unproven",
        /// Not at all, since that was not sure.
        Refused = "refused",
        /// Not at all: the control plane gives the task no identity.
        Denied = "denied",
        /// Not at all: there was no identity of the task to be had in time.
        Unavailable = "unavailable",
    }
}

impl AdminRefusal {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::Displaced as usize + 1;
}

encode_as_str!(
    Ejection,
    CutOff,
    Side,
    RetryReason,
    RetryOutcome,
    HoldOutcome,
    MirrorOutcome,
    Outcome,
    AdminRefusal,
    TaskLookup,
    TaskFact,
    TaskCaller
);

/// A handshake's failure or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FailureLabel(pub(super) Option<HandshakeFailure>);

impl EncodeLabelValue for FailureLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.0.map_or(super::labels::NONE, HandshakeFailure::as_str))
    }
}

/// Labels of `sidewind_tls_handshakes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct HandshakeLabels {
    pub(super) side: Side,
    pub(super) result: Outcome,
    pub(super) reason: FailureLabel,
}

/// Labels of `sidewind_tls_handshake_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct SideLabels {
    pub(super) side: Side,
}

/// Labels of `sidewind_errors_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct CodeLabels {
    pub(super) direction: Direction,
    pub(super) code: ErrorCode,
}

/// Labels of `sidewind_mesh_connections_cut_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct CutLabels {
    pub(super) reason: CutOff,
}

/// Labels of `sidewind_endpoint_ejections_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct EjectionLabels {
    pub(super) service: Name,
    pub(super) reason: Ejection,
}

impl Labels for EjectionLabels {
    fn overflow(&self) -> Self {
        Self {
            service: Name::overflow(),
            reason: self.reason,
        }
    }
}

/// Labels of `sidewind_limited_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct LimitLabels {
    pub(super) service: Name,
    pub(super) limit: Name,
}

impl Labels for LimitLabels {
    fn overflow(&self) -> Self {
        Self {
            service: Name::overflow(),
            limit: Name::overflow(),
        }
    }
}

/// Labels of `sidewind_admin_refusals_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct AdminLabels {
    pub(super) reason: AdminRefusal,
}

/// Labels of `sidewind_task_lookups_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct TaskLookupLabels {
    pub(super) result: TaskLookup,
}

/// Labels of `sidewind_task_facts_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct TaskFactLabels {
    pub(super) result: TaskFact,
}

/// Labels of `sidewind_task_callers_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct TaskCallerLabels {
    pub(super) result: TaskCaller,
}

/// Labels of `sidewind_retries_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct RetryLabels {
    pub(super) service: Name,
    pub(super) reason: RetryReason,
    pub(super) outcome: RetryOutcome,
}

/// Labels of `sidewind_held_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct HoldLabels {
    pub(super) service: Name,
    pub(super) outcome: HoldOutcome,
}

/// Labels of `sidewind_mirrored_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(super) struct MirrorLabels {
    pub(super) service: Name,
    pub(super) outcome: MirrorOutcome,
}

macro_rules! closed_set {
    ($($labels:ty),+) => { $(
        impl Labels for $labels {
            fn overflow(&self) -> Self {
                self.clone()
            }
        }
    )+ };
}
closed_set!(
    CutLabels,
    HandshakeLabels,
    SideLabels,
    CodeLabels,
    AdminLabels,
    TaskLookupLabels,
    TaskFactLabels,
    TaskCallerLabels
);

macro_rules! by_service {
    ($($labels:ty),+) => { $(
        impl Labels for $labels {
            fn overflow(&self) -> Self {
                Self {
                    service: Name::overflow(),
                    ..self.clone()
                }
            }
        }
    )+ };
}
by_service!(RetryLabels, HoldLabels, MirrorLabels);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failed_handshake_is_found_inside_the_io_error() {
        let io = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        let cases = [
            (io(expired), HandshakeFailure::ExpiredCertificate),
            (io(alert), HandshakeFailure::RefusedByPeer),
            (
                io(rustls::Error::NoCertificatesPresented),
                HandshakeFailure::NoCertificate,
            ),
            (
                io(rustls::Error::NoApplicationProtocol),
                HandshakeFailure::Incompatible,
            ),
            (
                std::io::ErrorKind::UnexpectedEof.into(),
                HandshakeFailure::Closed,
            ),
            (
                std::io::ErrorKind::TimedOut.into(),
                HandshakeFailure::Timeout,
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(HandshakeFailure::from(&error), expected, "{error}");
        }
    }
}
