//! Explicit capture: no redirection and no privileges, everything on loopback addresses.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use http::{Method, Request};
use sidewind_tests::authority::TestAuthority;
use sidewind_tests::http::Reply;
use sidewind_tests::mesh::{MESH_PORT, Mesh, Workload};
use sidewind_tests::peer::Peer;
use sidewind_tests::wait::{PATIENCE, eventually, within};
use sidewind_tests::workloads;
use socket2::SockRef;

use crate::support::{Answer, allow};

const API: &str = "http://orders-api.data";

/// `curl` by way of the sidecar as an HTTP proxy.
fn curl(task: &Workload, arguments: &[&str]) -> String {
    let proxy = format!("http://{}", task.at(15001));
    let curl = task
        .curl(arguments)
        .env("http_proxy", &proxy)
        .env("https_proxy", &proxy);
    curl.finish().success()
}

#[test]
fn a_client_that_honours_http_proxy_calls_through_the_mesh() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data:80=8080/http")
        .start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let echoed = curl(&task, &[&format!("{API}/echo?q")]);
    assert!(
        echoed.contains(&format!("URI={}", task.spiffe_id)),
        "{echoed}"
    );
    assert!(
        !echoed.to_lowercase().contains("proxy-connection"),
        "{echoed}"
    );
    let outbound = task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(
        (outbound.destination_id(), outbound.tls()),
        (api.spiffe_id.clone(), true),
        "{outbound}"
    );
    assert_eq!(outbound.text("service"), "orders-api.data");
    let inbound = api
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(inbound.source_id(), task.spiffe_id, "{inbound}");
}

#[test]
fn a_503_is_retried_there_too() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data:80=8080/http")
        .start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    for _ in 0..6 {
        let answer = Answer::parse(&curl(&task, &["-i", &format!("{API}/flaky")]));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    task.sidecar
        .wait_for_access("a retry", |record| record.attempts() == 2);
}

#[test]
fn connect_makes_a_tunnel_through_the_mesh() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data:80=8080")
        .start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    // `-p`: curl asks for a tunnel even for http.
    let answer = Answer::parse(&curl(&task, &["-i", "-p", &format!("{API}/orders")]));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("anemometer"), "{answer:?}");
    let record = api
        .sidecar
        .wait_for_access("the call", |record| record.source_id() == task.spiffe_id);
    assert!(record.tls(), "{record}");
}

#[test]
fn a_loopback_port_stands_for_a_service() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data:6379=6379/tcp")
        .start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let task = mesh
        .workload("airflow", "task")
        .flag("--listen", "127.0.0.1:16379=redis.data:6379")
        .start();
    let redis = |arguments: &[&str]| {
        let redis = task
            .program("redis-cli")
            .args(["-h", "127.0.0.1", "-p", "16379"])
            .args(arguments);
        redis.finish().success().trim().to_owned()
    };
    assert_eq!(redis(&["SET", "key", "value"]), "OK");
    assert_eq!(redis(&["GET", "key"]), "value");
    let record = task
        .sidecar
        .wait_for_access("the connection", |record| !record.is_request());
    assert_eq!(
        (record.destination_id(), record.tls()),
        (server.spiffe_id.clone(), true),
        "{record}"
    );
    assert_eq!(record.text("service"), "redis.data");
}

#[test]
fn plaintext_comes_in_by_a_port_of_its_own_and_is_judged_there() {
    for (mode, status) in [("permissive", 200), ("strict", 403)] {
        let mut mesh = Mesh::plan()
            .flag("--inbound-plaintext", mode)
            .start_on_loopback();
        let plan = mesh
            .workload("data", "orders-api")
            .serves("orders-api.data:80=8080/http");
        let api = plan
            .flag("--plaintext-listen", "127.77.0.100:8080=8080")
            .start();
        let _server = workloads::api(&api, 8080, &mesh.scratch);
        let answer = Answer::parse(
            &api.curl(&["-i", "http://127.77.0.100:8080/orders"])
                .finish()
                .success(),
        );
        assert_eq!(answer.status, status, "{mode}: {answer:?}");
        if status == 403 {
            assert_eq!(answer.error, "plaintext-refused");
        }
    }
}

