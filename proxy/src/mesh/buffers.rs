//! Scratch buffers lent for the length of one poll.
//!
//! A worker is one thread and a poll never overlaps another, so a handful of buffers serve every
//! connection of the worker: an idle connection owns none, and the buffer that a poll gets is the
//! one that the poll before left warm in the processor's cache. A connection keeps a buffer only
//! while it holds bytes that its peer has not taken.

use std::cell::RefCell;
use std::mem;
use std::ops::{Deref, DerefMut};

use bytes::BytesMut;

/// Size in bytes of a scratch buffer: what one read or one gathered write may carry.
pub(crate) const SCRATCH_BYTES: usize = 64 * 1024;

/// How many spare buffers of each kind a thread keeps.
const SPARES: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static GROWABLE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`SCRATCH_BYTES`] initialised bytes with whatever was in it before; goes back to
/// the thread when dropped.
#[derive(Debug)]
pub(crate) struct Scratch(Box<[u8]>);

impl Scratch {
    /// Takes a spare buffer, or makes one.
    pub(crate) fn take() -> Self {
        Self(
            SCRATCH
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| vec![0; SCRATCH_BYTES].into_boxed_slice()),
        )
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = mem::take(&mut self.0);
        // Fails only while the thread ends.
        let _ = SCRATCH.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARES {
                spares.push(buffer);
            }
        });
    }
}

/// Takes an empty buffer with room for `capacity` bytes, which the taker may keep or split.
pub(crate) fn take_growable(capacity: usize) -> BytesMut {
    GROWABLE
        .with_borrow_mut(|spares| {
            let at = spares
                .iter()
                .position(|spare| spare.capacity() == capacity)?;
            Some(spares.swap_remove(at))
        })
        .unwrap_or_else(|| BytesMut::with_capacity(capacity))
}

/// Gives a buffer back that [`take_growable`] lent and that nothing was split from.
pub(crate) fn give_growable(mut buffer: BytesMut) {
    buffer.clear();
    GROWABLE.with_borrow_mut(|spares| {
        if spares.len() < SPARES {
            spares.push(buffer);
        }
    });
}
