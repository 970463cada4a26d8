//! The client side of one mesh connection: making it, driving it, opening streams on it.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use sidewind_identity::tls::PeerIdentity;
use sidewind_identity::{SpiffeId, Usage, tls};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{ConnectError, DriverError};
use super::gather::Gather;
use super::keepalive::{Finding, Keepalive, KeepaliveSettings};
use super::read_ahead::ReadAhead;
use super::vouching::Shown;
use super::{Wire, socket};
use crate::control::MeshIdentity;
use crate::http::{DATA_FRAME_BUDGET_BYTES, REMEMBERED_FOR, REMEMBERED_STREAMS};

type Transport = Gather<TlsStream<ReadAhead<TcpStream>>>;

/// What pool, driver and users of one connection share.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    /// Whom it was made as.
    pub(crate) own: SpiffeId,
    /// Who the peer is, as verified.
    pub(crate) peer: PeerIdentity,
    /// By what.
    pub(crate) shown: Shown,
    pub(crate) wire: Wire,
    /// Streams that the peer allows at a time.
    max_streams: Cell<usize>,
    /// Streams in use, as counted by leases.
    leases: Cell<usize>,
    last_used: Cell<Instant>,
}

impl ConnectionState {
    /// Whether another stream may be opened, given the most that we want on one connection.
    pub(crate) fn has_room(&self, cap: usize) -> bool {
        self.leases.get() < self.max_streams.get().min(cap)
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.leases.get() == 0
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.last_used.get()
    }
}

/// Counts one stream of a connection as in use until it is dropped.
///
/// Whoever uses a stream longer than the [`MeshConnection`] that it was opened on keeps one, so
/// that the connection is not taken for idle or overfilled.
#[derive(Debug)]
pub(crate) struct StreamLease(Rc<ConnectionState>);

impl StreamLease {
    fn new(state: Rc<ConnectionState>) -> Self {
        state.leases.set(state.leases.get() + 1);
        Self(state)
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.0.leases.set(self.0.leases.get().saturating_sub(1));
        self.0.last_used.set(Instant::now());
    }
}

/// A place for one stream on a mesh connection.
///
/// Keep it (or its lease) for as long as the stream is used.
pub(crate) struct MeshConnection {
    sender: SendRequest<Bytes>,
    lease: StreamLease,
}

impl fmt::Debug for MeshConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshConnection")
            .field("state", &self.lease.0)
            .finish()
    }
}

impl MeshConnection {
    /// What was agreed with the peer.
    pub(crate) fn wire(&self) -> Wire {
        self.lease.0.wire
    }

    /// Who the peer is, as verified.
    pub(crate) fn peer(&self) -> &PeerIdentity {
        &self.lease.0.peer
    }

    /// What pool and users share of the connection.
    pub(crate) fn state(&self) -> &Rc<ConnectionState> {
        &self.lease.0
    }

    /// A handle to send one request with; it was ready when this connection was handed out.
    #[cfg(test)]
    pub(crate) fn send_request(&mut self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    /// The handle itself, which spares a clone.
    pub(crate) fn sender(&mut self) -> &mut SendRequest<Bytes> {
        &mut self.sender
    }

    /// The handle to send one request with, and the lease to be kept until its response has been read.
    pub(crate) fn into_parts(self) -> (SendRequest<Bytes>, StreamLease) {
        (self.sender, self.lease)
    }

    /// Gives the place up for its lease, to be kept beside the response body.
    pub(crate) fn into_lease(self) -> StreamLease {
        self.lease
    }
}

/// A connection that takes new streams: what the pool keeps.
pub(crate) struct OpenConnection {
    sender: SendRequest<Bytes>,
    pub(crate) state: Rc<ConnectionState>,
}

impl OpenConnection {
    /// A place for a stream, or None when the connection takes no new ones (GOAWAY, broken).
    pub(crate) fn place(&self) -> Option<MeshConnection> {
        let mut sender = self.sender.clone();
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Some(MeshConnection {
                sender,
                lease: StreamLease::new(Rc::clone(&self.state)),
            }),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }
}

/// Time limits of making a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DialSettings {
    pub(crate) connect_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) keepalive: KeepaliveSettings,
}

/// Makes a connection and checks that the peer is the expected one.
///
/// The server has judged our certificate too when this succeeds: its settings have come, which it
/// sends after the handshake. The driver that comes with it must be polled for the connection to
/// live.
pub(crate) async fn dial(
    identity: &MeshIdentity,
    endpoint: SocketAddr,
    expected: &SpiffeId,
    settings: &DialSettings,
) -> Result<(OpenConnection, ClientDriver), ConnectError> {
    let after = settings.connect_timeout;
    let tcp = timeout(after, TcpStream::connect(endpoint))
        .await
        .map_err(|_| ConnectError::ConnectTimeout { endpoint, after })?
        .and_then(|stream| socket::prepare(&stream).map(|()| stream))
        .map_err(|error| ConnectError::Tcp {
            endpoint,
            source: Arc::new(error),
        })?;

    let after = settings.handshake_timeout;
    timeout(
        after,
        Box::pin(handshake(tcp, identity, endpoint, expected, settings)),
    )
    .await
    .map_err(|_| ConnectError::HandshakeTimeout { endpoint, after })?
}

