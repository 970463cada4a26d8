//! Interim responses and `Expect: 100-continue`, with curl at one end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::place::Place;

/// Bytes of a body that nobody would send unasked.
const LARGE: usize = 5_000_000;

struct Story {
    task: Workload,
    api: Workload,
    outside: Host,
    /// Bytes that came after heads.
    came: Arc<AtomicUsize>,
    mesh: Mesh,
}

impl Story {
    #[track_caller]
    fn begin() -> Self {
        let mut mesh = Mesh::plan().start();
        let api = mesh.workload("data", "orders-api");
        let api = api.serves("orders-api.data=8080/http").start();
        let task = mesh.workload("airflow", "task").start();
        let came = Arc::new(AtomicUsize::new(0));
        let listener = api.place.listen((api.bind(), 8080).into()).unwrap();
        let counting = Arc::clone(&came);
        std::thread::spawn(move || serve(&listener, &counting));
        let outside = mesh.outsider("outside");
        mesh.scratch.write("large", "x".repeat(LARGE));
        Self {
            task,
            api,
            outside,
            came,
            mesh,
        }
    }

    /// What curl prints from inside the mesh and from outside.
    fn curl(&self, place: &Place, arguments: &[&str], path: &str) -> String {
        let curl = place.program("curl").args(["-sS", "--max-time", "30"]);
        let url = format!("http://{}{path}", self.api.at(8080));
        curl.args(arguments).arg(url).finish().success()
    }
}

fn serve(listener: &TcpListener, came: &Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept() {
        let came = Arc::clone(came);
        std::thread::spawn(move || answer(stream, &came));
    }
}

fn answer(mut stream: TcpStream, came: &AtomicUsize) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.starts_with("GET /hints ") {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")?;
    } else if head.starts_with("POST /refused ") {
        stream.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 3\r\n\r\nno\n",
        )?;
    } else {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let mut body = vec![0; LARGE];
        stream.read_exact(&mut body)?;
        came.fetch_add(LARGE, Ordering::Relaxed);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nthank")?;
    }
    let mut more = [0; 1024];
    loop {
        match stream.read(&mut more)? {
            0 => return Ok(()),
            bytes => came.fetch_add(bytes, Ordering::Relaxed),
        };
    }
}

#[test]
fn early_hints_come_to_the_client_before_the_answer() {
    let story = Story::begin();
    for place in [&story.task.place, &story.outside.place] {
        let printed = story.curl(place, &["-i"], "/hints");
        let (hints, rest) = printed.split_once("\r\n\r\n").unwrap();
        assert!(hints.starts_with("HTTP/1.1 103 "), "{printed}");
        assert!(
            hints.contains("link: </style.css>; rel=preload"),
            "{printed}"
        );
        assert!(
            rest.starts_with("HTTP/1.1 200 ") && rest.ends_with("ok"),
            "{printed}"
        );
    }
}

#[test]
fn a_client_that_asks_first_is_spared_a_body_that_is_refused() {
    let story = Story::begin();
    let large = story.mesh.scratch.join("large");
    let data = format!("@{}", large.display());
    let asking = [
        "-H",
        "expect: 100-continue",
        "--expect100-timeout",
        "20",
        "--data-binary",
        &data,
        "-w",
        " %{response_code} %{size_upload}",
    ];
    for place in [&story.task.place, &story.outside.place] {
        let printed = story.curl(place, &asking, "/refused");
        assert_eq!(printed, "no\n 401 0");
        assert_eq!(story.came.load(Ordering::Relaxed), 0);
        let printed = story.curl(place, &asking, "/taken");
        assert_eq!(printed, format!("thank 200 {LARGE}"));
        assert_eq!(story.came.swap(0, Ordering::Relaxed), LARGE);
    }
}
