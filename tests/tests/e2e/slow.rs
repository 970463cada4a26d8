//! Clients and servers that stand still or drip are not waited for; those that merely take their time are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use sidewind_tests::lan::Host;
use sidewind_tests::measure::pause;
use sidewind_tests::mesh::{Mesh, Sidecar, Workload};
use sidewind_tests::place::Place;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::bad_input::{read_to_close, send};

/// Longer than every limit that the sidecars here are given.
const LONG: Duration = Duration::from_secs(4);

struct Slow {
    task: Workload,
    api: Workload,
    outside: Host,
    _mesh: Mesh,
}

impl Slow {
    #[track_caller]
    fn begin() -> Self {
        let mut mesh = Mesh::plan().start();
        let limits = |time: &'static str| {
            [
                ("--header-timeout", "1s"),
                ("--body-timeout", time),
                ("--reader-timeout", time),
            ]
        };
        let mut plan = mesh.workload("data", "orders-api");
        for (flag, value) in limits("3s") {
            plan = plan.flag(flag, value);
        }
        let api = plan
            .serves("orders-api.data=8080/http")
            .serves("rows.data=5432/tcp")
            .start();
        // Shorter, so that it is the first of the two that has waited long enough.
        let mut plan = mesh.workload("airflow", "task");
        for (flag, value) in limits("1s") {
            plan = plan.flag(flag, value);
        }
        let task = plan.start();
        for port in [8080, 5432] {
            let listener = api.place.listen((api.bind(), port).into()).unwrap();
            std::thread::spawn(move || serve(&listener));
        }
        let outside = mesh.outsider("outside");
        Self {
            task,
            api,
            outside,
            _mesh: mesh,
        }
    }

    /// Where clients are, what they see, and who serves them: from outside the mesh in plaintext, and from the workload.
    fn listeners(&self) -> [(&'static str, &Place, SocketAddr, &Sidecar); 2] {
        let api = self.api.at(8080);
        [
            ("inbound", &self.outside.place, api, &self.api.sidecar),
            ("outbound", &self.task.place, api, &self.task.sidecar),
        ]
    }
}

fn serve(listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        std::thread::spawn(move || answer(stream));
    }
}

/// A server whose behaviour is in the path; the client is believed to send heads.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let ok = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    match path {
        "/half" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegin")?,
        "/dripping-head" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nx: ")?;
            loop {
                stream.write_all(b"y")?;
                while_silent(&stream, Duration::from_millis(200));
            }
        }
        "/large" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 65536])?;
            }
        }
        "/stream" => {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            )?;
            while_silent(&stream, LONG);
            stream.write_all(b"5\r\nworld\r\n0\r\n\r\n")?;
        }
        "/poll" => {
            while_silent(&stream, LONG);
            stream.write_all(ok.as_bytes())?;
        }
        "/never-read" => {}
        // It reads what comes, and waits for more.
        _ if head.starts_with("POST ") => {}
        _ => stream.write_all(ok.as_bytes())?,
    }
    if path == "/never-read" {
        // Open for as long as the test is.
        static HELD: Mutex<Vec<TcpStream>> = Mutex::new(Vec::new());
        HELD.lock().unwrap().push(stream);
        return Ok(());
    }
    while stream.read(&mut [0; 1024])? > 0 {}
    Ok(())
}

/// Waits for so long, or until the other side says something or ends.
fn while_silent(stream: &TcpStream, time: Duration) {
    let _ = stream.set_read_timeout(Some(time));
    let _ = stream.peek(&mut [0]);
    let _ = stream.set_read_timeout(None);
}

fn request(line: &str, more: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nhost: orders-api.data:8080\r\n{more}\r\n").into_bytes()
}

#[track_caller]
fn answered(stream: TcpStream, what: &str) -> String {
    let answer = read_to_close(stream).unwrap_or_else(|| panic!("{what} is waited for"));
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn refused(answer: &str, status: u16, code: &str, what: &str) {
    let refused = answer.starts_with(&format!("HTTP/1.1 {status} "))
        && answer.contains(&format!("\r\nsidewind-error: {code}\r\n"));
    assert!(refused, "{what}: {answer:?}");
}

#[test]
fn half_a_head_and_a_body_that_stands_still_or_drips_are_answered_with_408() {
    let slow = Slow::begin();
    for (direction, place, address, sidecar) in slow.listeners() {
        let begun: [&[u8]; 3] = [
            b"GET / HTTP/1.1\r\nhost: orders-api.data\r\nx: y\r\n",
            b"GE",
            b"\r\nGET / HTTP/1.1\r\nho",
        ];
        for begun in begun {
            let answer = answered(send(place, address, begun), direction);
            refused(&answer, 408, "client-timeout", direction);
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        }
        for framing in ["content-length: 5000\r\n", "transfer-encoding: chunked\r\n"] {
            let post = request("POST /", framing);
            let answer = answered(send(place, address, &post), framing);
            refused(&answer, 408, "client-timeout", framing);
            let record = sidecar.wait_for_access("the body that stood still", |record| {
                record.error() == "client-timeout" && record.status() == 408
            });
            assert_eq!(record.text("direction"), direction, "{record}");
        }
        let mut drip = send(
            place,
            address,
            &request("POST /", "content-length: 5000\r\n"),
        );
        let mut reader = drip.try_clone().unwrap();
        let dripping = std::thread::spawn(move || {
            while drip.write_all(b"x").is_ok() {
                // The reader's socket is the same, so that no timeout of reads can be the pause.
                pause(Duration::from_millis(100));
            }
        });
        let mut answer = [0; 13];
        reader.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 408 ", "{direction}");
        drop(reader);
        dripping.join().unwrap();
        let labels = [("direction", direction), ("code", "client-timeout")];
        eventually("all of them are counted", PATIENCE, || {
            let counted = sidecar.metrics().sum("sidewind_errors_total", &labels);
            (counted == 6.0).then_some(())
        });
        let log = sidecar.log();
        let said = log.lines().filter(|line| line.contains("client-timeout"));
        assert_eq!(said.count(), 1, "{log}");
    }
}

#[test]
fn half_a_head_in_http2_ends_its_connection() {
    let slow = Slow::begin();
    let (headers, settings) = (1, 4);
    let (end_stream, end_headers) = (1, 4);
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    // `:method: GET`, `:scheme: http`, `:authority: orders-api.data`, and `:path: /poll` (RFC 7541, appendix A).
    let head = b"\x82\x86\x41\x0forders-api.data\x04\x05/poll";
    let beginning = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(settings, 0, 0, &[]),
        frame(headers, end_stream | end_headers, 1, head),
    ]
    .concat();
    let half = [
        frame(headers, end_stream, 3, head),
        // Without the last byte.
        frame(headers, end_stream | end_headers, 3, head)[..20].to_vec(),
    ];
    for (direction, place, address, sidecar) in slow.listeners() {
        for half in &half {
            let stream = send(place, address, &[&beginning[..], half].concat());
            let ended = read_to_close(stream);
            assert!(ended.is_some(), "{direction}: it stays open");
        }
        let labels = [("direction", direction), ("code", "client-timeout")];
        eventually("both are counted", PATIENCE, || {
            let counted = sidecar.metrics().sum("sidewind_errors_total", &labels);
            (counted == 2.0).then_some(())
        });
    }
}

