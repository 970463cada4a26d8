//! Against real processes: Python programs that hold sockets and logs the way Airflow's do.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use super::super::{
    Owner, Unknown,
    attempt_log::{AttemptLogs, DEFAULT_TEMPLATE},
    finder::Finder,
    process::{Process, ProcessKey},
    run_response::Run,
    socket::SocketPair,
};

/// What every program begins with: `title` shows as Airflow's titles do, as the command line.
const PRELUDE: &str = r#"
import os, socket, sys, time
port, logs = int(sys.argv[-2]), sys.argv[-1]
def log(dag, run, task, attempt=1, index=None):
    index = "" if index is None else f"map_index={index}/"
    path = f"{logs}/dag_id={dag}/run_id={run}/task_id={task}/{index}attempt={attempt}.log"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "a")
def connect():
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b".")
    return connection
def wait():
    sys.stdin.read()
    os._exit(0)
"#;

/// Tells the processes of one stage from those of others, as control groups tell containers.
const STAGE: &str = "SIDEWIND_TEST_STAGE";

fn stage_of(process: &Process) -> Option<Vec<u8>> {
    let environment = process.environment()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let stage = variables.find(|variable| variable.starts_with(STAGE.as_bytes()));
    Some(stage.unwrap_or_default().to_vec())
}

struct Stage {
    folder: tempfile::TempDir,
    server: TcpListener,
    accepted: Vec<std::net::TcpStream>,
}

/// Ends with the test, and its children with it: they wait for the end of the same input.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Stage {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            server: TcpListener::bind("127.0.0.1:0").unwrap(),
            accepted: Vec::new(),
        }
    }

    fn logs(&self) -> AttemptLogs {
        AttemptLogs::new(self.folder.path(), DEFAULT_TEMPLATE).unwrap()
    }

    fn finder(&self) -> Finder {
        self.finder_within(Duration::from_secs(60))
    }

    fn finder_within(&self, search_time: Duration) -> Finder {
        let finder = Finder::new(self.logs(), search_time).unwrap();
        finder.contained_by(stage_of)
    }

    fn run(&self, program: &str) -> Program {
        self.run_in(self.folder.path(), program, &[])
    }

    fn run_in(&self, logs: &Path, program: &str, environment: &[(&str, &str)]) -> Program {
        let child = Command::new("python3")
            .args(["-c", &format!("{PRELUDE}{program}")])
            .arg(self.server.local_addr().unwrap().port().to_string())
            .arg(logs)
            .env(STAGE, self.folder.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        Program(child)
    }

    /// The next connection, as its client sees it.
    fn accept(&mut self) -> SocketPair {
        let (stream, client) = self.server.accept().unwrap();
        // The client has said something, so that it is past connecting.
        (&stream).read_exact(&mut [0]).unwrap();
        self.accepted.push(stream);
        SocketPair {
            local: client,
            remote: self.address(),
        }
    }

    /// The one that was accepted last.
    fn last(&self) -> SocketPair {
        SocketPair {
            local: self.accepted.last().unwrap().peer_addr().unwrap(),
            remote: self.address(),
        }
    }

    fn address(&self) -> SocketAddr {
        self.server.local_addr().unwrap()
    }
}

fn names(owner: &Owner) -> (&str, &str, &str, Option<i32>, Option<u32>) {
    let Owner::Task(found) = owner else {
        panic!("no task: {owner:?}");
    };
    let task = &found.task;
    (
        &task.dag_id,
        &task.task_id,
        &task.run_id,
        task.map_index,
        task.try_number,
    )
}

#[test]
fn a_runner_forked_by_its_supervisor_has_the_supervisors_task_whatever_it_opens_itself() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _program = stage.run(
        "held = log('payroll', 'manual__1', 'load', 2, 3)\n\
         if os.fork() == 0:\n\
        \x20   fake = log('reports', 'manual__9', 'other')\n\
        \x20   connection = connect()\n\
         wait()",
    );
    let found = finder.find(stage.accept()).unwrap();
    assert_eq!(
        names(&found),
        ("payroll", "load", "manual__1", Some(3), Some(2))
    );
}

