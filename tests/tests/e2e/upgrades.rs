//! Upgraded connections, WebSockets say: what ends at one end ends at the other, and what breaks breaks.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};
use socket2::SockRef;

use crate::bad_input::send;
use crate::support::TASK_ID;

const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\n\r\n";

const ENTRY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders, namespace: data }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 80, protocol: http, targetPort: 8080 }]
  service: orders-api.data
";

/// How a connection ended, as one end saw it: by an orderly end, or by an error.
type End = Result<usize, ErrorKind>;

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn serve(listener: &TcpListener, ends: &SyncSender<End>) {
    while let Ok((mut stream, _)) = listener.accept() {
        let path = read_head(&mut stream);
        let switch = format!("HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}hello");
        stream.write_all(switch.as_bytes()).unwrap();
        // A reset takes away what has not been read yet: each end says that it has read everything.
        stream.read_exact(&mut [0]).unwrap();
        if path.starts_with("GET /breaks ") {
            reset(stream);
        } else if path.starts_with("GET /ends ") {
            drop(stream);
        } else {
            stream.write_all(b"!").unwrap();
            let end = stream.read(&mut [0; 16]).map_err(|error| error.kind());
            ends.send(end).unwrap();
        }
    }
}

fn reset(stream: TcpStream) {
    let linger = Some(Duration::ZERO);
    SockRef::from(&stream).set_linger(linger).unwrap();
}

#[test]
fn an_upgraded_connection_ends_at_one_end_as_it_does_at_the_other() {
    let mut mesh = Mesh::plan().start();
    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data=8080/http").start();
    let task = mesh.workload("airflow", "task").start();
    let outside = mesh.outsider("outside");
    let listener = api.place.listen((api.bind(), 8080).into()).unwrap();
    let (ends, ended): (_, Receiver<End>) = sync_channel(8);
    std::thread::spawn(move || serve(&listener, &ends));
    let upgrade = |place, path: &str| {
        let asked = format!("GET {path} HTTP/1.1\r\nhost: orders-api.data\r\n{UPGRADE}");
        let mut stream = send(place, api.at(8080), asked.as_bytes());
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        stream.write_all(b"!").unwrap();
        if path.starts_with("/client") {
            stream.read_exact(&mut [0]).unwrap();
        }
        stream
    };
    let broken = Err(ErrorKind::ConnectionReset);
    for place in [&task.place, &outside.place] {
        for (path, expected) in [("/ends", Ok(0)), ("/breaks", broken)] {
            let end = upgrade(place, path).read(&mut [0; 16]);
            assert_eq!(end.map_err(|error| error.kind()), expected, "{path}");
        }
        drop(upgrade(place, "/client-ends"));
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ok(0));
        reset(upgrade(place, "/client-breaks"));
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), broken);
    }
    let record = task
        .sidecar
        .wait_for_access("the connection that broke", |record| {
            record.path() == "/breaks"
        });
    assert_eq!(record.error(), "upstream-reset", "{record}");
}

#[test]
fn an_upgrade_goes_on_to_another_endpoint_where_one_has_died() {
    let mut mesh = Mesh::plan().config("entry.yaml", ENTRY).start();
    let [mut dies, deaf, api] = ["dies", "deaf", "api"].map(|name| {
        let workload = mesh.workload("data", name);
        workload.serves("orders-api.data:80=8080/http").start()
    });
    let task = mesh.workload("airflow", "task").start();
    for server in [&dies, &api] {
        let listener = server.place.listen((server.bind(), 8080).into()).unwrap();
        let (ends, _) = sync_channel(0);
        std::thread::spawn(move || serve(&listener, &ends));
    }
    let endpoints = || task.sidecar.get("/endpoints").text();
    let switches = || {
        let asked = format!("GET /ends HTTP/1.1\r\nhost: orders-api.data\r\n{UPGRADE}");
        let mut stream = send(&task.place, ([10, 96, 0, 10], 80).into(), asked.as_bytes());
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(b"!").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    };
    eventually("all three are known", PATIENCE, || {
        switches();
        let known = endpoints();
        let all = [&dies, &deaf, &api];
        all.iter()
            .all(|one| known.contains(&one.at(8080).to_string()))
            .then_some(())
    });
    // Nobody says any more who is there.
    mesh.control_plane.kill();
    dies.sidecar.process().kill();
    for _ in 0..20 {
        switches();
    }
    let known = endpoints();
    assert!(known.contains(&dies.at(8080).to_string()), "{known}");
    let retried = [("outcome", "retried")];
    let metrics = task.sidecar.metrics();
    assert!(metrics.sum("sidewind_retries_total", &retried) >= 2.0);
}

#[test]
fn an_upgrade_brings_its_task_along() {
    let mut mesh = Mesh::plan().start();
    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data=8080/http");
    let api = api.flag("--task-context-from", TASK_ID).start();
    let task = mesh.workload("airflow", "task");
    let task = task.flag("--task-lookup", "environment");
    let task = task
        .env("AIRFLOW_CTX_DAG_ID", "payroll")
        .env("AIRFLOW_CTX_TASK_ID", "load")
        .env("AIRFLOW_CTX_DAG_RUN_ID", "manual__1")
        .start();
    let listener = api.place.listen((api.bind(), 8080).into()).unwrap();
    let (ends, _) = sync_channel(0);
    std::thread::spawn(move || serve(&listener, &ends));
    let asked = format!("GET /ends HTTP/1.1\r\nhost: orders-api.data\r\n{UPGRADE}");
    let mut stream = send(&task.place, api.at(8080), asked.as_bytes());
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.read_exact(&mut [0; 5]).unwrap();
    stream.write_all(b"!").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    drop(stream);
    let log = &api.sidecar;
    let record = log.wait_for_access("the upgrade", |record| record.path() == "/ends");
    let names = [record.text("dag_id"), record.text("run_id")];
    assert_eq!(names, ["payroll", "manual__1"], "{record}");
}
