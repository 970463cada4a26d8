use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use sidewind_api::v1;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use super::backoff::Backoff;
use super::classify::Attempts;
use super::replay::ReplayBuffer;
use super::*;
use crate::errors::ErrorCode;
use crate::http::{Body, BodyEnd, BodyWatcher};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    Connect,
    Reset,
    Refused,
    TryTimeout(Duration),
    RequestTimeout(Duration),
    After(u32, Box<Failure>),
}

impl RetryError for Failure {
    fn progress(&self) -> Progress {
        match self {
            Failure::Connect => Progress::Unsent,
            Failure::Reset | Failure::TryTimeout(_) => Progress::Sent,
            _ => Progress::Final,
        }
    }

    fn is_down(&self) -> bool {
        *self == Failure::Connect
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Failure::Connect => Some(ErrorCode::ConnectFailed),
            Failure::Reset => Some(ErrorCode::UpstreamReset),
            Failure::TryTimeout(_) => Some(ErrorCode::RequestTimeout),
            _ => None,
        }
    }

    fn try_timeout(limit: Duration) -> Failure {
        Failure::TryTimeout(limit)
    }

    fn request_timeout(limit: Duration) -> Failure {
        Failure::RequestTimeout(limit)
    }

    fn set_attempts(&mut self, attempts: u32) {
        *self = Failure::After(attempts, Box::new(self.clone()));
    }
}

type Step = Result<Response<Body>, Failure>;

fn status(code: u16) -> Step {
    Ok(Response::builder().status(code).body(Body::Empty).unwrap())
}

fn request(method: Method, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri("/")
        .body(body)
        .unwrap()
}

/// Plays `steps`, one for each attempt, and notes the bodies that the attempts sent.
async fn play(policy: RetryPolicy, request: Request<Body>, steps: Vec<Step>) -> (Step, Vec<Bytes>) {
    let steps = Rc::new(RefCell::new(VecDeque::from(steps)));
    let bodies = Rc::new(RefCell::new(Vec::new()));
    let seen = bodies.clone();
    let service = service_fn(move |request: Request<Body>| {
        let step = steps.borrow_mut().pop_front().expect("no more attempts");
        let seen = seen.clone();
        async move {
            if !matches!(step, Err(Failure::Connect)) {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                seen.borrow_mut().push(body);
            }
            step
        }
    });
    let layer = RetryLayer::new(Rc::new(policy), Arc::default(), Rc::default());
    let result = layer.layer(service).oneshot(request).await;
    (result, bodies.take())
}

trait StepExt {
    fn code(&self) -> u16;
    fn attempts(&self) -> u32;
}

impl StepExt for Step {
    fn code(&self) -> u16 {
        self.as_ref().unwrap().status().as_u16()
    }

