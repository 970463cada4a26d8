//! Who is in the mesh, and who wants to know.
//!
//! - [`workload`]: what a proxy registers, checked
//! - `directory`: the workloads, by address and by service
//! - `resolve`: a destination into its service and endpoints
//! - `subscriptions`: which destinations are wanted by which streams, and what each depends on
//! - `bundles`: which trust bundles each stream gets
//! - [`acknowledgements`]: what each live proxy has said that it has in use
//! - `remote`, [`sharing`]: workloads whose streams are at other replicas, and how they are heard of
//! - [`outbox`]: what one stream has yet to send, the newest state of each thing
//!
//! A change marks topics (an address, a service) as dirty; once a few milliseconds of changes have
//! gathered, the destinations that depend on them are resolved again, each once, and those whose answer is
//! another go to the outboxes of their subscribers. Nothing is polled and nothing queues up: a stream that
//! reads slowly gets the newest state when it reads.

pub mod acknowledgements;
mod bundles;
mod directory;
pub mod outbox;
mod remote;
mod resolve;
pub mod sharing;
mod subscriptions;
pub mod workload;

pub use outbox::{Outbox, Outgoing};
pub use resolve::Query;
pub use workload::{RegistrationError, WorkloadKey, WorkloadRecord};

use crate::config::Config;
use crate::store::Registration;
use crate::store::writer::{Write, Writer};
use crate::telemetry::Metrics;
use acknowledgements::{Acknowledgements, Laggard};
use directory::Directory;
use outbox::EndReason;
use remote::Remote;
use resolve::View;
use sidewind_api::{BanList, ServiceName, v1};
use sidewind_identity::SpiffeId;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subscriptions::Subscriptions;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long workloads from before a restart are served without their proxies being back.
pub const CONFIRMATION_TIME: Duration = Duration::from_secs(30);
/// How long changes gather before they are sent on.
const GATHERING_TIME: Duration = Duration::from_millis(20);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Names one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u64);

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// Workloads at an address.
    Address(std::net::IpAddr),
    /// Workloads of a service, and whether it is known at all.
    Service(ServiceName),
}

/// The registry. Shared by every stream.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    changed: Notify,
    next_stream: AtomicU64,
    closing: AtomicBool,
    plaintext: v1::PlaintextMode,
    writer: Writer,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    directory: Directory,
    remote: Remote,
    subscriptions: Subscriptions,
    streams: HashMap<StreamId, Stream>,
    acknowledgements: Acknowledgements,
    config: Arc<Config>,
    policy_version: u64,
    /// Of the own trust domain.
    bundles: Arc<v1::TrustBundles>,
    federated: bundles::Federated,
    bans: Arc<v1::Bans>,
    ban_list: BanList,
    tainted: Arc<v1::TaintedAuthorities>,
    dirty: HashSet<Topic>,
    unconfirmed_until: Instant,
}

#[derive(Debug)]
struct Stream {
    key: WorkloadKey,
    outbox: Arc<Outbox>,
    serial_hex: String,
    /// What the workload is registered by, once that is noted.
    registration: Option<Arc<Registration>>,
    /// The bundles that it was sent last.
    bundles: Arc<v1::TrustBundles>,
}

/// A stream's place in the registry; dropping it takes the workload out of discovery.
#[derive(Debug)]
pub struct Connected {
    registry: Arc<Registry>,
    id: StreamId,
}

impl Registry {
    /// A registry with the workloads that were known before a restart.
    #[must_use]
    pub fn new(
        plaintext: v1::PlaintextMode,
        bundles: v1::TrustBundles,
        known: Vec<WorkloadRecord>,
        writer: Writer,
        metrics: Arc<Metrics>,
    ) -> Self {
        let state = State {
            directory: Directory::restore(known),
            remote: Remote::default(),
            subscriptions: Subscriptions::default(),
            streams: HashMap::new(),
            acknowledgements: Acknowledgements::default(),
            config: Arc::default(),
            policy_version: unix_milliseconds(),
            bundles: Arc::new(bundles),
            federated: bundles::Federated::new(),
            bans: Arc::default(),
            ban_list: BanList::default(),
            tainted: Arc::default(),
            dirty: HashSet::new(),
            unconfirmed_until: Instant::now() + CONFIRMATION_TIME,
        };
        let registry = Self {
            state: Mutex::new(state),
            changed: Notify::new(),
            next_stream: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            plaintext,
            writer,
            metrics,
        };
        registry.measure(&registry.state());
        registry
    }

    /// Learns which services belong to the mesh, so that one whose workloads are away has no endpoints and
    /// is not taken for an outside host.
    pub fn learn_services(&self, registration: &Registration) {
        let mut state = self.state();
        for service in &registration.services {
            if state.directory.learn_service(service) {
                state.dirty.insert(Topic::Service(service.clone()));
            }
        }
        self.notify(&state);
    }

