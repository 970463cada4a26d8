//! What stands below hyper on a server connection: it knows when there is nothing to do, so that the connection can
//! do without its buffers, and says in hyper's place why a request was refused.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::BreakOff;
use super::headers::BadRequest;
use super::heads::{Heads, Refused};
use crate::copy::Connection;
use crate::errors::{ProxyError, last_response, unreadable_request};

/// How long a client that is told to go may take to read why.
const GOODBYE: Duration = Duration::from_secs(1);

/// What hyper reads in place of a request that it must not take: no head may hold the first byte.
const UNREADABLE: &[u8] = b"\0\r\n\r\n";

/// Most bytes of interim responses that wait at once.
const MOST_INTERIM_BYTES: usize = 32 * 1024;

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
    /// How an upgraded connection is to end.
    break_off: OnceLock<BreakOff>,
    /// hyper's buffer holds nothing: no response has been given to it since it was empty.
    clean: AtomicBool,
    /// Interim responses, which hyper cannot send: they go out before anything else that it writes.
    interim: Mutex<Vec<u8>>,
    has_interim: AtomicBool,
    /// Bytes wait for the client to take them.
    write_blocked: AtomicBool,
    /// It took too long to take them.
    stalled: AtomicBool,
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
            break_off: OnceLock::new(),
            clean: AtomicBool::new(true),
            interim: Mutex::new(Vec::new()),
            has_interim: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
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
    pub(super) fn upgrade(&self, break_off: Option<BreakOff>) {
        self.0.upgraded.store(true, Relaxed);
        if let Some(break_off) = break_off {
            let _ = self.0.break_off.set(break_off);
        }
    }

    /// Sends bytes before the response to the present request. Behind one that the client has not taken yet there is no
    /// place for them, and they are left out.
    pub(super) fn say_before_response(&self, bytes: &[u8]) {
        if !self.0.clean.load(Relaxed) {
            return;
        }
        let mut interim = self.interim();
        if interim.len() + bytes.len() <= MOST_INTERIM_BYTES {
            interim.extend_from_slice(bytes);
            self.0.has_interim.store(true, Relaxed);
        }
    }

    /// hyper is given more of a response.
    pub(super) fn response_begins(&self) {
        self.0.clean.store(false, Relaxed);
    }

    fn take_interim(&self) -> Option<Bytes> {
        if !self.0.has_interim.swap(false, Relaxed) {
            return None;
        }
        Some(std::mem::take(&mut *self.interim()).into())
    }

    /// Held for as long as bytes are copied, by the one thread that there is.
    fn interim(&self) -> MutexGuard<'_, Vec<u8>> {
        let interim = self.0.interim.lock();
        interim.unwrap_or_else(PoisonError::into_inner)
    }

    /// The client took nothing of its response for too long.
    pub(super) fn is_stalled(&self) -> bool {
        self.0.stalled.load(Relaxed)
    }

    fn is_broken(&self) -> bool {
        self.0.break_off.get().is_some_and(BreakOff::is_set)
    }

    /// Takes the kernel's giving up, which it says once, for what it is: of a client that is owed bytes it means that
    /// it did not take them.
    fn note(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::TimedOut && self.0.write_blocked.load(Relaxed) {
            self.0.stalled.store(true, Relaxed);
        }
    }

    fn is_upgraded(&self) -> bool {
        self.0.upgraded.load(Relaxed)
    }

    fn flush_done(&self) {
        self.0.clean.store(true, Relaxed);
        if self.0.messages.load(Relaxed) == 0 {
            self.0.flushed.store(true, Relaxed);
        }
    }
}

/// A client's socket, which is closed by a reset where the other end of an upgraded connection broke.
#[derive(Debug)]
pub(crate) struct ClientIo<T: Connection> {
    io: T,
    activity: Activity,
}

impl<T: Connection> Drop for ClientIo<T> {
    fn drop(&mut self) {
        if self.activity.is_broken() {
            self.io.close_by_reset();
        }
    }
}

impl<T: Connection> Connection for ClientIo<T> {
    fn close_by_reset(&self) {
        self.io.close_by_reset();
    }

    fn wait_for_reader(&self, limit: Option<Duration>) {
        self.io.wait_for_reader(limit);
    }
}

impl<T: Connection> ClientIo<T> {
    fn written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let blocked = &self.activity.0.write_blocked;
        match &result {
            Poll::Pending => blocked.store(true, Relaxed),
            Poll::Ready(Ok(_)) => blocked.store(false, Relaxed),
            Poll::Ready(Err(error)) => self.activity.note(error),
        }
        result
    }
}

impl<T: Connection> AsyncRead for ClientIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &result {
            self.activity.note(error);
        }
        result
    }
}

