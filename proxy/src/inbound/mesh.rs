//! The mesh port: connections of peers, each with many streams. A stream is a request, or with CONNECT a tunnel
//! of bytes (HBONE).

use std::{net::SocketAddr, rc::Rc};

use h2::RecvStream;
use http::{Method, Request};
use tokio::{net::TcpStream, time::Instant};

use super::{Caller, http::InboundHttp, tcp};
use crate::{
    errors::{Chain, ErrorCode},
    http::{FarTooLarge, broken_by_client, serve_stream, slow_over_a_head},
    mesh::{self, AcceptError, DriverError, HandshakeGate, MeshServerConnection, ServerSettings},
    telemetry::{
        Direction,
        metrics::{HandshakeFailure, Side},
    },
    worker::Worker,
};

/// What the mesh connections of one worker share.
#[derive(Clone, Debug)]
pub(crate) struct MeshPort {
    gate: HandshakeGate,
    settings: ServerSettings,
}

impl MeshPort {
    pub(crate) fn new(worker: &Worker) -> Self {
        Self {
            gate: HandshakeGate::default(),
            settings: ServerSettings {
                handshake_timeout: worker.config.traffic.handshake_timeout,
                header_timeout: worker.config.limits.header_timeout,
                max_concurrent_streams: worker.config.limits.max_mesh_streams,
                max_header_bytes: worker.config.limits.max_header_bytes,
                ..ServerSettings::default()
            },
        }
    }
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    port: MeshPort,
    stream: TcpStream,
    client: SocketAddr,
) {
    let identity = match worker.identity() {
        Ok(identity) => identity,
        // Without a certificate there is no handshake, so there is nobody to tell.
        Err(error) => return worker.refused(client, &error),
    };
    let began = Instant::now();
    let accepted = mesh::accept(
        stream,
        &identity,
        &port.gate,
        &port.settings,
        &worker.census,
    )
    .await;
    let outcome = accepted.as_ref().map(drop).map_err(handshake_failure);
    worker
        .telemetry
        .metrics()
        .handshake(Side::Server, outcome, began.elapsed());
    let connection = match accepted {
        Ok(connection) => connection,
        Err(error) => return worker.handshake_failed(client, &error),
    };
    let counting = Rc::clone(&worker);
    connection.on_far_too_large(move || {
        counting.not_http(Direction::Inbound, ErrorCode::HeaderTooLarge, &FarTooLarge);
    });
    let caller = Caller::from_mesh(client, connection.local, &connection.peer, &identity.id);
    let _open = worker.open_http(Direction::Inbound, true, "", caller.id());
    if let Err(error) = streams(&worker, caller, connection).await {
        let code = match &error {
            DriverError::Http2(error) if broken_by_client(error) => ErrorCode::BadRequest,
            DriverError::Http2(error) if slow_over_a_head(error) => ErrorCode::ClientTimeout,
            _ => ErrorCode::ClientClosed,
        };
        worker.not_http(Direction::Inbound, code, &error);
    }
}

async fn streams(
    worker: &Rc<Worker>,
    caller: Caller,
    connection: MeshServerConnection,
) -> Result<(), DriverError> {
    let http = Rc::new(InboundHttp::new(worker, caller));
    let reader_timeout = worker.config.limits.patience.reader;
    let handler = |request: Request<RecvStream>, respond| {
        let http = Rc::clone(&http);
        async move {
            if request.method() == Method::CONNECT {
                // In a box, since it is larger than what a request needs.
                Box::pin(tcp::from_peer(http, request, respond)).await;
            } else {
                let answer = |request| async move { Ok(http.answer_peer(request).await) };
                if let Err(error) = serve_stream(request, respond, reader_timeout, answer).await {
                    tracing::debug!(error = %Chain(&error), "a response was not sent whole");
                }
            }
        }
    };
    connection.serve(worker.drain.begun(), handler).await
}

fn handshake_failure(error: &AcceptError) -> HandshakeFailure {
    match error {
        AcceptError::TooManyHandshakes => HandshakeFailure::TooMany,
        AcceptError::HandshakeTimeout { .. } => HandshakeFailure::Timeout,
        AcceptError::Handshake(error) => HandshakeFailure::from(error),
        AcceptError::Alpn => HandshakeFailure::Incompatible,
        AcceptError::NoIdentity(_) => HandshakeFailure::BadCertificate,
        AcceptError::Banned(_) => HandshakeFailure::Banned,
        AcceptError::Http2(_) => HandshakeFailure::Protocol,
    }
}
