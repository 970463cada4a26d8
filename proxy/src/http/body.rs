//! The one body type of the data path.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::expect::ExpectedBody;
use super::h1_client::DrivenBody;
use super::h1_server::RequestBody;
use super::headers::clean_trailers;
use super::watched_body::{BodyWatcher, WatchedBody};
use crate::{retry::ReplayBody, route::CopiedBody};

/// Body of a request or response, wherever it comes from.
///
/// An enum and not a trait object: the usual cases (no body, a body that came whole with its head) cost
/// no allocation, and their length is known, so that it goes out as `content-length` and with END_STREAM on
/// the last DATA frame.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// No body.
    #[default]
    Empty,
    /// A body that is whole in memory.
    Full(Bytes),
    /// Request body from an HTTP/1 server connection, which hyper drives.
    Incoming(RequestBody),
    /// Response body of an HTTP/1 client connection that is driven by reading the body.
    Driven(Box<DrivenBody>),
    /// Body of an HTTP/2 stream.
    H2(H2Body),
    /// A body whose bytes and end somebody is told of.
    Watched(Box<WatchedBody>),
    /// Request body that remembers what was sent, so that a retry can send it again.
    Replay(ReplayBody),
    /// Request body that its server is asked for first.
    Expected(Box<ExpectedBody>),
    /// Request body that is copied for a mirror as it goes by.
    Copied(Box<CopiedBody>),
}

/// Why a body broke off before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The HTTP/1 connection that the body came from failed.
    #[error("HTTP/1 body failed")]
    Http1(#[from] hyper::Error),
    /// The HTTP/2 stream that the body came from failed or was reset.
    #[error("HTTP/2 body failed")]
    Http2(#[from] h2::Error),
    /// The stream ended with fewer bytes than its `content-length` announced.
    #[error("body ended {missing} bytes before its content-length")]
    Truncated {
        /// Bytes that were announced and did not come.
        missing: u64,
    },
    /// There is more of it than there may be.
    #[error("body is longer than it may be")]
    TooLong,
    /// Its sender had more of it, and too little of that came.
    #[error("too little of the body came within {0:?}")]
    SenderStalled(Duration),
    /// Its reader took nothing of it for too long.
    #[error("nothing of the body was taken for too long")]
    ReaderStalled,
    /// A later attempt of the same request has taken the body over.
    #[error("a retry of the request has taken its body over")]
    Superseded,
}

impl BodyError {
    /// True when the body's sender broke its protocol, and did not merely go away.
    pub(crate) fn is_malformed(&self) -> bool {
        match self {
            BodyError::Http1(error) => {
                let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
                while let Some(error) = cause {
                    if let Some(error) = error.downcast_ref::<std::io::Error>() {
                        let kind = error.kind();
                        return matches!(
                            kind,
                            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput
                        );
                    }
                    cause = error.source();
                }
                error.is_parse()
            }
            BodyError::Http2(error) => !error.is_io() && !error.is_remote(),
            BodyError::Truncated { .. } => true,
            BodyError::TooLong
            | BodyError::SenderStalled(_)
            | BodyError::ReaderStalled
            | BodyError::Superseded => false,
        }
    }

    /// The reason with which to reset an HTTP/2 stream whose body broke off this way.
    pub(crate) fn reset_reason(&self) -> h2::Reason {
        match self {
            BodyError::Http2(error) => error.reason().unwrap_or(h2::Reason::CANCEL),
            _ => h2::Reason::CANCEL,
        }
    }
}

impl Body {
    /// The body of an HTTP/2 stream whose head was `headers`. Nothing is kept of a stream that has ended.
    pub(crate) fn from_h2(stream: h2::RecvStream, headers: &HeaderMap) -> Body {
        if stream.is_end_stream() {
            return Body::Empty;
        }
        let remaining = headers
            .get(http::header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        Body::H2(H2Body {
            stream,
            remaining,
            data_done: false,
        })
    }

    /// The same body, of whose bytes and end `watcher` is told.
    pub(crate) fn watched(self, watcher: Rc<dyn BodyWatcher>) -> Body {
        Body::Watched(Box::new(WatchedBody::new(self, watcher)))
    }

    /// Tells who watches the body why nobody will read the rest of it.
    pub(crate) fn abandon(&mut self, error: &BodyError) {
        if let Body::Watched(watched) = self {
            watched.abandon(error);
        }
    }

    /// True when no frame will come.
    pub(crate) fn is_empty(&self) -> bool {
        http_body::Body::is_end_stream(self)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        if bytes.is_empty() {
            Body::Empty
        } else {
            Body::Full(bytes)
        }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body::from(Bytes::from(text))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Body {
        Body::from(Bytes::from_static(text.as_bytes()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Body::Incoming(incoming) => clean(incoming.poll_frame(cx)),
            Body::Driven(driven) => clean(driven.poll_frame(cx)),
            Body::H2(stream) => clean(stream.poll_frame(cx)),
            Body::Watched(watched) => watched.poll_frame(cx),
            Body::Replay(replay) => replay.poll_frame(cx),
            Body::Expected(expected) => expected.poll_frame(cx),
            Body::Copied(copied) => copied.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Incoming(incoming) => incoming.is_end_stream(),
            Body::Watched(watched) => watched.is_end_stream(),
            Body::Driven(driven) => driven.is_end_stream(),
            Body::H2(stream) => stream.is_end_stream(),
            Body::Replay(replay) => replay.is_end_stream(),
            Body::Expected(expected) => expected.is_end_stream(),
            Body::Copied(copied) => copied.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Incoming(incoming) => incoming.size_hint(),
            Body::Watched(watched) => watched.size_hint(),
            Body::Driven(driven) => driven.size_hint(),
            Body::H2(stream) => stream
                .remaining
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            Body::Replay(replay) => replay.size_hint(),
            Body::Expected(expected) => expected.size_hint(),
            Body::Copied(copied) => copied.size_hint(),
        }
    }
}

/// What came from a socket, with trailers as they may go on.
fn clean(
    mut frame: Poll<Option<Result<Frame<Bytes>, BodyError>>>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    if let Poll::Ready(Some(Ok(frame))) = &mut frame
        && let Some(trailers) = frame.trailers_mut()
    {
        clean_trailers(trailers);
    }
    frame
}

/// What an HTTP/2 stream carries after its head. Its window is opened again as data is taken out.
pub(crate) struct H2Body {
    stream: h2::RecvStream,
    /// Bytes still to come by the message's content-length.
    remaining: Option<u64>,
    data_done: bool,
}

impl fmt::Debug for H2Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Body")
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl H2Body {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => return Poll::Ready(Some(self.take(data))),
                Some(Err(error)) => return Poll::Ready(self.end_by_reset(error).map(Err)),
                None => self.data_done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(self.end_by_reset(error).map(Err)),
        }
    }

    fn take(&mut self, data: Bytes) -> Result<Frame<Bytes>, BodyError> {
        // Fails only on a stream that is closed already, where windows no longer matter.
        let _ = self.stream.flow_control().release_capacity(data.len());
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(data.len() as u64);
        }
        Ok(Frame::data(data))
    }

    /// After a complete response a server may reset the stream with NO_ERROR to say that it needs no more
    /// of the request (RFC 9113, section 8.1); h2 then reports the reset in place of the end.
    fn end_by_reset(&mut self, error: h2::Error) -> Option<BodyError> {
        self.data_done = true;
        match self.remaining {
            _ if error.reason() != Some(h2::Reason::NO_ERROR) => Some(BodyError::Http2(error)),
            Some(missing) if missing > 0 => Some(BodyError::Truncated { missing }),
            _ => None,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
