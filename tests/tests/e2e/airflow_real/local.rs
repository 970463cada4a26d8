//! Airflow 3.3 without a worker: its scheduler runs the tasks, by what a fork server starts for it, as on Python 3.14.

use std::time::Duration;

use sidewind_tests::airflow::Plan;

const PATIENCE: Duration = Duration::from_secs(150);

const SCHEDULER: &str = "spiffe://sidewind.local/ns/airflow/sa/scheduler";

#[test]
fn behind_a_fork_server_a_call_has_its_task_and_the_person_who_triggered_the_run() {
    let mut airflow = Plan::local_by_fork_server(&["payroll.py"])
        .patient()
        .start();
    let rest = airflow.login();
    rest.trigger("reports", "report_1", PATIENCE);
    let state = airflow.wait_for_run("reports", "report_1", PATIENCE);
    assert_eq!(state, "success", "{}", airflow.tasks("reports", "report_1"));
    for name in ["scheduler", "orders-api"] {
        let sidecar = airflow.machine(name).sidecar();
        let record = sidecar.wait_for_access(name, |record| record.path() == "/orders/reports");
        let said = ["dag_id", "task_id", "run_id", "triggered_by"];
        let said = said.map(|field| record.text(field));
        assert_eq!(said, ["reports", "send", "report_1", "ada"], "{record}");
        assert_eq!(record.source_id(), SCHEDULER, "{record}");
    }
    // The shape that this is about.
    let ps = airflow.machine("scheduler").place.program("ps");
    let processes = ps.args(["-eo", "args"]).finish().success();
    assert!(processes.contains("from multiprocessing.forkserver"));
}
