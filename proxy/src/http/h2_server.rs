//! Serves HTTP/2 to one client.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};

use super::body::Body;
use super::gathering::Gathering;
use super::headers::SIDEWIND_ERROR;
use super::idle::Idle;
use super::interim;
use super::send_body::{SendBodyError, send_body};
use super::{
    CONNECTION_WINDOW_BYTES, DATA_FRAME_BUDGET_BYTES, MAX_HEADER_BYTES, REMEMBERED_FOR,
    REMEMBERED_STREAMS, Refusals, STREAM_WINDOW_BYTES, WatchedIo, hard_header_bound,
};
use crate::copy::Connection;

/// How long a client may go on sending the body of a request that was refused, into nothing and one window at most. After it,
/// or at once were there no such time, RST_STREAM with NO_ERROR says that no more is wanted (RFC 9113, section 8.1),
/// which some clients (curl 7.88) take for a failure while they still send.
const LINGER: Duration = Duration::from_millis(250);

/// Bounds of an HTTP/2 client connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct H2ServerSettings {
    /// How long the client's preface and settings may take, and each head after them.
    pub(crate) handshake_timeout: Duration,
    /// Streams that a client may have open at once.
    pub(crate) max_concurrent_streams: u32,
    /// Most bytes of a request's head, after decompression. What is larger still comes to the service, which refuses
    /// it, as far as [`hard_header_bound`] reaches.
    pub(crate) max_header_bytes: usize,
    /// How long a connection may have no stream.
    pub(crate) idle_timeout: Duration,
    /// How long the client may take nothing of a response that waits for it.
    pub(crate) reader_timeout: Duration,
}

impl Default for H2ServerSettings {
    fn default() -> H2ServerSettings {
        H2ServerSettings {
            handshake_timeout: Duration::from_secs(10),
            max_concurrent_streams: 512,
            max_header_bytes: MAX_HEADER_BYTES,
            idle_timeout: Duration::from_secs(60 * 60),
            reader_timeout: Duration::from_secs(15 * 60),
        }
    }
}

/// Why a client connection ended otherwise than by either side closing it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum H2ServerError {
    #[error("HTTP/2 connection failed")]
    Http2(#[from] h2::Error),
    #[error("HTTP/2 connection could not be written to")]
    Io(#[from] std::io::Error),
    #[error("the HTTP/2 preface took longer than {0:?} to arrive")]
    HandshakeTimeout(Duration),
}

/// Serves an HTTP/2 client with prior knowledge, each stream in a task of its own on this worker, until either side
/// closes the connection. When `shutdown` completes the client gets GOAWAY, and its open streams finish.
/// `far_too_large` is called for each request whose header is larger than h2 takes.
///
/// # Errors
/// [`H2ServerError`], for the log.
pub(crate) async fn serve_h2<I, S, F>(
    io: I,
    service: Rc<S>,
    settings: &H2ServerSettings,
    shutdown: impl Future<Output = ()>,
    far_too_large: impl Fn() + 'static,
) -> Result<(), H2ServerError>
where
    I: Connection,
    S: Fn(Request<Body>) -> F + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(hard_header_bound(settings.max_header_bytes))
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize)
        .data_frame_budget(DATA_FRAME_BUDGET_BYTES)
        .max_concurrent_reset_streams(REMEMBERED_STREAMS)
        .reset_stream_duration(REMEMBERED_FOR);
    io.wait_for_reader(Some(settings.reader_timeout));
    let refusals = Refusals::default();
    refusals.on_refusal(far_too_large);
    let io = Gathering::new(io);
    let mut connection = {
        let watched = WatchedIo::new(io.clone(), refusals.clone(), settings.handshake_timeout);
        let mut handshake = pin!(builder.handshake::<_, Bytes>(watched));
        let starting = poll_fn(|cx| {
            let started = handshake.as_mut().poll(cx);
            match io.poll_flush_gathered(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(H2ServerError::Io(error))),
                _ => started.map_err(H2ServerError::Http2),
            }
        });
        tokio::time::timeout(settings.handshake_timeout, starting)
            .await
            .map_err(|_| H2ServerError::HandshakeTimeout(settings.handshake_timeout))??
    };
    let idle = Idle::new(settings.idle_timeout);
    let mut shutdown = pin!(shutdown);
    let mut too_long = pin!(idle.too_long());
    let mut overstayed = pin!(idle.overstayed());
    let mut draining = false;
    loop {
        let accepted = poll_fn(|cx| {
            if !draining
                && (shutdown.as_mut().poll(cx).is_ready() || too_long.as_mut().poll(cx).is_ready())
            {
                draining = true;
                connection.graceful_shutdown();
            }
            if draining && overstayed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(Ok(accepted));
            }
            // All that is ready has been taken and written; it leaves at once.
            match io.poll_flush_gathered(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            }
        })
        .await?;
        match accepted {
            None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
            Some(Ok((request, respond))) => {
                refusals.accepted(respond.stream_id());
                let service = service.clone();
                let (under_way, limit) = (idle.begin(), settings.reader_timeout);
                tokio::task::spawn_local(async move {
                    let mut request = request;
                    let body = request.body_mut();
                    let unread = (!body.is_end_stream()).then(|| body.flow_control().clone());
                    let refused = Cell::new(false);
                    let respond_to = |request| {
                        let (answer, refused) = (service(request), &refused);
                        async move {
                            let answer = answer.await;
                            refused.set(is_refusal(&answer));
                            answer
                        }
                    };
                    // A stream that fails has told its client by a reset; what it was about is in the access log.
                    let _ = serve_stream(request, respond, limit, respond_to).await;
                    if unread.is_some() && refused.get() {
                        tokio::time::sleep(LINGER).await;
                    }
                    drop(under_way);
                });
            }
        }
    }
}

/// Whether the proxy itself answered, perhaps before it read any of the request's body.
fn is_refusal(answer: &Result<Response<Body>, Infallible>) -> bool {
    let headers = answer.as_ref().map(Response::headers);
    headers.is_ok_and(|headers| headers.contains_key(SIDEWIND_ERROR))
}

/// Serves one HTTP/2 stream: runs `service` until it answers or the client resets the stream, and sends the
/// response with its body and trailers, of which the client may take nothing for `reader_timeout`. Gives back how many
/// bytes of body were sent.
///
/// # Errors
/// [`SendBodyError`] when the response did not reach the client whole.
pub(crate) async fn serve_stream<F>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    reader_timeout: Duration,
    service: impl FnOnce(Request<Body>) -> F,
) -> Result<u64, SendBodyError>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let (head, stream) = request.into_parts();
    let body = Body::from_h2(stream, &head.headers);
    let mut answer = pin!(service(Request::from_parts(head, body)));
    let response = poll_fn(|cx| {
        let (answered, interim) = interim::collect(|| answer.as_mut().poll(cx));
        for response in interim {
            // Fails only on a stream that is closed already.
            let _ = respond.send_informational(response);
        }
        if let Poll::Ready(response) = answered {
            return Poll::Ready(Ok(response.unwrap_or_else(|never| match never {})));
        }
        respond.poll_reset(cx).map(Err)
    })
    .await
    .map_err(|reset| match reset {
        Ok(reason) => SendBodyError::Reset(reason),
        Err(error) => SendBodyError::Http2(error),
    })?;
    let (head, body) = response.into_parts();
    let ends = body.is_empty();
    let mut stream = respond.send_response(Response::from_parts(head, ()), ends)?;
    if ends {
        return Ok(0);
    }
    send_body(body, &mut stream, reader_timeout).await
}
