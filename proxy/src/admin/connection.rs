//! One connection of the admin port, and why it was closed where it brought no whole request.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Admin, CONNECTION_TIMEOUT, MAX_HEADER_BYTES, MAX_HEADERS, routes};
use crate::errors::Chain;
use crate::telemetry::logs::Throttle;
use crate::telemetry::metrics::AdminRefusal;

/// What has come on a connection so far.
#[derive(Debug, Default)]
struct Heard {
    anything: AtomicBool,
    request: AtomicBool,
}

/// Answers one request.
pub(super) async fn serve(stream: TcpStream, remote: SocketAddr, admin: Arc<Admin>) {
    let heard = Arc::<Heard>::default();
    let service = service_fn(|request| {
        heard.request.store(true, Relaxed);
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(routes::answer(&admin, remote, request).await) }
    });
    let io = Heeded {
        inner: stream,
        heard: Arc::clone(&heard),
    };
    let serving = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(io), service);
    let result = match tokio::time::timeout(CONNECTION_TIMEOUT, serving).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    match reason(&heard, result.as_ref()) {
        Some(reason) => refused(&admin, remote, reason),
        None => {
            let error = result.as_ref().map(|error| Chain(error).to_string());
            tracing::debug!(%remote, error, "an admin connection failed");
        }
    }
}

/// What the client did wrong; none where it went away. Without an error its time was over.
fn reason(heard: &Heard, error: Option<&hyper::Error>) -> Option<AdminRefusal> {
    match error {
        Some(error) if error.is_parse_too_large() => Some(AdminRefusal::HeaderTooLarge),
        Some(error) if error.is_parse() => Some(AdminRefusal::Garbage),
        Some(error) if error.is_incomplete_message() => Some(AdminRefusal::Incomplete),
        Some(error) if !error.is_timeout() => None,
        _ if heard.request.load(Relaxed) => Some(AdminRefusal::Slow),
        _ if heard.anything.load(Relaxed) => Some(AdminRefusal::Incomplete),
        _ => Some(AdminRefusal::Silent),
    }
}

/// Counts a connection that was closed, and logs it once a minute for each reason.
pub(super) fn refused(admin: &Admin, remote: SocketAddr, reason: AdminRefusal) {
    static THROTTLES: [Throttle; AdminRefusal::COUNT] =
        [const { Throttle::new() }; AdminRefusal::COUNT];
    admin.metrics.admin_refused(reason);
    let suppressed = THROTTLES.get(reason as usize).and_then(Throttle::admit);
    if let Some(suppressed) = suppressed {
        tracing::warn!(%remote, reason = reason.as_str(), suppressed, "a connection to the admin port was closed");
    }
}

/// A connection that notes whether anything came.
struct Heeded {
    inner: TcpStream,
    heard: Arc<Heard>,
}

impl AsyncRead for Heeded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.heard.anything.store(true, Relaxed);
        }
        result
    }
}

impl AsyncWrite for Heeded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
