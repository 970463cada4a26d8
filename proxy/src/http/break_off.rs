//! How a connection that hyper holds comes to end by a reset.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// Whether an upgraded connection is to be closed by a reset, because the other one broke. It goes with a response that
/// switches protocols, as an extension, to whoever has the socket. Clones share it.
///
/// All of it happens on one thread; it is atomic because an upgraded connection's IO has to be `Send`.
#[derive(Clone, Debug, Default)]
pub(crate) struct BreakOff(Arc<AtomicBool>);

impl BreakOff {
    /// From now on closing is resetting.
    pub(crate) fn set(&self) {
        self.0.store(true, Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}
