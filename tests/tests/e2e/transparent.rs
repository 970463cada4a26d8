//! Unmodified programs in two namespaces with redirection on, and a listener on the wire between them.

use std::time::Duration;

use sidewind_tests::mesh::{MESH_PORT, Mesh, Workload};
use sidewind_tests::wait::{PATIENCE, within};
use sidewind_tests::wire::{Recording, TlsSeen};
use sidewind_tests::workloads;

use crate::support::{API_ID, Pair, TASK_ID};

/// Stops a recording, and checks that nothing but TLS passed between the two.
#[track_caller]
fn only_tls(recording: Recording, one: &Workload, other: &Workload, secrets: &[&str]) -> TlsSeen {
    let wire = recording.stop().between(one.address, other.address);
    wire.only_tls(MESH_PORT, secrets)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn curl_reaches_the_api_and_the_wire_shows_only_tls() {
    let pair = Pair::start();
    let recording = Recording::start(&pair.mesh.lan_router());
    let headers = ["-H", "x-canary: not-for-the-wire"];
    let echoed = pair.curl("/echo?secret-path", &headers);
    assert!(
        echoed.contains("not-for-the-wire") && echoed.contains("/echo?secret-path"),
        "{echoed}"
    );
    let secrets = ["not-for-the-wire", "secret-path", "HTTP/1.1", "BaseHTTP"];
    only_tls(recording, &pair.task, &pair.api, &secrets);

    let outbound = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    let inbound = pair
        .api
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    for (record, direction) in [(outbound, "outbound"), (inbound, "inbound")] {
        assert_eq!(record.direction(), direction, "{record}");
        assert_eq!(
            (
                record.source_id().as_str(),
                record.destination_id().as_str()
            ),
            (TASK_ID, API_ID),
            "{record}"
        );
        assert!(record.tls() && record.status() == 200, "{record}");
    }
}

#[test]
fn h2load_by_http_1_and_by_h2c_loses_no_request_and_the_wire_shows_only_tls() {
    let mut mesh = Mesh::plan().start();
    let server = mesh
        .workload("data", "web")
        .serves("web.data=8080")
        .serves("web.data:8081=8081")
        .start();
    let _nginx = workloads::nginx(&server, 8080, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let recording = Recording::start(&mesh.lan_router());
    let h2load = |arguments: &[&str]| {
        let h2load = client
            .program("h2load")
            .args(["-n", "2000", "-c", "20"])
            .args(arguments);
        h2load.finish().success()
    };
    let http1 = h2load(&["--h1", "http://web.data:8080/"]);
    assert!(
        http1.contains("2000 succeeded, 0 failed, 0 errored") && http1.contains("2000 2xx"),
        "{http1}"
    );
    let h2c = h2load(&["-m", "10", "http://web.data:8081/"]);
    assert!(
        h2c.contains("2000 succeeded, 0 failed, 0 errored") && h2c.contains("2000 2xx"),
        "{h2c}"
    );

    let seen = only_tls(
        recording,
        &client,
        &server,
        &["hello from nginx", "h2load", "HTTP/1.1"],
    );
    // Forty connections of clients share few of the mesh.
    assert!(seen.connections <= 4, "{seen:?}");
    let requests = [
        ("direction", "outbound"),
        ("status", "2xx"),
        ("tls", "true"),
    ];
    assert_eq!(
        client
            .sidecar
            .metrics()
            .sum("sidewind_requests_total", &requests),
        4000.0
    );
}

#[test]
fn redis_benchmark_passes_and_the_wire_shows_only_tls() {
    let mut mesh = Mesh::plan().start();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data=6379/tcp")
        .start();
    let _redis = workloads::redis(&server, 6379, false, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let recording = Recording::start(&mesh.lan_router());
    let benchmark = client.program("redis-benchmark").args([
        "-h",
        "redis.data",
        "-c",
        "20",
        "-n",
        "2000",
        "-q",
    ]);
    let report = benchmark
        .args(["-P", "4", "-t", "set,get,lpush"])
        .finish()
        .success();
    assert!(
        report.contains("SET:") && report.contains("GET:") && report.contains("LPUSH"),
        "{report}"
    );
    let set =
        client
            .program("redis-cli")
            .args(["-h", "redis.data", "SET", "canary", "not-for-the-wire"]);
    assert_eq!(set.finish().success().trim(), "OK");
    only_tls(
        recording,
        &client,
        &server,
        &["not-for-the-wire", "$3\r\nSET", "$3\r\nGET", "LPUSH"],
    );
    let record = client
        .sidecar
        .wait_for_access("a connection", |record| !record.is_request());
    assert_eq!(
        (record.text("protocol").as_str(), record.tls()),
        ("tcp", true),
        "{record}"
    );
}

#[test]
fn psql_works_and_the_wire_shows_only_tls() {
    let mut mesh = Mesh::plan().start();
    let server = mesh
        .workload("data", "postgres")
        .serves("postgres.data=5432/tcp")
        .start();
    let _postgres = workloads::postgres(&server, 5432, "10.77.0.0/16", &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let recording = Recording::start(&mesh.lan_router());
    let psql = |sql: &str| {
        let psql =
            client
                .program("psql")
                .args(["-h", "postgres.data", "-U", "postgres", "-Atc", sql]);
        psql.finish().success()
    };
    psql(
        "create table canaries as select n, 'not-for-the-wire' as text from generate_series(1, 5000) n",
    );
    assert_eq!(
        psql("select count(*), min(text) from canaries").trim(),
        "5000|not-for-the-wire"
    );
    assert_eq!(psql("select text from canaries").lines().count(), 5000);
    only_tls(
        recording,
        &client,
        &server,
        &["not-for-the-wire", "canaries", "SELECT", "select"],
    );
}

#[test]
fn large_bodies_arrive_whole_in_both_directions() {
    let pair = Pair::start();
    let directory = pair.mesh.scratch.directory("bodies", pair.task.uid());
    let sent: Vec<u8> = (0..5_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let file = pair.mesh.scratch.write("sent", &sent);
    let received = directory.join("received");
    let upload = format!("@{}", file.display());
    pair.curl(
        "/echo",
        &["--data-binary", &upload, "-o", &received.to_string_lossy()],
    );
    assert!(
        std::fs::read(&received).unwrap() == sent,
        "what came back is not what was sent"
    );
    // Of unknown length: chunked.
    let from_pipe = [
        "-X",
        "POST",
        "-H",
        "transfer-encoding: chunked",
        "--data-binary",
        &upload,
        "-o",
        &received.to_string_lossy(),
    ];
    pair.curl("/echo", &from_pipe);
    assert!(
        std::fs::read(&received).unwrap() == sent,
        "what came back is not what was sent in chunks"
    );
}

#[test]
fn a_destination_outside_the_mesh_is_reached_as_it_is_unless_that_is_forbidden() {
    let mut mesh = Mesh::plan().start();
    let outside = mesh.outsider("elsewhere");
    let _api = workloads::api(&outside, 8080, &mesh.scratch);
    let open = mesh.workload("airflow", "open").start();
    let echoed = open
        .curl(&["http://elsewhere:8080/echo"])
        .finish()
        .success();
    assert!(
        !echoed.to_lowercase().contains("x-forwarded-client-cert"),
        "{echoed}"
    );
    let record = open
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert!(
        !record.tls() && record.destination_id().is_empty(),
        "{record}"
    );

    let closed = mesh
        .workload("airflow", "closed")
        .flag("--outside", "refuse")
        .start();
    let refused = closed
        .curl(&["-i", "http://elsewhere:8080/echo"])
        .finish()
        .success();
    assert!(
        refused.contains("403") && refused.contains("sidewind-error: outside-refused"),
        "{refused}"
    );
}

#[test]
fn a_redis_in_protected_mode_is_not_opened_by_its_sidecar() {
    let mut mesh = Mesh::plan().start();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data=6379/tcp")
        .start();
    let _redis = workloads::redis(&server, 6379, true, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let ping = client
        .program("redis-cli")
        .args(["-h", "redis.data", "PING"])
        .finish();
    // Redis answers and closes before it has read anything, so that its answer may get lost.
    let said = ping.out() + &ping.err();
    assert!(said.contains("DENIED") || said.contains("reset"), "{said}");
    assert!(!said.contains("PONG"), "{said}");
}

#[test]
fn trust_that_postgres_has_in_loopback_is_not_lent_to_the_mesh() {
    let mut mesh = Mesh::plan().start();
    let server = mesh
        .workload("data", "postgres")
        .serves("postgres.data=5432/tcp")
        .start();
    let _postgres = workloads::postgres(&server, 5432, "127.0.0.0/8", &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let psql = client
        .program("psql")
        .args(["-h", "postgres.data", "-U", "postgres", "-Atc", "select 1"])
        .finish();
    assert!(psql.failure().contains("no pg_hba.conf entry"));
}

#[test]
fn programs_beside_each_other_talk_over_loopback_without_the_sidecar() {
    let pair = Pair::start();
    let own = pair
        .api
        .curl(&["http://127.0.0.1:8080/orders"])
        .finish()
        .success();
    assert!(own.contains("anemometer"), "{own}");
    assert!(pair.api.sidecar.access_log().is_empty());
}

#[test]
fn redirection_is_taken_away_again_and_leaves_other_rules_alone() {
    let pair = Pair::start();
    let rules = || {
        pair.task
            .place
            .program("nft")
            .args(["list", "ruleset"])
            .finish()
            .success()
    };
    pair.task
        .place
        .program("nft")
        .args(["add", "table", "ip", "of_somebody_else"])
        .finish()
        .success();
    let redirect = |flags: &[&str]| {
        let redirect = pair
            .task
            .place
            .program(&pair.mesh.binaries().proxy)
            .arg("redirect")
            .args(flags);
        redirect.finish().success()
    };
    let before = rules();
    assert!(
        before.contains("15001") && before.contains("15006"),
        "{before}"
    );
    redirect(&[]);
    assert_eq!(
        rules().matches("15001").count(),
        before.matches("15001").count(),
        "twice is as once"
    );
    redirect(&["--remove"]);
    let after = rules();
    assert!(
        !after.contains("15001") && !after.contains("15006") && after.contains("of_somebody_else"),
        "{after}"
    );
    redirect(&["--remove"]);
}

/// A GET to each of these from one local port, over connections that all stay open until the last is answered.
const FROM_ONE_PORT: &str = r#"
import socket, sys
connections = []
for address in sys.argv[1:]:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("", 41000))
    connection.settimeout(20)
    connection.connect((address, 8080))
    connection.sendall(b"GET /echo HTTP/1.1\r\nhost: some.data\r\n\r\n")
    print(connection.recv(15).decode())
    connections.append(connection)
"#;

#[test]
fn connections_from_one_port_to_several_servers_keep_their_port_by_which_they_are_known() {
    let mut mesh = Mesh::plan().start();
    let servers = ["one", "two", "three"].map(|name| {
        let server = mesh.workload("data", name);
        let server = server.serves(&format!("{name}.data=8080/http")).start();
        let api = workloads::api(&server, 8080, &mesh.scratch);
        (server, api)
    });
    let task = mesh.workload("airflow", "task").start();
    let addresses = servers
        .each_ref()
        .map(|(server, _)| server.address.to_string());
    let asked = task.program("/usr/bin/python3").args(["-c", FROM_ONE_PORT]);
    let answers = asked.args(addresses).finish().success();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    let called = within(PATIENCE, || {
        let mut called = task.sidecar.access_log();
        called.retain(|record| record.path() == "/echo");
        (called.len() == 3).then_some(called)
    });
    for record in called.expect("three records") {
        let source = record.text("source.address");
        assert!(source.ends_with(":41000"), "{record}");
    }
}

#[test]
fn iptables_does_as_well_as_nftables() {
    let pair = Pair::start();
    let redirect = |flags: &[&str]| {
        let redirect = pair
            .task
            .place
            .program(&pair.mesh.binaries().proxy)
            .arg("redirect")
            .args(flags);
        redirect.finish().success()
    };
    redirect(&["--remove"]);
    redirect(&["--backend", "iptables"]);
    assert!(pair.curl("/orders", &[]).contains("anemometer"));
    let record = pair
        .task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/orders");
    assert!(record.tls(), "{record}");
    redirect(&["--backend", "iptables", "--remove"]);
}

#[test]
fn many_clients_share_a_sidecar_without_failures() {
    let pair = Pair::start();
    let load = sidewind_tests::load::Load::new(pair.api.at(8080), "/orders")
        .connections(50)
        .rate(300);
    let report = load
        .duration(Duration::from_secs(3))
        .start(&pair.task.place)
        .finish();
    assert!(
        report.failures.is_empty() && report.requests >= 850,
        "{:?} of {}",
        report.failures,
        report.requests
    );
}
