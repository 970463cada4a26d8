//! One endpoint and what a worker knows of it.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sidewind_api::v1;
use sidewind_identity::{SpiffeId, SpiffeIdError};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Affinity, Selection};
use crate::health::{Checked, EndpointHealth, HealthSettings, ServiceHealth};

/// How fast the average follows: after this long an old observation counts 37 %.
const DECAY: Duration = Duration::from_secs(10);
/// How long an average counts in full. Were it to fade at once, of two endpoints that are equally fast the one that
/// was used less would look faster, and weights would not hold.
const FRESH: Duration = Duration::from_secs(1);
/// What a first endpoint is taken to need until it has answered once.
const INITIAL_LATENCY: Duration = Duration::from_millis(10);
/// Below this no endpoint is faster than another: such differences are the noise of schedulers, and to follow them
/// would send all traffic to one of two that are equal.
const FAST: Duration = Duration::from_millis(5);
/// How long an endpoint is passed over after a failed connection, the first time and at most.
const FIRST_PENALTY: Duration = Duration::from_millis(500);
const MAX_PENALTY: Duration = Duration::from_secs(10);

/// One copy of a service, as discovery names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointDesc {
    /// Where the workload listens.
    pub(crate) address: SocketAddr,
    /// How it is reached by the mesh, where a sidecar stands beside it.
    pub(crate) mesh: Option<MeshTarget>,
    /// The workload's name for people; may be empty.
    pub(crate) workload_name: Arc<str>,
    /// Its share of the traffic, relative to the others'.
    pub(crate) weight: NonZeroU32,
    /// Where it stands; may be empty.
    pub(crate) zone: Arc<str>,
    /// Those of 0 come first.
    pub(crate) priority: u32,
    /// What clients' cookies call it, where the control plane says so.
    pub(crate) affinity: Option<Affinity>,
}

impl EndpointDesc {
    /// What makes it this endpoint and no other. The rest says what is to be thought of it, and may change.
    pub(crate) fn place(&self) -> (SocketAddr, Option<&MeshTarget>, Option<&Affinity>) {
        (self.address, self.mesh.as_ref(), self.affinity.as_ref())
    }
}

/// The sidecar beside an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MeshTarget {
    /// Where the sidecar listens.
    pub(crate) address: SocketAddr,
    /// Who must answer there.
    pub(crate) id: SpiffeId,
}

/// An endpoint from discovery that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidEndpoint {
    /// Not an IP address.
    #[error("endpoint address {0:?} is not an IP address")]
    Address(String),
    /// Not a port.
    #[error("endpoint port {0} is not between 1 and 65535")]
    Port(u32),
    /// A sidecar without an identity, or with one that is none.
    #[error("endpoint identity is not a SPIFFE ID")]
    Identity(#[from] SpiffeIdError),
}

impl TryFrom<&v1::Endpoint> for EndpointDesc {
    type Error = InvalidEndpoint;

    fn try_from(endpoint: &v1::Endpoint) -> Result<EndpointDesc, InvalidEndpoint> {
        let ip: IpAddr = endpoint
            .address
            .parse()
            .map_err(|_| InvalidEndpoint::Address(endpoint.address.clone()))?;
        let mesh = if endpoint.mesh_port == 0 && endpoint.spiffe_id.is_empty() {
            None
        } else {
            // Half of it is an error and never a reason to go without: that would be plaintext by accident.
            Some(MeshTarget {
                address: SocketAddr::new(ip, port(endpoint.mesh_port)?),
                id: SpiffeId::parse(&endpoint.spiffe_id)?,
            })
        };
        Ok(EndpointDesc {
            address: SocketAddr::new(ip, port(endpoint.port)?),
            mesh,
            workload_name: endpoint.workload_name.as_str().into(),
            weight: NonZeroU32::new(endpoint.weight).unwrap_or(NonZeroU32::MIN),
            zone: endpoint.zone.as_str().into(),
            priority: endpoint.priority,
            affinity: Affinity::from_bytes(&endpoint.affinity),
        })
    }
}

fn port(port: u32) -> Result<u16, InvalidEndpoint> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(InvalidEndpoint::Port(port))
}

/// How a use of an endpoint went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered.
    Success,
    /// It answered that it cannot (502, 503, 504, UNAVAILABLE), or broke off. Such an answer may come fast, and
    /// must not make the endpoint look good.
    Failure,
    /// It could not be connected to, or someone else answered there.
    ConnectFailed,
}

/// An endpoint with its figures.
#[derive(Debug)]
pub(super) struct Endpoint {
    health: Arc<EndpointHealth>,
    /// Its name in cookies, made when it is first asked for.
    name: std::cell::OnceCell<Affinity>,
    figures: Rc<Figures>,
}

