//! HTTP/2 connections with prior knowledge of one worker: one for each server, and more where a server allows fewer
//! streams on one than are wanted.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::body::Body;
use super::gathering::Gathering;
use super::h1_pool::PoolKey;
use super::h2_client::{H2SendError, client_builder, send_h2};

/// Most connections to one server. One that allows a hundred streams, as most do, takes 1600 requests at a time by these.
const MAX_CONNECTIONS: usize = 16;

/// How long connections are kept, and how long they are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct H2PoolLimits {
    /// How long a connection may be unused. Servers announce its end, so no request can meet it.
    pub(crate) idle_timeout: Duration,
    /// How long a server may take over its settings.
    pub(crate) handshake_timeout: Duration,
    /// How long a request waits for a place while all streams of all connections are in use.
    pub(crate) patience: Duration,
}

/// Why there is no place for a request on a connection to a server. Nothing of it was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum H2PoolError {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("no HTTP/2")]
    Http2(#[from] h2::Error),
    #[error("the server closed the connection before its settings")]
    Closed,
    #[error("no settings came within {0:?}")]
    Silent(Duration),
    #[error("all streams that it allows were in use for {0:?}")]
    Full(Duration),
}

/// The connections of one worker. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct H2Pool(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: H2PoolLimits,
    servers: RefCell<HashMap<PoolKey, Rc<Server>>>,
}

/// The connections to one server.
#[derive(Debug, Default)]
struct Server {
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Held while dialling, so that requests that come meanwhile wait for the one dial.
    dialling: tokio::sync::Mutex<()>,
    /// How many dials have failed, and how the last one did: it failed for all who waited for it.
    failures: Cell<u64>,
    last_failure: RefCell<Option<Arc<H2PoolError>>>,
    /// A stream has ended, or a connection.
    freed: Notify,
}

struct Connection {
    sender: SendRequest<Bytes>,
    in_use: Cell<usize>,
    last_used: Cell<Instant>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("in_use", &self.in_use.get())
            .finish_non_exhaustive()
    }
}

/// A place for one stream: in use until it is dropped, which is when the response has been read.
#[derive(Debug)]
pub(crate) struct H2Place {
    connection: Rc<Connection>,
    server: Rc<Server>,
}

impl H2Place {
    /// Sends one request; see [`send_h2`].
    ///
    /// # Errors
    /// [`H2SendError`].
    pub(crate) fn send(
        &self,
        request: Request<Body>,
        reader_timeout: Duration,
    ) -> impl Future<Output = Result<Response<Body>, H2SendError>> + use<> {
        send_h2(self.connection.sender.clone(), request, reader_timeout)
    }
}

impl Drop for H2Place {
    fn drop(&mut self) {
        let in_use = &self.connection.in_use;
        in_use.set(in_use.get().saturating_sub(1));
        self.connection.last_used.set(Instant::now());
        self.server.freed.notify_one();
    }
}

impl H2Pool {
    /// A pool with nothing in it.
    pub(crate) fn new(limits: H2PoolLimits) -> H2Pool {
        H2Pool(Rc::new(Inner {
            limits,
            servers: RefCell::default(),
        }))
    }