#[test]
fn a_program_that_a_task_started_belongs_to_the_task_above_it() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _program = stage.run(
        "import subprocess\n\
         held = log('payroll', 'manual__1', 'shell')\n\
         if os.fork() == 0:\n\
        \x20   subprocess.run(['bash', '-c', f'exec 3<>/dev/tcp/127.0.0.1/{port}; printf . >&3; cat'])\n\
         wait()",
    );
    let found = finder.find(stage.accept()).unwrap();
    assert_eq!(names(&found).1, "shell");
}

#[test]
fn a_socket_that_was_inherited_is_its_first_owners() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let mut program = stage.run(
        "connection = connect()\n\
         if os.fork() == 0:\n\
        \x20   held = log('payroll', 'manual__1', 'load')\n\
        \x20   os.fork()\n\
        \x20   os.write(1, b'.')\n\
         wait()",
    );
    let pair = stage.accept();
    // Both have it now.
    let mut said = program.0.stdout.take().unwrap();
    said.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(finder.find(pair), Ok(Owner::NoTask));
}

#[test]
fn tasks_that_run_side_by_side_in_one_process_tree_are_told_apart() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _program = stage.run(
        "for n in range(16):\n\
        \x20   if os.fork() == 0:\n\
        \x20       held = log(f'dag_{n}', 'run', 'task')\n\
        \x20       if os.fork() == 0:\n\
        \x20           connection = connect()\n\
        \x20           connection.sendall(bytes([n]))\n\
        \x20           wait()\n\
        \x20       wait()\n\
         wait()",
    );
    for _ in 0..16 {
        let pair = stage.accept();
        let mut n = [0];
        stage.accepted.last().unwrap().read_exact(&mut n).unwrap();
        let found = finder.find(pair).unwrap();
        assert_eq!(names(&found).0, format!("dag_{}", n[0]));
    }
}

#[test]
fn what_was_read_for_one_is_read_for_all_who_had_asked_by_then_and_for_no_later_one() {
    let mut stage = Stage::new();
    let (mut shared, mut alone) = (stage.finder(), stage.finder());
    let _program = stage.run(
        "for n in range(16):\n\
        \x20   if os.fork() == 0:\n\
        \x20       held = log(f'dag_{n}', 'run', 'task')\n\
        \x20       if os.fork() == 0:\n\
        \x20           first = connect()\n\
        \x20           first.sendall(bytes([n]))\n\
        \x20           first.recv(1)\n\
        \x20           second = connect()\n\
        \x20           second.sendall(bytes([n]))\n\
        \x20           wait()\n\
        \x20       wait()\n\
         wait()",
    );
    let accept = |stage: &mut Stage| {
        let pair = stage.accept();
        let mut n = [0];
        stage.accepted.last().unwrap().read_exact(&mut n).unwrap();
        (pair, format!("dag_{}", n[0]))
    };
    let all: Vec<_> = (0..16).map(|_| accept(&mut stage)).collect();
    let asked = Instant::now();
    for (pair, dag) in &all {
        for (finder, asked) in [(&mut shared, asked), (&mut alone, Instant::now())] {
            let found = finder.search(*pair, asked).unwrap().answer.unwrap();
            assert_eq!(names(&found).0, dag);
        }
    }
    let (shared_files, alone_files) = (shared.files(), alone.files());
    assert!(
        shared_files < alone_files,
        "{shared_files} files, {alone_files} without"
    );
    for (first, _) in stage.accepted.iter().zip(&all) {
        std::io::Write::write_all(&mut &*first, b".").unwrap();
    }
    for _ in 0..16 {
        let (pair, dag) = accept(&mut stage);
        assert_eq!(names(&shared.find(pair).unwrap()).0, dag);
    }
}

