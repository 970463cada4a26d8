//! hyper on both sides: HTTP/1.1, HTTP/2 by mutual TLS, HTTP/1.1.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::tcp::report;
use super::{Route, client_config, inbound_name, server_config};
use crate::Result;

/// hyper's HTTP/2 wants to spawn; here everything stays on one thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

pub(super) async fn outbound(route: Route, directory: PathBuf) {
    let served = async {
        let connector =
            TlsConnector::from(Arc::new(client_config(&directory, "outbound", Some("h2"))?));
        let listener = TcpListener::bind(route.listen).await?;
        let mesh: Rc<RefCell<Option<client2::SendRequest<Incoming>>>> = Rc::default();
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let (connector, mesh) = (connector.clone(), Rc::clone(&mesh));
            tokio::task::spawn_local(async move {
                let sender = connected(&mesh, &connector, route).await?;
                let service = service_fn(move |mut request: Request<Incoming>| {
                    let mut sender = sender.clone();
                    request.headers_mut().remove(hyper::header::HOST);
                    let path = request
                        .uri()
                        .path_and_query()
                        .map_or("/", |path| path.as_str());
                    let uri = format!("http://{}{path}", route.target).parse();
                    if let Ok(uri) = uri {
                        *request.uri_mut() = uri;
                    }
                    async move { sender.send_request(request).await }
                });
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(client), service);
                Result::<()>::Ok(connection.await?)
            });
        }
    };
    report(served.await);
}

/// The one connection to the other side. Two clients that come at once may each make one, which is well.
async fn connected(
    mesh: &RefCell<Option<client2::SendRequest<Incoming>>>,
    connector: &TlsConnector,
    route: Route,
) -> Result<client2::SendRequest<Incoming>> {
    let known = mesh.borrow().clone();
    if let Some(sender) = known.filter(|sender| !sender.is_closed()) {
        return Ok(sender);
    }
    let server = TcpStream::connect(route.target).await?;
    server.set_nodelay(true)?;
    let server = connector.connect(inbound_name()?, server).await?;
    let (sender, connection) = client2::handshake(Local, TokioIo::new(server)).await?;
    tokio::task::spawn_local(connection);
    *mesh.borrow_mut() = Some(sender.clone());
    Ok(sender)
}

/// Connections to the server, the last used on top.
type Idle = Rc<RefCell<Vec<client1::SendRequest<Incoming>>>>;

pub(super) async fn inbound(route: Route, directory: PathBuf) {
    let served = async {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&directory, Some("h2"))?));
        let listener = TcpListener::bind(route.listen).await?;
        let idle = Idle::default();
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let (acceptor, idle) = (acceptor.clone(), Rc::clone(&idle));
            tokio::task::spawn_local(async move {
                let client = acceptor.accept(client).await?;
                let service = service_fn(move |request| forward(request, Rc::clone(&idle), route));
                let connection = http2::Builder::new(Local)
                    .max_concurrent_streams(1000)
                    .serve_connection(TokioIo::new(client), service);
                Result::<()>::Ok(connection.await?)
            });
        }
    };
    report(served.await);
}

async fn forward(
    mut request: Request<Incoming>,
    idle: Idle,
    route: Route,
) -> std::result::Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let path = path.parse()?;
    *request.uri_mut() = path;
    *request.version_mut() = hyper::Version::HTTP_11;
    let host = hyper::header::HeaderValue::from_str(&route.target.to_string())?;
    request.headers_mut().insert(hyper::header::HOST, host);
    // One whose last response is still on its way to the client is not ready.
    let ready = {
        let mut idle = idle.borrow_mut();
        idle.retain(|sender| !sender.is_closed());
        let last = idle.iter().rposition(client1::SendRequest::is_ready);
        last.map(|index| idle.swap_remove(index))
    };
    let mut sender = match ready {
        Some(sender) => sender,
        None => {
            let server = TcpStream::connect(route.target).await?;
            server.set_nodelay(true)?;
            let (sender, connection) = client1::handshake(TokioIo::new(server)).await?;
            tokio::task::spawn_local(connection);
            sender
        }
    };
    let response = sender.send_request(request).await?;
    idle.borrow_mut().push(sender);
    Ok(response)
}
