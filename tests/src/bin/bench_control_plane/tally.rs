//! What happened to the proxies, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// What is counted, shared by all proxies.
#[derive(Debug)]
pub(crate) struct Tally(watch::Sender<Counts>);

/// What was counted since the last [`Tally::begin`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Streams that are open.
    pub(crate) streams: usize,
    /// When each attempt to reach the control plane began.
    attempts: Vec<Instant>,
    /// When each stream was opened.
    opened: Vec<Instant>,
    /// When each proxy heard of a list of bans, and of which.
    bans: Vec<(Instant, u64)>,
    /// The same of the trust bundle.
    bundles: Vec<(Instant, u64)>,
    /// What failed, by the reason's word.
    failures: BTreeMap<&'static str, usize>,
}

/// How long the proxies took for something.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spread {
    /// Half of them.
    pub(crate) median: Duration,
    /// All of them.
    pub(crate) last: Duration,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Counts::default()))
    }

    /// Forgets everything but the number of open streams.
    pub(crate) fn begin(&self) {
        self.0.send_modify(|counts| {
            *counts = Counts {
                streams: counts.streams,
                ..Counts::default()
            };
        });
    }

    pub(crate) fn attempt(&self) {
        self.0
            .send_modify(|counts| counts.attempts.push(Instant::now()));
    }

    pub(crate) fn failed(&self, reason: &'static str) {
        self.0
            .send_modify(|counts| *counts.failures.entry(reason).or_default() += 1);
    }

    pub(crate) fn opened(&self) {
        self.0.send_modify(|counts| {
            counts.streams += 1;
            counts.opened.push(Instant::now());
        });
    }

    pub(crate) fn closed(&self) {
        self.0.send_modify(|counts| counts.streams -= 1);
    }

    pub(crate) fn bans(&self, version: u64) {
        self.0
            .send_modify(|counts| counts.bans.push((Instant::now(), version)));
    }

    pub(crate) fn bundle(&self, sequence: u64) {
        self.0
            .send_modify(|counts| counts.bundles.push((Instant::now(), sequence)));
    }

    /// Waits until something is true, at most for a time; gives back whether it is.
    pub(crate) async fn wait(&self, time: Duration, done: impl FnMut(&Counts) -> bool) -> bool {
        let mut counts = self.0.subscribe();
        tokio::time::timeout(time, counts.wait_for(done))
            .await
            .is_ok_and(|counts| counts.is_ok())
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Counts) -> T) -> T {
        read(&self.0.borrow())
    }
}

impl Counts {
    /// How many have heard of this list of bans, or a later one.
    pub(crate) fn with_bans(&self, version: u64) -> usize {
        self.bans.iter().filter(|(_, v)| *v >= version).count()
    }

    /// How many have heard of this trust bundle, or a later one.
    pub(crate) fn with_bundle(&self, sequence: u64) -> usize {
        self.bundles.iter().filter(|(_, s)| *s >= sequence).count()
    }

    /// How long it took until streams were opened.
    pub(crate) fn opened_since(&self, began: Instant) -> Spread {
        spread(began, self.opened.iter().copied())
    }

    /// How long it took until the proxies knew these bans.
    pub(crate) fn bans_since(&self, began: Instant, version: u64) -> Spread {
        let arrived = self.bans.iter().filter(|(_, v)| *v >= version);
        spread(began, arrived.map(|(at, _)| *at))
    }

    /// How long it took until the proxies knew this bundle.
    pub(crate) fn bundle_since(&self, began: Instant, sequence: u64) -> Spread {
        let arrived = self.bundles.iter().filter(|(_, s)| *s >= sequence);
        spread(began, arrived.map(|(at, _)| *at))
    }

    /// Attempts since a time, and the most of them within one second.
    pub(crate) fn attempts_since(&self, began: Instant) -> (usize, usize) {
        let mut since = self.attempts.clone();
        since.retain(|at| *at >= began);
        (since.len(), most_in_one_second(since))
    }

    /// What failed, in words.
    pub(crate) fn failures(&self) -> String {
        let failures = self.failures.iter();
        let words: Vec<_> = failures
            .map(|(why, number)| format!("{number} {why}"))
            .collect();
        words.join(", ")
    }
}

fn spread(began: Instant, arrived: impl Iterator<Item = Instant>) -> Spread {
    let mut times: Vec<Duration> = arrived
        .map(|at| at.saturating_duration_since(began))
        .collect();
    times.sort();
    Spread {
        median: times.get(times.len() / 2).copied().unwrap_or_default(),
        last: times.last().copied().unwrap_or_default(),
    }
}

fn most_in_one_second(mut times: Vec<Instant>) -> usize {
    times.sort();
    let mut first = 0;
    let mut most = 0;
    for (last, at) in times.iter().enumerate() {
        while times[first] + Duration::from_secs(1) <= *at {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_is_found_wherever_it_begins() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(most_in_one_second(vec![]), 0);
        let times = [0, 900, 1000, 1500, 1899, 1900, 5000].map(at).to_vec();
        assert_eq!(most_in_one_second(times), 4);
    }

    #[test]
    fn a_spread_has_the_median_and_the_last() {
        let start = Instant::now();
        let arrived = [30, 10, 20].map(|ms| start + Duration::from_millis(ms));
        let spread = spread(start, arrived.into_iter());
        assert_eq!(spread.median, Duration::from_millis(20));
        assert_eq!(spread.last, Duration::from_millis(30));
    }
}
