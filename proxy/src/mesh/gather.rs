//! One write for many frames.
//!
//! `h2` hands every DATA frame of 256 bytes or more to its transport by itself and flushes after
//! it; over TLS each would become a record and a system call of its own. [`Gather`] stands between:
//! it collects what `h2` writes until that fills a TLS record, answers its flushes at once, and
//! has the records sent when the session holds as many as it may or when whoever drives the
//! connection says that nothing more is ready ([`Gather::poll_flush_gathered`], called after every
//! poll of the connection). All streams that became ready in one turn of the event loop thus share
//! one write, in full records. What fills a record by itself is encrypted from where it lies.
//!
//! It also bounds how much one connection may read in one turn, so that a peer that sends without
//! pause does not keep the worker's other connections waiting.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use super::buffers::Scratch;

/// Most bytes that one connection reads in one turn before others have theirs.
const READ_BYTES_PER_TURN: usize = 256 * 1024;

/// Most plaintext in one TLS record (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// What a TLS 1.3 record adds to its plaintext: header, content type, authentication tag.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;

/// How many encrypted bytes a session may hold: eight full records, one system call.
const SESSION_BYTES: usize = 8 * (RECORD_BYTES + RECORD_OVERHEAD_BYTES);

/// Most slices that are taken at a time; `h2` writes two.
const MAX_SLICES: usize = 15;

/// A TLS session that takes bytes without sending them.
pub(crate) trait Session: AsyncRead + AsyncWrite + Unpin {
    /// Encrypts as much as the session may hold, without any I/O; says how much that was.
    fn encrypt(&mut self, plaintext: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Bounds what the session holds; `bytes` counts encrypted ones.
    fn set_limit(&mut self, bytes: usize);
}

impl<T: AsyncRead + AsyncWrite + Unpin> Session for client::TlsStream<T> {
    fn encrypt(&mut self, plaintext: &[IoSlice<'_>]) -> io::Result<usize> {
        self.get_mut().1.writer().write_vectored(plaintext)
    }

    fn set_limit(&mut self, bytes: usize) {
        self.get_mut().1.set_buffer_limit(Some(bytes));
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Session for server::TlsStream<T> {
    fn encrypt(&mut self, plaintext: &[IoSlice<'_>]) -> io::Result<usize> {
        self.get_mut().1.writer().write_vectored(plaintext)
    }

    fn set_limit(&mut self, bytes: usize) {
        self.get_mut().1.set_buffer_limit(Some(bytes));
    }
}

/// A handle on a session whose writes are gathered; clones share the session.
///
/// One clone is given to `h2`, another stays with the driver that flushes.
pub(crate) struct Gather<T> {
    inner: Rc<RefCell<Inner<T>>>,
}

struct Inner<T> {
    io: T,
    /// Gathered bytes, less than a record: `buffer[start..end]`. None when there are none.
    buffer: Option<Scratch>,
    start: usize,
    end: usize,
    /// The session holds bytes that were not sent.
    unflushed: bool,
    /// A write was refused because the session was full.
    refused_write: bool,
    read_this_turn: usize,
    received_bytes: u64,
}

impl<T> Clone for Gather<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Rc::clone(&self.inner),
        }
    }
}

impl<T> fmt::Debug for Gather<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.borrow();
        f.debug_struct("Gather")
            .field("gathered_bytes", &(inner.end - inner.start))
            .finish()
    }
}

impl<T: Session> Gather<T> {
    pub(crate) fn new(mut io: T) -> Self {
        io.set_limit(SESSION_BYTES);
        Self {
            inner: Rc::new(RefCell::new(Inner {
                io,
                buffer: None,
                start: 0,
                end: 0,
                unflushed: false,
                refused_write: false,
                read_this_turn: 0,
                received_bytes: 0,
            })),
        }
    }

    /// Sends all that was gathered.
    ///
    /// Pending means that the socket takes no more now; the task is woken when it does.
    pub(crate) fn poll_flush_gathered(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_flush(cx))?;
        if std::mem::take(&mut inner.refused_write) {
            // The writer gave up in this turn and has more; there is room for it now.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    /// Begins a turn: the connection may read its share again.
    pub(crate) fn begin_turn(&self) {
        self.inner.borrow_mut().read_this_turn = 0;
    }

    /// How many bytes have come from the peer so far; that it grows shows that the peer lives.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.inner.borrow().received_bytes
    }
}