impl<T: Connection> AsyncWrite for ClientIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buffer);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, buffers);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A connection's IO below hyper, which may begin with bytes that were read before.
#[derive(Debug)]
pub(super) struct IdleIo<T: Connection> {
    inner: ClientIo<T>,
    /// Comes before what `inner` has; [`Heads`] has seen it already.
    prefix: Bytes,
    heads: Heads,
    /// Why nothing more is read.
    refused: Option<BadRequest>,
    /// What is refused is within a body, whose reader is told by an error.
    broken_body: bool,
    /// What stands in `prefix` is no request, and hyper may see it once it has answered those before.
    held: bool,
    /// What is written beside what hyper writes: in place of its own answer to what is no request, and interim
    /// responses.
    own: Bytes,
}

impl<T: Connection> IdleIo<T> {
    pub(super) fn new(io: T, activity: Activity, max_header_bytes: usize) -> IdleIo<T> {
        IdleIo {
            inner: ClientIo { io, activity },
            prefix: Bytes::new(),
            heads: Heads::new(max_header_bytes),
            refused: None,
            broken_body: false,
            held: false,
            own: Bytes::new(),
        }
    }

    /// Whether the body of a request goes on with the next byte that is read.
    pub(super) fn is_within_body(&self) -> bool {
        self.heads.is_within_body()
    }

    /// Ends a connection, with the answer to a request that has not come whole if there is one.
    pub(super) async fn end(mut self, error: Option<ProxyError>) {
        let answer = error.map(last_response).unwrap_or_default();
        let telling = async {
            self.inner.write_all(&answer).await?;
            self.inner.shutdown().await?;
            // Closing with unread bytes in the socket would reset the connection, and the answer be lost with it.
            let mut sink = [0; 512];
            while self.inner.read(&mut sink).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(GOODBYE, telling).await;
    }

    /// The connection, and what of it was read and given to nobody.
    pub(super) fn into_inner(self) -> (ClientIo<T>, Bytes) {
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

impl<T: Connection> IdleIo<T> {
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

impl<T: Connection> IdleIo<T> {
    /// Reads what hyper may see: the first request that is ambiguous is replaced by what is none, and a body that is
    /// breaks off. What is no request waits until those before it are answered: hyper's own answer to it is told from
    /// others by there being none.
    fn poll_new(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.refused {
            None => {}
            Some(why) if self.broken_body => return Poll::Ready(Err(invalid_data(why))),
            Some(_) => return Poll::Ready(Ok(())),
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        if self.inner.activity.is_upgraded() {
            self.heads.stop();
        }
        let new = buffer.filled().get(before..).unwrap_or_default();
        let good = match (self.heads.read(new), self.heads.take_unreadable()) {
            (Ok(()), None) => return Poll::Ready(Ok(())),
            (Ok(()), Some(good)) => {
                let bad = new.get(good..).unwrap_or_default();
                self.prefix = Bytes::copy_from_slice(bad);
                good
            }
            (Err(Refused { good, why }), _) => {
                self.refused = Some(why);
                if why == BadRequest::InvalidChunk {
                    self.broken_body = true;
                    buffer.set_filled(before + good);
                    return match good {
                        0 => Poll::Ready(Err(invalid_data(why))),
                        _ => Poll::Ready(Ok(())),
                    };
                }
                self.prefix = Bytes::from_static(UNREADABLE);
                good
            }
        };
        buffer.set_filled(before + good);
        self.held = true;
        if good > 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_held(buffer)
    }

    fn poll_held(&mut self, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.inner.activity.is_idle() {
            // The flush that makes it so has this task run again.
            return Poll::Pending;
        }
        self.held = false;
        self.take_prefix(buffer);
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

impl<T: Connection> AsyncRead for IdleIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.held {
            return self.poll_held(buffer);
        }
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

impl<T: Connection> IdleIo<T> {
    /// Takes hyper's own answer for ours. With no request under way and none unflushed, whatever hyper writes
    /// answers bytes that it could not read as a request: a status line with no body and no reason.
    fn takes_refusal(&mut self, written: &[u8]) -> bool {
        if !self.inner.activity.is_idle() {
            return false;
        }
        match unreadable_request(written, self.refused.map(ProxyError::from)) {
            Some(refusal) => {
                self.own = refusal;
                true
            }
            None => false,
        }
    }

    /// Writes what is not hyper's.
    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.own.is_empty() {
                let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.own))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.own.advance(written);
            }
            match self.inner.activity.take_interim() {
                Some(interim) => self.own = interim,
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<T: Connection> AsyncWrite for IdleIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.takes_refusal(buffer) {
            return Poll::Ready(Ok(buffer.len()));
        }
        ready!(self.poll_own(cx))?;
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
        ready!(self.poll_own(cx))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        // hyper flushes its IO only once its own buffer is empty.
        if let Poll::Ready(Ok(())) = result {
            self.inner.activity.flush_done();
            if self.held && self.inner.activity.is_idle() {
                cx.waker().wake_by_ref();
            }
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
