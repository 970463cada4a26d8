//! What a gateway makes of what is Airflow's: who calls from outside is no task, and a refusal is no answer of Airflow's.

use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{Mesh, Sidecar, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::PATIENCE;
use sidewind_tests::workloads;

use crate::edge::{GATEWAY_ID, all, headers, start_gateway};
use crate::support::Answer;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: airflow }
spec:
  gatewayClassName: sidewind
  listeners: [{ name: plain, port: 8081, protocol: HTTP, hostname: airflow.example.com }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: airflow }
spec:
  parentRefs: [{ name: web }]
  rules:
    - matches:
        - path: { type: PathPrefix, value: /echo }
        - path: { type: PathPrefix, value: /execution/variables }
      backendRefs: [{ name: api-server, port: 8080 }]
---
apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api-server, namespace: airflow }
spec:
  targetRefs: [{ kind: Service, name: api-server }]
  rateLimits: [{ name: variables, requests: 1, per: 1h, paths: [/execution/variables/*] }]
";

/// A gateway in front of a service whose sidecar believes the gateway of its tasks.
struct Stage {
    _gateway: Sidecar,
    host: Host,
    api: Workload,
    _server: Process,
    _mesh: Mesh,
}

impl Stage {
    fn start() -> Self {
        let mut mesh = Mesh::plan().config("gateway.yaml", GATEWAY).start();
        let api = mesh.workload("airflow", "api-server");
        let api = api.serves("api-server.airflow=8080/http");
        let api = api.flag("--task-context-from", GATEWAY_ID).start();
        let server = workloads::api(&api, 8080, &mesh.scratch);
        std::fs::create_dir_all(mesh.scratch.join("certificates")).expect("a directory");
        let host = mesh.outsider("gateway");
        let mut gateway = start_gateway(&mesh, &host, &[]);
        gateway.wait_ready(PATIENCE);
        Self {
            _gateway: gateway,
            host,
            api,
            _server: server,
            _mesh: mesh,
        }
    }

    fn curl(&self, host: &str, path: &str, arguments: &[&str]) -> String {
        let address = self.host.address;
        let curl = self.host.place.program("curl");
        curl.args(["-sS", "--max-time", "30", "--resolve"])
            .arg(format!("{host}:8081:{address}"))
            .args(arguments)
            .arg(format!("http://{host}:8081{path}"))
            .finish()
            .success()
    }
}

#[test]
fn a_client_outside_cannot_say_that_it_is_a_task_even_where_the_gateway_is_believed() {
    let stage = Stage::start();
    let claims = [
        "-H",
        "baggage: airflow.dag_id=payroll,k=v,airflow.task_id=charge,airflow.run_id=r",
        "-H",
        "baggage: Airflow.triggered_by=ada",
        "-H",
        "x-airflow-dag-id: payroll",
    ];
    let seen = headers(&stage.curl("airflow.example.com", "/echo", &claims));
    assert_eq!(all(&seen, "baggage"), ["k=v"]);
    let told: Vec<_> = seen
        .iter()
        .filter(|(name, _)| name.starts_with("x-airflow-"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
    let sidecar = &stage.api.sidecar;
    let record = sidecar.wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(record.source_id(), GATEWAY_ID, "{record}");
    assert_eq!(record.text("dag_id"), "", "{record}");
}

#[test]
fn what_a_gateway_refuses_of_the_execution_api_is_no_answer_that_airflow_takes_for_its_own() {
    let stage = Stage::start();
    let sdk: &[&str] = &["-H", "airflow-api-version: 2026-06-30"];
    let (own, other) = ("airflow.example.com", "other.example.com");
    let variable = "/execution/variables/lab_var";
    // Takes the one that the limit allows.
    assert!(stage.curl(own, variable, &[]).contains("no such thing"));
    for (host, path, error, plain, told) in [
        (own, "/execution/xcoms/d/r/t/k", "no-route", 404, 403),
        (other, variable, "no-route", 404, 403),
        (own, variable, "rate-limited", 429, 503),
    ] {
        for (client, status) in [(&[][..], plain), (sdk, told)] {
            let answer = Answer::parse(&stage.curl(host, path, &[&["-i"], client].concat()));
            assert_eq!((answer.status, &*answer.error), (status, error), "{path}");
        }
    }
}
