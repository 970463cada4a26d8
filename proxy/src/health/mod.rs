//! Which endpoints are well, as this process knows it: what active checks found, and what requests met.
//!
//! One [`ServiceHealth`] for each service that the workload uses, with an [`EndpointHealth`] for each endpoint. They
//! are atomics that workers read for each request and write when something changes; whoever changes what may be picked
//! raises the service's generation, by which workers notice it. A lock is taken only for rare things: a new set of
//! endpoints, an ejection, what people are shown.
//!
//! - [`endpoint`]: the state of one endpoint
//! - [`outlier`]: when requests eject one, and for how long
//! - [`check`]: active checks, on a thread of their own
//! - [`probe`]: one check, [`expectation`] what its answer's body must be
//! - [`report`]: what the admin port shows

pub(crate) mod check;
mod endpoint;
mod expectation;
mod outlier;
mod probe;
mod report;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use endpoint::{Checked, EndpointHealth};
pub(crate) use settings::{CheckSettings, HealthSettings, OutlierSettings};

use crate::balance::{EndpointDesc, Outcome};
use crate::telemetry::metrics::{Ejection, Metrics};

/// The health of every service that the workload uses. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    services: Mutex<HashMap<Arc<str>, Weak<ServiceHealth>>>,
    /// Raised when endpoints or checks change.
    changed: watch::Sender<u64>,
    /// Raised when a check finds that an endpoint does not answer at all, or that one is healthy.
    turned: watch::Sender<u64>,
    metrics: Option<Arc<Metrics>>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Health {
    /// Nothing known yet. Changes are counted in `metrics`.
    pub(crate) fn new(metrics: Option<Arc<Metrics>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                began: Instant::now(),
                services: Mutex::default(),
                changed: watch::channel(0).0,
                turned: watch::channel(0).0,
                metrics,
            }),
        }
    }

    /// The health of the endpoints of a destination, the same for every worker.
    pub(crate) fn of(&self, destination: &str) -> Arc<ServiceHealth> {
        let mut services = lock(&self.shared.services);
        if let Some(known) = services.get(destination).and_then(Weak::upgrade) {
            return known;
        }
        services.retain(|_, service| service.strong_count() > 0);
        let service = Arc::new(ServiceHealth {
            shared: Arc::clone(&self.shared),
            generation: AtomicU64::new(1),
            members: Mutex::default(),
        });
        services.insert(destination.into(), Arc::downgrade(&service));
        service
    }

    /// Told when a check finds that an endpoint does not answer at all, or that one is healthy: whoever waits for one that
    /// does not may have somewhere else to go.
    pub(crate) fn turned(&self) -> watch::Receiver<u64> {
        self.shared.turned.subscribe()
    }

    fn services(&self) -> Vec<Arc<ServiceHealth>> {
        let services = lock(&self.shared.services);
        services.values().filter_map(Weak::upgrade).collect()
    }
}

/// The health of one service's endpoints.
#[derive(Debug)]
pub(crate) struct ServiceHealth {
    shared: Arc<Shared>,
    generation: AtomicU64,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    /// Of the service and the policy, for people.
    name: Arc<str>,
    port: u32,
    policy: Arc<str>,
    settings: HealthSettings,
    list: Vec<Arc<EndpointHealth>>,
}

/// What a service is now, as discovery has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership<'a> {
    pub(crate) name: &'a str,
    pub(crate) port: u32,
    pub(crate) policy: &'a str,
    pub(crate) settings: HealthSettings,
    pub(crate) endpoints: &'a [EndpointDesc],
}

impl ServiceHealth {
    /// Takes over a new set of endpoints, and gives their cells in the same order. One that is unchanged keeps its
    /// own, and one whose weight, priority or zone has changed its health; one that comes to others begins slowly.
    pub(crate) fn update(&self, membership: &Membership<'_>) -> Vec<Arc<EndpointHealth>> {
        let now = self.now();
        let mut members = lock(&self.members);
        let known: HashMap<_, &Arc<EndpointHealth>> = members
            .list
            .iter()
            .map(|cell| (cell.desc().place(), cell))
            .collect();
        let first = known.is_empty();
        let list: Vec<Arc<EndpointHealth>> = membership
            .endpoints
            .iter()
            .map(|desc| match known.get(&desc.place()) {
                Some(cell) if cell.desc() == desc => Arc::clone(cell),
                Some(cell) => Arc::new(cell.described_as(desc.clone())),
                None => Arc::new(EndpointHealth::new(desc.clone(), now, !first)),
            })
            .collect();
        if members.settings.check.is_none() != membership.settings.check.is_none() {
            for cell in &list {
                cell.forget_checks(now);
            }
        }
        *members = Members {
            name: membership.name.into(),
            port: membership.port,
            policy: membership.policy.into(),
            settings: membership.settings.clone(),
            list: list.clone(),
        };
        drop(members);
        self.raise();
        raise(&self.shared.changed);
        list
    }

