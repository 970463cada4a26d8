//! `sidewind-proxy run -- COMMAND`: a command that has its sidecar for exactly as long as it runs.

use std::io::{Read, Write};
use std::time::Duration;

use rustix::process::Signal;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually, throughout};
use sidewind_tests::workloads;

/// A mesh on loopback with an API, and where tasks reach it through their sidecar.
fn mesh_with_api() -> (Process, Workload, Mesh) {
    let mut mesh = Mesh::plan().start_on_loopback();
    let plan = mesh.workload("data", "orders-api");
    let api = plan.serves("orders-api.data:80=8080/http").start();
    let server = workloads::api(&api, 8080, &mesh.scratch);
    (server, api, mesh)
}

/// What a shell says that calls the API by way of the sidecar whose address it is given.
fn call(path: &str) -> String {
    format!("curl -sS --max-time 20 -x http://$PROXY:15001 http://orders-api.data{path}")
}

/// Starts a shell script beside a sidecar of its own. `$PROXY` is the sidecar's address.
fn script(mesh: &mut Mesh, name: &str, text: &str) -> Workload {
    // Addresses are given in order, and this is the next.
    let host = mesh.outsider(name);
    let text = format!("PROXY={}; {text}", host.address);
    let plan = mesh.workload("airflow", name);
    plan.running(&["sh", "-c", &text]).start_at(host)
}

fn exit_code(task: &mut Workload) -> Option<i32> {
    task.sidecar.process().wait(PATIENCE).code()
}

#[test]
fn the_commands_first_call_goes_through_the_mesh_and_the_sidecar_ends_with_it() {
    let (_server, api, mut mesh) = mesh_with_api();
    let mut task = script(&mut mesh, "task", &call("/orders"));
    assert_eq!(exit_code(&mut task), Some(0), "{}", task.sidecar.log());
    let output = task.sidecar.process().output();
    assert!(output.contains("anemometer"), "{output}");
    let record = task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/orders");
    assert_eq!(record.destination_id(), api.spiffe_id, "{record}");
}

#[test]
fn the_command_of_an_executor_names_the_task_whose_calls_these_are() {
    let (_server, _api, mut mesh) = mesh_with_api();
    let host = mesh.outsider("ecs");
    let text = format!("PROXY={}; {}", host.address, call("/orders"));
    // As the ECS executor overrides a container's command: python -m airflow.sdk.execution_time.execute_workload …
    let workload = r#"{"token":"eyJ.very.secret","dag_rel_path":"a.py","type":"ExecuteTask","ti":{"id":"0193","dag_id":"payroll",
        "task_id":"charge","run_id":"scheduled__2026-11-21T00:00:00+00:00","try_number":2,"map_index":-1}}"#;
    let command = [
        "sh",
        "-c",
        &text,
        "execute_workload",
        "--json-string",
        workload,
    ];
    let plan = mesh.workload("airflow", "ecs").running(&command);
    let mut task = plan.flag("--task-lookup", "environment").start_at(host);
    assert_eq!(exit_code(&mut task), Some(0), "{}", task.sidecar.log());
    let record = task
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/orders");
    let named = ["dag_id", "task_id", "run_id"].map(|field| record.text(field).to_owned());
    let expected = ["payroll", "charge", "scheduled__2026-11-21T00:00:00+00:00"];
    assert_eq!(named, expected, "{record}");
    assert!(!task.sidecar.log().contains("very.secret"));
}

#[test]
fn the_exit_code_is_the_commands() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let readable = mesh
        .scratch
        .write("program", "no program")
        .display()
        .to_string();
    for (name, command, code) in [
        ("fails", &["sh", "-c", "exit 7"][..], 7),
        ("killed", &["sh", "-c", "kill -KILL $$"], 128 + 9),
        ("terminated", &["sh", "-c", "kill -TERM $$"], 128 + 15),
        ("unknown", &["/no/such/program"], 127),
        ("unrunnable", &[readable.as_str()], 126),
    ] {
        let mut task = mesh.workload("airflow", name).running(command).start();
        assert_eq!(
            exit_code(&mut task),
            Some(code),
            "{name}: {}",
            task.sidecar.log()
        );
    }
}

