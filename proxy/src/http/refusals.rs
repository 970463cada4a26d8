//! Notices the answers that h2 gives by itself.
//!
//! A request whose header is larger than h2's bound is answered with 431 by h2, and nobody else hears of it: its
//! stream is never handed out. What h2 writes shows it, though: it ends a stream with HEADERS (RFC 9113, section
//! 6.2) that nobody was given.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::StreamId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{FLAG_END_STREAM, Frames, TYPE_HEADERS};
use super::opening::Opening;
use super::slow_head::Heads;

/// How many times larger than the limit a header may be for us to answer it; beyond, h2 does.
const HARD_BOUND_FACTOR: usize = 2;

/// Ranges of streams that were passed over; beyond, the oldest are forgotten. A client that leaves out numbers makes
/// one, as does each stream that h2 ends by itself.
const MAX_GAPS: usize = 32;

/// The bound that h2 is given where requests' headers have `max_header_bytes` at most, so that what is larger still
/// reaches us and gets our answer.
pub(crate) fn hard_header_bound(max_header_bytes: usize) -> u32 {
    u32::try_from(max_header_bytes.saturating_mul(HARD_BOUND_FACTOR)).unwrap_or(u32::MAX)
}

/// A request's header was larger than even h2's bound, so that h2 answered it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the header of a request is more than {HARD_BOUND_FACTOR} times as large as --max-header-bytes allows"
)]
pub(crate) struct FarTooLarge;

/// What h2 answered on one server connection; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Refusals(Rc<Shared>);

#[derive(Default)]
struct Shared {
    accepted: RefCell<Accepted>,
    count: Cell<usize>,
    action: OnceCell<Box<dyn Fn()>>,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals")
            .field("count", &self.0.count.get())
            .finish()
    }
}

impl Refusals {
    /// Has `action` run at each answer of h2's own. The first action stays.
    pub(crate) fn on_refusal(&self, action: impl Fn() + 'static) {
        let _ = self.0.action.set(Box::new(action));
    }

    /// h2 has handed out this stream: what is written on it is ours.
    pub(crate) fn accepted(&self, stream: StreamId) {
        self.add(stream.into());
    }

    fn add(&self, stream: u32) {
        self.0.accepted.borrow_mut().add(stream);
    }

    fn ended(&self, stream: u32) {
        if self.0.accepted.borrow().holds(stream) {
            return;
        }
        self.0.count.set(self.0.count.get() + 1);
        if let Some(action) = self.0.action.get() {
            action();
        }
    }
}

/// The streams that were handed out: a client's have odd numbers that only grow.
#[derive(Debug, Default)]
struct Accepted {
    /// One more than the last.
    end: u32,
    gaps: VecDeque<Range<u32>>,
}

impl Accepted {
    fn add(&mut self, stream: u32) {
        let next = self.end.saturating_add(1);
        if stream > next {
            if self.gaps.len() >= MAX_GAPS {
                self.gaps.pop_front();
            }
            self.gaps.push_back(next..stream);
        }
        self.end = self.end.max(stream.saturating_add(1));
    }

    fn holds(&self, stream: u32) -> bool {
        stream < self.end && !self.gaps.iter().any(|gap| gap.contains(&stream))
    }
}

/// A connection whose frames are looked at as they are written and read.
#[derive(Debug)]
pub(crate) struct WatchedIo<T> {
    inner: T,
    refusals: Refusals,
    opening: Opening,
    heads: Heads,
    written: Frames,
}

impl<T> WatchedIo<T> {
    /// A connection that has not begun, whose client may take `head_timeout` over each head.
    pub(crate) fn new(inner: T, refusals: Refusals, head_timeout: Duration) -> Self {
        Self {
            inner,
            refusals,
            opening: Opening::default(),
            heads: Heads::new(head_timeout),
            written: Frames::default(),
        }
    }

    fn written(&mut self, bytes: &[u8]) {
        let refusals = &self.refusals;
        self.written.follow(bytes, |frame| {
            if frame.kind == TYPE_HEADERS && frame.flags & FLAG_END_STREAM != 0 {
                refusals.ended(frame.stream);
            }
        });
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.opening.is_over() {
            self.opening.read(bytes)?;
        }
        self.heads.read(bytes);
        Ok(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WatchedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer)?;
        if result.is_ready() {
            self.read(buffer.filled().get(before..).unwrap_or_default())?;
        }
        self.heads.check(cx)?;
        result.map(Ok)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WatchedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buffer);
        if let Poll::Ready(Ok(written)) = result {
            self.written(buffer.get(..written).unwrap_or(buffer));
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, buffers);
        if let Poll::Ready(Ok(mut left)) = result {
            for buffer in buffers {
                let written = left.min(buffer.len());
                self.written(buffer.get(..written).unwrap_or(buffer));
                left -= written;
            }
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u8, kind: u8, flags: u8, stream: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
        // A payload that looks like frames of refusals.
        let lookalike = [0, 0, 0, TYPE_HEADERS, FLAG_END_STREAM, 0, 0, 0, 99];
        frame.extend(lookalike.iter().cycle().take(length.into()));
        frame
    }

    #[test]
    fn only_the_ends_of_streams_that_nobody_was_given_count() {
        let wire = [
            frame(30, 4, 0, 0),
            frame(20, TYPE_HEADERS, 4, 1),
            frame(200, 0, 0, 1),
            frame(9, TYPE_HEADERS, FLAG_END_STREAM | 4, 1),
            frame(4, TYPE_HEADERS, FLAG_END_STREAM | 4, 3),
            frame(4, TYPE_HEADERS, FLAG_END_STREAM | 4, 7),
            frame(0, 0, FLAG_END_STREAM, 9),
            frame(4, 3, 0, 5),
            frame(1, TYPE_HEADERS, FLAG_END_STREAM | 4, 13),
        ]
        .concat();
        for size in 1..wire.len() {
            let refusals = Refusals::default();
            [1, 3, 9, 11]
                .into_iter()
                .for_each(|stream| refusals.add(stream));
            let mut io = WatchedIo::new((), refusals.clone(), Duration::ZERO);
            wire.chunks(size).for_each(|piece| io.written(piece));
            assert_eq!(refusals.0.count.get(), 2, "in pieces of {size}");
        }
    }

    #[test]
    fn gaps_are_bounded() {
        let mut accepted = Accepted::default();
        for stream in (1..100_001).step_by(4) {
            accepted.add(stream);
        }
        assert_eq!(accepted.gaps.len(), MAX_GAPS);
        assert!(accepted.holds(99_997) && !accepted.holds(99_995) && !accepted.holds(100_001));
    }
}
