//! What signs at present, and until when what it signed is good.

use super::slots::{Slot, Slots};
use crate::store::{AuthorityRole, Store, StoreError, from_unix_seconds, unix_seconds};
use sidewind_identity::authority::{BACKDATE, SigningAuthority};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// A signing authority at work.
#[derive(Debug)]
pub(super) struct Signer {
    /// Its slot.
    pub(super) id: i64,
    /// The slots of its root and of itself.
    noted_at: Vec<i64>,
    pub(super) authority: Arc<SigningAuthority>,
    /// The latest end of what it signed here, in seconds since 1970.
    signed_until: AtomicI64,
    /// The same, as the store knows it.
    noted: AtomicI64,
}

impl Signer {
    pub(super) fn new(slots: &Slots, slot: &Slot, authority: SigningAuthority) -> Self {
        let mut noted_at = vec![slot.id];
        noted_at.extend(slots.roots_of(slot).map(|root| root.id));
        if noted_at.len() == 1 {
            // Its chain does not name the root's key, so it is taken for the one in use.
            noted_at.extend(slots.active(AuthorityRole::Root).map(|root| root.id));
        }
        Self {
            id: slot.id,
            noted_at,
            authority: Arc::new(authority),
            signed_until: AtomicI64::new(0),
            noted: AtomicI64::new(0),
        }
    }

    /// Notes the end of something that it signed.
    pub(super) fn note(&self, not_after: SystemTime) {
        self.signed_until
            .fetch_max(unix_seconds(not_after), Ordering::Relaxed);
    }

    /// Writes what was noted since the last time.
    pub(super) async fn write(&self, store: &Store) -> Result<(), StoreError> {
        let until = self.signed_until.load(Ordering::Relaxed);
        if until > self.noted.load(Ordering::Relaxed) {
            store
                .note_signed_until(&self.noted_at, from_unix_seconds(until))
                .await?;
            self.noted.store(until, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether it will sign nothing more that would have to be noted, once it is not in use.
    pub(super) fn has_ended(&self, now: SystemTime) -> bool {
        self.authority.not_after() < now
    }

    /// How long the authority lives from the moment that it was made.
    pub(super) fn lifetime(&self) -> Duration {
        let begin = self.authority.not_before();
        let life = self.authority.not_after().duration_since(begin);
        life.unwrap_or_default().saturating_sub(BACKDATE)
    }
}
