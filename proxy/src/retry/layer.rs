//! The layer that makes several attempts look like one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::{Layer, Service, ServiceExt};

use super::budget::RetryBudget;
use super::classify::{Attempt, Attempts, Kind, Progress, RetryError};
use super::policy::RetryPolicy;
use super::replay::{MAX_REPLAY_BYTES, ReplayBuffer};
use crate::balance::Random;
use crate::http::Body;

/// Most bytes that are read of a response that is not passed on.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;
/// Longest time for reading them.
const MAX_DISCARD_TIME: Duration = Duration::from_secs(1);

/// Who is told of retries, for metrics.
pub(crate) trait RetryObserver {
    /// Another attempt begins, after a response of this status or, with `None`, after an error.
    fn retried(&self, status: Option<StatusCode>);
    /// An attempt that would have been repeated was not, because the budget is used up.
    fn budget_exhausted(&self);
}

/// Retries requests to one service.
#[derive(Clone)]
pub(crate) struct RetryLayer {
    policy: Rc<RetryPolicy>,
    budget: Rc<RetryBudget>,
    random: Rc<Random>,
    observer: Option<Rc<dyn RetryObserver>>,
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl RetryLayer {
    /// Retries by `policy`, with a budget that the service's other connections share.
    pub(crate) fn new(policy: Rc<RetryPolicy>, budget: Rc<RetryBudget>) -> RetryLayer {
        RetryLayer {
            policy,
            budget,
            random: Rc::new(Random::new(rand::random())),
            observer: None,
        }
    }

    /// The same, and `observer` is told of retries.
    pub(crate) fn observed(mut self, observer: Rc<dyn RetryObserver>) -> RetryLayer {
        self.observer = Some(observer);
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry {
            inner,
            settings: self.clone(),
        }
    }
}

/// The service that [`RetryLayer`] makes: calls `inner` again when an attempt failed in a way that another may not, when
/// repeating the request is safe, and while attempts, budget and time are left.
///
/// A retry needs the request once more: its head is copied, and its body is kept as it is sent, up to
/// [`MAX_REPLAY_BYTES`].
#[derive(Clone, Debug)]
pub(crate) struct Retry<S> {
    inner: S,
    settings: RetryLayer,
}

impl<S, A> Service<A> for Retry<S>
where
    A: Attempt + 'static,
    S: Service<A, Response = Response<Body>> + Clone + 'static,
    S::Error: RetryError,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, attempt: A) -> Self::Future {
        let next = self.inner.clone();
        // The one that was polled for readiness is the one to call.
        let ready = std::mem::replace(&mut self.inner, next);
        Box::pin(run(ready, self.settings.clone(), attempt))
    }
}

async fn run<S, A>(
    mut service: S,
    settings: RetryLayer,
    mut attempt: A,
) -> Result<Response<Body>, S::Error>
where
    A: Attempt,
    S: Service<A, Response = Response<Body>>,
    S::Error: RetryError,
{
    let policy = &*settings.policy;
    let deadline = policy.request_timeout.map(|limit| Instant::now() + limit);
    settings.budget.deposit();
    let kind = Kind::of(attempt.request());
    let mut number = 1;
    loop {
        let spare = (number <= policy.max_retries)
            .then(|| Spare::of(&mut attempt))
            .flatten();
        let limits = Limits {
            try_timeout: policy.try_timeout,
            request_timeout: policy.request_timeout,
            deadline,
        };
        let result = limits.apply(service.call(attempt)).await;
        let Some(spare) = spare else {
            return finish(result, number);
        };
        let (repeat, delay) = match &result {
            Ok(response) => (kind.may_repeat_response(response, policy), true),
            // Another endpoint or a new connection is there at once; the first time.
            Err(error) => {
                let progress = error.progress();
                let delay = progress != Progress::Unsent || number > 1;
                (kind.may_repeat_after(progress), delay)
            }
        };
        if !repeat || !spare.is_replayable() {
            return finish(result, number);
        }
        let delay = if delay {
            policy.backoff.delay(number, &settings.random)
        } else {
            Duration::ZERO
        };
        let in_time = deadline.is_none_or(|deadline| Instant::now() + delay < deadline);
        if !in_time || !settings.withdraw() {
            return finish(result, number);
        }
        settings.tell(&result);
        if let Ok(response) = result {
            discard(response.into_body());
        }
        if !delay.is_zero() {
            sleep(delay).await;
        }
        number += 1;
        attempt = spare.into_attempt(number);
        service.ready().await?;
    }
}

