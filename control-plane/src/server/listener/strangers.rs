//! The places of connections whose client has not shown a certificate (yet).
//!
//! Every connection begins as a stranger's, and what makes it another's is a handshake. So if strangers who stay could
//! fill these places, nobody would get in. Whoever comes when all are taken therefore gets the place of the stranger that
//! has been there for longest, of those that have had their time: a moment to begin a handshake, a second to finish it and
//! to call. Whoever wants to keep others out has to take thousands of places in that time, again and again. An attestation
//! that is under way or was granted keeps its place, since breaking it off would use a join token up for nothing; and when
//! a whole fleet comes at once, those who are served stay and the rest are turned away to come again. No address has more
//! than its share, and what comes from one that has all of it displaces another of the same address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::Future as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Most of them at once.
const MAX: usize = 4_096;
/// Most of them at once from one source.
const MAX_OF_SOURCE: usize = MAX / 4;

/// The time to begin a handshake.
const SILENCE: Duration = Duration::from_millis(100);
/// The time to finish it and to call.
const TIME: Duration = Duration::from_secs(1);

/// The places that are taken.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_age: BTreeMap<u64, Taken>,
    by_source: HashMap<IpAddr, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Taken {
    source: IpAddr,
    since: Instant,
    doing: Arc<Doing>,
    /// Whose end is heard of by who has the place.
    _hold: oneshot::Sender<Infallible>,
}

/// What a stranger is at.
#[derive(Debug, Default)]
pub(crate) struct Doing {
    has_begun: AtomicBool,
    /// Attestations that are under way or were granted.
    attestations: AtomicUsize,
}

impl Doing {
    /// The handshake has begun.
    pub(super) fn begin(&self) {
        self.has_begun.store(true, Relaxed);
    }

    /// An attestation begins.
    pub(crate) fn attest(self: &Arc<Self>) -> Attestation {
        self.attestations.fetch_add(1, Relaxed);
        Attestation(Some(Arc::clone(self)))
    }
}

/// An attestation, until it is dropped.
#[derive(Debug)]
pub(crate) struct Attestation(Option<Arc<Doing>>);

impl Attestation {
    /// It was granted: its answer is to get through.
    pub(crate) fn granted(mut self) {
        self.0 = None;
    }
}

impl Drop for Attestation {
    fn drop(&mut self) {
        if let Some(doing) = &self.0 {
            doing.attestations.fetch_sub(1, Relaxed);
        }
    }
}

/// A stranger's place, until it is dropped or displaced.
#[derive(Debug)]
pub(super) struct Stranger {
    number: u64,
    doing: Arc<Doing>,
    strangers: Arc<Strangers>,
    held: oneshot::Receiver<Infallible>,
    displaced: bool,
}

