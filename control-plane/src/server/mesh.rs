//! `MeshService`: begins a session for each stream.

use super::Shutdown;
use super::identity::caller;
use super::session::{Session, Takes, UnderWay, named, pipe};
use super::streams::Streams;
use crate::issuance::bans::Bans;
use crate::issuance::issuer::Issuer;
use crate::registry::{Outbox, Registry, WorkloadRecord};
use crate::store::Store;
use crate::telemetry::{Metrics, Throttle};
use futures_util::StreamExt as _;
use futures_util::stream::Map;
use sidewind_api::v1::mesh_service_server::MeshService;
use sidewind_api::v1::proxy_message::Message;
use sidewind_api::{Reason, v1};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::{Request, Response, Status, Streaming};

/// How long a stream may take to say who it is for.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What a stream carries to the proxy.
type Sent = Result<v1::ControlMessage, Status>;

static REFUSED: Throttle = Throttle::new();

#[derive(Debug)]
pub(super) struct MeshApi {
    pub(super) issuer: Arc<Issuer>,
    pub(super) registry: Arc<Registry>,
    pub(super) bans: Arc<Bans>,
    pub(super) store: Store,
    pub(super) streams: Arc<Streams>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
}

#[tonic::async_trait]
impl MeshService for MeshApi {
    type StreamStream = Map<Takes<UnderWay>, fn(UnderWay) -> Sent>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::ProxyMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = caller(&request)?;
        let registration = self
            .issuer
            .registration_of(caller.peer.as_deref(), SystemTime::now())
            .await?;
        if self.shutdown.has_begun() {
            return Err(Reason::ShuttingDown.status("the control plane is stopping"));
        }
        let Some(identity) = caller.peer else {
            return Err(Reason::CertificateRequired.status("a stream needs a certificate"));
        };
        let open = self.streams.open(&registration.id).map_err(|error| {
            let (spiffe_id, peer) = (&identity.id, caller.address.ip());
            if let Some(unsaid) = REFUSED.admit("streams") {
                tracing::warn!(%spiffe_id, %peer, %error, unsaid, "a stream is refused");
            }
            Reason::LimitExceeded.status(error.to_string())
        })?;
        let mut inbound = request.into_inner();
        let hello = hello(&mut inbound).await?;
        let (address, now) = (caller.address.ip(), SystemTime::now());
        let (record, refused) = WorkloadRecord::check(
            &hello,
            &identity,
            &registration,
            address,
            now,
        )
        .map_err(|error| {
            let (spiffe_id, reason) = (&identity.id, error.reason());
            if let Some(unsaid) = REFUSED.admit(reason.as_str()) {
                tracing::warn!(%spiffe_id, peer = %address, %error, unsaid, "a hello is refused");
            }
            reason.status(error.to_string())
        })?;
        for sentence in &refused {
            if let Some(unsaid) = REFUSED.admit("in-part") {
                tracing::warn!(spiffe_id = %identity.id, peer = %address, unsaid, "{sentence}");
            }
        }
        tracing::info!(
            spiffe_id = %identity.id,
            instance_id = hello.instance_id,
            workload = hello.workload_name,
            address = %record.address,
            version = hello.version,
            "a proxy connected"
        );
        let (sender, receiver) = pipe();
        let outbox = Arc::new(Outbox::default());
        let session = Session {
            connected: self
                .registry
                .connect(record, &identity.serial_hex, Arc::clone(&outbox)),
            outbox,
            inbound,
            sender,
            identity,
            bans: Arc::clone(&self.bans),
            returned: None,
            store_away: self.store.is_away_from_others(),
            _open: open,
            metrics: Arc::clone(&self.metrics),
        };
        session.connected.register(registration);
        tokio::spawn(session.run(refused));
        let unboxed: fn(UnderWay) -> Sent = |message| *message;
        Ok(Response::new(receiver.map(unboxed)))
    }
}

async fn hello(inbound: &mut Streaming<v1::ProxyMessage>) -> Result<v1::ProxyHello, Status> {
    let message = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Reason::InvalidMessage.status("no hello came within 10 seconds"))?
        .map_err(named)?;
    match message.and_then(|message| message.message) {
        Some(Message::Hello(hello)) => Ok(hello),
        _ => Err(Reason::InvalidMessage.status("the first message of a stream must be a hello")),
    }
}
