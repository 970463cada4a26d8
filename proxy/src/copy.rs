//! Carries bytes between a TCP connection and a tunnel, or two TCP connections.
//!
//! One future moves both directions, each with its own half-close. Nothing is held while a
//! connection is idle: reads go through the worker's scratch buffers, and only bytes that the
//! other side has not taken stay with the connection. Pieces that are large for the buffer they
//! were read into are passed on without a copy, as are the frames of a tunnel.
//!
//! A connection that breaks on one side is broken on the other (a reset stream, a TCP reset), so
//! that a truncated transfer is never taken for a whole one.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

pub(crate) use self::pipe::pipe;
use self::pump::{FromTunnel, IntoTunnel, Relay};
use crate::detect::Prefixed;
use crate::errors::{Chain, ErrorCode, ProxyError};
use crate::mesh::TunnelStream;

mod pipe;
mod pump;

/// A TCP connection, or what stands for one.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin {
    /// Makes the close that follows a reset, so that the peer sees the connection as broken.
    fn close_by_reset(&self) {}

    /// Sets how long the peer may leave what was sent unacknowledged, or its window shut, before the connection counts
    /// as broken. None, as at first: for as long as it answers probes, or a quarter of an hour without.
    fn wait_for_reader(&self, _limit: Option<Duration>) {}
}

impl Connection for TcpStream {
    fn close_by_reset(&self) {
        // Fails only on a socket that is gone already.
        let _ = self.set_zero_linger();
    }

    fn wait_for_reader(&self, limit: Option<Duration>) {
        let _ = SockRef::from(self).set_tcp_user_timeout(limit);
    }
}

impl<T: Connection> Connection for TlsStream<T> {
    fn close_by_reset(&self) {
        self.get_ref().0.close_by_reset();
    }

    fn wait_for_reader(&self, limit: Option<Duration>) {
        self.get_ref().0.wait_for_reader(limit);
    }
}

impl<T: Connection> Connection for Prefixed<T> {
    fn close_by_reset(&self) {
        self.get_ref().close_by_reset();
    }

    fn wait_for_reader(&self, limit: Option<Duration>) {
        self.get_ref().wait_for_reader(limit);
    }
}

/// Which of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The first argument: the connection that was accepted.
    Near,
    /// The second argument: the connection that was made for it.
    Far,
}

/// Why a copy ended other than by both sides closing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// Reading failed.
    #[error("could not read from the {} side", side_name(.side))]
    Read { side: Side, source: io::Error },
    /// Writing failed.
    #[error("could not write to the {} side", side_name(.side))]
    Write { side: Side, source: io::Error },
    /// Nothing moved for the idle timeout.
    #[error("nothing was sent either way for {after:?}")]
    Idle { after: Duration },
}

impl CopyError {
    /// The side that failed; None if none did.
    pub(crate) fn side(&self) -> Option<Side> {
        match self {
            Self::Read { side, .. } | Self::Write { side, .. } => Some(*side),
            Self::Idle { .. } => None,
        }
    }

    /// The failure as it is recorded, where the client is on that side.
    pub(crate) fn blame(&self, client: Side) -> ProxyError {
        let error = if self.side() == Some(client) {
            ProxyError::new(
                ErrorCode::ClientClosed,
                "The client broke the connection off.",
            )
        } else {
            ProxyError::new(ErrorCode::UpstreamReset, "The connection broke off.")
        };
        error.with_source(Chain(self).to_string())
    }
}

fn side_name(side: &Side) -> &'static str {
    match side {
        Side::Near => "near",
        Side::Far => "far",
    }
}

/// How many bytes have moved so far; may be read while the copy runs.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// From the near side to the far side.
    sent: Cell<u64>,
    /// From the far side to the near side.
    received: Cell<u64>,
}

impl Progress {
    /// Bytes from the near side to the far side.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Bytes from the far side to the near side.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }
}

/// Adds to a count.
fn add(count: &Cell<u64>, bytes: usize) {
    count.set(count.get().wrapping_add(bytes as u64));
}

