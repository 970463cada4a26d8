//! Outbound: the connections that the workload makes. The way of one, top to bottom:
//!
//! 1. accepted on the outbound port (redirected, or by a client of an HTTP proxy: [`forward_proxy`]) or on a
//!    loopback port that stands for a service;
//! 2. [`destination`]: what it is for, and what discovery knows of that;
//! 3. protocol: declared by the service, or detected on the first bytes;
//! 4. HTTP: each request through the layers in [`http`], by its route with [`forward`]; bytes: [`tcp`];
//! 5. [`endpoint`]: the chosen endpoint, through the mesh or in plaintext; [`outside`]: what is not in the mesh.

mod destination;
mod endpoint;
mod forward;
mod forward_proxy;
mod http;
mod outside;
mod service;
mod tcp;

use std::{net::SocketAddr, rc::Rc, time::Duration};

use tokio::net::TcpStream;

use self::{
    destination::{Declared, Destination, Resolved},
    http::OutboundHttp,
    tcp::{Ahead, OpaqueConnection},
};
pub(crate) use self::{
    destination::{Destinations, Target},
    forward::Forward,
};
use crate::{
    airflow::{ConnectionTask, SocketPair},
    capture::{CaptureError, DestinationSource, OriginalDestination, check_arrival},
    config::CaptureMode,
    copy::Connection,
    detect::{self, Detected, Detection, Prefixed},
    drain::Active,
    listen::Placed,
    telemetry::{Direction, Protocol},
    worker::{READY_WAIT, Worker},
};

/// How long TLS to an address outside the mesh waits for word of whether its server name is a service's.
const SERVER_NAME_WAIT: Duration = Duration::from_secs(1);

/// How a listener learns what its connections are for.
#[derive(Clone, Debug)]
pub(crate) enum Listening {
    /// Connections are redirected here.
    Redirected(DestinationSource),
    /// Clients use this as their HTTP proxy.
    ForwardProxy,
    /// Each connection is for one service.
    Mapped(Target),
}

impl Listening {
    /// What the outbound port is, by how the workload's connections are captured.
    pub(crate) fn on_outbound_port(capture: CaptureMode) -> Self {
        match capture {
            CaptureMode::Transparent => Self::Redirected(DestinationSource::Redirect),
            // A gateway has no such port.
            CaptureMode::Explicit | CaptureMode::Gateway => Self::ForwardProxy,
        }
    }
}

/// Serves one accepted connection of the workload to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    listening: Listening,
    stream: Placed<TcpStream>,
    client: SocketAddr,
) {
    // The drain waits for what the workload has open.
    let active = worker.drain.active();
    // The client's own socket is connected to what it dialled, wherever the kernel has redirected it.
    let local = stream.get_ref().local_addr().ok();
    let task = |remote: Option<SocketAddr>| {
        let socket = remote.map(|remote| SocketPair {
            local: client,
            remote,
        });
        socket
            .map(|socket| worker.task_of(socket))
            .unwrap_or_default()
    };
    let (target, task) = match listening {
        Listening::ForwardProxy => {
            let task = task(local);
            Box::pin(forward_proxy::serve(worker, stream, client, task)).await;
            return drop(active);
        }
        Listening::Mapped(target) => (target, task(local)),
        Listening::Redirected(source) => match redirected(source, stream.get_ref(), local) {
            Ok(OriginalDestination(address)) => (Target::Address(address), task(Some(address))),
            Err(error) => return worker.not_captured(Direction::Outbound, client, &error),
        },
    };
    connection(worker, target, stream, client, task, active, None).await;
}

fn redirected(
    source: DestinationSource,
    stream: &TcpStream,
    local: Option<SocketAddr>,
) -> Result<OriginalDestination, CaptureError> {
    // Where it is not known, its destination is not either.
    if let Some(local) = local {
        check_arrival(local)?;
    }
    source.original_destination(stream)
}

