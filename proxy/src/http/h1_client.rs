//! One HTTP/1.1 client connection, driven by whoever uses it.
//!
//! hyper gives a connection as two halves, of which one has to be polled for the other to get anywhere. The
//! usual way is a task for each connection; here the connection is polled by the task that waits for the
//! response and then by reading the response's body, so that a request costs no wake-up of another task.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;
use tokio::time::{Sleep, sleep};

use super::body::{Body, BodyError};
use super::expect::{ExpectedBody, expects_continue};
use super::h1_pool::Home;
use super::relay::{CountingIo, Relay};
use super::{BreakOff, MAX_BUFFER_BYTES, MAX_HEADER_BYTES};
use crate::copy::Connection;

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// A request that failed before its response's head was there.
pub(crate) struct SendError {
    /// The request as it was, when none of it was given to the connection.
    pub(crate) request: Option<Box<Request<Body>>>,
    /// True when surely no byte of the request was written.
    pub(crate) unsent: bool,
    /// True when no byte of a response was received.
    pub(crate) nothing_received: bool,
    /// True when the connection had carried a request before. Together with `nothing_received` it says that
    /// the server most likely closed an idle connection before it saw the request.
    pub(crate) reused: bool,
    /// True when the server took too long over taking the request, or over the head of its response once that had begun.
    pub(crate) stalled: bool,
    /// True when what was received is no head of a response, or one that is too long.
    pub(crate) malformed: bool,
    source: Option<hyper::Error>,
}

impl SendError {
    /// Whether the server most likely closed an idle connection just when the request was sent on it.
    pub(crate) fn was_closing(&self) -> bool {
        self.reused && self.nothing_received && !self.stalled && !self.malformed
    }
}

impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError")
            .field("unsent", &self.unsent)
            .field("nothing_received", &self.nothing_received)
            .field("reused", &self.reused)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.unsent, self.nothing_received) {
            _ if self.stalled => "the server stood still",
            _ if self.malformed => "the server sent no head of a response that could be read",
            (true, _) => "connection closed before the request was sent",
            (false, true) => "connection failed before the response began",
            (false, false) => "connection failed within the head of the response",
        })
    }
}

impl std::error::Error for SendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct H1ClientSettings {
    /// Over the head of a response once it has begun.
    pub(crate) header_timeout: Duration,
    /// Over taking nothing of a request that waits for it.
    pub(crate) reader_timeout: Duration,
}

impl Default for H1ClientSettings {
    fn default() -> H1ClientSettings {
        H1ClientSettings {
            header_timeout: Duration::from_secs(10),
            reader_timeout: Duration::from_secs(15 * 60),
        }
    }
}

/// An HTTP/1.1 connection to a server, able to carry one request at a time.
pub(crate) struct H1Connection {
    sender: http1::SendRequest<Body>,
    driver: Option<Driver>,
    relay: Relay,
    settings: H1ClientSettings,
    reused: bool,
    home: Option<Home>,
}

impl fmt::Debug for H1Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H1Connection")
            .field("reused", &self.reused)
            .finish_non_exhaustive()
    }
}

impl H1Connection {
    /// Speaks HTTP/1.1 on an open connection.
    ///
    /// # Errors
    /// None in practice: HTTP/1 begins with no exchange.
    pub(crate) async fn new<T>(io: T) -> hyper::Result<H1Connection>
    where
        T: Connection + Send + 'static,
    {
        let relay = Relay::new();
        let io = TokioIo::new(CountingIo::new(io, relay.clone()));
        let (sender, connection) = http1::Builder::new()
            .max_header_size(MAX_HEADER_BYTES)
            .max_buf_size(MAX_BUFFER_BYTES)
            .handshake(io)
            .await?;
        Ok(H1Connection {
            sender,
            driver: Some(Box::pin(connection.with_upgrades())),
            relay,
            settings: H1ClientSettings::default(),
            reused: false,
            home: None,
        })
    }

    /// The same connection with other bounds.
    pub(crate) fn with_settings(mut self, settings: H1ClientSettings) -> H1Connection {
        self.relay.set_reader_timeout(settings.reader_timeout);
        self.settings = settings;
        self
    }

