//! A second attempt beside one that is slow, for requests whose client gives up soon.
//!
//! An endpoint that hangs accepts connections and requests, and says nothing. Breaking its attempt off would lose the
//! answer of one that is only slow, so both go on, and the first good answer counts.

use std::pin::pin;

use http::Response;
use tokio::time::sleep;
use tower::{Service, ServiceExt};

use super::classify::{Attempt, Kind, RetryError};
use super::layer::{Failed, Limits, RetryLayer};
use super::spare::Spare;
use crate::errors::ErrorCode;
use crate::http::Body;

/// What a slow attempt is told as, where another one did better.
const SLOW: Failed = Failed::Error(Some(ErrorCode::RequestTimeout));

impl RetryLayer {
    /// Runs an attempt, and another beside it once the first has taken as long as the policy says. Gives the better
    /// result; `spare` and `number` go on from the newest attempt.
    pub(super) async fn attempt<S, A>(
        &self,
        service: &mut S,
        attempt: A,
        limits: Limits,
        kind: Kind,
        (spare, number): (&mut Option<Spare<A>>, &mut u32),
    ) -> Result<Response<Body>, S::Error>
    where
        A: Attempt,
        S: Service<A, Response = Response<Body>>,
        S::Error: RetryError,
    {
        let policy = &*self.policy;
        let first = limits.apply(service.call(attempt));
        let Some(after) = policy.hedge.filter(|_| kind.is_repeatable()) else {
            return first.await;
        };
        let mut first = pin!(first);
        tokio::select! {
            biased;
            result = &mut first => return result,
            () = sleep(after) => {}
        }
        // Bytes that are still on their way can only go one way.
        let Some(sent) = spare.take_if(|spare| spare.is_complete()) else {
            return first.await;
        };
        if !self.withdraw_for(SLOW) {
            *spare = Some(sent);
            return first.await;
        }
        tokio::select! {
            biased;
            result = &mut first => {
                *spare = Some(sent);
                return result;
            }
            ready = service.ready() => ready?,
        };
        *number += 1;
        let mut second = sent.into_attempt(*number);
        *spare = Spare::of(&mut second, policy.replay_bytes, || self.share());
        self.observe(|observer| observer.second_begins());
        let mut second = pin!(limits.apply(service.call(second)));
        let (result, is_first) = tokio::select! {
            biased;
            result = &mut first => (result, true),
            result = &mut second => (result, false),
        };
        let (result, is_first) = match kind.judge(&result, policy) {
            None => (result, is_first),
            Some(_) => match is_first {
                true => (second.await, false),
                false => (first.await, true),
            },
        };
        self.observe(|observer| observer.settled(SLOW, is_first));
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
        sync::Arc,
        time::Duration,
    };

    use http::{Method, Request};
    use tokio::time::Instant;
    use tower::{Layer, service_fn};

    use super::*;
    use crate::errors::ProxyError;
    use crate::retry::{RetryBudget, RetryObserver, RetryPolicy};

    const HEDGE: Duration = Duration::from_secs(2);

    /// After how many milliseconds an endpoint answers, and with which status; 0 is a reset.
    type Answer = (u64, u16);

    const NEVER: u64 = 3_600_000;

    #[derive(Debug, Default)]
    struct Told {
        begun: Cell<u32>,
        settled: RefCell<Vec<bool>>,
        exhausted: Cell<u32>,
    }

    impl RetryObserver for Told {
        fn retried(&self, _: Failed) {}

        fn budget_exhausted(&self, _: Failed) {
            self.exhausted.set(self.exhausted.get() + 1);
        }

        fn second_begins(&self) {
            self.begun.set(self.begun.get() + 1);
        }

        fn settled(&self, _: Failed, first_counts: bool) {
            self.settled.borrow_mut().push(first_counts);
        }
    }

    struct Played {
        status: u16,
        took: u64,
        bodies: Vec<String>,
        told: Rc<Told>,
    }

