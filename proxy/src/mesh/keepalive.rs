//! Notices peers that have gone without a word, and connections that nobody uses.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep_until};

/// How a connection is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepaliveSettings {
    /// A connection with open streams from which nothing came for this long is asked with a PING.
    pub(crate) ping_after: Duration,
    /// A peer from which nothing comes for this long after a PING counts as gone.
    pub(crate) ping_timeout: Duration,
    /// A connection without streams is closed after this long.
    pub(crate) idle_timeout: Duration,
}

impl Default for KeepaliveSettings {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(90),
        }
    }
}

/// What the watch found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    /// No streams for the idle time: close gracefully.
    Idle,
    /// The peer did not answer: drop the connection.
    PeerGone,
}

/// The watch over one connection: one timer, however many streams.
#[derive(Debug)]
pub(crate) struct Keepalive {
    settings: KeepaliveSettings,
    ping_pong: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    received_bytes: u64,
    awaiting_pong: bool,
    idle_since: Option<Instant>,
}

impl Keepalive {
    pub(crate) fn new(settings: KeepaliveSettings, ping_pong: Option<PingPong>) -> Self {
        Self {
            settings,
            ping_pong,
            timer: Box::pin(sleep_until(Instant::now() + Self::tick(&settings))),
            received_bytes: 0,
            awaiting_pong: false,
            idle_since: None,
        }
    }

    fn tick(settings: &KeepaliveSettings) -> Duration {
        settings.ping_after.min(settings.idle_timeout)
    }

    /// Ready when something was found; wakes the task at the next moment of interest otherwise.
    ///
    /// `received_bytes` is the count of all bytes from the peer so far, `has_streams` whether any
    /// stream is open.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        received_bytes: u64,
        has_streams: bool,
    ) -> Poll<Finding> {
        if self.awaiting_pong && received_bytes != self.received_bytes {
            // The answer has come: back to the usual rhythm.
            self.awaiting_pong = false;
            self.timer
                .as_mut()
                .reset(Instant::now() + Self::tick(&self.settings));
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if received_bytes != self.received_bytes {
                self.received_bytes = received_bytes;
            } else if self.awaiting_pong {
                return Poll::Ready(Finding::PeerGone);
            } else if has_streams {
                self.send_ping(cx);
            }
            if has_streams {
                self.idle_since = None;
            } else if now - *self.idle_since.get_or_insert(now) >= self.settings.idle_timeout {
                // Asked again after another idle time, should the close take that long.
                self.idle_since = Some(now);
                self.timer.as_mut().reset(now + self.settings.idle_timeout);
                return Poll::Ready(Finding::Idle);
            }
            let next = if self.awaiting_pong {
                self.settings.ping_timeout
            } else {
                Self::tick(&self.settings)
            };
            self.timer.as_mut().reset(now + next);
        }
    }

    fn send_ping(&mut self, cx: &mut Context<'_>) {
        let Some(ping_pong) = &mut self.ping_pong else {
            return;
        };
        // Takes the answer to the PING before, without which no other may be sent.
        let _ = ping_pong.poll_pong(cx);
        self.awaiting_pong = ping_pong.send_ping(Ping::opaque()).is_ok();
    }
}
