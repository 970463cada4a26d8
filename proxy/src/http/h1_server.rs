//! Serves HTTP/1 to one client.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::body::{Body, BodyError};
use super::idle_io::{Activity, Busy, ClientIo, IdleIo};
use super::interim;
use super::{BreakOff, MAX_BUFFER_BYTES, MAX_HEADER_BYTES};
use crate::copy::Connection;
use crate::detect::Prefixed;
use crate::errors::{ERROR_HEADER, ErrorCode, ProxyError};

/// Bounds of a client connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct H1ServerSettings {
    /// How long the head of a request may take to arrive, give or take `park_after`.
    pub(crate) header_timeout: Duration,
    /// How long a connection may be idle.
    pub(crate) idle_timeout: Duration,
    /// Most bytes of a request's head; a longer one is answered with 431.
    pub(crate) max_header_bytes: usize,
    /// Whether a client that has closed its sending side still gets its response. Otherwise it counts as gone.
    pub(crate) half_close: bool,
    /// How long the client may take nothing of a response that waits for it.
    pub(crate) reader_timeout: Duration,
    /// After how long without a request a connection gives up its buffers (16 KiB of them) until the next one.
    pub(crate) park_after: Duration,
}

impl Default for H1ServerSettings {
    fn default() -> H1ServerSettings {
        H1ServerSettings {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60 * 60),
            max_header_bytes: MAX_HEADER_BYTES,
            half_close: false,
            reader_timeout: Duration::from_secs(15 * 60),
            park_after: Duration::from_secs(1),
        }
    }
}

/// Why a client connection ended otherwise than by either side closing it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum H1ServerError {
    /// Not HTTP, too long, cut off, or the socket failed. The client has got a 400 or 431 where that was possible.
    #[error("HTTP/1 connection failed")]
    Http(#[from] hyper::Error),
    /// The head of a request did not arrive in time. The client has got a 408.
    #[error("the head of a request took longer than {0:?} to arrive")]
    HeaderTimeout(Duration),
    /// The client took nothing of a response for too long.
    #[error("the client took nothing of its response for {0:?}")]
    ReaderTimeout(Duration),
    /// The socket failed while the connection was idle.
    #[error("idle connection failed")]
    Io(#[from] std::io::Error),
}

/// Serves requests one after another until either side closes the connection, and passes upgrades through
/// ([`hyper::upgrade::on`] the request, with a `101` response).
///
/// When `shutdown` completes an idle connection is closed, and a busy one answers its present request with
/// `connection: close`. A client that closes its sending side while it waits for a response counts as gone.
///
/// # Errors
/// [`H1ServerError`], for the log: there is nobody left to answer.
pub(crate) async fn serve_h1<I, S, F>(
    io: I,
    service: &S,
    settings: &H1ServerSettings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), H1ServerError>
where
    I: Connection + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let activity = Activity::new();
    io.wait_for_reader(Some(settings.reader_timeout));
    let mut io = IdleIo::new(io, activity.clone(), settings.max_header_bytes);
    let mut shutdown = pin!(shutdown);
    let mut partial_head: Option<PartialHead> = None;
    loop {
        // In a box, which is gone while the connection is parked.
        let driving = drive(io, service, &activity, settings, shutdown.as_mut());
        let step = Box::pin(driving).await;
        if step.is_err() && activity.is_stalled() {
            return Err(H1ServerError::ReaderTimeout(settings.reader_timeout));
        }
        let Step::Idle {
            io: idle,
            read_ahead,
        } = step?
        else {
            return Ok(());
        };
        io = idle;
        if io.is_within_body() {
            // Nobody reads the rest of the request, and nothing of it may be taken for the next one.
            Box::pin(io.end(None)).await;
            return Ok(());
        }
        if read_ahead.is_empty() {
            partial_head = None;
            let bytes = tokio::time::timeout(settings.idle_timeout, io.wait_for_bytes());
            let more = tokio::select! {
                biased;
                bytes = bytes => matches!(bytes, Ok(Ok(true))),
                () = shutdown.as_mut() => false,
            };
            if !more {
                return Ok(());
            }
        } else {
            // Empty lines before a request are none.
            let has_begun = read_ahead.iter().any(|byte| !b"\r\n".contains(byte));
            io.unread(read_ahead);
            let requests = activity.requests();
            let began = match partial_head {
                Some(head) if head.requests == requests => head.began,
                _ => Instant::now() - settings.park_after,
            };
            let limit = settings.header_timeout;
            if began.elapsed() >= limit {
                if has_begun {
                    let message =
                        format_args!("The head of the request took longer than {limit:?}.");
                    let error = ProxyError::new(ErrorCode::ClientTimeout, message);
                    Box::pin(io.end(Some(error))).await;
                }
                return Err(H1ServerError::HeaderTimeout(limit));
            }
            partial_head = Some(PartialHead { began, requests });
        }
    }
}

