//! One write for many frames of an HTTP/2 connection without TLS, as [`crate::mesh`] does it with TLS.
//!
//! `h2` hands every DATA frame of 256 bytes or more to its transport by itself and flushes after it. [`Gathering`]
//! collects them, answers flushes at once, and sends when whoever drives the connection says that nothing more is
//! ready ([`Gathering::poll_flush_gathered`], called after every poll of the connection that gave nothing).

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mesh::Scratch;

/// A handle on a connection whose writes are gathered; clones share the connection. One is given to `h2`, another
/// stays with the driver that flushes.
pub(super) struct Gathering<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    io: T,
    /// Gathered bytes: `buffer[start..end]`. None when there are none.
    buffer: Option<Scratch>,
    start: usize,
    end: usize,
    /// Something was written that may still wait in the transport: TLS takes bytes that the socket does not, when that is full
    /// or the task has had its turn, and sends them when it is flushed.
    unflushed: bool,
    /// A write was refused because the buffer was full.
    refused_write: bool,
}

impl<T> Clone for Gathering<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Gathering<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.0.borrow();
        f.debug_struct("Gathering")
            .field("gathered_bytes", &(inner.end - inner.start))
            .finish()
    }
}

impl<T: AsyncWrite + Unpin> Gathering<T> {
    pub(super) fn new(io: T) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            io,
            buffer: None,
            start: 0,
            end: 0,
            unflushed: false,
            refused_write: false,
        })))
    }

    /// Sends all that was gathered. Pending means that the socket takes no more now; the task is woken when it does.
    pub(super) fn poll_flush_gathered(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        if std::mem::take(&mut inner.refused_write) {
            // The writer gave up in this turn and has more; there is room for it now.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(gathered) = self
            .buffer
            .as_deref()
            .and_then(|b| b.get(self.start..self.end))
            && !gathered.is_empty()
        {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.start += written;
            self.unflushed = true;
        }
        (self.start, self.end) = (0, 0);
        self.buffer = None;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes of `bufs` what there is room for, and says how much that was.
    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let new: usize = bufs.iter().map(|buf| buf.len()).sum();
        let room = self
            .buffer
            .as_ref()
            .map_or(usize::MAX, |buffer| buffer.len() - self.end);
        if room < new && self.poll_send(cx)?.is_pending() {
            self.refused_write = true;
            return Poll::Pending;
        }
        let buffer = self.buffer.get_or_insert_with(Scratch::take);
        let mut taken = 0;
        for buf in bufs {
            let length = buf.len().min(buffer.len() - self.end);
            let (from, to) = (
                buf.get(..length),
                buffer.get_mut(self.end..self.end + length),
            );
            if let (Some(from), Some(to)) = (from, to) {
                to.copy_from_slice(from);
                self.end += length;
                taken += length;
            }
        }
        Poll::Ready(Ok(taken))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathering<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathering<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Succeeds at once: the driver flushes when nothing more is ready.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes, and counts writes.
    struct Socket {
        room: usize,
        /// It has taken all, and flushes nothing.
        holds: bool,
        writes: usize,
        sent: Vec<u8>,
        closed: bool,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.room == 0 {
                return Poll::Pending;
            }
            let taken = &buf[..buf.len().min(self.room)];
            self.room -= taken.len();
            self.writes += 1;
            self.sent.extend_from_slice(taken);
            Poll::Ready(Ok(taken.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            match self.holds {
                true => Poll::Pending,
                false => Poll::Ready(Ok(())),
            }
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.closed = true;
            Poll::Ready(Ok(()))
        }
    }

    fn socket(room: usize) -> Gathering<Socket> {
        Gathering::new(Socket {
            room,
            holds: false,
            writes: 0,
            sent: Vec::new(),
            closed: false,
        })
    }

    /// Writes all of `bytes` as h2 does, flushing after it; says whether that was possible.
    fn write(gathering: &mut Gathering<Socket>, mut bytes: &[u8]) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        while !bytes.is_empty() {
            let slices = [
                IoSlice::new(&bytes[..bytes.len().min(9)]),
                IoSlice::new(&bytes[bytes.len().min(9)..]),
            ];
            match Pin::new(&mut *gathering).poll_write_vectored(&mut cx, &slices) {
                Poll::Ready(written) => bytes = &bytes[written.unwrap()..],
                Poll::Pending => return false,
            }
            assert!(Pin::new(&mut *gathering).poll_flush(&mut cx).is_ready());
        }
        true
    }

    #[test]
    fn the_frames_of_one_turn_leave_in_one_write() {
        let mut gathering = socket(usize::MAX);
        for frame in 0..20_u8 {
            assert!(write(&mut gathering, &[frame; 1033]));
        }
        assert_eq!(gathering.0.borrow().io.writes, 0);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(gathering.poll_flush_gathered(&mut cx).is_ready());
        let inner = gathering.0.borrow();
        assert_eq!((inner.io.writes, inner.io.sent.len()), (1, 20 * 1033));
        assert!(inner.buffer.is_none(), "an idle connection holds no buffer");
    }

    #[test]
    fn a_full_socket_holds_the_writer_back_and_loses_nothing() {
        let mut gathering = socket(1_000);
        let frame: Vec<u8> = (0..=250).cycle().take(16_000).collect();
        let mut taken = 0;
        while write(&mut gathering, &frame) {
            taken += 1;
            assert!(taken < 10, "what is gathered has a bound");
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(gathering.poll_flush_gathered(&mut cx).is_pending());
        gathering.0.borrow_mut().io.room = usize::MAX;
        assert!(gathering.poll_flush_gathered(&mut cx).is_ready());
        let sent = gathering.0.borrow().io.sent.clone();
        assert!(sent.len() >= taken * frame.len());
        let expected: Vec<u8> = frame.iter().copied().cycle().take(sent.len()).collect();
        assert!(sent == expected);
    }

    #[test]
    fn what_the_transport_holds_back_is_flushed_when_it_can_be() {
        let mut gathering = socket(usize::MAX);
        gathering.0.borrow_mut().io.holds = true;
        assert!(write(&mut gathering, b"the last of it"));
        let mut cx = Context::from_waker(Waker::noop());
        // Nothing more is written, and still it is not done.
        for _ in 0..2 {
            assert!(gathering.poll_flush_gathered(&mut cx).is_pending());
        }
        gathering.0.borrow_mut().io.holds = false;
        assert!(gathering.poll_flush_gathered(&mut cx).is_ready());
        assert_eq!(gathering.0.borrow().io.writes, 1);
    }

    #[test]
    fn closing_sends_what_was_gathered_first() {
        let mut gathering = socket(usize::MAX);
        assert!(write(&mut gathering, b"goodbye"));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut gathering).poll_shutdown(&mut cx).is_ready());
        let inner = gathering.0.borrow();
        assert!(inner.io.closed && inner.io.sent == b"goodbye");
    }
}