#[test]
fn every_signal_goes_on_to_the_command() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let signals = [
        ("INT", Signal::INT),
        ("HUP", Signal::HUP),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("WINCH", Signal::WINCH),
    ];
    let traps: String = signals
        .iter()
        .map(|(name, _)| format!("trap 'echo got-{name}' {name}; "))
        .collect();
    let text =
        format!("{traps} trap 'exit 3' TERM; echo the-command-is-up; while :; do sleep 0.05; done");
    let mut task = script(&mut mesh, "task", &text);
    let process = task.sidecar.process();
    process.wait_for_log("the-command-is-up", PATIENCE);
    for (name, signal) in signals {
        process.signal(signal);
        process.wait_for_log(&format!("got-{name}"), PATIENCE);
    }
    process.signal(Signal::TERM);
    assert_eq!(exit_code(&mut task), Some(3));
}

#[test]
fn a_command_that_is_told_to_end_still_calls_out_for_as_long_as_it_lives() {
    let (_server, _api, mut mesh) = mesh_with_api();
    let last_call = call("/orders");
    // Longer than --drain-quiet, after which a sidecar without a command counts its workload as gone.
    let text = format!(
        "trap 'while [ ! -e $0.go ]; do sleep 0.05; done; {last_call}; exit $?' TERM; echo the-command-is-up; while :; do sleep 0.05; done"
    );
    let go = mesh.scratch.join("last");
    let host = mesh.outsider("task");
    let text = format!("PROXY={}; {text}", host.address);
    let go_argument = go.display().to_string();
    let plan = mesh
        .workload("airflow", "task")
        .with_default_drain()
        .flag("--drain-quiet", "0s")
        .flag("--drain-timeout", "0s");
    let mut task = plan
        .running(&["sh", "-c", &text, &go_argument])
        .start_at(host);
    task.sidecar
        .process()
        .wait_for_log("the-command-is-up", PATIENCE);
    task.sidecar.terminate();
    eventually("the sidecar is not ready", PATIENCE, || {
        (!task.sidecar.is_ready()).then_some(())
    });
    std::fs::write(go.with_extension("go"), "").unwrap();
    assert_eq!(exit_code(&mut task), Some(0), "{}", task.sidecar.log());
    let output = task.sidecar.process().output();
    assert!(output.contains("anemometer"), "{output}");
}

/// Answers one request with ten megabytes, which the kernel has all of when it ends, and nobody else.
const LAST_ANSWER: &str = r#"
import socket, sys
listener = socket.create_server((sys.argv[1], 8080))
print("the-server-listens", flush=True)
connection, _ = listener.accept()
SO_SNDBUFFORCE = 32
connection.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 32 << 20)
request = b""
while not request.endswith(b"\r\n\r\n"):
    request += connection.recv(65536)
connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n" + bytes(10485760))
"#;

#[test]
fn the_last_answer_of_a_command_is_read_to_its_end_however_slowly() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let script = mesh.scratch.write("server.py", LAST_ANSWER);
    let host = mesh.outsider("server");
    let address = host.address.to_string();
    let script = script.display().to_string();
    let plan = mesh.workload("data", "server").with_default_drain();
    let plan = plan.serves("server.data:80=8080/http");
    let mut server = plan
        .running(&["/usr/bin/python3", "-u", &script, &address])
        .start_at(host);
    let task = mesh.workload("airflow", "task").start();
    server
        .sidecar
        .process()
        .wait_for_log("the-server-listens", PATIENCE);
    let mut stream = task.place.connect(task.at(15001), PATIENCE).unwrap();
    stream
        .write_all(b"GET http://server.data/ HTTP/1.1\r\nhost: server.data\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a whole head");
        head.extend(byte);
    }
    // Nothing is read before the server is gone.
    server
        .sidecar
        .process()
        .wait_for_log("the command has ended", PATIENCE);
    let mut body = vec![1; 10 << 20];
    stream.read_exact(&mut body).expect("a whole body");
    assert!(body.iter().all(|byte| *byte == 0));
    assert_eq!(exit_code(&mut server), Some(0), "{}", server.sidecar.log());
}

