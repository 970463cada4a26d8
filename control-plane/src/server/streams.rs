//! How many streams are open, in all and of one registration.
//!
//! A proxy has one, and for a moment two when it comes back before its last was missed. Each proxy has a registration of
//! its own, but where records were lost (an older copy was restored) all proxies of a name go by the newest of that name:
//! the bound of one registration is for as many proxies as that, and still a small part of what a control plane carries.

use crate::store::RegistrationId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most of one registration at once.
pub(super) const MAX_OF_REGISTRATION: usize = 1_024;
/// Most at once: a little more than there can be connections.
const MAX: usize = 32_768;

/// The streams that are open.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    number: usize,
    by_registration: HashMap<RegistrationId, usize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenStream {
    streams: Arc<Streams>,
    registration: RegistrationId,
}

/// There are as many as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TooMany {
    #[error("this registration has {MAX_OF_REGISTRATION} streams open, and may have no more")]
    OfRegistration,
    #[error("{MAX} streams are open, and there may be no more")]
    InAll,
}

impl Streams {
    /// Opens one of a registration.
    pub(super) fn open(
        self: &Arc<Self>,
        registration: &RegistrationId,
    ) -> Result<OpenStream, TooMany> {
        let mut open = self.lock();
        let own = open.by_registration.get(registration).copied();
        let own = own.unwrap_or_default();
        if own >= MAX_OF_REGISTRATION {
            return Err(TooMany::OfRegistration);
        }
        if open.number >= MAX {
            return Err(TooMany::InAll);
        }
        open.number += 1;
        open.by_registration.insert(registration.clone(), own + 1);
        Ok(OpenStream {
            streams: Arc::clone(self),
            registration: registration.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        open.number -= 1;
        if let Some(own) = open.by_registration.get_mut(&self.registration) {
            *own -= 1;
            if *own == 0 {
                open.by_registration.remove(&self.registration);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_and_all_together_have_so_many_streams_and_room_again_when_one_ends() {
        let streams = Arc::new(Streams::default());
        let (first, mut held) = (RegistrationId::random(), Vec::new());
        for _ in 0..MAX_OF_REGISTRATION {
            held.push(streams.open(&first).unwrap());
        }
        assert_eq!(streams.open(&first).err(), Some(TooMany::OfRegistration));
        let refused = loop {
            match streams.open(&RegistrationId::random()) {
                Ok(open) => held.push(open),
                Err(refused) => break refused,
            }
        };
        assert_eq!((refused, held.len()), (TooMany::InAll, MAX));
        drop(held.remove(0));
        held.push(streams.open(&first).unwrap());
        assert!(streams.open(&first).is_err());
        drop(held);
        let open = streams.lock();
        assert_eq!((open.number, open.by_registration.len()), (0, 0));
    }
}
