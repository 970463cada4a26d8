//! A request body that can be sent again.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::hold::Share;
use crate::http::{Body, BodyError};

/// Most bytes of a request body that are kept for a retry.
pub(crate) const MAX_REPLAY_BYTES: usize = 64 * 1024;

/// Chunks shorter than this are copied when kept: a slice holds the whole read buffer that it came from,
/// which could be a hundred times its size.
const COPY_BELOW_BYTES: usize = 8 * 1024;

/// The least that pieces have to be on average, beyond the first few: each costs as much again to keep, and a body that comes
/// byte by byte would hold forty times its size.
const LEAST_PIECE_BYTES: usize = 128;
const FEW_PIECES: usize = 16;

/// Keeps what attempts of a request have taken of its body, up to a limit.
///
/// Each attempt reads the body through a [`ReplayBody`]; only the newest one gets anything. Past the limit
/// what was kept is let go, the running attempt goes on, and no further one is possible.
#[derive(Clone)]
pub(crate) struct ReplayBuffer(Rc<RefCell<Shared>>);

struct Shared {
    source: Body,
    limit: usize,
    /// What all may keep together, where that is bounded.
    share: Option<Share>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    state: SourceState,
    /// Which attempt may read.
    attempt: u32,
    /// How many of the kept chunks it has had.
    position: usize,
    /// There will be no further one.
    is_last: bool,
    /// Length of the whole body where it is known.
    length: Option<u64>,
    /// Nothing was there when the source was last asked.
    awaits_source: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceState {
    /// Everything taken so far is kept.
    Replayable,
    /// The same, and the source is at its end.
    Ended,
    /// Something taken is no longer here: too long, or the source failed.
    Spent,
}

impl ReplayBuffer {
    /// Wraps `body`, of which at most `limit` bytes will be kept.
    #[cfg(test)]
    pub(crate) fn new(body: Body, limit: usize) -> ReplayBuffer {
        ReplayBuffer::sharing(body, limit, None)
    }

    /// The same, and no more than `share` has room for.
    pub(super) fn sharing(body: Body, limit: usize, share: Option<Share>) -> ReplayBuffer {
        let length = body.size_hint().exact();
        ReplayBuffer(Rc::new(RefCell::new(Shared {
            source: body,
            limit,
            share,
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: None,
            state: SourceState::Replayable,
            attempt: 0,
            position: 0,
            is_last: false,
            length,
            awaits_source: false,
        })))
    }

    /// True while a further attempt would send the same bytes.
    pub(crate) fn is_replayable(&self) -> bool {
        self.0.borrow().state != SourceState::Spent
    }

    /// No further attempt will be made: what the running one has had is let go, and nothing more is kept.
    pub(crate) fn settle(&self) {
        let mut shared = self.0.borrow_mut();
        shared.is_last = true;
        shared.let_go();
    }

    /// True once the newest attempt has taken all of the body, which is kept.
    pub(crate) fn is_complete(&self) -> bool {
        let shared = self.0.borrow();
        let has_ended = match shared.state {
            // Trailers are taken after the rest.
            SourceState::Ended => shared.trailers.is_none(),
            // Whoever knows the length does not ask for more once that is there.
            SourceState::Replayable => shared.source.is_end_stream(),
            SourceState::Spent => false,
        };
        has_ended && shared.position >= shared.kept.len()
    }

    /// True while the client has more to send, and whoever reads waits for that.
    pub(crate) fn awaits_client(&self) -> bool {
        self.0.borrow().awaits_source
    }

    /// How many bytes are kept that no share counts.
    pub(crate) fn unshared_bytes(&self) -> usize {
        let shared = self.0.borrow();
        match shared.share {
            Some(_) => 0,
            None => shared.kept_bytes,
        }
    }

    /// The body for the next attempt, from its beginning; the one before gets no more.
    pub(crate) fn attempt(&self) -> Body {
        let mut shared = self.0.borrow_mut();
        shared.attempt += 1;
        shared.position = 0;
        Body::Replay(ReplayBody {
            shared: self.0.clone(),
            attempt: shared.attempt,
            given_bytes: 0,
            trailers_given: false,
        })
    }
}

impl fmt::Debug for ReplayBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBuffer").finish_non_exhaustive()
    }
}

