//! Which endpoints come into question: made anew when health changes, and only read by a pick.

use std::rc::Rc;

use super::Random;
use super::endpoint::Endpoint;
use super::ring::Ring;
use super::settings::{Algorithm, BalanceSettings};

/// Longest round of a round robin by weights.
const MAX_ROUND: usize = 4096;

/// The endpoints that come into question now.
#[derive(Debug, Default)]
pub(super) struct Active {
    list: Vec<Rc<Endpoint>>,
    /// Sums of weights up to each endpoint; empty when all weights are equal.
    cumulative_weights: Vec<u64>,
    total_weight: u64,
    ring: Ring,
    /// The order of a round, for round robin by weights.
    round: Vec<u16>,
    /// All that are ejected, and have nothing else against them.
    ejected: Vec<Rc<Endpoint>>,
    /// Those of them whose time is over: one request finds out whether they are back.
    probes: Vec<Rc<Endpoint>>,
    /// When time alone changes what is here.
    changes_at: u64,
}

impl Active {
    /// Those of `all` that come into question at a time.
    pub(super) fn new(all: &[Rc<Endpoint>], settings: &BalanceSettings, at: u64) -> Self {
        let list = candidates(all, settings);
        let mut weights = list.iter().map(|endpoint| endpoint.desc().weight);
        let first = weights.next();
        let cumulative_weights: Vec<u64> = if weights.all(|weight| Some(weight) == first) {
            Vec::new()
        } else {
            list.iter()
                .scan(0, |sum, endpoint| {
                    *sum += u64::from(endpoint.desc().weight.get());
                    Some(*sum)
                })
                .collect()
        };
        let ring = match settings.algorithm {
            Algorithm::ConsistentHash => Ring::new(list.iter().map(|it| it.desc())),
            _ => Ring::default(),
        };
        let round = match settings.algorithm {
            Algorithm::RoundRobin if !cumulative_weights.is_empty() => round(&list),
            _ => Vec::new(),
        };
        let ejected = || {
            let passes = |endpoint: &&Rc<Endpoint>| endpoint.health().passes_checks();
            all.iter()
                .filter(passes)
                .filter(|endpoint| endpoint.health().is_ejected())
        };
        let due = |endpoint: &&Rc<Endpoint>| endpoint.health().ejected_until() <= at;
        let waiting = ejected().filter(|endpoint| !due(endpoint));
        Self {
            total_weight: weight_of(list.iter()),
            cumulative_weights,
            ring,
            round,
            ejected: ejected().cloned().collect(),
            probes: ejected().filter(due).cloned().collect(),
            changes_at: waiting
                .map(|endpoint| endpoint.health().ejected_until())
                .min()
                .unwrap_or(u64::MAX),
            list,
        }
    }

    pub(super) fn list(&self) -> &[Rc<Endpoint>] {
        &self.list
    }

    pub(super) fn ejected(&self) -> &[Rc<Endpoint>] {
        &self.ejected
    }

    pub(super) fn probes(&self) -> &[Rc<Endpoint>] {
        &self.probes
    }

    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn changes_at(&self) -> u64 {
        self.changes_at
    }

    pub(super) fn total_weight(&self) -> u64 {
        self.total_weight
    }

    /// A place in the list, by weight.
    pub(super) fn draw(&self, random: &Random) -> usize {
        match self.cumulative_weights.last() {
            None => random.below(self.list.len()),
            Some(total) => {
                let drawn = random.below_u64(*total);
                self.cumulative_weights.partition_point(|sum| *sum <= drawn)
            }
        }
    }

    /// Another place than `a`, of a list of at least two. With unequal weights it may be the same, which is what
    /// keeps a heavy endpoint's share.
    pub(super) fn draw_other(&self, random: &Random, a: usize) -> usize {
        if !self.cumulative_weights.is_empty() {
            return self.draw(random);
        }
        let b = random.below(self.list.len() - 1);
        if b >= a { b + 1 } else { b }
    }

    /// Whose turn it is.
    pub(super) fn turn(&self, turn: usize) -> usize {
        match self.round.len() {
            0 => turn % self.list.len().max(1),
            length => self
                .round
                .get(turn % length)
                .copied()
                .map_or(0, usize::from),
        }
    }
}

/// By health, then priority, then zone.
fn candidates(all: &[Rc<Endpoint>], settings: &BalanceSettings) -> Vec<Rc<Endpoint>> {
    let well = |endpoint: &&Rc<Endpoint>| endpoint.health().is_well();
    let count = all.iter().filter(well).count();
    // In a panic health says nothing: better to try all than to drown those few that seem well.
    let panic = count == 0 || count * 100 < all.len() * settings.panic_percent as usize;
    let usable = |endpoint: &&Rc<Endpoint>| panic || well(endpoint);
    let enough = |part: u64, of: u64| {
        part > 0 && part * 100 >= of.saturating_mul(u64::from(settings.failover_percent))
    };
    let mut levels: Vec<u32> = all.iter().map(|it| it.desc().priority).collect();
    levels.sort_unstable();
    levels.dedup();
    let of_level = |level: u32| all.iter().filter(move |it| it.desc().priority == level);
    let level = levels.iter().copied().find(|level| {
        enough(
            weight_of(of_level(*level).filter(usable)),
            weight_of(of_level(*level)),
        )
    });
    let in_level = |it: &&Rc<Endpoint>| level.is_none_or(|level| it.desc().priority == level);
    if let Some(zone) = settings.zone.as_deref() {
        let of_zone = || {
            all.iter()
                .filter(in_level)
                .filter(|it| *it.desc().zone == *zone)
        };
        if enough(weight_of(of_zone().filter(usable)), weight_of(of_zone())) {
            return of_zone().filter(usable).cloned().collect();
        }
    }
    all.iter()
        .filter(in_level)
        .filter(usable)
        .cloned()
        .collect()
}

fn weight_of<'a>(endpoints: impl Iterator<Item = &'a Rc<Endpoint>>) -> u64 {
    endpoints.map(|it| u64::from(it.desc().weight.get())).sum()
}

/// The order of one round in which each comes as often as its weight says, spread over the round (smooth weighted
/// round robin, as nginx has it). Weights are scaled down where the round would get too long.
fn round(list: &[Rc<Endpoint>]) -> Vec<u16> {
    let list = list.get(..list.len().min(MAX_ROUND)).unwrap_or(list);
    let weights: Vec<u64> = list
        .iter()
        .map(|it| it.desc().weight.get().into())
        .collect();
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum: u64 = weights.iter().map(|weight| weight / divisor).sum();
    let room = (MAX_ROUND - list.len()).max(1) as u64;
    let scaled = |weight: u64| {
        let weight = weight / divisor;
        match sum <= MAX_ROUND as u64 {
            true => weight,
            false => (weight * room / sum).max(1),
        }
    };
    let weights: Vec<i64> = weights
        .into_iter()
        .map(|weight| i64::try_from(scaled(weight)).unwrap_or(1))
        .collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    let mut order = Vec::new();
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        let Some((index, most)) = credit.iter_mut().enumerate().max_by_key(|(index, credit)| {
            // The first of equals.
            (**credit, std::cmp::Reverse(*index))
        }) else {
            break;
        };
        *most -= total;
        order.push(u16::try_from(index).unwrap_or_default());
    }
    order
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
