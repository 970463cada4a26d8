//! The server side: accepting mesh connections and handing out their streams.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http::Request;
use sidewind_identity::Usage;
use sidewind_identity::tls::{self, PeerIdentity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::census::{Census, Member, Standing};
use super::error::{AcceptError, DriverError};
use super::gate::HandshakeGate;
use super::gather::Gather;
use super::keepalive::{Finding, Keepalive, KeepaliveSettings};
use super::read_ahead::ReadAhead;
use super::vouching::Shown;
use super::{Wire, socket};
use crate::control::MeshIdentity;
use crate::http::{
    DATA_FRAME_BUDGET_BYTES, REMEMBERED_FOR, REMEMBERED_STREAMS, Refusals, WatchedIo,
    hard_header_bound,
};

type Transport = Gather<TlsStream<ReadAhead<TcpStream>>>;
type Http2 = Connection<WatchedIo<Transport>, Bytes>;

/// How long a refused client may take to read why, before its connection is closed.
const GOODBYE: Duration = Duration::from_millis(500);

/// Limits of the mesh port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerSettings {
    /// Limit for TLS and the HTTP/2 preface.
    pub(crate) handshake_timeout: Duration,
    /// Limit for the head of each request.
    pub(crate) header_timeout: Duration,
    /// Streams that one client may have open on one connection.
    pub(crate) max_concurrent_streams: u32,
    /// Most bytes of a request's head, after decompression. What is larger still comes to the handler, which refuses
    /// it, as far as [`hard_header_bound`] reaches.
    pub(crate) max_header_bytes: usize,
    /// When clients count as gone and connections as idle.
    pub(crate) keepalive: KeepaliveSettings,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            max_concurrent_streams: 1000,
            max_header_bytes: super::MAX_HEADER_LIST_BYTES as usize,
            // Longer than a client's own, so that the client closes first.
            keepalive: KeepaliveSettings {
                idle_timeout: Duration::from_secs(600),
                ..KeepaliveSettings::default()
            },
        }
    }
}

/// Makes a mesh connection of an accepted TCP connection.
///
/// # Errors
/// [`AcceptError`] says why not; the client has been told by a TLS alert where TLS allows.
pub(crate) async fn accept(
    tcp: TcpStream,
    identity: &Arc<MeshIdentity>,
    gate: &HandshakeGate,
    settings: &ServerSettings,
    census: &Census,
) -> Result<MeshServerConnection, AcceptError> {
    let remote = tcp.peer_addr().map_err(AcceptError::Handshake)?;
    let local = tcp.local_addr().map_err(AcceptError::Handshake)?;
    let _guard = gate
        .enter(remote.ip())
        .ok_or(AcceptError::TooManyHandshakes)?;
    socket::prepare(&tcp).map_err(AcceptError::Handshake)?;
    let after = settings.handshake_timeout;
    timeout(
        after,
        Box::pin(handshake(tcp, identity, (remote, local), settings, census)),
    )
    .await
    .map_err(|_| AcceptError::HandshakeTimeout { after })?
}

async fn handshake(
    tcp: TcpStream,
    identity: &Arc<MeshIdentity>,
    (remote, local): (SocketAddr, SocketAddr),
    settings: &ServerSettings,
    census: &Census,
) -> Result<MeshServerConnection, AcceptError> {
    let accepting = TlsAcceptor::from(Arc::clone(&identity.server_tls)).accept(ReadAhead::new(tcp));
    let tls = match accepting.into_fallible().await {
        Ok(tls) => tls,
        Err((error, io)) => {
            say_goodbye(io).await;
            return Err(AcceptError::Handshake(error));
        }
    };
    let session = tls.get_ref().1;
    let wire = Wire::from_alpn(session.alpn_protocol()).ok_or(AcceptError::Alpn)?;
    let peer = tls::peer_identity(session.peer_certificates())
        .map_err(|error| AcceptError::NoIdentity(error.to_string()))?;
    if census.refuses(&peer) {
        return Err(AcceptError::Banned(peer.id));
    }
    let shown = Shown::new(
        session.peer_certificates(),
        Usage::Client,
        &identity.bundles,
    );

    let io = Gather::new(tls);
    let refusals = Refusals::default();
    let watched = WatchedIo::new(io.clone(), refusals.clone(), settings.header_timeout);
    let mut starting = pin!(builder(settings).handshake(watched));
    let mut h2 = poll_fn(|cx| {
        let started = starting.as_mut().poll(cx);
        match io.poll_flush_gathered(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(AcceptError::Handshake(error))),
            _ => started.map_err(AcceptError::Http2),
        }
    })
    .await?;
    let keepalive = Keepalive::new(settings.keepalive, h2.ping_pong());
    Ok(MeshServerConnection {
        member: census.accepted(&peer, shown, remote.ip()),
        peer: Rc::new(peer),
        wire,
        remote,
        local,
        h2,
        io,
        refusals,
        keepalive,
    })
}

