//! Many tasks that hold connections at the same time, and whose each of them is.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::Value;
use sidewind_tests::access_log::AccessRecord;
use sidewind_tests::airflow::{Deployment, Plan};
use sidewind_tests::mesh::WORKLOAD_UID;
use sidewind_tests::wait::{PATIENCE, within};

/// How many tasks the DAG has, all at once.
const TASKS: usize = 16;

const RUN_PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn on_airflow_2_each_connection_of_sixteen_parallel_tasks_is_of_its_task() {
    let airflow = Plan::two_local(&["crowd.py"]).patient().start();
    let run = "select run_id from dag_run where dag_id = 'crowd'";
    let run_id = within(RUN_PATIENCE, || {
        Some(airflow.query(run)).filter(|it| !it.is_empty())
    });
    let run_id = run_id.expect("Airflow begins a run by itself");
    all_are_shown_and_let_go(&airflow, "scheduler", &run_id);
    let state = airflow.wait_for_run("crowd", &run_id, RUN_PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("crowd", &run_id));
    each_connection_is_of_its_task(&airflow, "scheduler", &run_id);
}

#[test]
fn by_the_plugin_each_connection_of_sixteen_parallel_tasks_is_of_its_task_without_a_privilege() {
    let plan = Plan::celery(&["crowd.py"])
        .patient()
        .concurrency(16)
        .by_plugin();
    let mut airflow = plan.start();
    let rest = airflow.login();
    rest.trigger("crowd", "plugged", RUN_PATIENCE);
    all_are_shown_and_let_go(&airflow, "worker", "plugged");
    let state = airflow.wait_for_run("crowd", "plugged", RUN_PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("crowd", "plugged"));
    each_connection_is_of_its_task(&airflow, "worker", "plugged");
}

/// What the test itself holds: the last one, that lets all others go.
const LAST: &str = "test";

/// Waits until all tasks hold their connections, as `sidewind airflow status` shows it, and lets them go.
pub(super) fn all_are_shown_and_let_go(airflow: &Deployment, runner: &str, run_id: &str) {
    let machine = airflow.machine(runner);
    let status = |form: &str| {
        let sidewind = &airflow.mesh.binaries().sidewind;
        let command = machine.place.program(sidewind);
        let status = command.args(["airflow", "status", "--output", form]);
        status.finish().success()
    };
    let mut last = String::new();
    let shown = within(RUN_PATIENCE, || {
        last = status("json");
        let tasks: Value = serde_json::from_str(&last).expect("JSON");
        let tasks = tasks.as_array().cloned().unwrap_or_default();
        let tasks = tasks.iter().filter(|task| task["run_id"] == run_id);
        let each: BTreeSet<String> = tasks
            .filter(|task| task["connections"].as_u64() >= Some(1) && task["dag_id"] == "crowd")
            .map(|task| format!("{} {}", task["task_id"], task["map_index"]))
            .collect();
        // Tasks of Airflow 2 have connections to the database too, which come and go.
        let holding = airflow.service_log().matches("\"path\": \"/hold/").count();
        let broken = airflow.tasks("crowd", run_id).contains("|failed");
        (each.len() == TASKS && holding == TASKS || broken).then_some(!broken)
    });
    let tasks = airflow.tasks("crowd", run_id);
    assert_eq!(shown, Some(true), "{last}\n{tasks}");
    let table = status("table");
    assert!(table.contains("crowd.mapped[5]"), "{table}");
    let call = format!(
        "http://orders-api.data:8000/hold/{run_id}/{}/{LAST}",
        TASKS + 1
    );
    let curl = machine.place.program("curl").user(WORKLOAD_UID);
    curl.args(["-fsS", "--max-time", "240", &call])
        .timeout(RUN_PATIENCE)
        .finish()
        .success();
}

/// A task instance: DAG, run, task, map index (empty where it is not mapped), try.
type Instance = [String; 5];

