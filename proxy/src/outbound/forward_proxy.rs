//! The outbound port as an HTTP proxy (explicit capture): for places where connections cannot be redirected, and
//! clients that honour `http_proxy`.

use std::{net::SocketAddr, rc::Rc};

use http::{Method, Request, Response, uri::Scheme};
use tokio::net::TcpStream;

use super::{
    connection,
    destination::{Declared, Destination, Resolved, Target},
    http::OutboundHttp,
    tcp::{self, Ahead},
};
use crate::{
    airflow::ConnectionTask,
    copy::Connection,
    errors::{ErrorCode, ProxyError},
    http::{Body, take_back},
    listen::Placed,
    telemetry::{Direction, Protocol},
    worker::{READY_WAIT, Worker},
};

/// Serves one client of the proxy to the end of its connection.
pub(super) async fn serve(
    worker: Rc<Worker>,
    stream: Placed<TcpStream>,
    client: SocketAddr,
    task: ConnectionTask,
) {
    let _open = worker.open_http(Direction::Outbound, false, "", None);
    let http = Rc::new(OutboundHttp::new(&worker, client, false, task.clone()));
    let proxy = Rc::clone(&worker);
    let service = move |request: Request<Body>| {
        let (http, worker, task) = (Rc::clone(&http), Rc::clone(&proxy), task.clone());
        async move { Ok(respond(worker, &http, (client, task), request).await) }
    };
    // Outbound goes on for the workload while the proxy drains.
    let never = std::future::pending();
    Box::pin(worker.serve_http(stream, false, Direction::Outbound, false, never, service)).await;
}

async fn respond(
    worker: Rc<Worker>,
    http: &OutboundHttp,
    client: (SocketAddr, ConnectionTask),
    request: Request<Body>,
) -> Response<Body> {
    match target(&request) {
        Err(error) => http.refuse(request, error),
        Ok(target) if request.method() == Method::CONNECT => {
            Box::pin(tunnel(worker, client, target, request)).await
        }
        Ok(target) => {
            let destination = worker.destinations.get(&target);
            http.respond(destination, request).await
        }
    }
}

/// What a request to a proxy is for (RFC 9112, sections 3.2.2 and 3.2.3).
fn target(request: &Request<Body>) -> Result<Target, ProxyError> {
    let refused = |message| Err(ProxyError::new(ErrorCode::BadRequest, message));
    let Some(authority) = request.uri().authority() else {
        return refused(
            "This port is an HTTP proxy: a request must name its whole URL, as clients do that have http_proxy set.",
        );
    };
    if request.method() == Method::CONNECT {
        return match authority.port_u16() {
            Some(port) => Ok(Target::from_authority(authority, port)),
            None => refused("A CONNECT request must name host and port."),
        };
    }
    if request.uri().scheme() != Some(&Scheme::HTTP) {
        return refused(
            "Only http:// URLs can be sent to a proxy; for https:// clients use CONNECT.",
        );
    }
    Ok(Target::from_authority(authority, 80))
}

/// Answers a CONNECT; what follows is a connection like any other of the workload's.
async fn tunnel(
    worker: Rc<Worker>,
    client: (SocketAddr, ConnectionTask),
    target: Target,
    mut request: Request<Body>,
) -> Response<Body> {
    let active = worker.drain.active();
    let destination = worker.destinations.get(&target);
    let ahead = match reach(&worker, &destination, &client).await {
        Ok(ahead) => ahead,
        Err(error) => return error.into_response(false),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::task::spawn_local(async move {
        match upgrade.await {
            // Its own connection again, so that what breaks is reset, and bytes go through as few hands as elsewhere.
            Ok(upgraded) => match take_back::<Placed<TcpStream>>(upgraded) {
                Some(stream) => {
                    // Nobody knows what it carries now.
                    stream.wait_for_reader(None);
                    let (client, task) = client;
                    connection(worker, target, stream, client, task, active, ahead).await;
                }
                None => {
                    tracing::error!(client = %client.0, "a CONNECT was made on another connection")
                }
            },
            Err(error) => {
                tracing::debug!(client = %client.0, %error, "a CONNECT was not followed by a connection")
            }
        }
    });
    Response::new(Body::Empty)
}

/// Makes the connection that a CONNECT asks for before it is answered (RFC 9110, section 9.3.6), where that can be one
/// connection. Requests of HTTP go as themselves, each to an endpoint of its own, and are answered one by one; whether it
/// will be requests only the client's first bytes tell, where nobody has declared it.
///
/// # Errors
/// Why the destination cannot be reached; that is recorded.
async fn reach(
    worker: &Rc<Worker>,
    destination: &Destination,
    (client, task): &(SocketAddr, ConnectionTask),
) -> Result<Option<Box<Ahead>>, ProxyError> {
    let protocol = match destination.resolve(worker, READY_WAIT).await {
        Ok(Resolved::Service(service)) => match service.declared() {
            Declared::Tcp => Protocol::Tcp,
            Declared::Tls => Protocol::Tls,
            Declared::Detect if service.leads_nowhere() => Protocol::Tcp,
            Declared::Detect | Declared::Http => return Ok(None),
        },
        Ok(Resolved::Outside) => Protocol::Tcp,
        // TLS may go on without the control plane's word, and only the first bytes tell whether it is that.
        Err(_) => return Ok(None),
    };
    let connected = tcp::connect_ahead(worker, destination, protocol, (*client, task));
    connected.await.map(Some)
}