#[test]
fn a_log_folder_behind_a_symbolic_link_is_where_it_leads() {
    let mut stage = Stage::new();
    let beside = tempfile::tempdir().unwrap();
    let linked = beside.path().join("logs");
    std::os::unix::fs::symlink(stage.folder.path(), &linked).unwrap();
    let logs = AttemptLogs::new(&linked, DEFAULT_TEMPLATE).unwrap();
    let mut finder = Finder::new(logs, Duration::from_secs(60))
        .unwrap()
        .contained_by(stage_of);
    let program = "held = log('payroll', 'manual__1', 'load')\nconnection = connect()\nwait()";
    let _program = stage.run_in(&linked, program, &[]);
    let found = finder.find(stage.accept()).unwrap();
    assert_eq!(names(&found).0, "payroll");
}

#[test]
fn one_process_that_works_for_several_tasks_is_ambiguous_and_not_guessed_at() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _program = stage.run(
        "held = [log('a', 'run', 'task'), log('b', 'run', 'task')]\nconnection = connect()\nwait()",
    );
    assert_eq!(finder.find(stage.accept()), Err(Unknown::Ambiguous));
}

#[test]
fn a_log_elsewhere_and_a_link_that_looks_like_a_log_name_no_task() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let elsewhere = tempfile::tempdir().unwrap();
    let program = "held = log('payroll', 'run', 'task')\n\
         os.makedirs('LOGS/dag_id=b/run_id=c/task_id=d', exist_ok=True)\n\
         os.symlink('/etc/hostname', 'LOGS/dag_id=b/run_id=c/task_id=d/attempt=1.log')\n\
         linked = open('LOGS/dag_id=b/run_id=c/task_id=d/attempt=1.log')\n\
         connection = connect()\nwait()"
        .replace("LOGS", stage.folder.path().to_str().unwrap());
    let _program = stage.run_in(elsewhere.path(), &program, &[]);
    assert_eq!(finder.find(stage.accept()), Ok(Owner::NoTask));
}

#[test]
fn the_environment_names_a_task_where_no_log_does_and_is_no_evidence() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let environment = [
        ("AIRFLOW_CTX_DAG_ID", "payroll"),
        ("AIRFLOW_CTX_TASK_ID", "load"),
        ("AIRFLOW_CTX_DAG_RUN_ID", "manual__1"),
    ];
    let folder = stage.folder.path().to_owned();
    let _program = stage.run_in(&folder, "connection = connect()\nwait()", &environment);
    let found = finder.find(stage.accept()).unwrap();
    assert_eq!(names(&found).1, "load");
}

/// A worker, by its name, with `program` for its code.
fn worker(stage: &Stage, program: &str) -> Program {
    airflow(stage, &["celery", "worker"], program)
}

fn airflow(stage: &Stage, words: &[&str], program: &str) -> Program {
    let code = stage.folder.path().join("airflow");
    std::fs::write(&code, format!("{PRELUDE}{program}")).unwrap();
    let child = Command::new("python3")
        .arg(&code)
        .env(STAGE, stage.folder.path())
        .args(words)
        .arg(stage.address().port().to_string())
        .arg(stage.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    Program(child.unwrap())
}

/// A supervisor, which the worker has started and which has connected, and the task that it runs, which has too.
const SUPERVISED: &str = "if os.fork() == 0:\n\
    \x20   held = log('payroll', 'run', 'task')\n\
    \x20   first = connect()\n\
    \x20   if os.fork() == 0:\n\
    \x20       if os.fork() == 0:\n\
    \x20           second = connect()\n\
    \x20       wait()\n\
    \x20   wait()\n\
     wait()\n";

fn run(dag: &str) -> Run {
    Run {
        dag_id: dag.into(),
        run_id: "run".into(),
        run_type: None,
        team: None,
        triggered_by: None,
        is_cut: false,
    }
}

#[test]
fn a_supervisor_is_the_workers_own_and_what_it_has_started_is_the_task_that_its_log_is_of() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _worker = worker(&stage, SUPERVISED);
    let supervisor = finder.search(stage.accept(), Instant::now()).unwrap();
    assert!(supervisor.is_worker && supervisor.supervisor.is_some_and(|it| it.is_sure));
    let below = finder.search(stage.accept(), Instant::now()).unwrap();
    assert!(!below.is_worker && below.supervisor.is_none());
    let [_, runner, above, ..] = below.lineage.as_slice() else {
        panic!("{:?}", below.lineage);
    };
    assert_eq!(supervisor.lineage.first(), Some(above));
    let (started, task) = finder.started(*above, runner.pid, &run("payroll")).unwrap();
    assert_eq!((started, task.task_id.as_str()), (*runner, "task"));

    // Of another run than Airflow says, by another process than the one that was started, or by one with its number.
    assert_eq!(finder.started(*above, runner.pid, &run("reports")), None);
    let grandchild = below.lineage[0].pid;
    assert_eq!(finder.started(*above, grandchild, &run("payroll")), None);
    assert_eq!(finder.started(*above, above.pid, &run("payroll")), None);
    let again = ProcessKey {
        start_time: above.start_time + 1,
        ..*above
    };
    assert_eq!(finder.started(again, runner.pid, &run("payroll")), None);
    // One that has no log, with a child.
    let worker = below.lineage[3];
    assert_eq!(finder.started(worker, above.pid, &run("payroll")), None);
}

