//! One DAG that calls a service in every way that DAGs use, on Airflow 3.3 with Celery.

use std::collections::BTreeSet;
use std::time::Duration;

use sidewind_tests::access_log::AccessRecord;
use sidewind_tests::airflow::{Deployment, Plan, SECRETS};
use sidewind_tests::mesh::MESH_PORT;

const PATIENCE: Duration = Duration::from_secs(150);

const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";
const TRIGGERER: &str = "spiffe://sidewind.local/ns/airflow/sa/triggerer";
const API_SERVER: &str = "spiffe://sidewind.local/ns/airflow/sa/api-server";

#[test]
fn a_dag_runs_to_success_through_the_mesh_and_nothing_of_it_can_be_read_on_the_wire() {
    let mut airflow = Plan::celery(&["orders.py"]).recorded().start();
    let rest = airflow.login();
    rest.trigger("orders", "lab_1", PATIENCE);
    let state = airflow.wait_for_run("orders", "lab_1", PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("orders", "lab_1"));
    logs_come_from_the_worker_by_its_own_address(
        &airflow,
        &rest.task_log("orders", "lab_1", "curl").text(),
    );
    the_service_was_told_each_task(&airflow);
    every_call_was_made_over_mutual_tls(&airflow);
    nothing_can_be_read(&mut airflow);
}

fn logs_come_from_the_worker_by_its_own_address(airflow: &Deployment, log: &str) {
    assert!(
        log.contains("curl -fsS http://orders-api.data:8000/orders/curl"),
        "{log}"
    );
    let worker = airflow.machine("worker");
    let fetched = worker.sidecar().wait_for_access("the log", |record| {
        record
            .path()
            .starts_with("/log/dag_id=orders/run_id=lab_1/task_id=curl")
    });
    assert_eq!(fetched.source_id(), API_SERVER, "{fetched}");
    assert_eq!(fetched.status(), 200, "{fetched}");
    assert!(fetched.tls(), "{fetched}");
}

/// What the DAG's tasks call, and the task that does it with its map index.
const CALLS: [(&str, &str, &str); 7] = [
    ("/orders/operator", "operator", ""),
    ("/orders/curl", "curl", ""),
    ("/orders/by_requests", "by_requests", ""),
    ("/orders/by_httpx", "by_httpx", ""),
    ("/orders/mapped/1", "mapped", "0"),
    ("/orders/mapped/2", "mapped", "1"),
    ("/orders/mapped/3", "mapped", "2"),
];

fn the_service_was_told_each_task(airflow: &Deployment) {
    for (path, task, map_index) in CALLS {
        for name in ["worker", "orders-api"] {
            let sidecar = airflow.machine(name).sidecar();
            let record = sidecar.wait_for_access(path, |record| record.path() == path);
            let said = ["dag_id", "task_id", "run_id", "map_index", "try_number"];
            let said = said.map(|field| record.text(field));
            assert_eq!(said, ["orders", task, "lab_1", map_index, "1"], "{record}");
            assert_eq!(record.source_id(), WORKER, "{record}");
        }
    }
    let service = airflow.machine("orders-api").sidecar();
    let deferred = service.wait_for_access("the deferred call", |record| {
        record.path() == "/orders/deferred"
    });
    assert_eq!(deferred.source_id(), TRIGGERER, "{deferred}");
    let told = std::fs::read_to_string(airflow.mesh.scratch.join("orders-api.out"));
    let told = told.expect("the service's own log");
    for (path, task, _) in CALLS {
        let line = told
            .lines()
            .find(|line| line.contains(path))
            .unwrap_or_default();
        let wanted = format!(r#""x-airflow-task-id": "{task}""#);
        assert!(line.contains(&wanted), "{path}: {line}");
    }
}

fn every_call_was_made_over_mutual_tls(airflow: &Deployment) {
    let log = airflow.access_log();
    let plain = |record: &AccessRecord| record.direction() != "gateway" && !record.tls();
    let plain: Vec<_> = log.iter().filter(|(_, record)| plain(record)).collect();
    assert!(plain.is_empty(), "{plain:#?}");
    // The Execution API was used by the worker alone, and both servers have served it.
    let served = |machine: &str, path: &str| {
        log.iter().any(|(name, record)| {
            name == machine && record.path().starts_with(path) && record.source_id() == WORKER
        })
    };
    for api_server in ["api-server-1", "api-server-2"] {
        assert!(
            served(api_server, "/execution/task-instances/"),
            "{api_server}"
        );
    }
}

fn nothing_can_be_read(airflow: &mut Deployment) {
    let wire = airflow.wire();
    let machines = airflow.machines();
    let mut talked = BTreeSet::new();
    for (at, one) in machines.iter().enumerate() {
        for other in &machines[at + 1..] {
            let between = wire.between(one.address, other.address);
            if between.segments().is_empty() {
                continue;
            }
            if let Err(error) = between.only_tls(MESH_PORT, &SECRETS) {
                panic!("{} and {}: {error}", one.name, other.name);
            }
            talked.insert(format!("{} {}", one.name, other.name));
        }
    }
    for pair in [
        "postgres api-server-1",
        "postgres scheduler",
        "postgres dag-processor",
        "postgres triggerer",
        "postgres worker",
        "redis scheduler",
        "redis worker",
        "api-server-1 worker",
        "api-server-2 worker",
        "triggerer orders-api",
        "worker orders-api",
    ] {
        assert!(
            talked.contains(pair),
            "nothing passed between {pair}: {talked:?}"
        );
    }
}
