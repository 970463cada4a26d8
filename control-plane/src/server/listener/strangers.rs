//! The places of connections whose client has not shown a certificate (yet).
//!
//! Every connection begins as a stranger's, and what makes it another's is a handshake. So if strangers who stay could
//! fill these places, nobody would get in. Whoever comes when all are taken therefore gets the place of the stranger that
//! has been there for longest: an honest client needs it for as long as a handshake or an attestation takes, which is
//! milliseconds, and whoever wants to keep it out has to take thousands of places in that time, again and again. No
//! address has more than its share, and what comes from one that has all of it displaces another of the same address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::Future as _;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// Most of them at once.
const MAX: usize = 4_096;
/// Most of them at once from one source.
const MAX_OF_SOURCE: usize = MAX / 4;

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
    /// Whose end is heard of by who has the place.
    _hold: oneshot::Sender<Infallible>,
}

/// A stranger's place, until it is dropped or displaced.
#[derive(Debug)]
pub(super) struct Stranger {
    number: u64,
    strangers: Arc<Strangers>,
    held: oneshot::Receiver<Infallible>,
    displaced: bool,
}

impl Strangers {
    /// A place for somebody from a source, which may be another's.
    pub(super) fn enter(self: &Arc<Self>, source: IpAddr) -> Stranger {
        let (hold, held) = oneshot::channel();
        let mut table = self.table();
        let own = table.by_source.get(&source);
        let goes = match own.filter(|own| own.len() >= MAX_OF_SOURCE) {
            Some(own) => own.first().copied(),
            None if table.by_age.len() >= MAX => table.by_age.keys().next().copied(),
            None => None,
        };
        if let Some(goes) = goes {
            table.remove(goes);
        }
        let number = table.next;
        table.next += 1;
        let taken = Taken {
            source,
            _hold: hold,
        };
        table.by_age.insert(number, taken);
        table.by_source.entry(source).or_default().insert(number);
        Stranger {
            number,
            strangers: Arc::clone(self),
            held,
            displaced: false,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
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

    #[test]
    fn whoever_comes_gets_the_place_of_the_oldest_and_nobody_is_kept_out() {
        let strangers = Arc::new(Strangers::default());
        let mut all: Vec<_> = (0..MAX).map(|it| strangers.enter(source(it))).collect();
        assert!(!all.iter_mut().any(is_displaced));
        // A place that is given back displaces nobody.
        drop(all.remove(10));
        all.push(strangers.enter(source(MAX)));
        assert!(!all.iter_mut().any(is_displaced));
        for oldest in 0..3 {
            let mut new = strangers.enter(source(MAX + 1 + oldest));
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

    #[test]
    fn a_source_with_all_of_its_share_displaces_its_own() {
        let strangers = Arc::new(Strangers::default());
        let mut other = strangers.enter(source(1));
        let mut own: Vec<_> = (0..MAX_OF_SOURCE)
            .map(|_| strangers.enter(source(2)))
            .collect();
        assert!(!own.iter_mut().any(is_displaced));
        own.push(strangers.enter(source(2)));
        assert!(is_displaced(&mut own[0]) && !is_displaced(&mut own[1]));
        assert!(!is_displaced(&mut other));
        assert_eq!(strangers.table().by_source[&source(2)].len(), MAX_OF_SOURCE);
    }
}
