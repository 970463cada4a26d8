//! One stream to a control plane: registered from its first message to its end.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sidewind_api::v1::control_message::Message as ControlKind;
use sidewind_api::v1::mesh_service_client::MeshServiceClient;
use sidewind_api::v1::proxy_message::Message as ProxyKind;
use sidewind_api::{Reason, v1};
use sidewind_identity::{Svid, TrustBundles, tls};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::dial::{ALPN, Dialled, Dialler, timed_out};
use super::discovery::{Discovery, MAX_DESTINATIONS};
use super::error::ControlError;
use crate::config::ControlPlaneAddress;

/// Bound on everything from the TCP connection to the control plane's hello.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Messages that wait for the connection; what is still to be said waits in `pending`.
const QUEUE: usize = 16;

/// Most destinations that wait to be said, before they are computed afresh.
const MAX_PENDING: usize = 4 * MAX_DESTINATIONS;

/// What a stream says first, and on whose behalf.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    pub(super) address: ControlPlaneAddress,
    pub(super) dialler: Dialler,
    pub(super) bundles: Arc<TrustBundles>,
    pub(super) svid: Svid,
    pub(super) hello: v1::ProxyHello,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) address: ControlPlaneAddress,
    /// What the stream is on.
    pub(super) dialled: Dialled,
    pub(super) opened: Instant,
    /// Of the certificate that the stream was opened with.
    pub(super) serial_hex: String,
    pub(super) hello: v1::ProxyHello,
    pub(super) answer: v1::ControlHello,
    outgoing: mpsc::Sender<v1::ProxyMessage>,
    incoming: Streaming<v1::ControlMessage>,
    /// What the control plane was told to follow.
    subscribed: HashSet<Arc<str>>,
    /// Destinations of which it is to be told whether they are followed; each once.
    pending: VecDeque<Arc<str>>,
    is_pending: HashSet<Arc<str>>,
    /// What is to be acknowledged, where the control plane has not been told yet.
    acknowledgement: Option<v1::Acknowledge>,
    /// Parts of a list of bans that the control plane has lost.
    given_back: VecDeque<v1::KnownBans>,
}

/// Opens a stream: hello, and the control plane's hello in answer.
pub(super) async fn open(opening: Opening) -> Result<Session, ControlError> {
    let address = opening.address.clone();
    tokio::time::timeout(OPEN_TIMEOUT, open_unbounded(opening))
        .await
        .map_err(|_| timed_out(&address, OPEN_TIMEOUT))?
}

async fn open_unbounded(opening: Opening) -> Result<Session, ControlError> {
    let address = opening.address;
    let refused = |status| ControlError::Refused {
        address: address.to_string(),
        status,
    };
    let tls = tls::client_config(&opening.svid, &opening.bundles, ALPN).map_err(|error| {
        ControlError::Local {
            what: "set up TLS",
            problem: error.to_string(),
        }
    })?;
    let dialled = opening.dialler.dial(&address, &tls).await?;
    let (outgoing, messages) = mpsc::channel(QUEUE);
    let hello = ProxyKind::Hello(opening.hello.clone());
    // The queue is empty, so there is room.
    let _ = outgoing.try_send(v1::ProxyMessage {
        message: Some(hello),
    });
    let mut client = MeshServiceClient::new(dialled.channel.clone());
    let mut incoming = client
        .stream(ReceiverStream::new(messages))
        .await
        .map_err(refused)?
        .into_inner();
    let first = incoming.message().await.map_err(refused)?;
    let Some(ControlKind::Hello(answer)) = first.and_then(|first| first.message) else {
        return Err(ControlError::BadAnswer {
            address: address.to_string(),
            problem: "no hello as its first message".to_owned(),
        });
    };
    Ok(Session {
        dialled,
        opened: Instant::now(),
        serial_hex: opening.svid.serial_hex().to_owned(),
        hello: opening.hello,
        answer,
        outgoing,
        incoming,
        subscribed: HashSet::new(),
        pending: VecDeque::new(),
        is_pending: HashSet::new(),
        acknowledgement: None,
        given_back: VecDeque::new(),
        address,
    })
}

/// What happened on a stream.
// One at a time, on the control thread: no box is worth it.
#[expect(clippy::large_enum_variant)]
#[derive(Debug)]
pub(super) enum Event {
    /// A message; none for one of a kind that this version does not know.
    Message(Option<ControlKind>),
    /// The stream has ended: why, in words; what the control plane says of it, and how long it asks to be left alone.
    Ended(String, Option<Reason>, Option<Duration>),
}

