//! Identities of Airflow tasks, from the process that has a connection to the certificate that the service sees: processes do
//! what a Celery worker of Airflow 3 does, and what its tasks may try.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;
use sidewind_tests::access_log::AccessRecord;
use sidewind_tests::invocation::Invocation;
use sidewind_tests::mesh::{Mesh, WORKLOAD_UID, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::registered::Registered;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::allow;

/// What a sidecar of another user needs to see which process owns a socket.
const LOOKING: [&str; 2] = ["sys_ptrace", "dac_read_search"];

const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";
const PAYROLL_API: &str = "spiffe://sidewind.local/ns/data/sa/payroll-api";
const PAYROLL: &str = "http://payroll-api.data:8080/echo";
const CHARGE: &str = "spiffe://sidewind.local/ns/airflow/sa/worker/dag/payroll/task/charge";

/// Where the worker finds the Execution API, and whose service that is.
const EXECUTION_API: &str = "airflow-api-server.airflow:8081";
const EXECUTION_API_SERVICE: &str = "airflow-api-server.airflow";

/// The secret that Airflow signs its tokens with.
const SECRET: &str = "0123456789abcdef+airflow";

/// What a test wants to be different.
struct Wanted {
    /// What the worker's registration says of tasks.
    tasks: &'static str,
    /// Who may call the service besides the tasks of DAG payroll.
    callers: &'static [&'static str],
    /// Flags of the worker's sidecar.
    flags: &'static [(&'static str, &'static str)],
    /// The service's port.
    port: &'static str,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            tasks: "true",
            callers: &[],
            flags: &[],
            port: "payroll-api.data=8080/http",
        }
    }
}

/// A payroll service that the tasks of DAG payroll may call, Airflow's API server, and a worker. Fields are dropped in
/// this order.
struct Stage {
    worker: Workload,
    api: Workload,
    _api_server: Workload,
    _servers: [Process; 2],
    folder: PathBuf,
    mesh: Mesh,
}

impl Stage {
    fn start() -> Self {
        Self::with(Wanted::default())
    }

    fn with(wanted: Wanted) -> Self {
        let payroll = format!("{WORKER}/dag/payroll/task/*");
        let callers = [&[payroll.as_str()], wanted.callers].concat();
        let policy = allow(PAYROLL_API, &callers, "");
        let mut mesh = Mesh::plan().config("policy.yaml", &policy).start();
        let evidence = Registered {
            spiffe_id: WORKER,
            services: &["worker.airflow"],
            tasks: wanted.tasks,
            airflow_secret: &mesh.scratch.write_secret("airflow-secret", SECRET, None),
        };
        let evidence = evidence.flags(&mesh);
        let evidence: Vec<&str> = evidence.iter().map(String::as_str).collect();
        let api = mesh
            .workload("data", "payroll-api")
            .serves(wanted.port)
            .start();
        let api_server = mesh
            .workload("airflow", "api-server")
            .serves("airflow-api-server.airflow=8081")
            .start();
        let servers = [
            workloads::api(&api, 8080, &mesh.scratch),
            workloads::execution_api(&api_server, 8081, &mesh.scratch),
        ];
        let folder = mesh.scratch.directory("logs", Some(WORKLOAD_UID));
        let mut plan = mesh
            .workload("airflow", "worker")
            .attested_by(&evidence)
            .serves("worker.airflow=8793/http")
            .capabilities(&LOOKING)
            .flag("--task-lookup", "processes")
            .flag("--task-lookup-timeout", "1s")
            .flag("--execution-api-service", EXECUTION_API_SERVICE)
            .flag("--task-log-folder", folder.to_string_lossy());
        for (flag, value) in wanted.flags {
            plan = plan.flag(flag, *value);
        }
        let worker = plan.start();
        Self {
            worker,
            api,
            _api_server: api_server,
            _servers: servers,
            folder,
            mesh,
        }
    }