/// Copies between a TCP connection and a tunnel until both directions have ended.
///
/// `idle_timeout` ends a copy in which nothing moves for so long; None, the rule, never does.
///
/// # Errors
/// [`CopyError`] names the side; the other side has been told that the connection broke.
pub(crate) async fn copy_tunnel<T: Connection>(
    near: T,
    mut tunnel: TunnelStream,
    idle_timeout: Option<Duration>,
    progress: &Progress,
) -> Result<(), CopyError> {
    let mut near = Unended::new(near);
    let mut sending = IntoTunnel::default();
    let mut receiving = FromTunnel::default();
    let mut idle = IdleTimer::new(idle_timeout);
    let result = poll_fn(|cx| {
        let sent = sending.poll(cx, &mut near.io, &mut tunnel, &progress.sent)?;
        let received = receiving.poll(cx, &mut tunnel, &mut near.io, &progress.received)?;
        finish_turn(
            cx,
            &mut idle,
            progress,
            sent.is_ready() && received.is_ready(),
        )
    })
    .await;
    near.ended = result.is_ok();
    if result.is_err() {
        // What came before the break goes out before the reset, which would discard it: a server's last words
        // (Redis in protected mode, say) are mostly followed by one. The connection's driver runs meanwhile.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        tunnel.reset();
    }
    result
}

/// Copies between two TCP connections until both directions have ended.
///
/// # Errors
/// As [`copy_tunnel`].
pub(crate) async fn copy_both<A: Connection, B: Connection>(
    near: A,
    far: B,
    idle_timeout: Option<Duration>,
    progress: &Progress,
) -> Result<(), CopyError> {
    let (mut near, mut far) = (Unended::new(near), Unended::new(far));
    let mut sending = Relay::new(Side::Near);
    let mut receiving = Relay::new(Side::Far);
    let mut idle = IdleTimer::new(idle_timeout);
    let result = poll_fn(|cx| {
        let sent = sending.poll(cx, &mut near.io, &mut far.io, &progress.sent)?;
        let received = receiving.poll(cx, &mut far.io, &mut near.io, &progress.received)?;
        finish_turn(
            cx,
            &mut idle,
            progress,
            sent.is_ready() && received.is_ready(),
        )
    })
    .await;
    (near.ended, far.ended) = (result.is_ok(), result.is_ok());
    result
}

/// A connection that has not ended: dropping it is a break, also where the copy itself is dropped.
struct Unended<T: Connection> {
    io: T,
    ended: bool,
}

impl<T: Connection> Unended<T> {
    fn new(io: T) -> Self {
        Self { io, ended: false }
    }
}

impl<T: Connection> Drop for Unended<T> {
    fn drop(&mut self) {
        if !self.ended {
            self.io.close_by_reset();
        }
    }
}

fn finish_turn(
    cx: &mut Context<'_>,
    idle: &mut Option<IdleTimer>,
    progress: &Progress,
    ended: bool,
) -> Poll<Result<(), CopyError>> {
    if ended {
        return Poll::Ready(Ok(()));
    }
    match idle {
        None => Poll::Pending,
        Some(idle) => idle.poll(cx, progress).map(Err),
    }
}

/// Ends copies in which nothing moves.
struct IdleTimer {
    after: Duration,
    moved: u64,
    timer: Pin<Box<Sleep>>,
}

impl fmt::Debug for IdleTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleTimer")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl IdleTimer {
    fn new(after: Option<Duration>) -> Option<Self> {
        after.map(|after| Self {
            after,
            moved: 0,
            timer: Box::pin(sleep_until(Instant::now() + after)),
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>, progress: &Progress) -> Poll<CopyError> {
        let moved = progress.sent().wrapping_add(progress.received());
        if moved != self.moved {
            self.moved = moved;
            self.timer.as_mut().reset(Instant::now() + self.after);
        }
        pin!(&mut self.timer)
            .poll(cx)
            .map(|()| CopyError::Idle { after: self.after })
    }
}

#[cfg(test)]
mod tests;
