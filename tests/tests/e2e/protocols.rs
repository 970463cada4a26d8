//! What HTTP/1 has besides a request and an answer, by curl and by bytes written by hand, on the way out and on the way in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::place::Place;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::bad_input::{read_to_close, send};

struct Story {
    task: Workload,
    api: Workload,
    outside: Host,
    _mesh: Mesh,
}

impl Story {
    #[track_caller]
    fn begin() -> Self {
        let mut mesh = Mesh::plan().start();
        let api = mesh.workload("data", "orders-api");
        let api = api.serves("orders-api.data=8080/http").start();
        let task = mesh.workload("airflow", "task").start();
        let listener = api.place.listen((api.bind(), 8080).into()).unwrap();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || serve(stream));
            }
        });
        let outside = mesh.outsider("outside");
        Self {
            task,
            api,
            outside,
            _mesh: mesh,
        }
    }

    /// Those who ask: by the mesh, and from outside it in plaintext.
    fn places(&self) -> [(&'static str, &Place); 2] {
        [
            ("by the mesh", &self.task.place),
            ("from outside", &self.outside.place),
        ]
    }

    fn curl(&self, place: &Place, arguments: &[&str], paths: &[&str]) -> String {
        let mut curl = place.program("curl").args(["-sS", "--max-time", "30"]);
        curl = curl.args(arguments);
        for path in paths {
            curl = curl.arg(format!("http://{}{path}", self.api.at(8080)));
        }
        curl.finish().success()
    }

    /// What comes back for bytes, until the connection is closed.
    #[track_caller]
    fn say(&self, place: &Place, bytes: &str) -> String {
        let stream = send(place, self.api.at(8080), bytes.as_bytes());
        let answer = read_to_close(stream).unwrap_or_else(|| panic!("no end after {bytes:?}"));
        String::from_utf8(answer).unwrap()
    }
}

/// A server whose answer is in the path; its clients send bodies of a known length, if any.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let body = match path {
            "/chunked" => {
                let chunks = "transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n";
                stream.write_all(format!("HTTP/1.1 200 OK\r\n{chunks}").as_bytes())?;
                continue;
            }
            "/until-close" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end")?;
                return Ok(());
            }
            "/http10" => {
                stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nold")?;
                return Ok(());
            }
            "/not-modified" => {
                stream.write_all(
                    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: \"a\"\r\n\r\n",
                )?;
                continue;
            }
            "/upload" => {
                let mut received = Vec::new();
                // In chunks, as it must come through where no length was said.
                assert!(
                    head.to_lowercase().contains("transfer-encoding: chunked"),
                    "{head}"
                );
                while !received.ends_with(b"0\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte)?;
                    received.push(byte[0]);
                }
                received.len().to_string()
            }
            _ => line.clone(),
        };
        let length = body.len();
        let body = if method == "HEAD" { "" } else { &body };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes())?;
    }
}

#[test]
fn clients_of_http_1_0_are_served_in_it_and_get_no_chunks() {
    let story = Story::begin();
    for (who, place) in story.places() {
        for (path, body) in [
            ("/a", "GET /a HTTP/1.1"),
            ("/chunked", "hello"),
            ("/until-close", "until the end"),
            ("/http10", "old"),
        ] {
            let printed = story.curl(place, &["-0", "-i"], &[path]);
            let (head, got) = printed.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.0 200 "), "{who} {path}: {printed}");
            assert!(!head.contains("chunked"), "{who} {path}: {printed}");
            assert_eq!(got, body, "{who} {path}");
        }
        // Without a host, as HTTP/1.0 allows, and with the connection kept.
        let kept = "GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
        let last = "GET /b HTTP/1.0\r\n\r\n";
        let answers = story.say(place, &format!("{kept}{last}"));
        assert!(answers.contains("GET /a HTTP/1.1"), "{who}: {answers}");
        assert!(answers.ends_with("GET /b HTTP/1.1"), "{who}: {answers}");
    }
}

