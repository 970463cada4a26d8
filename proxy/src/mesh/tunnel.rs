//! TCP in CONNECT streams, as HBONE does it.
//!
//! END_STREAM closes one direction; a reset with CANCEL or NO_ERROR is an end of file; any other
//! reset stands for a broken TCP connection (CONNECT_ERROR, RFC 9113 section 8.5).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::client::{MeshConnection, StreamLease};
use super::error::{TunnelError, is_surely_unprocessed};

/// Names the stable code of an error that a proxy made.
pub(crate) const ERROR_HEADER: &str = "sidewind-error";

/// Most bytes of a refusal's explanation that are kept.
const MAX_MESSAGE_BYTES: usize = 512;

impl MeshConnection {
    /// Opens a tunnel to `authority`, the workload's address and port as its proxy knows them.
    ///
    /// # Errors
    /// [`TunnelError::NotSent`] when another connection may be tried; the peer's refusal with its
    /// `sidewind-error` code; or no answer within `limit`.
    pub(crate) async fn tunnel(
        mut self,
        authority: SocketAddr,
        headers: HeaderMap,
        limit: Duration,
    ) -> Result<TunnelStream, TunnelError> {
        let not_sent = |error: h2::Error| TunnelError::NotSent {
            authority,
            source: Arc::new(error),
        };
        let request = connect_request(authority, headers)?;
        let (response, send) = self
            .sender()
            .send_request(request, false)
            .map_err(not_sent)?;
        let response = timeout(limit, response)
            .await
            .map_err(|_| TunnelError::Timeout {
                authority,
                after: limit,
            })?
            .map_err(|error| match is_surely_unprocessed(&error) {
                true => not_sent(error),
                false => TunnelError::Stream {
                    authority,
                    source: Arc::new(error),
                },
            })?;
        if response.status() != StatusCode::OK {
            return Err(refusal(authority, response, limit).await);
        }
        Ok(TunnelStream::new(
            response.into_body(),
            send,
            Some(self.into_lease()),
        ))
    }
}

fn connect_request(authority: SocketAddr, headers: HeaderMap) -> Result<Request<()>, TunnelError> {
    let uri = Uri::try_from(authority.to_string())
        .map_err(|_| TunnelError::BadAuthority { authority })?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

async fn refusal(
    authority: SocketAddr,
    response: Response<RecvStream>,
    limit: Duration,
) -> TunnelError {
    let status = response.status();
    let code = response
        .headers()
        .get(ERROR_HEADER)
        .and_then(|value| value.to_str().ok())
        .map(|code| code.chars().take(MAX_MESSAGE_BYTES).collect());
    let message = timeout(limit, first_line(response.into_body()))
        .await
        .unwrap_or_default();
    TunnelError::Refused {
        authority,
        status,
        code,
        message,
    }
}

/// The first line of a body, should it be text of reasonable length.
async fn first_line(mut body: RecvStream) -> Option<String> {
    let mut text = Vec::new();
    while text.len() < MAX_MESSAGE_BYTES
        && let Some(Ok(data)) = body.data().await
    {
        let _ = body.flow_control().release_capacity(data.len());
        text.extend_from_slice(&data);
    }
    text.truncate(MAX_MESSAGE_BYTES);
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.chars().filter(|c| !c.is_control()).collect())
}

/// One tunnelled TCP connection.
///
/// Dropping it before [`Self::finish`] resets the stream with CANCEL; [`Self::reset`] tells the peer
/// that it broke.
pub(crate) struct TunnelStream {
    recv: RecvStream,
    send: SendStream<Bytes>,
    /// Received and not yet read.
    unread: Bytes,
    recv_ended: bool,
    send_ended: bool,
    _lease: Option<StreamLease>,
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream")
            .field("id", &self.send.stream_id())
            .field("recv_ended", &self.recv_ended)
            .field("send_ended", &self.send_ended)
            .finish_non_exhaustive()
    }
}

impl TunnelStream {
    /// A tunnel over an answered CONNECT; on the server's side, after it sent the 200.
    pub(crate) fn new(
        recv: RecvStream,
        send: SendStream<Bytes>,
        lease: Option<StreamLease>,
    ) -> Self {
        Self {
            recv,
            send,
            unread: Bytes::new(),
            recv_ended: false,
            send_ended: false,
            _lease: lease,
        }
    }

    /// The next piece as it came, or None at the end.
    ///
    /// Its bytes count against the stream's window until [`Self::release`] is called for them.
    ///
    /// # Errors
    /// `ConnectionReset` when the peer says that the connection broke, or the mesh connection did.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.unread))));
        }
        if self.recv_ended {
            return Poll::Ready(Ok(None));
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => Poll::Ready(Ok(Some(data))),
            Some(Err(error)) => {
                self.recv_ended = true;
                match error.reason() {
                    Some(Reason::CANCEL | Reason::NO_ERROR) if error.is_reset() => {
                        Poll::Ready(Ok(None))
                    }
                    _ => Poll::Ready(Err(broken(error))),
                }
            }
            None => {
                self.recv_ended = true;
                Poll::Ready(Ok(None))
            }
        }
    }

    /// Lets the peer send `bytes` more: that many of what [`Self::poll_data`] gave have left.
    pub(crate) fn release(&mut self, bytes: usize) {
        // Fails only when more is released than came, or the stream is gone.
        let _ = self.recv.flow_control().release_capacity(bytes);
    }

    /// Room for up to `wanted` bytes that the peer and our own bounds allow now.
    ///
    /// # Errors
    /// `BrokenPipe` when the peer takes no more.
    pub(crate) fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(wanted);
        loop {
            let capacity = self.send.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    /// Sends a piece; it should be no larger than [`Self::poll_capacity`] allowed.
    ///
    /// # Errors
    /// `BrokenPipe` when the direction has ended.
    pub(crate) fn send(&mut self, data: Bytes) -> io::Result<()> {
        self.send.send_data(data, false).map_err(broken)
    }

    /// Ends our direction (END_STREAM); the other stays open.
    ///
    /// # Errors
    /// When the stream is gone.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.send_ended {
            return Ok(());
        }
        self.send_ended = true;
        self.send.send_data(Bytes::new(), true).map_err(broken)
    }

    /// Ready when the peer has reset the stream; `Ok` for CANCEL and NO_ERROR.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(Reason::CANCEL | Reason::NO_ERROR) => Poll::Ready(Ok(())),
            Ok(reason) => Poll::Ready(Err(broken(reason.into()))),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }

    /// Tells the peer that the TCP connection on our side broke.
    pub(crate) fn reset(mut self) {
        self.recv_ended = true;
        self.send_ended = true;
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        // Once our direction has ended a reset would discard what waits to be sent; `h2` itself
        // sends one after it, should the peer still be sending.
        if !self.send_ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

/// What a broken stream is to somebody who thinks it TCP.
fn broken(error: h2::Error) -> io::Error {
    let kind = match error.get_io().map(io::Error::kind) {
        Some(io::ErrorKind::BrokenPipe) | None => io::ErrorKind::ConnectionReset,
        Some(kind) => kind,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // An empty DATA frame is no end of file.
        let mut data = Bytes::new();
        while data.is_empty() {
            match ready!(this.poll_data(cx))? {
                Some(next) => data = next,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = data.len().min(buf.remaining());
        buf.put_slice(data.get(..taken).unwrap_or_default());
        data.advance(taken);
        this.unread = data;
        this.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        let room = ready!(this.poll_capacity(cx, buf.len()))?;
        let taken = buf.get(..room).unwrap_or(buf);
        this.send(Bytes::copy_from_slice(taken))?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }
}
