//! The directions of a copy: one state machine for each pair of source and sink.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{CopyError, Side, add};
use crate::mesh::{Scratch, TunnelStream, give_growable, take_growable};

/// Most bytes that one direction moves before the worker's other tasks have their turn.
const BYTES_PER_TURN: usize = 1024 * 1024;

/// Most bytes that are taken from a tunnel before they are written: its window and some.
const MAX_QUEUED_BYTES: usize = 512 * 1024;

/// Pieces in one write.
const MAX_PIECES: usize = 64;

/// Pieces smaller than this are joined while they wait, so that many small frames do not pin the
/// buffers that they came in.
const SMALL_PIECE_BYTES: usize = 4 * 1024;

/// How many pieces may wait before small ones are joined.
const MAX_WAITING_PIECES: usize = 16;

fn read_error(side: Side) -> impl Fn(io::Error) -> CopyError {
    move |source| CopyError::Read { side, source }
}

fn write_error(side: Side) -> impl Fn(io::Error) -> CopyError {
    move |source| CopyError::Write { side, source }
}

/// How far a direction is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// The source has ended; the sink is to be told.
    Closing,
    Closed,
}

/// Asks for another turn right away.
fn yield_turn<T>(cx: &mut Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// TCP to TCP.
#[derive(Debug)]
pub(super) struct Relay {
    source: Side,
    phase: Phase,
    /// Read and not yet written: `buffer[start..end]`.
    buffer: Option<Scratch>,
    start: usize,
    end: usize,
    unflushed: bool,
}

impl Relay {
    pub(super) fn new(source: Side) -> Self {
        Self {
            source,
            phase: Phase::Open,
            buffer: None,
            start: 0,
            end: 0,
            unflushed: false,
        }
    }

    fn sink(&self) -> Side {
        match self.source {
            Side::Near => Side::Far,
            Side::Far => Side::Near,
        }
    }

    pub(super) fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut A,
        sink: &mut B,
        count: &Cell<u64>,
    ) -> Poll<Result<(), CopyError>>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        let mut moved = 0;
        loop {
            ready!(self.poll_write_out(cx, sink, count))?;
            match self.phase {
                Phase::Closed => return Poll::Ready(Ok(())),
                Phase::Closing => {
                    // The other side may have closed both directions at once.
                    let _ = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                    self.phase = Phase::Closed;
                }
                Phase::Open if moved >= BYTES_PER_TURN => return yield_turn(cx),
                Phase::Open => match self.poll_read_in(cx, source)? {
                    Poll::Ready(read) => moved += read,
                    Poll::Pending => {
                        if self.unflushed {
                            let flushed = Pin::new(&mut *sink).poll_flush(cx);
                            ready!(flushed).map_err(write_error(self.sink()))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn poll_read_in<A: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut A,
    ) -> Poll<Result<usize, CopyError>> {
        let mut buffer = Scratch::take();
        let mut into = ReadBuf::new(&mut buffer);
        let result = Pin::new(source).poll_read(cx, &mut into);
        let read = into.filled().len();
        if read > 0 {
            self.buffer = Some(buffer);
            (self.start, self.end) = (0, read);
        }
        ready!(result).map_err(read_error(self.source))?;
        if read == 0 {
            self.phase = Phase::Closing;
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write_out<B: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut B,
        count: &Cell<u64>,
    ) -> Poll<Result<(), CopyError>> {
        while let Some(rest) = self
            .buffer
            .as_deref()
            .and_then(|b| b.get(self.start..self.end))
        {
            if rest.is_empty() {
                self.buffer = None;
                break;
            }
            let written = ready!(Pin::new(&mut *sink).poll_write(cx, rest))
                .and_then(some_written)
                .map_err(write_error(self.sink()))?;
            self.unflushed = true;
            self.start += written;
            add(count, written);
        }
        Poll::Ready(Ok(()))
    }
}

fn some_written(written: usize) -> io::Result<usize> {
    match written {
        0 => Err(io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

/// TCP to tunnel.
#[derive(Debug, Default)]
pub(super) struct IntoTunnel {
    phase: Phase,
    /// Read and not yet sent.
    in_hand: Bytes,
}

impl IntoTunnel {
    pub(super) fn poll<A: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut A,
        tunnel: &mut TunnelStream,
        count: &Cell<u64>,
    ) -> Poll<Result<(), CopyError>> {
        let far = write_error(Side::Far);
        let mut moved = 0;
        loop {
            while !self.in_hand.is_empty() {
                let room = ready!(tunnel.poll_capacity(cx, self.in_hand.len())).map_err(&far)?;
                tunnel.send(self.in_hand.split_to(room)).map_err(&far)?;
                moved += room;
                add(count, room);
            }
            match self.phase {
                Phase::Closed => return Poll::Ready(Ok(())),
                Phase::Closing => {
                    tunnel.finish().map_err(&far)?;
                    self.phase = Phase::Closed;
                }
                Phase::Open if moved >= BYTES_PER_TURN => return yield_turn(cx),
                Phase::Open => match poll_piece(cx, source, buffer_bytes(count.get()))? {
                    Poll::Ready(Some(piece)) => self.in_hand = piece,
                    Poll::Ready(None) => self.phase = Phase::Closing,
                    Poll::Pending => {
                        // A peer that wants no more says so by a reset.
                        ready!(tunnel.poll_reset(cx)).map_err(&far)?;
                        self.phase = Phase::Closed;
                    }
                },
            }
        }
    }
}

/// How much to read at a time on a connection that has carried so much: little for those that say
/// little, up to what saves most system calls for bulk.
fn buffer_bytes(carried: u64) -> usize {
    match carried {
        0..0x1_0000 => 16 * 1024,
        0x1_0000..0x10_0000 => 64 * 1024,
        _ => 256 * 1024,
    }
}

/// Reads one piece. One that fills a good part of the buffer takes the buffer with it; a smaller
/// one is copied out, so that it does not hold memory many times its size while it waits.
fn poll_piece<A: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    source: &mut A,
    capacity: usize,
) -> Poll<Result<Option<Bytes>, CopyError>> {
    let mut buffer = take_growable(capacity);
    let result = pin!(source.read_buf(&mut buffer)).poll(cx);
    let piece = if buffer.is_empty() || buffer.len() * 4 < capacity {
        let piece = Bytes::copy_from_slice(&buffer);
        give_growable(buffer);
        piece
    } else {
        buffer.freeze()
    };
    ready!(result).map_err(read_error(Side::Near))?;
    Poll::Ready(Ok(Some(piece).filter(|piece| !piece.is_empty())))
}

/// Tunnel to TCP.
#[derive(Debug, Default)]
pub(super) struct FromTunnel {
    phase: Phase,
    /// Received and not yet written.
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    unflushed: bool,
}

impl FromTunnel {
    pub(super) fn poll<B: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        tunnel: &mut TunnelStream,
        sink: &mut B,
        count: &Cell<u64>,
    ) -> Poll<Result<(), CopyError>> {
        let near = write_error(Side::Near);
        let mut moved = 0;
        loop {
            if self.phase == Phase::Closed {
                return Poll::Ready(Ok(()));
            }
            let taken = self.take_in(cx, tunnel);
            let written = self.poll_write_out(cx, tunnel, sink, count);
            // What came before the connection broke is passed on if the sink takes it now.
            let waits = taken?.is_pending();
            moved += ready!(written)?;
            if self.phase == Phase::Closing {
                // The other side may have closed both directions at once.
                let _ = ready!(Pin::new(&mut *sink).poll_shutdown(cx));
                self.phase = Phase::Closed;
            } else if waits {
                if self.unflushed {
                    ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(&near)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            } else if moved >= BYTES_PER_TURN {
                return yield_turn(cx);
            }
        }
    }

    /// Takes what the tunnel has; Pending when it has no more for now.
    fn take_in(
        &mut self,
        cx: &mut Context<'_>,
        tunnel: &mut TunnelStream,
    ) -> Result<Poll<()>, CopyError> {
        while self.phase == Phase::Open && self.queued_bytes < MAX_QUEUED_BYTES {
            match tunnel.poll_data(cx).map_err(read_error(Side::Far))? {
                Poll::Ready(Some(piece)) if piece.is_empty() => {}
                Poll::Ready(Some(piece)) => {
                    self.queued_bytes += piece.len();
                    self.queue.push_back(piece);
                }
                Poll::Ready(None) => self.phase = Phase::Closing,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Writes all that waits; gives how much that was.
    fn poll_write_out<B: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        tunnel: &mut TunnelStream,
        sink: &mut B,
        count: &Cell<u64>,
    ) -> Poll<Result<usize, CopyError>> {
        let mut moved = 0;
        while !self.queue.is_empty() {
            let Poll::Ready(written) = poll_write_pieces(cx, sink, &self.queue) else {
                self.join_small();
                return Poll::Pending;
            };
            let written = written
                .and_then(some_written)
                .map_err(write_error(Side::Near))?;
            self.unflushed = true;
            self.advance(written);
            tunnel.release(written);
            add(count, written);
            moved += written;
        }
        Poll::Ready(Ok(moved))
    }

    /// Forgets the first `bytes` of what waits.
    fn advance(&mut self, mut bytes: usize) {
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
        while bytes > 0
            && let Some(first) = self.queue.front_mut()
        {
            let gone = first.len().min(bytes);
            first.advance(gone);
            bytes -= gone;
            if first.is_empty() {
                self.queue.pop_front();
            }
        }
        if self.queue.is_empty() && self.queue.capacity() > MAX_WAITING_PIECES {
            self.queue = VecDeque::new();
        }
    }

    /// Joins the last pieces into one as long as they are small.
    fn join_small(&mut self) {
        if self.queue.len() <= MAX_WAITING_PIECES {
            return;
        }
        let is_large = |piece: &Bytes| piece.len() >= SMALL_PIECE_BYTES;
        let small_from = self
            .queue
            .iter()
            .rposition(is_large)
            .map_or(0, |large| large + 1);
        let mut joined = BytesMut::new();
        for piece in self.queue.drain(small_from..) {
            joined.extend_from_slice(&piece);
        }
        if !joined.is_empty() {
            self.queue.push_back(joined.freeze());
        }
    }
}

fn poll_write_pieces<B: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    sink: &mut B,
    pieces: &VecDeque<Bytes>,
) -> Poll<io::Result<usize>> {
    let sink = Pin::new(sink);
    match pieces.front() {
        // After a short write of one piece tokio knows that the socket is full without asking.
        Some(only) if pieces.len() == 1 || !sink.is_write_vectored() => sink.poll_write(cx, only),
        _ => {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let mut filled = 0;
            for (slice, piece) in slices.iter_mut().zip(pieces) {
                *slice = IoSlice::new(piece);
                filled += 1;
            }
            sink.poll_write_vectored(cx, slices.get(..filled).unwrap_or_default())
        }
    }
}