/// Serves a connection whose destination is known, and perhaps reached already.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn has room for each of its arguments twice, in each opaque connection's task"
)]
fn connection<T: Connection + Send + 'static>(
    worker: Rc<Worker>,
    target: Target,
    mut stream: T,
    client: SocketAddr,
    task: ConnectionTask,
    active: Active,
    mut ahead: Option<Box<Ahead>>,
) -> impl Future<Output = ()> {
    async move {
        // What a connection passes on its way is in boxes, so that its task has room for none of it when it is idle.
        let mut destination = worker.destinations.get(&target);
        let resolved = match destination.current() {
            Some(resolved) => Ok(resolved),
            None => Box::pin(destination.resolve(&worker, READY_WAIT)).await,
        };
        let (declared, service) = match resolved {
            Ok(Resolved::Service(service)) => (service.declared(), Some(service)),
            // What it is decides whether it may go on without the control plane's word.
            Ok(Resolved::Outside) | Err(_) => (Declared::Detect, None),
        };
        let found = match Box::pin(protocol(&worker, &target, declared, &mut stream)).await {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%client, %target, %error, "a client closed its connection unused");
                return;
            }
        };
        let stream = Prefixed::new(found.prefix, stream);
        let protocol = match found.protocol {
            Detected::Http1 | Detected::Http2 => {
                let http2 = found.protocol == Detected::Http2;
                if !http2 && ahead.is_some() {
                    Box::pin(tcp::keep_for_requests(ahead.take())).await;
                }
                let name = service.as_ref().map_or("", |service| service.name());
                let open = worker.open_http(Direction::Outbound, http2, name, None);
                let http = Rc::new(OutboundHttp::new(&worker, client, http2, task));
                let service = move |request| {
                    let (http, destination) = (Rc::clone(&http), Rc::clone(&destination));
                    async move { Ok(http.respond(destination, request).await) }
                };
                // Outbound goes on for the workload while the proxy drains.
                let never = std::future::pending();
                // In a task of its own, so that this one ends: the room that was needed to get here would be two kilobytes for
                // each idle connection.
                tokio::task::spawn_local(async move {
                    let _kept = (active, open);
                    let direction = Direction::Outbound;
                    let serving =
                        worker.serve_http(stream, http2, direction, false, never, service);
                    serving.await;
                });
                return;
            }
            Detected::Tls { server_name } => {
                if let Some(named) =
                    Box::pin(by_server_name(&worker, &destination, server_name)).await
                {
                    destination = named;
                    ahead = None;
                }
                Protocol::Tls
            }
            Detected::Opaque => Protocol::Tcp,
        };
        let opaque = OpaqueConnection {
            stream,
            client,
            protocol,
            direction: Direction::Outbound,
            task,
        };
        Box::pin(tcp::forward(&worker, &destination, opaque, ahead)).await;
    }
}

/// Carries TLS that a gateway passes through.
pub(crate) async fn pass_through<T: Connection>(
    worker: &Rc<Worker>,
    destination: &Destination,
    stream: T,
    client: SocketAddr,
) {
    let _active = worker.drain.active();
    let opaque = OpaqueConnection {
        stream,
        client,
        protocol: Protocol::Tls,
        direction: Direction::Gateway,
        task: ConnectionTask::default(),
    };
    tcp::forward(worker, destination, opaque, None).await;
}

/// The service of the mesh that TLS names, where the address that was dialled belongs to none: a name server outside
/// the mesh may know the host by another address.
async fn by_server_name(
    worker: &Rc<Worker>,
    dialled: &Destination,
    server_name: Option<String>,
) -> Option<Rc<Destination>> {
    let (Target::Address(address), Some(Resolved::Outside)) = (dialled.target(), dialled.current())
    else {
        return None;
    };
    let host = Target::Host(server_name?.into(), address.port());
    let named = worker.destinations.get(&host);
    match named.resolve(worker, SERVER_NAME_WAIT).await {
        Ok(Resolved::Service(_)) => Some(named),
        Ok(Resolved::Outside) | Err(_) => None,
    }
}

/// True for a request to an HTTP proxy (RFC 9112, sections 3.2.2 and 3.2.3), which the workload means to use: what
/// it says goes there as it is.
fn is_for_a_proxy(beginning: &[u8]) -> bool {
    let target = beginning.splitn(2, |byte| *byte == b' ').nth(1);
    beginning.starts_with(b"CONNECT ")
        || target
            .is_some_and(|target| target.starts_with(b"http://") || target.starts_with(b"https://"))
}

/// What the client speaks: as the service declares, else by its first bytes. None where it is HTTP of which nothing came.
async fn protocol<T: Connection>(
    worker: &Worker,
    target: &Target,
    declared: Declared,
    stream: &mut T,
) -> std::io::Result<Option<Detection>> {
    let declared_as = |protocol| Detection {
        protocol,
        prefix: bytes::BytesMut::new(),
        timed_out: false,
    };
    let limit = worker.config.traffic.detect_timeout;
    let mut found = match declared {
        Declared::Tcp => return Ok(Some(declared_as(Detected::Opaque))),
        Declared::Tls => return Ok(Some(declared_as(Detected::Tls { server_name: None }))),
        // Still read, to tell HTTP/1 from HTTP/2.
        Declared::Http => {
            // Outbound goes on for the workload while the proxy drains.
            let idle = tokio::time::sleep(worker.config.limits.client_idle_timeout);
            match detect::detect_http(stream, idle, limit).await? {
                Some(found) => found,
                None => return Ok(None),
            }
        }
        Declared::Detect => detect::detect(stream, target.port(), limit).await?,
    };
    if is_for_a_proxy(&found.prefix) {
        found.protocol = Detected::Opaque;
    } else if found.timed_out && declared == Declared::Http {
        // The beginning of a request line, whose client is slow.
        found.protocol = Detected::Http1;
    } else if found.timed_out {
        worker.silent_client(target, limit);
    }
    Ok(Some(found))
}
