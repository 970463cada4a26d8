//! Plaintext to the workload from outside the mesh: redirected here, or taken by a port that stands in front of
//! the workload's (explicit capture).

use std::{net::SocketAddr, rc::Rc};

use tokio::{io::AsyncRead, net::TcpStream};

use super::{Caller, destination::WorkloadPort, http::InboundHttp, tcp};
use crate::{
    capture::{DestinationSource, OriginalDestination},
    detect::{self, Detected, Detection, Prefixed},
    errors::{ErrorCode, ProxyError},
    listen::Placed,
    telemetry::{Direction, Protocol},
    worker::Worker,
};

/// How a listener learns which port of the workload its connections are for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PlaintextPort {
    /// Connections are redirected here.
    Redirected(DestinationSource),
    /// Connections are for this port.
    Fixed(u16),
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    listening: PlaintextPort,
    mut stream: Placed<TcpStream>,
    client: SocketAddr,
) {
    let Some((local, port)) = destination(&worker, listening, stream.get_ref(), client) else {
        return;
    };
    // Of a port that is declared as HTTP nothing else is expected, and no table of opaque ports is asked.
    let declared = worker.serves_http(port.address.port());
    let limit = worker.config.traffic.detect_timeout;
    let detecting = async {
        match declared {
            true => http(&worker, &mut stream).await,
            false => {
                let found = detect::detect(&mut stream, port.address.port(), limit);
                found.await.map(Some)
            }
        }
    };
    let found = match Box::pin(detecting).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            tracing::debug!(%client, "a connection ended unused");
            return;
        }
        Err(error) => {
            tracing::debug!(%client, %error, "a client closed its connection unused");
            return;
        }
    };
    if declared && !is_http(&found) {
        return worker.refused(client, &not_http(port.address.port()));
    }
    if found.timed_out && !declared {
        worker.silent_client(&port.address, limit);
    }
    let caller = Caller::from_outside(client, local, &worker);
    let stream = Prefixed::new(found.prefix, stream);
    let protocol = match found.protocol {
        Detected::Opaque if declared => Detected::Http1,
        protocol => protocol,
    };
    let opaque = match protocol {
        Detected::Http1 | Detected::Http2 => {
            let http2 = protocol == Detected::Http2;
            let _open = worker.open_http(Direction::Inbound, http2, "", None);
            let http = Rc::new(InboundHttp::new(&worker, caller));
            let service = move |request| {
                let http = Rc::clone(&http);
                async move { Ok(http.answer_outside(port, http2, request).await) }
            };
            let drain = worker.drain.begun();
            let serving =
                worker.serve_http(stream, http2, Direction::Inbound, false, drain, service);
            return Box::pin(serving).await;
        }
        Detected::Tls { .. } => Protocol::Tls,
        Detected::Opaque => Protocol::Tcp,
    };
    Box::pin(tcp::from_outside(&worker, &caller, port, opaque, stream)).await;
}

/// What a client begins with that is to speak HTTP. It may be silent first for as long as between requests, and until the
/// proxy drains: clients connect in advance.
pub(super) async fn http<T: AsyncRead + Unpin>(
    worker: &Worker,
    stream: &mut T,
) -> std::io::Result<Option<Detection>> {
    let limits = &worker.config.limits;
    let enough = async {
        tokio::select! {
            () = tokio::time::sleep(limits.client_idle_timeout) => {}
            () = worker.drain.begun() => {}
        }
    };
    detect::detect_http(stream, enough, limits.header_timeout).await
}

/// Whether what came is HTTP, as far as it came: the beginning of a request line is, and its client is slow.
pub(super) fn is_http(found: &Detection) -> bool {
    let slow = found.timed_out && !found.prefix.is_empty();
    slow || matches!(found.protocol, Detected::Http1 | Detected::Http2)
}

/// What is said of bytes that are for a port that is declared as HTTP.
pub(super) fn not_http(port: u16) -> ProxyError {
    ProxyError::new(
        ErrorCode::BadRequest,
        format_args!("Port {port} of this workload is declared as HTTP, and this is none."),
    )
}

fn destination(
    worker: &Worker,
    listening: PlaintextPort,
    stream: &TcpStream,
    client: SocketAddr,
) -> Option<(SocketAddr, WorkloadPort)> {
    let local = stream.local_addr().ok()?;
    let address = match listening {
        PlaintextPort::Fixed(port) => SocketAddr::new(local.ip(), port),
        PlaintextPort::Redirected(source) => match source.original_destination(stream) {
            Ok(OriginalDestination(address)) => address,
            Err(error) => {
                worker.not_captured(Direction::Inbound, client, &error);
                return None;
            }
        },
    };
    match worker.forwarding.workload_port(address) {
        Ok(port) => Some((address, port)),
        Err(error) => {
            worker.refused(client, &error);
            None
        }
    }
}