    fn attempts(&self) -> u32 {
        match self {
            Ok(response) => response
                .extensions()
                .get::<Attempts>()
                .map_or(1, |attempts| attempts.0),
            Err(Failure::After(attempts, _)) => *attempts,
            Err(_) => 1,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_retried_depends_on_method_and_outcome() {
    let get = || Method::GET;
    let post = || Method::POST;
    let undelivered = || {
        Ok(Response::builder()
            .status(503)
            .header("sidewind-error", "workload-unavailable")
            .body(Body::Empty)
            .unwrap())
    };
    let cases: Vec<(Method, Step, u32)> = vec![
        (get(), status(200), 1),
        (get(), status(404), 1),
        (get(), status(500), 1),
        (get(), status(502), 2),
        (get(), status(503), 2),
        (get(), status(504), 2),
        (Method::PUT, status(503), 2),
        (Method::DELETE, status(503), 2),
        (Method::HEAD, status(503), 2),
        (post(), status(503), 1),
        (Method::PATCH, status(503), 1),
        (Method::from_bytes(b"PURGE").unwrap(), status(503), 1),
        (get(), Err(Failure::Connect), 2),
        (post(), Err(Failure::Connect), 2),
        (post(), undelivered(), 2),
        (get(), undelivered(), 2),
        (get(), Err(Failure::Reset), 2),
        (post(), Err(Failure::Reset), 1),
        (get(), Err(Failure::Refused), 1),
    ];
    for (method, first, attempts) in cases {
        let name = format!("{method} {first:?}");
        let steps = vec![first, status(200)];
        let (result, _) = play(RetryPolicy::default(), request(method, Body::Empty), steps).await;
        assert_eq!(result.attempts(), attempts, "{name}");
        if attempts == 2 {
            assert_eq!(result.code(), 200, "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_is_retried_after_what_its_route_names_without_messages_alone() {
    let answer = |status: &str, body: Body| {
        Ok(Response::builder()
            .header("grpc-status", status)
            .body(body)
            .unwrap())
    };
    let named = RetryPolicy {
        grpc_codes: vec![14],
        ..RetryPolicy::default()
    };
    let late = RetryPolicy {
        grpc_codes: vec![4],
        ..RetryPolicy::default()
    };
    let never = RetryPolicy {
        max_retries: 0,
        ..named.clone()
    };
    let timeout = || Err(Failure::TryTimeout(Duration::from_secs(1)));
    let unnamed = RetryPolicy::default();
    for (policy, first, attempts) in [
        (&named, answer("14", Body::Empty), 2),
        (&named, answer("14", Body::from("message")), 1),
        (&named, answer("13", Body::Empty), 1),
        (&named, status(503), 1),
        (&named, Err(Failure::Connect), 2),
        // By the status that the client would get of it.
        (&named, Err(Failure::Reset), 2),
        (&named, timeout(), 1),
        (&late, Err(Failure::Reset), 1),
        (&late, timeout(), 2),
        (&never, Err(Failure::Reset), 1),
        (&unnamed, Err(Failure::Reset), 1),
        (&unnamed, timeout(), 1),
        // The server may have acted on the call before it said so.
        (&unnamed, answer("14", Body::Empty), 1),
        (&unnamed, Err(Failure::Connect), 2),
    ] {
        let name = format!("{first:?}");
        let mut call = request(Method::POST, Body::from("question"));
        call.headers_mut()
            .insert("content-type", "application/grpc+proto".parse().unwrap());
        let (result, bodies) = play(policy.clone(), call, vec![first, status(200)]).await;
        assert_eq!(result.attempts(), attempts, "{name}");
        assert!(bodies.iter().all(|body| body == "question"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_result_is_given_back_when_attempts_are_used_up() {
    let steps = vec![status(503), status(502), status(504)];
    let (result, _) = play(
        RetryPolicy::default(),
        request(Method::GET, Body::Empty),
        steps,
    )
    .await;
    assert_eq!((result.code(), result.attempts()), (504, 3));
    let steps = vec![
        Err(Failure::Connect),
        Err(Failure::Connect),
        Err(Failure::Reset),
    ];
    let (result, _) = play(
        RetryPolicy::default(),
        request(Method::GET, Body::Empty),
        steps,
    )
    .await;
    assert_eq!(
        result.unwrap_err(),
        Failure::After(3, Box::new(Failure::Reset))
    );
}

#[tokio::test(start_paused = true)]
async fn each_attempt_sends_the_whole_body() {
    for body in [
        Body::from("hello"),
        ReplayBuffer::new(Body::from("hello"), 100).attempt(),
    ] {
        let steps = vec![status(503), Err(Failure::Reset), status(200)];
        let (result, bodies) =
            play(RetryPolicy::default(), request(Method::PUT, body), steps).await;
        assert_eq!(result.code(), 200);
        assert_eq!(bodies, ["hello"; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_too_long_to_keep_is_retried_only_when_none_of_it_was_taken() {
    let long = || ReplayBuffer::new(Body::from("x".repeat(1000)), 10).attempt();
    let steps = vec![Err(Failure::Connect), status(200)];
    let (result, bodies) = play(RetryPolicy::default(), request(Method::POST, long()), steps).await;
    assert_eq!((result.code(), bodies[0].len()), (200, 1000));
    let (result, _) = play(
        RetryPolicy::default(),
        request(Method::PUT, long()),
        vec![status(503)],
    )
    .await;
    assert_eq!((result.code(), result.attempts()), (503, 1));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_response_that_is_not_passed_on_is_read_to_its_end() {
    #[derive(Default)]
    struct Complete(Cell<Option<bool>>);
    impl BodyWatcher for Complete {
        fn data(&self, _: usize) {}
        fn end(&self, end: BodyEnd<'_>) {
            self.0.set(Some(matches!(end, BodyEnd::Complete)));
        }
    }
    let complete = Rc::new(Complete::default());
    let failed = status(503).map(|response| {
        let watcher = complete.clone() as Rc<dyn BodyWatcher>;
        response.map(|_| Body::from("down").watched(watcher))
    });
    let steps = vec![failed, status(200)];
    let get = request(Method::GET, Body::Empty);
    let (result, _) = play(RetryPolicy::default(), get, steps).await;
    assert_eq!((result.code(), result.attempts()), (200, 2));
    tokio::task::yield_now().await;
    assert_eq!(complete.0.get(), Some(true));
}

#[tokio::test(start_paused = true)]
async fn without_retries_only_what_was_not_sent_is_repeated_and_once() {
    let policy = || RetryPolicy {
        max_retries: 0,
        ..RetryPolicy::default()
    };
    let get = || request(Method::GET, Body::Empty);
    let (result, _) = play(policy(), get(), vec![status(503)]).await;
    assert_eq!((result.code(), result.attempts()), (503, 1));
    let (result, _) = play(policy(), get(), vec![Err(Failure::Connect), status(200)]).await;
    assert_eq!((result.code(), result.attempts()), (200, 2));
    let steps = vec![Err(Failure::Connect), Err(Failure::Connect)];
    let (result, _) = play(policy(), get(), steps).await;
    assert_eq!(result.attempts(), 2);
}

#[tokio::test(start_paused = true)]
async fn waits_are_bounded_and_an_unsent_request_goes_elsewhere_at_once() {
    let policy = RetryPolicy {
        backoff: Backoff {
            base: Duration::from_secs(10),
            cap: Duration::from_secs(10),
        },
        ..RetryPolicy::default()
    };
    let began = Instant::now();
    let steps = vec![Err(Failure::Connect), status(200)];
    play(policy.clone(), request(Method::POST, Body::Empty), steps)
        .await
        .0
        .unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    let steps = vec![status(503), status(503), status(200)];
    play(policy, request(Method::GET, Body::Empty), steps)
        .await
        .0
        .unwrap();
    let waited = began.elapsed();
    assert!(
        waited > Duration::ZERO && waited <= Duration::from_secs(20),
        "{waited:?}"
    );
}

/// A service whose attempts take this long each.
async fn time(policy: RetryPolicy, each: Duration) -> (Step, u32, Duration) {
    let attempts = Rc::new(Cell::new(0));
    let count = attempts.clone();
    let service = service_fn(move |_: Request<Body>| {
        count.set(count.get() + 1);
        async move {
            sleep(each).await;
            status(200)
        }
    });
    let began = Instant::now();
    let layer = RetryLayer::new(Rc::new(policy), Arc::default(), Rc::default());
    let result = layer
        .layer(service)
        .oneshot(request(Method::GET, Body::Empty))
        .await;
    (result, attempts.get(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_given_up_and_repeated() {
    let limit = Duration::from_secs(1);
    let policy = RetryPolicy {
        try_timeout: Some(limit),
        ..RetryPolicy::default()
    };
    let (result, attempts, took) = time(policy, Duration::from_secs(5)).await;
    assert_eq!(
        result.unwrap_err(),
        Failure::After(3, Box::new(Failure::TryTimeout(limit)))
    );
    assert_eq!(attempts, 3);
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(4),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_request_timeout_ends_all_attempts() {
    let limit = Duration::from_millis(2500);
    let policy = RetryPolicy {
        try_timeout: Some(Duration::from_secs(1)),
        request_timeout: Some(limit),
        ..RetryPolicy::default()
    };
    let (result, _, took) = time(policy.clone(), Duration::from_secs(5)).await;
    assert_eq!(
        result.unwrap_err(),
        Failure::After(3, Box::new(Failure::RequestTimeout(limit)))
    );
    assert_eq!(took, limit);
    let (result, attempts, _) = time(policy, Duration::from_millis(900)).await;
    assert_eq!((result.code(), attempts), (200, 1));
}

#[derive(Default)]
struct Count {
    retried: Cell<u32>,
    exhausted: Cell<u32>,
}

impl RetryObserver for Count {
    fn retried(&self, failed: Failed) {
        assert_eq!(
            failed,
            Failed::Response(StatusCode::SERVICE_UNAVAILABLE, None)
        );
        self.retried.set(self.retried.get() + 1);
    }

    fn budget_exhausted(&self, _: Failed) {
        self.exhausted.set(self.exhausted.get() + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_down_gets_a_fifth_more_requests_and_not_three_times_as_many() {
    let sent = Rc::new(Cell::new(0));
    let count = sent.clone();
    let service = service_fn(move |_: Request<Body>| {
        count.set(count.get() + 1);
        async { status(503) }
    });
    let observer = Rc::new(Count::default());
    let policy = RetryPolicy {
        backoff: Backoff {
            base: Duration::ZERO,
            cap: Duration::ZERO,
        },
        ..RetryPolicy::default()
    };
    let mut service = RetryLayer::new(Rc::new(policy), Arc::default(), Rc::default())
        .observed(observer.clone())
        .layer(service);
    for _ in 0..1000 {
        let ready: &mut _ = ServiceExt::<Request<Body>>::ready(&mut service)
            .await
            .unwrap();
        ready.call(request(Method::GET, Body::Empty)).await.unwrap();
    }
    assert_eq!(
        sent.get(),
        1000 + 200 + 10,
        "ten were in the budget to begin with"
    );
    assert_eq!(observer.retried.get(), 210);
    assert!(observer.exhausted.get() > 700);
}

fn with_header(code: u16, name: &'static str, value: &str) -> Step {
    status(code).map(|mut response| {
        response.headers_mut().insert(name, value.parse().unwrap());
        response
    })
}

#[tokio::test(start_paused = true)]
async fn a_method_that_the_route_names_is_retried_like_an_idempotent_one() {
    let policy = RetryPolicy {
        methods: vec![Method::POST],
        ..RetryPolicy::default()
    };
    for first in [status(503), Err(Failure::Reset)] {
        let post = request(Method::POST, Body::from("hello"));
        let (result, bodies) = play(policy.clone(), post, vec![first, status(200)]).await;
        assert_eq!((result.code(), result.attempts()), (200, 2));
        assert_eq!(bodies, ["hello"; 2]);
    }
    let patch = request(Method::PATCH, Body::Empty);
    let (result, _) = play(policy, patch, vec![status(503)]).await;
    assert_eq!(result.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_grpc_statuses_of_the_route_are_retried_and_a_server_may_forbid_it() {
    let policy = RetryPolicy {
        grpc_codes: vec![8],
        ..RetryPolicy::default()
    };
    for (code, pushback, attempts) in [("8", None, 2), ("14", None, 1), ("8", Some("-1"), 1)] {
        let mut call = request(Method::POST, Body::from("question"));
        let grpc = "application/grpc".parse().unwrap();
        call.headers_mut().insert("content-type", grpc);
        let first = with_header(200, "grpc-status", code).map(|mut response| {
            if let Some(pushback) = pushback {
                let value = pushback.parse().unwrap();
                response
                    .headers_mut()
                    .insert("grpc-retry-pushback-ms", value);
            }
            response
        });
        let (result, _) = play(policy.clone(), call, vec![first, status(200)]).await;
        assert_eq!(result.attempts(), attempts, "{code} {pushback:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_waited_for_when_it_ends_before_the_deadline() {
    let seconds = Duration::from_secs;
    for (after, timeout, attempts) in [
        ("3", Some(seconds(10)), 2),
        ("30", Some(seconds(10)), 1),
        // Nobody knows how long the client waits.
        ("3", None, 2),
        ("30", None, 1),
    ] {
        let policy = RetryPolicy {
            request_timeout: timeout,
            ..RetryPolicy::default()
        };
        let began = Instant::now();
        let steps = vec![with_header(503, "retry-after", after), status(200)];
        let (result, _) = play(policy, request(Method::GET, Body::Empty), steps).await;
        assert_eq!(result.attempts(), attempts, "{after} {timeout:?}");
        let expected = if attempts == 2 {
            seconds(3)
        } else {
            Duration::ZERO
        };
        assert_eq!(began.elapsed(), expected, "{after} {timeout:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_clients_own_deadline_ends_the_request_before_it_does() {
    let service = service_fn(|_: Request<Body>| async {
        sleep(Duration::from_secs(60)).await;
        status(200)
    });
    let layer = RetryLayer::new(Rc::default(), Arc::default(), Rc::default());
    let mut call = request(Method::POST, Body::Empty);
    call.headers_mut()
        .insert("grpc-timeout", "2S".parse().unwrap());
    let began = Instant::now();
    let result: Step = layer.layer(service).oneshot(call).await;
    let limit = Duration::from_millis(1900);
    assert_eq!(result.unwrap_err(), Failure::RequestTimeout(limit));
    assert_eq!(began.elapsed(), limit);
}

/// A service that is down until `up`, and how often it was tried.
fn outage(
    up: Instant,
) -> (
    impl Service<Request<Body>, Response = Response<Body>, Error = Failure, Future: 'static> + Clone,
    Rc<Cell<u32>>,
) {
    let tries = Rc::new(Cell::new(0));
    let count = tries.clone();
    let service = service_fn(move |_: Request<Body>| {
        count.set(count.get() + 1);
        std::future::ready(match Instant::now() < up {
            true => Err(Failure::Connect),
            false => status(200),
        })
    });
    (service, tries)
}

fn holding(timeout: Duration, requests: u32) -> Rc<RetryPolicy> {
    Rc::new(RetryPolicy {
        hold: Some(hold::HoldLimits {
            timeout,
            requests,
            bytes: 1000,
            ends: None,
        }),
        ..RetryPolicy::default()
    })
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn requests_wait_for_an_endpoint_and_one_of_them_tries() {
    let (service, tries) = outage(Instant::now() + Duration::from_secs(2));
    let queue: Rc<HoldQueue> = Rc::default();
    let layer = RetryLayer::new(
        holding(Duration::from_secs(10), 50),
        Arc::default(),
        Rc::clone(&queue),
    );
    let began = Instant::now();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let post = request(Method::POST, Body::from("x"));
            tokio::task::spawn_local(layer.layer(service.clone()).oneshot(post))
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(queue.len(), 0);
    // Each of them when it came, and within its budget of retries; in the end each again; and in between one at a time.
    assert!(tries.get() < 50 + 10 + 50 + 40, "{}", tries.get());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_outage_that_was_waited_through_uses_up_no_retry_of_what_comes_after_it() {
    let down = || Err(Failure::Connect);
    for (what, steps, answer) in [
        (
            "a server that warms up",
            vec![
                down(),
                down(),
                down(),
                down(),
                down(),
                status(503),
                status(503),
            ],
            200,
        ),
        (
            "one that goes on failing",
            vec![down(), down(), down(), down(), status(503), status(503)],
            503,
        ),
        (
            "one that comes and goes",
            vec![down(), down(), down(), status(503), down(), down()],
            503,
        ),
    ] {
        let steps: Vec<Step> = steps.into_iter().chain([status(answer)]).collect();
        let attempts = u32::try_from(steps.len()).unwrap();
        let policy = (*holding(Duration::from_secs(10), 50)).clone();
        let get = request(Method::GET, Body::Empty);
        let (result, _) = play(policy, get, steps).await;
        assert_eq!(
            (result.code(), result.attempts()),
            (answer, attempts),
            "{what}"
        );
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_waits_is_bounded_in_number_bytes_and_time() {
    let (service, _) = outage(Instant::now() + Duration::from_secs(60));
    let layer = RetryLayer::new(
        holding(Duration::from_secs(10), 1),
        Arc::default(),
        Rc::default(),
    );
    let call = |body: Body| {
        layer
            .layer(service.clone())
            .oneshot(request(Method::GET, body))
    };
    let began = Instant::now();
    let large = call(Body::from("x".repeat(1001))).await;
    assert!(matches!(large.unwrap_err(), Failure::After(_, error) if *error == Failure::Connect));
    assert!(began.elapsed() < Duration::from_secs(1));
    let first = tokio::task::spawn_local(call(Body::Empty));
    sleep(Duration::from_secs(1)).await;
    assert!(call(Body::Empty).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(first.await.unwrap().is_err());
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(10) && took < Duration::from_secs(13),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_broke_off_behind_the_other_proxy_is_like_one_that_did_here() {
    let policy = || RetryPolicy {
        max_retries: 0,
        ..RetryPolicy::default()
    };
    for (method, attempts) in [(Method::GET, 2), (Method::POST, 1)] {
        let reset = with_header(502, "sidewind-error", "upstream-reset");
        let steps = vec![reset, status(200)];
        let (result, _) = play(policy(), request(method, Body::Empty), steps).await;
        assert_eq!(result.attempts(), attempts);
    }
}

/// As for a client that gives up after so long.
fn through_outages(patience: Duration) -> Rc<RetryPolicy> {
    Rc::new(RetryPolicy {
        outage: true,
        methods: vec![Method::POST],
        hold: Some(hold::HoldLimits {
            timeout: Duration::from_secs(60),
            requests: 5000,
            bytes: 1 << 20,
            ends: Some(Instant::now() + patience),
        }),
        ..RetryPolicy::default()
    })
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_outage_of_any_kind_is_waited_through_with_one_attempt_at_a_time_within_the_budget() {
    let down: [fn() -> Step; 4] = [
        || status(503),
        || Err(Failure::Connect),
        || Err(Failure::Reset),
        || with_header(503, "retry-after", "30"),
    ];
    for step in down {
        let name = format!("{:?}", step());
        let (tries, up) = (
            Rc::new(Cell::new(0)),
            Instant::now() + Duration::from_secs(4),
        );
        let count = Rc::clone(&tries);
        let service = service_fn(move |_: Request<Body>| {
            count.set(count.get() + 1);
            std::future::ready(match Instant::now() < up {
                true => step(),
                false => status(200),
            })
        });
        let policy = through_outages(Duration::from_millis(4500));
        let layer = RetryLayer::new(policy, Arc::default(), Rc::default());
        let calls: Vec<_> = (0..1000)
            .map(|_| {
                let post = request(Method::POST, Body::from("x"));
                tokio::task::spawn_local(layer.layer(service.clone()).oneshot(post))
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status(), 200, "{name}");
        }
        // Each when it came, and again when the service was up. The budget: ten retries at the start, a fifth of the
        // requests and ten a second. Between them one at a time.
        let budget = 10 + 200 + 40;
        assert!(tries.get() <= 2000 + budget + 60, "{name}: {}", tries.get());
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_outage_longer_than_the_clients_patience_ends_in_the_last_failure_just_before_that() {
    let (service, tries) = outage(Instant::now() + Duration::from_secs(60));
    let policy = through_outages(Duration::from_millis(4500));
    let layer = RetryLayer::new(policy, Arc::default(), Rc::default());
    let began = Instant::now();
    let call = layer
        .layer(service)
        .oneshot(request(Method::GET, Body::Empty));
    assert!(
        matches!(call.await.unwrap_err(), Failure::After(_, error) if *error == Failure::Connect)
    );
    let took = began.elapsed();
    let expected = Duration::from_millis(4250)..=Duration::from_millis(4500);
    assert!(expected.contains(&took), "{took:?}");
    assert!(tries.get() > 4, "{}", tries.get());
}

#[tokio::test(start_paused = true)]
async fn what_the_server_would_do_twice_is_repeated_only_where_it_surely_did_nothing() {
    let policy = || RetryPolicy {
        methods: Vec::new(),
        ..(*through_outages(Duration::from_secs(1))).clone()
    };
    for (first, attempts) in [
        (status(503), 1),
        (Err(Failure::Reset), 1),
        (Err(Failure::Connect), 2),
        (
            with_header(503, "sidewind-error", "workload-unavailable"),
            2,
        ),
        (with_header(503, "sidewind-error", "policy-not-ready"), 2),
        (with_header(502, "sidewind-error", "upstream-reset"), 1),
    ] {
        let name = format!("{first:?}");
        let steps = vec![first, status(200)];
        let (result, _) = play(policy(), request(Method::POST, Body::Empty), steps).await;
        assert_eq!(result.attempts(), attempts, "{name}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_server_that_wants_to_be_asked_again_in_a_distant_age_is_not() {
    for timeout in [None, Some(Duration::from_secs(10))] {
        for after in ["18446744073709551615", "9223372036854775808", "99999999999"] {
            let policy = RetryPolicy {
                request_timeout: timeout,
                ..RetryPolicy::default()
            };
            let busy = Response::builder().status(503).header("retry-after", after);
            let steps = vec![Ok(busy.body(Body::Empty).unwrap())];
            let (answer, _) = play(policy, request(Method::GET, Body::Empty), steps).await;
            assert_eq!((answer.code(), answer.attempts()), (503, 1), "{after}");
        }
    }
}

/// So many endpoints are left, each of which refuses.
#[derive(Debug)]
struct Left(Cell<u32>);

impl Others for Left {
    fn are_left(&self) -> bool {
        self.0.get() > 0
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn what_was_not_sent_goes_to_each_endpoint_whatever_is_left_of_the_budget() {
    // Beside the first endpoint; of these the last answers, if it is asked.
    for (others, expected) in [(1, Some(2)), (5, Some(6)), (7, Some(8)), (8, None)] {
        let left = Rc::new(Left(Cell::new(others)));
        let (tried, calls) = (Rc::clone(&left), Rc::new(Cell::new(0)));
        let service = service_fn(move |_: Request<Body>| {
            let call = calls.replace(calls.get() + 1);
            tried.0.set(others.saturating_sub(call));
            async move {
                match call == others {
                    true => status(200),
                    false => Err(Failure::Connect),
                }
            }
        });
        let budget: Arc<RetryBudget> = Arc::default();
        while budget.withdraw() {}
        let policy = Rc::new(RetryPolicy {
            max_retries: 0,
            ..RetryPolicy::default()
        });
        let layer = RetryLayer::new(policy, budget, Rc::default()).among(left);
        let began = Instant::now();
        let answer = layer
            .layer(service)
            .oneshot(request(Method::POST, Body::from("x")));
        let answer = answer.await;
        match expected {
            Some(attempts) => assert_eq!((answer.code(), answer.attempts()), (200, attempts)),
            None => assert_eq!(answer.attempts(), 8),
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_backoff_that_a_route_names_is_waited_at_least_after_an_answer() {
    let worker = crate::worker::testing::worker();
    let config = &worker.config.traffic;
    let named = v1::RoutePolicy {
        retry_backoff_ms: Some(100),
        retry_codes: vec![503],
        ..v1::RoutePolicy::default()
    };
    for (route, least) in [(Some(&named), 100), (None, 0)] {
        let mut waits = Vec::new();
        for _ in 0..50 {
            let policy = RetryPolicy::new(route, config);
            let began = Instant::now();
            let steps = vec![status(503), status(200)];
            let (answer, _) = play(policy, request(Method::GET, Body::Empty), steps).await;
            assert_eq!(answer.attempts(), 2);
            waits.push(began.elapsed());
        }
        assert!(
            waits
                .iter()
                .all(|wait| *wait >= Duration::from_millis(least)),
            "{waits:?}"
        );
        assert!(
            waits
                .iter()
                .all(|wait| *wait <= Duration::from_millis(2 * least.max(25) + 1)),
            "{waits:?}"
        );
        if least == 0 {
            assert!(
                waits.iter().any(|wait| *wait < Duration::from_millis(15)),
                "{waits:?}"
            );
        }
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn each_further_attempt_is_told_what_is_left_of_the_clients_time() {
    let told = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&told);
    let service = service_fn(move |request: Request<Body>| {
        let timeout = request.headers()["grpc-timeout"]
            .to_str()
            .unwrap()
            .to_owned();
        seen.borrow_mut().push(timeout);
        async {
            sleep(Duration::from_secs(3)).await;
            Err::<Response<Body>, _>(Failure::Reset)
        }
    });
    let policy = Rc::new(RetryPolicy {
        backoff: Backoff {
            base: Duration::ZERO,
            cap: Duration::ZERO,
        },
        ..RetryPolicy::default()
    });
    let mut call = request(Method::GET, Body::Empty);
    call.headers_mut()
        .insert("grpc-timeout", "10S".parse().unwrap());
    let layer = RetryLayer::new(policy, Arc::default(), Rc::default());
    layer.layer(service).oneshot(call).await.unwrap_err();
    assert_eq!(*told.borrow(), ["10S", "7000m", "4000m"]);
}
