//! Pumps a body into an HTTP/2 stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http_body::Frame;

use super::body::{Body, BodyError};
use super::stall::{Bound, Stall};

/// Pieces up to this that are there at once go out as one: each frame that its reader leaves unread costs the peer a few
/// hundred bytes, of which it holds so many for a whole connection before it ends that for all.
const SMALL_BYTES: usize = 1024;
/// Most that is joined so.
const JOINED_BYTES: usize = 16 * 1024;

/// Why a body could not be sent to its end. The stream has been reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendBodyError {
    /// The peer wants no more of it. `NO_ERROR` and `CANCEL` are ordinary: it has its answer, or its client went.
    #[error("peer reset the stream: {0}")]
    Reset(Reason),
    /// The peer took nothing of it for too long.
    #[error("peer took nothing for {0:?}")]
    Stalled(Duration),
    /// The body's own source failed.
    #[error("source of the body failed")]
    Body(#[from] BodyError),
    /// The stream or its connection failed.
    #[error("HTTP/2 stream failed")]
    Http2(#[from] h2::Error),
}

/// Sends `body` with its trailers and the end of the stream, and gives back how many bytes of data it was. The peer may
/// take nothing of it for `reader_timeout`.
///
/// Waits for the peer's window before each piece, so at most one frame of the source is held, or some small ones. END_STREAM goes
/// out with the last DATA frame wherever the end is known by then. When the source fails the stream is
/// reset; when the future is dropped h2 resets it with CANCEL.
pub(crate) async fn send_body(
    mut body: Body,
    stream: &mut SendStream<Bytes>,
    reader_timeout: Duration,
) -> Result<u64, SendBodyError> {
    if let Body::Full(bytes) = body {
        // Whole in memory already, so queueing it in h2 holds nothing more than waiting here would.
        let length = bytes.len() as u64;
        stream.send_data(bytes, true)?;
        return Ok(length);
    }
    let mut stall = Stall::new(Bound {
        limit: reader_timeout,
        least: 1,
    });
    let result = pump(&mut body, stream, &mut stall).await;
    match &result {
        Err(SendBodyError::Body(error)) => stream.send_reset(error.reset_reason()),
        Err(SendBodyError::Stalled(_)) => {
            body.abandon(&BodyError::ReaderStalled);
            stream.send_reset(Reason::CANCEL);
        }
        _ => {}
    }
    result
}

async fn pump(
    body: &mut Body,
    stream: &mut SendStream<Bytes>,
    stall: &mut Stall,
) -> Result<u64, SendBodyError> {
    let mut sent = 0;
    let mut next = next_frame(body, stream).await?;
    loop {
        let Some(frame) = next else {
            stream.send_data(Bytes::new(), true)?;
            return Ok(sent);
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    stream.send_trailers(trailers)?;
                }
                return Ok(sent);
            }
        };
        let (data, following) = join_small(data, body).await?;
        sent += data.len() as u64;
        let last = matches!(following, Following::End);
        if !data.is_empty() || last {
            send_data(data, last, stream, stall).await?;
        }
        next = match following {
            Following::End => return Ok(sent),
            Following::Frame(frame) => Some(frame),
            Following::NotYet => next_frame(body, stream).await?,
        };
    }
}

enum Following {
    End,
    Frame(Frame<Bytes>),
    NotYet,
}

/// Joins small pieces as far as they are there already, and gives back what follows: that decides whether this is the last
/// frame. Nothing is waited for.
async fn join_small(data: Bytes, body: &mut Body) -> Result<(Bytes, Following), BodyError> {
    let mut joined = BytesMut::new();
    loop {
        let following = if http_body::Body::is_end_stream(body) {
            Following::End
        } else {
            poll_fn(|cx| Poll::Ready(poll_following(body, cx))).await?
        };
        let length = data.len().max(joined.len());
        match &following {
            Following::Frame(frame)
                if data.len() <= SMALL_BYTES
                    && let Some(next) = frame.data_ref()
                    && next.len() <= SMALL_BYTES
                    && length + next.len() <= JOINED_BYTES =>
            {
                if joined.is_empty() {
                    joined.extend_from_slice(&data);
                }
                joined.extend_from_slice(next);
            }
            _ if joined.is_empty() => return Ok((data, following)),
            _ => return Ok((joined.freeze(), following)),
        }
    }
}

fn poll_following(body: &mut Body, cx: &mut Context<'_>) -> Result<Following, BodyError> {
    match http_body::Body::poll_frame(Pin::new(body), cx) {
        Poll::Ready(None) => Ok(Following::End),
        Poll::Ready(Some(Ok(frame))) => Ok(Following::Frame(frame)),
        Poll::Ready(Some(Err(error))) => Err(error),
        Poll::Pending => Ok(Following::NotYet),
    }
}

/// The body's next frame, unless the peer resets the stream first.
async fn next_frame(
    body: &mut Body,
    stream: &mut SendStream<Bytes>,
) -> Result<Option<Frame<Bytes>>, SendBodyError> {
    poll_fn(|cx| {
        if let Poll::Ready(frame) = http_body::Body::poll_frame(Pin::new(&mut *body), cx) {
            return Poll::Ready(frame.transpose().map_err(SendBodyError::Body));
        }
        stream.poll_reset(cx).map(|reset| Err(reset_error(reset)))
    })
    .await
}

/// Sends one piece of data as the peer's window allows.
async fn send_data(
    mut data: Bytes,
    last: bool,
    stream: &mut SendStream<Bytes>,
    stall: &mut Stall,
) -> Result<(), SendBodyError> {
    if data.is_empty() {
        stream.send_data(data, last)?;
        return Ok(());
    }
    stream.reserve_capacity(data.len());
    loop {
        let capacity = stream.capacity();
        if capacity >= data.len() {
            stream.send_data(data, last)?;
            return Ok(());
        }
        if capacity > 0 {
            stream.send_data(data.split_to(capacity), false)?;
            stream.reserve_capacity(data.len());
            continue;
        }
        poll_fn(|cx| match poll_capacity(stream, cx) {
            Poll::Pending => stall
                .poll_waiting(cx)
                .map(|limit| Err(SendBodyError::Stalled(limit))),
            ready => ready,
        })
        .await?;
        stall.moved(1);
    }
}

fn poll_capacity(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), SendBodyError>> {
    if let Poll::Ready(reset) = stream.poll_reset(cx) {
        return Poll::Ready(Err(reset_error(reset)));
    }
    match stream.poll_capacity(cx) {
        Poll::Ready(Some(Ok(_))) => Poll::Ready(Ok(())),
        Poll::Ready(Some(Err(error))) => Poll::Ready(Err(SendBodyError::Http2(error))),
        Poll::Ready(None) => Poll::Ready(Err(SendBodyError::Reset(Reason::STREAM_CLOSED))),
        Poll::Pending => Poll::Pending,
    }
}

fn reset_error(reset: Result<Reason, h2::Error>) -> SendBodyError {
    match reset {
        Ok(reason) => SendBodyError::Reset(reason),
        Err(error) => SendBodyError::Http2(error),
    }
}
