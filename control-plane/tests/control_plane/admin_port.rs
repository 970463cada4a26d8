//! What strangers can cost on the port of probes and metrics.

use crate::support::{ControlPlane, http_get, within};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn connect(admin: SocketAddr) -> TcpStream {
    TcpStream::connect(admin).await.unwrap()
}

/// Sends, closes its side where it is asked to, and gives what comes back.
async fn exchange(admin: SocketAddr, sent: &[u8], close: bool) -> String {
    let mut stream = connect(admin).await;
    // The answer may come before the end of what is sent.
    let _ = stream.write_all(sent).await;
    if close {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn counted(control_plane: &ControlPlane, reason: &str, times: usize) {
    let line = format!(
        "sidewind_admin_connections_refused_total{{listener=\"http\",reason=\"{reason}\"}} {times}"
    );
    control_plane.metric(&line).await;
}

/// A request whose header has exactly so many bytes.
fn request_of(bytes: usize) -> Vec<u8> {
    let (begin, end) = ("GET /live HTTP/1.1\r\nhost: x\r\nx: ", "\r\n\r\n");
    let filler = "y".repeat(bytes - begin.len() - end.len());
    format!("{begin}{filler}{end}").into_bytes()
}

#[tokio::test]
async fn garbage_and_half_a_request_are_counted_by_their_cause() {
    let control_plane = ControlPlane::start().await;
    let admin = control_plane.admin;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"[..],
        b"hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        exchange(admin, garbage, true).await;
    }
    counted(&control_plane, "not-http", 3).await;
    exchange(admin, b"GET /ready HTTP/1.1\r\nho", true).await;
    counted(&control_plane, "incomplete", 1).await;
    assert_eq!(control_plane.get("/live").await.1, "live\n");
}

#[tokio::test]
async fn a_header_at_the_limit_is_answered_and_one_past_it_is_refused() {
    let control_plane = ControlPlane::start().await;
    let admin = control_plane.admin;
    let limit = 16 * 1024;
    let answer = exchange(admin, &request_of(limit), false).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = exchange(admin, &request_of(limit + 1), false).await;
    // A byte that was left unread may turn the close into a reset, which overtakes the answer.
    let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 431");
    assert!(refused, "{answer}");
    let fields = format!("GET /live HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    let answer = exchange(admin, fields.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    counted(&control_plane, "header-too-large", 2).await;
}

#[tokio::test]
async fn a_client_that_stays_silent_is_closed_and_counted() {
    let control_plane = ControlPlane::start().await;
    for begin in [&b""[..], b"GET /live HT"] {
        assert_eq!(exchange(control_plane.admin, begin, false).await, "");
    }
    counted(&control_plane, "timeout", 2).await;
}

#[tokio::test]
async fn idle_strangers_cannot_keep_probes_out() {
    let control_plane = ControlPlane::start().await;
    let admin = control_plane.admin;
    let mut idle = Vec::new();
    for _ in 0..128 {
        idle.push(connect(admin).await);
    }
    for _ in 0..20 {
        assert_eq!(http_get(admin, "/ready").await.0, "HTTP/1.1 200 OK");
    }
    // The oldest made room.
    let gone = within(idle[0].read(&mut [0; 1])).await;
    assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
    let metrics = control_plane.get("/metrics").await.1;
    let line = "sidewind_admin_connections_refused_total{listener=\"http\",reason=\"too-many\"} ";
    let counted = metrics.lines().find_map(|known| known.strip_prefix(line));
    assert!(counted.unwrap().parse::<u32>().unwrap() >= 1, "{metrics}");
}

#[tokio::test]
async fn a_connection_answers_one_request_and_is_closed() {
    let control_plane = ControlPlane::start().await;
    let twice = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\nGET /live HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = exchange(control_plane.admin, twice, false).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}
