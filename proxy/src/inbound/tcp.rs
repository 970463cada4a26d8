//! Inbound bytes: tunnels from peers and redirected plaintext, authorized and copied to the workload.

use std::{rc::Rc, time::SystemTime};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use tokio::{net::TcpStream, time::Instant};

use super::{
    Caller,
    authorize::Gate,
    destination::WorkloadPort,
    http::InboundHttp,
    plaintext::{http, is_http, not_http},
};
use crate::{
    complaints::check_header_list,
    copy::{self, Progress, Side},
    detect::{Detected, Prefixed},
    errors::{Chain, ErrorCode, ProxyError},
    http::headers::header_list_bytes,
    limit::Permit,
    mesh::TunnelStream,
    telemetry::{
        ConnectionRecord, Direction, Protocol, TaskContext,
        metrics::{ConnectionHandles, OpenConnection},
    },
    worker::Worker,
};

/// Bytes between a tunnel and the HTTP that is read from it.
const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;

/// Serves a CONNECT stream of the connection whose requests `connection` answers: answers it once the workload has
/// accepted a connection, then carries bytes.
pub(super) async fn from_peer(
    connection: Rc<InboundHttp>,
    mut request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (worker, caller) = (&connection.worker, &connection.caller);
    let _active = worker.drain.active();
    let mut inbound = Inbound::begin(worker, caller, Protocol::Tcp);
    inbound.task = connection.take_task(request.headers_mut());
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let limit = worker.config.limits.max_header_bytes;
    let port =
        check_header_list(header_list_bytes(&request), limit, Direction::Inbound).and_then(|()| {
            let local = caller.local.ip();
            worker
                .forwarding
                .for_peer(authority.unwrap_or_default(), local)
        });
    inbound.port = port.as_ref().ok().copied();
    let http = port
        .as_ref()
        .ok()
        .filter(|port| worker.serves_http(port.address.port()));
    if let Some(port) = http {
        let serving = http_from_peer(&connection, *port, request, respond, inbound);
        return Box::pin(serving).await;
    }
    let connected = match &port {
        Ok(port) => Box::pin(connect(worker, caller, *port)).await,
        Err(error) => Err(ProxyError::new(error.code(), error.message())),
    };
    let (workload, _place) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            inbound.end(Some(&error));
            refuse(respond, error);
            return;
        }
    };
    // Seen from the workload's side, what the tunnel brought is the request.
    inbound.reversed = true;
    let result = match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let tunnel = TunnelStream::new(request.into_body(), send, None);
            copy::copy_tunnel(workload, tunnel, None, &inbound.progress)
                .await
                .map_err(|error| error.blame(Side::Far))
        }
        Err(error) => Err(ProxyError::new(
            ErrorCode::ClientClosed,
            "The client went away before the connection was made.",
        )
        .with_source(error)),
    };
    inbound.end(result.err().as_ref());
}

/// Serves a tunnel to a port that is declared as HTTP: an upgrade, or a peer that speaks HBONE alone. Each request is
/// read, judged and told who its caller is, like any other.
///
/// Whoever only wants to know whether the port is open gets the workload's own word for it, as on any other port: the
/// tunnel is answered once the workload has accepted a connection, by which the first request goes.
async fn http_from_peer(
    connection: &Rc<InboundHttp>,
    port: WorkloadPort,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    inbound: Inbound<'_>,
) {
    let worker = &connection.worker;
    let opened = match connection.gate.any_request(port.address.port()) {
        Ok(()) => worker.workload.connect(port.dial).await,
        Err(error) => Err(error),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            inbound.end(Some(&error));
            return refuse(respond, error);
        }
    };
    // A failure is a peer that has gone.
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return;
    };
    let mut tunnel = TunnelStream::new(request.into_body(), send, None);
    let found = match http(worker, &mut tunnel).await {
        Ok(Some(found)) if is_http(&found) => found,
        Ok(Some(_)) => {
            tunnel.reset();
            let error = not_http(port.address.port());
            return inbound.end(Some(&error));
        }
        Ok(None) | Err(_) => return inbound.leave_out(),
    };
    inbound.leave_out();
    let http2 = found.protocol == Detected::Http2;
    if !http2 {
        worker.workload.keep(port.dial, opened).await;
    }
    let shared = Rc::clone(connection);
    let service = move |request| {
        let http = Rc::clone(&shared);
        async move { Ok(http.answer_outside(port, http2, request).await) }
    };
    // hyper wants what it reads to be movable between threads, which a tunnel is not.
    let (near, far) = copy::pipe(TUNNEL_BUFFER_BYTES);
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
    let mut inbound = Inbound::begin(worker, caller, protocol);
    inbound.port = Some(port);
    let result = match connect(worker, caller, port).await {
        Ok((workload, _place)) => copy::copy_both(client, workload, None, &inbound.progress)
            .await
            .map_err(|error| error.blame(Side::Near)),
        Err(error) => {
            client.close_by_reset();
            Err(error)
        }
    };
    inbound.end(result.err().as_ref());
}