#[test]
fn beside_a_worker_only_its_children_supervise_and_who_calls_himself_one_later_is_none() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _worker = worker(&stage, SUPERVISED);
    let first = finder.search(stage.accept(), Instant::now()).unwrap();
    stage.accept();
    assert!(first.is_worker && first.supervisor.is_some());
    let _second = worker(&stage, SUPERVISED);
    let second = finder.search(stage.accept(), Instant::now()).unwrap();
    stage.accept();
    assert!(!second.is_worker && second.supervisor.is_none());
    assert_eq!(second.answer, Err(Unknown::Stray));
}

#[test]
fn whoever_has_lost_a_parent_belongs_to_nobody_who_was_above() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    // The process that the supervisor has started ends, and what it has started goes on.
    let program = "if os.fork() == 0:\n\
        \x20   held = log('payroll', 'run', 'task')\n\
        \x20   runner = os.fork()\n\
        \x20   if runner == 0:\n\
        \x20       parent = os.getpid()\n\
        \x20       if os.fork() == 0:\n\
        \x20           while os.getppid() == parent: time.sleep(.01)\n\
        \x20           connection = connect()\n\
        \x20           wait()\n\
        \x20       os._exit(0)\n\
        \x20   os.waitpid(runner, 0)\n\
        \x20   wait()\n\
         wait()\n";
    let worker = worker(&stage, program);
    let found = finder.search(stage.accept(), Instant::now()).unwrap();
    let pids: Vec<_> = found.lineage.iter().map(|process| process.pid).collect();
    assert!(!pids.contains(&worker.0.id()), "{pids:?}");
    assert!(!found.is_worker && found.supervisor.is_none());
}

#[test]
fn a_process_with_very_many_open_files_delays_nothing_past_the_bound() {
    let mut stage = Stage::new();
    let mut patient = stage.finder();
    let mut hasty = stage.finder_within(Duration::ZERO);
    let _program = stage.run(
        "import resource\n\
         _, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n\
         most = min(most, 100000)\n\
         resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n\
         held = [os.open('/dev/null', os.O_RDONLY) for _ in range(most - 100)]\n\
         connection = connect()\nwait()",
    );
    let pair = stage.accept();
    assert_eq!(hasty.find(pair), Err(Unknown::TimedOut));
    assert_eq!(patient.find(pair), Ok(Owner::NoTask));
}

