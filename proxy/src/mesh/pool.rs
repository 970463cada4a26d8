//! The mesh connections of one worker.
//!
//! Kept by everything that matters for security: our own SVID (identity and generation), the
//! endpoint's address, and the identity expected there, each compared by value. A connection that
//! the peer wants closed, that broke, or whose SVID has been replaced gets no new streams and
//! closes when its last stream ends.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use sidewind_identity::SpiffeId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::census::{Census, Due, Member, Standing};
use super::client::{
    ClientDriver, ConnectionState, DialSettings, MeshConnection, OpenConnection, dial,
};
use super::error::{ConnectError, DriverError, TunnelError};
use super::keepalive::KeepaliveSettings;
use super::slots::{DialOutcome, Key, Slots};
use super::tunnel::TunnelStream;
use crate::control::MeshIdentity;
use crate::errors::Chain;

/// How often a stream that surely was not sent is tried on another connection.
const MAX_MOVES: usize = 3;

/// How many connections being made one caller waits for, should others fill each or its peer
/// close it at once.
const MAX_WAITS: usize = 64;

/// Limits of a worker's pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolSettings {
    /// Limit for TCP to connect.
    pub(crate) connect_timeout: Duration,
    /// Limit for TLS and HTTP/2 to come up.
    pub(crate) handshake_timeout: Duration,
    /// Limit for a CONNECT to be answered; includes the peer's connecting to its workload.
    pub(crate) tunnel_timeout: Duration,
    /// Streams on one connection before another is made, should the peer allow as many.
    pub(crate) max_streams_per_connection: usize,
    /// Connections in all, those being made or ending included.
    pub(crate) max_connections: usize,
    /// When peers count as gone and connections as idle.
    pub(crate) keepalive: KeepaliveSettings,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(5),
            tunnel_timeout: Duration::from_secs(10),
            max_streams_per_connection: 250,
            max_connections: 4096,
            keepalive: KeepaliveSettings::default(),
        }
    }
}

/// What the pool tells telemetry. Every method does nothing by default.
pub(crate) trait PoolEvents {
    /// A connection was made; `took` is from the first SYN to the peer's settings.
    fn connected(&self, endpoint: SocketAddr, took: Duration) {
        let _ = (endpoint, took);
    }
    /// A connection could not be made.
    fn connect_failed(&self, error: &ConnectError) {
        let _ = error;
    }
    /// A connection has ended.
    fn closed(&self, endpoint: SocketAddr, error: Option<&DriverError>) {
        let _ = (endpoint, error);
    }
}

impl PoolEvents for () {}

/// The mesh connections of one worker; clones share them.
#[derive(Clone)]
pub(crate) struct MeshPool(Rc<Inner>);

struct Inner {
    settings: PoolSettings,
    events: Box<dyn PoolEvents>,
    census: Census,
    slots: RefCell<Slots>,
    /// Connections that exist, in the pool or on their way in or out.
    connections: Cell<usize>,
}

enum Pick {
    Place(MeshConnection),
    Wait(DialOutcome),
}

impl fmt::Debug for MeshPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshPool")
            .field("connections", &self.0.connections.get())
            .finish()
    }
}

impl MeshPool {
    /// A pool with nothing in it.
    pub(crate) fn new(settings: PoolSettings, events: Box<dyn PoolEvents>, census: Census) -> Self {
        Self(Rc::new(Inner {
            settings,
            events,
            census,
            slots: RefCell::default(),
            connections: Cell::new(0),
        }))
    }