#[test]
fn a_connection_is_kept_over_heads_chunks_and_answers_without_a_body() {
    let story = Story::begin();
    let counting = "%{response_code} %{size_download} %{num_connects}\n";
    for (who, place) in story.places() {
        let mut arguments = Vec::new();
        let paths = ["/a", "/chunked", "/not-modified", "/a"];
        for _ in paths {
            arguments.extend(["-o", "/dev/null"]);
        }
        arguments.extend(["-w", counting]);
        let printed = story.curl(place, &arguments, &paths);
        let expected = "200 15 1\n200 5 0\n304 0 0\n200 15 0\n";
        assert_eq!(printed, expected, "{who}");
        let printed = story.curl(place, &["-I"], &["/a"]);
        assert!(
            printed.contains("content-length: 16\r\n"),
            "{who}: {printed}"
        );
        let printed = story.curl(
            place,
            &["-X", "OPTIONS", "--request-target", "*"],
            &["/ignored"],
        );
        assert_eq!(printed, "OPTIONS * HTTP/1.1", "{who}");
        let upload = ["-H", "transfer-encoding: chunked", "-d", "hello"];
        // "5", the line's end, five bytes, and the last chunk.
        assert_eq!(story.curl(place, &upload, &["/upload"]), "15", "{who}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order_and_trailers_arrive() {
    let story = Story::begin();
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n{more}\r\n");
    for (who, place) in story.places() {
        let several = ["/1", "/2", "/chunked", "/3"].map(|path| ask(path, ""));
        let bytes = several.concat() + &ask("/4", "connection: close\r\n");
        let answers = story.say(place, &bytes);
        let mut rest = answers.as_str();
        for expected in ["GET /1 ", "GET /2 ", "hello", "GET /3 ", "GET /4 "] {
            let at = rest.find(expected);
            let at = at.unwrap_or_else(|| panic!("{who}: no {expected} in order: {answers}"));
            rest = &rest[at..];
        }
        let trailers = ask("/chunked", "te: trailers\r\nconnection: te, close\r\n");
        let answer = story.say(place, &trailers);
        assert!(answer.ends_with("0\r\nx-sum: 5\r\n\r\n"), "{who}: {answer}");
    }
}

#[test]
fn connect_is_for_proxies_and_refused_where_there_is_none() {
    let story = Story::begin();
    let connect =
        "CONNECT elsewhere:80 HTTP/1.1\r\nhost: elsewhere:80\r\nconnection: close\r\n\r\n";
    let answer = story.say(&story.outside.place, connect);
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    assert!(
        answer.contains("\r\nsidewind-error: unsupported\r\n"),
        "{answer}"
    );
}

const MARKED: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ kind: Service, group: \"\", name: orders-api, port: 8080 }]
  rules:
    - filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: { set: [{ name: x-route, value: marked }] }
";

#[test]
fn a_client_that_is_silent_before_it_asks_gets_all_that_a_route_says() {
    let mut mesh = Mesh::plan().config("route.yaml", MARKED).start();
    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data=8080/http").start();
    let listener = api.place.listen((api.bind(), 8080).into()).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || serve(stream));
        }
    });
    let task = mesh.workload("airflow", "task");
    let task = task.flag("--detect-timeout", "100ms").start();
    let mut stream = send(&task.place, api.at(8080), b"");
    // As a pool that connects before it has anything to ask; longer than a protocol is looked for.
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let silence = stream.peek(&mut [0]).map_err(|error| error.kind());
    assert_eq!(silence, Err(std::io::ErrorKind::WouldBlock));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = "GET /late HTTP/1.1\r\nhost: orders-api.data\r\nconnection: close\r\n\r\n";
    stream.write_all(asked.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\r\nx-route: marked\r\n"), "{answer}");
    let record = task
        .sidecar
        .wait_for_access("the call", |record| record.is_request());
    let (path, route) = (record.path(), record.text("route"));
    assert_eq!((path.as_str(), route.as_str()), ("/late", "data/orders"));
    let log = task.sidecar.log();
    assert!(!log.contains("a client said nothing"), "{log}");
}

#[test]
fn a_client_that_connects_and_goes_is_no_complaint_and_one_that_speaks_something_else_is() {
    let story = Story::begin();
    let (place, address) = (&story.outside.place, story.api.at(8080));
    for _ in 0..5 {
        drop(send(place, address, b""));
    }
    let answer = read_to_close(send(place, address, b"\0\x01\x02\x03\r\n"));
    assert!(answer.is_some_and(|answer| answer.is_empty()));
    let labels = [("direction", "inbound"), ("code", "bad-request")];
    let refused = || {
        story
            .api
            .sidecar
            .metrics()
            .sum("sidewind_errors_total", &labels)
    };
    eventually("what is no HTTP is counted", PATIENCE, || {
        (refused() >= 1.0).then_some(())
    });
    let orders = story.curl(
        place,
        &["-o", "/dev/null", "-w", "%{response_code}"],
        &["/orders"],
    );
    assert_eq!((orders.as_str(), refused()), ("200", 1.0));
}
