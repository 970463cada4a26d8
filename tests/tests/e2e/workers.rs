//! A proxy of several workers: what they share, and that they end as one.

use std::collections::BTreeSet;

use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{Answer, working_on};

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
metadata: { name: orders-api, namespace: data }
spec:
  targetRefs: [{ kind: Service, name: orders-api }]
  healthCheck:
    http: { path: /api/v2/monitor/health, body: { json: { /metadatabase/status: healthy } } }
    interval: 100ms
    unhealthyThreshold: 1
  rateLimits: [{ name: few, requests: 10, per: 1h, at: caller, paths: [/few] }]
";

/// What a request each of so many connections printed.
fn printed(task: &Workload, arguments: &[&str], path: &str, count: usize) -> String {
    let curl = task.curl(&["-H", "connection: close"]).args(arguments);
    let url = format!("http://10.96.0.10/{path}?[1-{count}]");
    curl.arg(url).finish().success()
}

/// Which servers answered.
fn servers(task: &Workload) -> BTreeSet<String> {
    let printed = printed(task, &[], "", 20);
    let answers = serde_json::Deserializer::from_str(&printed).into_iter();
    answers
        .map(|answer: Result<serde_json::Value, _>| answer.unwrap()["server"].to_string())
        .collect()
}

fn workers(workload: &mut Workload) -> usize {
    let tasks = format!("/proc/{}/task", workload.sidecar.process().id());
    let tasks = std::fs::read_dir(tasks).unwrap().flatten();
    let names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")));
    names
        .filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("worker-")))
        .count()
}

#[test]
fn workers_share_limits_and_what_is_known_of_endpoints() {
    let mut mesh = Mesh::plan().config("orders.yaml", CONFIG).start();
    let servers_of: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let server = mesh.workload("data", name);
            let server = server.serves("orders-api.data:80=8080/http").start();
            let sick = mesh.scratch.join(format!("{name}.sick"));
            let process = workloads::airflow(&server, 8080, name, &sick, &mesh.scratch);
            (server, process, sick)
        })
        .collect();
    let task = mesh.workload("airflow", "task").flag("--workers", "2");
    let mut task = task.start();
    assert_eq!(workers(&mut task), 2);
    let both = BTreeSet::from(["\"a\"".to_owned(), "\"b\"".to_owned()]);
    eventually("both servers are known", PATIENCE, || {
        (servers(&task) == both).then_some(())
    });
    // Of so many connections each worker has some; they have one bucket.
    let arguments = ["-o", "/dev/null", "-w", "%{response_code}\n"];
    let statuses = printed(&task, &arguments, "few", 40);
    let passed = statuses.lines().filter(|status| *status == "200").count();
    let refused = statuses.lines().filter(|status| *status == "429").count();
    assert_eq!((passed, refused), (10, 30), "{statuses}");
    // And one view of who is well.
    std::fs::write(&servers_of[0].2, "").unwrap();
    eventually("the ill one gets nothing from either", PATIENCE, || {
        (servers(&task) == BTreeSet::from(["\"b\"".to_owned()])).then_some(())
    });
    std::fs::remove_file(&servers_of[0].2).unwrap();
    eventually("both get some again", PATIENCE, || {
        (servers(&task) == both).then_some(())
    });
}

#[test]
fn workers_that_are_told_to_end_finish_what_they_have_accepted() {
    let mut mesh = Mesh::plan().start();
    let api = mesh.workload("data", "orders-api").flag("--workers", "2");
    let mut api = api.serves("orders-api.data=8080/http").start();
    let server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").flag("--workers", "2");
    let task = task.start();
    let outside = mesh.outsider("outside");
    assert_eq!(workers(&mut api), 2);
    let url = format!("http://{}/slow?ms=1500", api.at(8080));
    let slow: Vec<_> = [&task.place, &outside.place]
        .into_iter()
        .flat_map(|place| std::iter::repeat_n(place, 8))
        .map(|place| {
            let curl = place
                .program("curl")
                .args(["-sS", "-i", "--max-time", "60"]);
            let curl = curl.arg(&url);
            std::thread::spawn(move || Answer::parse(&curl.finish().success()))
        })
        .collect();
    working_on(&server, 16);
    api.sidecar.terminate();
    for answer in slow {
        let answer = answer.join().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let status = api.sidecar.process().wait(PATIENCE);
    assert!(status.success(), "{status}");
}
