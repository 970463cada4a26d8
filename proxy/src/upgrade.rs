//! HTTP/1.1 upgrades (RFC 9110, section 7.8): after `101 Switching Protocols` both connections carry bytes that
//! are no longer HTTP.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    copy::{self, Connection, Progress, Side},
    errors::ProxyError,
    exchange::Exchange,
    http::{Body, BreakOff},
    plaintext::clean_response,
};

/// An upgraded connection, which hyper gives back without its socket.
struct UpgradedIo {
    io: TokioIo<hyper::upgrade::Upgraded>,
    break_off: BreakOff,
}

impl Connection for UpgradedIo {
    fn close_by_reset(&self) {
        self.break_off.set();
    }
}

impl AsyncRead for UpgradedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for UpgradedIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Sends a request that asks for an upgrade to the server at `address`, by `send`, over HTTP/1.1. Where the
/// server switches to what was asked for, bytes are copied both ways for as long as both sides like; the exchange ends with that. Where one side
/// breaks, so does the other.
pub(crate) async fn relay<F>(
    request: Request<Body>,
    exchange: &Rc<Exchange>,
    address: SocketAddr,
    send: impl FnOnce(Request<Body>) -> F,
) -> Result<Response<Body>, ProxyError>
where
    F: Future<Output = Result<Response<Body>, ProxyError>>,
{
    let asked = request.headers().clone();
    let response = send(request).await?;
    let mut response = clean_response(address, response, Some(&asked))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = exchange.take_upgrade()
    {
        let server = hyper::upgrade::on(&mut response);
        let extensions = response.extensions_mut();
        let server_break_off = extensions.remove::<BreakOff>().unwrap_or_default();
        let client_break_off = BreakOff::default();
        extensions.insert(client_break_off.clone());
        let exchange = Rc::clone(exchange);
        tokio::task::spawn_local(async move {
            match futures_util::future::try_join(client, server).await {
                Ok((client, server)) => {
                    let upgraded = |io, break_off| UpgradedIo {
                        io: TokioIo::new(io),
                        break_off,
                    };
                    let client = upgraded(client, client_break_off);
                    let server = upgraded(server, server_break_off);
                    let progress = Progress::default();
                    let copied = copy::copy_both(client, server, None, &progress).await;
                    exchange.count_request_bytes(progress.sent());
                    exchange.count_response_bytes(progress.received());
                    if let Err(error) = copied {
                        exchange.broke_off(&error.blame(Side::Near));
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
            }
        });
    }
    Ok(response)
}
