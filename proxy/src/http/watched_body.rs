//! Tells somebody how a body goes.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::body::{Body, BodyError};
use super::stall::{Bound, Stall};

/// How a body ended.
#[derive(Debug)]
pub(crate) enum BodyEnd<'a> {
    /// All of it was taken.
    Complete,
    /// Its source failed.
    Failed(&'a BodyError),
    /// Whoever read it stopped before its end: a client that went away, mostly.
    Dropped,
}

/// Who is told of a body's bytes and end, for counters and the access log.
pub(crate) trait BodyWatcher {
    /// A piece of data was taken.
    fn data(&self, bytes: usize);
    /// The piece itself.
    fn piece(&self, _data: &Bytes) {}
    /// Whether there was more data than there may be, so that the body ends here.
    fn is_too_long(&self) -> bool {
        false
    }
    /// How long more of it may be waited for.
    fn patience(&self) -> Option<Bound> {
        None
    }
    /// The trailers came.
    fn trailers(&self, _trailers: &HeaderMap) {}
    /// Nothing more will come. Said exactly once for each body.
    fn end(&self, end: BodyEnd<'_>);
}

/// A body with a watcher.
pub(crate) struct WatchedBody {
    body: Body,
    /// Until it has been told of the end.
    watcher: Option<Rc<dyn BodyWatcher>>,
    stall: Option<Stall>,
}

impl fmt::Debug for WatchedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedBody")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl WatchedBody {
    pub(super) fn new(body: Body, watcher: Rc<dyn BodyWatcher>) -> WatchedBody {
        WatchedBody {
            body,
            stall: watcher.patience().map(Stall::new),
            watcher: Some(watcher),
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match (&frame, &self.watcher) {
            (_, None) => {}
            (Poll::Pending, Some(_)) => {
                let stall = self.stall.as_mut().map(|stall| stall.poll_waiting(cx));
                if let Some(Poll::Ready(limit)) = stall {
                    let error = BodyError::SenderStalled(limit);
                    self.end(BodyEnd::Failed(&error));
                    return Poll::Ready(Some(Err(error)));
                }
            }
            (Poll::Ready(None), Some(_)) => self.end(BodyEnd::Complete),
            (Poll::Ready(Some(Err(error))), Some(_)) => self.end(BodyEnd::Failed(error)),
            (Poll::Ready(Some(Ok(frame))), Some(watcher)) => {
                if let Some(data) = frame.data_ref() {
                    watcher.data(data.len());
                    watcher.piece(data);
                    if let Some(stall) = &mut self.stall {
                        stall.moved(data.len());
                    }
                    if watcher.is_too_long() {
                        let error = BodyError::TooLong;
                        self.end(BodyEnd::Failed(&error));
                        return Poll::Ready(Some(Err(error)));
                    }
                } else if let Some(trailers) = frame.trailers_ref() {
                    watcher.trailers(trailers);
                    self.end(BodyEnd::Complete);
                }
            }
        }
        frame
    }

    pub(super) fn abandon(&mut self, error: &BodyError) {
        self.end(BodyEnd::Failed(error));
        self.body.abandon(error);
    }

    fn end(&mut self, end: BodyEnd<'_>) {
        if let Some(watcher) = self.watcher.take() {
            watcher.end(end);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        // A body of known length is not asked again after its last byte.
        if self.body.is_end_stream() {
            self.end(BodyEnd::Complete);
        } else {
            self.end(BodyEnd::Dropped);
        }
    }
}
