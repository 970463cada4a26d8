//! Token buckets, as the generic cell rate algorithm has them: of each bucket only the time is kept at which it will be
//! full again, in one atomic.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Sets of a table of buckets, and buckets of a set.
const SETS: usize = 1024;
const WAYS: usize = 4;

/// How fast buckets fill, and how much they hold. In nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// The time in which one token comes.
    interval: u64,
    /// The time in which an empty bucket fills.
    depth: u64,
}

impl Rate {
    /// So many tokens in each time, and so many at once.
    pub(super) fn new(tokens: u32, per: Duration, burst: u32) -> Self {
        let nanoseconds = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (nanoseconds / u64::from(tokens.max(1))).max(1);
        Self {
            interval,
            depth: interval.saturating_mul(u64::from(burst.max(1))),
        }
    }
}

/// One bucket. The number is the time at which it is full again.
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

impl Bucket {
    /// Takes a token at a time since a fixed beginning, or says how long it takes until there is one.
    pub(super) fn take(&self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut full_at = self.0.load(Relaxed);
        loop {
            let after = full_at.max(now).saturating_add(rate.interval);
            let debt = after.saturating_sub(now);
            if debt > rate.depth {
                return Err(Duration::from_nanos(debt - rate.depth));
            }
            match self
                .0
                .compare_exchange_weak(full_at, after, Relaxed, Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }
}

/// Buckets by key, as many as there are places: a key that finds none takes that of the key whose bucket is full
/// first, which is the one that was used longest ago or least. Memory does not grow with the number of keys.
///
/// Keys are told apart by 64 bits of a hash under a secret: nobody can choose two that meet.
#[derive(Debug)]
pub(super) struct Table {
    sets: Box<[[Slot; WAYS]]>,
}

#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    bucket: Bucket,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            sets: (0..SETS).map(|_| Default::default()).collect(),
        }
    }
}

impl Table {
    /// Takes a token of a key's bucket.
    pub(super) fn take(&self, key: u64, rate: Rate, now: Duration) -> Result<(), Duration> {
        // 0 is no key.
        let key = key.max(1);
        let Some(set) = self.sets.get(key as usize % SETS) else {
            return Ok(());
        };
        let known = set.iter().find(|slot| slot.key.load(Relaxed) == key);
        let slot = known.or_else(|| {
            let oldest = set.iter().min_by_key(|slot| slot.bucket.0.load(Relaxed))?;
            // Should another worker take the place at the same time, one of the two keys begins anew once.
            oldest.key.store(key, Relaxed);
            oldest.bucket.0.store(0, Relaxed);
            Some(oldest)
        });
        slot.map_or(Ok(()), |slot| slot.bucket.take(rate, now))
    }
}
