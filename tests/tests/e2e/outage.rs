//! Airflow's Execution API is away, and no task is to notice.

use sidewind_tests::invocation::Invocation;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::Answer;

/// Where the worker finds the Execution API.
const EXECUTION_API: &str = "airflow-api-server.airflow:8081";

/// A variable, as Airflow's client asks for it.
const VARIABLE: &str = "/execution/variables/lab_var";

struct Stage {
    worker: Workload,
    api_server: Workload,
    server: Process,
    mesh: Mesh,
}

impl Stage {
    fn start(hold: &str) -> Self {
        Self::with(&[("--execution-api-hold", hold)])
    }

    fn with(flags: &[(&str, &str)]) -> Self {
        let mut mesh = Mesh::plan().start();
        let api_server = mesh
            .workload("airflow", "api-server")
            .serves("airflow-api-server.airflow=8081")
            .start();
        let server = workloads::execution_api(&api_server, 8081, &mesh.scratch);
        let mut worker = mesh.workload("airflow", "task");
        for (flag, value) in flags {
            worker = worker.flag(flag, *value);
        }
        let worker = worker.start();
        Self {
            worker,
            api_server,
            server,
            mesh,
        }
    }

    /// One request as Airflow's client makes it.
    fn ask(&self, method: &str, path: &str) -> Answer {
        Answer::parse(&self.request(method, path).finish().success())
    }

    fn request(&self, method: &str, path: &str) -> Invocation {
        self.request_with(method, path, "{}")
    }

    fn request_with(&self, method: &str, path: &str, body: &str) -> Invocation {
        let sdk = [
            "-i",
            "-X",
            method,
            "-H",
            "airflow-api-version: 2026-06-30",
            "-H",
            "expect:",
            "--data-binary",
            body,
        ];
        self.worker
            .curl(&sdk)
            .arg(format!("http://{EXECUTION_API}{path}"))
    }

    /// How the server answers from now on.
    fn mode(&self, mode: &str) {
        let url = format!("http://{}/mode/{mode}", self.api_server.local(8081));
        self.api_server.curl(&[]).arg(url).finish().success();
    }

    /// How often a request came to the server.
    fn calls(&self, path: &str) -> usize {
        let url = format!("http://{}/calls", self.api_server.local(8081));
        let printed = self.api_server.curl(&[]).arg(url).finish().success();
        printed.matches(&format!("\"path\": \"{path}\"")).count()
    }

    fn held(&self) -> f64 {
        let metrics = self.worker.sidecar.metrics();
        metrics.sum("sidewind_held_requests_total", &[("outcome", "held")])
    }

    /// Waits until so many requests are held.
    fn wait_until_held(&self, requests: f64) {
        eventually("the requests are held", 2 * PATIENCE, || {
            (self.held() >= requests).then_some(())
        });
    }
}

#[test]
fn a_thousand_requests_are_held_in_less_than_32_mib_and_answered_when_the_api_server_is_back() {
    const REQUESTS: usize = 1000;
    let mut stage = Stage::start("1m");
    // Whatever comes with the first requests is there.
    assert_eq!(stage.ask("GET", VARIABLE).status, 200);
    stage.server.kill();
    let before = stage.worker.sidecar.process().resident_bytes();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/outage.py");
    let mut clients = stage
        .worker
        .program("/usr/bin/python3")
        .arg(program)
        .args([EXECUTION_API, &REQUESTS.to_string()])
        .start("clients", &stage.mesh.scratch);
    stage.wait_until_held(REQUESTS as f64);
    let held = stage
        .worker
        .sidecar
        .process()
        .resident_bytes()
        .saturating_sub(before);
    assert!(held < 32 << 20, "{held} bytes");
    println!("{REQUESTS} held requests take {} KiB", held >> 10);
    let _server = workloads::execution_api(&stage.api_server, 8081, &stage.mesh.scratch);
    assert!(clients.wait(PATIENCE).success());
    assert_eq!(clients.output().trim(), format!("{{'200': {REQUESTS}}}"));
    let metrics = stage.worker.sidecar.metrics();
    assert_eq!(
        metrics.sum("sidewind_task_saved_requests_total", &[]),
        REQUESTS as f64
    );
}