    /// How many connections exist, those being made or ending included.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> usize {
        self.0.connections.get()
    }

    /// A place for one stream on a connection to `endpoint` (`ip:15008`), made now if none has
    /// room. The peer is verified to be `expected`.
    ///
    /// Callers that come while a connection is being made wait for it, and all get its error
    /// should it fail. Cancelling costs nothing; the connection is made all the same.
    ///
    /// # Errors
    /// [`ConnectError`] says how far it came; nothing of a request was sent in any case.
    pub(crate) async fn connect(
        &self,
        identity: &Arc<MeshIdentity>,
        endpoint: SocketAddr,
        expected: &SpiffeId,
    ) -> Result<MeshConnection, ConnectError> {
        for _ in 0..MAX_WAITS {
            let mut outcome = match self.pick(identity, endpoint, expected)? {
                Pick::Place(connection) => return Ok(connection),
                Pick::Wait(outcome) => outcome,
            };
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Err(ConnectError::GivenUp { endpoint })
    }

    /// Opens a tunnel to `authority` through the proxy at `endpoint`.
    ///
    /// A stream that a closing connection surely did not take moves to another silently.
    ///
    /// # Errors
    /// [`TunnelError`]; when it says so, nothing can have reached the workload.
    pub(crate) async fn tunnel(
        &self,
        identity: &Arc<MeshIdentity>,
        endpoint: SocketAddr,
        expected: &SpiffeId,
        authority: SocketAddr,
        headers: HeaderMap,
    ) -> Result<TunnelStream, TunnelError> {
        let mut moves = 0;
        loop {
            let connection = self.connect(identity, endpoint, expected).await?;
            let limit = self.0.settings.tunnel_timeout;
            match connection.tunnel(authority, headers.clone(), limit).await {
                Err(TunnelError::NotSent { .. }) if moves < MAX_MOVES => moves += 1,
                result => return result,
            }
        }
    }

    /// Gives connections that an older SVID of the same identity made no new streams: call it
    /// when the SVID was renewed. They close when their last stream ends.
    pub(crate) fn retire_older(&self, identity: &MeshIdentity) {
        self.0.slots.borrow_mut().retire_older(identity);
    }

    /// Meets the peer of a connection again, so that its streams outlive the certificates that it was made
    /// under. New streams go to the connection that this makes, and the old one ends with its last.
    pub(crate) async fn meet_again(&self, identity: &Arc<MeshIdentity>, due: &Due) {
        let Some((endpoint, state)) = due.connection() else {
            return;
        };
        due.put_off(SystemTime::now());
        self.0.slots.borrow_mut().remove(endpoint, state);
        if state.is_unused() {
            return;
        }
        match self.connect(identity, endpoint, due.peer()).await {
            Ok(connection) => {
                let peer = connection.peer();
                let end = identity.not_after.min(peer.not_after);
                let shown = connection.state().shown.clone();
                if !due.prove(end, &peer.serial_hex, shown, SystemTime::now()) {
                    // Of no later certificates than the old one: the next try makes another.
                    let mut slots = self.0.slots.borrow_mut();
                    slots.remove(endpoint, connection.state());
                }
            }
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "a peer could not be met again");
            }
        }
    }

    fn pick(
        &self,
        identity: &Arc<MeshIdentity>,
        endpoint: SocketAddr,
        expected: &SpiffeId,
    ) -> Result<Pick, ConnectError> {
        let key = Key { identity, expected };
        if let Some(slot) = self.0.slots.borrow_mut().find(endpoint, key) {
            if let Some(place) = slot.place(self.0.settings.max_streams_per_connection) {
                return Ok(Pick::Place(place));
            }
            if let Some(outcome) = &slot.dialling {
                return Ok(Pick::Wait(outcome.clone()));
            }
        }
        let limit = self.0.settings.max_connections;
        // An evicted connection still exists while it says goodbye; the next one may be made.
        if self.0.connections.get() >= limit && !self.0.slots.borrow_mut().evict_unused() {
            return Err(ConnectError::PoolFull { endpoint, limit });
        }
        let (announce, outcome) = watch::channel(None);
        self.0
            .slots
            .borrow_mut()
            .find_or_insert(endpoint, key)
            .dialling = Some(outcome.clone());
        let task = DialTask {
            count: Counted::new(self),
            identity: Arc::clone(identity),
            endpoint,
            expected: expected.clone(),
        };
        tokio::task::spawn_local(task.run(announce));
        Ok(Pick::Wait(outcome))
    }
}