impl Shared {
    /// Takes the next frame from the source and keeps a copy while the limit allows.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.source).poll_frame(cx);
        self.awaits_source = polled.is_pending();
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.spend();
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                self.end();
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            self.keep(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.end();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn keep(&mut self, data: &Bytes) {
        if self.state != SourceState::Replayable {
            return;
        }
        let has_room = self.kept_bytes + data.len() <= self.limit
            && self.kept.len() < FEW_PIECES + self.limit / LEAST_PIECE_BYTES
            && (self.share.as_mut()).is_none_or(|share| share.take(data.len() as u64));
        if !has_room {
            self.spend();
            return;
        }
        self.kept_bytes += data.len();
        self.kept.push(if data.len() < COPY_BELOW_BYTES {
            Bytes::copy_from_slice(data)
        } else {
            data.clone()
        });
    }

    fn end(&mut self) {
        if self.state == SourceState::Replayable {
            self.state = SourceState::Ended;
        }
    }

    fn spend(&mut self) {
        self.state = SourceState::Spent;
        self.kept = Vec::new();
        self.kept_bytes = 0;
        if let Some(share) = &mut self.share {
            share.give_back();
        }
    }

    /// Lets go of what is kept, once nobody will read it.
    fn let_go(&mut self) {
        if self.is_last && self.state == SourceState::Replayable && self.position >= self.kept.len()
        {
            self.spend();
        }
    }
}

/// One attempt's view of a replayable request body.
pub(crate) struct ReplayBody {
    shared: Rc<RefCell<Shared>>,
    attempt: u32,
    given_bytes: u64,
    trailers_given: bool,
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("attempt", &self.attempt)
            .field("given_bytes", &self.given_bytes)
            .finish_non_exhaustive()
    }
}