/// The connection that was given to [`serve_h1`] and upgraded since, with what was read of it and given to nobody;
/// none where it was of another type.
pub(crate) fn take_back<I>(upgraded: Upgraded) -> Option<Prefixed<ClientIo<I>>>
where
    I: Connection + Send + 'static,
{
    let parts = upgraded.downcast::<TokioIo<IdleIo<I>>>().ok()?;
    let (io, unread) = parts.io.into_inner().into_inner();
    let prefix = if unread.is_empty() {
        parts.read_buf
    } else {
        [parts.read_buf, unread].concat().into()
    };
    Some(Prefixed::new(prefix, io))
}

/// A request of which only the beginning has come.
#[derive(Clone, Copy)]
struct PartialHead {
    began: Instant,
    requests: u32,
}

enum Step<I: Connection> {
    Closed,
    /// No request is under way. `read_ahead` is the beginning of one.
    Idle {
        io: IdleIo<I>,
        read_ahead: Bytes,
    },
}

/// Serves until the connection closes or no request came for `park_after`.
///
/// hyper's own header timeout would also close idle connections, and it costs a timer for each request; here one
/// timer looks at the connection once in a period.
async fn drive<I, S, F>(
    io: IdleIo<I>,
    service: &S,
    activity: &Activity,
    settings: &H1ServerSettings,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<Step<I>, H1ServerError>
where
    I: Connection + Send + 'static,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    // Two looks that see nothing new are `park_after` apart at most.
    let period = settings.park_after / 2;
    let hyper_service = hyper::service::service_fn(|request| call(service, activity, request));
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .keep_alive(true)
        .pipeline_flush(false)
        .half_close(settings.half_close)
        .max_header_size(settings.max_header_bytes)
        .max_buf_size(MAX_BUFFER_BYTES.max(settings.max_header_bytes))
        .serve_connection(TokioIo::new(io), hyper_service)
        .with_upgrades();
    let mut connection = Box::pin(connection);
    let mut check = pin!(tokio::time::sleep(period));
    let mut requests = activity.requests();
    let mut draining = false;
    let closed = poll_fn(|cx| {
        if !draining && shutdown.as_mut().poll(cx).is_ready() {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result.map(|()| true));
        }
        while check.as_mut().poll(cx).is_ready() {
            let seen = std::mem::replace(&mut requests, activity.requests());
            if seen == requests && activity.is_idle() {
                return Poll::Ready(Ok(false));
            }
            check.as_mut().reset(Instant::now() + period);
        }
        Poll::Pending
    })
    .await?;
    if closed {
        return Ok(Step::Closed);
    }
    let parts = Pin::into_inner(connection).into_parts();
    Ok(parts.map_or(Step::Closed, |parts| Step::Idle {
        io: parts.io.into_inner(),
        read_ahead: parts.read_buf,
    }))
}

async fn call<S, F>(
    service: &S,
    activity: &Activity,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible>
where
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let busy = activity.begin_request();
    let request = request.map(|incoming| {
        if http_body::Body::is_end_stream(&incoming) {
            Body::Empty
        } else {
            Body::Incoming(RequestBody {
                incoming,
                trailers_read: false,
                _busy: activity.busy(),
            })
        }
    });
    let connect = request.method() == Method::CONNECT;
    let takes_interim = request.version() == Version::HTTP_11;
    let mut answer = pin!(service(request));
    let mut response = poll_fn(|cx| {
        let (answered, came) = interim::collect(|| answer.as_mut().poll(cx));
        for response in came.iter().filter(|_| takes_interim) {
            // That one hyper says itself, when the body is first read.
            if response.status() != StatusCode::CONTINUE {
                activity.say_before_response(&interim::to_http1(response));
            }
        }
        answered
    })
    .await?;
    activity.response_begins();
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS || (connect && status.is_success()) {
        activity.upgrade(response.extensions_mut().remove::<BreakOff>());
    }
    if status == StatusCode::REQUEST_TIMEOUT && response.headers().contains_key(ERROR_HEADER) {
        // What is left of the request is not waited for (RFC 9110, section 15.5.9).
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response.map(|body| ResponseBody {
        body,
        activity: activity.clone(),
        _busy: busy,
    }))
}

/// Body of a request on an HTTP/1 server connection.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Incoming,
    trailers_read: bool,
    _busy: Busy,
}

impl RequestBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // When the response was complete before the body, hyper says that the body has ended only when the next
        // request comes.
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let frame = http_body::Body::poll_frame(Pin::new(&mut self.incoming), cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.trailers_read = frame.is_trailers();
        }
        frame.map_err(BodyError::Http1)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.trailers_read || http_body::Body::is_end_stream(&self.incoming)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.incoming)
    }
}

/// Body of a response on its way into hyper.
struct ResponseBody {
    body: Body,
    activity: Activity,
    _busy: Busy,
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.activity.is_stalled() {
            self.body.abandon(&BodyError::ReaderStalled);
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_ready() {
            self.activity.response_begins();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