/// Lets a refused client read the alert: closing with unread bytes in the socket would reset the
/// connection, and the alert would be lost with it.
async fn say_goodbye(mut io: ReadAhead<TcpStream>) {
    let _ = timeout(GOODBYE, async {
        io.shutdown().await?;
        let mut sink = [0; 1024];
        for _ in 0..64 {
            if io.read(&mut sink).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    })
    .await;
}

fn builder(settings: &ServerSettings) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(super::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(super::CONNECTION_WINDOW_BYTES)
        .max_frame_size(super::MAX_FRAME_BYTES)
        .max_header_list_size(hard_header_bound(settings.max_header_bytes))
        .max_send_buffer_size(super::MAX_SEND_BUFFER_BYTES)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_concurrent_reset_streams(REMEMBERED_STREAMS)
        .reset_stream_duration(REMEMBERED_FOR)
        .max_pending_accept_reset_streams(super::MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(super::MAX_STREAM_ERRORS))
        .data_frame_budget(DATA_FRAME_BUDGET_BYTES);
    builder
}

/// An accepted mesh connection whose client is known.
pub(crate) struct MeshServerConnection {
    /// Who the client is, as verified.
    pub(crate) peer: Rc<PeerIdentity>,
    /// What was agreed with the client.
    pub(crate) wire: Wire,
    /// The client's address.
    pub(crate) remote: SocketAddr,
    /// The address that it connected to.
    pub(crate) local: SocketAddr,
    member: Member,
    h2: Http2,
    io: Transport,
    refusals: Refusals,
    keepalive: Keepalive,
}

impl fmt::Debug for MeshServerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshServerConnection")
            .field("peer", &self.peer.id)
            .field("wire", &self.wire)
            .field("remote", &self.remote)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl MeshServerConnection {
    /// Has `action` run for each request whose header is larger than h2 takes.
    pub(crate) fn on_far_too_large(&self, action: impl Fn() + 'static) {
        self.refusals.on_refusal(action);
    }

    /// Runs the connection to its end, with `handler` for each stream as a task of its own.
    ///
    /// When `drain` is ready, or the client's certificate expires, the client is asked to go
    /// (GOAWAY): streams that are open live on, new ones go elsewhere, and the connection ends
    /// with its last stream.
    ///
    /// # Errors
    /// [`DriverError`] when it ended otherwise; the streams' tasks see it too.
    pub(crate) async fn serve<F>(
        self,
        drain: impl Future<Output = ()>,
        handler: impl FnMut(Request<RecvStream>, SendResponse<Bytes>) -> F,
    ) -> Result<(), DriverError>
    where
        F: Future<Output = ()> + 'static,
    {
        let mut drain = pin!(drain);
        let mut serving = Serving {
            open: Rc::new(Cell::new(0)),
            draining: false,
            not_after: self.peer.not_after,
            connection: self,
            handler,
        };
        poll_fn(|cx| serving.poll(cx, drain.as_mut())).await
    }
}

struct Serving<H> {
    connection: MeshServerConnection,
    handler: H,
    open: Rc<Cell<usize>>,
    draining: bool,
    not_after: SystemTime,
}

impl<H, F> Serving<H>
where
    H: FnMut(Request<RecvStream>, SendResponse<Bytes>) -> F,
    F: Future<Output = ()> + 'static,
{
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        drain: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Result<(), DriverError>> {
        if !self.draining && drain.poll(cx).is_ready() {
            self.drain();
        }
        match self.connection.member.poll_standing(cx) {
            Standing::Good => {}
            Standing::Ending if self.draining => {}
            Standing::Ending => self.drain(),
            Standing::Banned => return Poll::Ready(Err(DriverError::Banned)),
            Standing::Distrusted => return Poll::Ready(Err(DriverError::Distrusted)),
            Standing::Ended => return Poll::Ready(Err(DriverError::CertificateEnded)),
        }
        loop {
            if let Poll::Ready(result) = self.poll_turn(cx) {
                return Poll::Ready(result);
            }
            let connection = &mut self.connection;
            let has_streams = self.open.get() > 0;
            match connection
                .keepalive
                .poll(cx, connection.io.received_bytes(), has_streams)
            {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Finding::PeerGone) => return Poll::Ready(Err(DriverError::PeerGone)),
                // The client does not even answer the goodbye.
                Poll::Ready(Finding::Idle) if self.draining => {
                    return Poll::Ready(Err(DriverError::PeerGone));
                }
                Poll::Ready(Finding::Idle) => self.drain(),
            }
        }
    }

    /// One turn: all that can be read, then all that is ready written at once.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), DriverError>> {
        self.connection.io.begin_turn();
        loop {
            match self.connection.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.start(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(DriverError::Http2(error)));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        match self.connection.io.poll_flush_gathered(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(DriverError::Io(error))),
            _ => Poll::Pending,
        }
    }

    fn start(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        if !self.draining && self.not_after < SystemTime::now() {
            // The client must come again with the SVID that it has by now.
            self.drain();
        }
        self.connection.refusals.accepted(respond.stream_id());
        let open = OpenStream::new(&self.open);
        let handling = (self.handler)(request, respond);
        tokio::task::spawn_local(async move {
            handling.await;
            drop(open);
        });
    }

    fn drain(&mut self) {
        self.draining = true;
        self.connection.h2.graceful_shutdown();
    }
}

/// Counts a stream as open.
struct OpenStream(Rc<Cell<usize>>);

impl OpenStream {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
