//! One stream: what the proxy asks for, what it is sent, and when it ends.

mod pipe;

pub(super) use pipe::{Sends, Takes, pipe};

use super::streams::OpenStream;
use crate::issuance::bans::{Bans, Returned, TooMuch};
use crate::registry::acknowledgements::Acknowledged;
use crate::registry::outbox::EndReason;
use crate::registry::{Connected, Outbox, Outgoing, Query};
use crate::telemetry::Metrics;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_api::{Destination, MAX_SUBSCRIPTIONS, Reason, v1};
use sidewind_identity::PeerIdentity;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::{Status, Streaming};

/// The wall clock is read again at least this often: a timer does not see it jump.
const CLOCK_CHECK: Duration = Duration::from_secs(15);

/// How long the reason of an end waits for room.
const FAREWELL: Duration = Duration::from_secs(2);

/// A message on its way to the transport.
pub(super) type UnderWay = Box<Result<v1::ControlMessage, Status>>;

/// A stream being served. Ending it takes the workload out of discovery.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connected: Connected,
    pub(super) outbox: Arc<Outbox>,
    pub(super) inbound: Streaming<v1::ProxyMessage>,
    pub(super) sender: Sends<UnderWay>,
    pub(super) identity: Arc<PeerIdentity>,
    /// Whether other replicas will not hear of it soon.
    pub(super) store_away: bool,
    pub(super) bans: Arc<Bans>,
    /// What has come of the list of bans that the proxy was asked for.
    pub(super) returned: Option<Box<Returned>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) _open: OpenStream,
}

/// How a destination is spelled, by what it means: each spelling is answered as it was asked for.
#[derive(Debug, Default)]
struct Spellings {
    by_query: BTreeMap<Query, BTreeSet<String>>,
    number: usize,
}

impl Session {
    /// Serves the stream to its end.
    pub(super) async fn run(mut self, refused: Vec<String>) {
        let end = self.serve(refused).await;
        let spiffe_id = &self.identity.id;
        match end {
            Ok(()) => {
                self.metrics.count_stream_ended("closed");
                tracing::info!(%spiffe_id, "a proxy went away");
            }
            Err(status) => {
                let reason = Reason::of(&status).map_or("connection-lost", Reason::as_str);
                self.metrics.count_stream_ended(reason);
                tracing::info!(%spiffe_id, reason, detail = status.message(), "a stream ended");
                // The transport may be gone or clogged, and then nobody is told.
                drop(self.connected);
                if let Ok(true) = tokio::time::timeout(FAREWELL, self.sender.room()).await {
                    self.sender.send(Box::new(Err(status)));
                }
            }
        }
    }

