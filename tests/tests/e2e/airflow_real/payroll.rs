//! Which DAG may call what, on a real Airflow 3.3: two DAGs on one Celery worker at the same time.

use std::time::Duration;

use sidewind_tests::airflow::Plan;

use crate::support::allow;

const PATIENCE: Duration = Duration::from_secs(150);

const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";
const TRIGGERER: &str = "spiffe://sidewind.local/ns/airflow/sa/triggerer";
const ORDERS_API: &str = "spiffe://sidewind.local/ns/data/sa/orders-api";

#[test]
fn dag_payroll_may_call_the_service_while_dag_reports_may_not_on_the_same_worker() {
    let mut airflow = Plan::celery(&["payroll.py"]).task_identities().start();
    let payroll = format!("{WORKER}/dag/payroll/task/*");
    let policy = allow(ORDERS_API, &[&payroll, TRIGGERER], "");
    airflow
        .mesh
        .control_plane
        .write_config("payroll.yaml", &policy);
    let rest = airflow.login();
    rest.trigger("payroll", "pay_1", PATIENCE);
    rest.trigger("reports", "report_1", PATIENCE);
    // Payroll's call is under way until somebody else comes, who does when that of reports was refused.
    assert_eq!(
        airflow.wait_for_run("reports", "report_1", PATIENCE),
        "failed"
    );
    assert_eq!(airflow.ended("payroll", "pay_1"), None);
    let other = airflow.machine("triggerer").place.program("curl");
    let other = other.args([
        "-fsS",
        "--max-time",
        "60",
        "http://orders-api.data:8000/hold/pay_1/2/other",
    ]);
    other
        .user(sidewind_tests::mesh::WORKLOAD_UID)
        .finish()
        .success();
    let state = airflow.wait_for_run("payroll", "pay_1", PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("payroll", "pay_1"));

    for (dag, task, run, path, status) in [
        ("payroll", "charge", "pay_1", "/hold/pay_1/2/payroll", 200),
        ("reports", "send", "report_1", "/orders/reports", 403),
    ] {
        for name in ["worker", "orders-api"] {
            let sidecar = airflow.machine(name).sidecar();
            let record = sidecar.wait_for_access(path, |record| record.path() == path);
            assert_eq!(record.status(), status, "{record}");
            assert_eq!(
                record.source_id(),
                format!("{WORKER}/dag/{dag}/task/{task}")
            );
            let said = ["dag_id", "task_id", "run_id", "triggered_by"];
            let said = said.map(|field| record.text(field));
            assert_eq!(said, [dag, task, run, "ada"], "{record}");
        }
    }
    // Airflow's own go as its worker, and nobody is in doubt.
    let worker = airflow.machine("worker").sidecar();
    let begun = worker.wait_for_access("the beginning of a task", |record| {
        record.path().ends_with("/run")
    });
    assert_eq!(begun.source_id(), WORKER, "{begun}");
    let metrics = worker.metrics();
    let went_as = |result| metrics.sum("sidewind_task_callers_total", &[("result", result)]);
    assert_eq!(
        ["task", "denied", "unavailable"].map(went_as),
        [2.0, 0.0, 0.0]
    );
    eprintln!(
        "{} connections of the worker's own, {} in doubt",
        went_as("worker"),
        went_as("unproven")
    );
}
