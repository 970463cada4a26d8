//! What may be handed out at a moment, and why not.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sidewind_api::BanList;
use sidewind_identity::{SpiffeId, Svid};
use tokio::sync::watch;
use tonic::Status;

use crate::control::{Clock, ControlStatus, Credentials};

/// How long to sleep when there is no end to wait for.
const NO_END: Duration = Duration::from_secs(3600);

/// Where the state comes from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub(super) status: watch::Receiver<ControlStatus>,
    pub(super) bans: watch::Receiver<Arc<BanList>>,
    pub(super) clock: Clock,
}

/// The state at a moment. Clones share what is in it.
#[derive(Debug, Clone)]
pub(super) struct Present {
    credentials: Option<Arc<Credentials>>,
    /// Why the control plane lets this workload have no identity.
    refusal: Option<Arc<str>>,
    /// Why there is no identity yet.
    waiting_for: Arc<str>,
    expired: bool,
    bans: Arc<BanList>,
    clock: Clock,
}

impl Present {
    /// The bundles, which stay good for verifying others when the own SVID has ended.
    ///
    /// # Errors
    /// The standard's statuses: `Unavailable` while there is nothing yet, `PermissionDenied` where the control plane
    /// refuses this workload.
    pub(super) fn credentials(&self) -> Result<&Arc<Credentials>, Status> {
        if let Some(refusal) = &self.refusal {
            // These first words are what other implementations say, and what some clients look for.
            return Err(Status::permission_denied(format!(
                "no identity issued: {refusal}"
            )));
        }
        self.credentials.as_ref().ok_or_else(|| {
            Status::unavailable(format!(
                "there is no identity yet, try again: {}",
                self.waiting_for
            ))
        })
    }

    /// The SVID, while it is valid.
    ///
    /// # Errors
    /// As [`Present::credentials`], and `Unavailable` when it has expired: a successor is being asked for.
    pub(super) fn svid(&self) -> Result<&Svid, Status> {
        let svid = &self.credentials()?.svid;
        if self.expired || svid.not_after() < self.now() {
            return Err(Status::unavailable(format!(
                "the SVID has expired and is not renewed yet, try again: {}",
                self.waiting_for
            )));
        }
        Ok(svid)
    }

    /// Whether nobody is to believe a token of this identity, though it is signed well.
    pub(super) fn is_banned(&self, id: &SpiffeId) -> bool {
        self.bans.refuses_identity(id)
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn is_same(&self, other: &Self) -> bool {
        let credentials = match (&self.credentials, &other.credentials) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        credentials
            && self.expired == other.expired
            && self.refusal == other.refusal
            && self.bans == other.bans
            && self.waiting_for == other.waiting_for
    }
}

/// The state, and the work that keeps it: it also changes when the SVID ends, of which nobody else says a word.
pub(super) fn follow(
    mut sources: Sources,
) -> (
    watch::Receiver<Present>,
    impl Future<Output = ()> + Send + 'static,
) {
    let (sender, receiver) = watch::channel(sources.look());
    let following = async move {
        loop {
            let present = sources.look();
            let left = present.left();
            sender.send_if_modified(|known| {
                let changed = !known.is_same(&present);
                *known = present;
                changed
            });
            let changed = tokio::select! {
                changed = sources.credentials.changed() => changed,
                changed = sources.status.changed() => changed,
                changed = sources.bans.changed() => changed,
                () = sources.clock.sleep(left) => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    };
    (receiver, following)
}

impl Present {
    /// How long until the SVID ends; just past it, since it is valid in its last moment.
    fn left(&self) -> Duration {
        let svid = self.credentials.as_ref().map(|it| &it.svid);
        let left = svid.and_then(|svid| svid.not_after().duration_since(self.now()).ok());
        left.map_or(NO_END, |left| left + Duration::from_millis(1))
    }
}

impl Sources {
    fn look(&mut self) -> Present {
        let credentials = self.credentials.borrow_and_update().clone();
        let status = self.status.borrow_and_update();
        let bans = self.bans.borrow_and_update().clone();
        let now = self.clock.now();
        // The list may be here before the control plane has said so to this proxy.
        let is_banned = |it: &Arc<Credentials>| bans.refuses(it.svid.id(), it.svid.serial_hex());
        let banned = credentials.as_ref().is_some_and(is_banned);
        let banned = banned.then_some("this workload or its certificate is banned");
        Present {
            expired: credentials
                .as_ref()
                .is_some_and(|it| it.svid.not_after() < now),
            refusal: (status.identity_refusal.as_deref())
                .or(banned)
                .map(Into::into),
            waiting_for: status
                .identity_error
                .as_deref()
                .unwrap_or("the proxy is asking its control plane for one")
                .into(),
            credentials,
            bans,
            clock: self.clock.clone(),
        }
    }
}