async fn handshake(
    tcp: TcpStream,
    identity: &MeshIdentity,
    endpoint: SocketAddr,
    expected: &SpiffeId,
    settings: &DialSettings,
) -> Result<(OpenConnection, ClientDriver), ConnectError> {
    let tls = TlsConnector::from(Arc::clone(&identity.client_tls))
        .connect(tls::server_name(), ReadAhead::new(tcp))
        .await
        .map_err(|error| ConnectError::Handshake {
            endpoint,
            source: Arc::new(error),
        })?;

    let session = tls.get_ref().1;
    let wire = Wire::from_alpn(session.alpn_protocol()).ok_or(ConnectError::Alpn { endpoint })?;
    let peer = tls::peer_identity(session.peer_certificates()).map_err(|error| {
        ConnectError::NoIdentity {
            endpoint,
            reason: error.to_string().into(),
        }
    })?;
    if peer.id != *expected {
        return Err(ConnectError::WrongIdentity {
            endpoint,
            expected: expected.clone(),
            got: peer.id,
        });
    }

    let shown = Shown::new(
        session.peer_certificates(),
        Usage::Server,
        &identity.bundles,
    );
    let io = Gather::new(tls);
    let (sender, h2) =
        builder()
            .handshake(io.clone())
            .await
            .map_err(|error| ConnectError::Http2 {
                endpoint,
                source: Arc::new(error),
            })?;
    let state = Rc::new(ConnectionState {
        own: identity.id.clone(),
        peer,
        shown,
        wire,
        max_streams: Cell::new(0),
        leases: Cell::new(0),
        last_used: Cell::new(Instant::now()),
    });
    let mut driver = ClientDriver::new(h2, io, Rc::clone(&state), settings.keepalive);
    driver
        .settings_received()
        .await
        .map_err(|error| failed_start(endpoint, error))?;
    Ok((OpenConnection { sender, state }, driver))
}

/// An alert that comes instead of the settings is the server's judgement of our certificate.
fn failed_start(endpoint: SocketAddr, error: DriverError) -> ConnectError {
    let source = match error {
        DriverError::Io(error) => error,
        DriverError::Http2(error) if !error.is_io() => {
            return ConnectError::Http2 {
                endpoint,
                source: Arc::new(error),
            };
        }
        DriverError::Http2(error) => error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()),
        // The other two come to connections that have started.
        DriverError::PeerGone
        | DriverError::Banned
        | DriverError::Distrusted
        | DriverError::CertificateEnded => io::ErrorKind::TimedOut.into(),
    };
    ConnectError::Handshake {
        endpoint,
        source: Arc::new(source),
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(super::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(super::CONNECTION_WINDOW_BYTES)
        .max_frame_size(super::MAX_FRAME_BYTES)
        .max_header_list_size(super::MAX_HEADER_LIST_BYTES)
        .max_send_buffer_size(super::MAX_SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(REMEMBERED_STREAMS)
        .reset_stream_duration(REMEMBERED_FOR)
        .max_local_error_reset_streams(Some(super::MAX_STREAM_ERRORS))
        .data_frame_budget(DATA_FRAME_BUDGET_BYTES)
        // None until the peer's settings say how many: that they have come shows that it has
        // accepted us.
        .initial_max_send_streams(0)
        .enable_push(false);
    builder
}

/// The task of one client connection.
pub(crate) struct ClientDriver {
    h2: Connection<Transport, Bytes>,
    io: Transport,
    state: Rc<ConnectionState>,
    keepalive: Keepalive,
    on_idle: Option<Box<dyn FnOnce()>>,
}

impl ClientDriver {
    fn new(
        mut h2: Connection<Transport, Bytes>,
        io: Transport,
        state: Rc<ConnectionState>,
        keepalive: KeepaliveSettings,
    ) -> Self {
        let keepalive = Keepalive::new(keepalive, h2.ping_pong());
        Self {
            h2,
            io,
            state,
            keepalive,
            on_idle: None,
        }
    }

    /// Sets what is done when the connection was idle for long enough: whoever holds its
    /// [`OpenConnection`] drops it, upon which the connection closes.
    pub(crate) fn on_idle(&mut self, action: impl FnOnce() + 'static) {
        self.on_idle = Some(Box::new(action));
    }

    /// Drives the connection until the peer's settings have come.
    async fn settings_received(&mut self) -> Result<(), DriverError> {
        poll_fn(|cx| match self.poll_turn(cx) {
            Poll::Ready(Ok(())) => {
                let error = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection before its settings",
                );
                Poll::Ready(Err(DriverError::Io(error)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if self.state.max_streams.get() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// One turn: everything that can be read is, then everything that is ready is written at once.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DriverError>> {
        self.io.begin_turn();
        if let Poll::Ready(result) = pin!(&mut self.h2).poll(cx) {
            return Poll::Ready(result.map_err(DriverError::Http2));
        }
        self.state
            .max_streams
            .set(self.h2.max_concurrent_send_streams());
        if let Poll::Ready(Err(error)) = self.io.poll_flush_gathered(cx) {
            return Poll::Ready(Err(DriverError::Io(error)));
        }
        Poll::Pending
    }
}

impl Future for ClientDriver {
    type Output = Result<(), DriverError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(result) = this.poll_turn(cx) {
                return Poll::Ready(result);
            }
            let has_streams = !this.state.is_unused();
            match ready!(
                this.keepalive
                    .poll(cx, this.io.received_bytes(), has_streams)
            ) {
                Finding::PeerGone => return Poll::Ready(Err(DriverError::PeerGone)),
                Finding::Idle => match this.on_idle.take() {
                    Some(action) => action(),
                    // The goodbye took as long as the idle time: the peer takes nothing.
                    None => return Poll::Ready(Err(DriverError::PeerGone)),
                },
            }
        }
    }
}