    /// Makes the connection go to `home` when a response is complete and it can carry another request.
    pub(super) fn set_home(&mut self, home: Home) {
        self.home = Some(home);
    }

    /// Makes a new connection ready before its first request.
    pub(super) fn begin(&mut self) {
        self.relay.poll(|cx| poll_driver(&mut self.driver, cx));
    }

    /// Checks a connection that has been idle: false when the server has closed it or sent something.
    pub(super) fn is_alive(&mut self) -> bool {
        // While nothing has happened on the socket the state is the one it was left in.
        if self.relay.take_woken() {
            self.relay.poll(|cx| poll_driver(&mut self.driver, cx));
        }
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Sends one request and waits for the head of its response. Reading the response's body drives the
    /// connection further; when the body is complete the connection goes back to its pool, and when the body
    /// is dropped before that the connection closes. A `101 Switching Protocols` response carries the
    /// connection: take it with [`hyper::upgrade::on`].
    ///
    /// The request's target goes out as it stands (origin-form for servers), and it must have a `host`.
    ///
    /// # Errors
    /// [`SendError`] says how far the request got.
    pub(crate) async fn send(
        mut self,
        request: Request<Body>,
    ) -> Result<Response<Body>, SendError> {
        self.relay.reset_counters();
        let response = self.relay.poll(|_| {
            let request = ask_first(request, &self.relay);
            self.sender.try_send_request(request)
        });
        // The budget of the task is not for this future: it is never woken but by `driver` beside it.
        let mut response = pin!(unconstrained(response));
        let relay = self.relay.clone();
        let limit = self.settings.header_timeout;
        let mut head_timer: Option<Pin<Box<Sleep>>> = None;
        let result = poll_fn(|cx| {
            relay.poll_until_ready(cx, |cx| {
                poll_driver(&mut self.driver, cx);
                let result = response.as_mut().poll(cx).map(Some);
                if result.is_ready() || !relay.is_within_head() {
                    return result;
                }
                let timer = head_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
                timer.as_mut().poll(cx).map(|()| None)
            })
        })
        .await;
        match result {
            Some(Ok(response)) => Ok(self.finish(response)),
            Some(Err(mut error)) => {
                let request = error.take_message().map(Box::new);
                let error = error.into_error();
                Err(SendError {
                    request,
                    stalled: self.relay.is_stalled(),
                    malformed: error.is_parse(),
                    source: Some(error),
                    ..self.failure()
                })
            }
            None => Err(SendError {
                stalled: true,
                ..self.failure()
            }),
        }
    }

    /// How far a request got that failed.
    fn failure(&self) -> SendError {
        SendError {
            unsent: self.relay.written_bytes() == 0,
            nothing_received: self.relay.read_bytes() == 0,
            reused: self.reused,
            stalled: false,
            malformed: false,
            request: None,
            source: None,
        }
    }

    /// Takes what there is of the body without waiting: most responses came whole with their head.
    fn finish(mut self, response: Response<Incoming>) -> Response<Body> {
        let (mut parts, mut incoming) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let break_off = BreakOff::default();
            self.relay.set_break_off(break_off.clone());
            parts.extensions.insert(break_off);
            return Response::from_parts(parts, Body::Empty);
        }
        let body = if incoming.is_end_stream() {
            self.settle();
            Body::Empty
        } else {
            match self.poll_now(&mut incoming) {
                Poll::Ready(None) => {
                    self.settle();
                    Body::Empty
                }
                Poll::Ready(Some(Ok(frame))) => self.finish_with_first(frame, incoming),
                Poll::Ready(Some(Err(error))) => {
                    Body::Driven(Box::new(DrivenBody::failed(error, incoming)))
                }
                Poll::Pending => Body::Driven(Box::new(DrivenBody::new(self, incoming))),
            }
        };
        Response::from_parts(parts, body)
    }

