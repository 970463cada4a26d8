//! WebSockets and gRPC streams of every kind, by other people's clients and servers; and such that last while certificates
//! and configuration change.

use std::time::Duration;

use sidewind_tests::clients::Clients;
use sidewind_tests::mesh::{Mesh, MeshPlan, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::{API_ID, TASK_ID, allow};

struct Story {
    task: Workload,
    api: Workload,
    _server: Process,
    clients: Clients,
    mesh: Mesh,
}

impl Story {
    fn with(plan: MeshPlan) -> Self {
        let mut mesh = plan.start();
        let clients = Clients::install(&mesh.scratch);
        let api = mesh.workload("data", "orders-api");
        let api = api.serves("orders-api.data=8080/http");
        let api = api.serves("orders-grpc.data=8090/http").start();
        let server = clients.script(&api.place, "streams/server.py");
        let server = server.args(["0.0.0.0", "8080", "8090"]);
        let mut server = server.start("streams", &mesh.scratch);
        let ports = [8080, 8090].map(|port| api.local(port));
        server.wait_until("the servers listen", PATIENCE, || {
            ports.iter().all(|port| api.place.is_open(*port))
        });
        let task = mesh.workload("airflow", "task").start();
        Self {
            task,
            api,
            _server: server,
            clients,
            mesh,
        }
    }

    fn servers(&self) -> [String; 2] {
        let [websocket, grpc] = [8080, 8090].map(|port| self.api.at(port));
        [format!("ws://{websocket}/"), grpc.to_string()]
    }
}

#[test]
fn websockets_and_every_kind_of_grpc_stream_pass() {
    let story = Story::with(Mesh::plan());
    let client = story.clients.script(&story.task.place, "streams/client.py");
    story
        .clients
        .hold(client.arg("check").args(story.servers()), 10);
    // One at least of each kind: unary, and streams of the client, of the server and of both.
    let grpc = [("direction", "outbound"), ("grpc_status", "0")];
    let metrics = story.task.sidecar.metrics();
    let counted = metrics.sum("sidewind_requests_total", &grpc);
    assert!(counted >= 4.0, "{counted}");
}

/// How both services are called, another way with each change.
fn traffic(change: u64) -> String {
    let algorithm = ["peakEwma", "roundRobin", "leastRequest"][change as usize % 3];
    let of = |service: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {service}, namespace: data }}
spec:
  parentRefs: [{{ kind: Service, group: \"\", name: {service}, port: {port} }}]
  rules:
    - filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {{ set: [{{ name: x-change, value: \"{change}\" }}] }}
---
apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: {service}, namespace: data }}
spec:
  targetRefs: [{{ kind: Service, name: {service} }}]
  balance: {{ algorithm: {algorithm} }}
  limits: {{ caller: {{ maxRequests: {limit} }}, server: {{ maxRequests: {limit} }} }}
---
",
            limit = 100 + change
        )
    };
    of("orders-api", 8080) + &of("orders-grpc", 8090)
}

/// Holds a WebSocket and a gRPC stream open, a message a second on each, while certificates of a minute are renewed and
/// policies, routes and what is said of traffic replaced.
fn streams_last(seconds: u64, rotations: usize) {
    let policy = |change: u64| {
        let other = format!("spiffe://sidewind.local/ns/airflow/sa/other-{change}");
        allow(API_ID, &[TASK_ID, &other], "")
    };
    let plan = Mesh::plan().flag("--svid-ttl", "60s");
    let plan = plan.config("policy.yaml", &policy(0));
    let story = Story::with(plan.config("traffic.yaml", &traffic(0)));
    let client = story.clients.script(&story.task.place, "streams/client.py");
    let client = client
        .args(["hold", &seconds.to_string()])
        .args(story.servers());
    let mut client = client.start("holder", &story.mesh.scratch);
    let workloads = [&story.task, &story.api];
    let mut expiries = workloads.map(|workload| vec![workload.sidecar.certificate_expiry()]);
    let mut changes = 0;
    let begun = tokio::time::Instant::now();
    let limit = Duration::from_secs(seconds * 2) + PATIENCE;
    eventually("the streams have ended", limit, || {
        for (expiries, workload) in expiries.iter_mut().zip(workloads) {
            let expiry = workload.sidecar.certificate_expiry();
            if expiries.last() != Some(&expiry) {
                expiries.push(expiry);
            }
        }
        if begun.elapsed().as_secs() / 5 > changes {
            changes += 1;
            let yaml = policy(changes);
            let config = &story.mesh.control_plane;
            config.write_config("policy.yaml", &yaml);
            config.write_config("traffic.yaml", &traffic(changes));
        }
        (!client.is_running()).then_some(())
    });
    let newest = format!("x-change: {changes}\r\n");
    eventually("the changes have come through", PATIENCE, || {
        // The server wants a WebSocket; what it says of anything else comes by the route, too.
        let url = format!("http://{}/", story.api.at(8080));
        let answer = story.task.curl(&["-i"]).arg(url).finish().success();
        answer.contains(&newest).then_some(())
    });
    let log = client.log();
    let status = client.wait(PATIENCE);
    assert!(
        status.success(),
        "{status} after {:?}:\n{log}",
        begun.elapsed()
    );
    for expiries in &expiries {
        let seen = expiries.len() - 1;
        assert!(seen >= rotations, "{seen} rotations");
    }
    assert!(
        changes >= seconds / 10,
        "{changes} changes of the configuration"
    );
}

#[test]
fn streams_outlive_certificates_and_changes_of_configuration() {
    streams_last(75, 3);
}

mod soak {
    use super::*;

    #[test]
    fn a_websocket_and_a_grpc_stream_last_for_half_an_hour() {
        streams_last(1800, 60);
    }
}
