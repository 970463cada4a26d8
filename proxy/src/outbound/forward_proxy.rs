//! The outbound port as an HTTP proxy (explicit capture): for places where connections cannot be redirected, and
//! clients that honour `http_proxy`.

use std::{net::SocketAddr, rc::Rc};

use http::{Method, Request, Response, uri::Scheme};
use tokio::net::TcpStream;

use super::{connection, destination::Target, http::OutboundHttp};
use crate::{
    airflow::ConnectionTask,
    copy::Connection,
    errors::{ErrorCode, ProxyError},
    http::{Body, take_back},
    listen::Placed,
    telemetry::Direction,
    worker::Worker,
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
            tunnel(worker, client, target, request)
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

/// Accepts a CONNECT; what follows is a connection like any other of the workload's.
fn tunnel(
    worker: Rc<Worker>,
    (client, task): (SocketAddr, ConnectionTask),
    target: Target,
    mut request: Request<Body>,
) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    let active = worker.drain.active();
    tokio::task::spawn_local(async move {
        match upgrade.await {
            // Its own connection again, so that what breaks is reset, and bytes go through as few hands as elsewhere.
            Ok(upgraded) => match take_back::<Placed<TcpStream>>(upgraded) {
                Some(stream) => {
                    // Nobody knows what it carries now.
                    stream.wait_for_reader(None);
                    connection(worker, target, stream, client, task, active).await;
                }
                None => tracing::error!(%client, "a CONNECT was made on another connection"),
            },
            Err(error) => {
                tracing::debug!(%client, %error, "a CONNECT was not followed by a connection")
            }
        }
    });
    Response::new(Body::Empty)
}