#[test]
fn a_client_that_connects_in_advance_is_served_when_it_asks() {
    let slow = Slow::begin();
    for (direction, place, address, sidecar) in slow.listeners() {
        let mut stream = send(place, address, b"");
        // Three times as long as the head of a request may take.
        while_silent(&stream, Duration::from_secs(3));
        let asked = request("GET /poll", "connection: close\r\n");
        stream.write_all(&asked).unwrap();
        let answer = answered(stream, direction);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{direction}: {answer}");
        let labels = [("direction", direction)];
        let errors = sidecar.metrics().sum("sidewind_errors_total", &labels);
        assert_eq!(errors, 0.0, "{direction}");
    }
}

#[test]
fn a_client_that_takes_nothing_of_its_response_is_let_go() {
    let slow = Slow::begin();
    for (direction, place, address, sidecar) in slow.listeners() {
        let stream = send(place, address, &request("GET /large", ""));
        let record = sidecar.wait_for_access("the response that was not read", |record| {
            record.path() == "/large" && record.error() == "client-timeout"
        });
        assert_eq!(record.text("direction"), direction, "{record}");
        let labels = [("direction", direction), ("code", "client-timeout")];
        let counted = sidecar.metrics().sum("sidewind_errors_total", &labels);
        assert_eq!(counted, 1.0, "{direction}");
        drop(stream);
    }
}

#[test]
fn a_server_that_stands_still_is_let_go_and_one_that_takes_its_time_is_not() {
    let slow = Slow::begin();
    for (direction, place, address, sidecar) in slow.listeners() {
        // Within a body whose length it has told; what came of it is no whole response.
        let answer = answered(send(place, address, &request("GET /half", "")), "/half");
        assert!(answer.ends_with("\r\n\r\nbegin"), "{answer}");
        sidecar.wait_for_access("/half", |record| {
            record.path() == "/half" && record.error() == "upstream-stalled"
        });
        // Within its head.
        let drip = send(
            place,
            address,
            &request("GET /dripping-head", "connection: close\r\n"),
        );
        let answer = answered(drip, "/dripping-head");
        refused(&answer, 504, "upstream-stalled", direction);
        // Over a request that it does not read.
        let head = request("POST /never-read", "content-length: 100000000\r\n");
        let mut upload = send(place, address, &head);
        let mut reader = upload.try_clone().unwrap();
        let uploading =
            std::thread::spawn(move || while upload.write_all(&[b'x'; 65536]).is_ok() {});
        let mut answer = [0; 13];
        reader.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 504 ", "{direction}");
        drop(reader);
        uploading.join().unwrap();
        sidecar.wait_for_access("/never-read", |record| {
            record.path() == "/never-read" && record.error() == "upstream-stalled"
        });
        for (path, expected) in [("/poll", "ok"), ("/stream", "5\r\nworld\r\n0\r\n\r\n")] {
            let asked = request(&format!("GET {path}"), "connection: close\r\n");
            let answer = answered(send(place, address, &asked), path);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            assert!(answer.ends_with(expected), "{path}: {answer}");
        }
    }
}

mod soak {
    use super::*;

    /// TCP's own limit for bytes that are not acknowledged takes a window that is shut for a peer that is gone.
    #[test]
    fn a_client_of_a_database_may_leave_its_rows_unread_for_a_minute() {
        let slow = Slow::begin();
        let rows = slow.api.at(5432);
        let mut stream = send(&slow.task.place, rows, &request("GET /large", ""));
        for _ in 0..18 {
            let poll = request("GET /poll", "connection: close\r\n");
            answered(send(&slow.task.place, slow.api.at(8080), &poll), "/poll");
        }
        let mut rest = vec![0; 64 << 20];
        stream.read_exact(&mut rest).unwrap();
    }
}
