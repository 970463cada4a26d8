//! The state of one endpoint, in atomics: read by workers for each request, written when something happens.
//!
//! Times are milliseconds as [`super::ServiceHealth::now`] gives them; 0 is never.

use std::ops::Deref;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use super::settings::{CheckSettings, OutlierSettings};
use super::{lock, probe::Finding};
use crate::balance::EndpointDesc;
use crate::telemetry::metrics::Ejection;

/// What active checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Nothing: there are none, or none has ended yet.
    Unknown,
    Healthy,
    /// It answers that it is not.
    Unhealthy,
    /// It does not answer at all, so that whoever waits for it waits in vain.
    Dead,
}

impl Checked {
    const ALL: [Self; 4] = [Self::Unknown, Self::Healthy, Self::Unhealthy, Self::Dead];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unchecked",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Dead => "dead",
        }
    }
}

/// One endpoint as discovery describes it, with its health, which outlives a change of the description.
#[derive(Debug)]
pub(crate) struct EndpointHealth {
    desc: EndpointDesc,
    state: Arc<State>,
}

/// One endpoint's health.
#[derive(Debug)]
pub(crate) struct State {
    checked: AtomicU8,
    /// Checks in a row that speak against the verdict.
    against: AtomicU32,
    pub(super) consecutive_failures: AtomicU32,
    pub(super) window: Window,
    ejected_until: AtomicU64,
    ejections: AtomicU32,
    probing: AtomicBool,
    /// When it became new or came back: it begins slowly.
    warm_since: AtomicU64,
    changed_at: AtomicU64,
    reasons: Mutex<Reasons>,
}

/// Why an endpoint is as it is, for people: of its checks, and of its ejection or return.
#[derive(Clone, Debug, Default)]
pub(super) struct Reasons {
    pub(super) check: String,
    pub(super) ejection: String,
}

/// Answers within an interval.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) began: AtomicU64,
    pub(super) successes: AtomicU32,
    pub(super) failures: AtomicU32,
}

impl Window {
    pub(super) fn begin(&self, now: u64) {
        self.began.store(now, Relaxed);
        self.successes.store(0, Relaxed);
        self.failures.store(0, Relaxed);
    }
}

impl EndpointHealth {
    pub(super) fn new(desc: EndpointDesc, now: u64, warm: bool) -> Self {
        let state = State {
            checked: AtomicU8::new(Checked::Unknown as u8),
            against: AtomicU32::new(0),
            consecutive_failures: AtomicU32::new(0),
            window: Window::default(),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            probing: AtomicBool::new(false),
            warm_since: AtomicU64::new(if warm { now } else { 0 }),
            changed_at: AtomicU64::new(now),
            reasons: Mutex::default(),
        };
        Self {
            desc,
            state: Arc::new(state),
        }
    }

    /// The same endpoint under another description: with another weight, say.
    pub(super) fn described_as(&self, desc: EndpointDesc) -> Self {
        Self {
            desc,
            state: Arc::clone(&self.state),
        }
    }

    pub(crate) fn desc(&self) -> &EndpointDesc {
        &self.desc
    }

    /// Whether both are of one endpoint, however it is described.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

impl Deref for EndpointHealth {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl State {
    pub(crate) fn checked(&self) -> Checked {
        let index = usize::from(self.checked.load(Relaxed));
        Checked::ALL.get(index).copied().unwrap_or(Checked::Unknown)
    }

    /// Whether active checks have nothing against it.
    pub(crate) fn passes_checks(&self) -> bool {
        matches!(self.checked(), Checked::Unknown | Checked::Healthy)
    }

    /// Whether it may be picked like any other.
    pub(crate) fn is_well(&self) -> bool {
        self.passes_checks() && !self.is_ejected()
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected_until.load(Relaxed) != 0
    }

    /// Until when it is ejected; 0 when it is not.
    pub(crate) fn ejected_until(&self) -> u64 {
        self.ejected_until.load(Relaxed)
    }

    /// Since when it is new or back; 0 where it never was.
    pub(crate) fn warm_since(&self) -> u64 {
        self.warm_since.load(Relaxed)
    }

    pub(super) fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    pub(super) fn changed_at(&self) -> u64 {
        self.changed_at.load(Relaxed)
    }