impl Strangers {
    /// A place for somebody from a source, which may be another's; none while all are held by those whose time has not
    /// passed.
    pub(super) fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Stranger> {
        let (hold, held) = oneshot::channel();
        let mut table = self.table();
        let own = table.by_source.get(&source);
        if let Some(own) = own.filter(|own| own.len() >= MAX_OF_SOURCE) {
            let goes = table.oldest(own.iter())?;
            table.remove(goes);
        } else if table.by_age.len() >= MAX {
            let goes = table.oldest(table.by_age.keys())?;
            table.remove(goes);
        }
        let number = table.next;
        table.next += 1;
        let doing = Arc::<Doing>::default();
        let taken = Taken {
            source,
            since: Instant::now(),
            doing: Arc::clone(&doing),
            _hold: hold,
        };
        table.by_age.insert(number, taken);
        table.by_source.entry(source).or_default().insert(number);
        Some(Stranger {
            number,
            doing,
            strangers: Arc::clone(self),
            held,
            displaced: false,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn may_go(&self) -> bool {
        let time = match self.doing.has_begun.load(Relaxed) {
            true => TIME,
            false => SILENCE,
        };
        self.doing.attestations.load(Relaxed) == 0 && self.since.elapsed() >= time
    }
}

impl Table {
    /// The oldest of some, in the order of their age, whose time has passed.
    fn oldest<'a>(&self, mut numbers: impl Iterator<Item = &'a u64>) -> Option<u64> {
        let may_go = |number: &&u64| self.by_age.get(*number).is_some_and(Taken::may_go);
        numbers.find(may_go).copied()
    }

    fn remove(&mut self, number: u64) {
        let Some(taken) = self.by_age.remove(&number) else {
            return;
        };
        if let Some(own) = self.by_source.get_mut(&taken.source) {
            own.remove(&number);
            if own.is_empty() {
                self.by_source.remove(&taken.source);
            }
        }
    }
}

impl Stranger {
    /// What it is at, for those who serve its calls.
    pub(super) fn doing(&self) -> Arc<Doing> {
        Arc::clone(&self.doing)
    }

    /// Ready when somebody else has the place.
    pub(super) fn poll_displaced(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.displaced |= !self.displaced && Pin::new(&mut self.held).poll(context).is_ready();
        if self.displaced {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.strangers.table().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: usize) -> IpAddr {
        IpAddr::V4(u32::try_from(number).unwrap().into())
    }

    fn is_displaced(stranger: &mut Stranger) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        stranger.poll_displaced(&mut context).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_gets_the_place_of_the_oldest_and_nobody_is_kept_out() {
        let strangers = Arc::new(Strangers::default());
        let enter = |it| strangers.enter(source(it));
        let mut all: Vec<_> = (0..MAX).filter_map(enter).collect();
        assert!(enter(MAX).is_none(), "all have just come");
        tokio::time::advance(SILENCE).await;
        assert!(!all.iter_mut().any(is_displaced));
        // A place that is given back displaces nobody.
        drop(all.remove(10));
        all.extend(enter(MAX));
        assert!(!all.iter_mut().any(is_displaced));
        for oldest in 0..3 {
            let mut new = enter(MAX + 1 + oldest).unwrap();
            assert!(!is_displaced(&mut new));
            all.push(new);
            let displaced = all
                .iter_mut()
                .filter_map(|it| is_displaced(it).then_some(()));
            assert_eq!(displaced.count(), oldest + 1);
            assert!(is_displaced(&mut all[oldest]));
        }
        assert_eq!(strangers.table().by_age.len(), MAX);
        drop(all);
        let table = strangers.table();
        assert!(table.by_age.is_empty() && table.by_source.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_with_all_of_its_share_displaces_its_own() {
        let strangers = Arc::new(Strangers::default());
        let mut other = strangers.enter(source(1)).unwrap();
        let own = (0..MAX_OF_SOURCE).filter_map(|_| strangers.enter(source(2)));
        let mut own: Vec<_> = own.collect();
        tokio::time::advance(SILENCE).await;
        assert!(!own.iter_mut().any(is_displaced));
        own.extend(strangers.enter(source(2)));
        assert!(is_displaced(&mut own[0]) && !is_displaced(&mut own[1]));
        assert!(!is_displaced(&mut other));
        assert_eq!(strangers.table().by_source[&source(2)].len(), MAX_OF_SOURCE);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_served_stays_and_the_rest_of_a_fleet_comes_again() {
        let strangers = Arc::new(Strangers::default());
        let enter = || strangers.enter(source(1));
        let mut fleet: Vec<_> = (0..MAX_OF_SOURCE).filter_map(|_| enter()).collect();
        fleet.iter().for_each(|stranger| stranger.doing().begin());
        tokio::time::advance(SILENCE).await;
        assert!(enter().is_none(), "handshakes have a second");
        let under_way = fleet[0].doing().attest();
        fleet[1].doing().attest().granted();
        drop(fleet[2].doing().attest());
        tokio::time::advance(TIME).await;
        fleet.extend(enter());
        let gone: Vec<bool> = fleet.iter_mut().take(4).map(is_displaced).collect();
        assert_eq!(gone, [false, false, true, false]);
        drop(under_way);
        fleet.extend(enter());
        assert!(is_displaced(&mut fleet[0]));
    }
}
