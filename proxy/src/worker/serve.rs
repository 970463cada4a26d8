//! The client side of HTTP, the same for every listener.

use std::{convert::Infallible, rc::Rc};

use http::{Request, Response};
use sidewind_identity::SpiffeId;

use super::Worker;
use crate::{
    complaints::complain,
    copy::Connection,
    errors::ErrorCode,
    http::{
        Body, FarTooLarge, H1ServerError, H1ServerSettings, H2ServerError, H2ServerSettings,
        broken_by_client, serve_h1, serve_h2, slow_over_a_head,
    },
    telemetry::{Direction, Protocol, metrics::OpenConnection},
};

/// Streams that a client may have open on one HTTP/2 connection. One whose reader stalls holds up to its window and what
/// h2 has taken for it, 350 KiB in all. Workloads are trusted with many: gRPC's clients keep streams open.
const MOST_STREAMS: u32 = 512;
const MOST_STREAMS_FROM_OUTSIDE: u32 = 128;

impl Worker {
    /// Serves HTTP to one client, who speaks HTTP/2 with prior knowledge when `http2`, with `service` for each
    /// request.
    pub(crate) async fn serve_http<T, S, F>(
        self: &Rc<Self>,
        stream: T,
        http2: bool,
        direction: Direction,
        half_close: bool,
        drain: impl Future<Output = ()>,
        service: S,
    ) where
        T: Connection + Send + 'static,
        S: Fn(Request<Body>) -> F + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
    {
        let limits = &self.config.limits;
        if http2 {
            let settings = H2ServerSettings {
                handshake_timeout: limits.header_timeout,
                max_header_bytes: limits.max_header_bytes,
                max_concurrent_streams: match direction {
                    Direction::Outbound => MOST_STREAMS,
                    Direction::Inbound | Direction::Gateway => MOST_STREAMS_FROM_OUTSIDE,
                },
                idle_timeout: limits.client_idle_timeout,
                reader_timeout: limits.patience.reader,
            };
            let worker = Rc::clone(self);
            let far_too_large =
                move || worker.not_http(direction, ErrorCode::HeaderTooLarge, &FarTooLarge);
            let serving = serve_h2(stream, Rc::new(service), &settings, drain, far_too_large);
            let served = Box::pin(serving).await;
            if let Err(error) = served {
                let code = match &error {
                    H2ServerError::HandshakeTimeout(_) => ErrorCode::ClientTimeout,
                    H2ServerError::Http2(error) if broken_by_client(error) => ErrorCode::BadRequest,
                    H2ServerError::Http2(error) if slow_over_a_head(error) => {
                        ErrorCode::ClientTimeout
                    }
                    H2ServerError::Http2(_) | H2ServerError::Io(_) => ErrorCode::ClientClosed,
                };
                self.not_http(direction, code, &error);
            }
        } else {
            let settings = H1ServerSettings {
                header_timeout: limits.header_timeout,
                idle_timeout: limits.client_idle_timeout,
                max_header_bytes: limits.max_header_bytes,
                reader_timeout: limits.patience.reader,
                half_close,
                ..H1ServerSettings::default()
            };
            let served = Box::pin(serve_h1(stream, &service, &settings, drain)).await;
            if let Err(error) = served {
                let code = match &error {
                    // What was not read has a record of its own.
                    H1ServerError::ReaderTimeout(_) => {
                        complain(direction, ErrorCode::ClientTimeout, &error);
                        return;
                    }
                    H1ServerError::HeaderTimeout(_) => ErrorCode::ClientTimeout,
                    H1ServerError::Http(error) if error.is_parse_too_large() => {
                        ErrorCode::HeaderTooLarge
                    }
                    H1ServerError::Http(error) if error.is_parse() => ErrorCode::BadRequest,
                    H1ServerError::Http(_) | H1ServerError::Io(_) => ErrorCode::ClientClosed,
                };
                self.not_http(direction, code, &error);
            }
        }
    }

    /// Counts an HTTP connection as open for as long as what is given back lives.
    pub(crate) fn open_http(
        &self,
        direction: Direction,
        http2: bool,
        service: &str,
        peer: Option<&SpiffeId>,
    ) -> OpenConnection {
        let protocol = if http2 {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        let tls = peer.is_some();
        self.telemetry
            .metrics()
            .connection_handles(
                direction,
                protocol,
                service,
                peer.map(SpiffeId::as_str),
                tls,
            )
            .open()
    }
}
