//! Endpoints that have no sidecar.

use std::net::SocketAddr;

use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::edge::{certificate, start_gateway};
use crate::support::Answer;

/// Fixed endpoints of a service that clients call at an address and by a name.
fn entry(name: &str, address: &str, port: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|at| format!("{{ address: {}, port: {} }}", at.ip(), at.port()))
        .collect();
    format!(
        "---
apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: {{ name: {name}, namespace: airflow }}
spec:
  hosts: [{name}.airflow]
  addresses: [{address}]
  ports: [{port}]
  endpoints: [{}]
",
        endpoints.join(", ")
    )
}

#[test]
fn endpoints_that_are_gone_cost_no_request_and_no_connection() {
    let mut mesh = Mesh::plan().start();
    let host = mesh.outsider("server");
    let _api = workloads::api(&host, 8080, &mesh.scratch);
    let _redis = workloads::redis(&host, 6379, false, &mesh.scratch);
    // Seven ports at which nobody listens, and one at which somebody does.
    let among = |port: u16| -> Vec<SocketAddr> {
        let gone = (9001..=9007).chain([port]);
        gone.map(|port| (host.address, port).into()).collect()
    };
    let http = entry(
        "api",
        "10.96.0.10",
        "{ port: 80, protocol: http }",
        &among(8080),
    );
    let tcp = entry(
        "redis",
        "10.96.0.11",
        "{ port: 6379, protocol: tcp }",
        &among(6379),
    );
    let known = entry(
        "known",
        "10.96.0.12",
        "{ port: 80, protocol: http }",
        &[(host.address, 8080).into()],
    );
    mesh.control_plane
        .write_config("entries.yaml", &(http + &tcp + &known));
    let task = mesh.workload("airflow", "task").start();
    // They are of one document, which the control plane reads in its own time.
    eventually("the entries are known", PATIENCE, || {
        let answer = task.curl(&["http://10.96.0.12/orders"]).finish();
        (answer.code() == Some(0) && answer.out().contains("anemometer")).then_some(())
    });
    let post = ["-d", "x", "http://10.96.0.10/echo"];
    assert_eq!(task.curl(&post).finish().success(), "x");
    let record = task
        .sidecar
        .wait_for_access("the request", |record| record.path() == "/echo");
    assert_eq!(record.status(), 200, "{record}");
    let redis = task.program("redis-cli").args(["-h", "10.96.0.11", "PING"]);
    assert_eq!(redis.finish().success(), "PONG\n");
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: airflow }
spec:
  gatewayClassName: sidewind
  listeners: [{ name: http, port: 8081, protocol: HTTP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: airflow }
spec:
  parentRefs: [{ name: web }]
  rules:
    - matches: [{ path: { value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { path: { type: ReplaceFullPath, replaceFullPath: /new } }
    - backendRefs: [{ name: api, port: 80 }]
      sessionPersistence: { sessionName: kept }
";

#[test]
fn a_gateway_asks_servers_in_http2_for_no_upgrade_and_says_how_its_clients_came() {
    let mut mesh = Mesh::plan().start();
    let server = mesh.outsider("server");
    let _nginx = workloads::nginx(&server, 8080, &mesh.scratch);
    let api = entry(
        "api",
        "10.96.0.10",
        "{ port: 80, protocol: http2 }",
        &[(server.address, 8081).into()],
    );
    mesh.control_plane
        .write_config("gateway.yaml", &format!("{GATEWAY}{api}"));
    certificate(&mesh, "unused", "unused.example.com");
    let host = mesh.outsider("gateway");
    let address = host.address.to_string();
    let trusted = ["--gateway-trusted-proxies", &address];
    let mut gateway = start_gateway(&mesh, &host, &trusted);
    gateway.wait_ready(PATIENCE);
    let ask = |arguments: &[&str], path: &str| {
        let curl = host
            .place
            .program("curl")
            .args(["-sSi", "--max-time", "30"]);
        let url = format!("http://{address}:8081{path}");
        curl.args(arguments).arg(url).finish().success()
    };
    let upgrade = ["-H", "connection: upgrade", "-H", "upgrade: websocket"];
    for _ in 0..8 {
        let printed = ask(&upgrade, "/");
        let answer = Answer::parse(&printed);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "hello from nginx\n")
        );
    }
    let errors = gateway.metrics().sum("sidewind_errors_total", &[]);
    assert_eq!(errors, 0.0);

    // What a proxy in front says, which is trusted; and what nobody has said.
    let from_https = [
        "-H",
        "host: airflow.example.com",
        "-H",
        "x-forwarded-for: 192.0.2.7",
        "-H",
        "x-forwarded-proto: https",
    ];
    let redirected = ask(&from_https, "/old");
    assert!(
        redirected.contains("location: https://airflow.example.com/new\r\n"),
        "{redirected}"
    );
    let redirected = ask(&["-H", "host: airflow.example.com"], "/old");
    assert!(
        redirected.contains("location: http://airflow.example.com:8081/new\r\n"),
        "{redirected}"
    );
    for (arguments, secure) in [(&from_https[..], true), (&[], false)] {
        let answer = ask(arguments, "/");
        let cookie = answer
            .lines()
            .find(|line| line.starts_with("set-cookie: kept="));
        let cookie = cookie.unwrap_or_else(|| panic!("no cookie: {answer}"));
        assert_eq!(cookie.contains("; Secure"), secure, "{cookie}");
    }
}