    /// Registers a workload for as long as what is given back lives. A stream of the same process is
    /// replaced, without the workload leaving discovery in between.
    pub fn connect(
        self: &Arc<Self>,
        record: WorkloadRecord,
        serial_hex: &str,
        outbox: Arc<Outbox>,
    ) -> Connected {
        let id = StreamId(self.next_stream.fetch_add(1, Ordering::Relaxed));
        let key = record.key.clone();
        let persisted = record.to_api();
        let proxy = Laggard::of(&record);
        let mut state = self.state();
        state.forget_stream_of(&key, EndReason::Replaced);
        let state = &mut *state;
        state.acknowledgements.add(id, proxy);
        let topics = state.directory.insert(record, Some(id));
        state.dirty.extend(topics);
        if state.ban_list.refuses(&key.spiffe_id, serial_hex) {
            // Banned since it was let in.
            outbox.end(EndReason::Banned);
        }
        outbox.put_bans(Arc::clone(&state.bans));
        outbox.put_bundles(Arc::clone(&state.bundles));
        if !state.tainted.subject_key_ids.is_empty() {
            outbox.put_tainted(Arc::clone(&state.tainted));
        }
        outbox.put_gateway(gateway(state, &key.spiffe_id));
        let policy = self.policy(state, &key.spiffe_id);
        outbox.put_policy(state.with_port_limits(policy, &key));
        let serial_hex = serial_hex.to_owned();
        let stream = Stream {
            key,
            outbox,
            serial_hex,
            registration: None,
            bundles: Arc::clone(&state.bundles),
        };
        state.streams.insert(id, stream);
        self.measure(state);
        self.notify(state);
        self.writer.write(Write::WorkloadCame(Box::new(persisted)));
        Connected {
            registry: Arc::clone(self),
            id,
        }
    }

    /// Takes the resources that are to be used from now on.
    pub fn set_config(&self, config: Arc<Config>) {
        let mut state = self.state();
        let state = &mut *state;
        state.config = config;
        state.policy_version = (state.policy_version + 1).max(unix_milliseconds());
        let mut policies: HashMap<&SpiffeId, Arc<v1::InboundPolicy>> = HashMap::new();
        for stream in state.streams.values() {
            let id = &stream.key.spiffe_id;
            let policy = policies.entry(id).or_insert_with(|| self.policy(state, id));
            stream.outbox.put_policy(Arc::clone(policy));
            stream.outbox.put_gateway(gateway(state, id));
            let policy = state.with_port_limits(Arc::clone(policy), &stream.key);
            stream.outbox.put_policy(policy);
        }
        state.send_bundles();
        let view = View::new(&state.directory, &state.config, &state.bundles);
        let changed = state.subscriptions.resolve_all(&view);
        send(&state.streams, changed);
    }

    /// Sends who is banned to every stream, and ends the streams of those who are.
    pub fn set_bans(&self, bans: v1::Bans) {
        // What cannot be read was refused when it was set.
        let (list, _) = BanList::from_api(&bans);
        let mut state = self.state();
        state.bans = Arc::new(bans);
        state.ban_list = list.clone();
        for stream in state.streams.values() {
            if list.refuses(&stream.key.spiffe_id, &stream.serial_hex) {
                stream.outbox.end(EndReason::Banned);
            } else {
                stream.outbox.put_bans(Arc::clone(&state.bans));
            }
        }
    }

    /// Sends the complete list of authorities that are not to be relied on to every stream.
    pub fn set_tainted(&self, tainted: v1::TaintedAuthorities) {
        let mut state = self.state();
        if *state.tainted == tainted {
            return;
        }
        state.tainted = Arc::new(tainted);
        for stream in state.streams.values() {
            stream.outbox.put_tainted(Arc::clone(&state.tainted));
        }
    }

