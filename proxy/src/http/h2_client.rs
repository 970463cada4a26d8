//! HTTP/2 client connections with prior knowledge, and how a request goes over any HTTP/2 connection.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::body::Body;
use super::expect::{Waiting, expects_continue};
use super::gathering::Gathering;
use super::h1_pool::PoolKey;
use super::interim;
use super::send_body::{SendBodyError, send_body};
use super::{CONNECTION_WINDOW_BYTES, MAX_HEADER_BYTES, STREAM_WINDOW_BYTES};

/// A request over HTTP/2 that failed before its response's head was there.
#[derive(Debug, thiserror::Error)]
#[error("HTTP/2 request failed")]
pub(crate) struct H2SendError {
    /// True when the server surely did nothing with the request: it refused the stream, or its GOAWAY left it out,
    /// or the request was never sent.
    pub(crate) unprocessed: bool,
    /// Why the request's body could not be sent, where that came first.
    pub(crate) body: Option<SendBodyError>,
    #[source]
    source: h2::Error,
}

impl H2SendError {
    fn unsent(source: h2::Error) -> H2SendError {
        H2SendError {
            unprocessed: true,
            body: None,
            source,
        }
    }
}

/// Sends a request on an HTTP/2 connection and waits for the head of its response. What is left of the request's
/// body by then goes on being sent in a task of its own. The server may take nothing of it for `reader_timeout`.
///
/// # Errors
/// [`H2SendError`] says whether the server can have seen the request.
pub(crate) async fn send_h2(
    sender: SendRequest<Bytes>,
    request: Request<Body>,
    reader_timeout: Duration,
) -> Result<Response<Body>, H2SendError> {
    let mut sender = sender.ready().await.map_err(H2SendError::unsent)?;
    let (head, body) = request.into_parts();
    let ends = body.is_empty();
    let waiting = (!ends && expects_continue(&head.headers)).then(Waiting::new);
    let (response, mut stream) = sender
        .send_request(Request::from_parts(head, ()), ends)
        .map_err(H2SendError::unsent)?;
    let result = match body {
        _ if ends => respond(response).await.map_err(|error| (error, None)),
        Body::Full(bytes) if waiting.is_none() => {
            // A failure here is the stream's, and reaches the response too.
            let _ = stream.send_data(bytes, true);
            respond(response).await.map_err(|error| (error, None))
        }
        body => {
            let pump = Box::pin(async move { send_body(body, &mut stream, reader_timeout).await });
            respond_while_sending(response, pump, waiting).await
        }
    };
    match result {
        Ok(response) => {
            let (head, stream) = response.into_parts();
            let body = Body::from_h2(stream, &head.headers);
            Ok(Response::from_parts(head, body))
        }
        Err((source, body)) => Err(H2SendError {
            unprocessed: source.is_remote()
                && (source.is_go_away() || source.reason() == Some(h2::Reason::REFUSED_STREAM)),
            body,
            source,
        }),
    }
}

type Pump = Pin<Box<dyn Future<Output = Result<u64, SendBodyError>>>>;

/// The final response; those before it are on their way.
async fn respond(mut response: ResponseFuture) -> Result<Response<h2::RecvStream>, h2::Error> {
    poll_fn(|cx| poll_response(&mut response, cx).1).await
}

/// Passes interim responses on, and says beside the final one whether the server has asked for the request's body.
///
/// A stream that ends with an interim response is malformed, which is found out by what follows: nothing of it passes.
fn poll_response(
    response: &mut ResponseFuture,
    cx: &mut Context<'_>,
) -> (bool, Poll<Result<Response<h2::RecvStream>, h2::Error>>) {
    let mut interim = Vec::new();
    while let Poll::Ready(Some(Ok(response))) = response.poll_informational(cx) {
        if interim.len() < interim::MOST {
            interim.push(response);
        }
    }
    let result = Pin::new(response).poll(cx);
    let mut continued = false;
    if !matches!(result, Poll::Ready(Err(_))) {
        for response in interim {
            let (head, ()) = response.into_parts();
            continued |= head.status == StatusCode::CONTINUE;
            interim::came(head.status, head.headers);
        }
    }
    (continued, result)
}

/// Sends the body while the response is waited for, once `waiting` is over: the server has asked for it, or says nothing.
/// Where it answers first, it wants none.
async fn respond_while_sending(
    mut response: ResponseFuture,
    pump: Pump,
    mut waiting: Option<Waiting>,
) -> Result<Response<h2::RecvStream>, (h2::Error, Option<SendBodyError>)> {
    let mut pump = Some(pump);
    let mut failure = None;
    let result = poll_fn(|cx| {
        loop {
            let (continued, result) = poll_response(&mut response, cx);
            if result.is_ready() {
                return result;
            }
            if let Some(left) = &mut waiting
                && (continued || left.poll(cx).is_ready())
            {
                waiting = None;
            }
            let sending = pump.as_mut().filter(|_| waiting.is_none());
            let Some(Poll::Ready(sent)) = sending.map(|sending| sending.as_mut().poll(cx)) else {
                return Poll::Pending;
            };
            // What ended the body may have ended the stream.
            failure = sent.err();
            pump = None;
        }
    })
    .await;
    match result {
        Ok(response) => {
            if let Some(pump) = pump.filter(|_| waiting.is_none()) {
                tokio::task::spawn_local(pump);
            }
            Ok(response)
        }
        Err(error) => Err((error, failure)),
    }
}

