//! What is outside the mesh: the addresses of a host, tried one after another until one accepts.

use std::{
    cell::Cell,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::net::TcpStream;
use tower::{Layer, ServiceExt};

use super::destination::{Destination, Target};
use crate::{
    balance::{EndpointDesc, MOST_UNSENT},
    config,
    errors::{ErrorCode, ProxyError},
    exchange::Exchange,
    http::Body,
    plaintext::PlaintextClient,
    retry::{Others, RetryObserver, RetryPolicy},
    worker::Worker,
};

/// The addresses of a destination outside the mesh, unless such are refused: at least one, and of a host no more than one
/// connection is tried at, in the resolver's order.
pub(super) async fn outside_addresses(
    worker: &Worker,
    destination: &Destination,
) -> Result<Vec<SocketAddr>, ProxyError> {
    let target = destination.target();
    if worker.config.traffic.outside == config::Outside::Refuse {
        return Err(ProxyError::new(
            ErrorCode::OutsideRefused,
            format_args!(
                "{target} is outside the mesh, where this proxy is set to let nothing go."
            ),
        ));
    }
    match target {
        Target::Address(address) => Ok(vec![*address]),
        Target::Host(host, port) => {
            let lookup = tokio::net::lookup_host((&**host, *port));
            let found = tokio::time::timeout(worker.config.traffic.connect_timeout, lookup).await;
            let found: Vec<SocketAddr> = match found {
                Ok(Ok(addresses)) => addresses.take(MOST_UNSENT as usize).collect(),
                Ok(Err(error)) => return Err(no_address(host, &error.to_string())),
                Err(_) => return Err(no_address(host, "the name server did not answer in time")),
            };
            match found.is_empty() {
                true => Err(no_address(host, "empty answer")),
                false => Ok(found),
            }
        }
    }
}

fn no_address(host: &str, cause: &str) -> ProxyError {
    let message = format_args!("The host {host} has no address.");
    ProxyError::new(ErrorCode::ConnectFailed, message).with_source(cause.to_owned())
}

/// A connection to the first of some addresses that accepts one; `begins` is told of each try.
pub(super) async fn connect_first(
    client: &PlaintextClient,
    addresses: &[SocketAddr],
    mut begins: impl FnMut(SocketAddr),
) -> Result<TcpStream, ProxyError> {
    let mut last = None;
    for address in addresses {
        begins(*address);
        match client.connect(*address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ProxyError::new(ErrorCode::ConnectFailed, "There is no address.")))
}

/// Sends the tries of one request outside the mesh, each to the next address of its host.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    pub(super) worker: Rc<Worker>,
    pub(super) exchange: Rc<Exchange>,
    pub(super) addresses: Rc<Addresses>,
    pub(super) http2: bool,
}

/// Where the tries of one request go.
#[derive(Debug)]
pub(super) struct Addresses {
    list: Vec<SocketAddr>,
    begun: Cell<usize>,
}

impl Outside {
    /// Sends a request, as `policy` says where there is one, and at least until an address accepts it.
    pub(super) async fn send(
        self,
        policy: Option<Rc<RetryPolicy>>,
        request: Request<Body>,
    ) -> Result<Response<Body>, ProxyError> {
        let policy = match policy {
            Some(policy) => policy,
            None if self.addresses.list.len() > 1 => Rc::new(each_once()),
            None => return self.oneshot(request).await,
        };
        let retry = self.worker.outside.retry(policy);
        let retry = retry.observed(Rc::clone(&self.exchange) as Rc<dyn RetryObserver>);
        let retry = retry.since(self.exchange.started());
        let retry = retry.among(Rc::clone(&self.addresses) as Rc<dyn Others>);
        retry.layer(self).oneshot(request).await
    }
}

/// Goes on to another address with what was not sent, for which nothing of a body has to be kept.
fn each_once() -> RetryPolicy {
    RetryPolicy {
        max_retries: 0,
        replay_bytes: 0,
        ..RetryPolicy::default()
    }
}