    /// Changes whenever another endpoint may be picked than before, but for what time alone changes.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Milliseconds since the process began.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// The same of another time.
    pub(crate) fn at(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.shared.began);
        // One more, so that 0 can mean never.
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn raise(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether there is an endpoint that active checks have nothing against.
    pub(crate) fn passes_checks(&self) -> bool {
        lock(&self.members).list.iter().any(|it| it.passes_checks())
    }

    /// Learns how a use of an endpoint went.
    pub(crate) fn observe(
        &self,
        settings: &OutlierSettings,
        cell: &EndpointHealth,
        outcome: Outcome,
        now: u64,
    ) {
        let Some(cause) = outlier::judge(settings, cell, outcome, now) else {
            return;
        };
        self.eject(settings, cell, cause, now);
    }

    /// An ejected endpoint answered the one request that was to find out.
    pub(crate) fn readmit(&self, cell: &EndpointHealth, now: u64) {
        if cell.readmit(now) {
            self.raise();
        }
    }

    /// Ends the ejection of an endpoint that has answered, where those that are not ejected fail all the time: one of them
    /// is left only because never all are ejected.
    pub(crate) fn readmit_for_want(
        &self,
        settings: &OutlierSettings,
        cell: &EndpointHealth,
        now: u64,
    ) {
        let most = settings.consecutive_failures;
        let fails = |other: &EndpointHealth| {
            let failures = other.consecutive_failures.load(Ordering::Relaxed);
            other.is_ejected() || most != 0 && failures >= most
        };
        let none_is_well = lock(&self.members).list.iter().all(|other| fails(other));
        if none_is_well {
            self.readmit(cell, now);
        }
    }

    fn eject(&self, settings: &OutlierSettings, cell: &EndpointHealth, cause: Ejection, now: u64) {
        // Under the lock, so that two workers never eject the last two at once.
        let members = lock(&self.members);
        let ejected = members
            .list
            .iter()
            .filter(|other| other.is_ejected() && !other.is_same(cell));
        // One that is out already takes nobody else's place by staying out, however few are left.
        if !cell.is_ejected() && !outlier::may_eject(settings, ejected.count(), members.list.len())
        {
            // Another worker has just ended its ejection, which this request was to find out about.
            cell.end_probe();
            return;
        }
        let hold = cell.eject(settings, cause, now);
        tracing::warn!(
            service = %members.name,
            endpoint = %cell.desc().address,
            cause = cause.as_str(),
            hold_ms = hold,
            "an endpoint is ejected"
        );
        let name = Arc::clone(&members.name);
        drop(members);
        self.raise();
        if let Some(metrics) = &self.shared.metrics {
            metrics.ejected(&name, cause);
        }
    }

    /// Takes what a check of one endpoint is said to have found.
    #[cfg(test)]
    pub(crate) fn find(&self, settings: &CheckSettings, number: usize, answers: bool) {
        let cell = lock(&self.members).list.get(number).map(Arc::clone);
        let finding = match answers {
            true => probe::Finding::Healthy,
            false => probe::Finding::NoAnswer("no answer".to_owned()),
        };
        self.checked(settings, &cell.expect("so many endpoints"), &finding);
    }

    /// Takes the finding of an active check.
    fn checked(&self, settings: &CheckSettings, cell: &EndpointHealth, finding: &probe::Finding) {
        let before = cell.checked();
        let after = cell.take_finding(settings, finding, self.now());
        if before == after {
            return;
        }
        let name = Arc::clone(&lock(&self.members).name);
        tracing::info!(
            service = %name,
            endpoint = %cell.desc().address,
            finding = %finding,
            state = after.as_str(),
            "a health check changed its verdict"
        );
        self.raise();
        if matches!(after, Checked::Dead | Checked::Healthy) {
            raise(&self.shared.turned);
        }
    }
}

fn raise(version: &watch::Sender<u64>) {
    version.send_modify(|version| *version = version.wrapping_add(1));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way, so a poisoned lock still guards something whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
