//! Keeps the gateway's ports as its documents and certificates say; on the control thread.
//!
//! What is new is made whole before any of it is used, and a listener that cannot be made stays as it was. A port that
//! stays keeps its sockets and connections, and its next request sees the new state; one that is new is opened for all
//! workers at once; one that has gone is closed after what waited there was accepted.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use sidewind_api::v1;
use tokio::sync::watch;

use super::{
    certificates::Certificates,
    port::{Listener, ListenerError, Port},
};
use crate::{
    admin::{Component, Readiness},
    capture::{self, Peer},
    config::{GatewayListenConfig, ListenAddress},
    errors::Chain,
    retry::RetryPolicy,
    route::RouteTable,
    telemetry::metrics::Metrics,
};

/// How often certificates are looked at, and ports that could not be opened are tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A port that is listened on, shared by all workers.
#[derive(Debug)]
pub(crate) struct OpenPort {
    pub(super) number: u16,
    current: ArcSwap<Port>,
    /// Its connections.
    pub(crate) open: Arc<AtomicUsize>,
    /// Of each worker, until it takes them.
    sockets: Mutex<Vec<Vec<TcpListener>>>,
    closed: watch::Sender<bool>,
}

impl OpenPort {
    /// What is served there now.
    pub(super) fn current(&self) -> Arc<Port> {
        self.current.load_full()
    }

    /// The sockets of one worker, once.
    pub(super) fn take_sockets(&self, worker: usize) -> Vec<TcpListener> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets
            .get_mut(worker)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Resolves when the port is to be closed.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // An error means that the keeper has ended, which it does with the process.
            if closed.wait_for(|closed| *closed).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The ports that are open.
pub(crate) type OpenPorts = Vec<Arc<OpenPort>>;

/// Owns the ports.
pub(crate) struct Keeper {
    config: GatewayListenConfig,
    workers: usize,
    provider: Arc<CryptoProvider>,
    certificates: Certificates,
    open: BTreeMap<u16, Arc<OpenPort>>,
    ports: watch::Sender<OpenPorts>,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    /// Once everything has been served, what is wrong with something later is told, and the rest goes on.
    was_ready: bool,
    told: Vec<String>,
    /// A port is to be opened that could not be.
    unopened: bool,
}

/// The sockets of a port, of each worker.
type Sockets = Vec<Vec<TcpListener>>;

/// A listener that cannot be served as its document says, by its name, and why.
struct Failed {
    listener: String,
    reason: String,
}

impl Keeper {
    pub(crate) fn new(
        config: GatewayListenConfig,
        workers: usize,
        readiness: Readiness,
        metrics: Arc<Metrics>,
    ) -> Self {
        let certificates = Certificates::new(config.certificates.clone());
        let waiting = "no Gateway document has named this proxy's identity yet";
        readiness.set(Component::Listeners, false, waiting);
        Self {
            config,
            workers,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            certificates,
            open: BTreeMap::new(),
            ports: watch::Sender::default(),
            readiness,
            metrics,
            was_ready: false,
            told: Vec::new(),
            unopened: false,
        }
    }

    /// The ports, as they open and close.
    pub(crate) fn ports(&self) -> watch::Receiver<OpenPorts> {
        self.ports.subscribe()
    }

