//! The gRPC port: TLS 1.3, bounds on what strangers can cost, and who is calling.

mod preface;
pub(super) mod strangers;

use super::Shutdown;
use super::limits::{Buckets, Limits, source};
use super::turnstile::MAX_HEADER_LIST_BYTES;
use crate::issuance::issuer::Issuer;
use crate::issuance::own::OwnIdentity;
use crate::telemetry::{Metrics, Throttle};
use preface::{Preface, PrefaceError};
use sidewind_identity::PeerIdentity;
use std::fmt::Display;
use std::future::Future as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use strangers::{Doing, Stranger, Strangers};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 30_000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An anonymous client attests, which takes milliseconds, and goes.
const ANONYMOUS_TIME: Duration = Duration::from_secs(60);
/// A stream ends by itself when its certificate does; the connection is given a moment to say so.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);
/// From the handshake to the end of HTTP/2's preface, with which every client begins at once.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes without a certificate for each attestation that an address may make.
const HANDSHAKES_PER_ATTESTATION: f64 = 2.0;
/// Handshakes that are begun at all, for each attestation, from an address that has made too many without a certificate.
///
/// Such an address may be a whole cluster's (a NAT, a balancer), with one bad client among good ones, and which of them
/// is there is known at the end of a handshake: so that is what everybody is let in to, and who turns out to have no
/// certificate is turned away then. A handshake costs an eighth of a millisecond, so that at the default rate an address
/// takes an eighth of a core at most. Beyond that good clients get their part of what is begun, by chance.
const BEGUN_IN_DEBT_PER_ATTESTATION: f64 = 5.0;

/// Who is calling, in the extensions of every request.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Where the connection comes from.
    pub(crate) address: SocketAddr,
    /// Whose certificate was verified, if one was shown.
    pub(crate) peer: Option<Arc<PeerIdentity>>,
    /// What it is at, of somebody without one.
    pub(crate) doing: Option<Arc<Doing>>,
}

/// A connection after its handshake.
#[derive(Debug)]
pub(crate) struct Connection {
    /// In a box, since what serves a connection moves it several times and keeps room for each.
    stream: Box<TlsStream<TcpStream>>,
    caller: Caller,
    preface: Preface,
    /// Of the preface, and after that of the connection.
    deadline: Pin<Box<Sleep>>,
    /// How long the connection may last.
    time: Duration,
    place: Place,
}

/// A connection's place within the bounds.
#[derive(Debug)]
struct Place {
    _connection: OwnedSemaphorePermit,
    stranger: Option<Box<Stranger>>,
    bounds: Arc<Bounds>,
}

impl Place {
    /// Ready when somebody else has the place.
    fn poll_displaced(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.stranger {
            Some(stranger) => stranger.poll_displaced(context),
            None => Poll::Pending,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.bounds.metrics.connections.dec();
    }
}

/// How many connections there may be, and how many a source may begin without a certificate.
#[derive(Debug)]
pub(crate) struct Bounds {
    connections: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    /// Handshakes without a certificate.
    handshakes: Buckets<IpAddr>,
    /// Handshakes from an address that has made too many of those.
    begun: Buckets<IpAddr>,
    metrics: Arc<Metrics>,
}

impl Bounds {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        let attestations = f64::from(limits.attest_per_second.get());
        Arc::new(Self {
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            strangers: Arc::default(),
            handshakes: Buckets::new(attestations * HANDSHAKES_PER_ATTESTATION),
            begun: Buckets::new(attestations * BEGUN_IN_DEBT_PER_ATTESTATION),
            metrics,
        })
    }

    /// A place for a connection from an address, or why there is none.
    ///
    /// Whether the client has a certificate is not known yet, so that a token is taken only by those that
    /// turn out to have none. What is under way meanwhile is bounded by the number of places.
    fn place(self: &Arc<Self>, address: SocketAddr) -> Result<Place, &'static str> {
        let source = source(address.ip());
        if self.handshakes.check(source).is_err() && self.begun.take(source).is_err() {
            return Err("rate-limited");
        }
        let Ok(connection) = Arc::clone(&self.connections).try_acquire_owned() else {
            return Err("too-many");
        };
        let stranger = self.strangers.enter(source).ok_or("too-many")?;
        self.metrics.connections.inc();
        Ok(Place {
            _connection: connection,
            stranger: Some(Box::new(stranger)),
            bounds: Arc::clone(self),
        })
    }

    fn refused(&self, reason: &'static str, peer: Option<SocketAddr>, error: &dyn Display) {
        static REFUSED: Throttle = Throttle::new();
        self.metrics.count_connection_refused(reason);
        if let Some(unsaid) = REFUSED.admit(reason) {
            let peer = peer.map(tracing::field::display);
            tracing::warn!(reason, peer, %error, unsaid, "a connection was refused");
        }
    }
}

