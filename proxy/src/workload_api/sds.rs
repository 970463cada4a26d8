//! Envoy's secret discovery service v3, state of the world: an Envoy beside the proxy uses the mesh's identity.

use std::fmt::Write as _;

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::gate::MAX_MESSAGE_BYTES;
use super::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use super::proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use super::push::{Pushed, stopping};
use super::secrets::{EVERYTHING, SECRET_TYPE, resource};
use super::state::Present;
use crate::telemetry::logs::Throttle;

/// Most names of one request.
const MAX_NAMES: usize = 64;

/// The service over a state.
pub(super) struct SecretService {
    present: watch::Receiver<Present>,
}

pub(super) fn server(
    present: watch::Receiver<Present>,
) -> SecretDiscoveryServiceServer<SecretService> {
    SecretDiscoveryServiceServer::new(SecretService { present })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl SecretDiscoveryService for SecretService {
    type StreamSecretsStream = Pushed<DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let subscription = Subscription::new(request.into_inner(), self.present.clone());
        let pushed = stream::unfold(Some(subscription), |subscription| async move {
            let mut subscription = subscription?;
            match subscription.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(subscription))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(pushed)))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let names = names(request.get_ref())?;
        let present = self.present.borrow().clone();
        answer(&present, &names).map(Response::new)
    }
}

/// One stream: what its client wants, and what it was sent last.
struct Subscription {
    requests: Streaming<DiscoveryRequest>,
    present: watch::Receiver<Present>,
    /// Empty until the first request.
    names: Vec<String>,
    sent: Option<Sent>,
    responses: u64,
}

struct Sent {
    version: String,
    nonce: String,
}

impl Subscription {
    fn new(requests: Streaming<DiscoveryRequest>, present: watch::Receiver<Present>) -> Self {
        Self {
            requests,
            present,
            names: Vec::new(),
            sent: None,
            responses: 0,
        }
    }

    /// The next response; none when the client has ended the stream. A secret that is as it was sent is not sent again,
    /// whatever else has changed.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            tokio::select! {
                request = self.requests.message() => {
                    let Some(request) = request? else {
                        return Ok(None);
                    };
                    if !self.take(&request)? {
                        continue;
                    }
                }
                changed = self.present.changed() => {
                    changed.map_err(|_| stopping())?;
                    if self.names.is_empty() {
                        continue;
                    }
                }
            }
            let present = self.present.borrow_and_update().clone();
            let mut response = answer(&present, &self.names)?;
            if let Some(sent) = &self.sent
                && sent.version == response.version_info
            {
                continue;
            }
            self.responses += 1;
            response.nonce = self.responses.to_string();
            self.sent = Some(Sent {
                version: response.version_info.clone(),
                nonce: response.nonce.clone(),
            });
            return Ok(Some(response));
        }
    }

    /// Takes a request, and says whether it may ask for something new.
    fn take(&mut self, request: &DiscoveryRequest) -> Result<bool, Status> {
        static REFUSED: Throttle = Throttle::new();
        if let Some(error) = &request.error_detail {
            // It keeps what it had. The same again would be refused again.
            if let Some(unsaid) = REFUSED.admit() {
                let error: String = error.message.escape_debug().take(512).collect();
                tracing::warn!(error, unsaid, "an Envoy refused a secret");
            }
        }
        let is_answer = !request.response_nonce.is_empty();
        if let Some(sent) = &self.sent
            && is_answer
            && request.response_nonce != sent.nonce
        {
            // About an earlier response; the request about the last one follows.
            return Ok(false);
        }
        let names = names(request)?;
        if names == self.names {
            return Ok(self.sent.is_none());
        }
        self.names = names;
        // Other names are another answer, even if it should have the same content.
        self.sent = None;
        Ok(true)
    }
}

/// What a request asks for, sorted, each once.
fn names(request: &DiscoveryRequest) -> Result<Vec<String>, Status> {
    if !request.type_url.is_empty() && request.type_url != SECRET_TYPE {
        return Err(Status::invalid_argument(
            "this endpoint serves envoy.extensions.transport_sockets.tls.v3.Secret alone",
        ));
    }
    if request.resource_names.len() > MAX_NAMES {
        return Err(Status::invalid_argument(format!(
            "{} names; a request has at most {MAX_NAMES}",
            request.resource_names.len()
        )));
    }
    let mut names = request.resource_names.clone();
    if names.is_empty() {
        names = EVERYTHING.map(str::to_owned).to_vec();
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// The secrets, with a version that is their digest: the same content is the same version, also after a restart.
fn answer(present: &Present, names: &[String]) -> Result<DiscoveryResponse, Status> {
    let mut digest = Context::new(&SHA256);
    let mut resources = Vec::with_capacity(names.len());
    for name in names {
        let resource = resource(present, name)?;
        digest.update(&resource.value);
        resources.push(resource);
    }
    let mut version = String::with_capacity(32);
    for byte in digest.finish().as_ref().iter().take(16) {
        // Writing to a string does not fail.
        let _ = write!(version, "{byte:02x}");
    }
    Ok(DiscoveryResponse {
        version_info: version,
        resources,
        type_url: SECRET_TYPE.to_owned(),
        nonce: String::new(),
    })
}
