//! Chooses among a service's endpoints: power of two choices by peak EWMA latency.
//!
//! Of two endpoints drawn at random by weight, the one with the lower load is taken, where load is its latency times
//! the requests it has in flight. The latency is a moving average over time that follows a rise at once and a fall
//! slowly ("peak EWMA", as Finagle and Linkerd have it). Drawing two avoids the herd that runs to the one best
//! endpoint when several proxies look at the same figures.

mod endpoint;
mod random;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::time::Instant;

use endpoint::Endpoint;
pub(crate) use endpoint::{EndpointDesc, MeshTarget, Outcome, Pick};
pub(crate) use random::Random;

/// How much lower the second load must be to count: of endpoints that are about equally fast, the one that was drawn
/// first is taken, so that they share the traffic instead of the fastest by a hair getting all of it.
const NOTICEABLE: f64 = 0.6;

/// A service's endpoints as one worker sees them.
#[derive(Debug)]
pub(crate) struct Balancer {
    endpoints: RefCell<Endpoints>,
    random: Random,
}

#[derive(Debug, Default)]
struct Endpoints {
    list: Vec<Rc<Endpoint>>,
    /// Sums of weights up to each endpoint; empty when all weights are equal.
    cumulative_weights: Vec<u64>,
}

impl Balancer {
    /// A balancer over these endpoints.
    pub(crate) fn new(endpoints: &[EndpointDesc]) -> Balancer {
        Balancer::with_seed(endpoints, rand::random())
    }

    /// The same, whose draws are a function of `seed`.
    pub(crate) fn with_seed(endpoints: &[EndpointDesc], seed: u64) -> Balancer {
        let balancer = Balancer {
            endpoints: RefCell::default(),
            random: Random::new(seed),
        };
        balancer.update(endpoints);
        balancer
    }

    /// Takes a new set of endpoints over. Those that are unchanged keep what is known of them; picks of those that
    /// are gone stay valid.
    pub(crate) fn update(&self, endpoints: &[EndpointDesc]) {
        let mut current = self.endpoints.borrow_mut();
        let known: HashMap<&EndpointDesc, &Rc<Endpoint>> = current
            .list
            .iter()
            .map(|endpoint| (&endpoint.desc, endpoint))
            .collect();
        let initial_latency = typical_latency(&current.list);
        let list: Vec<Rc<Endpoint>> = endpoints
            .iter()
            .map(|desc| match known.get(desc) {
                Some(endpoint) => Rc::clone(endpoint),
                None => Rc::new(Endpoint::new(desc.clone(), initial_latency)),
            })
            .collect();
        *current = Endpoints::new(list);
    }

    /// How many endpoints there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.endpoints.borrow().list.len()
    }

    /// Chooses an endpoint; `None` when there is none at all. `avoid`, the one that a previous attempt failed on, and
    /// those that could not be connected to lately are chosen only when there is no other.
    pub(crate) fn pick(&self, avoid: Option<SocketAddr>) -> Option<Pick> {
        let endpoints = self.endpoints.borrow();
        let now = Instant::now();
        let endpoint = match endpoints.list.as_slice() {
            [] => return None,
            [only] => only,
            list => {
                let (a, b) = endpoints.draw_two(&self.random);
                let (a, b) = (list.get(a)?, list.get(b)?);
                match (a.is_preferred(avoid, now), b.is_preferred(avoid, now)) {
                    (true, true) if b.load(now) < a.load(now) * NOTICEABLE => b,
                    (true, _) => a,
                    (false, true) => b,
                    (false, false) => self.search(list, avoid, now)?,
                }
            }
        };
        Some(Pick::new(endpoint.clone(), now))
    }

    /// Both that were drawn are out of the question: takes any that is not, or else the one that is back first.
    fn search<'a>(
        &self,
        list: &'a [Rc<Endpoint>],
        avoid: Option<SocketAddr>,
        now: Instant,
    ) -> Option<&'a Rc<Endpoint>> {
        let preferred: Vec<&Rc<Endpoint>> = list
            .iter()
            .filter(|endpoint| endpoint.is_preferred(avoid, now))
            .collect();
        if preferred.is_empty() {
            return list.iter().min_by_key(|endpoint| {
                (
                    avoid == Some(endpoint.desc.address),
                    endpoint.penalised_until(),
                )
            });
        }
        preferred.get(self.random.below(preferred.len())).copied()
    }
}

impl Endpoints {
    fn new(list: Vec<Rc<Endpoint>>) -> Endpoints {
        let mut weights = list.iter().map(|endpoint| endpoint.desc.weight);
        let first = weights.next();
        let cumulative_weights = if weights.all(|weight| Some(weight) == first) {
            Vec::new()
        } else {
            list.iter()
                .scan(0, |sum, endpoint| {
                    *sum += u64::from(endpoint.desc.weight.get());
                    Some(*sum)
                })
                .collect()
        };
        Endpoints {
            list,
            cumulative_weights,
        }
    }

    /// Draws two places of the list, of at least two, by weight. They are different for equal weights. With
    /// unequal ones they may be the same, which is what keeps a heavy endpoint's share.
    fn draw_two(&self, random: &Random) -> (usize, usize) {
        let a = self.draw(random);
        if self.cumulative_weights.is_empty() {
            let b = random.below(self.list.len() - 1);
            return (a, if b >= a { b + 1 } else { b });
        }
        (a, self.draw(random))
    }

    fn draw(&self, random: &Random) -> usize {
        match self.cumulative_weights.last() {
            None => random.below(self.list.len()),
            Some(total) => {
                let point = random.below_u64(*total);
                self.cumulative_weights.partition_point(|sum| *sum <= point)
            }
        }
    }
}

/// The latency that a new endpoint is taken to have: the mean of the others, so that it neither draws all traffic nor
/// waits for any.
fn typical_latency(list: &[Rc<Endpoint>]) -> Option<f64> {
    let known: Vec<f64> = list
        .iter()
        .filter_map(|endpoint| endpoint.known_latency())
        .collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests;
