//! Inbound bytes: tunnels from peers and redirected plaintext, authorized and copied to the workload.

use std::{rc::Rc, time::SystemTime};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use tokio::{net::TcpStream, time::Instant};

use super::{
    Caller, authorize::Gate, destination::WorkloadPort, http::InboundHttp, plaintext::not_http,
};
use crate::{
    copy::{self, Progress, Side},
    detect::{self, Detected, Prefixed},
    errors::{Chain, ErrorCode, ProxyError},
    mesh::TunnelStream,
    telemetry::{
        ConnectionRecord, Direction, Protocol,
        metrics::{ConnectionHandles, OpenConnection},
    },
    worker::Worker,
};

/// Bytes between a tunnel and the HTTP that is read from it.
const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;

/// Serves a CONNECT stream: answers it once the workload has accepted a connection, then carries bytes.
pub(super) async fn from_peer(
    worker: &Rc<Worker>,
    caller: &Caller,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let _active = worker.drain.active();
    let inbound = Inbound::begin(worker, caller, Protocol::Tcp);
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let port = worker
        .forwarding
        .for_peer(authority.unwrap_or_default(), caller.local.ip());
    let http = port
        .as_ref()
        .ok()
        .filter(|port| worker.serves_http(port.address.port()));
    if let Some(port) = http {
        return http_from_peer(worker, caller, *port, request, respond, &inbound).await;
    }
    let connected = match &port {
        Ok(port) => connect(worker, caller, *port).await,
        Err(error) => Err(ProxyError::new(error.code(), error.message())),
    };
    let workload = match connected {
        Ok(workload) => workload,
        Err(error) => {
            inbound.end(worker, port.ok(), &Progress::default(), Some(&error));
            refuse(respond, error);
            return;
        }
    };
    let progress = Progress::default();
    let result = match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let tunnel = TunnelStream::new(request.into_body(), send, None);
            copy::copy_tunnel(workload, tunnel, None, &progress)
                .await
                .map_err(|error| error.blame(Side::Far))
        }
        Err(error) => Err(ProxyError::new(
            ErrorCode::ClientClosed,
            "The client went away before the connection was made.",
        )
        .with_source(error)),
    };
    // Seen from the workload's side, what the tunnel brought is the request.
    inbound.end_reversed(worker, port.ok(), &progress, result.err().as_ref());
}

/// Serves a tunnel to a port that is declared as HTTP: an upgrade, or a peer that speaks HBONE alone. Each request is
/// read, judged and told who its caller is, like any other.
async fn http_from_peer(
    worker: &Rc<Worker>,
    caller: &Caller,
    port: WorkloadPort,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    inbound: &Inbound<'_>,
) {
    // A failure is a peer that has gone.
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return;
    };
    let mut tunnel = TunnelStream::new(request.into_body(), send, None);
    let limit = worker.config.limits.header_timeout;
    let found = match detect::detect(&mut tunnel, 0, limit).await {
        Ok(found) if matches!(found.protocol, Detected::Http1 | Detected::Http2) => found,
        _ => {
            tunnel.reset();
            let error = not_http(port.address.port());
            return inbound.end(worker, Some(port), &Progress::default(), Some(&error));
        }
    };
    let http2 = found.protocol == Detected::Http2;
    let http = InboundHttp::new(worker, caller.clone());
    let service = move |request| {
        let http = http.clone();
        async move { Ok(http.answer_outside(port, http2, request).await) }
    };
    // hyper wants what it reads to be movable between threads, which a tunnel is not.
    let (near, far) = tokio::io::duplex(TUNNEL_BUFFER_BYTES);
    let progress = Progress::default();
    let copying = copy::copy_tunnel(far, tunnel, None, &progress);
    let near = Prefixed::new(found.prefix, near);
    let drain = worker.drain.begun();
    // A tunnel whose client has said all carries the answer still, as with any other bytes.
    let serving = worker.serve_http(near, http2, Direction::Inbound, true, drain, service);
    let (copied, ()) = futures_util::future::join(copying, serving).await;
    if let Err(error) = copied {
        tracing::debug!(error = %Chain(&error), "a tunnel for HTTP broke off");
    }
}

/// Tells the peer why it gets no connection. It need not be there any more.
fn refuse(mut respond: SendResponse<Bytes>, error: ProxyError) {
    let (head, body) = error.into_response::<Bytes>(false).into_parts();
    if let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), false) {
        let _ = stream.send_data(body, true);
    }
}

/// Serves redirected plaintext that is not HTTP.
pub(super) async fn from_outside<T: copy::Connection>(
    worker: &Rc<Worker>,
    caller: &Caller,
    port: WorkloadPort,
    protocol: Protocol,
    client: T,
) {
    let inbound = Inbound::begin(worker, caller, protocol);
    let progress = Progress::default();
    let result = match connect(worker, caller, port).await {
        Ok(workload) => copy::copy_both(client, workload, None, &progress)
            .await
            .map_err(|error| error.blame(Side::Near)),
        Err(error) => {
            client.close_by_reset();
            Err(error)
        }
    };
    inbound.end(worker, Some(port), &progress, result.err().as_ref());
}

async fn connect(
    worker: &Rc<Worker>,
    caller: &Caller,
    port: WorkloadPort,
) -> Result<TcpStream, ProxyError> {
    Gate::new(worker, caller.id()).connection(port.address.port())?;
    worker.workload.connect(port.dial).await
}

/// A connection that will be recorded when it ends.
struct Inbound<'a> {
    caller: &'a Caller,
    protocol: Protocol,
    started: (SystemTime, Instant),
    handles: Rc<ConnectionHandles>,
    _open: OpenConnection,
}

impl<'a> Inbound<'a> {
    fn begin(worker: &Worker, caller: &'a Caller, protocol: Protocol) -> Self {
        let handles = worker.telemetry.metrics().connection_handles(
            Direction::Inbound,
            protocol,
            "",
            caller.source().as_peer().spiffe_id,
            caller.peer.is_some(),
        );
        Self {
            caller,
            protocol,
            started: (SystemTime::now(), Instant::now()),
            _open: handles.open(),
            handles,
        }
    }

    fn end(
        &self,
        worker: &Worker,
        port: Option<WorkloadPort>,
        progress: &Progress,
        error: Option<&ProxyError>,
    ) {
        self.record(worker, port, (progress.sent(), progress.received()), error);
    }

    fn end_reversed(
        &self,
        worker: &Worker,
        port: Option<WorkloadPort>,
        progress: &Progress,
        error: Option<&ProxyError>,
    ) {
        self.record(worker, port, (progress.received(), progress.sent()), error);
    }

    fn record(
        &self,
        worker: &Worker,
        port: Option<WorkloadPort>,
        (request_bytes, response_bytes): (u64, u64),
        error: Option<&ProxyError>,
    ) {
        let detail = error.map(|error| error.chain().to_string());
        let (source, mut destination) = (self.caller.source(), self.caller.destination());
        destination.address = port.map(|port| port.address).or(destination.address);
        worker.telemetry.finish_connection(&ConnectionRecord {
            started: self.started.0,
            duration: self.started.1.elapsed(),
            error: error.map(ProxyError::code),
            error_detail: detail.as_deref(),
            endpoint: port.map(|port| port.dial),
            source: source.as_peer(),
            destination: destination.as_peer(),
            tls: self.caller.peer.is_some(),
            attempts: 1,
            request_bytes,
            response_bytes,
            handles: Some(&self.handles),
            ..ConnectionRecord::new(Direction::Inbound, self.protocol)
        });
    }
}