async fn connect(
    worker: &Rc<Worker>,
    caller: &Caller,
    port: WorkloadPort,
) -> Result<(TcpStream, Option<Permit>), ProxyError> {
    Gate::new(worker, caller.id()).connection(port.address.port())?;
    let limits = worker.limits_of(port.address.port());
    let place = limits.map(|limits| limits.admit_connection()).transpose()?;
    let workload = worker.workload.connect(port.dial).await?;
    Ok((workload, place.flatten()))
}

/// A connection that is recorded when it ends, or is dropped before.
struct Inbound<'a> {
    worker: &'a Worker,
    caller: &'a Caller,
    protocol: Protocol,
    started: (SystemTime, Instant),
    handles: Rc<ConnectionHandles>,
    /// From the caller to the workload and back, or the other way round.
    progress: Progress,
    reversed: bool,
    port: Option<WorkloadPort>,
    /// The Airflow task that it comes from, as far as the caller is believed.
    task: Option<TaskContext>,
    recorded: bool,
    _open: OpenConnection,
}

impl<'a> Inbound<'a> {
    fn begin(worker: &'a Worker, caller: &'a Caller, protocol: Protocol) -> Self {
        let handles = worker.telemetry.metrics().connection_handles(
            Direction::Inbound,
            protocol,
            "",
            caller.source().as_peer().spiffe_id,
            caller.peer.is_some(),
        );
        Self {
            worker,
            caller,
            protocol,
            started: (SystemTime::now(), Instant::now()),
            _open: handles.open(),
            handles,
            progress: Progress::default(),
            reversed: false,
            port: None,
            task: None,
            recorded: false,
        }
    }

    /// What is carried has records of its own.
    fn leave_out(mut self) {
        self.recorded = true;
    }

    fn end(mut self, error: Option<&ProxyError>) {
        self.record(error);
    }

    fn record(&mut self, error: Option<&ProxyError>) {
        self.recorded = true;
        let detail = error.map(|error| error.chain().to_string());
        let (source, mut destination) = (self.caller.source(), self.caller.destination());
        destination.address = self.port.map(|port| port.address).or(destination.address);
        let (sent, received) = (self.progress.sent(), self.progress.received());
        let (request_bytes, response_bytes) = if self.reversed {
            (received, sent)
        } else {
            (sent, received)
        };
        self.worker.telemetry.finish_connection(&ConnectionRecord {
            started: self.started.0,
            duration: self.started.1.elapsed(),
            error: error.map(ProxyError::code),
            error_detail: detail.as_deref(),
            endpoint: self.port.map(|port| port.dial),
            source: source.as_peer(),
            destination: destination.as_peer(),
            tls: self.caller.peer.is_some(),
            attempts: 1,
            request_bytes,
            response_bytes,
            handles: Some(&self.handles),
            task: self.task.as_ref(),
            ..ConnectionRecord::new(Direction::Inbound, self.protocol)
        });
    }
}

impl Drop for Inbound<'_> {
    fn drop(&mut self) {
        if !self.recorded {
            let error = self.worker.telemetry.cut_off();
            self.record(Some(&error));
        }
    }
}
