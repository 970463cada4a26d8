//! Which service a connection or request is for: what discovery says of a destination, kept per worker.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use sidewind_api::v1;
use tokio::{sync::watch, time::Instant};

use crate::{
    config::{self, Config},
    control::{Discovery, Resolution},
    errors::{ErrorCode, ProxyError},
    health::Health,
    limit::Limits,
    outbound::service::Service,
    worker::Worker,
};

/// Destinations that a worker remembers. Beyond it, those that no connection uses are forgotten.
const MAX_DESTINATIONS: usize = 4096;

/// How long a destination that no connection uses is remembered, and followed in discovery.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// Where the workload wants to go, before discovery has been asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// The address that the client dialled, before it was redirected.
    Address(SocketAddr),
    /// A name that the client, or a mapped listener, gave.
    Host(Arc<str>, u16),
}

impl Target {
    /// The target of an authority (`host:port`, `ip:port`, `[ipv6]:port`), with a port for one that has none.
    pub(crate) fn from_authority(authority: &http::uri::Authority, default_port: u16) -> Self {
        let port = authority.port_u16().unwrap_or(default_port);
        let host = authority.host();
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        match literal.unwrap_or(host).parse::<IpAddr>() {
            Ok(ip) => Self::Address(SocketAddr::new(ip, port)),
            Err(_) => Self::Host(host.to_ascii_lowercase().into(), port),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host(_, port) => *port,
        }
    }
}

impl From<sidewind_api::Destination> for Target {
    fn from(destination: sidewind_api::Destination) -> Self {
        match destination {
            sidewind_api::Destination::Address(address) => Self::Address(address),
            sidewind_api::Destination::Host { host, port } => Self::Host(host.into(), port),
        }
    }
}