impl ReplayBody {
    /// What keeps the body.
    pub(crate) fn buffer(&self) -> ReplayBuffer {
        ReplayBuffer(self.shared.clone())
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        if shared.attempt != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = shared.kept.get(shared.position).cloned() {
            shared.position += 1;
            shared.let_go();
            self.given_bytes += kept.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(kept))));
        }
        if shared.state == SourceState::Ended {
            let trailers = shared.trailers.clone().filter(|_| !self.trailers_given);
            self.trailers_given = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(shared.poll_source(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                self.given_bytes += data.len() as u64;
                shared.position = shared.kept.len();
            } else {
                self.trailers_given = true;
            }
        }
        Poll::Ready(frame)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        if shared.position < shared.kept.len() {
            return false;
        }
        match shared.state {
            SourceState::Ended => shared.trailers.is_none() || self.trailers_given,
            SourceState::Replayable | SourceState::Spent => shared.source.is_end_stream(),
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let length = self.shared.borrow().length;
        length.map_or_else(SizeHint::default, |length| {
            SizeHint::with_exact(length.saturating_sub(self.given_bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::retry::hold::{HoldLimits, HoldQueue};

    async fn collect(body: Body) -> Result<Bytes, BodyError> {
        body.collect().await.map(|body| body.to_bytes())
    }

    #[tokio::test]
    async fn a_second_attempt_sends_what_the_first_one_sent() {
        let buffer = ReplayBuffer::new(Body::from("hello"), MAX_REPLAY_BYTES);
        assert_eq!(collect(buffer.attempt()).await.unwrap(), "hello");
        let second = buffer.attempt();
        assert_eq!(second.size_hint().exact(), Some(5));
        assert!(!second.is_end_stream());
        assert_eq!(collect(second).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_body_is_complete_once_all_of_it_was_taken() {
        let body = Body::from("hello");
        let buffer = ReplayBuffer::new(body, MAX_REPLAY_BYTES);
        let mut attempt = buffer.attempt();
        assert!(!buffer.is_complete());
        assert!(attempt.frame().await.unwrap().is_ok());
        assert!(attempt.is_end_stream());
        assert!(buffer.is_complete());
        let mut again = buffer.attempt();
        assert!(!buffer.is_complete());
        assert!(again.frame().await.unwrap().is_ok());
        assert!(buffer.is_complete());
        let long = ReplayBuffer::new(Body::from("hello"), 4);
        assert_eq!(collect(long.attempt()).await.unwrap(), "hello");
        assert!(!long.is_complete());
    }

    #[tokio::test]
    async fn all_together_keep_no_more_than_there_is_room_for() {
        let queue: Rc<HoldQueue> = Rc::default();
        let limits = HoldLimits {
            timeout: std::time::Duration::from_secs(1),
            requests: 1,
            bytes: 30_000,
            ends: None,
        };
        let share = || Some(Share::of(&queue, &limits));
        let send = async |bytes: usize| {
            let text = "x".repeat(bytes);
            let buffer = ReplayBuffer::sharing(Body::from(text), MAX_REPLAY_BYTES, share());
            assert_eq!(collect(buffer.attempt()).await.unwrap().len(), bytes);
            buffer
        };
        let (first, second) = (send(10_000).await, send(4_000).await);
        assert!(first.is_replayable() && second.is_replayable());
        assert_eq!((queue.bytes(), first.unshared_bytes()), (14_000, 0));
        // It goes through, and is not kept; half of the room is for small ones.
        assert!(!send(10_000).await.is_replayable());
        let small = [send(4_000).await, send(4_000).await, send(4_000).await];
        assert!(small.iter().all(ReplayBuffer::is_replayable));
        assert!(send(4_000).await.is_replayable());
        let last = send(4_000).await;
        assert!(!send(4_000).await.is_replayable());
        assert_eq!(queue.bytes(), 30_000);
        drop((first, last, small));
        assert_eq!(queue.bytes(), 4_000);
        assert!(send(10_000).await.is_replayable());
        drop(second);
        assert_eq!(queue.bytes(), 0);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_sent_once_and_not_again() {
        let buffer = ReplayBuffer::new(Body::from("hello"), 4);
        assert!(buffer.is_replayable());
        assert_eq!(collect(buffer.attempt()).await.unwrap(), "hello");
        assert!(!buffer.is_replayable());
    }

    #[test]
    fn a_body_that_comes_byte_by_byte_is_not_kept_at_many_times_its_size() {
        for (pieces, is_kept) in [(500, true), (1000, false)] {
            let buffer = ReplayBuffer::new(Body::Empty, MAX_REPLAY_BYTES);
            for _ in 0..pieces {
                buffer.0.borrow_mut().keep(&Bytes::from_static(b"x"));
            }
            assert_eq!(buffer.is_replayable(), is_kept, "{pieces}");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_body_once_no_attempt_will_follow() {
        let next = async |body: &mut Body| {
            body.frame()
                .await
                .map(|frame| frame.unwrap().into_data().unwrap())
        };
        for again in [false, true] {
            let buffer = ReplayBuffer::new(Body::from("hello"), MAX_REPLAY_BYTES);
            let mut last = buffer.attempt();
            assert_eq!(next(&mut last).await.unwrap(), "hello");
            assert_eq!(buffer.unshared_bytes(), 5);
            if again {
                last = buffer.attempt();
            }
            buffer.settle();
            if again {
                // It is still to be sent once more.
                assert_eq!(buffer.unshared_bytes(), 5);
                assert_eq!(next(&mut last).await.unwrap(), "hello");
            }
            assert_eq!(buffer.unshared_bytes(), 0);
            assert_eq!(next(&mut last).await, None);
        }
    }

    #[tokio::test]
    async fn an_attempt_that_was_superseded_gets_an_error_and_takes_nothing() {
        let buffer = ReplayBuffer::new(Body::from("hello"), MAX_REPLAY_BYTES);
        let first = buffer.attempt();
        let second = buffer.attempt();
        assert!(matches!(collect(first).await, Err(BodyError::Superseded)));
        assert_eq!(collect(second).await.unwrap(), "hello");
    }
}
