//! What a self-driven connection wakes, and how far it has got.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The one waker that a connection's halves register with its socket and with each other, for its whole life.
///
/// It passes wake-ups on to the task that uses the connection now. While that task is polling the connection
/// there is nothing to wake: the halves of hyper's connection wake each other at each step, which would
/// make the task run once more for nothing. While the connection is idle a wake-up is remembered as "something
/// happened", so that a pool need not poll a connection to see whether it still lives.
///
/// All of it happens on one thread; it is atomic because wakers have to be.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Shared {
    user: Mutex<Option<Waker>>,
    polling: AtomicBool,
    woken: AtomicBool,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.polling.load(Relaxed) {
            self.woken.store(true, Relaxed);
            return;
        }
        match &*self.user.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(user) => user.wake_by_ref(),
            None => self.woken.store(true, Relaxed),
        }
    }
}

impl Relay {
    pub(super) fn new() -> Relay {
        let shared = Arc::new(Shared::default());
        Relay {
            waker: Waker::from(shared.clone()),
            shared,
        }
    }

    /// Runs `poll` with this waker and drops the wake-ups that it causes.
    pub(super) fn poll<R>(&self, poll: impl FnOnce(&mut Context<'_>) -> R) -> R {
        self.shared.polling.store(true, Relaxed);
        let result = poll(&mut Context::from_waker(&self.waker));
        self.shared.polling.store(false, Relaxed);
        self.shared.woken.store(false, Relaxed);
        result
    }

    /// Polls for the task of `cx`. Wake-ups caused meanwhile are dropped when the result is there, because the
    /// user polls again before it waits for more, and passed on when it is not.
    pub(super) fn poll_until_ready<R>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        self.set_user(cx.waker());
        self.shared.polling.store(true, Relaxed);
        let result = poll(&mut Context::from_waker(&self.waker));
        self.shared.polling.store(false, Relaxed);
        if self.shared.woken.swap(false, Relaxed) && result.is_pending() {
            cx.waker().wake_by_ref();
        }
        result
    }

    fn set_user(&self, waker: &Waker) {
        let mut user = self
            .shared
            .user
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &mut *user {
            Some(user) => user.clone_from(waker),
            None => *user = Some(waker.clone()),
        }
    }

    /// Nobody uses the connection: what happens is remembered.
    pub(super) fn rest(&self) {
        *self
            .shared
            .user
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True when something happened since the connection was left idle.
    pub(super) fn take_woken(&self) -> bool {
        self.shared.woken.swap(false, Relaxed)
    }

    pub(super) fn reset_counters(&self) {
        self.shared.read_bytes.store(0, Relaxed);
        self.shared.written_bytes.store(0, Relaxed);
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Relaxed)
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.shared.written_bytes.load(Relaxed)
    }
}

/// IO that counts into a [`Relay`] what has passed since the request began.
#[derive(Debug)]
pub(super) struct CountingIo<T> {
    inner: T,
    relay: Relay,
}

impl<T> CountingIo<T> {
    pub(super) fn new(inner: T, relay: Relay) -> CountingIo<T> {
        CountingIo { inner, relay }
    }

    fn count_written(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = result {
            let total = self.relay.written_bytes() + *written as u64;
            self.relay.shared.written_bytes.store(total, Relaxed);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CountingIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let total = self.relay.read_bytes() + (buffer.filled().len() - before) as u64;
        self.relay.shared.read_bytes.store(total, Relaxed);
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for CountingIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buffer);
        self.count_written(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, buffers);
        self.count_written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