/// Reads a response that nobody gets to its end: were it broken off, whoever sent it would record a client that went
/// away, and its connection could not be used again. What is long or slow is broken off all the same.
fn discard(mut body: Body) {
    if body.is_empty() {
        return;
    }
    tokio::task::spawn_local(async move {
        let read = async {
            let mut left = MAX_DISCARDED_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(bytes) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        };
        // Too slow is as good as too long.
        let _ = timeout(MAX_DISCARD_TIME, read).await;
    });
}

impl RetryLayer {
    fn withdraw(&self) -> bool {
        let allowed = self.budget.withdraw();
        if !allowed && let Some(observer) = &self.observer {
            observer.budget_exhausted();
        }
        allowed
    }

    fn tell<E>(&self, result: &Result<Response<Body>, E>) {
        if let Some(observer) = &self.observer {
            observer.retried(result.as_ref().ok().map(Response::status));
        }
    }
}

fn finish<E: RetryError>(
    result: Result<Response<Body>, E>,
    attempts: u32,
) -> Result<Response<Body>, E> {
    if attempts == 1 {
        return result;
    }
    match result {
        Ok(mut response) => {
            response.extensions_mut().insert(Attempts(attempts));
            Ok(response)
        }
        Err(mut error) => {
            error.set_attempts(attempts);
            Err(error)
        }
    }
}

struct Limits {
    try_timeout: Option<Duration>,
    request_timeout: Option<Duration>,
    deadline: Option<Instant>,
}

impl Limits {
    /// Runs one attempt within what is left of both times, with one timer, or none.
    async fn apply<E: RetryError>(
        self,
        attempt: impl Future<Output = Result<Response<Body>, E>>,
    ) -> Result<Response<Body>, E> {
        let of_try = self.try_timeout.map(|limit| {
            (
                Instant::now() + limit,
                E::try_timeout as fn(Duration) -> E,
                limit,
            )
        });
        let of_request = self
            .deadline
            .zip(self.request_timeout)
            .map(|(deadline, limit)| (deadline, E::request_timeout as fn(Duration) -> E, limit));
        let first = match (of_try, of_request) {
            (Some(of_try), Some(of_request)) if of_try.0 < of_request.0 => Some(of_try),
            (of_try, of_request) => of_request.or(of_try),
        };
        match first {
            None => attempt.await,
            Some((end, error, limit)) => match timeout_at(end, attempt).await {
                Ok(result) => result,
                Err(_) => Err(error(limit)),
            },
        }
    }
}

/// What it takes to make one more attempt.
struct Spare<A> {
    attempt: A,
    body: SpareBody,
}

enum SpareBody {
    Whole(Option<Bytes>),
    Kept(ReplayBuffer),
}

impl<A: Attempt> Spare<A> {
    /// Copies a call that is about to be made. A body that is not there as a whole is replaced by one that can be
    /// sent again. `None` for a request that takes its connection along, which cannot be repeated.
    fn of(attempt: &mut A) -> Option<Spare<A>> {
        let request = attempt.request_mut();
        if request
            .extensions()
            .get::<hyper::upgrade::OnUpgrade>()
            .is_some()
        {
            return None;
        }
        let body = match std::mem::take(request.body_mut()) {
            Body::Empty => SpareBody::Whole(None),
            Body::Full(bytes) => {
                *request.body_mut() = Body::Full(bytes.clone());
                SpareBody::Whole(Some(bytes))
            }
            Body::Replay(body) => {
                let buffer = body.buffer();
                *request.body_mut() = Body::Replay(body);
                SpareBody::Kept(buffer)
            }
            body => {
                let buffer = ReplayBuffer::new(body, MAX_REPLAY_BYTES);
                *request.body_mut() = buffer.attempt();
                SpareBody::Kept(buffer)
            }
        };
        let head = copy_head(attempt.request());
        Some(Spare {
            attempt: attempt.with_request(head),
            body,
        })
    }

    fn is_replayable(&self) -> bool {
        match &self.body {
            SpareBody::Whole(_) => true,
            SpareBody::Kept(buffer) => buffer.is_replayable(),
        }
    }

    fn into_attempt(self, number: u32) -> A {
        let mut attempt = self.attempt;
        *attempt.request_mut().body_mut() = match self.body {
            SpareBody::Whole(None) => Body::Empty,
            SpareBody::Whole(Some(bytes)) => Body::Full(bytes),
            SpareBody::Kept(buffer) => buffer.attempt(),
        };
        attempt.begin(number);
        attempt
    }
}

fn copy_head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
