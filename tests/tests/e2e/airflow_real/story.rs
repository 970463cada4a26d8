//! One DAG that calls a service in every way that DAGs use, on Airflow 3.3 with Celery.

use std::collections::BTreeSet;
use std::time::Duration;

use sidewind_tests::access_log::AccessRecord;
use sidewind_tests::airflow::{Deployment, Plan, Rest, SECRETS};
use sidewind_tests::mesh::MESH_PORT;
use sidewind_tests::wait::{throughout, within};

use super::crowd::{all_are_shown_and_let_go, each_connection_is_of_its_task};

const PATIENCE: Duration = Duration::from_secs(150);

const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";
const TRIGGERER: &str = "spiffe://sidewind.local/ns/airflow/sa/triggerer";
const API_SERVER: &str = "spiffe://sidewind.local/ns/airflow/sa/api-server";

#[test]
fn a_dag_runs_to_success_through_the_mesh_and_nothing_of_it_can_be_read_on_the_wire() {
    let mut airflow = Plan::celery(&["orders.py", "crowd.py"])
        .patient()
        .concurrency(16)
        .svid_ttl("60s")
        .recorded()
        .start();
    let rest = airflow.login();
    rest.trigger("orders", "lab_1", PATIENCE);
    let state = airflow.wait_for_run("orders", "lab_1", PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("orders", "lab_1"));
    logs_come_from_the_worker_by_its_own_address(
        &airflow,
        &rest.task_log("orders", "lab_1", "curl").text(),
    );
    the_service_was_told_each_task(&airflow);
    the_run_is_told_from_the_access_log(&airflow);
    whatever_is_called_for_a_task_names_the_person_behind_its_run(&airflow);
    sixteen_tasks_are_told_apart_while_the_control_plane_is_away(&mut airflow, &rest);
    postgres_sees_no_client_from_loopback(&airflow);
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
            assert_eq!(record.text("triggered_by"), "ada", "{record}");
        }
    }
    let service = airflow.machine("orders-api").sidecar();
    let deferred = service.wait_for_access("the deferred call", |record| {
        record.path() == "/orders/deferred"
    });
    assert_eq!(deferred.source_id(), TRIGGERER, "{deferred}");
    let told = airflow.service_log();
    for (path, task, _) in CALLS {
        let line = told
            .lines()
            .find(|line| line.contains(path))
            .unwrap_or_default();
        let wanted = format!(r#""x-airflow-task-id": "{task}""#);
        assert!(line.contains(&wanted), "{path}: {line}");
    }
}

fn the_run_is_told_from_the_access_log(airflow: &Deployment) {
    let command = airflow.mesh.control_plane.command();
    let trace = command.args(["airflow", "trace", "lab_1"]);
    let trace = trace.arg(airflow.mesh.scratch.join("worker-sidecar.out"));
    let told = trace.finish().success();
    for (path, task, map_index) in CALLS {
        let task = match map_index {
            "" => format!("orders.{task} "),
            index => format!("orders.{task}[{index}] "),
        };
        let line = told.lines().find(|line| line.contains(path));
        let line = line.unwrap_or_else(|| panic!("no line of {path}:\n{told}"));
        for wanted in [
            task.as_str(),
            " ada ",
            " ns/airflow/sa/worker ",
            " ns/data/sa/orders-api ",
            " 200 ",
        ] {
            assert!(line.contains(wanted), "{wanted:?}: {line}");
        }
    }
}

/// Also what Airflow itself calls for it, from the first request that is answered: that it begins, that it is there,
/// connections, XComs.
fn whatever_is_called_for_a_task_names_the_person_behind_its_run(airflow: &Deployment) {
    let log = airflow.machine("worker").sidecar().access_log();
    let of_the_run = log.iter().filter(|it| it.text("run_id") == "lab_1");
    let calls: Vec<&AccessRecord> = of_the_run
        .filter(|it| it.path().starts_with("/execution/") && it.error().is_empty())
        .collect();
    for call in ["/run", "/state"] {
        let count = calls.iter().filter(|it| it.path().ends_with(call)).count();
        assert!(count >= CALLS.len(), "{call}: {count}");
    }
    for call in calls {
        assert_eq!(call.text("triggered_by"), "ada", "{call}");
    }
}

/// How long the control plane is away, with certificates that live for a minute.
const AWAY: Duration = Duration::from_secs(15);

fn sixteen_tasks_are_told_apart_while_the_control_plane_is_away(
    airflow: &mut Deployment,
    rest: &Rest,
) {
    let expiry = airflow.machine("worker").sidecar().certificate_expiry();
    let kept = long_lived(airflow);
    airflow.mesh.control_plane.kill();
    rest.trigger("crowd", "crowd_1", PATIENCE);
    throughout(
        "no connection to Redis or PostgreSQL is closed",
        AWAY,
        || kept.is_subset(&open_connections(airflow)),
    );
    airflow.mesh.control_plane.start(&airflow.mesh.scratch);
    all_are_shown_and_let_go(airflow, "worker", "crowd_1");
    let state = airflow.wait_for_run("crowd", "crowd_1", PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("crowd", "crowd_1"));
    each_connection_is_of_its_task(airflow, "worker", "crowd_1");
    let sidecar = airflow.machine("worker").sidecar();
    sidecar.wait_for_rotation(expiry, Duration::from_secs(60));
    let now = open_connections(airflow);
    assert!(
        kept.is_subset(&now),
        "closed: {:?}",
        kept.difference(&now).collect::<Vec<_>>()
    );
    for (machine, record) in airflow.access_log() {
        let service = record.text("service");
        if service == "redis.airflow" || service == "postgres.airflow" {
            assert_eq!(record.error(), "", "{machine}: {record}");
        }
    }
}

/// Connections to Redis and PostgreSQL that Airflow keeps: the worker's and the scheduler's. PostgreSQL's are kept by the
/// scheduler beside short ones; those that were there before a DAG ran and still are.
pub(super) fn long_lived(airflow: &Deployment) -> BTreeSet<String> {
    let first = open_connections(airflow);
    // Longer than Celery's results are asked for on a connection of their own.
    let still = within(Duration::from_secs(3), || None::<()>);
    assert!(still.is_none());
    let kept: BTreeSet<String> = first
        .intersection(&open_connections(airflow))
        .cloned()
        .collect();
    for port in [":6379", ":5432"] {
        assert!(kept.iter().any(|it| it.ends_with(port)), "{kept:?}");
    }
    kept
}

/// Each as `machine local peer`.
pub(super) fn open_connections(airflow: &Deployment) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for name in ["worker", "scheduler"] {
        let ss = airflow.machine(name).place.program("ss");
        let ss = ss.args(["-Htn", "state", "established"]);
        let ss = ss.arg("( dport = :6379 or dport = :5432 )");
        for line in ss.finish().success().lines() {
            let ends: Vec<&str> = line.split_whitespace().skip(2).collect();
            all.insert(format!("{name} {}", ends.join(" ")));
        }
    }
    all
}

/// Or a `trust` line for local clients would let in every caller.
fn postgres_sees_no_client_from_loopback(airflow: &Deployment) {
    let clients = airflow.query(
        "select distinct host(client_addr) from pg_stat_activity where client_addr is not null",
    );
    let clients: Vec<&str> = clients.lines().collect();
    assert!(!clients.is_empty());
    let foreign = |client: &&str| client.starts_with("10.77.");
    assert!(clients.iter().all(foreign), "{clients:?}");
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