impl<T: Session> Inner<T> {
    /// What was gathered and is not yet encrypted.
    fn gathered(&self) -> &[u8] {
        self.buffer
            .as_deref()
            .and_then(|b| b.get(self.start..self.end))
            .unwrap_or_default()
    }

    /// Forgets the first `bytes` of what was gathered.
    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start >= self.end {
            (self.start, self.end) = (0, 0);
            self.buffer = None;
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered().is_empty() {
            let gathered = self
                .buffer
                .as_deref()
                .and_then(|b| b.get(self.start..self.end));
            let encrypted = self
                .io
                .encrypt(&[IoSlice::new(gathered.unwrap_or_default())])?;
            self.advance(encrypted);
            if encrypted == 0 && !self.unflushed {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            if !self.gathered().is_empty() {
                ready!(self.poll_send(cx))?;
            }
        }
        self.poll_send(cx)
    }

    /// Sends what the session holds.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes `bufs` as far as there is room, and says how far.
    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bufs = bufs.get(..MAX_SLICES).unwrap_or(bufs);
        let new: usize = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            let gathered = self.gathered().len();
            // Also after a send: the session may have taken a part of what was gathered before it was full.
            if gathered + new < RECORD_BYTES {
                return Poll::Ready(Ok(self.gather(bufs, 0)));
            }
            let whole = (gathered + new) / RECORD_BYTES * RECORD_BYTES;
            let encrypted = self.encrypt_records(bufs, whole)?;
            if encrypted > gathered {
                self.unflushed = true;
                self.advance(gathered);
                let taken = encrypted - gathered;
                let rest = if encrypted == whole {
                    self.gather(bufs, taken)
                } else {
                    0
                };
                return Poll::Ready(Ok(taken + rest));
            }
            // The session is full before anything new: it must send first.
            if encrypted == 0 && !self.unflushed {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(encrypted);
            self.unflushed = true;
            if self.poll_send(cx)?.is_pending() {
                self.refused_write = true;
                return Poll::Pending;
            }
        }
    }

    /// Encrypts what was gathered and then `bufs`, `whole` bytes at most.
    fn encrypt_records(&mut self, bufs: &[IoSlice<'_>], whole: usize) -> io::Result<usize> {
        let gathered = self
            .buffer
            .as_deref()
            .and_then(|b| b.get(self.start..self.end));
        let mut slices = [IoSlice::new(&[]); MAX_SLICES + 1];
        let mut left = whole;
        let sources = std::iter::once(gathered.unwrap_or_default())
            .chain(bufs.iter().map(|buf| &buf[..]))
            .filter(|source| !source.is_empty());
        let mut filled = 0;
        for (slice, source) in slices.iter_mut().zip(sources) {
            let source = source.get(..left).unwrap_or(source);
            *slice = IoSlice::new(source);
            left -= source.len();
            filled += 1;
            if left == 0 {
                break;
            }
        }
        self.io.encrypt(slices.get(..filled).unwrap_or_default())
    }

    /// Moves what was gathered to the beginning of the buffer: its first bytes may have been encrypted by themselves,
    /// when the session had room for no more, and what they leave is needed.
    fn close_gap(&mut self) {
        if self.start > 0
            && let Some(buffer) = &mut self.buffer
        {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Keeps what of `bufs` comes after the first `skip` bytes, and says how much that was; the
    /// caller knows that it fits.
    fn gather(&mut self, bufs: &[IoSlice<'_>], mut skip: usize) -> usize {
        self.close_gap();
        let mut taken = 0;
        for buf in bufs {
            let rest = buf.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(buf.len());
            if rest.is_empty() {
                continue;
            }
            let end = self.end + rest.len();
            let buffer = self.buffer.get_or_insert_with(Scratch::take);
            if let Some(room) = buffer.get_mut(self.end..end) {
                room.copy_from_slice(rest);
                self.end = end;
                taken += rest.len();
            }
        }
        taken
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.read_this_turn >= READ_BYTES_PER_TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut inner.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        inner.read_this_turn += read;
        inner.received_bytes += read as u64;
        Poll::Ready(Ok(()))
    }
}

impl<T: Session> AsyncWrite for Gather<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.borrow_mut().poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner.borrow_mut().poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Succeeds at once: the driver flushes at the end of its turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner.borrow_mut();
        ready!(inner.poll_flush(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
