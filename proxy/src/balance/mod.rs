//! Chooses among a service's endpoints.
//!
//! - [`settings`]: what the policy of a service says
//! - [`active`]: which endpoints come into question now, by health, priority and zone
//! - [`ring`]: consistent hashing
//! - [`affinity`]: the cookie that keeps a client with its endpoint
//! - [`endpoint`]: one endpoint and what a worker knows of it
//!
//! By default it is power of two choices by peak EWMA latency. Of two endpoints drawn at random by weight, the one with
//! the lower load is taken, where load is its latency times the requests it has in flight. The latency is a moving
//! average over time that follows a rise at once and a fall slowly ("peak EWMA", as Finagle and Linkerd have it).
//! Drawing two avoids the herd that runs to the one best endpoint when several proxies look at the same figures.

mod active;
mod affinity;
mod endpoint;
mod random;
mod ring;
mod settings;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use active::Active;
pub(crate) use affinity::{Affinity, cookie};
use endpoint::{Endpoint, Standing};
pub(crate) use endpoint::{EndpointDesc, MeshTarget, Outcome, Pick};
pub(crate) use random::Random;
pub(crate) use ring::hash;
pub(crate) use settings::{Algorithm, BalanceSettings, HashSource, StickySettings};

use crate::health::{Checked, Health, HealthSettings, Membership, ServiceHealth};

/// How much lower the second load must be to count: of endpoints that are about equally fast, the one that was drawn
/// first is taken, so that they share the traffic instead of the fastest by a hair getting all of it.
const NOTICEABLE: f64 = 0.6;

/// How often another endpoint is drawn when the one that was drawn begins slowly.
const REDRAWS: usize = 3;

/// How many endpoints a request or connection is tried at where none accepts it: what discovery says may be old.
pub(crate) const MOST_UNSENT: u32 = 8;

/// Endpoints that one request remembers to have tried; more tries are rare.
const REMEMBERED_TRIES: usize = MOST_UNSENT as usize;

/// A service's endpoints as one worker sees them.
#[derive(Debug)]
pub(crate) struct Balancer {
    health: Arc<ServiceHealth>,
    inner: RefCell<Inner>,
    random: Random,
    in_flight: Rc<Cell<u32>>,
}

#[derive(Debug)]
struct Inner {
    settings: BalanceSettings,
    health: Rc<HealthSettings>,
    list: Vec<Rc<Endpoint>>,
    active: Active,
    /// The generation of health that `active` is of.
    generation: u64,
    turn: usize,
}

/// What a service's balancing goes by, as discovery has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan<'a> {
    pub(crate) name: &'a str,
    pub(crate) port: u32,
    pub(crate) policy: &'a str,
    pub(crate) endpoints: &'a [EndpointDesc],
    pub(crate) settings: BalanceSettings,
    pub(crate) health: HealthSettings,
}

/// What a pick goes by beside the endpoints.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selection<'a> {
    /// The endpoints that earlier tries failed on.
    pub(crate) tried: Option<&'a Tried>,
    /// Of what the policy hashes.
    pub(crate) hash: Option<u64>,
    /// What the client's cookie names.
    pub(crate) affinity: Option<Affinity>,
    /// Whether the request may be sent again when it fails.
    pub(crate) repeatable: bool,
}

/// The endpoints that the tries of one request went to.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    addresses: [Cell<Option<SocketAddr>>; REMEMBERED_TRIES],
    count: Cell<usize>,
}

impl Tried {
    /// Notes another one.
    pub(crate) fn add(&self, address: SocketAddr) {
        let count = self.count.get();
        if let Some(place) = self.addresses.get(count % REMEMBERED_TRIES) {
            place.set(Some(address));
        }
        self.count.set(count + 1);
    }

    fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    fn has(&self, address: SocketAddr) -> bool {
        let tried = self.addresses.iter().take(self.count.get());
        tried.into_iter().any(|place| place.get() == Some(address))
    }
}

