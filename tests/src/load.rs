//! A steady stream of HTTP/1.1 requests over connections that are kept alive, as a plain client makes it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::place::Place;

/// What is asked of the generator.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where it connects.
    pub address: SocketAddr,
    /// The `host` header; the address if empty.
    pub host: String,
    /// The path.
    pub path: String,
    /// How many connections.
    pub connections: u32,
    /// Requests per second over all connections; 0 sends the next one as soon as one is answered.
    pub rate: u32,
    /// When it ends by itself, if it is not stopped before.
    pub duration: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
}

impl Load {
    /// 200 requests a second over 8 connections.
    pub fn new(address: SocketAddr, path: &str) -> Self {
        Self {
            address,
            host: String::new(),
            path: path.into(),
            connections: 8,
            rate: 200,
            duration: Duration::from_secs(600),
            request_timeout: Duration::from_secs(10),
        }
    }

    /// Sets the rate.
    #[must_use]
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = per_second;
        self
    }

    /// Sets the number of connections.
    #[must_use]
    pub fn connections(mut self, connections: u32) -> Self {
        self.connections = connections;
        self
    }

    /// Sets when it ends.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Sets the `host` header.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// Starts it in `place`.
    pub fn start(self, place: &Place) -> RunningLoad {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = place.spawn(move || run(self, &of_thread));
        RunningLoad { shared, thread }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

/// A generator at work.
#[derive(Debug)]
pub struct RunningLoad {
    shared: Arc<Shared>,
    thread: JoinHandle<LoadReport>,
}

impl RunningLoad {
    /// Requests that succeeded so far.
    pub fn succeeded(&self) -> u64 {
        self.shared.succeeded.load(Ordering::Relaxed)
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Ends it: requests that are under way are finished, none is begun.
    pub fn stop(self) -> LoadReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits for its end.
    pub fn finish(self) -> LoadReport {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Requests that were sent, or could not be.
    pub requests: u64,
    /// What went wrong, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Times to the end of each good response, ascending.
    pub latencies: Vec<Duration>,
    /// How long it all took.
    pub elapsed: Duration,
}

impl LoadReport {
    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The latency that this fraction of the good responses did not exceed.
    pub fn quantile(&self, fraction: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies
            .get((last as f64 * fraction).round() as usize)
            .copied()
            .unwrap_or_default()
    }
}

fn run(load: Load, shared: &Shared) -> LoadReport {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let load = Rc::new(load);
    let report = Rc::new(RefCell::new(LoadReport::default()));
    let started = Instant::now();
    let local = LocalSet::new();
    let mut report = local.block_on(&runtime, async {
        let clients = (0..load.connections).map(|number| {
            let client = Client {
                load: Rc::clone(&load),
                report: Rc::clone(&report),
                sender: None,
            };
            client.work(number, started, shared)
        });
        futures_util::future::join_all(clients).await;
        report.take()
    });
    report.latencies.sort_unstable();
    report.elapsed = started.elapsed();
    report
}

/// One connection, made anew when it has ended.
struct Client {
    load: Rc<Load>,
    report: Rc<RefCell<LoadReport>>,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    async fn work(mut self, number: u32, started: Instant, shared: &Shared) {
        let interval = match self.load.rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(self.load.connections.into()) / rate,
        };
        let mut due = started + interval * number / self.load.connections;
        while !shared.stop.load(Ordering::Relaxed)
            && due.duration_since(started) < self.load.duration
        {
            if started.elapsed() >= self.load.duration {
                break;
            }
            sleep_until(due).await;
            due += interval;
            let begun = Instant::now();
            let outcome = timeout(self.load.request_timeout, self.request()).await;
            let outcome = outcome.unwrap_or_else(|_| Err("no response in time".into()));
            let mut report = self.report.borrow_mut();
            report.requests += 1;
            match outcome {
                Ok(()) => {
                    report.latencies.push(begun.elapsed());
                    shared.succeeded.fetch_add(1, Ordering::Relaxed);
                }
                Err(cause) => {
                    self.sender = None;
                    *report.failures.entry(cause).or_default() += 1;
                    shared.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    async fn request(&mut self) -> Result<(), String> {
        // A connection that the server has closed between two requests is not a failure: there is no request on it.
        let reusable = match self.sender.as_mut() {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !reusable {
            self.sender = Some(self.connect().await?);
        }
        let Some(sender) = self.sender.as_mut() else {
            return Err("not connected".into());
        };
        let host = if self.load.host.is_empty() {
            self.load.address.to_string()
        } else {
            self.load.host.clone()
        };
        let request = hyper::Request::get(&self.load.path)
            .header("host", host)
            .body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| chain(&error))?;
        let (head, body) = response.into_parts();
        body.collect()
            .await
            .map_err(|error| format!("body: {}", chain(&error)))?;
        if head.status.is_success() {
            return Ok(());
        }
        let code = head
            .headers
            .get("sidewind-error")
            .and_then(|code| code.to_str().ok());
        Err(format!(
            "{} {}",
            head.status.as_u16(),
            code.unwrap_or("of the workload")
        ))
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream = TcpStream::connect(self.load.address)
            .await
            .map_err(|error| format!("connect: {error}"))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
