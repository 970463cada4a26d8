//! Ids for traces and spans: unique, and not secret.

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// A small generator, seeded from the operating system; each worker has its own.
#[derive(Debug)]
pub(super) struct Random(SmallRng);

impl Random {
    /// Seeded so that no other worker or proxy makes the same ids.
    pub(super) fn from_system() -> Self {
        Self(SmallRng::from_rng(&mut rand::rng()))
    }

    #[cfg(test)]
    pub(super) fn from_seed(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// An id that is not all zeros, and its low half, which sampling decides by.
    pub(super) fn trace_id(&mut self) -> ([u8; 16], u64) {
        let (high, low) = (self.nonzero(), self.0.next_u64());
        let mut id = [0; 16];
        id[..8].copy_from_slice(&high.to_be_bytes());
        id[8..].copy_from_slice(&low.to_be_bytes());
        (id, low)
    }

    /// An id that is not all zeros.
    pub(super) fn span_id(&mut self) -> [u8; 8] {
        self.nonzero().to_be_bytes()
    }

    fn nonzero(&mut self) -> u64 {
        self.0.next_u64().max(1)
    }
}