impl Balancer {
    /// A balancer over what is known of a service's endpoints.
    pub(crate) fn new(health: Arc<ServiceHealth>, plan: &Plan<'_>) -> Balancer {
        Balancer::with_seed(health, plan, rand::random())
    }

    /// The same, whose draws are a function of `seed`.
    pub(crate) fn with_seed(health: Arc<ServiceHealth>, plan: &Plan<'_>, seed: u64) -> Balancer {
        let balancer = Balancer {
            health,
            inner: RefCell::new(Inner {
                settings: BalanceSettings::default(),
                health: Rc::default(),
                list: Vec::new(),
                active: Active::default(),
                generation: 0,
                turn: 0,
            }),
            random: Random::new(seed),
            in_flight: Rc::default(),
        };
        balancer.update(plan);
        balancer
    }

    /// A balancer that shares nothing, with default settings.
    pub(crate) fn alone(
        endpoints: &[EndpointDesc],
        settings: BalanceSettings,
        seed: u64,
    ) -> Balancer {
        let plan = Plan {
            endpoints,
            settings,
            ..Plan::default()
        };
        Balancer::with_seed(Health::default().of(""), &plan, seed)
    }

    /// Takes a new set of endpoints over. Those that stay keep what is known of them, also under another weight, priority
    /// or zone; picks of those that are gone stay valid.
    pub(crate) fn update(&self, plan: &Plan<'_>) {
        let cells = self.health.update(&Membership {
            name: plan.name,
            port: plan.port,
            policy: plan.policy,
            settings: plan.health.clone(),
            endpoints: plan.endpoints,
        });
        let mut inner = self.inner.borrow_mut();
        let known: HashMap<_, &Rc<Endpoint>> = inner
            .list
            .iter()
            .map(|endpoint| (endpoint.desc().place(), endpoint))
            .collect();
        let initial_latency = typical_latency(&inner.list);
        let list: Vec<Rc<Endpoint>> = cells
            .into_iter()
            .map(|cell| match known.get(&cell.desc().place()) {
                Some(endpoint) if endpoint.is_of(&cell) => Rc::clone(endpoint),
                Some(endpoint) if endpoint.health().is_same(&cell) => {
                    Rc::new(endpoint.described_by(cell))
                }
                // Another worker's set may have been another one for a moment, and the cell with it.
                _ => Rc::new(Endpoint::new(cell, initial_latency)),
            })
            .collect();
        inner.list = list;
        inner.settings = plan.settings.clone();
        inner.health = Rc::new(plan.health.clone());
        inner.generation = 0;
    }