#[test]
fn a_process_with_very_many_open_files_is_not_in_the_way_of_others() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let task = "held = log('payroll', 'run', 'task')\nconnection = connect()\nwait()";
    let _first = stage.run(task);
    assert_eq!(names(&finder.find(stage.accept()).unwrap()).0, "payroll");
    let without = finder.files();
    // Opens another file whenever it is told to, so that it is always one of those that have changed.
    let mut crowd = stage.run(
        "import resource\n\
         _, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n\
         most = min(most, 100000)\n\
         resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n\
         held = [os.open('/dev/null', os.O_RDONLY) for _ in range(most - 100)]\n\
         connection = connect()\n\
         while sys.stdin.read(1): held.append(os.open('/dev/null', os.O_RDONLY)); connection.sendall(b'.')",
    );
    let crowded = stage.accept();
    let mut crowds_own = stage.accepted.last().unwrap().try_clone().unwrap();
    assert_eq!(finder.find(crowded), Ok(Owner::NoTask));
    for _ in 0..5 {
        std::io::Write::write_all(crowd.0.stdin.as_mut().unwrap(), b".").unwrap();
        crowds_own.read_exact(&mut [0]).unwrap();
        let before = finder.files();
        let _task = stage.run(task);
        assert_eq!(names(&finder.find(stage.accept()).unwrap()).0, "payroll");
        let took = finder.files() - before;
        assert!(took < without + 10_000, "{took} files, {without} without");
    }
}

/// The number that the kernel gives to the next process; nothing where that takes a privilege which this one has not.
fn give_next(pid: u32) {
    let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string());
}

#[test]
fn a_process_that_got_the_number_of_a_task_that_ended_is_not_that_task() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let task = stage.run("held = log('payroll', 'run', 'task')\nconnection = connect()\nwait()");
    let (number, pair) = (task.0.id(), stage.accept());
    assert_eq!(names(&finder.find(pair).unwrap()).0, "payroll");
    drop(task);
    // Others may take it first.
    for _ in 0..50 {
        give_next(number);
        let program = stage.run("connection = connect()\nwait()");
        assert_eq!(finder.find(stage.accept()), Ok(Owner::NoTask));
        if program.0.id() == number {
            break;
        }
    }
}

/// Runs a shell with a title, which makes the connection.
fn titled(title: &str) -> String {
    format!(
        "import subprocess\n\
         shell = ['bash', '-c', f'exec 3<>/dev/tcp/127.0.0.1/{{port}}; printf . >&3; read -r']\n\
         shell[0] = {title:?}\n\
         subprocess.run(shell, executable='/bin/bash')\n"
    )
}

const INSTANCE: &str = "0193a7a0-9d5c-7a7e-b0c8-3d2f4f9f1a11";

#[test]
fn a_title_that_a_task_gives_itself_changes_nothing_below_a_supervisor_and_is_no_evidence_elsewhere()
 {
    for title in [
        "airflow task runner: reports other manual__9 1".to_owned(),
        format!("airflow worker -- {INSTANCE}"),
        "[celeryd: celery@host:MainProcess]".to_owned(),
    ] {
        let mut stage = Stage::new();
        let mut finder = stage.finder();
        let below = format!(
            "held = log('payroll', 'manual__1', 'load')\nif os.fork() == 0:\n    {}wait()",
            titled(&title).replace('\n', "\n    ")
        );
        let _program = stage.run(&below);
        assert_eq!(
            names(&finder.find(stage.accept()).unwrap()).0,
            "payroll",
            "{title}"
        );
    }
    // Beside a worker whoever does not descend from it is believed nothing, and nothing is said of whoever shows nothing.
    let reports = titled("airflow task runner: reports other manual__9 1");
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _worker = worker(&stage, "connection = connect()\nwait()");
    stage.accept();
    let _program = stage.run(&reports);
    assert_eq!(finder.find(stage.accept()), Err(Unknown::Stray));
    let _program = stage.run(&titled("probe"));
    assert_eq!(finder.find(stage.accept()), Ok(Owner::NoTask));
    // As Airflow 2 has it, and where no worker is to be seen.
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _worker = worker(&stage, &reports);
    assert_eq!(names(&finder.find(stage.accept()).unwrap()).0, "reports");
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _program = stage.run(&reports);
    assert_eq!(names(&finder.find(stage.accept()).unwrap()).0, "reports");
}

/// A task of DAG reports, whose runner's code is `code`, run by a worker.
fn task_of_reports(code: &str) -> String {
    let code = code.replace('\n', "\n        ");
    format!(
        "if os.fork() == 0:\n\
         \x20   held = log('reports', 'run', 'task')\n\
         \x20   if os.fork() == 0:\n\
         \x20       {code}\n\
         \x20       wait()\n\
         \x20   wait()\n\
         wait()\n"
    )
}