    /// Sends one request through endpoints that answer like this, in their order.
    async fn play(method: Method, budget: Arc<RetryBudget>, answers: &'static [Answer]) -> Played {
        let bodies: Rc<RefCell<Vec<String>>> = Rc::default();
        let seen = Rc::clone(&bodies);
        let service = service_fn(move |request: Request<Body>| {
            let at = seen.borrow().len();
            seen.borrow_mut().push(String::new());
            let seen = Rc::clone(&seen);
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await;
                let body = body
                    .map(|body| body.to_bytes().to_vec())
                    .unwrap_or_default();
                seen.borrow_mut()[at] = String::from_utf8(body).unwrap();
                let (after, status) = answers[at];
                sleep(Duration::from_millis(after)).await;
                match status {
                    0 => Err(ProxyError::new(ErrorCode::UpstreamReset, "reset")),
                    status => Ok(Response::builder()
                        .status(status)
                        .body(Body::Empty)
                        .unwrap()),
                }
            }
        });
        let policy = Rc::new(RetryPolicy {
            hedge: Some(HEDGE),
            max_retries: 0,
            ..RetryPolicy::default()
        });
        let told: Rc<Told> = Rc::default();
        let layer = RetryLayer::new(policy, budget, Rc::default());
        let layer = layer.observed(Rc::clone(&told) as Rc<dyn RetryObserver>);
        let request = Request::builder().method(method).body(Body::from("x"));
        let began = Instant::now();
        let answered = layer.layer(service).oneshot(request.unwrap()).await;
        let bodies = bodies.borrow().clone();
        Played {
            status: answered.map_or(0, |response| response.status().as_u16()),
            took: u64::try_from(began.elapsed().as_millis()).unwrap(),
            bodies,
            told,
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_slow_attempt_goes_on_beside_another_and_the_first_good_answer_counts() {
        // What the endpoints do; status and milliseconds; attempts, and whether the first one's answer counts.
        type Case = (&'static [Answer], u16, u64, usize, Option<bool>);
        let cases: [Case; 8] = [
            (&[(1999, 200)], 200, 1999, 1, None),
            (&[(NEVER, 200), (10, 200)], 200, 2010, 2, Some(false)),
            (&[(3000, 200), (NEVER, 200)], 200, 3000, 2, Some(true)),
            // One that is only slow is waited for when the other one cannot answer.
            (&[(4000, 200), (10, 503)], 200, 4000, 2, Some(true)),
            (&[(4000, 200), (10, 0)], 200, 4000, 2, Some(true)),
            (&[(2500, 503), (1000, 200)], 200, 3000, 2, Some(false)),
            (&[(2500, 503), (1000, 503)], 503, 3000, 2, Some(false)),
            // What the endpoint says for good is an answer.
            (&[(NEVER, 200), (10, 404)], 404, 2010, 2, Some(false)),
        ];
        for (answers, status, took, attempts, first_counts) in cases {
            let played = play(Method::PUT, Arc::default(), answers).await;
            let said = (played.status, played.took);
            assert_eq!(said, (status, took), "{answers:?}");
            assert_eq!(played.bodies, vec!["x"; attempts], "{answers:?}");
            let settled: Vec<bool> = first_counts.into_iter().collect();
            assert_eq!(*played.told.settled.borrow(), settled, "{answers:?}");
            assert_eq!(
                played.told.begun.get() as usize,
                attempts - 1,
                "{answers:?}"
            );
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn what_may_not_be_repeated_is_not_sent_beside_itself() {
        let played = play(Method::POST, Arc::default(), &[(9000, 200), (10, 200)]).await;
        assert_eq!((played.status, played.took), (200, 9000));
        assert_eq!(played.bodies, ["x"]);
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn without_a_budget_a_slow_attempt_stays_alone() {
        let budget: Arc<RetryBudget> = Arc::default();
        // Ten at the start, and ten a second while the attempt is slow.
        let drained = Arc::clone(&budget);
        tokio::task::spawn_local(async move {
            sleep(HEDGE - Duration::from_millis(1)).await;
            while drained.withdraw() {}
        });
        let played = play(Method::PUT, budget, &[(3000, 200), (10, 200)]).await;
        assert_eq!((played.status, played.took), (200, 3000));
        assert_eq!(played.bodies, ["x"]);
        assert_eq!(played.told.exhausted.get(), 1);
    }
}