/// What a worker has seen of an endpoint, however that is described.
#[derive(Debug)]
struct Figures {
    in_flight: Cell<u32>,
    /// Seconds.
    latency: Cell<f64>,
    /// When `latency` was last brought up to date; `None` before the first answer.
    observed: Cell<Option<Instant>>,
    penalised_until: Cell<Option<Instant>>,
    failed_connects: Cell<u32>,
    /// Wakes those who wait for its answer in vain.
    died: Notify,
}

impl Endpoint {
    /// `latency` in seconds is what the endpoint is taken to need before its first answer.
    pub(super) fn new(health: Arc<EndpointHealth>, latency: Option<f64>) -> Endpoint {
        let figures = Figures {
            in_flight: Cell::new(0),
            latency: Cell::new(latency.unwrap_or(INITIAL_LATENCY.as_secs_f64())),
            observed: Cell::new(None),
            penalised_until: Cell::new(None),
            failed_connects: Cell::new(0),
            died: Notify::new(),
        };
        Endpoint {
            health,
            name: std::cell::OnceCell::new(),
            figures: Rc::new(figures),
        }
    }

    /// The same endpoint under another description.
    pub(super) fn described_by(&self, health: Arc<EndpointHealth>) -> Endpoint {
        Endpoint {
            health,
            name: std::cell::OnceCell::new(),
            figures: Rc::clone(&self.figures),
        }
    }

    pub(super) fn desc(&self) -> &EndpointDesc {
        self.health.desc()
    }

    pub(super) fn health(&self) -> &EndpointHealth {
        &self.health
    }

    /// Whether this is what a worker knows of what the cell is of.
    pub(super) fn is_of(&self, cell: &Arc<EndpointHealth>) -> bool {
        Arc::ptr_eq(&self.health, cell)
    }

    fn name(&self) -> Affinity {
        *self.name.get_or_init(|| Affinity::of(self.desc()))
    }

    pub(super) fn is_named(&self, name: &Affinity) -> bool {
        self.name() == *name
    }

    pub(super) fn wake_if_dead(&self) {
        if self.health.checked() == Checked::Dead {
            self.figures.died.notify_waiters();
        }
    }

    /// Latency in seconds once anything is known of it.
    pub(super) fn known_latency(&self) -> Option<f64> {
        self.figures
            .observed
            .get()
            .map(|_| self.figures.latency.get())
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.figures.in_flight.get()
    }

    pub(super) fn penalised_until(&self) -> Option<Instant> {
        self.figures.penalised_until.get()
    }

    /// Whether no earlier try of the request failed here.
    pub(super) fn is_untried(&self, selection: &Selection<'_>) -> bool {
        let address = self.desc().address;
        selection.tried.is_none_or(|tried| !tried.has(address))
    }

    /// Whether no connection to it failed lately.
    pub(super) fn is_reachable(&self, now: Instant) -> bool {
        self.figures
            .penalised_until
            .get()
            .is_none_or(|until| until <= now)
    }

    /// Seconds of work ahead of a new request. An average that nothing has added to fades, so that an endpoint that
    /// was slow once is tried again.
    pub(super) fn load(&self, now: Instant) -> f64 {
        let latency = match self.figures.observed.get() {
            Some(observed) => {
                let unused = now.duration_since(observed).saturating_sub(FRESH);
                self.figures.latency.get() * fading(unused)
            }
            // One that has never answered is tried at once, by one request at a time: only so is it measured at all
            // while others look good.
            None if self.figures.in_flight.get() == 0 => 0.0,
            None => self.figures.latency.get(),
        };
        latency.max(FAST.as_secs_f64()) * f64::from(self.figures.in_flight.get() + 1)
    }

    fn observe(&self, latency: f64, now: Instant) {
        let old = self.figures.latency.get();
        let new = match self.figures.observed.get() {
            Some(observed) if latency < old => {
                let share = fading(now.duration_since(observed));
                old * share + latency * (1.0 - share)
            }
            // The first answer, or a peak.
            _ => latency,
        };
        self.figures.latency.set(new);
        self.figures.observed.set(Some(now));
    }

    fn finish(&self, outcome: Outcome, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        match outcome {
            Outcome::Success => {
                self.figures.failed_connects.set(0);
                self.figures.penalised_until.set(None);
                self.observe(latency, now);
            }
            Outcome::Failure => {
                self.figures.failed_connects.set(0);
                self.observe(latency.max(self.figures.latency.get()), now);
            }
            Outcome::ConnectFailed => self.penalise(now),
        }
    }

    fn penalise(&self, now: Instant) {
        let failures = self.figures.failed_connects.get();
        self.figures.failed_connects.set(failures.saturating_add(1));
        let penalty = FIRST_PENALTY
            .saturating_mul(1 << failures.min(10))
            .min(MAX_PENALTY);
        self.figures.penalised_until.set(Some(now + penalty));
    }
}

