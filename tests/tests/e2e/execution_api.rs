//! What Airflow's own requests tell of tasks: processes do what an Airflow worker's do, and the Execution API answers
//! as Airflow's does.

use std::collections::HashMap;

use serde_json::Value;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::PATIENCE;
use sidewind_tests::workloads;

use crate::support::{API, TASK_ID};

/// What a sidecar of another user needs to see which process owns a socket.
const LOOKING: [&str; 2] = ["sys_ptrace", "dac_read_search"];

/// Where the worker finds the Execution API.
const EXECUTION_API: &str = "airflow-api-server.airflow:8081";

struct Stage {
    worker: Workload,
    api: Workload,
    api_server: Workload,
    _servers: [Process; 2],
    folder: std::path::PathBuf,
    mesh: Mesh,
}

impl Stage {
    /// A worker, a service that believes it, and Airflow's API server, each with its sidecar.
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(flags: &[(&str, &str)]) -> Self {
        let mut mesh = Mesh::plan().start();
        let api = mesh
            .workload("data", "orders-api")
            .serves("orders-api.data=8080")
            .flag("--task-context-from", TASK_ID)
            .start();
        let api_server = mesh
            .workload("airflow", "api-server")
            .serves("airflow-api-server.airflow=8081")
            .start();
        let servers = [
            workloads::api(&api, 8080, &mesh.scratch),
            workloads::execution_api(&api_server, 8081, &mesh.scratch),
        ];
        let folder = mesh
            .scratch
            .directory("logs", Some(sidewind_tests::mesh::WORKLOAD_UID));
        let mut worker = mesh
            .workload("airflow", "task")
            .capabilities(&LOOKING)
            .flag("--task-lookup", "processes")
            .flag("--task-lookup-timeout", "1s")
            .flag("--task-log-folder", folder.to_string_lossy());
        for (flag, value) in flags {
            worker = worker.flag(flag, *value);
        }
        Self {
            worker: worker.start(),
            api,
            api_server,
            _servers: servers,
            folder,
            mesh,
        }
    }

