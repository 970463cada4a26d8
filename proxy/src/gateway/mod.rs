//! Gateway: connections of clients outside the mesh, for services within. The way of one, top to bottom:
//!
//! 1. accepted on a port of a Gateway document ([`keeper`] opens and closes them as documents change);
//! 2. [`proxy_protocol`]: behind a load balancer that speaks it, who the client is;
//! 3. TLS: the listener by server name ([`hosts`]), with its certificate ([`certificates`], [`port`]); or passed
//!    through, to the service that the server name's route says ([`tls`]);
//! 4. HTTP: each request by [`http`]: the listener by host, [`forwarded`] headers, the listener's routes; from there on
//!    the way is that of a sidecar's outbound requests.

mod certificates;
mod forwarded;
mod hosts;
mod http;
mod keeper;
mod port;
pub(crate) mod proxy_protocol;
mod tls;

use std::{collections::HashSet, net::SocketAddr, rc::Rc, sync::Arc};

use bytes::BytesMut;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(crate) use self::keeper::{Keeper, OpenPort, OpenPorts};
use self::{
    http::GatewayHttp,
    proxy_protocol::{ReadError, Said},
};
use crate::{
    copy::Connection,
    detect::{self, Detected, Prefixed},
    errors::{Chain, ErrorCode, ProxyError},
    listen::{self, ListenPlan, Placed},
    mesh::HandshakeGate,
    telemetry::Direction,
    worker::Worker,
};

/// What the gateway's connections of one worker share.
#[derive(Debug, Default)]
pub(crate) struct GatewayWorker {
    gate: HandshakeGate,
    tables: http::Tables,
}

/// Serves the ports as they open and close, for as long as the worker lives.
pub(crate) async fn follow(
    worker: Rc<Worker>,
    index: usize,
    mut ports: watch::Receiver<OpenPorts>,
) {
    let mut served: HashSet<*const OpenPort> = HashSet::new();
    loop {
        let open = ports.borrow_and_update().clone();
        served.retain(|known| open.iter().any(|port| Arc::as_ptr(port) == *known));
        for port in open {
            if !served.insert(Arc::as_ptr(&port)) {
                continue;
            }
            for socket in port.take_sockets(index) {
                let listener = socket
                    .local_addr()
                    .and_then(|address| Ok((address, TcpListener::from_std(socket)?)));
                match listener {
                    Ok((address, listener)) => {
                        let plan = ListenPlan::gateway(address, Arc::clone(&port));
                        tokio::task::spawn_local(listen::accept(
                            Rc::clone(&worker),
                            plan,
                            listener,
                        ));
                    }
                    Err(error) => tracing::error!(%error, "a gateway port is not served"),
                }
            }
        }
        // An error means that the keeper has ended, and the process with it.
        if ports.changed().await.is_err() {
            return;
        }
    }
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    port: Arc<OpenPort>,
    mut stream: Placed<TcpStream>,
    peer: SocketAddr,
) {
    let (client, rest) = match client(&worker, &mut stream, peer).await {
        Ok(found) => found,
        Err(error) => return proxy_header_missing(&worker, peer, &error),
    };
    let stream = Prefixed::new(rest, stream);
    if port.current().tls {
        tls::serve(worker, port, stream, client).await;
    } else {
        plain(worker, port, stream, client).await;
    }
}

/// The client of a connection: its peer, or who a load balancer in front says.
async fn client(
    worker: &Worker,
    stream: &mut Placed<TcpStream>,
    peer: SocketAddr,
) -> Result<(SocketAddr, BytesMut), ReadError> {
    let from = &worker.config.gateway.proxy_protocol_from;
    if !from.iter().any(|block| block.contains(peer.ip())) {
        return Ok((peer, BytesMut::new()));
    }
    let limit = worker.config.traffic.handshake_timeout;
    let (said, rest) = proxy_protocol::read(stream, limit).await?;
    let client = match said {
        Said::Proxied { source, .. } => source,
        Said::Own => peer,
    };
    Ok((client, rest))
}

fn proxy_header_missing(worker: &Worker, peer: SocketAddr, error: &ReadError) {
    let code = match error {
        ReadError::Timeout(_) => ErrorCode::ClientTimeout,
        ReadError::Header(_) => ErrorCode::BadRequest,
        // Load balancers connect and go, to see that the port is open.
        ReadError::Ended | ReadError::Io(_) => {
            tracing::debug!(%peer, %error, "a connection ended before its PROXY header");
            return;
        }
    };
    let error = ProxyError::new(
        code,
        format_args!(
            "{peer} is among --gateway-proxy-protocol-from and sent no PROXY header; have it send one, or take it out"
        ),
    )
    .with_source(Chain(error).to_string());
    worker.refused_by(Direction::Gateway, peer, &error);
}

/// Serves plain HTTP.
async fn plain<T: Connection + Send + 'static>(
    worker: Rc<Worker>,
    port: Arc<OpenPort>,
    mut stream: T,
    client: SocketAddr,
) {
    // Browsers open connections in advance: one that stays silent is served as HTTP/1 that is idle.
    let limit = worker.config.limits.header_timeout;
    let found = match detect::detect(&mut stream, 0, limit).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%client, %error, "a client closed its connection unused");
            return;
        }
    };
    if let Detected::Tls { .. } = found.protocol {
        let error = ProxyError::new(
            ErrorCode::BadRequest,
            "A client speaks TLS on a port whose listener is plain HTTP.",
        );
        return worker.refused_by(Direction::Gateway, client, &error);
    }
    let http2 = found.protocol == Detected::Http2;
    // Of several listeners at a port it is the requests that say which is meant.
    let listener = port.current().only_listener().cloned();
    let limits = listener.and_then(|listener| worker.gateway.tables.of(&worker, &listener).limits);
    let permit = match limits.map(|limits| limits.admit_connection()).transpose() {
        Ok(permit) => permit.flatten(),
        Err(error) => return worker.refused_by(Direction::Gateway, client, &error),
    };
    let stream = Placed::new(Prefixed::new(found.prefix, stream), permit);
    let http = GatewayHttp::new(&worker, port, client, None);
    http::serve(worker, stream, http2, http).await;
}