#[test]
fn the_admin_port_ends_the_command_too() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let text = "trap 'exit 5' TERM; echo the-command-is-up; while :; do sleep 0.05; done";
    let mut task = script(&mut mesh, "task", text);
    task.sidecar
        .process()
        .wait_for_log("the-command-is-up", PATIENCE);
    assert_eq!(task.sidecar.ask("POST", "/shutdown", "").status, 202);
    assert_eq!(exit_code(&mut task), Some(5));
}

#[test]
fn as_process_one_it_reaps_orphans_and_hears_signals() {
    let mut mesh = Mesh::plan().start_on_loopback();
    // A process that has ended and was not reaped keeps its directory in /proc.
    let text = "trap 'exit 6' TERM
        orphan=$(sh -c 'sleep 0.1 >/dev/null & echo $!')
        while [ -d /proc/$orphan ]; do sleep 0.05; done
        echo reaped as a child of $(cut -d' ' -f4 /proc/$$/stat)
        kill -TERM 1
        while :; do sleep 0.05; done";
    let plan = mesh.workload("airflow", "task");
    let plan = plan.by(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    let mut task = plan.running(&["sh", "-c", text]).start();
    assert_eq!(
        exit_code(&mut task),
        Some(6),
        "{}",
        task.sidecar.process().log()
    );
    let output = task.sidecar.process().output();
    assert!(output.contains("reaped as a child of 1"), "{output}");
}

/// A sidecar in the PID namespace of a job: a shell that waits for a file and then runs a script.
fn beside_a_job(mesh: &mut Mesh, go: &str, text: &str) -> Workload {
    let host = mesh.outsider("task");
    let job = format!(
        "(PROXY={}; while [ ! -e {go} ]; do sleep 0.05; done; {text}) & \"$@\" & wait $!",
        host.address
    );
    let plan = mesh.workload("airflow", "task");
    let plan = plan.flag("--end-with-workload", "true").by(&[
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        &job,
        "pause",
    ]);
    plan.start_at(host)
}

#[test]
fn a_sidecar_in_the_pid_namespace_of_a_job_ends_with_it() {
    let (_server, _api, mut mesh) = mesh_with_api();
    let go = mesh.scratch.join("go");
    let mut task = beside_a_job(&mut mesh, &go.display().to_string(), &call("/orders"));
    assert!(task.sidecar.process().is_running());
    std::fs::write(go, "").expect("the scratch directory");
    assert_eq!(exit_code(&mut task), Some(0), "{}", task.sidecar.log());
    task.sidecar
        .wait_for_access("the job's call", |record| record.path() == "/orders");
}

#[test]
fn a_sidecar_in_the_pid_namespace_of_a_job_outlives_it_however_long_it_takes_to_end() {
    let (_server, _api, mut mesh) = mesh_with_api();
    let go = mesh.scratch.join("go");
    let mut task = beside_a_job(&mut mesh, &go.display().to_string(), &call("/orders"));
    assert_eq!(task.sidecar.ask("POST", "/shutdown", "").status, 202);
    // Thrice as long as nothing may be open where the workload cannot be seen.
    throughout("the sidecar is there", Duration::from_millis(1500), || {
        task.sidecar.process().is_running()
    });
    std::fs::write(go, "").expect("the scratch directory");
    assert_eq!(exit_code(&mut task), Some(0), "{}", task.sidecar.log());
    task.sidecar
        .wait_for_access("the job's last call", |record| record.path() == "/orders");
}

#[test]
fn a_sidecar_that_cannot_see_the_workload_whose_end_it_is_to_share_says_what_to_change() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let plan = mesh.workload("airflow", "task").without_waiting();
    let plan = plan.flag("--end-with-workload", "true");
    let mut task = plan
        .by(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .start();
    assert_eq!(exit_code(&mut task), Some(1));
    let log = task.sidecar.log();
    assert!(log.contains("shareProcessNamespace: true"), "{log}");
}

#[test]
fn a_command_whose_sidecar_does_not_become_ready_is_not_run() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let marker = mesh.scratch.join("ran").display().to_string();
    mesh.control_plane.kill();
    let host = mesh.outsider("task");
    let token = mesh
        .scratch
        .write("any.token", "any-token-that-nobody-takes-0123456789");
    let run = mesh.proxy(&host).arg("--join-token-file").arg(token);
    let run = run
        .args(["--ready-timeout", "500ms", "--", "touch", &marker])
        .finish();
    assert_eq!(run.code(), Some(125), "{}", run.err());
    assert!(
        run.err().contains("not ready within --ready-timeout"),
        "{}",
        run.err()
    );
    assert!(!std::path::Path::new(&marker).exists());
}