#[test]
fn an_outage_is_said_just_before_airflows_client_gives_up_and_not_before() {
    let mut stage = Stage::start("4500ms");
    stage.server.kill();
    let answer = stage.ask("GET", VARIABLE);
    assert_eq!(answer.status, 503);
    assert_eq!(answer.error, "workload-unavailable");
    let record = stage
        .worker
        .sidecar
        .wait_for_access("the call", |record| record.path() == VARIABLE);
    let took: f64 = record.text("duration_ms").parse().unwrap_or_default();
    assert!(took >= 4250.0, "{record}");
    assert!(record.attempts() > 4, "{record}");
    assert_eq!(stage.held(), 1.0);
}

#[test]
fn requests_are_held_whichever_service_it_is_whose_word_about_tasks_counts() {
    let mut stage = Stage::with(&[
        ("--execution-api-hold", "2s"),
        ("--execution-api-service", "another-api-server.airflow"),
    ]);
    stage.server.kill();
    let answer = stage.ask("GET", VARIABLE);
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with(r#"{"detail":"#), "{answer:?}");
    assert_eq!(stage.held(), 1.0);
}

#[test]
fn what_may_not_be_sent_again_is_said_no_sooner() {
    let stage = Stage::start("4500ms");
    let (trigger, xcom) = (
        "/execution/dag-runs/d/r",
        "/execution/xcoms/d/r/t/k?size=large",
    );
    let large = stage.mesh.scratch.write("large", "x".repeat(1 << 20));
    let large = format!("@{}", large.display());
    for (mode, status) in [("503", 503), ("lost", 502)] {
        stage.mode(mode);
        for (path, body) in [(trigger, "{}"), (xcom, large.as_str())] {
            let before = stage.calls(path);
            let sent = stage.request_with("POST", path, body).finish().success();
            assert_eq!(Answer::parse(&sent).status, status, "{mode} {path}");
            assert_eq!(stage.calls(path) - before, 1, "{mode} {path}");
        }
    }
    let said = eventually("the calls are in the log", PATIENCE, || {
        let mut said = stage.worker.sidecar.access_log();
        said.retain(|record| record.text("method") == "POST");
        (said.len() >= 4).then_some(said)
    });
    for record in said {
        let took: f64 = record.text("duration_ms").parse().unwrap_or_default();
        assert!(took >= 4250.0, "{record}");
        assert_eq!(record.attempts(), 1, "{record}");
    }
}

#[test]
fn what_met_nobody_is_sent_when_somebody_is_there_though_it_may_not_be_repeated() {
    let mut stage = Stage::start("1m");
    stage.server.kill();
    let trigger = "/execution/dag-runs/d/r";
    let request = stage.request("POST", trigger);
    let mut request = request.start("waiting", &stage.mesh.scratch);
    stage.wait_until_held(1.0);
    let _server = workloads::execution_api(&stage.api_server, 8081, &stage.mesh.scratch);
    assert!(request.wait(PATIENCE).success());
    assert_eq!(Answer::parse(&request.output()).status, 201);
    assert_eq!(stage.calls(trigger), 1);
}

#[test]
fn what_is_kept_of_requests_that_nobody_answers_is_bounded_in_all() {
    const REQUESTS: usize = 400;
    const BYTES: usize = 200 << 10;
    let mut stage = Stage::start("1m");
    assert_eq!(stage.ask("GET", VARIABLE).status, 200);
    stage.server.signal(rustix::process::Signal::STOP);
    let before = stage.worker.sidecar.process().resident_bytes();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/outage.py");
    let mut clients = stage
        .worker
        .program("/usr/bin/python3")
        .arg(program)
        .args([EXECUTION_API, &REQUESTS.to_string(), &BYTES.to_string()])
        .start("clients", &stage.mesh.scratch);
    eventually("all have sent what they have", PATIENCE, || {
        clients.output().contains("sent").then_some(())
    });
    // Besides the half of 16 MiB each connection has its buffers; what is on its way, and what the allocator has not given
    // back yet, is more for a moment.
    let taken = eventually("little of them is kept", PATIENCE, || {
        let now = stage.worker.sidecar.process().resident_bytes();
        let taken = now.saturating_sub(before);
        (taken < 64 << 20).then_some(taken)
    });
    println!(
        "{REQUESTS} requests of {BYTES} bytes take {} KiB",
        taken >> 10
    );
    stage.server.signal(rustix::process::Signal::CONT);
    assert!(clients.wait(2 * PATIENCE).success());
    let output = clients.output();
    assert!(
        output.contains(&format!("{{'201': {REQUESTS}}}")),
        "{output}"
    );
}

#[test]
fn a_variable_is_read_through_an_api_server_that_answers_503_or_resets_and_its_default_is_never_taken()
 {
    let stage = Stage::start("1m");
    for (mode, held) in [("503", 1.0), ("reset", 2.0)] {
        stage.mode(mode);
        let mut reading = stage
            .request("GET", VARIABLE)
            .start(mode, &stage.mesh.scratch);
        stage.wait_until_held(held);
        stage.mode("ok");
        assert!(reading.wait(PATIENCE).success());
        let answer = Answer::parse(&reading.output());
        assert_eq!(answer.status, 200, "{mode}");
        assert!(answer.body.contains("hello"), "{mode}: {}", answer.body);
    }
    let log = stage.worker.sidecar.log();
    assert!(log.contains("got through after an outage"), "{log}");
}

#[test]
fn a_lost_response_is_asked_for_again_where_the_server_takes_that_and_nowhere_else() {
    let stage = Stage::start("500ms");
    stage.mode("lost");
    let id = "0193a7a0-9d5c-7a7e-b0c8-3d2f4f9f1a11";
    for (method, path, is_safe) in [
        (
            "PATCH",
            format!("/execution/task-instances/{id}/state"),
            true,
        ),
        (
            "PUT",
            format!("/execution/task-instances/{id}/heartbeat"),
            true,
        ),
        ("POST", "/execution/xcoms/d/r/t/k".to_owned(), true),
        ("POST", "/execution/dag-runs/d/r".to_owned(), false),
        ("POST", "/execution/dag-runs/d/r/clear".to_owned(), false),
        ("PATCH", format!("/execution/hitlDetails/{id}"), false),
    ] {
        let answer = stage.ask(method, &path);
        assert_eq!(answer.status, 502, "{method} {path}");
        let calls = stage.calls(&path);
        assert_eq!(calls > 1, is_safe, "{method} {path}: {calls}");
    }
}

const ENTRY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: api-servers, namespace: airflow }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 8080, protocol: http, targetPort: 8081 }]
  service: api-server.airflow
