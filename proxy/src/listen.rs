//! The listeners of one worker, and what becomes of a connection that one of them accepts.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use crate::{
    capture::{self, DestinationSource, Peer},
    config::{Config, ListenAddress},
    copy::Connection,
    gateway::{self, OpenPort},
    inbound::{self, MeshPort, PlaintextPort},
    outbound::{self, Listening, Target},
    telemetry::{Direction, logs::Throttle},
    worker::Worker,
};

/// How long a worker waits before it accepts again when the process has no file descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// What a listener is for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Outbound(Listening),
    Mesh,
    Plaintext(PlaintextPort),
    Gateway(Arc<OpenPort>),
}

impl Purpose {
    fn direction(&self) -> Direction {
        match self {
            Self::Outbound(_) => Direction::Outbound,
            Self::Mesh | Self::Plaintext(_) => Direction::Inbound,
            Self::Gateway(_) => Direction::Gateway,
        }
    }
}

/// An address to listen on, the same for all workers; they share the count of its connections.
#[derive(Clone, Debug)]
pub(crate) struct ListenPlan {
    pub(crate) address: ListenAddress,
    purpose: Purpose,
    open: Arc<AtomicUsize>,
}

impl ListenPlan {
    /// One address of a gateway's port.
    pub(crate) fn gateway(address: SocketAddr, port: Arc<OpenPort>) -> Self {
        Self {
            address: required(address),
            open: Arc::clone(&port.open),
            purpose: Purpose::Gateway(port),
        }
    }

    /// Who connects.
    pub(crate) fn peer(&self) -> Peer {
        match self.purpose {
            Purpose::Mesh => Peer::Proxy,
            Purpose::Outbound(Listening::Redirected(_)) => Peer::Redirected,
            Purpose::Outbound(_) | Purpose::Plaintext(_) | Purpose::Gateway(_) => Peer::Any,
        }
    }
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is another process using the port?")]
pub(crate) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Everything that the configuration says to listen on.
pub(crate) fn plan(config: &Config) -> Vec<ListenPlan> {
    let listeners = &config.listeners;
    let mut plans = Vec::new();
    let mut add = |address: ListenAddress, purpose: Purpose| {
        plans.push(ListenPlan {
            address,
            purpose,
            open: Arc::default(),
        });
    };
    for address in &listeners.outbound {
        let listening = Listening::on_outbound_port(listeners.capture);
        add(*address, Purpose::Outbound(listening));
    }
    for mapped in &listeners.mapped {
        let target = Target::from(&mapped.destination);
        add(
            required(mapped.listen),
            Purpose::Outbound(Listening::Mapped(target)),
        );
    }
    for address in &listeners.inbound {
        let port = PlaintextPort::Redirected(DestinationSource::Redirect);
        add(*address, Purpose::Plaintext(port));
    }
    for plaintext in &listeners.plaintext {
        let port = PlaintextPort::Fixed(plaintext.target_port);
        add(required(plaintext.listen), Purpose::Plaintext(port));
    }
    for address in &listeners.mesh {
        add(*address, Purpose::Mesh);
    }
    plans
}

fn required(address: SocketAddr) -> ListenAddress {
    ListenAddress {
        address,
        required: true,
    }
}

/// Fails when another process has the port of a listener that is about to be opened: the workers share theirs, so
/// that a second proxy would get a part of the connections without any error. Asked once, before the first worker.
pub(crate) fn check_free(listen: ListenAddress, peer: Peer) -> Result<(), ListenError> {
    let ListenAddress { address, required } = listen;
    match capture::check_free(address, peer) {
        Err(error) if !required && capture::is_unavailable(&error) => Ok(()),
        result => result.map_err(|source| ListenError { address, source }),
    }
}

/// Opens a listener; none where the address family is not there and nobody asked for it.
pub(crate) fn open(listen: ListenAddress, peer: Peer) -> Result<Option<TcpListener>, ListenError> {
    let ListenAddress { address, required } = listen;
    match capture::listen(address, peer) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !required && capture::is_unavailable(&error) => Ok(None),
        Err(source) => Err(ListenError { address, source }),
    }
}

