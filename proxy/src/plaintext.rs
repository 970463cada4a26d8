//! HTTP in plaintext to an address: to the workload beside this proxy, or to what is outside the mesh.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response, StatusCode};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::{
    capture::{self, Peer},
    config::Config,
    copy::Connection,
    errors::{Chain, ErrorCode, ProxyError},
    exchange::Exchange,
    http::{
        Body, H1ClientSettings, H1Connection, H1Pool, H2Pool, H2PoolError, H2PoolLimits, PoolKey,
        PoolLimits, SendBodyError, SendError,
        headers::{self, Upgrade, examine_response},
    },
    retry::{copy_head, is_idempotent},
    upgrade,
};

/// How long what was sent may stay unacknowledged before the connection counts as dead; without it a server that vanished
/// is noticed after a quarter of an hour (linkerd2 #13023).
const VANISHED: Duration = Duration::from_secs(30);

/// When a connection on which nothing is sent is asked for a sign of life, and how often then. With a limit for what is
/// unacknowledged the kernel gives up at the first probe after that limit of silence: were that the second probe, as by
/// the times of other connections, one lost packet would break a response that its client reads slowly.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// When a client may try again whose server has no stream left: they end all the time.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long an unused HTTP/2 connection is kept.
const HTTP2_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Pooled plaintext connections of one worker.
#[derive(Debug)]
pub(crate) struct PlaintextClient {
    http1: H1Pool,
    http2: H2Pool,
    connect_timeout: Duration,
    h1: H1ClientSettings,
    /// Who is at the other end, for messages.
    peer: &'static str,
    /// What it is to the kernel when it is asked in HTTP.
    http_server: Peer,
    /// What a failed connection means.
    unreachable: ErrorCode,
}

impl PlaintextClient {
    /// Connections to the workload.
    pub(crate) fn to_workload(config: &Config) -> Self {
        let unreachable = ErrorCode::WorkloadUnavailable;
        Self::new(config, Peer::HttpServer, "The workload", unreachable)
    }

    /// Connections to endpoints that have no sidecar.
    pub(crate) fn to_endpoints(config: &Config) -> Self {
        let unreachable = ErrorCode::ConnectFailed;
        Self::new(config, Peer::Any, "The endpoint", unreachable)
    }

    fn new(config: &Config, http_server: Peer, peer: &'static str, unreachable: ErrorCode) -> Self {
        let limits = PoolLimits {
            idle_timeout: config.traffic.pool_idle_timeout,
            ..PoolLimits::default()
        };
        Self {
            http1: H1Pool::new(limits),
            http2: H2Pool::new(H2PoolLimits {
                idle_timeout: HTTP2_IDLE_TIMEOUT,
                handshake_timeout: config.traffic.handshake_timeout,
                patience: config.traffic.connect_timeout,
            }),
            connect_timeout: config.traffic.connect_timeout,
            h1: H1ClientSettings {
                header_timeout: config.limits.header_timeout,
                reader_timeout: config.limits.patience.reader,
            },
            peer,
            http_server,
            unreachable,
        }
    }

    /// Closes idle connections in time, for as long as the client is used.
    pub(crate) fn sweeper(&self) -> impl Future<Output = ()> + use<> {
        let http1 = self.http1.sweeper();
        let http2 = self.http2.sweeper();
        async move {
            futures_util::future::join(http1, http2).await;
        }
    }