    /// The worker with these tasks, each DAG/TASK/KIND.
    fn airflow(&self, tasks: &[&str]) -> Invocation {
        let program = self.mesh.scratch.directory("bin", None).join("airflow");
        if !program.exists() {
            let code = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/worker.py");
            std::os::unix::fs::symlink(code, &program).expect("a link");
        }
        let tasks = tasks.iter().map(|task| {
            let (names, kind) = task.rsplit_once('/').expect("DAG/TASK/KIND");
            format!("{names}/manual__1/{kind}/{PAYROLL}?{}", query(names))
        });
        self.worker
            .program("/usr/bin/python3")
            .env("EXECUTION_API", EXECUTION_API)
            .env("FORGED", "worker.airflow:8793")
            .env("SECRET", SECRET)
            .arg(program)
            .args(["celery", "worker"])
            .arg(&self.folder)
            .args(tasks)
    }

    /// What each was answered, by its DAG and task.
    fn run(&self, tasks: &[&str]) -> HashMap<String, Value> {
        answers(&self.airflow(tasks).finish().success())
    }

    /// The line of a task's call in a sidecar's log.
    fn line(&self, of: &Workload, task: &str) -> AccessRecord {
        let query = query(task);
        of.sidecar
            .wait_for_access(task, |record| record.text("user_agent") == query)
    }

    /// As whom the service was called so often.
    fn callers(&self, times: usize) -> Vec<String> {
        eventually("the calls are in the log", PATIENCE, || {
            let records = self.api.sidecar.access_log();
            let callers = records.iter().map(AccessRecord::source_id);
            let callers: Vec<String> = callers.collect();
            (callers.len() >= times).then_some(callers)
        })
    }

    fn went_as(&self, result: &str) -> f64 {
        let metrics = self.worker.sidecar.metrics();
        metrics.sum("sidewind_task_callers_total", &[("result", result)])
    }
}

fn query(task: &str) -> String {
    format!("task={}", task.replace('ä', "a"))
}

fn answers(printed: &str) -> HashMap<String, Value> {
    let lines = printed.lines().map(|line| {
        let said: Value = serde_json::from_str(line).expect("a JSON object");
        let name = |field: &str| said[field].as_str().unwrap_or_default().to_owned();
        (format!("{}/{}", name("dag"), name("task")), said)
    });
    lines.collect()
}

fn header<'v>(said: &'v Value, name: &str) -> &'v str {
    let headers = said["got"]["headers"].as_array();
    let found = headers.into_iter().flatten().find(|pair| {
        pair[0]
            .as_str()
            .is_some_and(|key| key.eq_ignore_ascii_case(name))
    });
    found.and_then(|pair| pair[1].as_str()).unwrap_or_default()
}