    /// How many endpoints there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.inner.borrow().list.len()
    }

    /// Whether there is more than one endpoint that active checks have nothing against.
    pub(crate) fn has_choice(&self) -> bool {
        let inner = self.inner.borrow();
        let passing = inner.list.iter().filter(|it| it.health().passes_checks());
        passing.take(2).count() > 1
    }

    /// Whether there is an endpoint that was not tried, and that active checks have nothing against.
    pub(crate) fn has_untried(&self, tried: &Tried) -> bool {
        let inner = self.inner.borrow();
        let mut passing = inner.list.iter().filter(|it| it.health().passes_checks());
        passing.any(|endpoint| !tried.has(endpoint.desc().address))
    }

    /// Whether active checks find that none of the endpoints answers at all.
    pub(crate) fn is_dead(&self) -> bool {
        let list = &self.inner.borrow().list;
        let dead = |it: &Rc<Endpoint>| it.health().checked() == Checked::Dead;
        !list.is_empty() && list.iter().all(dead)
    }

    /// Tells those who wait for an answer of endpoints that do not answer.
    pub(crate) fn wake_the_hopeless(&self) {
        for endpoint in &self.inner.borrow().list {
            endpoint.wake_if_dead();
        }
    }

    /// Chooses an endpoint; `None` when there is none at all. Those that were tried, and those that could not be
    /// connected to lately, are chosen only when there is no other.
    pub(crate) fn pick(&self, selection: &Selection<'_>) -> Option<Pick> {
        let now = Instant::now();
        let at = self.health.at(now);
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let generation = self.health.generation();
        if inner.generation != generation || at >= inner.active.changes_at() {
            inner.active = Active::new(&inner.list, &inner.settings, at);
            inner.generation = generation;
        }
        let hold = inner.health.outlier.hold;
        let probe = inner.active.probes().iter().find(|endpoint| {
            endpoint.is_untried(selection)
                && endpoint.health().try_probe(selection.repeatable, hold, at)
        });
        let pick = |endpoint: &Rc<Endpoint>, standing| {
            let (health, settings) = (Arc::clone(&self.health), Rc::clone(&inner.health));
            Pick::new(
                endpoint,
                now,
                health,
                settings,
                Rc::clone(&self.in_flight),
                standing,
            )
        };
        if let Some(endpoint) = probe {
            return Some(pick(endpoint, Standing::Probe));
        }
        let context = Context {
            all: &inner.list,
            active: &inner.active,
            settings: &inner.settings,
            selection,
            random: &self.random,
            in_flight: self.in_flight.get(),
            now,
            at,
        };
        if let Some(endpoint) = context.last_resort() {
            return Some(pick(endpoint, Standing::Chosen));
        }
        context
            .choose(&mut inner.turn)
            .map(|endpoint| pick(endpoint, Standing::Chosen))
    }
}

/// One pick.
#[derive(Debug)]
struct Context<'a> {
    all: &'a [Rc<Endpoint>],
    active: &'a Active,
    settings: &'a BalanceSettings,
    selection: &'a Selection<'a>,
    random: &'a Random,
    in_flight: u32,
    now: Instant,
    at: u64,
}