#[test]
fn a_token_is_in_neither_the_commands_environment_nor_what_is_shown_of_it() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let plan = mesh
        .workload("airflow", "task")
        .env("SIDEWIND_LOG_LEVEL", "debug");
    let secret = "the-tasks-own-token";
    let text = "env; trap 'exit 0' TERM; echo the-command-is-up; while :; do sleep 0.05; done";
    let mut task = plan.running(&["sh", "-c", text, secret]).start();
    task.sidecar
        .process()
        .wait_for_log("the-command-is-up", PATIENCE);
    let shown = task.sidecar.get("/config").text();
    assert!(
        shown.contains("CommandConfig") && !shown.contains(secret),
        "{shown}"
    );
    let log = task.sidecar.log();
    assert!(!log.contains(secret), "{log}");
    task.sidecar.terminate();
    assert_eq!(exit_code(&mut task), Some(0));
}

#[test]
fn a_command_waits_for_a_sidecar_of_its_own_container_and_ends_it() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let host = mesh.outsider("task");
    let admin = format!("{}:15020", host.address);
    let run = host.place.program(&mesh.binaries().proxy);
    // Whoever starts the sidecar sees it ready before the command ends it.
    let go = mesh.scratch.directory("go", None).join("now");
    let text = "until [ -e \"$0\" ]; do sleep 0.05; done; echo up; exit 4";
    let run = run.args(["run", "--admin-listen", &admin, "--", "sh", "-c", text]);
    let mut command = run.arg(&go).start("command", &mesh.scratch);
    // It is there first, as containers of a task may start in any order.
    let port = (host.address, 15020).into();
    command.wait_until("nothing answers yet", PATIENCE, || {
        !host.place.is_open(port)
    });
    let mut task = mesh.workload("airflow", "task").start_at(host);
    std::fs::write(&go, "").expect("the command sees it");
    assert_eq!(command.wait(PATIENCE).code(), Some(4), "{}", command.log());
    assert!(command.output().contains("up"));
    let status = task.sidecar.process().wait(Duration::from_secs(20));
    assert!(status.success(), "{status}");
}

#[test]
fn a_command_whose_running_sidecar_never_comes_is_not_run() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let host = mesh.outsider("task");
    let admin = format!("{}:15020", host.address);
    let run = host.place.program(&mesh.binaries().proxy);
    let run = run.args([
        "run",
        "--admin-listen",
        &admin,
        "--ready-timeout",
        "300ms",
        "--",
        "echo",
        "ran",
    ]);
    let run = run.finish();
    assert_eq!(
        (run.code(), run.out().as_str()),
        (Some(125), ""),
        "{}",
        run.err()
    );
    assert!(run.err().contains("Connection refused"), "{}", run.err());
}
