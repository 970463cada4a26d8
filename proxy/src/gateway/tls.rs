//! TLS of a gateway's clients: ended here with the certificate of the listener that the server name says, or passed
//! through.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use tokio::{io::AsyncWriteExt as _, time::Instant};
use tokio_rustls::TlsAcceptor;

use super::{
    OpenPort,
    http::{self, GatewayHttp},
    port::{Listener, TlsEnds, TlsRoute},
};
use crate::{
    copy::Connection,
    detect::{self, Detected, Prefixed},
    errors::{Chain, ErrorCode, ProxyError},
    limit::client_of,
    listen::Placed,
    outbound::{self, Target},
    telemetry::{
        Direction,
        metrics::{HandshakeFailure, Side},
    },
    worker::Worker,
};

/// The alert `unrecognized_name`, fatal, in a record of its own (RFC 6066, section 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Serves a connection that is to begin with a ClientHello.
pub(super) async fn serve<T: Connection + Send + 'static>(
    worker: Rc<Worker>,
    port: Arc<OpenPort>,
    mut stream: T,
    client: SocketAddr,
) {
    let began = Instant::now();
    let failed = |failure: HandshakeFailure| {
        let metrics = worker.telemetry.metrics();
        metrics.handshake(Side::Gateway, Err(failure), began.elapsed());
    };
    let one_client = client_of(Direction::Gateway, client.ip());
    let Some(place) = worker.gateway.gate.enter(one_client) else {
        return failed(HandshakeFailure::TooMany);
    };
    let limit = worker.config.traffic.handshake_timeout;
    let hello = match detect::detect(&mut stream, 0, limit).await {
        Ok(hello) => hello,
        Err(error) => {
            tracing::debug!(%client, %error, "a client closed its connection unused");
            return failed(HandshakeFailure::Closed);
        }
    };
    let Detected::Tls { server_name } = hello.protocol else {
        return failed(match hello.timed_out {
            true => HandshakeFailure::Timeout,
            false if hello.prefix.is_empty() => HandshakeFailure::Closed,
            false => HandshakeFailure::Protocol,
        });
    };
    let name = server_name.unwrap_or_default();
    let Some(listener) = port.current().listener(&name).cloned() else {
        let _ = tokio::time::timeout(limit, stream.write_all(&UNRECOGNIZED_NAME)).await;
        return failed(HandshakeFailure::Incompatible);
    };
    let limits = worker.gateway.tables.of(&worker, &listener).limits;
    let permit = match limits.map(|limits| limits.admit_connection()).transpose() {
        Ok(permit) => permit.flatten(),
        Err(error) => {
            worker.refused_by(Direction::Gateway, client, &error);
            return failed(HandshakeFailure::TooMany);
        }
    };
    let stream = Placed::new(Prefixed::new(hello.prefix, stream), permit);
    let config = match &listener.ends {
        TlsEnds::Here(config) => Arc::clone(config),
        TlsEnds::Behind(routes) => {
            drop(place);
            return pass_through(worker, &listener, routes, &name, stream, client).await;
        }
        TlsEnds::Plain => return failed(HandshakeFailure::Incompatible),
    };
    let accepting = Box::pin(TlsAcceptor::from(config).accept(stream));
    let left = limit.saturating_sub(began.elapsed());
    let accepted = tokio::time::timeout(left, accepting).await;
    drop(place);
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%client, error = %Chain(&error), "a client's TLS handshake failed");
            return failed(HandshakeFailure::from(&error));
        }
        Err(_) => return failed(HandshakeFailure::Timeout),
    };
    worker
        .telemetry
        .metrics()
        .handshake(Side::Gateway, Ok(()), began.elapsed());
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let http = GatewayHttp::new(&worker, port, client, Some(listener.name.clone()));
    http::serve(worker, stream, http2, http).await;
}

async fn pass_through<T: Connection + Send + 'static>(
    worker: Rc<Worker>,
    listener: &Listener,
    routes: &[TlsRoute],
    name: &str,
    stream: T,
    client: SocketAddr,
) {
    let destination = TlsRoute::destination(routes, name, rand::random());
    let destination: Option<sidewind_api::Destination> =
        destination.and_then(|text| text.parse().ok());
    let Some(destination) = destination else {
        let error = ProxyError::new(
            ErrorCode::NoEndpoints,
            format_args!("No TLSRoute of listener {} is for {name:?}.", listener.name),
        );
        stream.close_by_reset();
        return worker.refused_by(Direction::Gateway, client, &error);
    };
    let destination = worker.destinations.get(&Target::from(destination));
    outbound::pass_through(&worker, &destination, stream, client).await;
}
