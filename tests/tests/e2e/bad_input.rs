//! Whatever strangers send costs one bounded connection, a metric, and at most a line a minute.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{Mesh, Sidecar};
use sidewind_tests::place::Place;
use sidewind_tests::wait::{eventually, within};

use crate::support::{API, Pair};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Connects and sends; the connection stays open.
pub(crate) fn send(place: &Place, address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = place.connect(address, TIMEOUT).expect("the port is open");
    // The other side may close while it is being sent to.
    let _ = stream.write_all(bytes);
    stream
}

/// Everything until the other side closes, or none if it does not within the timeout.
pub(crate) fn read_to_close(mut stream: TcpStream) -> Option<Vec<u8>> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => Some(received),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(received),
    }
}

/// How often each cause is warned of, or worse: what is said, with the code that tells causes apart.
fn warnings(log: &str) -> BTreeMap<String, usize> {
    let mut causes = BTreeMap::new();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        if ["WARN", "ERROR"].contains(&text("level").as_str()) {
            let said = ["message", "code", "cause", "reason"].map(text).join(" ");
            *causes.entry(said).or_default() += 1;
        }
    }
    causes
}

/// The same bytes each time, of no protocol.
fn garbage(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8 | 0x80)
        .collect()
}

pub(crate) struct Story {
    pub(crate) pair: Pair,
    pub(crate) outside: Host,
}

impl Story {
    pub(crate) fn begin() -> Self {
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
    pub(crate) fn unharmed_by(&mut self, what: &str, abuse: impl FnOnce(&Self)) {
        let memory = self.pair.api.sidecar.process().resident_bytes();
        let files = self.pair.api.sidecar.process().open_files();
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
        for sidecar in [&self.pair.api.sidecar, &self.pair.task.sidecar] {
            let log = sidecar.log();
            for (cause, lines) in warnings(&log) {
                assert_eq!(lines, 1, "{cause} is said too often after {what}:\n{log}");
            }
        }
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
    let metrics = story.pair.api.sidecar.metrics();
    let handshakes = [("side", "server"), ("result", "error")];
    assert_eq!(
        metrics.sum("sidewind_tls_handshakes_total", &handshakes),
        20.0
    );
    // Bytes of no protocol are the business of a workload whose port is of none.
    let opaque = [("direction", "inbound"), ("protocol", "tcp")];
    assert_eq!(metrics.sum("sidewind_connections_total", &opaque), 20.0);
    let lost = [("direction", "inbound"), ("code", "loop-detected")];
    assert_eq!(metrics.sum("sidewind_errors_total", &lost), 20.0);
    // One byte is a head that never ends, four thousand are none, and the most are more than it takes.
    let refused =
        |reason: &str| metrics.sum("sidewind_admin_refusals_total", &[("reason", reason)]);
    let all: f64 = metrics.sum("sidewind_admin_refusals_total", &[]);
    assert_eq!(all, 20.0, "{:?}", metrics.samples());
    assert!(refused("garbage") >= 5.0, "{:?}", metrics.samples());
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
            let silent = port == 15020 && answer.is_empty();
            assert!(
                silent || answer.starts_with("HTTP/1.1 408"),
                "{port}: {answer}"
            );
        }
    });
    let late = |sidecar: &Sidecar, direction: &str| {
        let labels = [("direction", direction), ("code", "client-timeout")];
        sidecar.metrics().sum("sidewind_errors_total", &labels)
    };
    assert_eq!(late(&story.pair.api.sidecar, "inbound"), 10.0);
    assert_eq!(late(&story.pair.task.sidecar, "outbound"), 10.0);
    assert_eq!(admin_refusals(&story.pair.api.sidecar, "incomplete"), 10.0);
}

pub(crate) fn admin_refusals(sidecar: &Sidecar, reason: &str) -> f64 {
    let labels = [("reason", reason)];
    sidecar
        .metrics()
        .sum("sidewind_admin_refusals_total", &labels)
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
        let (api, task) = (&story.pair.api.sidecar, &story.pair.task.sidecar);
        let opaque = |sidecar: &Sidecar, direction: &str| {
            let labels = [("direction", direction), ("protocol", "tcp")];
            sidecar
                .metrics()
                .sum("sidewind_connections_active", &labels)
        };
        let lost = [("code", "loop-detected")];
        let late = [("side", "server"), ("reason", "timeout")];
        eventually("each silent client is counted", TIMEOUT, || {
            let metrics = api.metrics();
            // By its own port each of the twenty, and those from the task once more by the tunnel.
            let counted = [
                opaque(api, "inbound"),
                opaque(task, "outbound"),
                metrics.sum("sidewind_errors_total", &lost),
                metrics.sum("sidewind_tls_handshakes_total", &late),
                admin_refusals(api, "silent"),
            ];
            (counted == [40.0, 20.0, 20.0, 20.0, 20.0]).then_some(())
        });
        drop(silent);
    });
}

#[test]
fn more_connections_than_allowed_are_refused_at_once_and_others_go_on() {
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