#[test]
fn a_wrong_identity_is_refused_there_too() {
    let id = "spiffe://sidewind.local/ns/data/sa/orders-api";
    let policy = allow(id, &["spiffe://sidewind.local/ns/airflow/sa/task"], "");
    let mut mesh = Mesh::plan()
        .config("policy.yaml", &policy)
        .start_on_loopback();
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data:80=8080/http")
        .start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let other = mesh.workload("airflow", "other").start();
    let ask = |from: &Workload| Answer::parse(&curl(from, &["-i", &format!("{API}/orders")]));
    assert_eq!(ask(&task).status, 200);
    assert_eq!(ask(&other).error, "policy-denied");
}

#[test]
fn requests_that_name_no_destination_are_refused() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let task = mesh.workload("airflow", "task").start();
    let answer = Answer::parse(
        &task
            .curl(&["-i", &format!("http://{}/orders", task.at(15001))])
            .finish()
            .success(),
    );
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (400, "bad-request"),
        "{answer:?}"
    );
}

/// What a peer with an SVID of the trust domain gets for a tunnel to `port` of a workload, asked of its sidecar.
fn tunnel_to(
    mesh: &Mesh,
    authority: &TestAuthority,
    from: &Workload,
    to: &Workload,
    port: u16,
) -> Result<Reply, String> {
    let thief = "spiffe://sidewind.local/ns/airflow/sa/thief";
    let svid = authority.svid_files(&mesh.scratch, "thief", thief, SystemTime::now());
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = to.at(port).to_string().parse().unwrap();
    Peer::new(&from.place, to.at(MESH_PORT), "h2")
        .with(&svid)
        .ask(request, "PING\r\n")
}

fn is_refused(reply: &Result<Reply, String>) -> bool {
    match reply {
        Ok(reply) => reply.status >= 400 && !reply.text().contains("PONG"),
        Err(error) => !error.contains("PONG"),
    }
}

#[test]
fn a_peer_borrows_no_identity_by_the_loopback_ports_of_another() {
    let authority = TestAuthority::new();
    let mut mesh = Mesh::plan().root(&authority).start_on_loopback();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data:6379=6379/tcp")
        .start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let host = mesh.outsider("task");
    let mapped = format!("{}:16379=redis.data:6379", host.address);
    let plan = mesh
        .workload("airflow", "task")
        .serves("task.airflow=8793/http");
    let task = plan.flag("--listen", mapped).start_at(host);
    // The port at which the task's sidecar takes the task's own connections, asked for through the mesh.
    let reply = tunnel_to(&mesh, &authority, &server, &task, 16379);
    assert!(is_refused(&reply), "{reply:?}");
    let log = server.sidecar.access_log();
    assert!(log.is_empty(), "{log:?}");
}

#[test]
fn a_port_of_the_workload_that_is_not_served_is_not_opened_to_the_mesh() {
    let authority = TestAuthority::new();
    let mut mesh = Mesh::plan().root(&authority).start_on_loopback();
    let server = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data:80=8080/http,redis.data=6379/tcp")
        .start();
    // For programs on its own host alone, which is what listening on loopback means.
    let _redis = workloads::redis(&server, 6379, true, &mesh.scratch);
    let _other = workloads::redis(&server, 6380, true, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let reply = tunnel_to(&mesh, &authority, &task, &server, 6379).unwrap();
    assert!(reply.text().contains("PONG"), "{reply:?}");
    let reply = tunnel_to(&mesh, &authority, &task, &server, 6380);
    assert!(is_refused(&reply), "{reply:?}");
}

/// Serves each connection to a port of a workload.
fn serve(workload: &Workload, port: u16, each: fn(TcpStream)) {
    let listener = workload.place.listen((workload.bind(), port).into());
    let listener = listener.expect("a free port");
    workload.place.spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || each(stream));
        }
    });
}