#[test]
fn of_two_dags_on_one_worker_at_the_same_time_one_may_call_the_payroll_service_and_the_other_may_not()
 {
    let stage = Stage::start();
    let said = stage.run(&[
        "payroll/charge/call",
        "reports/charge/call",
        "payroll/check/call",
        "reports/send/call",
        "gehälter/charge/call",
    ]);
    for (task, id, status) in [
        ("payroll/charge", "dag/payroll/task/charge", 200),
        ("payroll/check", "dag/payroll/task/check", 200),
        ("reports/charge", "dag/reports/task/charge", 403),
        ("reports/send", "dag/reports/task/send", 403),
        ("gehälter/charge", "dag/x--geh-c3-a4lter/task/charge", 403),
    ] {
        let (said, id) = (&said[task], format!("{WORKER}/{id}"));
        assert_eq!(said["status"], status, "{said}");
        let (dag, name) = task.split_once('/').unwrap();
        if status == 200 {
            // What the service sees is the task's certificate, and what it is told.
            let certificate = header(said, "x-forwarded-client-cert");
            assert!(certificate.contains(&format!("URI={id}")), "{certificate}");
            assert_eq!(header(said, "x-airflow-dag-id"), dag, "{said}");
        } else {
            assert_eq!(said["error"], "policy-denied", "{said}");
        }
        for sidecar in [&stage.worker, &stage.api] {
            let record = stage.line(sidecar, task);
            assert_eq!(record.status(), status, "{record}");
            assert_eq!(record.source_id(), id, "{record}");
            assert_eq!(
                [record.text("dag_id"), record.text("task_id")],
                [dag, name],
                "{record}"
            );
            let user = format!("user of {dag}");
            assert_eq!(record.text("triggered_by"), user, "{record}");
        }
    }
    assert_eq!(stage.went_as("task"), 5.0);
    assert_eq!(stage.went_as("unproven"), 0.0);
    let audit = || {
        let control_plane = &stage.mesh.control_plane;
        let audit = control_plane
            .command()
            .args(["audit", "-o", "json", "--state-dir"]);
        audit.arg(control_plane.state()).finish().success()
    };
    eventually("the audit says for whom", PATIENCE, || {
        let issued = audit()
            .lines()
            .find(|line| line.contains(CHARGE))?
            .to_owned();
        let says = ["run_id=", r#"triggered_by=\"user of payroll\""#];
        says.iter().all(|it| issued.contains(it)).then_some(())
    });
    // Each identity has connections of its own to the service.
    let metrics = stage.api.sidecar.metrics();
    let accepted = [("side", "server"), ("result", "ok")];
    assert_eq!(metrics.sum("sidewind_tls_handshakes_total", &accepted), 5.0);
}

#[test]
fn whatever_a_task_makes_its_processes_show_it_calls_as_what_airflow_says_or_as_nobody_in_particular()
 {
    let stage = Stage::start();
    let kinds = [
        "rename", "log", "title", "environ", "orphan", "announce", "server",
    ];
    let tasks = kinds.map(|kind| format!("reports/{kind}/{kind}"));
    let tasks: Vec<&str> = tasks.iter().map(String::as_str).collect();
    let said = stage.run(&[&tasks[..], &["payroll/charge/call"]].concat());
    for kind in kinds {
        let task = format!("reports/{kind}");
        let said = &said[&task];
        assert_eq!(said["error"], "policy-denied", "{said}");
        // Who has left the worker's processes is no task any more, and has the worker's own identity at most.
        let lost = ["orphan", "announce", "server"].contains(&kind);
        let own = format!("{WORKER}/dag/reports/task/{kind}");
        let record = (stage.worker.sidecar).wait_for_access(&task, |record| {
            let is_own = record.source_id() == if lost { WORKER } else { &own };
            is_own && record.text("user_agent") == query(&task)
        });
        let dag = if lost { "" } else { "reports" };
        assert_eq!(record.text("dag_id"), dag, "{record}");
    }
    // What one forks that is still below its supervisor is that one's, whatever a server of its own says.
    assert_eq!(said["reports/server"]["below"]["error"], "policy-denied");
    assert_eq!(said["payroll/charge"]["status"], 200);
    // All seven, one of which has called twice, and DAG payroll itself.
    let mut callers = stage.callers(9);
    callers.retain(|id| id.contains("/dag/payroll/"));
    assert_eq!(callers, [CHARGE]);
    let facts = stage.worker.sidecar.metrics();
    let fact = |result| facts.sum("sidewind_task_facts_total", &[("result", result)]);
    // Each of the eight by its supervisor, and not by the one that only says that it is one.
    assert_eq!((fact("learned"), fact("unsupervised")), (8.0, 1.0));
    let stray = facts.sum("sidewind_task_lookups_total", &[("result", "stray")]);
    assert!(stray >= 3.0, "{stray}");
}

#[test]
fn where_it_must_be_sure_whose_a_connection_is_only_tasks_and_the_worker_itself_get_out() {
    let stage = Stage::with(Wanted {
        callers: &[WORKER],
        flags: &[("--unproven-task", "refuse")],
        ..Wanted::default()
    });
    let airflow = stage.airflow(&["payroll/charge/call", "reports/orphan/orphan"]);
    let own = format!("{PAYROLL}?task=worker");
    let said = answers(&airflow.env("OWN_URL", own).finish().success());
    assert_eq!(said["payroll/charge"]["status"], 200, "{said:?}");
    assert_eq!(said["/"]["status"], 200, "{said:?}");
    let lost = &said["reports/orphan"];
    assert_eq!(
        (&lost["status"], &lost["error"]),
        (&403.into(), &"task-identity-refused".into())
    );
    assert_eq!(stage.line(&stage.api, "worker").source_id(), WORKER);
    // A program that no worker has started.
    let printed = stage.worker.curl(&["-i"]).arg(PAYROLL).finish().success();
    assert!(printed.contains("task-identity-refused"), "{printed}");
    assert_eq!(stage.callers(2).len(), 2);
    assert_eq!(stage.went_as("refused"), 2.0);
}

#[test]
fn without_the_control_plane_tasks_that_have_an_identity_go_on_and_others_do_not_go_as_their_worker()
 {
    let mut stage = Stage::with(Wanted {
        callers: &[WORKER],
        ..Wanted::default()
    });
    let airflow = stage.airflow(&["payroll/charge/twice", "payroll/late/late"]);
    let airflow = airflow.start("airflow", &stage.mesh.scratch);
    eventually("both have begun", PATIENCE, || {
        (airflow.output().lines().count() == 2).then_some(())
    });
    stage.mesh.control_plane.kill();
    let go = stage.folder.with_extension("go");
    std::fs::write(go, "").expect("a file");
    let said = eventually("both have ended", PATIENCE, || {
        let said = answers(&airflow.output());
        (said.contains_key("payroll/charge") && said.contains_key("payroll/late")).then_some(said)
    });
    assert_eq!(said["payroll/charge"]["status"], 200, "{said:?}");
    let late = &said["payroll/late"];
    assert_eq!(
        (&late["status"], &late["error"]),
        (&503.into(), &"task-identity-unavailable".into())
    );
    assert_eq!(stage.callers(2), [CHARGE, CHARGE]);
}

#[test]
fn airflows_own_word_is_brought_where_it_is_demanded_and_a_token_of_another_secret_is_none() {
    let stage = Stage::with(Wanted {
        tasks: "{ airflow: production }",
        callers: &[WORKER],
        ..Wanted::default()
    });
    let said = stage.run(&["payroll/charge/call", "payroll/unsigned/call"]);
    assert_eq!(said["payroll/charge"]["status"], 200, "{said:?}");
    let unsigned = &said["payroll/unsigned"];
    assert_eq!(
        (&unsigned["status"], &unsigned["error"]),
        (&403.into(), &"task-identity-refused".into())
    );
    assert_eq!(stage.went_as("denied"), 1.0);
    // The header of every token, in base64.
    for log in [stage.worker.sidecar.log(), stage.mesh.control_plane.log()] {
        assert!(!log.contains("eyJhbGciOiAiSFM1MTIi"), "a token");
    }
}

#[test]
fn a_banned_task_does_not_go_as_its_worker() {
    let stage = Stage::with(Wanted {
        callers: &[WORKER],
        ..Wanted::default()
    });
    let state = stage.mesh.control_plane.state();
    let ban = stage.mesh.control_plane.command().args(["ban", CHARGE]);
    ban.arg("--state-dir").arg(state).finish().success();
    let said = stage.run(&["payroll/charge/call", "payroll/check/call"]);
    assert_eq!(
        said["payroll/charge"]["error"], "task-identity-refused",
        "{said:?}"
    );
    assert_eq!(said["payroll/check"]["status"], 200, "{said:?}");
}

#[test]
fn a_connection_of_bytes_is_its_tasks_too() {
    let stage = Stage::with(Wanted {
        port: "payroll-api.data=8080/tcp",
        ..Wanted::default()
    });
    let said = stage.run(&["payroll/charge/call", "reports/charge/call"]);
    assert_eq!(said["payroll/charge"]["status"], 200, "{said:?}");
    assert!(said["reports/charge"]["failed"].is_string(), "{said:?}");
    for (dag, error) in [("payroll", ""), ("reports", "policy-denied")] {
        for sidecar in [&stage.worker.sidecar, &stage.api.sidecar] {
            let record = sidecar.wait_for_access(dag, |record| {
                !record.is_request() && record.text("dag_id") == dag
            });
            assert_eq!(record.error(), error, "{record}");
            assert_eq!(
                record.source_id(),
                format!("{WORKER}/dag/{dag}/task/charge")
            );
            assert_eq!(
                record.text("triggered_by"),
                format!("user of {dag}"),
                "{record}"
            );
        }
    }
}