impl<'a> Context<'a> {
    fn choose(&self, turn: &mut usize) -> Option<&'a Rc<Endpoint>> {
        if let Some(endpoint) = self.named() {
            return Some(endpoint);
        }
        let list = self.active.list();
        match list {
            [] => return None,
            [only] => return Some(only),
            _ => {}
        }
        let chosen = match self.settings.algorithm {
            Algorithm::PeakEwma => self.better_of_two(|endpoint| endpoint.load(self.now)),
            Algorithm::LeastRequest => {
                self.better_of_two(|endpoint| f64::from(endpoint.in_flight() + 1))
            }
            Algorithm::RoundRobin => self.next(turn),
            Algorithm::ConsistentHash => match self.selection.hash {
                Some(hash) => self.active.ring().find(hash, |index| {
                    let endpoint = list.get(index)?;
                    Some(self.is_preferred(endpoint) && self.has_room(endpoint))
                }),
                None => self.better_of_two(|endpoint| endpoint.load(self.now)),
            },
        };
        chosen
            .and_then(|index| list.get(index))
            .filter(|endpoint| self.is_preferred(endpoint))
            .or_else(|| self.search(list))
    }

    /// The endpoint that the client names, of whatever zone and priority: those say where clients go that have none yet.
    fn named(&self) -> Option<&'a Rc<Endpoint>> {
        let name = self.selection.affinity?;
        let well = self.all.iter().filter(|it| it.health().is_well());
        let mut usable = self.active.list().iter().chain(well);
        let named = usable.find(|endpoint| endpoint.is_named(&name))?;
        self.is_preferred(named).then_some(named)
    }

    /// For a request that has tried all that seem well: an ejected one, which may be back by now. After an outage of all
    /// of them the one that is not ejected is no better than the others.
    fn last_resort(&self) -> Option<&'a Rc<Endpoint>> {
        let tried = self.selection.tried?;
        let preferred = |endpoint: &&Rc<Endpoint>| self.is_preferred(endpoint);
        if tried.is_empty() || self.active.list().iter().any(|it| self.is_preferred(it)) {
            return None;
        }
        let ejected = self.active.ejected();
        let count = ejected.iter().filter(preferred).count();
        let at = (count > 0).then(|| self.random.below(count))?;
        ejected.iter().filter(preferred).nth(at)
    }

    fn is_preferred(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_untried(self.selection) && endpoint.is_reachable(self.now)
    }

    /// Whether an endpoint has less in flight than its share of all, and somewhat more, allows.
    fn has_room(&self, endpoint: &Endpoint) -> bool {
        let percent = u64::from(self.settings.hash_load_percent);
        if percent == 0 {
            return true;
        }
        let weight = u64::from(endpoint.desc().weight.get());
        let all = u64::from(self.in_flight) + 1;
        let total = self.active.total_weight().max(1);
        // Rounded up, so that there always is room somewhere.
        let bound = (all * weight * percent).div_ceil(total * 100);
        u64::from(endpoint.in_flight()) < bound
    }

    /// Draws two by weight, and takes the one with the lower load.
    fn better_of_two(&self, load: impl Fn(&Endpoint) -> f64) -> Option<usize> {
        let list = self.active.list();
        let a = self.draw_warm(|| self.active.draw(self.random))?;
        let b = self.draw_warm(|| self.active.draw_other(self.random, a))?;
        let (first, second) = (list.get(a)?, list.get(b)?);
        Some(
            match (self.is_preferred(first), self.is_preferred(second)) {
                (true, true) if load(second) < load(first) * self.settings.noticeable() => b,
                (true, _) => a,
                (false, _) => b,
            },
        )
    }

    /// Draws, and draws again where what was drawn begins slowly.
    fn draw_warm(&self, draw: impl Fn() -> usize) -> Option<usize> {
        let mut drawn = draw();
        for _ in 0..REDRAWS {
            let endpoint = self.active.list().get(drawn)?;
            if self.is_warm(endpoint) {
                break;
            }
            drawn = draw();
        }
        Some(drawn)
    }

    /// True by chance for an endpoint that begins slowly, the more likely the longer it is there.
    fn is_warm(&self, endpoint: &Endpoint) -> bool {
        let since = endpoint.health().warm_since();
        if since == 0 || self.settings.slow_start == 0 {
            return true;
        }
        let age = self.at.saturating_sub(since);
        // A tenth at once, so that it is measured at all.
        let share = age.max(self.settings.slow_start / 10);
        share >= self.settings.slow_start || self.random.below_u64(self.settings.slow_start) < share
    }

    /// The next in turn; each as often in a round as its weight says, and spread over it.
    fn next(&self, turn: &mut usize) -> Option<usize> {
        let list = self.active.list();
        for _ in 0..list.len() {
            let index = self.active.turn(*turn);
            *turn = turn.wrapping_add(1);
            let endpoint = list.get(index)?;
            if self.is_preferred(endpoint) && self.is_warm(endpoint) {
                return Some(index);
            }
        }
        None
    }

    /// What was chosen is out of the question: takes any that is not, or else one that was not tried, or else the one
    /// that is back first.
    fn search(&self, list: &'a [Rc<Endpoint>]) -> Option<&'a Rc<Endpoint>> {
        let preferred = |endpoint: &&Rc<Endpoint>| self.is_preferred(endpoint);
        let count = list.iter().filter(preferred).count();
        if count > 0 {
            return list.iter().filter(preferred).nth(self.random.below(count));
        }
        list.iter().min_by_key(|endpoint| {
            (
                !endpoint.is_untried(self.selection),
                endpoint.penalised_until(),
            )
        })
    }
}

/// The latency that a new endpoint is taken to have: the mean of the others, so that it neither draws all traffic nor
/// waits for any.
fn typical_latency(endpoints: &[Rc<Endpoint>]) -> Option<f64> {
    let known: Vec<f64> = endpoints
        .iter()
        .filter_map(|endpoint| endpoint.known_latency())
        .collect();
    if known.is_empty() {
        return None;
    }
    Some(known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests;