/// A connection to the sidecar as an HTTP proxy, after `head` was answered with one that begins with `expected`.
#[track_caller]
fn ask_for(task: &Workload, head: &str, expected: &str) -> TcpStream {
    let mut stream = task.place.connect(task.at(15001), PATIENCE).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a whole head");
        answer.extend(byte);
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with(expected), "{answer}");
    stream
}

#[test]
fn a_connect_is_answered_once_its_destination_is_reached_or_refused() {
    let policy = allow(
        "spiffe://sidewind.local/ns/data/sa/closed",
        &["spiffe://sidewind.local/ns/airflow/sa/somebody-else"],
        "",
    );
    let mut mesh = Mesh::plan()
        .config("policy.yaml", &policy)
        .start_on_loopback();
    let serving = |mesh: &mut Mesh, name: &str, protocol: &str| {
        let served = format!("{name}.data:7000=7000/{protocol}");
        mesh.workload("data", name).serves(&served).start()
    };
    let open = serving(&mut mesh, "open", "tcp");
    serve(&open, 7000, echo);
    let _closed = serving(&mut mesh, "closed", "tls");
    let _silent = serving(&mut mesh, "silent", "tcp");
    let gone = serving(&mut mesh, "gone", "auto");
    let outside = mesh.outsider("outside");
    let listener = outside.place.listen((outside.address, 7000).into());
    let listener = listener.expect("a free port");
    outside.place.spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    let there = format!("{}:7000", outside.address);
    let nobody = format!("{}:7001", outside.address);
    let task = mesh.workload("airflow", "task").start();
    for to in ["open.data:7000", &there] {
        assert!(is_echoed(&tunnel(&task, to)), "{to}");
    }
    // Known, and then without an endpoint.
    drop(tunnel(&task, "gone.data:7000"));
    drop(gone);
    let refused = |task: &Workload, to: &str, status: u16, code: &str| {
        let asked = eventually("a CONNECT is refused", PATIENCE, || {
            let mut stream = task.place.connect(task.at(15001), PATIENCE).ok()?;
            let head = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            let mut head = [0; 13];
            stream.read_exact(&mut head).ok()?;
            let mut answer = String::from_utf8_lossy(&head).into_owned();
            // Its endpoint may be known for a moment longer.
            (answer != "HTTP/1.1 200 ").then(|| {
                let _ = stream.read_to_string(&mut answer);
                answer
            })
        });
        let right = asked.starts_with(&format!("HTTP/1.1 {status} "))
            && asked.contains(&format!("\r\nsidewind-error: {code}\r\n"));
        assert!(right, "{to}: {asked}");
        task.sidecar
            .wait_for_access(to, |record| record.error() == code);
    };
    refused(&task, "closed.data:7000", 403, "policy-denied");
    refused(&task, "silent.data:7000", 503, "workload-unavailable");
    refused(&task, "gone.data:7000", 503, "no-endpoints");
    refused(&task, &nobody, 503, "connect-failed");
    let plan = mesh.workload("airflow", "careful");
    let careful = plan.flag("--outside", "refuse").start();
    refused(&careful, &there, 403, "outside-refused");
}

fn tunnel(task: &Workload, to: &str) -> TcpStream {
    let head = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    ask_for(task, &head, "HTTP/1.1 200 ")
}

fn echo(mut stream: TcpStream) {
    let mut reading = stream.try_clone().expect("a socket");
    let _ = std::io::copy(&mut reading, &mut stream);
}

fn is_echoed(mut stream: &TcpStream) -> bool {
    let mut echoed = [0; 4];
    stream.write_all(b"ping").is_ok()
        && stream.read_exact(&mut echoed).is_ok()
        && &echoed == b"ping"
}

