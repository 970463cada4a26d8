//! `expect: 100-continue` (RFC 9110, section 10.1.1): a client that asks whether to send its body at all is asked for it
//! only once the server has said so, so that one that refuses by the head alone is spared it.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header::EXPECT};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::body::{Body, BodyError};
use super::relay::Relay;

/// How long a server's word is waited for: many never say it, and clients wait about as long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a request's head asks first.
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// How long is left to wait.
#[derive(Debug)]
pub(super) struct Waiting(Pin<Box<Sleep>>);

impl Waiting {
    pub(super) fn new() -> Self {
        Self(Box::pin(sleep(PATIENCE)))
    }

    /// Ready when it has been long enough.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// The body of a request whose server has been asked. On a connection of HTTP/1, which says so to `relay`.
pub(crate) struct ExpectedBody {
    body: Body,
    relay: Relay,
    waiting: Option<Waiting>,
}

impl fmt::Debug for ExpectedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpectedBody")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl ExpectedBody {
    pub(super) fn new(body: Body, relay: Relay) -> Self {
        Self {
            body,
            relay,
            waiting: Some(Waiting::new()),
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(waiting) = &mut self.waiting {
            if !self.relay.is_continued() && waiting.poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