    /// Follows the documents and certificates for as long as the process lives.
    pub(crate) async fn run(
        mut self,
        mut updates: watch::Receiver<Option<Arc<v1::GatewayConfig>>>,
    ) {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut applied = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = updates.changed() => if changed.is_err() {
                    return;
                },
            }
            let Some(wanted) = updates.borrow_and_update().clone() else {
                continue;
            };
            let is_new = applied.as_ref() != Some(&wanted);
            let looked = self.look(&wanted).await;
            // What could not be opened is tried again.
            if is_new || looked || self.unopened {
                self.apply(&wanted);
                applied = Some(wanted);
            }
        }
    }

    /// Looks at the files, away from this thread. Gives back whether any certificate is another one now,
    /// or is found to be unusable.
    async fn look(&mut self, wanted: &v1::GatewayConfig) -> bool {
        let names = wanted
            .listeners
            .iter()
            .flat_map(|listener| &listener.certificates);
        let names: Vec<String> = names.cloned().collect();
        let mut certificates = std::mem::take(&mut self.certificates);
        let provider = Arc::clone(&self.provider);
        let looking = tokio::task::spawn_blocking(move || {
            let looked = certificates.look(&names, &provider);
            (certificates, looked)
        });
        match looking.await {
            Ok((certificates, looked)) => {
                self.certificates = certificates;
                let gateway = &self.metrics.gateway;
                gateway.certificates_looked(
                    looked.loaded,
                    looked.refused,
                    self.certificates.first_end(),
                );
                looked.changed || looked.refused > 0
            }
            Err(error) => {
                // Reading panics only by a defect; start afresh with the next look.
                tracing::error!(%error, "certificates could not be looked at");
                self.certificates = Certificates::new(self.config.certificates.clone());
                false
            }
        }
    }

    /// Makes the ports as they are to be.
    fn apply(&mut self, wanted: &v1::GatewayConfig) {
        let mut problems: Vec<String> = self
            .certificates
            .problems()
            .map(|(name, problem)| format!("certificate {name}: {problem}"))
            .collect();
        let (mut ports, mut failed) = self.compile(wanted);
        let unmade = failed.len();
        let mut opened = self.open_new(&mut ports, &mut failed);
        self.unopened = failed.len() > unmade;
        let mut kept = 0;
        for Failed { listener, reason } in failed {
            let goes_on = match self.keep(&listener, &mut ports) {
                true => "; what was served before goes on",
                false => "",
            };
            kept += usize::from(!goes_on.is_empty());
            problems.push(format!("listener {listener}: {reason}{goes_on}"));
        }
        self.metrics.gateway.set_kept_listeners(kept);
        let gone: Vec<u16> = self
            .open
            .keys()
            .filter(|port| !ports.contains_key(port))
            .copied()
            .collect();
        for number in gone {
            if let Some(port) = self.open.remove(&number) {
                tracing::info!(port = number, "a gateway port is closed");
                port.closed.send_replace(true);
            }
        }
        for (number, port) in ports {
            if let Some(open) = self.open.get(&number) {
                open.current.store(Arc::new(port));
                continue;
            }
            tracing::info!(port = number, tls = port.tls, "a gateway port is open");
            let open = OpenPort {
                number,
                current: ArcSwap::from_pointee(port),
                open: Arc::default(),
                sockets: Mutex::new(opened.remove(&number).unwrap_or_default()),
                closed: watch::Sender::new(false),
            };
            self.open.insert(number, Arc::new(open));
        }
        let open: OpenPorts = self.open.values().cloned().collect();
        self.ports.send_if_modified(|present| {
            let same = present.len() == open.len()
                && present
                    .iter()
                    .zip(&open)
                    .all(|(one, other)| Arc::ptr_eq(one, other));
            *present = open;
            !same
        });
        self.tell(wanted, problems);
    }

    /// What can be served as the documents say, by port, and what of them cannot.
    fn compile(&self, wanted: &v1::GatewayConfig) -> (BTreeMap<u16, Port>, Vec<Failed>) {
        let mut ports = BTreeMap::new();
        let mut failed = Vec::new();
        for listener in &wanted.listeners {
            let added = u16::try_from(listener.port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or(ListenerError::Port(listener.port))
                .and_then(|number| add(&mut ports, number, Arc::new(self.make(listener)?)));
            if let Err(error) = added {
                failed.push(Failed {
                    listener: Listener::name_of(listener),
                    reason: Chain(&error).to_string(),
                });
            }
        }
        (ports, failed)
    }

    fn make(&self, listener: &v1::GatewayListener) -> Result<Listener, ListenerError> {
        let made = Listener::new(listener, &self.certificates, &self.provider)?;
        // A listener that is new answers what its routes would say of requests with an error.
        if let Some(routes) = &made.routes
            && self.served(&made.name).is_some()
        {
            RouteTable::compile(routes, &|_| RetryPolicy::default())?;
        }
        Ok(made)
    }

    /// What is served under the name of a listener, and at which port.
    fn served(&self, name: &str) -> Option<(u16, Arc<Listener>)> {
        self.open.values().find_map(|open| {
            let port = open.current();
            let mut listeners = port.listeners().iter();
            let listener = listeners.find(|listener| listener.name == name)?;
            Some((open.number, Arc::clone(listener)))
        })
    }

    /// Has what is served under a listener's name go on, where nothing has taken its place; false where it cannot.
    fn keep(&self, name: &str, ports: &mut BTreeMap<u16, Port>) -> bool {
        self.served(name)
            .is_some_and(|(number, listener)| add(ports, number, listener).is_ok())
    }

    /// Opens those of the ports that are not open yet. One that cannot be opened is taken out, and its listeners with it.
    fn open_new(
        &self,
        ports: &mut BTreeMap<u16, Port>,
        failed: &mut Vec<Failed>,
    ) -> BTreeMap<u16, Sockets> {
        let mut opened = BTreeMap::new();
        ports.retain(|number, port| {
            if self.open.contains_key(number) {
                return true;
            }
            match self.bind(*number) {
                Ok(sockets) => {
                    opened.insert(*number, sockets);
                    true
                }
                Err(error) => {
                    failed.extend(port.listeners().iter().map(|listener| Failed {
                        listener: listener.name.clone(),
                        reason: format!("port {number} cannot be opened: {error}"),
                    }));
                    false
                }
            }
        });
        opened
    }

    /// Opens a port at each address, for each worker.
    fn bind(&self, number: u16) -> io::Result<Sockets> {
        let mut sockets: Sockets = (0..self.workers).map(|_| Vec::new()).collect();
        for ListenAddress { address, required } in &self.config.addresses {
            let address = SocketAddr::new(address.ip(), number);
            let missing = |error: &io::Error| !required && capture::is_unavailable(error);
            match capture::check_free(address, Peer::Any) {
                Err(error) if missing(&error) => continue,
                result => result?,
            }
            for of_worker in &mut sockets {
                of_worker.push(capture::bind(address, Peer::Any)?);
            }
        }
        Ok(sockets)
    }

    /// Says what is wrong once, and in readiness for as long as it is.
    fn tell(&mut self, wanted: &v1::GatewayConfig, problems: Vec<String>) {
        for problem in &problems {
            if !self.told.contains(problem) {
                tracing::error!(
                    problem,
                    "a gateway listener is not served as its document says"
                );
            }
        }
        self.was_ready |= problems.is_empty();
        let ready = self.was_ready && !wanted.listeners.is_empty();
        let detail = match (wanted.listeners.is_empty(), problems.is_empty()) {
            (true, _) => "no Gateway document names this proxy's identity".to_owned(),
            (false, true) => {
                let ports: Vec<String> = self.open.keys().map(u16::to_string).collect();
                format!("ports {}", ports.join(", "))
            }
            (false, false) => problems.join("; "),
        };
        self.readiness.set(Component::Listeners, ready, detail);
        self.metrics.gateway.set_open_ports(self.open.len());
        self.told = problems;
    }
}

/// Adds a listener to those of its port.
fn add(
    ports: &mut BTreeMap<u16, Port>,
    number: u16,
    listener: Arc<Listener>,
) -> Result<(), ListenerError> {
    let tls = listener.speaks_tls();
    let port = ports.entry(number).or_insert_with(|| Port::new(tls));
    port.add(listener)
}

#[cfg(test)]
mod tests;
