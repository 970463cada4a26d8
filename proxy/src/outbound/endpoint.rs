//! One request to one endpoint: through the mesh where a sidecar stands beside it, else in plaintext.

use std::{fmt, net::SocketAddr, num::NonZeroU32, pin::pin, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};

use crate::{
    airflow::baggage,
    balance::{EndpointDesc, MeshTarget},
    control::MeshIdentity,
    copy::{self, Progress},
    errors::{Chain, ErrorCode, ProxyError},
    exchange::Exchange,
    http::{
        Body, H1Connection, H2SendError, SendBodyError, h2_client,
        headers::{self, SIDEWIND_DESTINATION, SIDEWIND_PROTOCOL},
        send_h2,
    },
    mesh::{ConnectError, TunnelError, TunnelStream, Wire},
    plaintext::clean_response,
    telemetry::TaskContext,
    upgrade,
    worker::Worker,
};

/// Bytes between HTTP/1.1 and the tunnel that it goes through.
const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;

/// When a client may try again that found every mesh connection in use: streams end all the time.
const POOL_FULL_RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
impl crate::copy::Connection for tokio::io::DuplexStream {}

impl EndpointDesc {
    /// An address that nobody knows more of.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            mesh: None,
            workload_name: Arc::from(""),
            weight: NonZeroU32::MIN,
            zone: Arc::from(""),
            priority: 0,
            affinity: None,
        }
    }

    /// Sends a request, which goes to the workload in HTTP/2 when `http2`, and gives back the response to it.
    pub(crate) async fn send(
        &self,
        worker: &Rc<Worker>,
        exchange: &Rc<Exchange>,
        request: Request<Body>,
        http2: bool,
    ) -> Result<Response<Body>, ProxyError> {
        exchange.sent_to(self.address, self.mesh.as_ref().map(|mesh| &mesh.id));
        let sending = pin!(self.send_somehow(worker, exchange, request, http2));
        exchange.head_within(self.address, sending).await
    }

    async fn send_somehow(
        &self,
        worker: &Rc<Worker>,
        exchange: &Rc<Exchange>,
        request: Request<Body>,
        http2: bool,
    ) -> Result<Response<Body>, ProxyError> {
        match &self.mesh {
            None => {
                let client = &worker.endpoints;
                // Apart, like what follows that is rare: each request in the mesh would have room for it.
                Box::pin(client.send(self.address, exchange, request, http2)).await
            }
            Some(mesh) => {
                let identity = worker.caller(&exchange.task()).await?;
                exchange.sent_as(&identity.id);
                self.send_by_mesh(worker, exchange, &identity, mesh, request, http2)
                    .await
                    .map_err(|error| exchange.blame(error))
            }
        }
    }

    /// Opens a connection for opaque bytes through the mesh.
    pub(crate) async fn tunnel(
        &self,
        worker: &Rc<Worker>,
        identity: &Arc<MeshIdentity>,
        mesh: &MeshTarget,
        task: Option<&TaskContext>,
    ) -> Result<TunnelStream, ProxyError> {
        let mut headers = http::HeaderMap::new();
        if let Some(task) = task {
            baggage::put(&mut headers, task);
        }
        worker
            .mesh
            .tunnel(identity, mesh.address, &mesh.id, self.address, headers)
            .await
            .map_err(|error| self.tunnel_failed(mesh, error))
    }

    async fn send_by_mesh(
        &self,
        worker: &Rc<Worker>,
        exchange: &Rc<Exchange>,
        identity: &Arc<MeshIdentity>,
        mesh: &MeshTarget,
        mut request: Request<Body>,
        http2: bool,
    ) -> Result<Response<Body>, ProxyError> {
        if exchange.wants_upgrade() {
            let tunnelled =
                |request| self.send_by_tunnel(worker, exchange, identity, mesh, request, false);
            return Box::pin(upgrade::relay(request, exchange, self.address, tunnelled)).await;
        }
        let connection = worker
            .mesh
            .connect(identity, mesh.address, &mesh.id)
            .await
            .map_err(|error| self.connect_failed(mesh, &error))?;
        if connection.wire() == Wire::Hbone {
            // The place on the connection is for the tunnel.
            drop(connection);
            let tunnelled = self.send_by_tunnel(worker, exchange, identity, mesh, request, http2);
            let response = Box::pin(tunnelled).await?;
            return clean_response(self.address, response, None);
        }
        self.to_mesh(exchange, &mut request, http2)?;
        let (sender, lease) = connection.into_parts();
        exchange.hold(lease);
        send_h2(sender, request, worker.config.limits.patience.reader)
            .await
            .map_err(|error| {
                let peer = format_args!("The proxy of {} at {}", mesh.id, self.address);
                Self::stream_failed(peer, error)
            })
    }

    /// With a peer that speaks HBONE alone, and for upgrades, HTTP goes through a tunnel as the workload is to get it.
    async fn send_by_tunnel(
        &self,
        worker: &Rc<Worker>,
        exchange: &Exchange,
        identity: &Arc<MeshIdentity>,
        mesh: &MeshTarget,
        request: Request<Body>,
        http2: bool,
    ) -> Result<Response<Body>, ProxyError> {
        let (mut head, body) = request.into_parts();
        let authority = exchange.authority(&head, self.address)?;
        if http2 {
            headers::request_to_http2(&mut head, authority)?;
        } else {
            headers::request_to_http1(&mut head, Some(&authority))?;
        }
        let task = exchange.task();
        // A peer that reads the tunnel as HTTP takes the request's word, and another one the tunnel's.
        if let Some(task) = task.now() {
            baggage::put(&mut head.headers, task);
        }
        let request = Request::from_parts(head, body);
        let tunnel = self.tunnel(worker, identity, mesh, task.now()).await?;
        // hyper wants what it reads to be movable between threads, which a tunnel is not.
        let (near, far) = copy::pipe(TUNNEL_BUFFER_BYTES);
        tokio::task::spawn_local(async move {
            let progress = Progress::default();
            if let Err(error) = copy::copy_tunnel(far, tunnel, None, &progress).await {
                tracing::debug!(error = %Chain(&error), "a tunnel for HTTP broke off");
            }
        });
        if http2 {
            let made = h2_client::client_builder()
                .handshake::<_, Bytes>(near)
                .await;
            let (sender, connection) = made.map_err(|error| self.broke_off(&error))?;
            // Ends with its only stream.
            tokio::task::spawn_local(connection);
            let sent = send_h2(sender, request, worker.config.limits.patience.reader).await;
            return sent.map_err(|error| Self::stream_failed(self.address, error));
        }
        let connection = H1Connection::new(near)
            .await
            .map_err(|error| self.broke_off(&error))?;
        connection.send(request).await.map_err(|error| {
            if error.malformed {
                let message = format_args!("{} sent no valid HTTP.", self.address);
                let cause = Chain(&error).to_string();
                return ProxyError::new(ErrorCode::UpstreamProtocol, message).with_source(cause);
            }
            self.broke_off(&error)
        })
    }

    fn broke_off(&self, error: &(dyn std::error::Error + 'static)) -> ProxyError {
        let message = format_args!("{} gave no complete response.", self.address);
        ProxyError::new(ErrorCode::UpstreamReset, message).with_source(Chain(error).to_string())
    }

    /// Makes of a request what goes over the mesh wire.
    fn to_mesh(
        &self,
        exchange: &Exchange,
        request: &mut Request<Body>,
        http2: bool,
    ) -> Result<(), ProxyError> {
        let (mut head, body) = std::mem::take(request).into_parts();
        let authority = exchange.authority(&head, self.address)?;
        headers::request_to_http2(&mut head, authority)?;
        *request = Request::from_parts(head, body);
        // An IP address and a port are always a valid header value.
        if let Ok(address) = HeaderValue::try_from(self.address.to_string()) {
            request.headers_mut().insert(SIDEWIND_DESTINATION, address);
        }
        if let Some(task) = exchange.task().now() {
            baggage::put(request.headers_mut(), task);
        }
        if http2 {
            let value = HeaderValue::from_static("h2");
            request.headers_mut().insert(SIDEWIND_PROTOCOL, value);
        }
        Ok(())
    }

    fn connect_failed(&self, mesh: &MeshTarget, error: &ConnectError) -> ProxyError {
        let code = match error {
            ConnectError::ConnectTimeout { .. } => ErrorCode::ConnectTimeout,
            ConnectError::Tcp { .. } | ConnectError::GivenUp { .. } => ErrorCode::ConnectFailed,
            ConnectError::PoolFull { .. } => ErrorCode::Overloaded,
            ConnectError::WrongIdentity { .. } => ErrorCode::WrongIdentity,
            ConnectError::Banned { .. } => ErrorCode::PeerBanned,
            _ => ErrorCode::TlsFailed,
        };
        let message = match code {
            ErrorCode::Overloaded => format!(
                "This proxy has as many mesh connections as it may hold, so {} was not reached.",
                self.address
            ),
            ErrorCode::WrongIdentity => format!(
                "Somebody else than {} answers at {}.",
                mesh.id, mesh.address
            ),
            ErrorCode::PeerBanned => format!("{} at {} is banned.", mesh.id, mesh.address),
            ErrorCode::TlsFailed => format!("No mutual TLS with {} at {}.", mesh.id, mesh.address),
            _ => format!(
                "The proxy of {} at {} accepted no connection.",
                self.address, mesh.address
            ),
        };
        let failure = ProxyError::new(code, message).with_source(Chain(error).to_string());
        match code {
            ErrorCode::Overloaded => failure.with_retry_after(POOL_FULL_RETRY_AFTER),
            _ => failure,
        }
    }

    fn tunnel_failed(&self, mesh: &MeshTarget, error: TunnelError) -> ProxyError {
        match error {
            TunnelError::Connect(error) => self.connect_failed(mesh, &error),
            TunnelError::Refused {
                ref code,
                ref message,
                ..
            } => {
                let known = code.as_deref().and_then(ErrorCode::from_name);
                let said = message.as_deref().unwrap_or("no reason given");
                ProxyError::new(
                    known.unwrap_or(ErrorCode::ConnectFailed),
                    format_args!(
                        "The proxy of {} refused the connection: {said}",
                        self.address
                    ),
                )
            }
            error => ProxyError::new(
                ErrorCode::ConnectFailed,
                format_args!("The proxy of {} opened no tunnel.", self.address),
            )
            .with_source(Chain(&error).to_string()),
        }
    }

    fn stream_failed(peer: impl fmt::Display, error: H2SendError) -> ProxyError {
        let (code, what) = if error.unsendable {
            (
                ErrorCode::BadRequest,
                "speaks HTTP/2, which has no such request",
            )
        } else if error.unprocessed {
            (ErrorCode::ConnectFailed, "took no further request")
        } else if matches!(error.body, Some(SendBodyError::Stalled(_))) {
            (ErrorCode::UpstreamStalled, "took no more of the request")
        } else {
            (ErrorCode::UpstreamReset, "gave no complete response")
        };
        ProxyError::new(code, format_args!("{peer} {what}.")).with_source(error)
    }
}