/// Drives a connection to its end, for as long as its peer may stay.
async fn driven(driver: ClientDriver, member: &Member) -> Result<(), DriverError> {
    let mut driver = pin!(driver);
    poll_fn(|cx| match member.poll_standing(cx) {
        Standing::Good | Standing::Ending => driver.as_mut().poll(cx),
        Standing::Banned => Poll::Ready(Err(DriverError::Banned)),
        Standing::Distrusted => Poll::Ready(Err(DriverError::Distrusted)),
        Standing::Ended => Poll::Ready(Err(DriverError::CertificateEnded)),
    })
    .await
}

/// Counts one connection as existing.
struct Counted(MeshPool);

impl Counted {
    fn new(pool: &MeshPool) -> Self {
        pool.0.connections.set(pool.0.connections.get() + 1);
        Self(pool.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let connections = &self.0.0.connections;
        connections.set(connections.get().saturating_sub(1));
    }
}

/// Makes one connection for a slot, puts it there, and drives it to its end.
struct DialTask {
    count: Counted,
    identity: Arc<MeshIdentity>,
    endpoint: SocketAddr,
    expected: SpiffeId,
}

impl DialTask {
    async fn run(self, announce: watch::Sender<Option<Result<(), ConnectError>>>) {
        let Counted(pool) = &self.count;
        let began = Instant::now();
        let result = self.dial(&pool.0.settings).await;
        match &result {
            Ok(_) => pool.0.events.connected(self.endpoint, began.elapsed()),
            Err(error) => pool.0.events.connect_failed(error),
        }
        let settled = self.settle(pool, result);
        let (outcome, driver) = match settled {
            Ok((state, driver)) => (Ok(()), Some((state, driver))),
            Err(error) => (Err(error), None),
        };
        announce.send_replace(Some(outcome));
        drop(announce);

        if let Some((state, driver)) = driver {
            let own_end = self.identity.not_after;
            let member = (pool.0.census).dialled(self.endpoint, own_end, Rc::clone(&state));
            let ended = driven(driver, &member).await;
            pool.0.slots.borrow_mut().remove(self.endpoint, &state);
            pool.0.events.closed(self.endpoint, ended.as_ref().err());
        }
    }

    async fn dial(
        &self,
        settings: &PoolSettings,
    ) -> Result<(OpenConnection, ClientDriver), ConnectError> {
        let limits = DialSettings {
            connect_timeout: settings.connect_timeout,
            handshake_timeout: settings.handshake_timeout,
            keepalive: settings.keepalive,
        };
        let census = &self.count.0.0.census;
        dial(&self.identity, self.endpoint, &self.expected, &limits)
            .await
            .and_then(|made| match census.refuses(&made.0.state.peer) {
                false => Ok(made),
                true => Err(ConnectError::Banned {
                    endpoint: self.endpoint,
                    peer: self.expected.clone(),
                }),
            })
    }

    /// Ends the slot's dialling and puts the connection there. A slot that was retired meanwhile
    /// takes none: the connection closes, and who waits makes another.
    fn settle(
        &self,
        pool: &MeshPool,
        result: Result<(OpenConnection, ClientDriver), ConnectError>,
    ) -> Result<(Rc<ConnectionState>, ClientDriver), ConnectError> {
        let mut slots = pool.0.slots.borrow_mut();
        let key = Key {
            identity: &self.identity,
            expected: &self.expected,
        };
        let mut slot = slots.find(self.endpoint, key);
        if let Some(slot) = &mut slot {
            slot.dialling = None;
        }
        let settled = result.map(|(connection, mut driver)| {
            let state = Rc::clone(&connection.state);
            driver.on_idle({
                let (pool, state, endpoint) = (pool.clone(), Rc::clone(&state), self.endpoint);
                move || pool.0.slots.borrow_mut().remove(endpoint, &state)
            });
            if let Some(slot) = slot {
                slot.connections.push(connection);
            }
            (state, driver)
        });
        slots.drop_empty(self.endpoint);
        settled
    }
}
