//! How many TLS handshakes may be under way at a time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Bounds the handshakes under way, in all and from one address, so that clients that never
/// finish theirs keep no other from finishing.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeGate(Rc<GateInner>);

#[derive(Debug)]
struct GateInner {
    max_total: usize,
    max_per_address: usize,
    total: Cell<usize>,
    by_address: RefCell<HashMap<IpAddr, usize>>,
}

impl HandshakeGate {
    /// A gate that lets `max_total` handshakes be under way, `max_per_address` from one address.
    pub(crate) fn new(max_total: usize, max_per_address: usize) -> Self {
        Self(Rc::new(GateInner {
            max_total,
            max_per_address,
            total: Cell::new(0),
            by_address: RefCell::default(),
        }))
    }

    /// How many handshakes are under way.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.0.total.get()
    }

    /// A place for a handshake from `address`, held until the guard is dropped; None when all are
    /// taken.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<GateGuard> {
        let address = address.to_canonical();
        let mut by_address = self.0.by_address.borrow_mut();
        let theirs = by_address.get(&address).copied().unwrap_or(0);
        if self.0.total.get() >= self.0.max_total || theirs >= self.0.max_per_address {
            return None;
        }
        by_address.insert(address, theirs + 1);
        self.0.total.set(self.0.total.get() + 1);
        Some(GateGuard {
            gate: Rc::clone(&self.0),
            address,
        })
    }
}

impl Default for HandshakeGate {
    fn default() -> Self {
        Self::new(1024, 64)
    }
}

/// The place of one handshake.
pub(crate) struct GateGuard {
    gate: Rc<GateInner>,
    address: IpAddr,
}

impl Drop for GateGuard {
    fn drop(&mut self) {
        self.gate.total.set(self.gate.total.get().saturating_sub(1));
        let mut by_address = self.gate.by_address.borrow_mut();
        if let Some(theirs) = by_address.get_mut(&self.address) {
            *theirs = theirs.saturating_sub(1);
            if *theirs == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_from_one_address_are_bounded_too() {
        let gate = HandshakeGate::new(10, 2);
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let held: Vec<_> = (0..2).map(|_| gate.enter(one).unwrap()).collect();
        assert!(gate.enter(one).is_none());
        assert!(gate.enter("::ffff:10.0.0.1".parse().unwrap()).is_none());
        assert!(gate.enter(other).is_some());
        drop(held);
        assert!(gate.enter(one).is_some());
        assert_eq!(gate.under_way(), 0);
    }
}
