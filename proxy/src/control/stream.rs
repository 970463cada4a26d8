//! Keeps a stream to a control plane open, and takes what it brings.
//!
//! There is at most one stream in use and one being opened. A new one is opened when there is none, when the
//! certificate was renewed, and when the registration changes; the old one is given up only once the new one is up.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sidewind_api::v1::control_message::Message;
use sidewind_api::{BanList, Reason, v1};
use sidewind_identity::TrustBundle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::backoff::{Backoff, as_asked};
use super::check;
use super::dial::Dialler;
use super::discovery::Resolution;
use super::error::ControlError;
use super::occasionally::Occasionally;
use super::session::{Event, Opening, Session, open};
use super::{OpenStream, Shared};
use crate::config::ControlPlaneAddress;

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// Control planes that are tried at least, to find one that has its store.
const LEAST_LOOKS: usize = 3;
/// A stream that lasted this long was no failure.
const STABLE: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Most authorities that can be tainted at once; a trust bundle has at most 16 roots.
const MAX_TAINTED: usize = 1024;

type OpenFuture = Pin<Box<dyn Future<Output = Result<Session, ControlError>> + Send>>;

/// Where goes what the stream brings.
pub(super) struct Told {
    pub(super) policy: watch::Sender<Option<Arc<v1::InboundPolicy>>>,
    pub(super) gateway: watch::Sender<Option<Arc<v1::GatewayConfig>>>,
    pub(super) bans: watch::Sender<Arc<BanList>>,
}

/// The task that owns the stream.
pub(super) struct StreamTask {
    control_planes: Vec<ControlPlaneAddress>,
    dialler: Dialler,
    shared: Arc<Shared>,
    told: Told,
    /// The newest list of bans as it was sent, for a control plane that has lost it.
    sealed_bans: Option<v1::Bans>,
    /// What to register; without ports once the workload is being withdrawn.
    hello: watch::Receiver<v1::ProxyHello>,
    /// Which of the control planes is asked next.
    next: usize,
    /// Whether the stream in use is at a control plane that has lost its store, and another is to be tried.
    looks_elsewhere: bool,
    /// Control planes in a row that had lost their store.
    without_store: usize,
    backoff: Backoff,
    /// No stream is opened before.
    not_before: Instant,
    failures: Occasionally,
    bad_messages: Occasionally,
}

