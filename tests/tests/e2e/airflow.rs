//! Which Airflow task a call comes from, told by processes that do what an Airflow worker's do.

use std::collections::HashMap;

use serde_json::Value;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::workloads;

use crate::support::{API, API_ID, TASK_ID};

/// What a sidecar of another user needs to see which process owns a socket.
const LOOKING: [&str; 2] = ["sys_ptrace", "dac_read_search"];

struct Stage {
    worker: Workload,
    api: Workload,
    _server: sidewind_tests::process::Process,
    folder: std::path::PathBuf,
    _mesh: Mesh,
}

impl Stage {
    /// A worker whose sidecar looks for tasks, and an API whose sidecar believes `believed`.
    fn start(believed: &str) -> Self {
        let mut mesh = Mesh::plan().start();
        let api = mesh
            .workload("data", "orders-api")
            .serves("orders-api.data=8080")
            .flag("--task-context-from", believed)
            .start();
        let server = workloads::api(&api, 8080, &mesh.scratch);
        let folder = mesh
            .scratch
            .directory("logs", Some(sidewind_tests::mesh::WORKLOAD_UID));
        let worker = mesh
            .workload("airflow", "task")
            .capabilities(&LOOKING)
            .flag("--task-lookup", "processes")
            .flag("--task-lookup-timeout", "1s")
            .flag("--task-log-folder", folder.to_string_lossy())
            .start();
        Self {
            worker,
            api,
            _server: server,
            folder,
            _mesh: mesh,
        }
    }

    /// Runs tasks beside one another; gives what each got, by its DAG.
    fn run(&self, tasks: &[String]) -> HashMap<String, Value> {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/tasks.py");
        // The system's own, which every user may run.
        let python = "/usr/bin/python3";
        let printed = self
            .worker
            .program(python)
            .arg(program)
            .arg(&self.folder)
            .args(tasks)
            .finish()
            .success();
        let each = printed.lines().map(|line| {
            let said: Value = serde_json::from_str(line).expect("a JSON object");
            (
                said["dag"].as_str().unwrap_or_default().to_owned(),
                said["got"].clone(),
            )
        });
        each.collect()
    }
}

fn header<'v>(got: &'v Value, name: &str) -> Option<&'v str> {
    let headers = got["headers"].as_array().expect("headers");
    let found = headers.iter().find(|pair| {
        pair[0]
            .as_str()
            .is_some_and(|key| key.eq_ignore_ascii_case(name))
    });
    found.and_then(|pair| pair[1].as_str())
}

#[test]
fn each_of_sixteen_tasks_on_one_worker_is_named_to_the_api_and_in_both_logs_and_none_can_lie() {
    let stage = Stage::start(TASK_ID);
    let kind = |n: usize| {
        if n.is_multiple_of(2) {
            "python"
        } else {
            "shell"
        }
    };
    let tasks: Vec<String> = (0..16)
        .map(|n| format!("dag_{n}/{}/run_{n}/{API}/echo?n={n}", kind(n)))
        .collect();
    let got = stage.run(&tasks);
    assert_eq!(got.len(), 16);
    for n in 0..16 {
        let dag = format!("dag_{n}");
        let got = &got[&dag];
        assert_eq!(header(got, "x-airflow-dag-id"), Some(dag.as_str()), "{got}");
        assert_eq!(header(got, "x-airflow-task-id"), Some(kind(n)), "{got}");
        assert_eq!(
            header(got, "x-airflow-run-id"),
            Some(format!("run_{n}").as_str())
        );
        assert_eq!(header(got, "x-airflow-try-number"), Some("1"), "{got}");
        let baggage = header(got, "baggage").unwrap_or_default();
        assert!(
            baggage.contains("k=v") && !baggage.contains("forged"),
            "{baggage}"
        );
        for sidecar in [&stage.worker.sidecar, &stage.api.sidecar] {
            let record = sidecar.wait_for_access("the call", |record| record.text("dag_id") == dag);
            assert_eq!(record.text("task_id"), kind(n), "{record}");
            assert_eq!(record.text("run_id"), format!("run_{n}"), "{record}");
            assert_eq!(record.source_id(), TASK_ID);
        }
    }
    let found = stage
        .worker
        .sidecar
        .metrics()
        .sum("sidewind_task_lookups_total", &[("result", "task")]);
    assert_eq!(found, 16.0);
}

#[test]
fn a_call_of_the_workers_own_has_no_task_and_cannot_claim_one() {
    let stage = Stage::start(TASK_ID);
    let claims = [
        "-H",
        "x-airflow-dag-id: forged",
        "-H",
        "baggage: airflow.dag_id=forged",
    ];
    let url = format!("{API}/echo");
    let printed = stage.worker.curl(&claims).arg(&url).finish().success();
    assert!(!printed.contains("forged"), "{printed}");
    let record = stage
        .worker
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(record.text("dag_id"), "", "{record}");
    let own = [("result", "no-task")];
    assert_eq!(
        stage
            .worker
            .sidecar
            .metrics()
            .sum("sidewind_task_lookups_total", &own),
        1.0
    );
}

#[test]
fn a_peer_that_is_not_believed_tells_the_api_no_task() {
    let stage = Stage::start(API_ID);
    let got = stage.run(&[format!("payroll/python/run/{API}/echo")]);
    let got = &got["payroll"];
    assert_eq!(header(got, "x-airflow-dag-id"), None, "{got}");
    assert_eq!(header(got, "baggage"), Some("k=v"), "{got}");
    let outbound = stage
        .worker
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(outbound.text("dag_id"), "payroll", "{outbound}");
    let inbound = stage
        .api
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(inbound.text("dag_id"), "", "{inbound}");
}