    /// A place on a connection to `key`. Where there is none another connection is made over what `connect` gives, or a
    /// place is waited for once there are as many as may be.
    ///
    /// # Errors
    /// [`H2PoolError`]; a dial that failed has failed for all who waited for it.
    pub(crate) async fn place<C, F, I>(
        &self,
        key: PoolKey,
        connect: C,
    ) -> Result<H2Place, Arc<H2PoolError>>
    where
        C: Fn() -> F,
        F: Future<Output = io::Result<I>>,
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let server = self.server(key);
        let H2PoolLimits {
            handshake_timeout,
            patience,
            ..
        } = self.0.limits;
        let mut until = None;
        loop {
            if let Some(place) = server.place() {
                return Ok(place);
            }
            if server.has_room() {
                let failures = server.failures.get();
                let dialling = server.dialling.lock().await;
                if let Some(place) = server.place() {
                    return Ok(place);
                }
                if server.failures.get() == failures && server.has_room() {
                    match server.dial(connect(), handshake_timeout).await {
                        Ok(()) => continue,
                        Err(error) => server.failed(error),
                    }
                }
                drop(dialling);
                // Where another connection serves, the server is there, and wants no more of them.
                let failure = server.last_failure.borrow().clone();
                if server.connections.borrow().is_empty()
                    && let Some(failure) = failure
                {
                    return Err(failure);
                }
            }
            let until = *until.get_or_insert_with(|| Instant::now() + patience);
            tokio::select! {
                () = server.freed.notified() => {}
                () = sleep_until(until) => return Err(Arc::new(H2PoolError::Full(patience))),
            }
        }
    }

    fn server(&self, key: PoolKey) -> Rc<Server> {
        let mut servers = self.0.servers.borrow_mut();
        Rc::clone(servers.entry(key).or_default())
    }

    /// Lets go of connections that were unused for the idle timeout.
    fn sweep(&self) {
        let limit = self.0.limits.idle_timeout;
        self.0.servers.borrow_mut().retain(|_, server| {
            let mut connections = server.connections.borrow_mut();
            connections.retain(|it| it.in_use.get() > 0 || it.last_used.get().elapsed() < limit);
            // Whoever dials holds it too.
            !connections.is_empty() || Rc::strong_count(server) > 1
        });
    }

    /// Sweeps for as long as the pool is in use anywhere else.
    pub(crate) fn sweeper(&self) -> impl Future<Output = ()> + use<> {
        let pool = Rc::downgrade(&self.0);
        let period = self.0.limits.idle_timeout;
        async move {
            loop {
                sleep(period).await;
                match pool.upgrade() {
                    Some(pool) => H2Pool(pool).sweep(),
                    None => return,
                }
            }
        }
    }
}

impl Server {
    /// A place on the first connection that has one. Those that take no more requests are forgotten on the way: closed,
    /// told to go away, or out of stream numbers.
    fn place(self: &Rc<Self>) -> Option<H2Place> {
        let mut connections = self.connections.borrow_mut();
        let mut at = 0;
        while let Some(connection) = connections.get(at) {
            let mut sender = connection.sender.clone();
            let state = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(Err(_)) = state {
                connections.remove(at);
                continue;
            }
            let in_use = connection.in_use.get();
            if in_use < connection.sender.current_max_send_streams() {
                connection.in_use.set(in_use + 1);
                return Some(H2Place {
                    connection: Rc::clone(connection),
                    server: Rc::clone(self),
                });
            }
            at += 1;
        }
        None
    }

    /// Makes a connection whose server has said how many streams it allows.
    async fn dial<I>(
        self: &Rc<Self>,
        connecting: impl Future<Output = io::Result<I>>,
        limit: Duration,
    ) -> Result<(), H2PoolError>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let io = Gathering::new(connecting.await.map_err(H2PoolError::Connect)?);
        let mut builder = client_builder();
        builder.initial_max_send_streams(0);
        let handshake = builder.handshake::<_, Bytes>(io.clone());
        let (sender, mut driver) = timeout(limit, handshake)
            .await
            .map_err(|_| H2PoolError::Silent(limit))??;
        let mut turn = move |cx: &mut Context<'_>| {
            let ended = Pin::new(&mut driver).poll(cx);
            match io.poll_flush_gathered(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(H2PoolError::Connect(error))),
                _ => ended.map_err(H2PoolError::Http2),
            }
        };
        let settings = poll_fn(|cx| match turn(cx) {
            Poll::Ready(result) => Poll::Ready(result.and(Err(H2PoolError::Closed))),
            Poll::Pending if sender.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        timeout(limit, settings)
            .await
            .map_err(|_| H2PoolError::Silent(limit))??;
        let connection = Rc::new(Connection {
            sender,
            in_use: Cell::new(0),
            last_used: Cell::new(Instant::now()),
        });
        let (server, ended) = (Rc::downgrade(self), Rc::downgrade(&connection));
        self.connections.borrow_mut().push(connection);
        tokio::task::spawn_local(async move {
            // Its failure reaches the streams that are open.
            let _ = poll_fn(|cx| turn(cx)).await;
            Self::forget(&server, &ended);
        });
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.connections.borrow().len() < MAX_CONNECTIONS
    }

    fn failed(&self, error: H2PoolError) {
        self.failures.set(self.failures.get() + 1);
        *self.last_failure.borrow_mut() = Some(Arc::new(error));
    }

    fn forget(server: &Weak<Self>, connection: &Weak<Connection>) {
        if let Some(server) = server.upgrade() {
            let is_other = |it: &Rc<Connection>| !std::ptr::eq(Rc::as_ptr(it), connection.as_ptr());
            server.connections.borrow_mut().retain(is_other);
            server.freed.notify_waiters();
        }
    }
}