/// Leaves its parents, and goes on with what comes next.
const ORPHAN: &str = "if os.fork() != 0: wait()\n\
    parent = os.getpid()\n\
    if os.fork() != 0: os._exit(0)\n\
    while os.getppid() == parent: time.sleep(.01)\n";

#[test]
fn what_has_left_a_task_is_no_task_whatever_it_shows() {
    let log = "held = log('payroll', 'run', 'task')\nconnection = connect()";
    let title = titled("airflow task runner: payroll charge manual__1 1");
    let environment = "import subprocess\n\
        names = {'DAG_ID': 'payroll', 'TASK_ID': 'charge', 'DAG_RUN_ID': 'run'}\n\
        shell = f'exec 3<>/dev/tcp/127.0.0.1/{port}; printf . >&3; read -r'\n\
        subprocess.run(['bash', '-c', shell], env={**os.environ, **{'AIRFLOW_CTX_' + name: value for name, value in names.items()}})";
    let worker_of_its_own = "import subprocess\n\
        code = 'import os, socket, sys; held = open(sys.argv[-1]); c = socket.create_connection((\"127.0.0.1\", int(sys.argv[-2]))); \
        c.send(b\".\"); sys.stdin.read()'\n\
        held = log('payroll', 'run', 'task')\n\
        subprocess.run(['airflow scheduler', '-c', code, str(port), held.name], executable='/usr/bin/python3')";
    for shows in [log, title.trim_end(), environment, worker_of_its_own] {
        let mut stage = Stage::new();
        let mut finder = stage.finder();
        let _worker = worker(&stage, &task_of_reports(&format!("{ORPHAN}{shows}")));
        assert_eq!(finder.find(stage.accept()), Err(Unknown::Stray), "{shows}");
        // Nor where the proxy begins to look only now.
        let mut late = stage.finder();
        let pair = stage.last();
        assert_eq!(late.find(pair), Err(Unknown::Stray), "{shows}");
    }
}

#[test]
fn a_task_that_nests_its_processes_deeper_than_is_looked_at_is_unknown() {
    for (generations, found) in [(20, true), (40, false)] {
        let mut stage = Stage::new();
        let mut finder = stage.finder();
        let nested = format!(
            "for _ in range({generations}):\n    if os.fork() != 0: wait()\n\
             held = log('payroll', 'run', 'task')\nconnection = connect()"
        );
        let _worker = worker(&stage, &task_of_reports(&nested));
        let answer = finder.find(stage.accept());
        match found {
            true => assert_eq!(names(&answer.unwrap()).0, "reports"),
            false => assert_eq!(answer, Err(Unknown::Stray)),
        }
    }
}

#[test]
fn the_scheduler_of_a_standalone_supervises_as_one_alone_does() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let supervised = SUPERVISED.trim_end().replace('\n', "\n    ");
    let program = format!(
        "if 'standalone' in sys.argv:\n\
         \x20   import subprocess\n\
         \x20   subprocess.run(['python3', sys.argv[0], 'scheduler', *sys.argv[2:]])\n\
         else:\n\
         \x20   {supervised}\n"
    );
    let _standalone = airflow(&stage, &["standalone"], &program);
    let supervisor = finder.search(stage.accept(), Instant::now()).unwrap();
    assert!(supervisor.is_worker && supervisor.supervisor.is_some_and(|it| it.is_sure));
    let below = finder.search(stage.accept(), Instant::now()).unwrap();
    assert!(!below.is_worker && below.supervisor.is_none());
    assert_eq!(names(&below.answer.unwrap()).0, "payroll");
}

