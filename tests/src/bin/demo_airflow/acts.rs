//! The story, act by act.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use sidewind_tests::airflow::{Deployment, Plan, Rest, SECRETS};
use sidewind_tests::mesh::MESH_PORT;
use sidewind_tests::stage::{Paint, Stage};
use sidewind_tests::wait::within;
use sidewind_tests::wire::hexdump;

use crate::page::{Call, write_page};

/// How long Airflow may take over anything.
const PATIENCE: Duration = Duration::from_secs(180);

const DAG: &str = "orders";
const RUN: &str = "demo_1";

/// The paths that the tasks call, but for the triggerer's.
const PATHS: [&str; 7] = [
    "/orders/operator",
    "/orders/curl",
    "/orders/by_requests",
    "/orders/by_httpx",
    "/orders/mapped/1",
    "/orders/mapped/2",
    "/orders/mapped/3",
];

/// Plays everything.
pub(crate) fn play(stage: &mut Stage, page: &Path) {
    stage.title(
        "Sidewind beneath a real Airflow",
        "every component in a network namespace of its own, beside a sidecar, with redirection",
    );
    let mut started = None;
    stage.act("Start", |stage| started = Some(start(stage)));
    let Some((mut airflow, rest)) = started else {
        return;
    };
    stage.act("A DAG", |stage| run(stage, &airflow, &rest));
    stage.act("Who called what", |stage| calls(stage, &airflow, page));
    stage.act("One trace", |stage| trace(stage, &airflow));
    stage.act("The log of a task", |stage| log(stage, &airflow, &rest));
    stage.act("The wire", |stage| wire(stage, &mut airflow));
    if !stage.all_held() {
        airflow.mesh.scratch.show_logs();
    }
}

fn start(stage: &mut Stage) -> (Deployment, Rest) {
    let plan = Plan::celery(&["orders.py"]).recorded();
    let mut airflow = plan.start_telling(&mut |step| stage.step(step));
    stage.step("waiting for the API servers");
    let rest = airflow.login();
    for machine in airflow.machines() {
        stage.line(&format!(
            "{:<14} {:<11} {}",
            machine.name,
            machine.address,
            machine.spiffe_id()
        ));
    }
    let count = airflow.machines().len();
    let known = airflow.mesh.control_plane.workloads();
    let known = known.as_array().map_or(0, Vec::len);
    stage.claim(
        &format!("{count} sidecars and a gateway have joined, and Airflow lets its user in"),
        known == count + 1,
    );
    (airflow, rest)
}

fn run(stage: &mut Stage, airflow: &Deployment, rest: &Rest) {
    rest.trigger(DAG, RUN, PATIENCE);
    stage.step(&format!("ada has triggered {DAG}, through the gateway"));
    let mut told = BTreeMap::new();
    let state = within(PATIENCE, || {
        let tasks = airflow.tasks(DAG, RUN);
        for task in tasks.lines() {
            let Some((instance, state)) = task.rsplit_once('|') else {
                continue;
            };
            let changed = told.insert(instance.to_owned(), state.to_owned());
            if changed.as_deref() != Some(state) && !matches!(state, "" | "scheduled" | "queued") {
                let name = instance.split('|').next().unwrap_or_default();
                stage.step(&format!("{name} is {state}"));
            }
        }
        airflow.ended(DAG, RUN)
    });
    let success = state.as_deref() == Some("success");
    stage.claim("the run has succeeded", success);
    if !success {
        stage.lines(Paint::Red, &airflow.tasks(DAG, RUN));
    }
}

fn all_calls(airflow: &Deployment) -> Vec<Call> {
    let records = airflow.access_log().into_iter();
    let outbound = records.filter(|(_, record)| record.direction() == "outbound");
    let mut calls: Vec<Call> = outbound
        .filter(|(_, record)| record.text("run_id") == RUN || record.path().starts_with("/orders/"))
        .map(|(machine, record)| Call::of(&machine, &record))
        .collect();
    calls.sort_by(|one, other| one.time.cmp(&other.time));
    calls
}

