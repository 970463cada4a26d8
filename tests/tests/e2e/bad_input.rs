//! Whatever strangers send costs one bounded connection, a metric, and at most a line a minute.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use sidewind_tests::lan::Host;
use sidewind_tests::place::Place;
use sidewind_tests::wait::{eventually, within};

use crate::support::{API, Pair};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Connects and sends; the connection stays open.
fn send(place: &Place, address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = place.connect(address, TIMEOUT).expect("the port is open");
    // The other side may close while it is being sent to.
    let _ = stream.write_all(bytes);
    stream
}

/// Everything until the other side closes, or none if it does not within the timeout.
fn read_to_close(mut stream: TcpStream) -> Option<Vec<u8>> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => Some(received),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(received),
    }
}

/// The same bytes each time, of no protocol.
fn garbage(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8 | 0x80)
        .collect()
}

struct Story {
    pair: Pair,
    outside: Host,
}

impl Story {
    fn begin() -> Self {
        let mut pair = Pair::start();
        let outside = pair.mesh.outsider("outside");
        assert_eq!(pair.ask("/orders", &[]).status, 200);
        Self { pair, outside }
    }

    /// The listeners of the API's sidecar, as an outsider reaches them: plaintext (redirected), mesh, admin.
    fn ports(&self) -> [SocketAddr; 4] {
        [8080, 15006, 15008, 15020].map(|port| self.pair.api.at(port))
    }

    /// Does something, and checks that the sidecar is as before: serving, and no larger.
    fn unharmed_by(&mut self, what: &str, abuse: impl FnOnce(&Self)) {
        let memory = self.pair.api.sidecar.process().resident_bytes();
        let files = self.pair.api.sidecar.process().open_files();
        let lines = self.pair.api.sidecar.log().lines().count();
        abuse(self);
        assert_eq!(self.pair.ask("/orders", &[]).status, 200, "after {what}");
        assert!(self.pair.api.sidecar.is_ready(), "after {what}");
        let process = self.pair.api.sidecar.process();
        let back = within(Duration::from_secs(25), || {
            (process.open_files() <= files + 8).then_some(())
        });
        assert!(
            back.is_some(),
            "{} files are open after {what}, {files} before",
            process.open_files()
        );
        let grown = process.resident_bytes().saturating_sub(memory) >> 20;
        assert!(grown < 32, "{grown} MiB more after {what}");
        let said = self.pair.api.sidecar.log().lines().count() - lines;
        assert!(
            said <= 12,
            "{said} lines of log after {what}:\n{}",
            self.pair.api.sidecar.log()
        );
    }
}

#[test]
fn garbage_on_any_port_is_answered_or_closed() {
    let mut story = Story::begin();
    story.unharmed_by("garbage", |story| {
        for port in story.ports() {
            for length in [1, 24, 4096, 100_000] {
                for _ in 0..5 {
                    let stream = send(&story.outside.place, port, &garbage(length));
                    let _ = stream.shutdown(Shutdown::Write);
                    assert!(
                        read_to_close(stream).is_some(),
                        "{length} bytes of garbage keep {port} open"
                    );
                }
            }
        }
    });
    let labels = [("side", "server"), ("result", "error")];
    assert!(
        story
            .pair
            .api
            .sidecar
            .metrics()
            .sum("sidewind_tls_handshakes_total", &labels)
            >= 20.0
    );
}

#[test]
fn half_a_request_is_given_up_after_a_while() {
    let mut story = Story::begin();
    story.unharmed_by("half requests", |story| {
        let half = b"GET /orders HTTP/1.1\r\nhost: orders-api.data\r\nx-half: ";
        let mut streams = Vec::new();
        for port in [8080, 15020] {
            streams.extend((0..10).map(|_| {
                (
                    port,
                    send(&story.outside.place, story.pair.api.at(port), half),
                )
            }));
        }
        // The task's own sidecar likewise, by the outbound port.
        streams.extend((0..10).map(|_| {
            (
                15001,
                send(&story.pair.task.place, story.pair.api.at(8080), half),
            )
        }));
        for (port, stream) in streams {
            let answer =
                read_to_close(stream).unwrap_or_else(|| panic!("half a request keeps {port} open"));
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
                "{port}: {answer}"
            );
        }
    });
}

#[test]
fn an_oversized_header_is_refused_with_its_reason() {
    let mut story = Story::begin();
    story.unharmed_by("oversized headers", |story| {
        let large = format!(
            "GET /orders HTTP/1.1\r\nhost: orders-api.data\r\nx-large: {}\r\n\r\n",
            "x".repeat(200_000)
        );
        let asked = [
            (
                story.outside.place.clone(),
                story.pair.api.at(8080),
                Some("header-too-large"),
            ),
            (
                story.pair.task.place.clone(),
                story.pair.api.at(8080),
                Some("header-too-large"),
            ),
            (story.outside.place.clone(), story.pair.api.at(15020), None),
        ];
        for (place, port, code) in asked {
            let answer = read_to_close(send(&place, port, large.as_bytes()))
                .expect("the connection is closed");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            if let Some(code) = code {
                assert!(
                    answer.starts_with("HTTP/1.1 431") && answer.contains(code),
                    "{port}: {answer}"
                );
            }
            assert!(!answer.contains(" 200 "), "{port}: {answer}");
        }
    });
    let refused = |pair: &Pair, direction: &str| {
        let labels = [("direction", direction), ("code", "header-too-large")];
        let sidecar = if direction == "inbound" {
            &pair.api.sidecar
        } else {
            &pair.task.sidecar
        };
        sidecar.metrics().sum("sidewind_errors_total", &labels)
    };
    assert_eq!(
        (
            refused(&story.pair, "inbound"),
            refused(&story.pair, "outbound")
        ),
        (1.0, 1.0)
    );
}

