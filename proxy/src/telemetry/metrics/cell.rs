//! The values behind series: atomics that are added to on the data path and read by a scrape.

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// A value of which each worker has its own, so that workers do not contend for a cache line; a
/// scrape shows their sum.
pub(crate) trait Cell: Debug + Default + Send + Sync + 'static {
    /// Several cells added up.
    type Sum: Default + Send;
    /// How the series is announced.
    const TYPE: MetricType;

    /// Adds this cell to the sum.
    fn add_to(&self, sum: &mut Self::Sum);

    /// Writes the sum.
    fn encode(sum: &Self::Sum, encoder: &mut MetricEncoder<'_>) -> fmt::Result;
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The present value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Cell for Counter {
    type Sum = u64;
    const TYPE: MetricType = MetricType::Counter;

    fn add_to(&self, sum: &mut u64) {
        *sum = sum.wrapping_add(self.get());
    }

    fn encode(sum: &u64, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, u64, u64>(sum, None)
    }
}

/// A number that grows and shrinks.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub(crate) fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Replaces the value.
    pub(crate) fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The present value.
    pub(crate) fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Cell for Gauge {
    type Sum = i64;
    const TYPE: MetricType = MetricType::Gauge;

    fn add_to(&self, sum: &mut i64) {
        *sum = sum.wrapping_add(self.get());
    }

    fn encode(sum: &i64, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(sum)
    }
}

/// The upper bounds of a histogram's buckets.
pub(crate) trait Buckets: Debug + Default + Send + Sync + 'static {
    /// Bounds in seconds, ascending, without the infinite one.
    const SECONDS: &'static [f64];
    /// The same in nanoseconds.
    const NANOSECONDS: &'static [u64];
}

macro_rules! buckets {
    ($(#[$doc:meta])* $name:ident: $($seconds:literal),+) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $name;

        impl Buckets for $name {
            const SECONDS: &'static [f64] = &[$($seconds),+];
            const NANOSECONDS: &'static [u64] = &[$(($seconds * 1e9) as u64),+];
        }
    };
}

buckets! {
    /// For what a caller waits for: 0.5 ms to 60 s.
    Latency: 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0
}

buckets! {
    /// For how long connections last: 10 ms to a day.
    Lifetime: 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0
}

/// Durations counted by bucket.
///
/// Atomics in place of `prometheus_client`'s own histogram, which takes a lock per observation.
#[derive(Debug)]
pub(crate) struct Histogram<B> {
    /// One count for each bound and one for what lies beyond.
    counts: Box<[AtomicU64]>,
    sum_nanoseconds: AtomicU64,
    bounds: PhantomData<B>,
}

impl<B: Buckets> Default for Histogram<B> {
    fn default() -> Self {
        Self {
            counts: (0..=B::SECONDS.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_nanoseconds: AtomicU64::new(0),
            bounds: PhantomData,
        }
    }
}

impl<B: Buckets> Histogram<B> {
    /// Counts one duration.
    pub(crate) fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = B::NANOSECONDS
            .iter()
            .take_while(|bound| nanoseconds > **bound)
            .count();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum_nanoseconds.fetch_add(nanoseconds, Relaxed);
    }
}

/// Several histograms with the same bounds added up.
#[derive(Debug, Default)]
pub(crate) struct HistogramSum {
    counts: Vec<u64>,
    sum_seconds: f64,
}

impl<B: Buckets> Cell for Histogram<B> {
    type Sum = HistogramSum;
    const TYPE: MetricType = MetricType::Histogram;

    fn add_to(&self, sum: &mut HistogramSum) {
        sum.counts.resize(self.counts.len(), 0);
        for (total, count) in sum.counts.iter_mut().zip(&self.counts) {
            *total = total.wrapping_add(count.load(Relaxed));
        }
        sum.sum_seconds += Duration::from_nanos(self.sum_nanoseconds.load(Relaxed)).as_secs_f64();
    }

    fn encode(sum: &HistogramSum, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let bounds = B::SECONDS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(sum.counts.iter().copied()).collect();
        let count = sum.counts.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(sum.sum_seconds, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts_after(observations: &[Duration]) -> Vec<u64> {
        let histogram = Histogram::<Latency>::default();
        for duration in observations {
            histogram.observe(*duration);
        }
        let mut sum = HistogramSum::default();
        histogram.add_to(&mut sum);
        sum.counts
    }

    #[test]
    fn a_duration_on_a_bound_is_counted_below_it() {
        let last = Latency::SECONDS.len();
        for (bucket, seconds) in Latency::SECONDS.iter().enumerate() {
            let bound = Duration::from_secs_f64(*seconds);
            assert_eq!(counts_after(&[bound])[bucket], 1, "{seconds} s");
            let above = bound + Duration::from_nanos(1);
            assert_eq!(
                counts_after(&[above])[bucket + 1],
                1,
                "just above {seconds} s"
            );
        }
        assert_eq!(counts_after(&[Duration::MAX])[last], 1);
        assert_eq!(counts_after(&[Duration::ZERO])[0], 1);
    }

    #[test]
    fn the_cells_of_workers_are_added_up() {
        let (first, second) = (
            Histogram::<Lifetime>::default(),
            Histogram::<Lifetime>::default(),
        );
        first.observe(Duration::from_secs(2));
        second.observe(Duration::from_secs(3));
        let mut sum = HistogramSum::default();
        first.add_to(&mut sum);
        second.add_to(&mut sum);
        assert_eq!(sum.counts.iter().sum::<u64>(), 2);
        assert!((sum.sum_seconds - 5.0).abs() < 1e-9);
    }
}