";

#[test]
fn a_request_that_an_api_server_leaves_lying_is_answered_by_another_one() {
    let mut mesh = Mesh::plan().config("entry.yaml", ENTRY).start();
    let mut servers = Vec::new();
    for name in ["api-server-1", "api-server-2"] {
        let workload = mesh.workload("airflow", name);
        let workload = workload.serves("api-server.airflow:8080=8081/http").start();
        let server = workloads::execution_api(&workload, 8081, &mesh.scratch);
        servers.push((workload, server));
    }
    let worker = mesh.workload("airflow", "task");
    let worker = worker.flag("--execution-api-hedge", "200ms").start();
    let id = "0193a7a0-9d5c-7a7e-b0c8-3d2f4f9f1a11";
    let url = format!("http://10.96.0.10:8080/execution/task-instances/{id}/state");
    let ask = || {
        let version = "airflow-api-version: 2026-06-30";
        let state = [
            "-i",
            "-X",
            "PATCH",
            "-H",
            version,
            "-d",
            r#"{"state": "success"}"#,
        ];
        let answer = worker.curl(&state).arg(&url).finish().success();
        let status = Answer::parse(&answer).status;
        assert!((200..300).contains(&status), "{answer}");
        worker.sidecar.access_log()
    };
    eventually("both API servers answer", PATIENCE, || {
        let endpoints = ask().into_iter().map(|record| record.text("endpoint"));
        let endpoints: std::collections::BTreeSet<_> = endpoints.collect();
        (endpoints.len() == 2).then_some(())
    });
    let (hung, server) = &servers[0];
    server.signal(rustix::process::Signal::STOP);
    let saved = eventually("a request meets the one that hangs", PATIENCE, || {
        ask().into_iter().find(|record| record.attempts() == 2)
    });
    let hung = hung.at(8081).to_string();
    assert_ne!(saved.text("endpoint"), hung, "{saved}");
    let failed = saved.list("failed_attempts");
    assert_eq!(failed[0]["endpoint"], hung, "{saved}");
    assert_eq!(failed[0]["error"], "request-timeout", "{saved}");
}