/// Accepts connections for as long as the worker lives, each served by a task of its own.
pub(crate) async fn accept(worker: Rc<Worker>, plan: ListenPlan, listener: TcpListener) {
    static FULL: Throttle = Throttle::new();
    let mesh_port = MeshPort::new(&worker);
    let purpose = plan.purpose.clone();
    // A draining sidecar takes no new mesh connections: a dial that is refused goes elsewhere, and one that is
    // accepted would only be told to go away.
    let draining = worker.drain.begun();
    let mut ended = false;
    let mut draining = std::pin::pin!(async move {
        match &purpose {
            Purpose::Mesh => draining.await,
            // What is in the kernel's queue is accepted all the same, below.
            Purpose::Gateway(port) => port.closed().await,
            Purpose::Outbound(_) | Purpose::Plaintext(_) => std::future::pending().await,
        }
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if !ended => accepted,
            () = closing(&mut draining, &mut ended) => match waiting(&plan, &listener) {
                Some(accepted) => Ok(accepted),
                None => return,
            },
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                not_accepted(&plan, &error).await;
                continue;
            }
        };
        let Some(place) = Place::take(&plan.open, worker.config.limits.max_connections) else {
            if let Some(suppressed) = FULL.admit() {
                tracing::warn!(listener = %plan.address.address, suppressed, "a connection was refused: --max-connections are open");
            }
            worker.overloaded(plan.purpose.direction());
            continue;
        };
        serve(&worker, &plan.purpose, &mesh_port, stream, client, place);
    }
}

/// Serves a connection in a task of its own, which is as large as this purpose needs and no other.
fn serve(
    worker: &Rc<Worker>,
    purpose: &Purpose,
    mesh_port: &MeshPort,
    stream: TcpStream,
    client: SocketAddr,
    place: Place,
) {
    let worker = Rc::clone(worker);
    match purpose {
        Purpose::Outbound(listening) => {
            let serving = outbound::serve(
                worker,
                listening.clone(),
                Placed::new(stream, place),
                client,
            );
            tokio::task::spawn_local(serving);
        }
        Purpose::Plaintext(port) => {
            let serving =
                inbound::serve_plaintext(worker, *port, Placed::new(stream, place), client);
            tokio::task::spawn_local(serving);
        }
        Purpose::Gateway(port) => {
            let stream = Placed::new(stream, place);
            let serving = gateway::serve(worker, Arc::clone(port), stream, client);
            tokio::task::spawn_local(serving);
        }
        Purpose::Mesh => {
            let mesh_port = mesh_port.clone();
            tokio::task::spawn_local(async move {
                inbound::serve_mesh(worker, mesh_port, stream, client).await;
                drop(place);
            });
        }
    }
}

/// Resolves when no more is to be accepted, and then each time.
async fn closing(closed: &mut (impl Future<Output = ()> + Unpin), ended: &mut bool) {
    if !*ended {
        closed.await;
        *ended = true;
    }
}

/// A connection that waits at a gateway's port that is being closed.
fn waiting(plan: &ListenPlan, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match plan.purpose {
        Purpose::Gateway(_) => listener.accept().now_or_never()?.ok(),
        _ => None,
    }
}

async fn not_accepted(plan: &ListenPlan, error: &io::Error) {
    static FAILED: Throttle = Throttle::new();
    // The client has gone already; the next one waits.
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    if let Some(suppressed) = FAILED.admit() {
        tracing::warn!(listener = %plan.address.address, %error, suppressed, "no connection can be accepted for now");
    }
    tokio::time::sleep(EXHAUSTED_PAUSE).await;
}

/// An accepted connection, which keeps its place until it is closed, whoever holds it then: a tunnel that a client
/// asked for and an upgrade outlive the task that served the connection.
#[derive(Debug)]
pub(crate) struct Placed<T, P = Place> {
    io: T,
    _place: P,
}

impl<T, P> Placed<T, P> {
    pub(crate) fn new(io: T, place: P) -> Self {
        Self { io, _place: place }
    }

    /// The connection.
    pub(crate) fn get_ref(&self) -> &T {
        &self.io
    }
}

impl<T: Connection, P: Unpin> Connection for Placed<T, P> {
    fn close_by_reset(&self) {
        self.io.close_by_reset();
    }

    fn wait_for_reader(&self, limit: Option<Duration>) {
        self.io.wait_for_reader(limit);
    }
}

impl<T: AsyncRead + Unpin, P: Unpin> AsyncRead for Placed<T, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin, P: Unpin> AsyncWrite for Placed<T, P> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// One of the connections that a listener may have open.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let before = open.fetch_add(1, Ordering::Relaxed);
        let place = Self(Arc::clone(open));
        (before < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every idle connection holds its task, so its size is a matter of memory.
#[cfg(test)]
mod task_sizes {
    use super::*;

    /// The size of the future that `make` gives back; it is never called.
    fn size_of_future<F: Future>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }

    fn any<T>() -> T {
        unreachable!("nothing here is run")
    }

    #[test]
    fn the_tasks_of_connections_stay_small() {
        let outbound = size_of_future(|| outbound::serve(any(), any(), any(), any()));
        let plaintext = size_of_future(|| inbound::serve_plaintext(any(), any(), any(), any()));
        assert!(outbound <= 800, "outbound: {outbound} bytes");
        assert!(plaintext <= 1024, "plaintext inbound: {plaintext} bytes");
    }
}