    /// Runs tasks beside one another; gives what each got, and what it was told when it began, by DAG.
    fn run(&self, tasks: &[String]) -> HashMap<String, Value> {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/tasks.py");
        let printed = self
            .worker
            .program("/usr/bin/python3")
            .env("EXECUTION_API", EXECUTION_API)
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

    fn facts(&self, result: &str) -> f64 {
        let metrics = self.worker.sidecar.metrics();
        metrics.sum("sidewind_task_facts_total", &[("result", result)])
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
fn the_service_a_task_calls_is_told_who_triggered_the_run_and_is_in_airflows_own_trace() {
    let stage = Stage::start();
    let tasks: Vec<String> = (0..6)
        .map(|n| {
            let kind = if n % 2 == 0 { "python" } else { "shell" };
            format!("dag_{n}/{kind}/run_{n}/{API}/echo?n={n}")
        })
        .collect();
    let got = stage.run(&tasks);
    for n in 0..6 {
        let dag = format!("dag_{n}");
        let user = format!("user of {dag}");
        let called = &got[&dag];
        assert_eq!(
            header(called, "x-airflow-triggered-by"),
            Some(&*user),
            "{called}"
        );
        // What the client of the Execution API got is what the server sent: 200, gzip, and its new token.
        let begun = &got[&format!("{dag} run")];
        assert_eq!(
            (&begun[0], &begun[2]),
            (&200.into(), &"a-new-secret-token".into())
        );

        let outbound = stage.worker.sidecar.wait_for_access("the call", |record| {
            record.path() == "/echo" && record.text("dag_id") == dag
        });
        assert_eq!(outbound.text("triggered_by"), user, "{outbound}");
        assert_eq!(outbound.text("run_type"), "manual", "{outbound}");
        assert_eq!(outbound.text("team"), "finance", "{outbound}");
        let inbound = stage
            .api
            .sidecar
            .wait_for_access("the call", |record| record.text("dag_id") == dag);
        assert_eq!(inbound.text("triggered_by"), user, "{inbound}");

        // Whoever supervises the task calls for it too, by the connection that has begun it.
        for call in ["run", "rtif", "state"] {
            let record = stage.worker.sidecar.wait_for_access(call, |record| {
                record.path().ends_with(&format!("/{call}")) && record.text("dag_id") == dag
            });
            assert_eq!(record.text("triggered_by"), user, "{record}");
        }

        // Airflow's trace, as its `rtif` request named it.
        let rtif = stage.worker.sidecar.wait_for_access("rtif", |record| {
            record.path().ends_with("/rtif") && record.text("dag_id") == dag
        });
        let trace = rtif.text("trace_id");
        assert_eq!(outbound.text("trace_id"), trace, "{outbound}");
        assert_eq!(inbound.text("trace_id"), trace, "{inbound}");
        let parent = header(called, "traceparent").unwrap_or_default();
        assert!(parent.contains(&trace), "{parent}");
    }
    assert_eq!(stage.facts("learned"), 12.0);

    let metrics = stage.worker.sidecar.metrics();
    let of_task = [("dag_id", "dag_1"), ("task_id", "shell"), ("status", "2xx")];
    assert!(metrics.sum("sidewind_task_requests_total", &of_task) >= 1.0);

    // Tokens are kept nowhere.
    for sidecar in [&stage.worker.sidecar, &stage.api_server.sidecar] {
        assert!(!sidecar.log().contains("secret-token"));
    }
    drop(stage.mesh);
}

#[test]
fn a_response_that_is_not_what_it_claims_reaches_the_worker_as_it_is_and_tells_nothing() {
    let stage = Stage::start();
    let odd = [
        ("odd_not_gzip", "unreadable"),
        ("odd_brotli", "unreadable"),
        ("odd_no_run", "unreadable"),
        ("odd_types", "unreadable"),
        ("odd_json", "unreadable"),
        ("odd_bomb", "too-large"),
    ];
    let tasks: Vec<String> = odd
        .iter()
        .map(|(dag, _)| format!("{dag}/python/run/{API}/echo"))
        .collect();
    let got = stage.run(&tasks);
    for (dag, _) in odd {
        let called = &got[dag];
        assert_eq!(header(called, "x-airflow-dag-id"), Some(dag), "{called}");
        assert_eq!(header(called, "x-airflow-triggered-by"), None, "{called}");
        let begun = &got[&format!("{dag} run")];
        assert_eq!(begun[0], 200, "{dag}: {begun}");
        let bytes = begun[1].as_u64().unwrap_or_default();
        match dag {
            "odd_bomb" => assert!((10_000..64 << 10).contains(&bytes), "{bytes}"),
            _ => assert!(bytes > 0),
        }
    }
    for result in ["unreadable", "too-large"] {
        let expected = odd.iter().filter(|(_, verdict)| *verdict == result).count();
        assert_eq!(stage.facts(result), expected as f64, "{result}");
    }
}

#[test]
fn of_a_large_response_its_beginning_counts() {
    let stage = Stage::start();
    // What the run was triggered with is large, and what a deferred task goes on with.
    let large = [("odd_huge", None), ("odd_kwargs", Some("nobody"))];
    let tasks = large.map(|(dag, _)| format!("{dag}/python/run/{API}/echo"));
    let got = stage.run(&tasks);
    for (dag, person) in large {
        let begun = &got[&format!("{dag} run")];
        assert_eq!(begun[0], 200, "{dag}: {begun}");
        assert!(begun[1].as_u64() > Some(8 << 20), "{dag}: {begun}");
        let called = &got[dag];
        assert_eq!(header(called, "x-airflow-dag-id"), Some(dag), "{called}");
        assert_eq!(header(called, "x-airflow-triggered-by"), person, "{called}");
        let outbound = stage.worker.sidecar.wait_for_access("the call", |record| {
            record.path() == "/echo" && record.text("dag_id") == dag
        });
        assert_eq!(outbound.text("run_type"), "manual", "{outbound}");
    }
    // That they begin, and their traces.
    assert_eq!(stage.facts("learned"), 4.0);
}

#[test]
fn a_task_that_renames_its_log_or_leaves_its_parents_is_taken_for_no_other_task() {
    let stage = Stage::start();
    let program = stage.mesh.scratch.directory("bin", None).join("airflow");
    let code = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/worker.py");
    std::os::unix::fs::symlink(code, &program).expect("a link");
    let kinds = ["call", "log", "rename", "orphan", "title", "environ"];
    let tasks = kinds.map(|kind| format!("reports/{kind}/manual__1/{kind}/{API}/echo?{kind}"));
    let worker = stage.worker.program("/usr/bin/python3");
    let worker = worker.env("EXECUTION_API", EXECUTION_API).arg(&program);
    let worker = worker.args(["celery", "worker"]).arg(&stage.folder);
    worker.args(&tasks).finish().success();
    for kind in kinds {
        let record = stage.worker.sidecar.wait_for_access(kind, |record| {
            record.path() == "/echo" && record.text("user_agent") == kind
        });
        // What Airflow has said of the process, and of what is below it, is not what its log says by now.
        let dag = match kind {
            "rename" | "orphan" => "",
            _ => "reports",
        };
        assert_eq!(record.text("dag_id"), dag, "{record}");
        let user = if dag.is_empty() {
            ""
        } else {
            "user of reports"
        };
        assert_eq!(record.text("triggered_by"), user, "{record}");
    }
    let metrics = stage.worker.sidecar.metrics();
    let found = |result| metrics.sum("sidewind_task_lookups_total", &[("result", result)]);
    assert!(found("contradicted") >= 1.0 && found("stray") >= 1.0);
}

#[test]
fn what_a_service_says_that_is_not_named_as_airflows_does_not_count_and_the_log_says_so() {
    let mut stage = Stage::with(&[("--execution-api-service", "api-server.elsewhere")]);
    let got = stage.run(&[format!("dag/python/run/{API}/echo")]);
    let called = &got["dag"];
    assert_eq!(header(called, "x-airflow-dag-id"), Some("dag"), "{called}");
    assert_eq!(header(called, "x-airflow-triggered-by"), None, "{called}");
    assert_eq!(stage.facts("other-service"), 1.0);
    assert_eq!(stage.facts("learned"), 0.0);
    let process = stage.worker.sidecar.process();
    let line = process.wait_for_log("--execution-api-service", PATIENCE);
    assert!(line.contains("airflow-api-server.airflow"), "{line}");
}