/// Accepts connections until the shutdown begins, and hands those with a finished handshake on.
pub(crate) async fn accept(
    listener: TcpListener,
    own: Arc<OwnIdentity>,
    issuer: Arc<Issuer>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    bounds: Arc<Bounds>,
    shutdown: Shutdown,
) {
    let shutdown = shutdown.wait();
    tokio::pin!(shutdown);
    loop {
        let (stream, address) = tokio::select! {
            () = &mut shutdown => return,
            result = listener.accept() => match result {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: some will be given back.
                    bounds.refused("accept-failed", None, &error);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let place = match bounds.place(address) {
            Ok(place) => place,
            Err(reason) => {
                bounds.refused(reason, Some(address), &"it was closed before its handshake");
                continue;
            }
        };
        let (tls, accepted, issuer) = (own.tls(), accepted.clone(), Arc::clone(&issuer));
        tokio::spawn(async move {
            if let Some(connection) = handshake(stream, address, tls.into(), &issuer, place).await {
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
    issuer: &Issuer,
    mut place: Place,
) -> Option<Connection> {
    let bounds = Arc::clone(&place.bounds);
    let refused = |reason: &'static str, error: &dyn Display| {
        bounds.handshakes.charge(source(address.ip()));
        bounds.refused(reason, Some(address), error);
    };
    // Small messages must not wait for their acknowledgement; a failure costs only that.
    let _ = stream.set_nodelay(true);
    let doing = place.stranger.as_ref().map(|stranger| stranger.doing());
    let handshake = async {
        // A load balancer's probe connects and goes; that is no news.
        if stream.peek(&mut [0]).await? == 0 {
            return Ok(None);
        }
        if let Some(doing) = &doing {
            doing.begin();
        }
        acceptor.accept(stream).await.map(Some)
    };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake);
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        () = std::future::poll_fn(|context| place.poll_displaced(context)) => {
            // It has cost no handshake yet.
            bounds.refused("displaced", Some(address), &DISPLACED);
            return None;
        }
    };
    let stream = match shaken {
        Ok(Ok(Some(stream))) => stream,
        Ok(Ok(None)) => return None,
        Ok(Err(error)) => {
            refused(cause(&error), &error);
            return None;
        }
        Err(elapsed) => {
            refused("handshake-timeout", &elapsed);
            return None;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let leaf = certificates.and_then(|chain| Some(chain.first()?.clone().into_owned()));
    let peer = match &leaf {
        None => None,
        Some(leaf) => match sidewind_identity::peer_identity(Some(std::slice::from_ref(leaf))) {
            Ok(mut peer) => {
                if !issuer.has_issued(&peer, leaf).await {
                    // It is refused by each call, with the reason.
                    peer.issuer_key_id.clear();
                }
                Some(Arc::new(peer))
            }
            Err(error) => {
                refused("handshake-failed", &error);
                return None;
            }
        },
    };
    let time = match &peer {
        None => {
            // What is refused takes none, so that those who go on asking leave some to others behind their address.
            if bounds.handshakes.take(source(address.ip())).is_err() {
                let error = "its address makes too many handshakes without a certificate";
                bounds.refused("rate-limited", Some(address), &error);
                return None;
            }
            ANONYMOUS_TIME
        }
        Some(peer) => {
            place.stranger = None;
            let left = peer.not_after.duration_since(SystemTime::now());
            left.unwrap_or_default() + EXPIRY_GRACE
        }
    };
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Some(Connection {
        stream: Box::new(stream),
        caller: Caller {
            address,
            doing: doing.filter(|_| peer.is_none()),
            peer,
        },
        preface: Preface::default(),
        deadline: Box::pin(tokio::time::sleep(PREFACE_TIMEOUT.min(time))),
        time,
        place,
    })
}

const DISPLACED: &str = "it had no certificate yet, and somebody else came for its place";

/// What a handshake failed of.
fn cause(error: &io::Error) -> &'static str {
    let tls = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => "not-tls",
        Some(_) => "handshake-failed",
        // The client went away in the middle of it.
        None => "handshake-incomplete",
    }
}

impl Connection {
    /// Looks at what was read, as long as that may be the preface.
    fn look(&mut self, read: &[u8]) -> io::Result<()> {
        if self.preface.is_complete() || read.is_empty() {
            return Ok(());
        }
        match self.preface.take(read) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let end = Instant::now() + self.time;
                self.deadline.as_mut().reset(end);
                Ok(())
            }
            Err(error @ PrefaceError) => {
                let address = self.caller.address;
                let bounds = &self.place.bounds;
                bounds.refused("not-http2", Some(address), &error);
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    fn late(&mut self) -> io::Error {
        if !self.preface.is_complete() {
            let address = self.caller.address;
            let bounds = &self.place.bounds;
            bounds.refused("silent", Some(address), &"nothing followed its handshake");
        }
        io::ErrorKind::TimedOut.into()
    }
}

/// What a connection may do once its handshake is over.
pub(super) fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .timeout(Duration::from_secs(30))
        // A proxy has one stream and a renewal now and then.
        .max_concurrent_streams(64)
        .concurrency_limit_per_connection(64)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_frame_size(16 * 1024)
        .http2_max_header_list_size(2 * MAX_HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(20))
        // A proxy that died without a word leaves discovery within eight seconds.
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
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
            return Poll::Ready(Err(self.late()));
        }
        if self.place.poll_displaced(context).is_ready() {
            let (address, bounds) = (self.caller.address, &self.place.bounds);
            bounds.refused("displaced", Some(address), &DISPLACED);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.look(read))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> (Arc<Bounds>, SocketAddr) {
        let bounds = Bounds::new(Limits::default(), Arc::default());
        (bounds, "192.0.2.1:4711".parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_in_debt_is_let_in_to_show_its_certificates_so_often_and_others_are_not_bound()
     {
        let (bounds, address) = bounds();
        // The burst, and one connection that was under way meanwhile.
        for _ in 0..2001 {
            bounds.handshakes.charge(source(address.ip()));
        }
        let begun = || (0..6000).filter(|_| bounds.place(address).is_ok()).count();
        assert_eq!(begun(), 5000);
        assert_eq!(bounds.place(address).err(), Some("rate-limited"));
        assert!(bounds.place("192.0.2.2:1".parse().unwrap()).is_ok());
        tokio::time::advance(Duration::from_secs(1)).await;
        // Its debt is paid, so that this costs nothing of what is begun in debt.
        assert!(bounds.place(address).is_ok());
        assert_eq!(bounds.metrics.connections.get(), 0);
    }
}
