//! The gRPC port: TLS 1.3, bounds on what strangers can cost, and who is calling.

use super::Shutdown;
use crate::issuance::own::OwnIdentity;
use crate::telemetry::Metrics;
use sidewind_identity::PeerIdentity;
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 30_000;
/// Most connections at once whose client has not shown a certificate (yet).
const MAX_ANONYMOUS: usize = 4_096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An anonymous client attests, which takes milliseconds, and goes.
const ANONYMOUS_TIME: Duration = Duration::from_secs(60);
/// A stream ends by itself when its certificate does; the connection is given a moment to say so.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// Who is calling, in the extensions of every request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Where the connection comes from.
    pub(crate) address: SocketAddr,
    /// Whose certificate was verified, if one was shown.
    pub(crate) peer: Option<Arc<PeerIdentity>>,
}

/// A connection after its handshake.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    deadline: Pin<Box<Sleep>>,
    _place: Place,
}

/// A connection's place within the bounds.
#[derive(Debug)]
struct Place {
    _connection: OwnedSemaphorePermit,
    anonymous: Option<OwnedSemaphorePermit>,
    metrics: Arc<Metrics>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// Accepts connections until the shutdown begins, and hands those with a finished handshake on.
pub(crate) async fn accept(
    listener: TcpListener,
    own: Arc<OwnIdentity>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let anonymous = Arc::new(Semaphore::new(MAX_ANONYMOUS));
    let shutdown = shutdown.wait();
    tokio::pin!(shutdown);
    loop {
        let (stream, address) = tokio::select! {
            () = &mut shutdown => return,
            result = listener.accept() => match result {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: some will be given back.
                    metrics.count_connection_refused("accept-failed");
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let permits = (
            Arc::clone(&connections).try_acquire_owned(),
            Arc::clone(&anonymous).try_acquire_owned(),
        );
        let (Ok(connection), Ok(anonymous)) = permits else {
            metrics.count_connection_refused("too-many");
            continue;
        };
        metrics.connections.inc();
        let place = Place {
            _connection: connection,
            anonymous: Some(anonymous),
            metrics: Arc::clone(&metrics),
        };
        let (tls, accepted) = (own.tls(), accepted.clone());
        tokio::spawn(async move {
            if let Some(connection) = handshake(stream, address, tls.into(), place).await {
                // Nobody takes it during the shutdown.
                let _ = accepted.send(Ok(connection)).await;
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    mut place: Place,
) -> Option<Connection> {
    let metrics = Arc::clone(&place.metrics);
    let refused = |reason: &'static str, error: &dyn std::fmt::Display| {
        metrics.count_connection_refused(reason);
        tracing::debug!(peer = %address, reason, %error, "a connection was refused");
    };
    // Small messages must not wait for their acknowledgement; a failure costs only that.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused("handshake-failed", &error);
            return None;
        }
        Err(elapsed) => {
            refused("handshake-timeout", &elapsed);
            return None;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = match certificates.map(|c| sidewind_identity::peer_identity(Some(c))) {
        None => None,
        Some(Ok(peer)) => Some(Arc::new(peer)),
        Some(Err(error)) => {
            refused("handshake-failed", &error);
            return None;
        }
    };
    let time = match &peer {
        None => ANONYMOUS_TIME,
        Some(peer) => {
            place.anonymous = None;
            let left = peer.not_after.duration_since(SystemTime::now());
            left.unwrap_or_default() + EXPIRY_GRACE
        }
    };
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Some(Connection {
        stream,
        caller: Caller { address, peer },
        deadline: Box::pin(tokio::time::sleep(time)),
        _place: place,
    })
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
