//! Where a sidecar knows a task from that may not look into processes: its own environment, or Airflow's plugin.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::Value;
use sidewind_tests::mesh::{Mesh, SIDECAR_UID, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{API, TASK_ID};

/// An API whose sidecar believes the worker's.
fn api(mesh: &mut Mesh) -> (Workload, Process) {
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080")
        .flag("--task-context-from", TASK_ID)
        .start();
    let server = workloads::api(&api, 8080, &mesh.scratch);
    (api, server)
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
fn beside_one_task_the_sidecars_environment_names_it_for_every_connection() {
    let mut mesh = Mesh::plan().start();
    let (api, _server) = api(&mut mesh);
    // An exact run id, as no label can hold it.
    let run = "scheduled__2026-11-21T00:00:00+00:00";
    let task = mesh
        .workload("airflow", "task")
        .flag("--task-lookup", "environment")
        .env("AIRFLOW_CTX_DAG_ID", "payroll")
        .env("AIRFLOW_CTX_TASK_ID", "load")
        .env("AIRFLOW_CTX_DAG_RUN_ID", run)
        .env("AIRFLOW_CTX_TRY_NUMBER", "2")
        .env("AIRFLOW_CTX_MAP_INDEX", "")
        .start();
    for n in 0..3 {
        let url = format!("{API}/echo?n={n}");
        let forged = ["-H", "x-airflow-dag-id: forged"];
        let printed = task.curl(&forged).arg(url).finish().success();
        let got: Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!(header(&got, "x-airflow-dag-id"), Some("payroll"), "{got}");
        assert_eq!(header(&got, "x-airflow-run-id"), Some(run), "{got}");
        assert_eq!(header(&got, "x-airflow-try-number"), Some("2"), "{got}");
        assert_eq!(header(&got, "x-airflow-map-index"), None, "{got}");
    }
    let record = api
        .sidecar
        .wait_for_access("the call", |record| record.text("dag_id") == "payroll");
    assert_eq!(record.text("task_id"), "load", "{record}");
}

#[test]
fn what_a_sidecar_cannot_see_is_said_when_it_starts() {
    let mut mesh = Mesh::plan().start();
    let worker = mesh
        .workload("airflow", "task")
        .flag("--task-lookup", "processes")
        .start();
    let sight = |sight: &str| {
        let metrics = worker.sidecar.metrics();
        metrics.sum("sidewind_task_sight", &[("sight", sight)])
    };
    assert_eq!(
        (sight("partial"), sight("whole"), sight("alone")),
        (1.0, 0.0, 0.0)
    );
    let detail = worker.sidecar.get("/ready").body;
    let detail = String::from_utf8_lossy(&detail);
    assert!(detail.contains("SYS_PTRACE"), "{detail}");
    let log = worker.sidecar.log();
    assert_eq!(log.matches("tasks may not be found").count(), 1, "{log}");
}

#[test]
fn a_user_other_than_root_sees_whole_by_the_marks_on_the_images_program() {
    let mut mesh = Mesh::plan().start();
    // As `.ci/image` marks it: no capability is handed to the user itself.
    let marked = mesh.scratch.directory("image", None).join("sidewind-proxy");
    std::fs::copy(&mesh.binaries().proxy, &marked).expect("a copy");
    let marks = "cap_sys_ptrace,cap_dac_override,cap_dac_read_search=p";
    let done = Command::new("setcap").arg(marks).arg(&marked).status();
    assert!(done.expect("setcap").success());
    let run = format!("exec {} \"$@\"", marked.display());
    let mut worker = mesh
        .workload("airflow", "task")
        .by(&["sh", "-c", &run])
        .flag("--task-lookup", "processes")
        .start();
    let metrics = worker.sidecar.metrics();
    assert_eq!(
        metrics.sum("sidewind_task_sight", &[("sight", "whole")]),
        1.0
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.sidecar.process().id()));
    let status = status.expect("the sidecar's status");
    // The threads that carry traffic use none of them.
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
}

#[test]
fn airflows_plugin_tells_a_sidecar_without_privileges_which_task_calls() {
    let mut mesh = Mesh::plan().start();
    let (_api, _server) = api(&mut mesh);
    let socket = mesh
        .scratch
        .directory("sidewind", Some(SIDECAR_UID))
        .join("task.sock");
    let worker = mesh
        .workload("airflow", "task")
        .flag("--task-lookup", "plugin")
        .flag("--task-lookup-timeout", "1s")
        .flag("--task-socket", socket.to_string_lossy())
        .start();
    let tasks: Vec<String> = ["python", "shell", "forked", "visible"]
        .iter()
        .flat_map(|kind| (0..5).map(move |n| format!("{kind}_{n}/{kind}/run_{n}/{API}/echo")))
        .collect();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/plugin_tasks.py");
    let printed = worker
        .program("/usr/bin/python3")
        .env("SIDEWIND_TASK_SOCKET", &socket)
        .arg(program)
        .args(&tasks)
        .finish()
        .success();
    let got: HashMap<String, Value> = printed
        .lines()
        .map(|line| {
            let said: Value = serde_json::from_str(line).expect("a JSON object");
            (
                said["dag"].as_str().unwrap_or_default().to_owned(),
                said["got"].clone(),
            )
        })
        .collect();
    assert_eq!(got.len(), 21);
    for (dag, got) in &got {
        let named = header(got, "x-airflow-dag-id");
        if dag == "worker" {
            assert_eq!(named, None, "{got}");
            continue;
        }
        assert_eq!(named, Some(dag.as_str()), "{got}");
        assert_eq!(header(got, "x-airflow-map-index"), Some("3"), "{got}");
        assert_eq!(header(got, "x-airflow-try-number"), Some("2"), "{got}");
    }

    // Others who say at the socket what makes no sense, or claim the worker's connections as another user.
    let facts = |result: &str| {
        let metrics = worker.sidecar.metrics();
        metrics.sum("sidewind_task_facts_total", &[("result", result)])
    };
    let before = facts("learned");
    let mut nonsense = UnixStream::connect(&socket).expect("the socket is there");
    nonsense.write_all(&[b'x'; 5000]).expect("it is read");
    eventually("nonsense is counted", PATIENCE, || {
        (facts("unreadable") == 1.0).then_some(())
    });
    let mut liar = UnixStream::connect(&socket).expect("the socket is there");
    let hello = b"{\"dag_id\":\"forged\",\"task_id\":\"t\",\"run_id\":\"r\"}\n";
    liar.write_all(hello).expect("it is read");
    eventually("the liar is known", PATIENCE, || {
        (facts("learned") > before).then_some(())
    });
    let printed = worker
        .curl(&[])
        .arg(format!("{API}/echo"))
        .finish()
        .success();
    assert!(!printed.contains("forged"), "{printed}");
}

#[test]
fn the_plugins_own_tests_pass() {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../airflow-plugin/tests");
    let ran = std::process::Command::new("/usr/bin/python3")
        .args(["-m", "unittest", "discover", tests])
        .output()
        .expect("python3 is there");
    let said = String::from_utf8_lossy(&ran.stderr);
    let files = std::fs::read_dir(tests).expect("its tests are there");
    let paths = files.map(|file| file.expect("an entry").path());
    let written = paths.filter(|path| path.extension().is_some_and(|it| it == "py"));
    let written = written.map(|path| std::fs::read_to_string(path).expect("a text"));
    let written: usize = written.map(|it| it.matches("    def test_").count()).sum();
    // Every one of them, none passed over.
    let all = format!("Ran {written} tests");
    assert!(
        ran.status.success() && written > 0 && said.contains(&all) && !said.contains("skipped"),
        "{all}: {said}"
    );
}