    /// Every workload, for people.
    #[must_use]
    pub fn workloads(&self) -> Vec<v1::Workload> {
        let state = self.state();
        let mut workloads: Vec<_> = state
            .directory
            .records()
            .map(WorkloadRecord::to_api)
            .collect();
        workloads.sort_by(|a, b| {
            let key = |w: &v1::Workload| {
                (
                    w.spiffe_id.clone(),
                    w.workload_name.clone(),
                    w.address.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        workloads
    }

    /// Ends every stream and keeps the workloads in the store, so that they are known after the restart.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        for stream in self.state().streams.values() {
            stream.outbox.end(EndReason::ShuttingDown);
        }
    }

    /// Sends changes on as they come. Runs until dropped.
    pub async fn run(&self) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(GATHERING_TIME).await,
                _ = sweep.tick() => self.sweep(),
            }
            self.flush();
        }
    }

    /// Resolves again what depends on what has changed.
    fn flush(&self) {
        let mut state = self.state();
        if state.dirty.is_empty() {
            return;
        }
        let state = &mut *state;
        let dirty = std::mem::take(&mut state.dirty);
        let view = View::new(&state.directory, &state.config, &state.bundles);
        let changed = state.subscriptions.resolve_topics(&view, &dirty);
        send(&state.streams, changed);
    }

    /// Drops workloads that did not come back after a restart, and ends the hold on left addresses.
    fn sweep(&self) {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        let mut topics = state.directory.release_addresses(now);
        if now >= state.unconfirmed_until {
            // Those of other replicas leave with their replica.
            let mut unconfirmed = state.directory.unconfirmed();
            unconfirmed.retain(|key| !state.remote.has(key));
            for key in unconfirmed {
                tracing::info!(
                    spiffe_id = %key.spiffe_id,
                    instance_id = %key.instance_id,
                    "a workload did not come back after the restart"
                );
                topics.extend(state.directory.remove(&key, now));
                self.persist_departure(&key);
            }
        }
        state.dirty.extend(topics);
        self.measure(state);
    }

    fn disconnect(&self, id: StreamId) {
        let mut state = self.state();
        let state = &mut *state;
        state.subscriptions.remove_stream(id);
        state.acknowledgements.remove(id);
        if let Some(stream) = state.streams.remove(&id)
            && !self.closing.load(Ordering::Relaxed)
            && state.directory.stream_of(&stream.key) == Some(id)
        {
            // A proxy that went to another replica first is in discovery by that one.
            let topics = match state.remote.record(&stream.key) {
                Some(record) => state.directory.insert(record, None),
                None => state.directory.remove(&stream.key, Instant::now()),
            };
            state.dirty.extend(topics);
            self.persist_departure(&stream.key);
            self.notify(state);
        }
        self.measure(state);
    }

    /// Who may call a workload of this identity.
    #[must_use]
    pub fn inbound_policy(&self, workload: &SpiffeId) -> Arc<v1::InboundPolicy> {
        self.policy(&self.state(), workload)
    }

    fn policy(&self, state: &State, workload: &SpiffeId) -> Arc<v1::InboundPolicy> {
        let (default_deny, rules) = state.config.inbound_rules(workload);
        Arc::new(v1::InboundPolicy {
            version: state.policy_version,
            plaintext: self.plaintext.into(),
            default_deny,
            rules,
            limits: Vec::new(),
            task_context_from: state.config.tellers_of_tasks(),
        })
    }

    fn persist_departure(&self, key: &WorkloadKey) {
        self.writer.write(Write::WorkloadLeft {
            spiffe_id: key.spiffe_id.to_string(),
            instance_id: key.instance_id.to_string(),
        });
    }

    fn notify(&self, state: &State) {
        if !state.dirty.is_empty() {
            self.changed.notify_one();
        }
    }

    fn measure(&self, state: &State) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let (all, unconfirmed) = state.directory.counts();
        self.metrics.workloads.set(count(all));
        self.metrics.unconfirmed_workloads.set(count(unconfirmed));
        self.metrics
            .connected_proxies
            .set(count(state.streams.len()));
        self.metrics
            .subscribed_destinations
            .set(count(state.subscriptions.len()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The policy of an identity with what one of its workloads keeps for its own ports.
    fn with_port_limits(
        &self,
        policy: Arc<v1::InboundPolicy>,
        key: &WorkloadKey,
    ) -> Arc<v1::InboundPolicy> {
        let record = self.directory.record(key);
        let ports = record.into_iter().flat_map(|record| &record.ports);
        let offered = ports.filter_map(|port| Some((port.target, port.service.as_ref()?)));
        let limits = self.config.port_limits(offered);
        if limits.is_empty() {
            return policy;
        }
        let policy = v1::InboundPolicy {
            limits,
            ..policy.as_ref().clone()
        };
        Arc::new(policy)
    }

    fn forget_stream_of(&mut self, key: &WorkloadKey, reason: EndReason) {
        let Some(id) = self.directory.stream_of(key) else {
            return;
        };
        self.subscriptions.remove_stream(id);
        self.acknowledgements.remove(id);
        if let Some(stream) = self.streams.remove(&id) {
            stream.outbox.end(reason);
        }
    }
}

fn gateway(state: &State, id: &SpiffeId) -> Arc<v1::GatewayConfig> {
    Arc::new(v1::GatewayConfig {
        version: state.policy_version,
        listeners: state.config.gateway_listeners(id),
    })
}

fn send(streams: &HashMap<StreamId, Stream>, changed: Vec<subscriptions::Change>) {
    for change in changed {
        for id in &change.subscribers {
            if let Some(stream) = streams.get(id) {
                stream
                    .outbox
                    .put_destination(change.query.clone(), change.service.clone());
            }
        }
    }
}

impl Connected {
    /// Subscribes the stream to a destination; its answer is put into the outbox at once.
    pub fn subscribe(&self, query: &Query) {
        let mut state = self.registry.state();
        let state = &mut *state;
        let Some(stream) = state.streams.get(&self.id) else {
            return;
        };
        let view = View::new(&state.directory, &state.config, &state.bundles);
        let service = state.subscriptions.add(&view, query, self.id);
        stream.outbox.put_destination(query.clone(), service);
        self.registry.measure(state);
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, query: &Query) {
        let mut state = self.registry.state();
        state.subscriptions.remove(query, self.id);
        if let Some(stream) = state.streams.get(&self.id) {
            stream.outbox.forget_destination(query);
        }
        self.registry.measure(&state);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.registry.disconnect(self.id);
    }
}

fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| u64::try_from(since.as_millis()).unwrap_or(1))
}

#[cfg(test)]
mod tests;