#[test]
fn a_far_side_that_breaks_is_a_reset_to_a_client_of_connect() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let server = mesh
        .workload("data", "server")
        .serves("server.data:7000=7000/tcp,server.data:7001=7001/tcp")
        .start();
    serve(&server, 7000, |mut stream| {
        let _ = stream.read(&mut [0]);
        let _ = stream.write_all(b"half an ans");
        // Closing it is a reset then.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    });
    serve(&server, 7001, |mut stream| {
        let _ = stream.read(&mut [0]);
        let _ = stream.write_all(b"a whole one");
    });
    let task = mesh.workload("airflow", "task").start();
    let ending = |to: &str| {
        let mut stream = tunnel(&task, to);
        stream.write_all(b"?").unwrap();
        let mut answer = Vec::new();
        let end = stream
            .read_to_end(&mut answer)
            .map_err(|error| error.kind());
        (end.map(drop), answer.len())
    };
    assert_eq!(ending("server.data:7001"), (Ok(()), 11));
    let (end, received) = ending("server.data:7000");
    assert_eq!(
        end,
        Err(ErrorKind::ConnectionReset),
        "after {received} bytes"
    );
}

#[test]
fn tunnels_and_upgraded_connections_count_until_they_end() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let server = mesh
        .workload("data", "server")
        .serves("server.data:7000=7000/tcp,server.data:7001=7001/http")
        .start();
    serve(&server, 7000, echo);
    serve(&server, 7001, |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            head.extend(byte);
        }
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        );
        echo(stream);
    });
    let task = mesh
        .workload("airflow", "task")
        .flag("--max-connections", "4")
        .start();
    let upgrade = "GET http://server.data:7001/ HTTP/1.1\r\nhost: server.data:7001\r\n\
                   connection: upgrade\r\nupgrade: echo\r\n\r\n";
    let mut open = vec![
        tunnel(&task, "server.data:7000"),
        tunnel(&task, "server.data:7000"),
        ask_for(&task, upgrade, "HTTP/1.1 101 "),
        ask_for(&task, upgrade, "HTTP/1.1 101 "),
    ];
    assert!(open.iter().all(is_echoed));
    let refused = || {
        let labels = [("direction", "outbound"), ("code", "overloaded")];
        task.sidecar.metrics().sum("sidewind_errors_total", &labels)
    };
    for number in 1..=3 {
        let mut stream = task.place.connect(task.at(15001), PATIENCE).unwrap();
        let end = stream.read(&mut [0]);
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        assert_eq!(refused(), f64::from(number));
    }
    assert!(open.iter().all(is_echoed), "those that were there go on");
    for ended in 0..2 {
        // A tunnel first and then an upgraded connection.
        drop(open.remove(ended));
        let before = refused();
        let stream = eventually("there is a place again", PATIENCE, || {
            let mut stream = task.place.connect(task.at(15001), PATIENCE).ok()?;
            let to = "server.data:7000";
            let head = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).ok()?;
            (&answer == b"HTTP/1.1 200").then_some(stream)
        });
        assert!(refused() >= before);
        open.insert(0, stream);
    }
}

#[test]
fn a_drain_waits_for_the_tunnels_of_its_clients() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let server = mesh
        .workload("data", "server")
        .serves("server.data:7000=7000/tcp")
        .start();
    serve(&server, 7000, echo);
    let mut task = mesh.workload("airflow", "task").start();
    let stream = tunnel(&task, "server.data:7000");
    assert!(is_echoed(&stream));
    task.sidecar.terminate();
    // Four times as long as nothing at all would keep it.
    let process = task.sidecar.process();
    let ended = within(Duration::from_secs(2), || {
        (!process.is_running()).then_some(())
    });
    assert!(ended.is_none(), "the sidecar has ended with a tunnel open");
    assert!(is_echoed(&stream));
    drop(stream);
    let status = task.sidecar.process().wait(PATIENCE);
    assert!(status.success(), "{status}");
}