/// An HTTP/2 connection to a server. Clones share it.
#[derive(Clone)]
pub(crate) struct H2Connection {
    sender: SendRequest<Bytes>,
}

impl fmt::Debug for H2Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Connection").finish_non_exhaustive()
    }
}

impl H2Connection {
    /// Sends one request; see [`send_h2`].
    ///
    /// # Errors
    /// [`H2SendError`].
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        reader_timeout: Duration,
    ) -> Result<Response<Body>, H2SendError> {
        send_h2(self.sender.clone(), request, reader_timeout).await
    }
}

/// One HTTP/2 connection for each server. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct H2Pool(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    idle_timeout: Duration,
    entries: RefCell<HashMap<PoolKey, Rc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    connection: RefCell<Option<H2Connection>>,
    /// Counts the connections made, so that the end of an old one does not take its successor away.
    generation: Cell<u64>,
    /// Held while dialling, so that requests that come meanwhile wait for the one dial.
    dialling: tokio::sync::Mutex<()>,
    last_used: Cell<Instant>,
}

impl H2Pool {
    /// A pool whose connections close once they were unused for `idle_timeout`.
    pub(crate) fn new(idle_timeout: Duration) -> H2Pool {
        H2Pool(Rc::new(Inner {
            idle_timeout,
            entries: RefCell::default(),
        }))
    }

    /// The connection to `key`, made over what `connect` gives when there is none.
    ///
    /// # Errors
    /// Those of `connect`, and HTTP/2's own of the handshake.
    pub(crate) async fn connection<C, F, I, E>(
        &self,
        key: PoolKey,
        connect: C,
    ) -> Result<H2Connection, E>
    where
        C: FnOnce() -> F,
        F: Future<Output = Result<I, E>>,
        I: AsyncRead + AsyncWrite + Unpin + 'static,
        E: From<h2::Error>,
    {
        let entry = self.entry(key);
        entry.last_used.set(Instant::now());
        if let Some(connection) = entry.open_connection() {
            return Ok(connection);
        }
        let _dialling = entry.dialling.lock().await;
        if let Some(connection) = entry.open_connection() {
            return Ok(connection);
        }
        let io = Gathering::new(connect().await?);
        let (sender, mut connection) = client_builder().handshake::<_, Bytes>(io.clone()).await?;
        let pooled = H2Connection { sender };
        let generation = entry.replace(pooled.clone());
        let weak = Rc::downgrade(&entry);
        tokio::task::spawn_local(async move {
            // Its failure reaches the streams that are open.
            poll_fn(|cx| {
                let ended = Pin::new(&mut connection).poll(cx).map(drop);
                match io.poll_flush_gathered(cx) {
                    Poll::Ready(Err(_)) => Poll::Ready(()),
                    _ => ended,
                }
            })
            .await;
            Entry::forget(&weak, generation);
        });
        Ok(pooled)
    }

    fn entry(&self, key: PoolKey) -> Rc<Entry> {
        let mut entries = self.0.entries.borrow_mut();
        let entry = entries.entry(key).or_insert_with(|| {
            Rc::new(Entry {
                connection: RefCell::new(None),
                generation: Cell::new(0),
                dialling: tokio::sync::Mutex::new(()),
                last_used: Cell::new(Instant::now()),
            })
        });
        entry.clone()
    }

    /// Lets go of connections that were unused for the idle timeout; open streams still finish.
    pub(crate) fn sweep(&self) {
        let idle_timeout = self.0.idle_timeout;
        self.0
            .entries
            .borrow_mut()
            .retain(|_, entry| entry.last_used.get().elapsed() < idle_timeout);
    }

    /// Sweeps for as long as the pool is in use anywhere else.
    pub(crate) fn sweeper(&self) -> impl Future<Output = ()> + use<> {
        let pool = Rc::downgrade(&self.0);
        let period = self.0.idle_timeout;
        async move {
            loop {
                tokio::time::sleep(period).await;
                match pool.upgrade() {
                    Some(pool) => H2Pool(pool).sweep(),
                    None => return,
                }
            }
        }
    }
}

impl Entry {
    /// The connection, unless it takes no more requests: closed, told to go away, or out of stream numbers.
    fn open_connection(&self) -> Option<H2Connection> {
        let mut connection = self.connection.borrow().clone()?;
        let mut cx = Context::from_waker(Waker::noop());
        match connection.sender.poll_ready(&mut cx) {
            Poll::Ready(Err(_)) => None,
            Poll::Ready(Ok(())) | Poll::Pending => Some(connection),
        }
    }

    fn replace(&self, connection: H2Connection) -> u64 {
        self.generation.set(self.generation.get() + 1);
        *self.connection.borrow_mut() = Some(connection);
        self.generation.get()
    }

    fn forget(entry: &Weak<Entry>, generation: u64) {
        if let Some(entry) = entry.upgrade()
            && entry.generation.get() == generation
        {
            entry.connection.borrow_mut().take();
        }
    }
}

/// How this worker speaks HTTP/2 to a server.
pub(crate) fn client_builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize);
    builder
}
