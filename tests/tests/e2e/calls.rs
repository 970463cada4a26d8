//! gRPC servers of which some do not answer, by gRPC's own library.

use rustix::process::Signal;
use sidewind_tests::clients::Clients;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::endpoint_states;

const ENTRY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: calls, namespace: data }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 80, protocol: grpc, targetPort: 50051 }]
  service: calls.data
";

/// Three servers of one service, and a task that calls them. Fields are dropped in this order.
struct Three {
    task: Workload,
    servers: Vec<(Workload, Process)>,
    clients: Clients,
    _mesh: Mesh,
}

impl Three {
    #[track_caller]
    fn start(policy: &str) -> Self {
        let policy = format!(
            "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: calls, namespace: data }}
spec:
  targetRefs: [{{ kind: Service, name: calls }}]
  balance: {{ algorithm: roundRobin }}
{policy}
"
        );
        let plan = Mesh::plan().config("entry.yaml", ENTRY);
        let mut mesh = plan.config("traffic.yaml", &policy).start();
        let clients = Clients::install(&mesh.scratch);
        let start = |number| {
            let name = format!("calls-{number}");
            let workload = mesh.workload("data", &name);
            let workload = workload.serves("calls.data:80=50051/grpc").start();
            let at = format!("{}:50051", workload.bind());
            let script = clients.script(&workload.place, "calls.py");
            let script = script.args(["serve", &at]).user(workload.uid());
            let mut server = script.start(&name, &mesh.scratch);
            let local = workload.local(50_051);
            server.wait_until("the server listens", PATIENCE, || {
                workload.place.is_open(local)
            });
            (workload, server)
        };
        let servers = (1..=3).map(start).collect();
        let task = mesh.workload("airflow", "task").start();
        Self {
            task,
            servers,
            clients,
            _mesh: mesh,
        }
    }

    /// The outcomes of calls, one after another, each with so many seconds for its answer.
    fn call(&self, calls: usize, seconds: f64) -> Vec<String> {
        let script = self.clients.script(&self.task.place, "calls.py");
        let (calls, seconds) = (calls.to_string(), seconds.to_string());
        let script = script.args(["call", "10.96.0.10:80", "Echo", &calls, &seconds]);
        let printed = script.user(self.task.uid()).finish().success();
        printed.lines().map(str::to_owned).collect()
    }

    fn states(&self) -> Vec<String> {
        let endpoints: Vec<_> = (self.servers.iter())
            .map(|(workload, _)| workload.at(50_051))
            .collect();
        endpoint_states(&self.task, "calls.data", &endpoints)
    }

    #[track_caller]
    fn wait_for(&self, states: [&str; 3]) {
        eventually(&format!("servers are {states:?}"), PATIENCE, || {
            (self.states() == states).then_some(())
        });
    }
}

#[test]
fn a_server_that_hangs_is_found_out_by_the_deadlines_of_calls_alone() {
    let three =
        Three::start("  outlierDetection: { consecutiveFailures: 2, hold: 1h, maxHold: 1h }");
    // A deadline that no server misses on a machine that is slow.
    assert_eq!(three.call(6, 30.0), ["OK"; 6]);
    three.servers[1].1.signal(Signal::STOP);
    // Of six calls, one after another, two are for it.
    let outcomes = three.call(6, 2.0);
    let late = outcomes
        .iter()
        .filter(|outcome| outcome.starts_with("DEADLINE_EXCEEDED"));
    assert!(late.count() >= 2, "{outcomes:?}");
    assert_eq!(three.states()[1], "ejected", "{:?}", three.states());
    assert_eq!(three.call(12, 30.0), ["OK"; 12]);
    three.servers[1].1.signal(Signal::CONT);
}

#[test]
fn a_check_in_grpc_sees_through_the_mesh_which_servers_hang_or_are_gone() {
    let mut three = Three::start(
        "  healthCheck: { grpc: {}, interval: 100ms, timeout: 2s, unhealthyThreshold: 2 }",
    );
    assert_eq!(three.call(6, 30.0), ["OK"; 6]);
    three.wait_for(["healthy"; 3]);
    three.servers[0].1.kill();
    three.servers[1].1.signal(Signal::STOP);
    three.wait_for(["dead", "dead", "healthy"]);
    assert_eq!(three.call(6, 30.0), ["OK"; 6]);
    three.servers[1].1.signal(Signal::CONT);
    three.wait_for(["dead", "healthy", "healthy"]);
}
