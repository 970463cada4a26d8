//! The layer that makes several attempts look like one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower::{Layer, Service, ServiceExt};

use super::budget::RetryBudget;
use super::classify::{Again, Attempt, Attempts, Kind, RetryError};
use super::deadline::{AskAgain, Deadline, deadline, grpc_timeout, set_grpc_timeout};
use super::hold::{Held, HoldQueue, Share};
use super::policy::RetryPolicy;
use super::spare::Spare;
use crate::balance::{MOST_UNSENT, Random};
use crate::errors::ErrorCode;
use crate::http::Body;

/// Most bytes that are read of a response that is not passed on.
const MAX_DISCARDED_BYTES: usize = 64 * 1024;
/// Longest time for reading them.
const MAX_DISCARD_TIME: Duration = Duration::from_secs(1);
/// From how long a wait before the first attempt on the server is told that the client's time is shorter by it.
const NOTICEABLE_WAIT: Duration = Duration::from_millis(1);
/// Longest `retry-after` that is waited for where nothing says how long the client does.
const MAX_UNASKED_WAIT: Duration = Duration::from_secs(5);

/// How an attempt failed that is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// A response of this status, or of this one of gRPC's in a response of 200.
    Response(StatusCode, Option<u8>),
    /// The proxy's own failure.
    Error(Option<ErrorCode>),
}

/// Who is told of retries, for metrics, log and spans.
pub(crate) trait RetryObserver {
    /// Another attempt begins.
    fn retried(&self, failed: Failed);
    /// An attempt that would have been repeated was not, because the budget is used up.
    fn budget_exhausted(&self, failed: Failed);
    /// The request waits for an endpoint, or would have: there was no place for it.
    fn held(&self, _has_place: bool) {}
    /// Another attempt begins beside the one that is under way.
    fn second_begins(&self) {}
    /// One of the two counts; the other one is given up, having failed like this.
    fn settled(&self, _other: Failed, _first_counts: bool) {}
}

/// The endpoints that attempts of a request may go to.
pub(crate) trait Others {
    /// Whether there is one that none has gone to.
    fn are_left(&self) -> bool;
}

