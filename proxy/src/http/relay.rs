//! What a self-driven connection wakes, and how far it has got.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::BreakOff;
use super::interim::{self, Beginning, Interims};
use crate::copy::Connection;

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
    /// All that was read are interim responses, after which a server may take its time.
    interim: AtomicBool,
    /// The server asks for the request's body.
    continued: AtomicBool,
    /// Bytes wait for the server to take them.
    write_blocked: AtomicBool,
    /// It took too long to take them.
    stalled: AtomicBool,
    /// In milliseconds; 0 for the socket's own.
    reader_timeout: AtomicU64,
    /// Whether the socket has been told.
    is_patient: AtomicBool,
    /// How an upgraded connection is to end.
    break_off: OnceLock<BreakOff>,
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
        self.shared.interim.store(false, Relaxed);
        self.shared.continued.store(false, Relaxed);
    }

    /// The server has said that it wants the request's body.
    pub(super) fn is_continued(&self) -> bool {
        self.shared.continued.load(Relaxed)
    }

    pub(super) fn set_reader_timeout(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.shared.reader_timeout.store(limit, Relaxed);
    }

    pub(super) fn set_break_off(&self, break_off: BreakOff) {
        let _ = self.shared.break_off.set(break_off);
    }

    /// Some of a response has come, and it is no interim one.
    pub(super) fn is_within_head(&self) -> bool {
        self.read_bytes() > 0 && !self.shared.interim.load(Relaxed)
    }

    /// The server took nothing of the request for too long.
    pub(super) fn is_stalled(&self) -> bool {
        self.shared.stalled.load(Relaxed)
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Relaxed)
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.shared.written_bytes.load(Relaxed)
    }
}

/// From this many bytes of a request on its server may leave them lying about: they are more than its kernel takes while
/// it is busy with something else, and then the connection is as silent as that of a server that has vanished.
const PATIENT_FROM_BYTES: u64 = 32 * 1024;

/// IO that counts into a [`Relay`] what has passed since the request began.
#[derive(Debug)]
pub(super) struct CountingIo<T: Connection> {
    inner: T,
    relay: Relay,
    interims: Interims,
}

impl<T: Connection> CountingIo<T> {
    pub(super) fn new(inner: T, relay: Relay) -> CountingIo<T> {
        CountingIo {
            inner,
            relay,
            interims: Interims::default(),
        }
    }

    /// Looks for interim responses in what comes before the final one.
    fn follow(&mut self, new: &[u8]) {
        let shared = &self.relay.shared;
        let before = shared.read_bytes.load(Relaxed);
        shared.read_bytes.store(before + new.len() as u64, Relaxed);
        if before == 0 {
            self.interims.reset();
        } else if !shared.interim.load(Relaxed) && !self.interims.is_within() {
            return;
        }
        let beginning = self.interims.read(new, |status, headers| {
            if status == StatusCode::CONTINUE {
                shared.continued.store(true, Relaxed);
            }
            interim::came(status, headers);
        });
        shared
            .interim
            .store(beginning == Beginning::Interim, Relaxed);
    }

    fn count_written(&self, result: &Poll<io::Result<usize>>) {
        let shared = &self.relay.shared;
        match result {
            Poll::Ready(Ok(written)) => {
                let total = self.relay.written_bytes() + *written as u64;
                shared.written_bytes.store(total, Relaxed);
                shared.write_blocked.store(false, Relaxed);
                if total > PATIENT_FROM_BYTES && !shared.is_patient.load(Relaxed) {
                    self.be_patient();
                }
            }
            Poll::Ready(Err(error)) => self.note(error),
            Poll::Pending => shared.write_blocked.store(true, Relaxed),
        }
    }

    #[cold]
    fn be_patient(&self) {
        let shared = &self.relay.shared;
        shared.is_patient.store(true, Relaxed);
        let limit = shared.reader_timeout.load(Relaxed);
        if limit > 0 {
            let limit = Duration::from_millis(limit);
            self.inner.wait_for_reader(Some(limit));
        }
    }

    /// Takes the kernel's giving up, which it says once, for what it is.
    fn note(&self, error: &io::Error) {
        let shared = &self.relay.shared;
        if error.kind() == io::ErrorKind::TimedOut && shared.write_blocked.load(Relaxed) {
            shared.stalled.store(true, Relaxed);
        }
    }
}

impl<T: Connection> Drop for CountingIo<T> {
    fn drop(&mut self) {
        let break_off = self.relay.shared.break_off.get();
        if break_off.is_some_and(BreakOff::is_set) {
            self.inner.close_by_reset();
        }
    }
}

impl<T: Connection> AsyncRead for CountingIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &result {
            self.note(error);
        }
        match buffer.filled().get(before..) {
            Some(new) if !new.is_empty() => self.follow(new),
            _ => {}
        }
        result
    }
}

impl<T: Connection> AsyncWrite for CountingIo<T> {
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
