//! The pool's table: which connections there are for which key.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;

use sidewind_identity::SpiffeId;
use tokio::sync::watch;

use super::client::{ConnectionState, MeshConnection, OpenConnection};
use super::error::ConnectError;
use crate::control::MeshIdentity;

/// Tells those who wait how making a connection ended; None while it has not.
pub(crate) type DialOutcome = watch::Receiver<Option<Result<(), ConnectError>>>;

/// What a connection is for, besides its endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) identity: &'a MeshIdentity,
    pub(crate) expected: &'a SpiffeId,
}

/// The connections of one key at one endpoint.
pub(crate) struct Slot {
    identity: SpiffeId,
    generation: u64,
    expected: SpiffeId,
    pub(crate) connections: Vec<OpenConnection>,
    pub(crate) dialling: Option<DialOutcome>,
}

impl Slot {
    fn new(key: Key<'_>) -> Self {
        Self {
            identity: key.identity.id.clone(),
            generation: key.identity.generation,
            expected: key.expected.clone(),
            connections: Vec::new(),
            dialling: None,
        }
    }

    fn is_for(&self, key: Key<'_>) -> bool {
        self.generation == key.identity.generation
            && self.expected == *key.expected
            && self.identity == key.identity.id
    }

    fn is_replaced_by(&self, key: Key<'_>) -> bool {
        self.is_older_than(key.identity) && self.expected == *key.expected
    }

    fn is_older_than(&self, identity: &MeshIdentity) -> bool {
        self.identity == identity.id && self.generation < identity.generation
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.dialling.is_none()
    }

    /// A place on the first connection with room; those that take no new streams are dropped on
    /// the way. Filling one connection before the next lets more streams share a write.
    pub(crate) fn place(&mut self, max_streams: usize) -> Option<MeshConnection> {
        while let Some(at) = self
            .connections
            .iter()
            .position(|c| c.state.has_room(max_streams))
        {
            match self.connections.get(at).and_then(OpenConnection::place) {
                Some(place) => return Some(place),
                None => drop(self.connections.remove(at)),
            }
        }
        None
    }
}

/// All slots, by endpoint; an endpoint has few.
#[derive(Default)]
pub(crate) struct Slots(HashMap<SocketAddr, Vec<Slot>>);

impl Slots {
    pub(crate) fn find(&mut self, endpoint: SocketAddr, key: Key<'_>) -> Option<&mut Slot> {
        self.0
            .get_mut(&endpoint)?
            .iter_mut()
            .find(|slot| slot.is_for(key))
    }

    pub(crate) fn find_or_insert(&mut self, endpoint: SocketAddr, key: Key<'_>) -> &mut Slot {
        let slots = self.0.entry(endpoint).or_default();
        let at = slots
            .iter()
            .position(|slot| slot.is_for(key))
            .unwrap_or_else(|| {
                // Of the same identity, which was renewed.
                slots.retain(|slot| !slot.is_replaced_by(key));
                slots.push(Slot::new(key));
                slots.len() - 1
            });
        &mut slots[at]
    }

    /// Takes a connection out, which closes it once its last stream ends.
    pub(crate) fn remove(&mut self, endpoint: SocketAddr, connection: &Rc<ConnectionState>) {
        if let Some(slots) = self.0.get_mut(&endpoint) {
            for slot in slots {
                slot.connections
                    .retain(|other| !Rc::ptr_eq(&other.state, connection));
            }
        }
        self.drop_empty(endpoint);
    }

    /// Forgets slots without connections.
    pub(crate) fn drop_empty(&mut self, endpoint: SocketAddr) {
        if let Some(slots) = self.0.get_mut(&endpoint) {
            slots.retain(|slot| !slot.is_empty());
            if slots.is_empty() {
                self.0.remove(&endpoint);
            }
        }
    }

    /// Forgets what an older SVID of the same identity made.
    pub(crate) fn retire_older(&mut self, identity: &MeshIdentity) {
        self.0.retain(|_, slots| {
            slots.retain(|slot| !slot.is_older_than(identity));
            !slots.is_empty()
        });
    }

    /// Closes the connection that was unused for longest; false if all are in use.
    pub(crate) fn evict_unused(&mut self) -> bool {
        let oldest = self
            .0
            .iter()
            .flat_map(|(endpoint, slots)| slots.iter().map(move |slot| (*endpoint, slot)))
            .flat_map(|(endpoint, slot)| slot.connections.iter().map(move |c| (endpoint, &c.state)))
            .filter(|(_, state)| state.is_unused())
            .min_by_key(|(_, state)| state.last_used())
            .map(|(endpoint, state)| (endpoint, Rc::clone(state)));
        let Some((endpoint, state)) = oldest else {
            return false;
        };
        self.remove(endpoint, &state);
        true
    }
}