/// Retries requests to one service.
#[derive(Clone)]
pub(crate) struct RetryLayer {
    pub(super) policy: Rc<RetryPolicy>,
    budget: Arc<RetryBudget>,
    queue: Rc<HoldQueue>,
    random: Rc<Random>,
    observer: Option<Rc<dyn RetryObserver>>,
    began: Option<Instant>,
    others: Option<Rc<dyn Others>>,
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl RetryLayer {
    /// Retries by `policy`, with a budget and a queue for those who wait that the service's other connections share.
    pub(crate) fn new(
        policy: Rc<RetryPolicy>,
        budget: Arc<RetryBudget>,
        queue: Rc<HoldQueue>,
    ) -> RetryLayer {
        RetryLayer {
            policy,
            budget,
            queue,
            random: Rc::new(Random::new(rand::random())),
            observer: None,
            began: None,
            others: None,
        }
    }

    /// The same, and `observer` is told of retries.
    pub(crate) fn observed(mut self, observer: Rc<dyn RetryObserver>) -> RetryLayer {
        self.observer = Some(observer);
        self
    }

    /// The same for a request that came before now, whose time runs since then.
    pub(crate) fn since(mut self, began: Instant) -> RetryLayer {
        self.began = Some(began);
        self
    }

    /// The same, and what was not sent to one of several endpoints goes to each of the others, before anything else counts.
    pub(crate) fn among(mut self, others: Rc<dyn Others>) -> RetryLayer {
        self.others = Some(others);
        self
    }

    /// When a request with these headers ends, by its client's deadline or the policy.
    pub(crate) fn ends(&self, headers: &HeaderMap) -> Option<Instant> {
        let began = self.began.unwrap_or_else(Instant::now);
        deadline(headers, self.policy.request_timeout, began).map(|deadline| deadline.at)
    }
}

/// The budget and the queue of those who wait that all destinations outside the mesh share.
#[derive(Debug, Default)]
pub(crate) struct OutsideRetries {
    budget: Arc<RetryBudget>,
    queue: Rc<HoldQueue>,
}

impl OutsideRetries {
    /// The layer that tries requests again as `policy` says.
    pub(crate) fn retry(&self, policy: Rc<RetryPolicy>) -> RetryLayer {
        RetryLayer::new(policy, Arc::clone(&self.budget), Rc::clone(&self.queue))
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
/// A retry needs the request once more: its head is copied, and its body is kept as it is sent, up to the policy's
/// bound.
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
    let now = Instant::now();
    let began = settings.began.unwrap_or(now);
    let deadline = deadline(attempt.request().headers(), policy.request_timeout, began);
    let timeout = grpc_timeout(attempt.request().headers());
    if now.duration_since(began) >= NOTICEABLE_WAIT {
        set_grpc_timeout(attempt.request_mut().headers_mut(), timeout, now - began);
    }
    settings.budget.deposit();
    let kind = Kind::of(attempt.request(), policy);
    let mut waiting: Option<Held> = None;
    let mut number = 1;
    // Those of the attempts that are none of the policy's retries.
    let mut uncounted = 0;
    loop {
        // What was not sent, or broke off, is tried once more whatever the policy says.
        let mut spare = (number <= settings.most_retries() || policy.hold.is_some())
            .then(|| Spare::of(&mut attempt, policy.replay_bytes, || settings.share()))
            .flatten();
        let limits = Limits {
            try_timeout: policy.try_timeout,
            deadline,
        };
        let newest = (&mut spare, &mut number);
        let attempted = settings.attempt(&mut service, attempt, limits, kind, newest);
        let result = attempted.await;
        let again = kind.judge(&result, policy);
        if !again.as_ref().is_some_and(|again| again.down)
            && let Some(held) = waiting.take()
        {
            held.passed();
        }
        let Some(spare) = spare else {
            return finish(result, number);
        };
        let Some(again) = again else {
            spare.give_up();
            return finish(result, number);
        };
        let next = match spare.is_replayable() {
            true => {
                let counted = number - uncounted;
                let wait = settings.wait(&again, counted, &spare, &mut waiting, deadline);
                wait.await
            }
            false => Next::None,
        };
        match next {
            Next::Retry => {}
            // What came before the first wait was of the outage as well. Before another wait it counts, so that a server
            // that comes and goes is not asked for ever.
            Next::Held if uncounted == 0 => uncounted = number,
            Next::Held => uncounted += 1,
            Next::None => {
                spare.give_up();
                return finish(result, number);
            }
        }
        settings.tell(&again);
        if let Ok(response) = result {
            discard(response.into_body());
        }
        number += 1;
        attempt = spare.into_attempt(number);
        set_grpc_timeout(
            attempt.request_mut().headers_mut(),
            timeout,
            began.elapsed(),
        );
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

/// What comes after an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// One of the policy's retries.
    Retry,
    /// Another attempt of a request that waits for an endpoint.
    Held,
    /// Its result is the request's.
    None,
}

impl RetryLayer {
    /// Waits until the next attempt is due, where there is to be one after the `number` that the policy counts.
    async fn wait<A: Attempt>(
        &self,
        again: &Again,
        number: u32,
        spare: &Spare<A>,
        waiting: &mut Option<Held>,
        deadline: Option<Deadline>,
    ) -> Next {
        if waiting.is_none() && self.goes_elsewhere(again, number, deadline) {
            return Next::Retry;
        }
        if waiting.is_none()
            && let Some(delay) = self.delay(again, number, deadline)
            && self.withdraw(again)
        {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            return Next::Retry;
        }
        let Some(limits) = self.policy.hold.as_ref().filter(|_| again.down) else {
            return Next::None;
        };
        if waiting.is_none() {
            *waiting = self.queue.enter(limits, spare.bytes());
            self.observe(|observer| observer.held(waiting.is_some()));
        }
        let Some(held) = waiting else {
            return Next::None;
        };
        let deadline = deadline.map(|deadline| deadline.at);
        match held.wait(deadline, &self.random).await {
            true => Next::Held,
            false => Next::None,
        }
    }

    /// After how many attempts there may be another.
    fn most_retries(&self) -> u32 {
        let elsewhere = self.others.as_ref().map_or(1, |_| MOST_UNSENT - 1);
        self.policy.max_retries.max(elsewhere)
    }

    /// Whether an attempt that was not sent is made at once at an endpoint that none has gone to. It costs nobody anything:
    /// what discovery says of endpoints may be old, and no user should notice.
    fn goes_elsewhere(&self, again: &Again, number: u32, deadline: Option<Deadline>) -> bool {
        again.unsent
            && again.ask_again.is_none()
            && number < MOST_UNSENT
            && deadline.is_none_or(|deadline| Instant::now() < deadline.at)
            && self.others.as_ref().is_some_and(|it| it.are_left())
    }

    /// How long to wait before a further attempt; none where the policy, the server or the time left allows no more.
    fn delay(&self, again: &Again, number: u32, deadline: Option<Deadline>) -> Option<Duration> {
        let most = match again.always {
            true => self.policy.max_retries.max(1),
            false => self.policy.max_retries,
        };
        if number > most || again.only_held {
            return None;
        }
        // Another endpoint or a new connection is there at once; the first time.
        let at_once = again.unsent && matches!(again.failed, Failed::Error(_)) && number == 1;
        let backoff = match at_once {
            true => Duration::ZERO,
            false => self.policy.backoff.delay(number, &self.random),
        };
        let backoff = match again.failed {
            Failed::Response(..) => backoff.saturating_add(self.policy.least_backoff),
            Failed::Error(_) => backoff,
        };
        let delay = match again.ask_again {
            None => backoff,
            Some(AskAgain::Never) => return None,
            Some(AskAgain::After(wait)) => wait.max(backoff),
        };
        let held_until = self.policy.hold.and_then(|hold| hold.ends);
        let end = match (deadline.map(|deadline| deadline.at), held_until) {
            (Some(deadline), Some(held)) => Some(deadline.min(held)),
            (deadline, held) => deadline.or(held),
        };
        let in_time = match end {
            // A server may name any number of seconds.
            Some(end) => Instant::now()
                .checked_add(delay)
                .is_some_and(|next| next < end),
            None => delay <= MAX_UNASKED_WAIT.max(backoff),
        };
        in_time.then_some(delay)
    }

    fn withdraw(&self, again: &Again) -> bool {
        self.withdraw_for(again.failed)
    }

    /// What a request may keep of its body where all are to be kept in mind that are under way: an outage may be seen by
    /// nothing else than that nobody answers.
    pub(super) fn share(&self) -> Option<Share> {
        let limits = self.policy.hold.as_ref().filter(|_| self.policy.outage)?;
        Some(Share::of(&self.queue, limits))
    }

    /// Takes one retry out of the budget, where there is one left.
    pub(super) fn withdraw_for(&self, failed: Failed) -> bool {
        let allowed = self.budget.withdraw();
        if !allowed {
            self.observe(|observer| observer.budget_exhausted(failed));
        }
        allowed
    }

    fn tell(&self, again: &Again) {
        self.observe(|observer| observer.retried(again.failed));
    }

    pub(super) fn observe(&self, tell: impl FnOnce(&dyn RetryObserver)) {
        if let Some(observer) = &self.observer {
            tell(&**observer);
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

pub(super) struct Limits {
    try_timeout: Option<Duration>,
    deadline: Option<Deadline>,
}

impl Limits {
    /// Runs one attempt within what is left of both times, with one timer, or none.
    pub(super) async fn apply<E: RetryError>(
        &self,
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
            .map(|end| (end.at, E::request_timeout as fn(Duration) -> E, end.limit));
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