#[test]
fn what_a_fork_server_has_started_for_a_scheduler_supervises_and_vouches_for_nothing() {
    // As LocalExecutor has it on Python 3.14, or where mp_start_method says so.
    let program = "import multiprocessing, subprocess\n\
         def supervise():\n\
         \x20   held = log('payroll', 'run', 'task')\n\
         \x20   first = connect()\n\
         \x20   if os.fork() == 0:\n\
         \x20       second = connect()\n\
         \x20   multiprocessing.parent_process().join()\n\
         \x20   os._exit(0)\n\
         if __name__ != '__main__':\n\
         \x20   pass\n\
         elif 'standalone' in sys.argv:\n\
         \x20   subprocess.run(['python3', sys.argv[0], 'scheduler', *sys.argv[2:]])\n\
         else:\n\
         \x20   context = multiprocessing.get_context('forkserver')\n\
         \x20   context.set_forkserver_preload([])\n\
         \x20   context.Process(target=supervise).start()\n\
         \x20   wait()\n";
    for word in ["scheduler", "standalone"] {
        let mut stage = Stage::new();
        let mut finder = stage.finder();
        let _scheduler = airflow(&stage, &[word], program);
        let supervisor = finder.search(stage.accept(), Instant::now()).unwrap();
        // Any process of its user can have a fork server start one.
        assert!(supervisor.supervisor.is_some_and(|it| !it.is_sure));
        assert!(!supervisor.is_worker);
        let below = finder.search(stage.accept(), Instant::now()).unwrap();
        assert!(!below.is_worker && below.supervisor.is_none());
        assert_eq!(names(&below.answer.unwrap()).0, "payroll");
        let [runner, above, ..] = below.lineage.as_slice() else {
            panic!("{:?}", below.lineage);
        };
        assert_eq!(supervisor.lineage.first(), Some(above));
        let started = finder.started(*above, runner.pid, &run("payroll"));
        assert_eq!(started.unwrap().0, *runner);
    }
}

#[test]
fn a_worker_without_a_pool_supervises_its_tasks_itself_and_vouches_for_nothing() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let _worker = worker(
        &stage,
        "held = log('payroll', 'run', 'task')\n\
         first = connect()\n\
         if os.fork() == 0:\n\
         \x20   second = connect()\n\
         wait()\n",
    );
    let supervisor = finder.search(stage.accept(), Instant::now()).unwrap();
    assert!(supervisor.is_worker && supervisor.supervisor.is_some_and(|it| !it.is_sure));
    let below = finder.search(stage.accept(), Instant::now()).unwrap();
    assert_eq!(names(&below.answer.unwrap()).0, "payroll");
    let [runner, above, ..] = below.lineage.as_slice() else {
        panic!("{:?}", below.lineage);
    };
    let (started, task) = finder.started(*above, runner.pid, &run("payroll")).unwrap();
    assert_eq!((started, task.task_id.as_str()), (*runner, "task"));
}

#[test]
fn the_next_worker_of_a_container_is_believed_of_its_tasks_and_vouches_for_none() {
    let mut stage = Stage::new();
    let mut finder = stage.finder();
    let first = worker(&stage, "connection = connect()\nwait()");
    assert_eq!(finder.find(stage.accept()), Ok(Owner::NoTask));
    drop(first);
    let _second = worker(&stage, SUPERVISED);
    let supervisor = finder.search(stage.accept(), Instant::now()).unwrap();
    assert_eq!(names(&supervisor.answer.unwrap()).0, "payroll");
    assert!(!supervisor.is_worker);
    assert!(supervisor.supervisor.is_some_and(|it| !it.is_sure));
}

#[test]
fn a_template_that_does_not_match_names_no_task_by_its_log() {
    let mut stage = Stage::new();
    let template = "{{ ti.dag_id }}-{{ ti.run_id }}-{{ ti.task_id }}.txt";
    let logs = AttemptLogs::new(stage.folder.path(), template).unwrap();
    let mut finder = Finder::new(logs, Duration::from_secs(60))
        .unwrap()
        .contained_by(stage_of);
    let _program =
        stage.run("held = log('payroll', 'run', 'task')\nconnection = connect()\nwait()");
    assert_eq!(finder.find(stage.accept()), Ok(Owner::NoTask));
    // What is left is the instance that its title names.
    let _program = stage.run(&titled(&format!("airflow worker -- {INSTANCE}")));
    let found = finder.find(stage.accept());
    assert_eq!(found, Ok(Owner::Instance(INSTANCE.to_owned())));
}