impl From<&config::Destination> for Target {
    fn from(destination: &config::Destination) -> Self {
        match destination.host.parse::<IpAddr>() {
            Ok(ip) => Self::Address(SocketAddr::new(ip, destination.port)),
            Err(_) => Self::Host(
                destination.host.to_ascii_lowercase().into(),
                destination.port,
            ),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What a destination turned out to be.
#[derive(Clone, Debug)]
pub(crate) enum Resolved {
    /// Nothing that the mesh knows.
    Outside,
    Service(Rc<Service>),
}

/// One destination as a worker knows it. It follows what discovery says for as long as anything uses it.
#[derive(Debug)]
pub(crate) struct Destination {
    target: Target,
    config: Arc<Config>,
    discovery: Discovery,
    health: Health,
    limits: Limits,
    last_used: Cell<Instant>,
    /// Until when the first answer is waited for, from when somebody first did.
    answer_by: OnceCell<Instant>,
    updates: RefCell<watch::Receiver<Option<Resolution>>>,
    resolved: RefCell<Option<Resolved>>,
}

impl Destination {
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// What discovery says now; `None` while it has said nothing yet. Costs an atomic load when nothing changed.
    pub(crate) fn current(&self) -> Option<Resolved> {
        let mut updates = self.updates.borrow_mut();
        match updates.has_changed() {
            Ok(false) => {}
            Ok(true) => {
                let update = updates.borrow_and_update().clone();
                drop(updates);
                self.apply(update);
            }
            // Discovery follows so many destinations that it has let go of this one.
            Err(_) => {
                *updates = self.discovery.subscribe(&self.target.to_string());
                // The answer may be there already.
                updates.mark_changed();
            }
        }
        self.resolved.borrow().clone()
    }

    /// What discovery says, waiting for its first answer for `wait` at most.
    ///
    /// # Errors
    /// Without an answer; a proxy whose certificate has expired says that, since nobody answers it any more.
    pub(crate) async fn resolve(
        &self,
        worker: &Worker,
        wait: Duration,
    ) -> Result<Resolved, ProxyError> {
        if let Some(resolved) = self.current() {
            return Ok(resolved);
        }
        // All who ask wait for the same answer: a request does not wait again for what its connection waited for.
        let deadline = *self.answer_by.get_or_init(|| Instant::now() + wait);
        let mut updates = self.updates.borrow().clone();
        // A closed channel means that the control thread has ended; there will be no answer then either.
        let answered = tokio::time::timeout_at(deadline, updates.wait_for(Option::is_some)).await;
        drop(answered);
        if let Some(resolved) = self.current() {
            return Ok(resolved);
        }
        worker.identity()?;
        Err(ProxyError::new(
            ErrorCode::DiscoveryUnavailable,
            format_args!(
                "The control plane has not said whether {} is in the mesh; is it reachable?",
                self.target
            ),
        ))
    }

    fn apply(&self, update: Option<Resolution>) {
        let Some(update) = update else { return };
        let mut resolved = self.resolved.borrow_mut();
        match (update, resolved.as_ref()) {
            (Resolution::Outside, _) => *resolved = Some(Resolved::Outside),
            (Resolution::Service(update), Some(Resolved::Service(service)))
                if service.is_same(&update) =>
            {
                service.update(&update, &self.config, &self.limits);
            }
            (Resolution::Service(update), _) => {
                *resolved = Some(Resolved::Service(Rc::new(Service::new(
                    &update,
                    &self.config,
                    self.health.of(&self.target.to_string()),
                    &self.limits,
                ))));
            }
        }
    }
}

/// The destinations of one worker.
#[derive(Debug)]
pub(crate) struct Destinations {
    config: Arc<Config>,
    discovery: Discovery,
    health: Health,
    limits: Limits,
    known: RefCell<HashMap<Target, Rc<Destination>>>,
    forget_at: Cell<usize>,
}

impl Destinations {
    pub(crate) fn new(
        config: Arc<Config>,
        discovery: Discovery,
        health: Health,
        limits: Limits,
    ) -> Self {
        Self {
            config,
            discovery,
            health,
            limits,
            known: RefCell::default(),
            forget_at: Cell::new(MAX_DESTINATIONS),
        }
    }

    pub(crate) fn get(&self, target: &Target) -> Rc<Destination> {
        let mut known = self.known.borrow_mut();
        if let Some(destination) = known.get(target) {
            destination.last_used.set(Instant::now());
            return Rc::clone(destination);
        }
        if known.len() >= self.forget_at.get() {
            known.retain(|_, destination| Rc::strong_count(destination) > 1);
            // Doubling keeps the cost of looking for unused ones constant for each new destination, even
            // when thousands are in use.
            self.forget_at.set(MAX_DESTINATIONS.max(known.len() * 2));
        }
        let destination = Rc::new(Destination {
            target: target.clone(),
            config: Arc::clone(&self.config),
            discovery: self.discovery.clone(),
            health: self.health.clone(),
            limits: self.limits.clone(),
            last_used: Cell::new(Instant::now()),
            answer_by: OnceCell::new(),
            updates: RefCell::new(self.discovery.subscribe(&target.to_string())),
            resolved: RefCell::new(None),
        });
        // A receiver counts what was there when it was made as seen.
        let first = destination.updates.borrow().borrow().clone();
        destination.apply(first);
        known.insert(target.clone(), Rc::clone(&destination));
        destination
    }
}

impl Destinations {
    /// Lets requests go on to another endpoint that wait for one of which a health check found that it does not answer.
    /// For as long as the worker lives.
    pub(crate) async fn follow_health(worker: Rc<Worker>) {
        let mut turned = worker.destinations.health.turned();
        while turned.changed().await.is_ok() {
            turned.mark_unchanged();
            let known = worker.destinations.known.borrow();
            for destination in known.values() {
                if let Some(Resolved::Service(service)) = &*destination.resolved.borrow() {
                    service.wake_the_hopeless();
                }
            }
        }
    }

    /// Forgets destinations that have not been used for a while, so that discovery follows what the workload talks
    /// to and not all that it ever did. For as long as the worker lives.
    pub(crate) async fn forget_unused(worker: Rc<Worker>) {
        loop {
            tokio::time::sleep(REMEMBERED / 10).await;
            worker
                .destinations
                .known
                .borrow_mut()
                .retain(|_, destination| {
                    Rc::strong_count(destination) > 1
                        || destination.last_used.get().elapsed() < REMEMBERED
                });
        }
    }
}

/// How the bytes of a connection to a destination are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Declared {
    Detect,
    Http,
    Tls,
    Tcp,
}

impl From<v1::Protocol> for Declared {
    fn from(protocol: v1::Protocol) -> Self {
        match protocol {
            v1::Protocol::Unspecified => Self::Detect,
            v1::Protocol::Http | v1::Protocol::Http2 | v1::Protocol::Grpc => Self::Http,
            v1::Protocol::Tls => Self::Tls,
            v1::Protocol::Tcp => Self::Tcp,
        }
    }
}

#[cfg(test)]
mod tests;
