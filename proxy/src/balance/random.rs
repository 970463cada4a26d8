//! Random numbers for spreading load, not for secrets.

use std::cell::Cell;

/// xorshift64*: a few instructions per number, for one thread.
#[derive(Debug)]
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// A generator whose numbers are a function of `seed`.
    pub(crate) fn new(seed: u64) -> Random {
        // The generator never leaves zero.
        Random(Cell::new(seed | 1))
    }

    fn next(&self) -> u64 {
        let mut state = self.0.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.0.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, or 0 for 0.
    pub(crate) fn below_u64(&self, bound: u64) -> u64 {
        // The upper half of the product is uniform to within bound / 2^64.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number below `bound`, or 0 for 0.
    pub(crate) fn below(&self, bound: usize) -> usize {
        self.below_u64(bound as u64) as usize
    }
}
