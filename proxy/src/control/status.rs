//! What the control thread knows of itself: detail for readiness, metrics and `/config`.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use sidewind_identity::SpiffeId;

/// A snapshot of how things stand between the proxy and its control plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlStatus {
    /// The present SVID's ID and end; the last one's when it has expired.
    pub(crate) identity: Option<IdentityStatus>,
    /// Whether a stream to a control plane is open.
    pub(crate) connected: bool,
    /// The control plane that answered last.
    pub(crate) control_plane: Option<String>,
    /// Its software version.
    pub(crate) control_plane_version: Option<String>,
    /// The address that this machine reaches the control plane from: the workload's, unless configuration says
    /// another.
    pub(crate) local_address: Option<IpAddr>,
    /// Whether an inbound policy has arrived.
    pub(crate) policy_received: bool,
    /// Why there is no new SVID, while that is so.
    pub(crate) identity_error: Option<String>,
    /// Why this workload is to have no identity, while the control plane says so: its registration is gone, or it is
    /// banned. Whoever hands out the SVID stops, also while it is valid.
    pub(crate) identity_refusal: Option<String>,
    /// Why there is no stream, while that is so.
    pub(crate) stream_error: Option<String>,
    /// What the control plane did not accept of the registration.
    pub(crate) refused: Vec<String>,
    /// SVIDs received since the start.
    pub(crate) svids_issued: u64,
    /// Failed tries to get an SVID since the start.
    pub(crate) svid_failures: u64,
    /// Streams opened since the start.
    pub(crate) streams_opened: u64,
    /// Messages of the control plane that were not understood.
    pub(crate) bad_messages: u64,
    /// By how many seconds the control plane's clock was ahead of this machine's when it answered last.
    pub(crate) clock_difference: Option<f64>,
    /// How often the wall clock has jumped: the machine slept, or the clock was set.
    pub(crate) clock_jumps: u64,
    /// Tasks that have an identity of their own just now.
    pub(crate) task_identities: usize,
    /// SVIDs of tasks received since the start.
    pub(crate) task_svids_issued: u64,
    /// Failed tries to get one.
    pub(crate) task_svid_failures: u64,
}

/// Whose SVID there is, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentityStatus {
    pub(crate) id: SpiffeId,
    pub(crate) serial_hex: String,
    pub(crate) not_after: SystemTime,
}

/// Whether the SVID can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityState {
    /// There has been none yet.
    None,
    /// It can.
    Valid { left: Duration },
    /// It could until this long ago.
    Expired { since: Duration },
}

impl fmt::Display for IdentityState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Valid { left } => write!(f, "valid, {} s left", left.as_secs()),
            Self::Expired { since } => write!(f, "expired {} s ago", since.as_secs()),
        }
    }
}

impl ControlStatus {
    /// What is wrong with the clocks, where they differ by more than certificates allow for.
    pub(crate) fn clock_alarm(&self) -> Option<String> {
        let ahead = self.clock_difference?;
        let limit = sidewind_api::clock::MAX_DIFFERENCE.as_secs_f64();
        (ahead.abs() > limit).then(|| {
            let side = if ahead > 0.0 { "ahead of" } else { "behind" };
            let seconds = ahead.abs();
            format!("the control plane's clock is {seconds:.0} s {side} this machine's")
        })
    }

    /// Whether the SVID can be used at a moment.
    pub(crate) fn identity_state(&self, now: SystemTime) -> IdentityState {
        match &self.identity {
            None => IdentityState::None,
            Some(identity) => match identity.not_after.duration_since(now) {
                Ok(left) => IdentityState::Valid { left },
                Err(error) => IdentityState::Expired {
                    since: error.duration(),
                },
            },
        }
    }
}
