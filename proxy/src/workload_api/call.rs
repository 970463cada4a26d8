//! One call from its first byte to its end: counted once, and watched for a client that does not read.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::telemetry::metrics::Metrics;

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls(Mutex<Book>);

#[derive(Debug)]
struct Book {
    open: Vec<Weak<Delivery>>,
    /// Since when there is no call; at first since the connection was made.
    idle_since: Instant,
    had_any: bool,
}

/// How far a response has got.
#[derive(Debug, Default)]
struct Delivery {
    /// Since when a message waits to be taken over by the connection.
    waiting_since: Mutex<Option<Instant>>,
}

impl Delivery {
    fn set(&self, since: Option<Instant>) {
        *self
            .waiting_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn waiting_since(&self) -> Option<Instant> {
        *self
            .waiting_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Book {
            open: Vec::new(),
            idle_since: Instant::now(),
            had_any: false,
        }))
    }

    fn begin(&self) -> Arc<Delivery> {
        let delivery = Arc::new(Delivery::default());
        let mut book = self.book();
        book.open.retain(|delivery| delivery.strong_count() > 0);
        book.open.push(Arc::downgrade(&delivery));
        book.had_any = true;
        delivery
    }

    /// How long there has been no call; none while there is one.
    pub(super) fn idle(&self) -> Option<Duration> {
        let mut book = self.book();
        book.open.retain(|delivery| delivery.strong_count() > 0);
        if !book.open.is_empty() {
            book.idle_since = Instant::now();
            return None;
        }
        Some(book.idle_since.elapsed())
    }

    /// Whether there has ever been a call.
    pub(super) fn had_any(&self) -> bool {
        self.book().had_any
    }

    /// For how long the slowest client of a call has not taken the message that is ready for it.
    pub(super) fn longest_wait(&self) -> Duration {
        let book = self.book();
        let waits = book.open.iter().filter_map(Weak::upgrade);
        waits
            .filter_map(|delivery| delivery.waiting_since())
            .map(|since| since.elapsed())
            .max()
            .unwrap_or_default()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is under way. Its end is counted when it is dropped.
#[derive(Debug)]
pub(super) struct Call {
    method: &'static str,
    code: Option<Code>,
    delivery: Arc<Delivery>,
    metrics: Arc<Metrics>,
    /// Its place within the bound on all calls; none for one that was refused.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Call {
    pub(super) fn begin(
        method: &'static str,
        calls: &Calls,
        permit: Option<OwnedSemaphorePermit>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        metrics.workload_api.open_calls.add(1);
        Self {
            method,
            code: None,
            delivery: calls.begin(),
            metrics: Arc::clone(metrics),
            _permit: permit,
        }
    }

    /// Joins the call to its response, with which it ends.
    pub(super) fn answer(
        mut self,
        response: http::Response<tonic::body::Body>,
    ) -> http::Response<CallBody> {
        // A refusal is in the headers alone.
        self.learn(response.headers());
        response.map(|inner| CallBody { inner, call: self })
    }

    fn learn(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = Some(status.code());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let workload_api = &self.metrics.workload_api;
        workload_api.open_calls.add(-1);
        // Without a status nobody was told of an end: the client went first.
        workload_api.call_ended(self.method, self.code.unwrap_or(Code::Cancelled));
    }
}

/// A response's body. The connection asks for a frame when the one before is on its way; until then that one waits.
#[derive(Debug)]
pub(super) struct CallBody {
    inner: tonic::body::Body,
    call: Call,
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.call.delivery.set(None);
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            match frame.trailers_ref() {
                Some(trailers) => self.call.learn(trailers),
                None => self.call.delivery.set(Some(Instant::now())),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
