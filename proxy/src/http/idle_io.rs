//! What stands below hyper on a server connection: it knows when there is nothing to do, so that the connection can
//! do without its buffers, and says in hyper's place why a request was refused.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::headers::BadRequest;
use super::heads::{Heads, Refused};
use crate::errors::{ProxyError, unreadable_request};

/// What hyper reads in place of a request that it must not take: no head may hold the first byte.
const UNREADABLE: &[u8] = b"\0\r\n\r\n";

/// What is going on on one connection. All of it happens on one thread; it is atomic because an upgraded
/// connection's IO has to be `Send`.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Messages that are being read or written.
    messages: AtomicU32,
    requests: AtomicU32,
    /// Everything written has left hyper's buffer.
    flushed: AtomicBool,
    /// What follows is no HTTP any more.
    upgraded: AtomicBool,
}

/// One message that is being read or written, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.messages.fetch_sub(1, Relaxed);
    }
}

impl Activity {
    pub(super) fn new() -> Activity {
        Activity(Arc::new(Shared {
            messages: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            flushed: AtomicBool::new(true),
            upgraded: AtomicBool::new(false),
        }))
    }

    /// A request began, whose response is yet to be written.
    pub(super) fn begin_request(&self) -> Busy {
        self.0.requests.fetch_add(1, Relaxed);
        self.0.flushed.store(false, Relaxed);
        self.busy()
    }

    pub(super) fn busy(&self) -> Busy {
        self.0.messages.fetch_add(1, Relaxed);
        Busy(self.0.clone())
    }

    /// True when no request is being read, no response is being made, and the last one has left for the socket.
    pub(super) fn is_idle(&self) -> bool {
        self.0.messages.load(Relaxed) == 0 && self.0.flushed.load(Relaxed)
    }

    /// How many requests have begun, modulo 2^32.
    pub(super) fn requests(&self) -> u32 {
        self.0.requests.load(Relaxed)
    }

    /// The response agrees to go on with another protocol.
    pub(super) fn upgrade(&self) {
        self.0.upgraded.store(true, Relaxed);
    }

    fn is_upgraded(&self) -> bool {
        self.0.upgraded.load(Relaxed)
    }

    fn flush_done(&self) {
        if self.0.messages.load(Relaxed) == 0 {
            self.0.flushed.store(true, Relaxed);
        }
    }
}

/// A connection's IO below hyper, which may begin with bytes that were read before.
#[derive(Debug)]
pub(super) struct IdleIo<T> {
    inner: T,
    /// Comes before what `inner` has; [`Heads`] has seen it already.
    prefix: Bytes,
    heads: Heads,
    /// Why nothing more is read.
    refused: Option<BadRequest>,
    /// What is refused is within a body, whose reader is told by an error.
    broken_body: bool,
    activity: Activity,
    /// What is written in place of hyper's own answer to what is no request.
    refusal: Bytes,
}

impl<T> IdleIo<T> {
    pub(super) fn new(inner: T, activity: Activity, max_header_bytes: usize) -> IdleIo<T> {
        IdleIo {
            inner,
            prefix: Bytes::new(),
            heads: Heads::new(max_header_bytes),
            refused: None,
            broken_body: false,
            activity,
            refusal: Bytes::new(),
        }
    }

    /// The connection, and what of it was read and given to nobody.
    pub(super) fn into_inner(self) -> (T, Bytes) {
        (self.inner, self.prefix)
    }

    /// Puts bytes back in front of what is still to be read.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.prefix = if self.prefix.is_empty() {
            bytes
        } else {
            [bytes, std::mem::take(&mut self.prefix)].concat().into()
        };
    }
}

impl<T: AsyncRead + Unpin> IdleIo<T> {
    /// Waits for the client to send something, holding no buffer, and puts it back. False at end of file.
    pub(super) async fn wait_for_bytes(&mut self) -> io::Result<bool> {
        if !self.prefix.is_empty() {
            return Ok(true);
        }
        std::future::poll_fn(|cx| {
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    // One byte ends no head that has not begun.
                    let _ = self.heads.read(buffer.filled());
                    self.prefix = Bytes::copy_from_slice(buffer.filled());
                    Poll::Ready(Ok(!self.prefix.is_empty()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

impl<T: AsyncRead + Unpin> IdleIo<T> {
    /// Reads what hyper may see: the first request that is ambiguous is replaced by what is none, and a body that is
    /// breaks off.
    fn poll_new(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.refused {
            None => {}
            Some(why) if self.broken_body => return Poll::Ready(Err(invalid_data(why))),
            Some(_) => return Poll::Ready(Ok(())),
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if self.activity.is_upgraded() {
            self.heads.stop();
        }
        let new = buffer.filled().get(before..).unwrap_or_default();
        if let Err(Refused { good, why }) = self.heads.read(new) {
            self.refused = Some(why);
            buffer.set_filled(before + good);
            if why != BadRequest::InvalidChunk {
                self.prefix = Bytes::from_static(UNREADABLE);
                self.take_prefix(buffer);
                return Poll::Ready(Ok(()));
            }
            self.broken_body = true;
            if good == 0 {
                return Poll::Ready(Err(invalid_data(why)));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn take_prefix(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(self.prefix.get(..length).unwrap_or_default());
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
    }
}

fn invalid_data(why: BadRequest) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<T: AsyncRead + Unpin> AsyncRead for IdleIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return self.poll_new(cx, buffer);
        }
        self.take_prefix(buffer);
        if self.prefix.is_empty() {
            // The rest of the request is mostly there too; pending only says that no more came.
            if buffer.remaining() > 0
                && let Poll::Ready(Err(error)) = self.poll_new(cx, buffer)
            {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> IdleIo<T> {
    /// Takes hyper's own answer for ours. With no request under way and none unflushed, whatever hyper writes
    /// answers bytes that it could not read as a request: a status line with no body and no reason.
    fn takes_refusal(&mut self, written: &[u8]) -> bool {
        if !self.activity.is_idle() {
            return false;
        }
        match unreadable_request(written, self.refused.map(ProxyError::from)) {
            Some(refusal) => {
                self.refusal = refusal;
                true
            }
            None => false,
        }
    }

    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.refusal))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.refusal.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for IdleIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.takes_refusal(buffer) {
            return Poll::Ready(Ok(buffer.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [buffer] = buffers
            && self.takes_refusal(buffer)
        {
            return Poll::Ready(Ok(buffer.len()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        // hyper flushes its IO only once its own buffer is empty.
        if let Poll::Ready(Ok(())) = result {
            self.activity.flush_done();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
