//! SIGTERM under load.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sidewind_tests::load::Load;
use sidewind_tests::mesh::{MESH_PORT, Mesh, Sidecar, Workload};
use sidewind_tests::wait::{PATIENCE, eventually, within};
use sidewind_tests::workloads;
use tokio::time::Instant;

use crate::support::{API, Answer, Pair, working_on};

/// One exchange of 6 bytes there and 7 back.
#[track_caller]
fn ping(stream: &mut TcpStream) {
    stream.write_all(b"PING\r\n").unwrap();
    let mut pong = [0; 7];
    stream.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"+PONG\r\n");
}

const GRACE: Duration = Duration::from_secs(25);

#[test]
fn a_sidecar_that_is_told_to_end_finishes_every_request_that_it_has_accepted() {
    let mut pair = Pair::start();
    let slow: Vec<_> = (0..10)
        .map(|_| {
            let curl = pair.task.curl(&["-i", &format!("{API}/slow?ms=1500")]);
            std::thread::spawn(move || Answer::parse(&curl.finish().success()))
        })
        .collect();
    pair.wait_for_work(10);
    pair.api.sidecar.terminate();
    for answer in slow {
        let answer = answer.join().unwrap();
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "at last\n"),
            "{answer:?}"
        );
    }
    let status = pair.api.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}

#[test]
fn a_rolling_restart_under_load_loses_no_request() {
    let entry = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders, namespace: data }
spec:
  addresses: [10.96.0.10]
  hosts: [orders.data]
  ports: [{ port: 80, protocol: http, targetPort: 8080 }]
  service: orders-api.data
";
    let mut mesh = Mesh::plan().config("orders.yaml", entry).start();
    let names = ["orders-1", "orders-2"];
    let mut servers = Vec::new();
    for name in names {
        let plan = mesh.workload("data", name);
        let server = plan.serves("orders-api.data:80=8080/http").start();
        let api = workloads::api(&server, 8080, &mesh.scratch);
        servers.push((server, api));
    }
    let task = mesh.workload("airflow", "task").start();
    let load = Load::new("10.96.0.10:80".parse().unwrap(), "/orders")
        .rate(200)
        .start(&task.place);
    let after = |more: u64| {
        let now = load.succeeded();
        eventually("requests go on", PATIENCE, || {
            (load.succeeded() >= now + more).then_some(())
        });
    };
    after(200);
    for (name, (workload, _api)) in names.into_iter().zip(&mut servers) {
        workload.sidecar.terminate();
        let status = workload.sidecar.process().wait(GRACE);
        assert!(status.success(), "{status}");
        after(50);
        let plan = mesh.workload("data", name);
        let plan = plan.serves("orders-api.data:80=8080/http");
        *workload = plan.start_at(workload.host());
        // The next one goes only when this one has its share again.
        eventually("the new sidecar serves", PATIENCE, || {
            let served = [("direction", "inbound")];
            let metrics = workload.sidecar.metrics();
            (metrics.sum("sidewind_requests_total", &served) >= 50.0).then_some(())
        });
    }
    after(100);
    let report = load.stop();
    assert!(
        report.failures.is_empty(),
        "{:?} of {}",
        report.failures,
        report.requests
    );
}

#[test]
fn a_workload_that_pauses_for_seconds_between_its_last_calls_is_waited_for() {
    let mut mesh = Mesh::plan().start();
    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data=8080").start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let plan = mesh.workload("airflow", "task").with_default_drain();
    let mut task = plan.start();
    let ask = |task: &Workload| {
        let printed = task.curl(&["-i", &format!("{API}/orders")]).finish();
        Answer::parse(&printed.success()).status
    };
    assert_eq!(ask(&task), 200);
    task.sidecar.terminate();
    let process = task.sidecar.process();
    let ended = within(Duration::from_secs(4), || {
        (!process.is_running()).then_some(())
    });
    assert!(
        ended.is_none(),
        "the sidecar has ended while its workload paused"
    );
    assert_eq!(ask(&task), 200, "the workload's last call");
    let last = Instant::now();
    let status = task.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
    assert!(
        last.elapsed() >= Duration::from_secs(9),
        "{:?}",
        last.elapsed()
    );
}

#[test]
fn a_draining_sidecar_is_not_ready_and_still_serves_its_own_workload() {
    let mut pair = Pair::start();
    // A request of the workload's own that is under way keeps the sidecar there.
    let slow = pair.task.curl(&["-i", &format!("{API}/slow?ms=3000")]);
    let slow = std::thread::spawn(move || Answer::parse(&slow.finish().success()));
    pair.wait_for_work(1);
    pair.task.sidecar.terminate();
    eventually("the sidecar is not ready", Duration::from_secs(2), || {
        (!pair.task.sidecar.is_ready()).then_some(())
    });
    assert_eq!(
        pair.ask("/orders", &[]).status,
        200,
        "the workload's last calls are served"
    );
    assert_eq!(slow.join().unwrap().status, 200);
    let status = pair.task.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}