fn said(record: &AccessRecord) -> Instance {
    ["dag_id", "run_id", "task_id", "map_index", "try_number"].map(|field| record.text(field))
}

/// Checks every call of a run of the DAG, in the log of the sidecar beside its tasks and in that of the service.
pub(super) fn each_connection_is_of_its_task(airflow: &Deployment, runner: &str, run_id: &str) {
    let sidecar = airflow.machine(runner).sidecar();
    let service = airflow.machine("orders-api").sidecar();
    for sidecar in [sidecar, service] {
        let held = || {
            let log = sidecar.access_log().into_iter();
            let prefix = format!("/hold/{run_id}/{}/", TASKS + 1);
            log.filter_map(|record| {
                let who = record.path().strip_prefix(&prefix)?.to_owned();
                Some((who, record))
            })
            .collect::<Vec<_>>()
        };
        let held = within(PATIENCE, || Some(held()).filter(|held| held.len() > TASKS))
            .unwrap_or_else(held);
        let held: Vec<_> = held.iter().filter(|(who, _)| who != LAST).collect();
        assert_eq!(held.len(), TASKS, "{held:#?}");
        for (who, record) in held {
            let (task, map_index) = who.split_once('/').expect("task/map index");
            let map_index = if map_index == "-1" { "" } else { map_index };
            let instance = ["crowd", run_id, task, map_index, "1"].map(str::to_owned);
            assert_eq!(said(record), instance, "{record}");
        }
    }
    // Tasks of Airflow 2, which has no worker here, use the database themselves and no Execution API.
    if airflow.machines().iter().any(|it| it.name == "worker") {
        let (of_tasks, of_none) = execution_api_calls_are_of_their_tasks(airflow, sidecar);
        eprintln!("{of_tasks} calls of the Execution API named right, {of_none} without a name");
        connections_of_airflow_itself_are_of_no_task(sidecar);
    }
}

/// The paths of the Execution API name task instances by their number in the database. A call may have no name (its
/// connection was gone before it could be looked at), but never a wrong one.
fn execution_api_calls_are_of_their_tasks(
    airflow: &Deployment,
    sidecar: &sidewind_tests::mesh::Sidecar,
) -> (usize, usize) {
    let rows = airflow.query(
        "select id, dag_id, run_id, task_id, map_index from task_instance union \
         select task_instance_id, dag_id, run_id, task_id, map_index from task_instance_history",
    );
    let instances: HashMap<&str, [&str; 4]> = rows
        .lines()
        .filter_map(|row| {
            let mut columns = row.split('|');
            let id = columns.next()?;
            let rest: Vec<&str> = columns.collect();
            Some((id, rest.try_into().ok()?))
        })
        .collect();
    let (mut right, mut unknown) = (0, 0);
    for record in sidecar.access_log() {
        let path = record.path();
        let Some(rest) = path.strip_prefix("/execution/task-instances/") else {
            continue;
        };
        let id = rest.split('/').next().unwrap_or_default();
        let Some(instance) = instances.get(id) else {
            panic!("no such task instance: {record}");
        };
        let [dag, run, task, map_index] = instance;
        let map_index = if *map_index == "-1" { "" } else { map_index };
        let [said_dag, said_run, said_task, said_index, _] = said(&record);
        if said_dag.is_empty() {
            unknown += 1;
        } else {
            right += 1;
            let said = [&*said_dag, &*said_run, &*said_task, &*said_index];
            assert_eq!(said, [*dag, *run, *task, map_index], "{record}");
        }
    }
    (right, unknown)
}

fn connections_of_airflow_itself_are_of_no_task(sidecar: &sidewind_tests::mesh::Sidecar) {
    for record in sidecar.access_log() {
        let service = record.text("service");
        if service == "redis.airflow" || service == "postgres.airflow" {
            assert_eq!(record.text("dag_id"), "", "{record}");
        }
    }
}