    pub(super) fn is_probing(&self) -> bool {
        self.probing.load(Relaxed)
    }

    pub(super) fn reasons(&self) -> Reasons {
        lock(&self.reasons).clone()
    }

    /// Takes the place of the one request that finds out whether an ejected endpoint is back. One that may not be
    /// repeated waits for twice the hold, so that a user's order is the last to find out.
    pub(crate) fn try_probe(&self, repeatable: bool, hold: u64, now: u64) -> bool {
        let until = self.ejected_until.load(Relaxed);
        let from = if repeatable {
            until
        } else {
            until.saturating_add(hold)
        };
        until != 0 && now >= from && !self.probing.swap(true, Relaxed)
    }

    /// The request that was to find out ended without an answer.
    pub(crate) fn end_probe(&self) {
        self.probing.store(false, Relaxed);
    }

    /// Ejects the endpoint, and gives for how long in milliseconds: twice as long as the last time, unless it has been
    /// well for longer than the longest hold since.
    pub(super) fn eject(&self, settings: &OutlierSettings, cause: Ejection, now: u64) -> u64 {
        let was_well_for = now.saturating_sub(self.changed_at.load(Relaxed));
        let forgiven = !self.is_ejected() && was_well_for > settings.max_hold;
        let before = if forgiven { 0 } else { self.ejections() };
        let doubled = settings.hold.saturating_mul(1 << before.min(20));
        let hold = doubled.min(settings.max_hold).max(1);
        self.ejections.store(before.saturating_add(1), Relaxed);
        self.ejected_until.store(now.saturating_add(hold), Relaxed);
        self.consecutive_failures.store(0, Relaxed);
        self.probing.store(false, Relaxed);
        self.changed_at.store(now, Relaxed);
        lock(&self.reasons).ejection = format!("ejected for {hold} ms: {}", cause.as_sentence());
        hold
    }

    /// Ends the ejection; false when there was none.
    pub(super) fn readmit(&self, now: u64) -> bool {
        self.probing.store(false, Relaxed);
        self.consecutive_failures.store(0, Relaxed);
        let was = self.ejected_until.swap(0, Relaxed) != 0;
        if was {
            // What it was ejected for, and what it answered meanwhile, says nothing of it any more.
            self.window.begin(now);
            self.warm_since.store(now, Relaxed);
            self.changed_at.store(now, Relaxed);
            "it answered again".clone_into(&mut lock(&self.reasons).ejection);
        }
        was
    }

    /// There are other checks from now on.
    pub(super) fn forget_checks(&self, now: u64) {
        if self.checked() != Checked::Unknown {
            self.checked.store(Checked::Unknown as u8, Relaxed);
            self.changed_at.store(now, Relaxed);
            lock(&self.reasons).check.clear();
        }
        self.against.store(0, Relaxed);
    }

    /// Takes what a check found, and gives the verdict after it. Only the checks' thread calls this.
    pub(super) fn take_finding(
        &self,
        settings: &CheckSettings,
        finding: &Finding,
        now: u64,
    ) -> Checked {
        let before = self.checked();
        let after = match finding {
            // It says nothing about the endpoint.
            Finding::Refused(_) => return before,
            Finding::Healthy => Checked::Healthy,
            Finding::Unhealthy(_) => Checked::Unhealthy,
            Finding::NoAnswer(_) => Checked::Dead,
        };
        if before == after {
            self.against.store(0, Relaxed);
            return before;
        }
        let against = self.against.load(Relaxed).saturating_add(1);
        let needed = match (before, after) {
            // The first check of all counts by itself, and so does the kind of illness.
            (Checked::Unknown, _) => 1,
            (_, Checked::Healthy) => settings.healthy_threshold,
            (Checked::Healthy, _) => settings.unhealthy_threshold,
            _ => 1,
        };
        if against < needed {
            self.against.store(against, Relaxed);
            return before;
        }
        self.against.store(0, Relaxed);
        self.checked.store(after as u8, Relaxed);
        self.changed_at.store(now, Relaxed);
        lock(&self.reasons).check = finding.to_string();
        if after == Checked::Healthy && before != Checked::Unknown {
            self.warm_since.store(now, Relaxed);
        }
        after
    }
}
