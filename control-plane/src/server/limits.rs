//! How often somebody may ask: token buckets in a table of bounded size.
//!
//! Before authentication a source is known by its address alone, and hundreds of proxies may stand behind
//! one; after it, by the registration that its certificate came of. A SPIFFE ID would be the wrong name
//! for that: a thousand pods of one Deployment share it, while each proxy has a registration of its own
//! from its attestation on, through all its renewals.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What `sidewind serve` allows in one second. Five times as much may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Attestations from one address (IPv4) or /64 network (IPv6); twice as many handshakes without a
    /// certificate, so that who asks too much is still told why.
    pub attest_per_second: NonZeroU32,
    /// Certificates signed for one registration.
    pub sign_per_second: NonZeroU32,
}

/// Attestations in one second when nothing else is said: 500 sidecars behind one address that start at
/// once are within what may come at once, and a stranger takes a tenth of what a core signs.
pub const ATTEST_PER_SECOND: NonZeroU32 = NonZeroU32::new(200).unwrap();
/// Certificates in one second for one registration. A proxy renews once in a quarter of an hour.
pub const SIGN_PER_SECOND: NonZeroU32 = NonZeroU32::new(100).unwrap();

impl Default for Limits {
    fn default() -> Self {
        Self {
            attest_per_second: ATTEST_PER_SECOND,
            sign_per_second: SIGN_PER_SECOND,
        }
    }
}

/// How many seconds' worth may come at once.
const BURST_SECONDS: f64 = 5.0;
/// Most sources that are remembered, of which one takes about a hundred bytes. Who is forgotten begins
/// with a full bucket.
const MAX_SOURCES: usize = 65_536;

/// Token buckets by who asks.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    per_second: f64,
    burst: f64,
    sources: Mutex<Sources<K>>,
}

/// The newer half and the older half of the table. What is asked for moves to the newer; when that is
/// full, the older is dropped.
#[derive(Debug)]
struct Sources<K> {
    newer: HashMap<K, Bucket>,
    older: HashMap<K, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets that fill at a rate.
    pub(super) fn new(per_second: f64) -> Self {
        Self {
            per_second,
            burst: per_second * BURST_SECONDS,
            sources: Mutex::new(Sources {
                newer: HashMap::new(),
                older: HashMap::new(),
            }),
        }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// How long it takes until there is one, when there is none.
    pub(super) fn take(&self, source: K) -> Result<(), Duration> {
        self.with(source, |bucket| {
            let allowed = self.wait(bucket);
            if allowed.is_ok() {
                bucket.left -= 1.0;
            }
            allowed
        })
    }

    /// Whether there is a token, which stays.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(super) fn check(&self, source: K) -> Result<(), Duration> {
        self.with(source, |bucket| self.wait(bucket))
    }

    /// Takes a token that may not be there: what was begun while there were some is paid later. Debt is
    /// bounded by what may come at once.
    pub(super) fn charge(&self, source: K) {
        self.with(source, |bucket| {
            bucket.left = (bucket.left - 1.0).max(-self.burst);
        });
    }

    fn wait(&self, bucket: &Bucket) -> Result<(), Duration> {
        if bucket.left >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64(
            (1.0 - bucket.left) / self.per_second,
        ))
    }

    /// Hands on the bucket of a source, filled up to now.
    fn with<T>(&self, source: K, act: impl FnOnce(&mut Bucket) -> T) -> T {
        let now = Instant::now();
        let mut sources = self.sources();
        let mut bucket = sources.take(&source).unwrap_or(Bucket {
            left: self.burst,
            at: now,
        });
        let earned = now.duration_since(bucket.at).as_secs_f64() * self.per_second;
        bucket.left = (bucket.left + earned).min(self.burst);
        bucket.at = now;
        let result = act(&mut bucket);
        sources.put(source, bucket);
        result
    }

    fn sources(&self) -> MutexGuard<'_, Sources<K>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Sources<K> {
    fn take(&mut self, source: &K) -> Option<Bucket> {
        self.newer
            .remove(source)
            .or_else(|| self.older.remove(source))
    }

    fn put(&mut self, source: K, bucket: Bucket) {
        if self.newer.len() >= MAX_SOURCES / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(source, bucket);
    }
}

/// What an address is counted under: an IPv4 address itself, an IPv6 address's /64 network, since whoever
/// has one of those has all of it.
pub(super) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(buckets: &Buckets<IpAddr>, address: &str, times: usize) -> usize {
        let source = source(address.parse().unwrap());
        (0..times).filter(|_| buckets.take(source).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_burst_and_then_its_rate() {
        let buckets = Buckets::new(200.0);
        assert_eq!(taken(&buckets, "192.0.2.1", 1001), 1000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(taken(&buckets, "192.0.2.1", 1001), 200);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(&buckets, "192.0.2.1", 1001), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_is_told_when_to_come_back() {
        let buckets = Buckets::new(2.0);
        assert_eq!(taken(&buckets, "192.0.2.1", 10), 10);
        let address = "192.0.2.1".parse().unwrap();
        let wait = buckets.take(address).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        tokio::time::advance(wait).await;
        assert_eq!(buckets.check(address), Ok(()));
        assert_eq!(buckets.take(address), Ok(()));
        assert!(buckets.check(address).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_counted_apart_and_a_64_network_together() {
        let buckets = Buckets::new(1.0);
        assert_eq!(taken(&buckets, "192.0.2.1", 9), 5);
        assert_eq!(taken(&buckets, "192.0.2.2", 9), 5);
        assert_eq!(taken(&buckets, "::ffff:192.0.2.2", 9), 0);
        assert_eq!(taken(&buckets, "2001:db8:0:1::1", 9), 5);
        assert_eq!(taken(&buckets, "2001:db8:0:1:ffff::2", 9), 0);
        assert_eq!(taken(&buckets, "2001:db8:0:2::1", 9), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn debt_is_paid_before_more_is_given_and_is_bounded() {
        let buckets = Buckets::new(1.0);
        for _ in 0..1000 {
            buckets.charge("a");
        }
        assert_eq!(buckets.check("a"), Err(Duration::from_secs(6)));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(buckets.check("a"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets_who_has_not_asked_for_longest() {
        let buckets = Buckets::new(1.0);
        let busy = usize::MAX;
        while buckets.take(busy).is_ok() {}
        for other in 0..3 * MAX_SOURCES {
            assert_eq!(buckets.take(other), Ok(()));
            if other % 1000 == 0 {
                assert!(buckets.take(busy).is_err(), "{other}");
            }
        }
        let sources = buckets.sources();
        let known = sources.newer.len() + sources.older.len();
        assert!(known <= MAX_SOURCES, "{known}");
    }
}
