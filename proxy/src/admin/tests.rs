use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::telemetry::metrics::Format;

/// An admin port's insides, and what keeps its log filter alive.
pub(super) struct TestAdmin {
    pub(super) admin: Arc<Admin>,
    shutdowns: Arc<AtomicUsize>,
    _filter: Box<dyn std::any::Any>,
}

impl TestAdmin {
    pub(super) fn shutdowns(&self) -> usize {
        self.shutdowns.load(Relaxed)
    }
}

pub(super) fn test_admin() -> TestAdmin {
    let (logs, filter) = LogHandle::detached("info");
    let shutdowns = Arc::<AtomicUsize>::default();
    let called = Arc::clone(&shutdowns);
    let admin = Admin {
        readiness: Readiness::default(),
        metrics: Arc::new(Metrics::new()),
        logs,
        shutdown: Box::new(move || {
            called.fetch_add(1, Relaxed);
        }),
        config: Box::new(|| serde_json::json!({ "workers": 1 })),
        endpoints: Box::new(|| serde_json::json!({ "services": [] })),
        tasks: Box::new(|| serde_json::json!({ "tasks": [] })),
    };
    TestAdmin {
        admin: Arc::new(admin),
        shutdowns,
        _filter: Box::new(filter),
    }
}

async fn serving(test: &TestAdmin) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::clone(&test.admin)));
    address
}

/// Sends bytes and reads until the server closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// How many connections were closed for that reason.
fn refusals(test: &TestAdmin, reason: AdminRefusal) -> u64 {
    let page = test.admin.metrics.encode(Format::PrometheusText);
    let series = format!(
        "sidewind_admin_refusals_total{{reason=\"{}\"}} ",
        reason.as_str()
    );
    let count = page.lines().find_map(|line| line.strip_prefix(&*series));
    count.map_or(0, |count| count.parse().unwrap())
}

const LIVE: &[u8] = b"GET /live HTTP/1.1\r\nhost: pod\r\n\r\n";

#[tokio::test]
async fn a_request_over_a_socket_is_answered_and_the_connection_closed() {
    let test = test_admin();
    let address = serving(&test).await;
    let answer = exchange(address, LIVE).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nlive\n"), "{answer}");
    let head = exchange(address, b"HEAD /live HTTP/1.1\r\nhost: pod\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn garbage_and_oversized_headers_are_refused() {
    let test = test_admin();
    let address = serving(&test).await;
    let answer = exchange(address, b"\x16\x03\x01 nonsense\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let field = format!("x: {}\r\n", "y".repeat(64 * 1024));
    let long = format!("GET /live HTTP/1.1\r\n{field}\r\n");
    let answer = exchange(address, long.as_bytes()).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    let many = format!(
        "GET /live HTTP/1.1\r\n{}\r\n",
        "a: b\r\n".repeat(MAX_HEADERS + 1)
    );
    let answer = exchange(address, many.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(refusals(&test, AdminRefusal::Garbage), 1);
    assert_eq!(refusals(&test, AdminRefusal::HeaderTooLarge), 2);
    assert!(exchange(address, LIVE).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn clients_that_do_nothing_do_not_keep_probes_out() {
    let test = test_admin();
    let address = serving(&test).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /live HTTP/1.1\r\n").await.unwrap();
        silent.push(stream);
    }
    assert!(exchange(address, LIVE).await.starts_with("HTTP/1.1 200"));
    let mut byte = [0];
    let oldest = silent[0].read(&mut byte).await;
    assert!(
        matches!(oldest, Ok(0) | Err(_)),
        "the oldest was ended: {oldest:?}"
    );
    assert_eq!(refusals(&test, AdminRefusal::Displaced), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_cut_off() {
    let test = test_admin();
    let address = serving(&test).await;
    let started = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"PUT /log-level HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        .await
        .unwrap();
    stream
        .write_all(b"content-length: 5\r\n\r\nde")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "{answer:?}");
    assert!(started.elapsed() <= CONNECTION_TIMEOUT + Duration::from_secs(1));
    assert_eq!(test.admin.logs.get(), "info");
    assert_eq!(refusals(&test, AdminRefusal::Slow), 1);
}

#[tokio::test(start_paused = true)]
async fn clients_that_bring_no_whole_request_are_counted_by_what_they_brought() {
    let test = test_admin();
    let address = serving(&test).await;
    let silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"GET /live HTTP/1.1\r\nhost: ")
        .await
        .unwrap();
    for mut stream in [silent, half] {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(refusals(&test, AdminRefusal::Silent), 1);
    assert_eq!(refusals(&test, AdminRefusal::Incomplete), 1);
    let mut broken_off = TcpStream::connect(address).await.unwrap();
    broken_off.write_all(b"GET /live HT").await.unwrap();
    broken_off.shutdown().await.unwrap();
    let _ = broken_off.read_to_end(&mut Vec::new()).await;
    assert_eq!(refusals(&test, AdminRefusal::Incomplete), 2);
    // Who only looks whether the port is open does nothing wrong.
    let mut unused = TcpStream::connect(address).await.unwrap();
    unused.shutdown().await.unwrap();
    let _ = unused.read_to_end(&mut Vec::new()).await;
    assert_eq!(refusals(&test, AdminRefusal::Silent), 1);
    assert_eq!(refusals(&test, AdminRefusal::Incomplete), 2);
}