#[test]
fn an_opaque_connection_is_not_cut_by_the_drain() {
    let mut mesh = Mesh::plan().start();
    let mut server = mesh
        .workload("data", "redis")
        .serves("redis.data=6379/tcp")
        .start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let mut stream = client
        .place
        .connect(server.at(6379), Duration::from_secs(10))
        .unwrap();
    ping(&mut stream);
    server.sidecar.terminate();
    eventually("the sidecar drains", Duration::from_secs(2), || {
        (!server.sidecar.is_ready()).then_some(())
    });
    (0..20).for_each(|_| ping(&mut stream));
    assert!(server.sidecar.process().is_running());
    drop(stream);
    let status = server.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}

#[test]
fn the_grace_period_cuts_what_does_not_end_by_itself_and_says_so() {
    let mut mesh = Mesh::plan().start();
    let plan = mesh.workload("data", "redis").serves("redis.data=6379/tcp");
    let mut server = plan.flag("--drain-timeout", "2s").start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let plan = mesh.workload("airflow", "task");
    let client = plan.flag("--drain-timeout", "2s").start();
    let mut held = client.place.connect(server.at(6379), PATIENCE).unwrap();
    ping(&mut held);
    let began = Instant::now();
    server.sidecar.terminate();
    let status = server.sidecar.process().wait(Duration::from_secs(8));
    assert!(status.success(), "{status}");
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let log = server.sidecar.log();
    assert!(log.contains("the grace period is over"), "{log}");
    // The client is told by a reset, and the connection has its record.
    let end = held.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    let cut = |sidecar: &Sidecar, error: &str| {
        let record = sidecar.wait_for_access("the connection", |record| !record.is_request());
        assert_eq!(record.error(), error, "{record}");
        let bytes = (
            record.number("request_bytes"),
            record.number("response_bytes"),
        );
        assert_eq!(bytes, (6, 7), "{record}");
    };
    cut(&server.sidecar, "stopped");
    cut(&client.sidecar, "upstream-reset");
}

#[test]
fn a_client_of_a_sidecar_that_is_cut_off_has_its_record_there_too() {
    let mut mesh = Mesh::plan().start();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data=6379/tcp,redis.data:80=8080/http")
        .start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let api = workloads::api(&server, 8080, &mesh.scratch);
    let plan = mesh.workload("airflow", "task");
    let mut client = plan.flag("--drain-timeout", "1s").start();
    let mut held = client.place.connect(server.at(6379), PATIENCE).unwrap();
    ping(&mut held);
    let url = format!("http://{}/slow?ms=20000", server.at(8080));
    let slow = client.curl(&["-o", "/dev/null", &url]);
    let slow = std::thread::spawn(move || slow.finish());
    working_on(&api, 1);
    client.sidecar.terminate();
    let status = client.sidecar.process().wait(Duration::from_secs(8));
    assert!(status.success(), "{status}");
    let end = held.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    slow.join().unwrap().failure();
    let log = client.sidecar.access_log();
    let stopped = log.iter().filter(|record| record.error() == "stopped");
    let mut kinds: Vec<_> = stopped.map(|record| record.text("kind")).collect();
    kinds.sort();
    assert_eq!(kinds, ["connection", "request"], "{log:?}");
}

#[test]
fn the_admin_port_begins_the_drain_as_the_signal_does() {
    let mut pair = Pair::start();
    let reply = pair.api.sidecar.ask("POST", "/shutdown", "");
    assert!(reply.status < 300, "{reply:?}");
    let status = pair.api.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}

#[test]
fn a_draining_sidecar_takes_no_new_mesh_connections_and_serves_those_it_has() {
    let mut pair = Pair::start();
    let outside = pair.mesh.outsider("outside");
    let port = pair.api.at(MESH_PORT);
    assert!(outside.place.is_open(port));
    let slow = pair.task.curl(&["-i", &format!("{API}/slow?ms=4000")]);
    let slow = std::thread::spawn(move || Answer::parse(&slow.finish().success()));
    pair.wait_for_work(1);
    pair.api.sidecar.terminate();
    eventually("new mesh connections are refused", PATIENCE, || {
        (!outside.place.is_open(port)).then_some(())
    });
    assert!(pair.api.sidecar.process().is_running());
    assert_eq!(slow.join().unwrap().status, 200, "what it had accepted");
    let status = pair.api.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}