impl StreamTask {
    pub(super) fn new(
        control_planes: Vec<ControlPlaneAddress>,
        dialler: Dialler,
        shared: Arc<Shared>,
        told: Told,
        hello: watch::Receiver<v1::ProxyHello>,
    ) -> Self {
        Self {
            control_planes,
            dialler,
            shared,
            told,
            sealed_bans: None,
            hello,
            next: 0,
            looks_elsewhere: false,
            without_store: 0,
            backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF),
            not_before: Instant::now(),
            failures: Occasionally::default(),
            bad_messages: Occasionally::default(),
        }
    }

    /// Runs for as long as the process does.
    pub(super) async fn run(mut self) {
        let mut current: Option<Session> = None;
        let mut opening: Option<OpenFuture> = None;
        let mut identity = self.shared.publisher.subscribe();
        let mut hello = self.hello.clone();
        let mut bans = self.told.bans.subscribe();
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let discovery = self.shared.discovery.clone();
        loop {
            let wanted = opening.is_none() && self.wants_stream(current.as_ref());
            if wanted && Instant::now() >= self.not_before {
                opening = self.begin();
            }
            let retry = wanted && opening.is_none();
            tokio::select! {
                opened = poll_opening(&mut opening), if opening.is_some() => {
                    opening = None;
                    match opened {
                        Ok(session) => current = Some(self.adopt(session)),
                        Err(error) => {
                            let asked = error.retry_after();
                            self.look_into(error.reason());
                            self.fail(&error.to_string(), asked, current.is_some());
                        }
                    }
                }
                event = next_event(&mut current, &discovery), if current.is_some() => match event {
                    Event::Message(Some(Message::ReturnBans(_))) => {
                        if let (Some(session), Some(bans)) = (&mut current, &self.sealed_bans) {
                            session.give_back(bans);
                        }
                    }
                    Event::Message(message) => self.apply(message),
                    Event::Ended(text, reason, asked) => {
                        self.look_into(reason);
                        let lasted = current.take().map(|session| session.opened.elapsed());
                        self.shared.stream.send_replace(None);
                        // While the next one is being opened, the control plane ends this one itself.
                        if opening.is_none() {
                            self.lose(&text, asked, lasted.unwrap_or_default());
                        }
                    }
                },
                () = discovery.changed() => {
                    let dirty = discovery.take_dirty();
                    if let Some(session) = &mut current {
                        session.queue(dirty);
                    }
                }
                _ = sweep.tick() => discovery.sweep(),
                () = tokio::time::sleep_until(self.not_before), if retry => {}
                // A closed channel means that the process is ending; the other branches go on until it has.
                Ok(()) = identity.changed() => {
                    if let Some(session) = &mut current {
                        session.acknowledge(self.in_use());
                    }
                }
                Ok(()) = bans.changed() => {
                    if let Some(session) = &mut current {
                        session.acknowledge(self.in_use());
                    }
                }
                Ok(()) = hello.changed() => {}
            }
        }
    }

    /// Whether the stream in use, if any, is out of date.
    fn wants_stream(&self, current: Option<&Session>) -> bool {
        let Some(svid) = self.shared.publisher.svid() else {
            return false;
        };
        self.looks_elsewhere
            || current.is_none_or(|session| {
                session.serial_hex != svid.serial_hex() || session.hello != *self.hello.borrow()
            })
    }

    fn begin(&mut self) -> Option<OpenFuture> {
        if !std::mem::take(&mut self.looks_elsewhere) {
            self.without_store = 0;
        }
        let count = self.control_planes.len().max(1);
        let opening = Opening {
            address: self.control_planes.get(self.next % count)?.clone(),
            dialler: self.dialler.clone(),
            bundles: self.shared.publisher.bundles(),
            svid: self.shared.publisher.svid()?,
            hello: self.hello.borrow().clone(),
        };
        Some(Box::pin(open(opening)))
    }

    /// Makes a stream the one in use, and subscribes on it to everything that is followed.
    fn adopt(&mut self, mut session: Session) -> Session {
        self.judge_store(&session);
        self.shared.discovery.take_dirty();
        session.acknowledge(self.in_use());
        session.queue(self.shared.discovery.all());
        let control_plane = session.address.to_string();
        self.shared
            .compare_clock(&control_plane, session.answer.now_unix_ms);
        self.shared.stream.send_replace(Some(OpenStream {
            address: session.address.clone(),
            serial_hex: session.serial_hex.clone(),
            dialled: session.dialled.clone(),
        }));
        tracing::info!(
            control_plane = %session.address,
            control_plane_version = session.answer.version,
            "connected to the control plane"
        );
        for refused in &session.answer.refused {
            tracing::warn!(
                reason = refused,
                "the control plane refused part of the registration"
            );
        }
        self.shared.status.send_modify(|status| {
            status.connected = true;
            status.control_plane = Some(session.address.to_string());
            status.control_plane_version = Some(session.answer.version.clone());
            status.local_address = Some(session.dialled.local);
            status.refused = session.answer.refused.clone();
            status.stream_error = None;
            status.streams_opened += 1;
        });
        session
    }

    /// The other control planes do not hear of a registration at one that has lost their store, and once the certificate
    /// that they know of has ended they would drop this workload. So another one is tried, while this stream is in
    /// use; where none has the store, the last one is as good as any, until the next renewal.
    fn judge_store(&mut self, session: &Session) {
        if !session.answer.store_away {
            self.without_store = 0;
            return;
        }
        self.without_store += 1;
        // One address may be a load balancer's.
        if self.without_store < self.control_planes.len().max(LEAST_LOOKS) {
            tracing::info!(
                control_plane = %session.address,
                "this control plane has lost its store; another is tried"
            );
            self.looks_elsewhere = true;
            self.next = self.next.wrapping_add(1);
            self.not_before = Instant::now() + self.backoff.next();
        }
    }

    /// What new connections use.
    fn in_use(&self) -> v1::Acknowledge {
        let bundles = self.shared.publisher.bundles();
        let sequence = |bundle: &TrustBundle| v1::BundleSequence {
            trust_domain: bundle.trust_domain().to_string(),
            sequence: bundle.sequence(),
        };
        let svid = self.shared.publisher.svid();
        v1::Acknowledge {
            bundles: bundles.iter().map(sequence).collect(),
            bans_version: self.told.bans.borrow().version(),
            svid_serial: svid
                .map(|svid| svid.serial_hex().to_owned())
                .unwrap_or_default(),
        }
    }

    /// A try to open a stream has failed.
    fn fail(&mut self, error: &str, asked: Option<Duration>, still_connected: bool) {
        self.next = self.next.wrapping_add(1);
        if asked.is_some() {
            // It is there, and knows when there is a place.
            self.backoff.reset();
        }
        let asked = asked.map(as_asked).unwrap_or_default();
        let wait = self.backoff.next().max(asked);
        self.not_before = Instant::now() + wait;
        if let Some(times) = self.failures.count() {
            tracing::warn!(
                error,
                times,
                "no stream to the control plane; what is known stays in use"
            );
        }
        self.shared.status.send_modify(|status| {
            status.connected = still_connected;
            status.stream_error = Some(error.to_owned());
        });
    }

    /// Has the identity looked into where the control plane says that this workload is to have none: whoever hands it
    /// out is to know before the next renewal.
    fn look_into(&self, reason: Option<Reason>) {
        if matches!(reason, Some(Reason::Banned | Reason::NotRegistered)) {
            self.shared.doubt.notify_one();
        }
    }

    /// The stream in use has ended.
    fn lose(&mut self, reason: &str, asked: Option<Duration>, lasted: Duration) {
        if lasted >= STABLE {
            self.backoff.reset();
            self.failures.reset();
        }
        self.fail(reason, asked, false);
    }

    fn apply(&mut self, message: Option<Message>) {
        match message {
            // A kind of message that a newer control plane knows.
            Some(Message::Bans(bans)) => {
                self.apply_bans(&bans);
                self.keep_sealed(bans);
            }
            // Answered where it came.
            Some(Message::ReturnBans(_)) => {}
            None => {
                tracing::debug!("a message of an unknown kind was ignored");
            }
            Some(Message::TaintedAuthorities(message)) => self.apply_tainted(message),
            Some(Message::Hello(_)) => self.complain("a second hello"),
            Some(Message::TrustBundles(message)) => {
                match self.shared.publisher.update_bundles(message.bundles) {
                    Ok(update) => {
                        for problem in update.problems {
                            self.complain(&problem);
                        }
                        if update.changed {
                            tracing::info!("trust bundles updated");
                        }
                    }
                    Err(error) => self.complain(&error.to_string()),
                }
            }
            Some(Message::Destination(update)) => self.apply_destination(update),
            Some(Message::Gateway(gateway)) => self.apply_gateway(gateway),
            Some(Message::InboundPolicy(policy)) => match check::policy(&policy) {
                Ok(()) => self.apply_policy(policy),
                Err(problem) => self.complain(&format!("inbound policy: {problem}")),
            },
        }
    }

    /// An older list, as a control plane restored from a copy has it, lifts nothing: what it adds counts as well.
    fn apply_bans(&mut self, message: &v1::Bans) {
        let (list, problems) = BanList::from_api(message);
        for problem in problems {
            self.complain(&problem);
        }
        self.told.bans.send_if_modified(|present| {
            let next = match list.version() < present.version() {
                true => present.with(&list),
                false => list.clone(),
            };
            let is_new = next != **present;
            if is_new {
                tracing::info!(version = next.version(), "the list of bans has changed");
                *present = Arc::new(next);
            }
            is_new
        });
    }

    fn keep_sealed(&mut self, bans: v1::Bans) {
        let newest = self.sealed_bans.as_ref().map(|kept| kept.version);
        if !bans.seal.is_empty() && newest.is_none_or(|newest| bans.version >= newest) {
            self.sealed_bans = Some(bans);
        }
    }

    fn apply_destination(&mut self, update: v1::DestinationUpdate) {
        let resolution = match update.service {
            None => Resolution::Outside,
            Some(service) => {
                let (service, problems) = check::service(service);
                for problem in problems {
                    self.complain(&format!("destination {:?}: {problem}", update.destination));
                }
                Resolution::Service(Arc::new(service))
            }
        };
        if !self.shared.discovery.apply(&update.destination, resolution) {
            // It was unsubscribed while this was under way.
            tracing::debug!(
                destination = update.destination,
                "nobody follows this destination"
            );
        }
    }

    fn apply_tainted(&mut self, message: v1::TaintedAuthorities) {
        if message.subject_key_ids.len() > MAX_TAINTED {
            self.complain("the list of tainted authorities is too long");
            return;
        }
        let tainted: BTreeSet<String> = message.subject_key_ids.into_iter().collect();
        self.shared.tainted.send_if_modified(|present| {
            let is_new = *present != tainted;
            if is_new {
                tracing::info!(number = tainted.len(), "tainted authorities updated");
                *present = tainted;
            }
            is_new
        });
    }

    /// What is wrong with it is found by whoever opens the listeners, and keeps the last good state.
    fn apply_gateway(&mut self, gateway: v1::GatewayConfig) {
        self.told.gateway.send_if_modified(|present| {
            let is_new = present.as_deref() != Some(&gateway);
            if is_new {
                tracing::info!(
                    version = gateway.version,
                    listeners = gateway.listeners.len(),
                    "gateway listeners updated"
                );
                *present = Some(Arc::new(gateway));
            }
            is_new
        });
    }

    fn apply_policy(&mut self, policy: v1::InboundPolicy) {
        self.told.policy.send_if_modified(|present| {
            let is_new = present.as_deref() != Some(&policy);
            if is_new {
                tracing::info!(
                    version = policy.version,
                    rules = policy.rules.len(),
                    default_deny = policy.default_deny,
                    "inbound policy updated"
                );
                *present = Some(Arc::new(policy));
            }
            is_new
        });
        self.shared
            .status
            .send_if_modified(|status| !std::mem::replace(&mut status.policy_received, true));
    }

    fn complain(&mut self, problem: &str) {
        if let Some(times) = self.bad_messages.count() {
            tracing::warn!(problem, times, "a message of the control plane was ignored");
        }
        self.shared
            .status
            .send_modify(|status| status.bad_messages += 1);
    }
}

async fn poll_opening(opening: &mut Option<OpenFuture>) -> Result<Session, ControlError> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

async fn next_event(
    current: &mut Option<Session>,
    discovery: &super::discovery::Discovery,
) -> Event {
    match current {
        Some(session) => session.next(discovery).await,
        None => std::future::pending().await,
    }
}
