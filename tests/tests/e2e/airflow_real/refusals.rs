//! What a task's own code is given for a variable that the mesh does not let it ask for, by Airflow's own client.

use serde_json::{Value, json};
use sidewind_tests::airflow::{Installed, Release};
use sidewind_tests::mesh::{Mesh, WORKLOAD_UID};
use sidewind_tests::workloads;

/// The API server lets variables be asked for that are not secret; two of them are on no way to it.
const DOCUMENTS: &str = "apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: api-server, namespace: airflow }
spec:
  selector: { spiffeIds: ['spiffe://sidewind.local/ns/airflow/sa/api-server'] }
  rules: [{ to: [{ paths: [/execution/variables/lab_var, /execution/variables/absent] }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api-server, namespace: airflow }
spec:
  parentRefs: [{ kind: Service, group: '', name: api-server, port: 8081 }]
  rules:
    - matches:
        - path: { type: Exact, value: /execution/variables/lab_var }
        - path: { type: Exact, value: /execution/variables/absent }
        - path: { type: Exact, value: /execution/variables/secret }
      backendRefs: [{ name: api-server, port: 8081 }]
    - matches: [{ path: { type: Exact, value: /execution/variables/misled } }]
      backendRefs: [{ name: nowhere, port: 8081 }]
";

#[test]
fn a_variable_that_the_mesh_refuses_is_no_variable_that_does_not_exist() {
    let airflow = Installed::find(Release::Three);
    let mut mesh = Mesh::plan().config("documents.yaml", DOCUMENTS).start();
    let api_server = mesh.workload("airflow", "api-server");
    let api_server = api_server.serves("api-server.airflow=8081").start();
    let _server = workloads::execution_api(&api_server, 8081, &mesh.scratch);
    let elsewhere = mesh.outsider("elsewhere").address;
    let worker = mesh.workload("airflow", "task");
    let worker = worker.flag("--outside", "refuse").start();
    let home = mesh.scratch.directory("home", Some(WORKLOAD_UID));
    let ask = |server: &str, keys: &[&str]| -> Value {
        let printed = worker
            .program(&airflow.program("python").to_string_lossy())
            .env("HOME", &home)
            .env("AIRFLOW_HOME", &home)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/variables.py"))
            .arg(format!("http://{server}:8081/execution/"))
            .arg("the default")
            .args(keys)
            .finish();
        serde_json::from_str(&printed.success()).expect("a JSON object")
    };
    let keys = ["lab_var", "absent", "secret", "unrouted", "misled"];
    let got = ask("api-server.airflow", &keys);
    const DENIED: &str = "AirflowSecretsBackendAccessDenied";
    let expected = json!({
        "lab_var": "hello",
        "absent": "the default",
        "secret": DENIED,
        "unrouted": DENIED,
        "misled": DENIED,
    });
    assert_eq!(got, expected);
    let got = ask(&elsewhere.to_string(), &["outside"]);
    assert_eq!(got, json!({ "outside": DENIED }));
    for (key, error) in [
        ("secret", "policy-denied"),
        ("unrouted", "no-route"),
        ("misled", "backend-invalid"),
        ("outside", "outside-refused"),
    ] {
        let path = format!("/execution/variables/{key}");
        let sidecar = match error {
            "policy-denied" => &api_server.sidecar,
            _ => &worker.sidecar,
        };
        let record = sidecar.wait_for_access(key, |record| record.path() == path);
        assert_eq!(record.error(), error, "{record}");
    }
}