    fn finish_with_first(mut self, frame: Frame<Bytes>, mut incoming: Incoming) -> Body {
        if !incoming.is_end_stream() {
            // Reads the end of a chunked body that is there already.
            self.relay.poll(|cx| poll_driver(&mut self.driver, cx));
        }
        let whole = match frame.data_ref() {
            Some(_) if incoming.is_end_stream() => true,
            Some(_) if self.sender.is_ready() => {
                // All that is left of the message is in the channel to `incoming`.
                match self.poll_now(&mut incoming) {
                    Poll::Ready(None) => true,
                    next => {
                        let mut body = DrivenBody::new(self, incoming);
                        body.push(Ok(frame));
                        if let Poll::Ready(Some(next)) = next {
                            body.push(next.map_err(BodyError::Http1));
                        }
                        return Body::Driven(Box::new(body));
                    }
                }
            }
            _ => false,
        };
        match frame.into_data() {
            Ok(data) if whole => {
                self.settle();
                Body::from(data)
            }
            Ok(data) => self.driven_from(Frame::data(data), incoming),
            Err(frame) => self.driven_from(frame, incoming),
        }
    }

    fn driven_from(self, first: Frame<Bytes>, incoming: Incoming) -> Body {
        let mut body = DrivenBody::new(self, incoming);
        body.push(Ok(first));
        Body::Driven(Box::new(body))
    }

    fn poll_now(&mut self, incoming: &mut Incoming) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.relay.poll(|cx| Pin::new(incoming).poll_frame(cx))
    }

    /// After a complete response: back to the pool, or closed where the request has not been read to its
    /// end or one side asked to close.
    fn settle(mut self) {
        if !self.sender.is_ready() {
            self.relay.poll(|cx| poll_driver(&mut self.driver, cx));
        }
        if self.driver.is_none() || !self.sender.is_ready() {
            return;
        }
        self.reused = true;
        if let Some(home) = self.home.take() {
            self.relay.rest();
            home.give_back(self);
        }
    }
}

/// A request whose body is first read when the server asks for it, where its client wants that.
fn ask_first(request: Request<Body>, relay: &Relay) -> Request<Body> {
    if request.body().is_empty() || !expects_continue(request.headers()) {
        return request;
    }
    request.map(|body| Body::Expected(Box::new(ExpectedBody::new(body, relay.clone()))))
}

fn poll_driver(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    if let Some(future) = driver
        && future.as_mut().poll(cx).is_ready()
    {
        // Its error reaches the response or the body, whichever is waiting.
        *driver = None;
    }
}

/// Body of a response on a self-driven connection: reading it drives the connection.
#[derive(Debug)]
pub(crate) struct DrivenBody {
    incoming: Incoming,
    /// Until the response is complete.
    connection: Option<H1Connection>,
    /// Frames taken out of `incoming` before anyone asked: at most two.
    first: Option<Result<Frame<Bytes>, BodyError>>,
    second: Option<Result<Frame<Bytes>, BodyError>>,
}

impl DrivenBody {
    fn new(connection: H1Connection, incoming: Incoming) -> DrivenBody {
        DrivenBody {
            incoming,
            connection: Some(connection),
            first: None,
            second: None,
        }
    }

    fn failed(error: hyper::Error, incoming: Incoming) -> DrivenBody {
        DrivenBody {
            incoming,
            connection: None,
            first: Some(Err(BodyError::Http1(error))),
            second: None,
        }
    }

    fn push(&mut self, frame: Result<Frame<Bytes>, BodyError>) {
        if self.first.is_none() {
            self.first = Some(frame);
        } else {
            self.second = Some(frame);
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.first.take() {
            self.first = self.second.take();
            return Poll::Ready(Some(frame));
        }
        let Some(connection) = &mut self.connection else {
            return Pin::new(&mut self.incoming)
                .poll_frame(cx)
                .map_err(BodyError::Http1);
        };
        let relay = connection.relay.clone();
        let frame = relay.poll_until_ready(cx, |cx| {
            poll_driver(&mut connection.driver, cx);
            Pin::new(&mut self.incoming).poll_frame(cx)
        });
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                // A known length has its end with the last frame; nobody may ask for more after that.
                if self.incoming.is_end_stream() || connection.sender.is_ready() {
                    self.settle();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.settle();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.connection = None;
                Poll::Ready(Some(Err(BodyError::Http1(error))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn settle(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.settle();
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let ahead: u64 = [&self.first, &self.second]
            .into_iter()
            .flatten()
            .filter_map(|frame| frame.as_ref().ok()?.data_ref())
            .map(|data| data.len() as u64)
            .sum();
        let rest = self.incoming.size_hint().exact();
        rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest + ahead))
    }
}