fn calls(stage: &mut Stage, airflow: &Deployment, page: &Path) {
    // The last line of each log is written late.
    for path in PATHS {
        let worker = airflow.machine("worker").sidecar();
        worker.wait_for_access(path, |record| record.path() == path);
    }
    let calls = all_calls(airflow);
    let to_service = calls
        .iter()
        .filter(|call| call.called.ends_with("orders-api"));
    for call in to_service.clone() {
        stage.line(&call.as_line());
        stage.lines(Paint::Dim, &call.identities());
    }
    let named = |path: &&str| {
        let call = calls.iter().find(|call| call.call.ends_with(*path));
        call.is_some_and(|call| {
            let task = path.trim_start_matches("/orders/");
            let task = task.split('/').next().unwrap_or_default();
            call.task.starts_with(&format!("{DAG}.{task}"))
                && (call.run.as_str(), call.by.as_str()) == (RUN, "ada")
        })
    };
    stage.claim(
        "each call of a task has its DAG, task, run, try and the person who triggered it",
        PATHS.iter().all(named),
    );
    // Who is behind a run is in the answer to the first call for a task; one that its client gave up has none.
    let is_answered = |call: &&Call| call.outcome.parse::<u16>().is_ok();
    let by_ada = |call: &Call| call.task.is_empty() || call.by == "ada";
    let answered = calls.iter().filter(is_answered);
    let others: Vec<&Call> = answered.filter(|call| !by_ada(call)).collect();
    for call in &others {
        stage.lines(Paint::Red, &call.as_line());
    }
    stage.claim(
        "whatever was answered to a task names that person, Airflow's own calls for it too",
        others.is_empty(),
    );
    let deferred = calls.iter().find(|call| call.call.ends_with("/deferred"));
    stage.claim(
        "the deferred task's call came from the triggerer, under its identity",
        deferred.is_some_and(|call| call.caller.ends_with("/triggerer")),
    );
    let execution: Vec<&Call> = calls
        .iter()
        .filter(|call| call.call.contains("/execution/"))
        .collect();
    let unnamed = execution.iter().filter(|call| call.task.is_empty()).count();
    stage.line(&format!(
        "and {} calls of Airflow's Execution API, {unnamed} of them without a task",
        execution.len()
    ));
    let told = airflow.service_log();
    let believed = PATHS
        .iter()
        .filter(|path| {
            let mut lines = told.lines();
            lines.any(|line| {
                line.contains(**path) && line.contains("\"x-airflow-triggered-by\": \"ada\"")
            })
        })
        .count();
    stage.claim(
        "the service was told all of it in headers that it can believe",
        believed == PATHS.len(),
    );
    write_page(page, &calls).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    stage.line(&format!("all {} calls: {}", calls.len(), page.display()));
}

fn trace(stage: &mut Stage, airflow: &Deployment) {
    let carrier = airflow.query(&format!(
        "select context_carrier from dag_run where run_id = '{RUN}'"
    ));
    // A traceparent: version 00, then the trace.
    let of_run = carrier.split("00-").nth(1);
    let of_run = of_run.and_then(|rest| rest.get(..32)).unwrap_or_default();
    stage.line(&format!("the run's, as Airflow has it   {of_run}"));
    let worker = airflow.machine("worker").sidecar().access_log();
    let of_calls: BTreeSet<String> = worker
        .iter()
        .filter(|record| PATHS.contains(&record.path().as_str()))
        .map(|record| record.text("trace_id"))
        .collect();
    for trace in &of_calls {
        stage.line(&format!("of the tasks' calls            {trace}"));
    }
    stage.claim(
        "all calls of the tasks are in the trace of their run",
        of_calls.len() == 1 && of_calls.contains(of_run),
    );
}

fn log(stage: &mut Stage, airflow: &Deployment, rest: &Rest) {
    let log = rest.task_log(DAG, RUN, "curl").text();
    let worker = airflow.machine("worker").sidecar();
    let fetched = worker.wait_for_access("the log", |record| record.path().starts_with("/log/"));
    stage.line(&format!(
        "{} → the worker, port 8793: {}",
        fetched.source_id(),
        fetched.status()
    ));
    stage.claim(
        "an API server fetches it from the worker by its own address, over mutual TLS",
        fetched.tls() && fetched.status() == 200 && log.contains("curl -fsS"),
    );
}

fn wire(stage: &mut Stage, airflow: &mut Deployment) {
    let wire = airflow.wire();
    let machines = airflow.machines();
    let (mut pairs, mut records, mut problems) = (0, 0, Vec::new());
    for (at, one) in machines.iter().enumerate() {
        for other in machines.iter().skip(at + 1) {
            let between = wire.between(one.address, other.address);
            if between.segments().is_empty() {
                continue;
            }
            match between.only_tls(MESH_PORT, &SECRETS) {
                Ok(seen) => {
                    pairs += 1;
                    records += seen.handshake_records + seen.application_records;
                }
                Err(error) => problems.push(format!("{} and {}: {error}", one.name, other.name)),
            }
        }
    }
    if let Some(segment) = wire.sample() {
        stage.lines(Paint::Dim, &hexdump(&segment.payload, 3));
    }
    stage.line(&format!(
        "{} segments, {records} TLS records between {pairs} pairs of machines",
        wire.segments().len()
    ));
    for problem in &problems {
        stage.lines(Paint::Red, problem);
    }
    stage.claim(
        "nothing between the machines is plaintext: no JWT, no password, no line of HTTP",
        problems.is_empty() && pairs >= 10,
    );
}
