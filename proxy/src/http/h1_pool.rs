//! Keep-alive HTTP/1.1 connections of one worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::h1_client::H1Connection;

/// What connections may be used for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// The server.
    pub(crate) address: SocketAddr,
    /// The address that connections are bound to, where the client's own is kept.
    pub(crate) source: Option<IpAddr>,
}

impl From<SocketAddr> for PoolKey {
    fn from(address: SocketAddr) -> PoolKey {
        PoolKey {
            address,
            source: None,
        }
    }
}

/// Bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolLimits {
    /// How long a connection may be idle. 1.5 s by default, which stays below the keep-alive of the servers met
    /// most, gunicorn's 2 s and uvicorn's 5 s, with half a second for a scheduling hiccup: a request sent on a
    /// connection that the server is just closing fails. Opening one anew to the workload beside the proxy costs
    /// less than such a failure, and a connection under load is never idle that long.
    pub(crate) idle_timeout: Duration,
    /// Idle connections to one key.
    pub(crate) max_idle_per_key: usize,
    /// Idle connections to all keys.
    pub(crate) max_idle: usize,
}

impl Default for PoolLimits {
    fn default() -> PoolLimits {
        PoolLimits {
            idle_timeout: Duration::from_millis(1500),
            max_idle_per_key: 256,
            max_idle: 1024,
        }
    }
}

/// Idle connections, the most recently used first. Clones share them.
#[derive(Clone)]
pub(crate) struct H1Pool(Rc<Inner>);

struct Inner {
    limits: PoolLimits,
    idle: RefCell<HashMap<PoolKey, Vec<Idle>>>,
    count: Cell<usize>,
}

struct Idle {
    connection: H1Connection,
    since: Instant,
}

/// Where a connection goes when it is idle.
pub(super) struct Home {
    pool: Weak<Inner>,
    key: PoolKey,
}

impl Home {
    pub(super) fn give_back(self, mut connection: H1Connection) {
        if let Some(pool) = self.pool.upgrade() {
            let key = self.key;
            connection.set_home(self);
            pool.insert(key, connection);
        }
    }
}

impl fmt::Debug for H1Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H1Pool")
            .field("idle", &self.0.count.get())
            .finish_non_exhaustive()
    }
}

impl H1Pool {
    /// An empty pool.
    pub(crate) fn new(limits: PoolLimits) -> H1Pool {
        H1Pool(Rc::new(Inner {
            limits,
            idle: RefCell::default(),
            count: Cell::new(0),
        }))
    }

    /// The most recently used idle connection to `key` that still lives.
    pub(crate) fn checkout(&self, key: PoolKey) -> Option<H1Connection> {
        let mut idle = self.0.idle.borrow_mut();
        let connections = idle.get_mut(&key)?;
        while let Some(Idle {
            mut connection,
            since,
        }) = connections.pop()
        {
            self.0.count.set(self.0.count.get() - 1);
            if since.elapsed() >= self.0.limits.idle_timeout {
                // The ones below are older still.
                self.0.count.set(self.0.count.get() - connections.len());
                connections.clear();
                break;
            }
            if connection.is_alive() {
                return Some(connection);
            }
        }
        None
    }

    /// Makes a new connection one of this pool's.
    pub(crate) fn adopt(&self, key: PoolKey, mut connection: H1Connection) -> H1Connection {
        connection.set_home(Home {
            pool: Rc::downgrade(&self.0),
            key,
        });
        connection
    }

    /// Takes in a new connection that has nothing to do yet.
    pub(crate) fn keep(&self, key: PoolKey, connection: H1Connection) {
        let mut connection = self.adopt(key, connection);
        connection.begin();
        self.0.insert(key, connection);
    }

    /// How many connections are idle.
    #[cfg(test)]
    pub(crate) fn idle_count(&self) -> usize {
        self.0.count.get()
    }

    /// Sweeps for as long as the pool is in use anywhere else.
    pub(crate) fn sweeper(&self) -> impl Future<Output = ()> + use<> {
        let pool = Rc::downgrade(&self.0);
        let mut ticks = tokio::time::interval(self.0.limits.idle_timeout);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        async move {
            loop {
                ticks.tick().await;
                match pool.upgrade() {
                    Some(pool) => pool.sweep(),
                    None => return,
                }
            }
        }
    }
}

impl Inner {
    fn insert(&self, key: PoolKey, connection: H1Connection) {
        if self.count.get() >= self.limits.max_idle {
            self.close_oldest();
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(key).or_default();
        if connections.len() < self.limits.max_idle_per_key && self.limits.max_idle > 0 {
            self.count.set(self.count.get() + 1);
            connections.push(Idle {
                connection,
                since: Instant::now(),
            });
        }
    }

    fn close_oldest(&self) {
        let mut idle = self.idle.borrow_mut();
        let oldest = idle
            .values_mut()
            .filter(|connections| !connections.is_empty())
            .min_by_key(|connections| connections.first().map(|oldest| oldest.since));
        if let Some(connections) = oldest {
            connections.remove(0);
            self.count.set(self.count.get() - 1);
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        let timeout = self.limits.idle_timeout;
        let mut closed = 0;
        self.idle.borrow_mut().retain(|_, connections| {
            let fresh = connections
                .iter()
                .position(|idle| now.duration_since(idle.since) < timeout)
                .unwrap_or(connections.len());
            closed += connections.drain(..fresh).len();
            !connections.is_empty()
        });
        self.count.set(self.count.get() - closed);
    }
}