/// What is left of an observation after `age`: 1 at once, 0.37 after [`DECAY`].
fn fading(age: Duration) -> f64 {
    (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

/// As what an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// One of those that come into question, or an ejected one for want of any other.
    Chosen,
    /// To find out whether it is back.
    Probe,
}

/// The use of an endpoint: counts as in flight until it is dropped. Dropped without [`Pick::finish`], because the
/// client went away, it says nothing about the endpoint, unless it was waited for as long as a try may take.
#[derive(Debug)]
pub(crate) struct Pick {
    endpoint: Rc<Endpoint>,
    began: Instant,
    health: Arc<ServiceHealth>,
    settings: Rc<HealthSettings>,
    /// Of all endpoints of the service.
    in_flight: Rc<Cell<u32>>,
    standing: Standing,
    /// It is known not to answer, and was picked because there is no other.
    hopeless: bool,
    /// How long it is given then.
    chance: Cell<Option<Duration>>,
    patience: Cell<Option<Duration>>,
    finished: Cell<bool>,
}

impl Pick {
    pub(super) fn new(
        endpoint: &Rc<Endpoint>,
        began: Instant,
        health: Arc<ServiceHealth>,
        settings: Rc<HealthSettings>,
        in_flight: Rc<Cell<u32>>,
        standing: Standing,
    ) -> Pick {
        let in_flight_here = &endpoint.figures.in_flight;
        in_flight_here.set(in_flight_here.get() + 1);
        in_flight.set(in_flight.get() + 1);
        Pick {
            endpoint: Rc::clone(endpoint),
            began,
            health,
            settings,
            in_flight,
            standing,
            hopeless: endpoint.health.checked() == Checked::Dead,
            chance: Cell::new(None),
            patience: Cell::new(None),
            finished: Cell::new(false),
        }
    }

    /// The endpoint.
    pub(crate) fn desc(&self) -> &EndpointDesc {
        self.endpoint.desc()
    }

    /// What clients' cookies call the endpoint.
    pub(crate) fn affinity(&self) -> Affinity {
        self.endpoint.name()
    }

    /// How long an answer is waited for: dropped after that, the use counts as failed.
    pub(crate) fn wait_for(&self, patience: Option<Duration>) {
        self.patience.set(patience);
    }

    /// Gives an endpoint that is known not to answer as long as a check would.
    pub(crate) fn limit_chance(&self) {
        if self.hopeless {
            let check = self.settings.check.as_ref();
            self.chance.set(check.map(|check| check.timeout));
        }
    }

    /// Ends when the endpoint's answer is waited for in vain, by active checks: when they find that it does not answer at
    /// all, or, where that was known before, that another one does, or when its chance is over. Never where there are
    /// no checks.
    pub(crate) async fn died(&self) {
        if self.settings.check.is_none() {
            return std::future::pending().await;
        }
        let given_up = async {
            match self.chance.get() {
                // Apart, since each request would have room for it.
                Some(limit) => Box::pin(sleep_until(self.began + limit)).await,
                None => std::future::pending().await,
            }
        };
        let in_vain = async {
            loop {
                self.endpoint.figures.died.notified().await;
                let dead = self.endpoint.health.checked() == Checked::Dead;
                if dead && (!self.hopeless || self.health.passes_checks()) {
                    return;
                }
            }
        };
        tokio::select! {
            () = in_vain => {}
            () = given_up => {}
        }
    }

    /// Tells how it went, now. The endpoint stays in flight until the pick is dropped, so that a response's body may
    /// hold it to its end.
    pub(crate) fn finish(&self, outcome: Outcome) {
        self.finish_after(outcome, self.began.elapsed());
    }

    /// The same for a latency that the caller has measured.
    pub(crate) fn finish_after(&self, outcome: Outcome, latency: Duration) {
        let now = Instant::now();
        self.finished.set(true);
        self.endpoint.finish(outcome, latency, now);
        let cell = &self.endpoint.health;
        let (outliers, at) = (&self.settings.outlier, self.health.at(now));
        match (self.standing, outcome) {
            (Standing::Probe, Outcome::Success) => self.health.readmit(cell, at),
            // Those that are ejected are picked like any other once all are, by changes of the set.
            (_, Outcome::Success) if cell.is_ejected() => {
                self.health.readmit_for_want(outliers, cell, at);
            }
            _ => self.health.observe(outliers, cell, outcome, at),
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        if !self.finished.get() {
            let waited = self
                .patience
                .get()
                .is_some_and(|limit| self.began.elapsed() >= limit);
            if waited {
                self.finish(Outcome::Failure);
            } else if self.standing == Standing::Probe {
                self.endpoint.health.end_probe();
            }
        }
        let here = &self.endpoint.figures.in_flight;
        here.set(here.get().saturating_sub(1));
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
    }
}