impl Session {
    /// Queues destinations that were added or removed.
    pub(super) fn queue(&mut self, destinations: impl IntoIterator<Item = Arc<str>>) {
        for destination in destinations {
            if self.is_pending.insert(destination.clone()) {
                self.pending.push_back(destination);
            }
        }
    }

    /// Tells the control plane what is in use by now. Of several that wait for room, the last is sent.
    pub(super) fn acknowledge(&mut self, in_use: v1::Acknowledge) {
        self.acknowledgement = Some(in_use);
    }

    /// Gives a list of bans back, as it came.
    pub(super) fn give_back(&mut self, bans: &v1::Bans) {
        if self.given_back.is_empty() {
            self.given_back = parts(bans);
        }
    }

    fn has_something_to_say(&self) -> bool {
        self.acknowledgement.is_some() || !self.given_back.is_empty() || !self.pending.is_empty()
    }

    /// Carries the stream on until something was received. Cancelling it loses nothing.
    pub(super) async fn next(&mut self, discovery: &Discovery) -> Event {
        loop {
            if self.pending.len() > MAX_PENDING {
                // The control plane reads more slowly than the workload finds new destinations.
                self.is_pending.clear();
                self.pending.clear();
                let all: Vec<_> = self
                    .subscribed
                    .iter()
                    .cloned()
                    .chain(discovery.all())
                    .collect();
                self.queue(all);
            }
            tokio::select! {
                received = self.incoming.message() => return match received {
                    Ok(Some(message)) => Event::Message(message.message),
                    Ok(None) => {
                        Event::Ended("the control plane ended the stream".to_owned(), None, None)
                    }
                    Err(status) => {
                        let text = format!("{}: {}", status.code(), status.message());
                        Event::Ended(text, Reason::of(&status), Reason::retry_after(&status))
                    }
                },
                permit = self.outgoing.reserve(), if self.has_something_to_say() => {
                    let Ok(permit) = permit else {
                        return Event::Ended("the connection has ended".to_owned(), None, None);
                    };
                    if let Some(in_use) = self.acknowledgement.take() {
                        let message = Some(ProxyKind::Acknowledge(in_use));
                        permit.send(v1::ProxyMessage { message });
                        continue;
                    }
                    if let Some(part) = self.given_back.pop_front() {
                        let message = Some(ProxyKind::KnownBans(part));
                        permit.send(v1::ProxyMessage { message });
                        continue;
                    }
                    let Some(destination) = self.pending.pop_front() else {
                        continue;
                    };
                    self.is_pending.remove(&destination);
                    let is_followed = discovery.is_followed(&destination);
                    if let Some(message) = tell(&mut self.subscribed, destination, is_followed) {
                        permit.send(v1::ProxyMessage { message: Some(message) });
                    }
                }
            }
        }
    }
}

/// A list in messages that are not too large for the control plane.
fn parts(bans: &v1::Bans) -> VecDeque<v1::KnownBans> {
    const PART_BYTES: usize = sidewind_api::MAX_PROXY_MESSAGE_BYTES / 2;
    let part = || v1::KnownBans {
        version: bans.version,
        seal: bans.seal.clone(),
        bans: Vec::new(),
        last: false,
    };
    let (mut parts, mut present, mut bytes) = (VecDeque::new(), part(), 0);
    for ban in &bans.bans {
        let more = prost::Message::encoded_len(ban);
        if bytes + more > PART_BYTES {
            parts.push_back(std::mem::replace(&mut present, part()));
            bytes = 0;
        }
        bytes += more;
        present.bans.push(ban.clone());
    }
    present.last = true;
    parts.push_back(present);
    parts
}

/// The message that brings the control plane's view of a destination up to date, when one is needed.
fn tell(
    subscribed: &mut HashSet<Arc<str>>,
    destination: Arc<str>,
    is_followed: bool,
) -> Option<ProxyKind> {
    let name = destination.to_string();
    if is_followed {
        subscribed
            .insert(destination)
            .then_some(ProxyKind::Subscribe(v1::Subscribe { destination: name }))
    } else {
        subscribed
            .remove(&destination)
            .then_some(ProxyKind::Unsubscribe(v1::Unsubscribe {
                destination: name,
            }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_is_told_only_what_it_does_not_know() {
        let mut subscribed = HashSet::new();
        let destination: Arc<str> = Arc::from("a:1");
        let mut tell = |followed| tell(&mut subscribed, destination.clone(), followed);
        assert_eq!(tell(false), None);
        assert!(matches!(tell(true), Some(ProxyKind::Subscribe(_))));
        assert_eq!(tell(true), None);
        assert!(matches!(tell(false), Some(ProxyKind::Unsubscribe(_))));
        assert_eq!(tell(false), None);
    }
}