    async fn serve(&mut self, refused: Vec<String>) -> Result<(), Status> {
        let hello = v1::ControlHello {
            version: sidewind_api::VERSION.to_owned(),
            refused,
            now_unix_ms: sidewind_api::clock::unix_ms(SystemTime::now()),
            store_away: self.store_away,
            ..v1::ControlHello::default()
        };
        // There is nothing in it yet.
        self.sender.send(control(ToProxy::Hello(hello)));
        self.connected.present(&self.identity);
        let mut spellings = Spellings::default();
        loop {
            tokio::select! {
                biased;
                () = self.sender.closed() => return Ok(()),
                () = expiry(self.identity.not_after) => {
                    let message = format!("the certificate of {} has expired", self.identity.id);
                    return Err(Reason::CertificateExpired.status(message));
                }
                message = self.inbound.message() => match message.map_err(named)? {
                    Some(message) => self.receive(message, &mut spellings)?,
                    None => return Ok(()),
                },
                outgoing = next(&self.sender, &self.outbox) => match outgoing {
                    Some(outgoing) => self.send(outgoing, &spellings).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn receive(
        &mut self,
        message: v1::ProxyMessage,
        spellings: &mut Spellings,
    ) -> Result<(), Status> {
        match message.message {
            Some(FromProxy::Subscribe(v1::Subscribe { destination })) => {
                let query = self.query(&destination)?;
                if spellings.number >= MAX_SUBSCRIPTIONS {
                    let message = format!("at most {MAX_SUBSCRIPTIONS} subscriptions at once");
                    return Err(Reason::LimitExceeded.status(message));
                }
                spellings.add(&query, destination);
                self.connected.subscribe(&query);
                Ok(())
            }
            Some(FromProxy::Unsubscribe(v1::Unsubscribe { destination })) => {
                let query = self.query(&destination)?;
                if spellings.remove(&query, &destination) {
                    self.connected.unsubscribe(&query);
                }
                Ok(())
            }
            Some(FromProxy::Hello(_)) => {
                Err(Reason::InvalidMessage.status("a stream has one hello, its first message"))
            }
            Some(FromProxy::Acknowledge(message)) => {
                self.connected.acknowledge(Acknowledged::read(&message));
                Ok(())
            }
            Some(FromProxy::KnownBans(part)) => {
                let invalid = |error: TooMuch| Reason::InvalidMessage.status(error.to_string());
                let returned = self.returned.as_mut().ok_or(TooMuch).map_err(invalid)?;
                if let Some(list) = returned.take(part).map_err(invalid)? {
                    self.bans.give_back(list);
                }
                Ok(())
            }
            // A newer proxy may say what this version does not know.
            None => Ok(()),
        }
    }

    fn query(&self, destination: &str) -> Result<Query, Status> {
        let destination: Destination = destination
            .parse()
            .map_err(|error| Reason::InvalidMessage.status(format!("{error}")))?;
        Ok(Query::new(destination, &self.identity.id))
    }

    async fn send(&mut self, outgoing: Outgoing, spellings: &Spellings) -> Result<(), Status> {
        let (kind, message) = match outgoing {
            Outgoing::End(EndReason::Replaced) => {
                return Err(Reason::Replaced.status("another stream of this process took over"));
            }
            Outgoing::End(EndReason::ShuttingDown) => {
                return Err(Reason::ShuttingDown.status("the control plane is stopping"));
            }
            Outgoing::End(EndReason::Banned) => {
                let message = format!("{} is banned", self.identity.id);
                return Err(Reason::Banned.status(message));
            }
            Outgoing::End(EndReason::Distrusted) => {
                let message = "the root that this certificate chains to was revoked: attest again";
                return Err(Reason::NotRegistered.status(message));
            }
            Outgoing::Bans(bans) => ("bans", ToProxy::Bans(bans.as_ref().clone())),
            Outgoing::ReturnBans => {
                self.returned = Some(Box::default());
                ("return-bans", ToProxy::ReturnBans(v1::ReturnBans {}))
            }
            Outgoing::Bundles(bundles) => (
                "trust-bundles",
                ToProxy::TrustBundles(bundles.as_ref().clone()),
            ),
            Outgoing::Tainted(tainted) => (
                "tainted-authorities",
                ToProxy::TaintedAuthorities(tainted.as_ref().clone()),
            ),
            Outgoing::Gateway(gateway) => ("gateway", ToProxy::Gateway(gateway.as_ref().clone())),
            Outgoing::Policy(policy) => (
                "inbound-policy",
                ToProxy::InboundPolicy(policy.as_ref().clone()),
            ),
            Outgoing::Destination(query, service) => {
                for destination in spellings.by_query.get(&query).into_iter().flatten() {
                    // Two spellings of one destination are rare. That nobody takes them is seen in the loop.
                    self.sender.room().await;
                    let update = v1::DestinationUpdate {
                        destination: destination.clone(),
                        service: service.as_deref().cloned(),
                    };
                    let message = control(ToProxy::Destination(update));
                    self.metrics.count_message("destination");
                    self.sender.send(message);
                }
                return Ok(());
            }
        };
        self.metrics.count_message(kind);
        self.sender.send(control(message));
        Ok(())
    }
}

/// gRPC's own refusal of a message that is too large, with the reason in a word.
pub(super) fn named(status: Status) -> Status {
    match status.code() {
        tonic::Code::OutOfRange if Reason::of(&status).is_none() => {
            Reason::LimitExceeded.status(status.message())
        }
        _ => status,
    }
}

/// The next thing to send, once the transport has room for it.
async fn next(sender: &Sends<UnderWay>, outbox: &Outbox) -> Option<Outgoing> {
    if sender.room().await {
        Some(outbox.next().await)
    } else {
        None
    }
}

/// Waits for the end of a certificate, by the wall clock.
async fn expiry(not_after: SystemTime) {
    while let Ok(left) = not_after.duration_since(SystemTime::now()) {
        // A certificate is valid to the end of its last second.
        tokio::time::sleep((left + Duration::from_secs(1)).min(CLOCK_CHECK)).await;
    }
}

fn control(message: ToProxy) -> UnderWay {
    Box::new(Ok(v1::ControlMessage {
        message: Some(message),
    }))
}

impl Spellings {
    fn add(&mut self, query: &Query, spelling: String) {
        let added = self
            .by_query
            .entry(query.clone())
            .or_default()
            .insert(spelling);
        self.number += usize::from(added);
    }

    /// Takes a spelling out; `true` when it was the last of its destination.
    fn remove(&mut self, query: &Query, spelling: &str) -> bool {
        let Some(spellings) = self.by_query.get_mut(query) else {
            return false;
        };
        self.number -= usize::from(spellings.remove(spelling));
        let last = spellings.is_empty();
        if last {
            self.by_query.remove(query);
        }
        last
    }
}
