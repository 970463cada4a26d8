//! Families of series whose number is bounded.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

use super::cell::{Cell, Counter};

/// The labels of a family.
pub(crate) trait Labels:
    Clone + Debug + EncodeLabelSet + Hash + Ord + Send + Sync + 'static
{
    /// The labels under which series beyond the bound are counted. The values that they may take
    /// must be few, whatever the labels are.
    fn overflow(&self) -> Self;
}

/// Series by label, at most as many as the bound says; what comes after is counted together under
/// the labels' overflow values, and said by `sidewind_metric_series_overflow_total`.
#[derive(Debug)]
pub(crate) struct Family<L, C> {
    inner: Arc<Inner<L, C>>,
}

#[derive(Debug)]
struct Inner<L, C> {
    max_series: usize,
    overflowed: Arc<Counter>,
    series: Mutex<HashMap<L, Vec<Shard<C>>>>,
}

/// One worker's part of a series.
#[derive(Debug)]
struct Shard<C> {
    worker: usize,
    cell: Arc<C>,
}

impl<L, C> Clone for Family<L, C> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<L: Labels, C: Cell> Family<L, C> {
    /// An empty family; `overflowed` counts the look-ups that the bound turned away.
    pub(super) fn new(max_series: usize, overflowed: Arc<Counter>) -> Self {
        let series = Mutex::new(HashMap::new());
        Self {
            inner: Arc::new(Inner {
                max_series,
                overflowed,
                series,
            }),
        }
    }

    /// The cell of one worker in the series with these labels. To be kept by the caller: the
    /// look-up takes a lock, adding to the cell does not.
    pub(super) fn cell(&self, worker: usize, labels: &L) -> Arc<C> {
        let mut series = self
            .inner
            .series
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(shards) = series.get_mut(labels) {
            return shard_of(shards, worker);
        }
        let mut labels = labels.clone();
        if series.len() >= self.inner.max_series {
            self.inner.overflowed.inc();
            labels = labels.overflow();
        }
        shard_of(series.entry(labels).or_default(), worker)
    }

    /// Every series with the sum over workers, ordered by labels.
    fn snapshot(&self) -> Vec<(L, C::Sum)> {
        let series = self
            .inner
            .series
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut sums: Vec<(L, C::Sum)> = series
            .iter()
            .map(|(labels, shards)| {
                let mut sum = C::Sum::default();
                for shard in shards {
                    shard.cell.add_to(&mut sum);
                }
                (labels.clone(), sum)
            })
            .collect();
        drop(series);
        sums.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        sums
    }
}

fn shard_of<C: Cell>(shards: &mut Vec<Shard<C>>, worker: usize) -> Arc<C> {
    if let Some(shard) = shards.iter().find(|shard| shard.worker == worker) {
        return Arc::clone(&shard.cell);
    }
    let cell = Arc::new(C::default());
    shards.push(Shard {
        worker,
        cell: Arc::clone(&cell),
    });
    cell
}

impl<L: Labels, C: Cell> EncodeMetric for Family<L, C> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, sum) in self.snapshot() {
            C::encode(&sum, &mut encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        C::TYPE
    }
}

/// A metric without labels.
#[derive(Debug)]
pub(super) struct Single<C>(pub(super) Arc<C>);

impl<C: Cell> EncodeMetric for Single<C> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut sum = C::Sum::default();
        self.0.add_to(&mut sum);
        C::encode(&sum, &mut encoder)
    }

    fn metric_type(&self) -> MetricType {
        C::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    struct Name(String);

    impl EncodeLabelSet for Name {
        fn encode(
            &self,
            encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
        ) -> fmt::Result {
            [("name", self.0.as_str())].encode(encoder)
        }
    }

    impl Labels for Name {
        fn overflow(&self) -> Self {
            Self("overflow".to_owned())
        }
    }

    #[test]
    fn series_beyond_the_bound_are_counted_together() {
        let overflowed = Arc::new(Counter::default());
        let family = Family::<Name, Counter>::new(10, Arc::clone(&overflowed));
        for number in 0..1_000 {
            family.cell(0, &Name(number.to_string())).inc();
        }
        let snapshot = family.snapshot();
        assert_eq!(snapshot.len(), 11);
        let (_, sum) = snapshot
            .iter()
            .find(|(name, _)| name.0 == "overflow")
            .unwrap();
        assert_eq!(*sum, 990);
        assert_eq!(overflowed.get(), 990);
        family.cell(0, &Name("3".to_owned())).inc();
        assert_eq!(overflowed.get(), 990, "a series that is there stays itself");
    }

    #[test]
    fn each_worker_has_a_cell_of_its_own_and_a_scrape_adds_them_up() {
        let family = Family::<Name, Counter>::new(10, Arc::default());
        let name = Name("a".to_owned());
        let (first, second) = (family.cell(0, &name), family.cell(1, &name));
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&first, &family.cell(0, &name)));
        first.add(2);
        second.add(3);
        assert_eq!(family.snapshot(), [(name, 5)]);
    }
}
