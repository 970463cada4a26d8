//! SIGTERM under load.

use std::time::Duration;

use sidewind_tests::load::Load;
use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{API, Answer, Pair};

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
    let mut servers = Vec::new();
    for name in ["orders-1", "orders-2"] {
        let server = mesh
            .workload("data", name)
            .serves("orders-api.data:80=8080/http")
            .start();
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
    let (leaving, _api) = &mut servers[0];
    leaving.sidecar.terminate();
    let status = leaving.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
    after(200);
    let report = load.stop();
    assert!(
        report.failures.is_empty(),
        "{:?} of {}",
        report.failures,
        report.requests
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
    use std::io::{Read, Write};
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
    let mut ping = || {
        stream.write_all(b"PING\r\n").unwrap();
        let mut pong = [0; 7];
        stream.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"+PONG\r\n");
    };
    ping();
    server.sidecar.terminate();
    eventually("the sidecar drains", Duration::from_secs(2), || {
        (!server.sidecar.is_ready()).then_some(())
    });
    (0..20).for_each(|_| ping());
    assert!(server.sidecar.process().is_running());
    drop(stream);
    let status = server.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}

#[test]
fn the_grace_period_ends_what_does_not_end_by_itself() {
    let mut mesh = Mesh::plan().start();
    let plan = mesh.workload("data", "redis").serves("redis.data=6379/tcp");
    let mut server = plan.flag("--drain-timeout", "2s").start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let _held = client
        .place
        .connect(server.at(6379), Duration::from_secs(10))
        .unwrap();
    server.sidecar.wait_ready(PATIENCE);
    server.sidecar.terminate();
    server.sidecar.process().wait(Duration::from_secs(8));
}

#[test]
fn the_admin_port_begins_the_drain_as_the_signal_does() {
    let mut pair = Pair::start();
    let reply = pair.api.sidecar.ask("POST", "/shutdown", "");
    assert!(reply.status < 300, "{reply:?}");
    let status = pair.api.sidecar.process().wait(GRACE);
    assert!(status.success(), "{status}");
}