impl From<Vec<SocketAddr>> for Addresses {
    fn from(list: Vec<SocketAddr>) -> Self {
        let begun = Cell::default();
        Self { list, begun }
    }
}

impl Addresses {
    /// The next one, and after the last the first again.
    fn next(&self) -> Option<SocketAddr> {
        let begun = self.begun.get();
        self.begun.set(begun.wrapping_add(1));
        self.list
            .iter()
            .cycle()
            .nth(begun % self.list.len().max(1))
            .copied()
    }
}

impl Others for Addresses {
    fn are_left(&self) -> bool {
        self.begun.get() < self.list.len()
    }
}

impl tower::Service<Request<Body>> for Outside {
    type Response = Response<Body>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, ProxyError>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let address = this.addresses.next();
            let address = address.ok_or_else(|| no_address("of the request", "empty answer"))?;
            let endpoint = EndpointDesc::plain(address);
            let sent = endpoint.send(&this.worker, &this.exchange, request, this.http2);
            sent.await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::spawn_local;

    use super::*;
    use crate::exchange::{Origin, Party};
    use crate::telemetry::Direction;
    use crate::worker::testing::worker;

    /// An address where nobody listens.
    async fn closed() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    }

    /// A server that answers this to the first request of each connection, and closes it.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                spawn_local(async move {
                    let mut read = Vec::new();
                    while !read.ends_with(b"\r\n\r\nhello") {
                        read.push(stream.read_u8().await.unwrap());
                    }
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        address
    }

    /// What comes of a request to a host of these addresses, and how often it was tried.
    async fn send(list: Vec<SocketAddr>) -> (Result<u16, ErrorCode>, usize) {
        let worker = worker();
        let addresses: Rc<Addresses> = Rc::new(list.into());
        let request = Request::post("http://outside.example/");
        let mut request = request.body(Body::from("hello")).unwrap();
        let origin = Origin::new(&worker, Direction::Outbound, Party::default());
        let exchange = Exchange::begin(&origin, &mut request, worker.drain.active());
        exchange.clean(&mut request).unwrap();
        let outside = Outside {
            worker,
            exchange,
            addresses: Rc::clone(&addresses),
            http2: false,
        };
        let sent = outside.send(None, request).await;
        let sent = sent.map(|answer| answer.status().as_u16());
        (sent.map_err(|error| error.code()), addresses.begun.get())
    }

    #[tokio::test(flavor = "local")]
    async fn a_request_goes_to_each_address_until_one_accepts_it_and_to_no_other_after_that() {
        let (none, here) = (closed().await, server("HTTP/1.1 200 OK\r\n\r\n").await);
        let (busy, broken) = (server("HTTP/1.1 503 Busy\r\n\r\n").await, server("").await);
        for (list, expected) in [
            (vec![here], (Ok(200), 1)),
            (vec![none, none, here], (Ok(200), 3)),
            (vec![none, none], (Err(ErrorCode::ConnectFailed), 2)),
            (vec![none], (Err(ErrorCode::ConnectFailed), 1)),
            (vec![none, busy, here], (Ok(503), 2)),
            // It may have done what it was asked for.
            (vec![broken, here], (Err(ErrorCode::UpstreamReset), 1)),
        ] {
            assert_eq!(send(list.clone()).await, expected, "{list:?}");
        }
    }

    #[tokio::test(flavor = "local")]
    async fn a_connection_goes_to_the_first_address_that_accepts() {
        let worker = worker();
        let (none, here) = (closed().await, server("").await);
        for (list, accepted, tried) in [
            (vec![none, here, none], Some(here), 2),
            (vec![none, none], None, 2),
        ] {
            let began = RefCell::new(Vec::new());
            let note = |address| began.borrow_mut().push(address);
            let connected = connect_first(&worker.endpoints, &list, note).await;
            let peer = connected.ok().and_then(|stream| stream.peer_addr().ok());
            assert_eq!(peer, accepted);
            assert_eq!(*began.borrow(), list[..tried]);
        }
    }
}