    /// Sends a request, in HTTP/2 with prior knowledge when `http2` and else in HTTP/1.1, and gives back the
    /// response to it.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        exchange: &Rc<Exchange>,
        request: Request<Body>,
        http2: bool,
    ) -> Result<Response<Body>, ProxyError> {
        let (mut head, body) = request.into_parts();
        let authority = exchange.authority(&head, address)?;
        if http2 {
            headers::request_to_http2(&mut head, authority)?;
            let request = Request::from_parts(head, body);
            let response = self.send_http2(address, exchange, request).await;
            let response = response.map_err(|error| exchange.blame(error))?;
            return clean_response(address, response, None);
        }
        headers::request_to_http1(&mut head, Some(&authority))?;
        let request = Request::from_parts(head, body);
        if exchange.wants_upgrade() {
            let send = |request| self.send_http1(address, request);
            // Apart: each request would have room for it.
            return Box::pin(upgrade::relay(request, exchange, address, send)).await;
        }
        let response = self.send_http1(address, request).await;
        let response = response.map_err(|error| exchange.blame(error))?;
        clean_response(address, response, None)
    }

    async fn send_http1(
        &self,
        address: SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let key = PoolKey::from(address);
        while let Some(connection) = self.http1.checkout(key) {
            // In a box, since each request would have room for it.
            let spare = is_free_to_repeat(&request).then(|| Box::new(copy_head(&request)));
            match (connection.send(request).await, spare) {
                (Ok(response), _) => return Ok(response),
                // What the server is just closing takes the request and says nothing. A client with a connection of its own
                // would know nothing of it, and so the request goes on to a new one (RFC 9112, section 9.3.1).
                (Err(error), Some(spare)) if error.was_closing() => {
                    request = *spare;
                    break;
                }
                // What the server closed meanwhile gives the request back untouched.
                (Err(error), _) => request = self.unsent(address, error)?,
            }
        }
        let connection = self.connect_http1(address).await?;
        let connection = self.http1.adopt(key, connection);
        let sent = connection.send(request).await;
        sent.map_err(|error| self.failed_http1(address, error))
    }

    async fn send_http2(
        &self,
        address: SocketAddr,
        exchange: &Exchange,
        request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let connect = || async {
            let peer = self.http_server;
            let stream = capture::connect(address, self.connect_timeout, None, peer).await?;
            notice_vanished(&stream);
            Ok(stream)
        };
        let place = self.http2.place(PoolKey::from(address), connect).await;
        let place = place.map_err(|error| match *error {
            H2PoolError::Full(_) => self.busy(address, error),
            _ => self.unreachable(address, error),
        })?;
        let sending = place.send(request, self.h1.reader_timeout);
        exchange.hold(place);
        sending.await.map_err(|error| {
            if error.unsendable {
                let message = format_args!(
                    "{} at {address} speaks HTTP/2, which has no such request.",
                    self.peer
                );
                return ProxyError::new(ErrorCode::BadRequest, message).with_source(error);
            }
            let stalled = matches!(error.body, Some(SendBodyError::Stalled(_)));
            self.failed(address, error.unprocessed, stalled, error)
        })
    }

    /// Opens a connection of its own for opaque bytes.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<TcpStream, ProxyError> {
        self.connect_to(address, Peer::Any).await
    }

    async fn connect_to(&self, address: SocketAddr, peer: Peer) -> Result<TcpStream, ProxyError> {
        capture::connect(address, self.connect_timeout, None, peer)
            .await
            .map_err(|error| self.unreachable(address, error))
    }

    /// Keeps a connection that was made in advance for the next request in HTTP/1.1.
    pub(crate) async fn keep(&self, address: SocketAddr, stream: TcpStream) {
        if let Ok(connection) = self.http1_over(stream).await {
            self.http1.keep(PoolKey::from(address), connection);
        }
    }

    async fn connect_http1(&self, address: SocketAddr) -> Result<H1Connection, ProxyError> {
        let stream = self.connect_to(address, self.http_server).await?;
        let connection = self.http1_over(stream).await;
        connection.map_err(|error| self.unreachable(address, error))
    }

    async fn http1_over(&self, stream: TcpStream) -> hyper::Result<H1Connection> {
        notice_vanished(&stream);
        let connection = H1Connection::new(stream).await;
        connection.map(|connection| connection.with_settings(self.h1))
    }

    fn unreachable(
        &self,
        address: SocketAddr,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ProxyError {
        let message = format_args!("{} at {address} accepted no connection.", self.peer);
        ProxyError::new(self.unreachable, message).with_source(error)
    }

    fn busy(&self, address: SocketAddr, error: Arc<H2PoolError>) -> ProxyError {
        let message = format_args!(
            "{} at {address} has as many requests in hand as it allows.",
            self.peer
        );
        ProxyError::new(ErrorCode::Overloaded, message)
            .with_source(error)
            .with_retry_after(BUSY_RETRY_AFTER)
    }

    fn unsent(
        &self,
        address: SocketAddr,
        mut error: SendError,
    ) -> Result<Request<Body>, ProxyError> {
        match error.request.take() {
            Some(request) if error.unsent => Ok(*request),
            _ => Err(self.failed_http1(address, error)),
        }
    }

    fn failed_http1(&self, address: SocketAddr, error: SendError) -> ProxyError {
        if error.malformed {
            let message = format_args!("{address} sent no valid HTTP.");
            let cause = Chain(&error).to_string();
            return ProxyError::new(ErrorCode::UpstreamProtocol, message).with_source(cause);
        }
        self.failed(address, error.unsent, error.stalled, error)
    }

    fn failed(
        &self,
        address: SocketAddr,
        unsent: bool,
        stalled: bool,
        error: impl std::error::Error + 'static,
    ) -> ProxyError {
        let (code, what) = match (unsent, stalled) {
            (true, _) => (self.unreachable, "gave no complete response"),
            (false, true) => (ErrorCode::UpstreamStalled, "stood still"),
            (false, false) => (ErrorCode::UpstreamReset, "gave no complete response"),
        };
        let message = format_args!("{} at {address} {what}.", self.peer);
        ProxyError::new(code, message).with_source(Chain(&error).to_string())
    }
}

/// Whether a request may be sent again, and is nothing but its head.
fn is_free_to_repeat(request: &Request<Body>) -> bool {
    request.body().is_empty() && is_idempotent(request.method())
}

/// Has the kernel notice a server that has vanished, whether or not something is being sent to it.
fn notice_vanished(stream: &TcpStream) {
    stream.wait_for_reader(Some(VANISHED));
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_INTERVAL);
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(stream).set_tcp_keepalive(&probes);
}

/// Refuses a response that two readers could take differently or that nobody asked for, and removes what concerned
/// only the connection that it came by and what only proxies may say: callers' proxies believe `sidewind-error`.
/// `upgrade` is the header of a request that asked to switch protocols.
pub(crate) fn clean_response(
    address: SocketAddr,
    mut response: Response<Body>,
    upgrade: Option<&HeaderMap>,
) -> Result<Response<Body>, ProxyError> {
    let invalid = |problem: &dyn std::fmt::Display| {
        let message = format_args!("{address} sent no valid HTTP: {problem}.");
        ProxyError::new(ErrorCode::UpstreamProtocol, message)
    };
    let examined = examine_response(&response).map_err(|error| invalid(&error))?;
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let asked = |upgrade| headers::switches_as_asked(upgrade, response.headers());
    if switched && !upgrade.is_some_and(asked) {
        return Err(invalid(&"it switches to a protocol that was not asked for"));
    }
    examined.strip_reserved(response.headers_mut());
    let upgrade = if switched {
        Upgrade::Keep
    } else {
        Upgrade::Strip
    };
    examined.strip_hop_by_hop(response.headers_mut(), upgrade);
    Ok(response)
}

#[cfg(test)]
mod tests;