#[test]
fn slow_handshakes_are_given_up_and_keep_out_nobody() {
    let mut story = Story::begin();
    story.unharmed_by("slow handshakes", |story| {
        let port = story.pair.api.at(15008);
        // Nothing at all, and the beginning of a ClientHello.
        let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
        let slow: Vec<TcpStream> = (0..100)
            .map(|number| {
                send(
                    &story.outside.place,
                    port,
                    if number % 2 == 0 { &[] } else { &hello },
                )
            })
            .collect();
        assert_eq!(
            story.pair.ask("/orders", &[]).status,
            200,
            "with slow handshakes open"
        );
        for stream in slow {
            assert!(
                read_to_close(stream).is_some(),
                "a slow handshake keeps 15008 open"
            );
        }
    });
    let failed = [("side", "server"), ("result", "error")];
    let metrics = story.pair.api.sidecar.metrics();
    assert_eq!(metrics.sum("sidewind_tls_handshakes_total", &failed), 100.0);
    let timed_out = [("side", "server"), ("reason", "timeout")];
    assert!(metrics.sum("sidewind_tls_handshakes_total", &timed_out) >= 10.0);
}

#[test]
fn a_new_peer_gets_its_handshake_while_a_stranger_holds_many() {
    let mut story = Story::begin();
    let port = story.pair.api.at(15008);
    let _slow: Vec<TcpStream> = (0..1000)
        .map(|_| send(&story.outside.place, port, &[]))
        .collect();
    let late = story.pair.mesh.workload("airflow", "late").start();
    let call = late.curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &format!("{API}/orders"),
    ]);
    assert_eq!(call.finish().success(), "200");
}

#[test]
fn silent_clients_cost_their_connection_and_nothing_else() {
    let mut story = Story::begin();
    story.unharmed_by("silent clients", |story| {
        let mut silent = Vec::new();
        for port in story.ports() {
            silent.extend((0..20).map(|_| send(&story.outside.place, port, &[])));
        }
        silent.extend((0..20).map(|_| send(&story.pair.task.place, story.pair.api.at(8080), &[])));
        assert_eq!(
            story.pair.ask("/orders", &[]).status,
            200,
            "with silent clients"
        );
        assert!(story.pair.api.sidecar.is_ready());
    });
}

#[test]
fn ambiguous_requests_are_refused() {
    let story = Story::begin();
    // RFC 9112, sections 3.2, 5.1, 6.1 and 6.3.
    let ambiguous = [
        "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET /orders HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        "GET /orders HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /orders HTTP/1.1\r\n\r\n",
    ];
    let mut served = Vec::new();
    for request in ambiguous {
        for place in [&story.outside.place, &story.pair.task.place] {
            let mut stream = send(place, story.pair.api.at(8080), request.as_bytes());
            let mut answer = [0; 12];
            let read = stream.read(&mut answer).unwrap_or_default();
            let answer = String::from_utf8_lossy(answer.get(..read).unwrap_or_default());
            if answer.starts_with("HTTP/1.1 2") {
                served.push(request);
            }
        }
    }
    assert!(served.is_empty(), "{served:#?}");
}

#[test]
fn a_request_with_two_lengths_reaches_the_workload_with_one() {
    let story = Story::begin();
    // A proxy may go by the chunks (RFC 9112, section 6.3), but must then say nothing else to the workload, and
    // what follows the chunks is no request of anybody's.
    let smuggled = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
                    0\r\n\r\nPOST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    for place in [&story.outside.place, &story.pair.task.place] {
        let stream = send(place, story.pair.api.at(8080), smuggled.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        assert!(read_to_close(stream).is_some(), "the connection stays open");
    }
    assert_eq!(story.pair.curl("/posts", &[]), "0");
}

#[test]
fn more_connections_than_allowed_are_refused_at_once_and_others_go_on() {
    use sidewind_tests::mesh::Mesh;
    let mut mesh = Mesh::plan().start();
    let plan = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080");
    let api = plan.flag("--max-connections", "20").start();
    let _server = sidewind_tests::workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let outside = mesh.outsider("outside");
    let held: Vec<TcpStream> = (0..60)
        .map(|_| send(&outside.place, api.at(8080), &[]))
        .collect();
    // Plaintext is full; the mesh and the admin port have room of their own.
    let through_the_mesh = task.curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &format!("{API}/orders"),
    ]);
    assert_eq!(through_the_mesh.finish().success(), "200");
    assert!(api.sidecar.is_ready());
    drop(held);
    eventually("plaintext is served again", TIMEOUT, || {
        let curl = outside.place.program("curl").args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &format!("{API}/orders"),
        ]);
        (curl.finish().out() == "200").then_some(())
    });
}
