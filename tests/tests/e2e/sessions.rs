//! Clients that stay with the server that they were given, by a route's word.

use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::workloads;

const CONFIG: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders, namespace: data }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 80, protocol: http, targetPort: 8080 }]
  service: orders-api.data
---
apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: orders, namespace: data }
spec: { targetRefs: [{ kind: Service, name: orders-api }], balance: { algorithm: roundRobin } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ group: \"\", kind: Service, name: orders-api }]
  rules:
    - matches: [{ path: { type: Exact, value: /bytes/1 } }]
      sessionPersistence: { sessionName: x-session, type: Header }
    - sessionPersistence: { sessionName: sid, absoluteTimeout: 1h, cookieConfig: { lifetimeType: Permanent } }
";

fn ask(task: &Workload, path: &str, arguments: &[&str]) -> String {
    let url = format!("http://10.96.0.10{path}");
    let curl = task.curl(&["-i"]).args(arguments).arg(url);
    curl.finish().success()
}

fn header<'p>(printed: &'p str, name: &str) -> Option<&'p str> {
    let mut lines = printed.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_session_stays_with_its_server_by_header_or_by_cookie() {
    let mut mesh = Mesh::plan().config("orders.yaml", CONFIG).start();
    let apis: Vec<(Workload, Process)> = ["orders-api-1", "orders-api-2"]
        .map(|name| {
            let api = mesh.workload("data", name);
            let api = api.serves("orders-api.data:80=8080/http").start();
            let server = workloads::api(&api, 8080, &mesh.scratch);
            (api, server)
        })
        .into();
    let task = mesh.workload("airflow", "task").start();
    let taken = || {
        let of = |(api, _): &(Workload, Process)| {
            let labels = [("direction", "inbound")];
            api.sidecar
                .metrics()
                .sum("sidewind_requests_total", &labels)
        };
        apis.iter().map(of).collect::<Vec<_>>()
    };
    for (path, name) in [("/bytes/1", "x-session"), ("/orders", "set-cookie")] {
        let first = ask(&task, path, &[]);
        let said = header(&first, name).unwrap_or_else(|| panic!("{first}"));
        let session = match name {
            "set-cookie" => {
                assert!(said.contains("; Max-Age=3600"), "{said}");
                format!("cookie: {}", said.split(';').next().unwrap())
            }
            _ => format!("{name}: {said}"),
        };
        let before = taken();
        for _ in 0..10 {
            let answer = ask(&task, path, &["-H", &session]);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            // Nobody is told again what he knows.
            assert_eq!(header(&answer, name), None, "{answer}");
        }
        let after = taken();
        let more: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        assert!(more == [10.0, 0.0] || more == [0.0, 10.0], "{more:?}");
        // Those who name none are spread.
        for _ in 0..10 {
            ask(&task, path, &[]);
        }
        let spread: Vec<f64> = taken().iter().zip(&after).map(|(a, b)| a - b).collect();
        assert!(spread.iter().all(|more| *more > 0.0), "{spread:?}");
    }
}
