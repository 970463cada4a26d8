//! Process titles, which Airflow and Celery set so that people can tell processes apart (`/proc/PID/cmdline`).
//!
//! Any process may give itself any title: what is read here is telemetry, and no evidence.

/// What a title says that a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Title {
    /// Runs a task of Airflow 3, by its task instance's id.
    Runner { ti_id: String },
    /// Runs a task of Airflow 2.
    NamedRunner {
        dag_id: String,
        task_id: String,
        /// None where the title has a date instead, as before run ids.
        run_id: Option<String>,
    },
    /// Watches over a task of Airflow 3. The title stays when the task has ended, until the next one.
    Supervisor { ti_id: String },
    /// The process that a worker's others come from: Celery's main process, or a scheduler with LocalExecutor.
    Worker,
    /// `airflow standalone`, whose child the scheduler is.
    Standalone,
    /// Python's multiprocessing, which forks what supervises tasks where the scheduler does not do so itself.
    ForkServer,
    /// Anything else.
    Other,
}

impl Title {
    /// Reads a command line as the kernel gives it: arguments that end in NUL, or one text with NULs behind it.
    pub(crate) fn read(command_line: &[u8]) -> Self {
        let end = command_line
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let line: Vec<u8> = command_line
            .iter()
            .take(end)
            .map(|byte| if *byte == 0 { b' ' } else { *byte })
            .collect();
        let Ok(line) = std::str::from_utf8(&line) else {
            return Self::Other;
        };
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("airflow worker -- ") {
            let id = local_executor(rest);
            return match (id, task_instance(id.unwrap_or(rest))) {
                // LocalExecutor's worker is what supervises the task.
                (Some(_), Some(ti_id)) => Self::Supervisor { ti_id },
                (None, Some(ti_id)) => Self::Runner { ti_id },
                _ => Self::Other,
            };
        }
        if let Some(rest) = line.strip_prefix("airflow supervisor: ") {
            return task_instance(rest).map_or(Self::Other, |ti_id| Self::Supervisor { ti_id });
        }
        if let Some(rest) = line.strip_prefix("airflow task runner: ") {
            return named_runner(rest).unwrap_or(Self::Other);
        }
        if line.starts_with("[celeryd: ") && line.contains(":MainProcess]") {
            return Self::Worker;
        }
        if is_fork_server(line) {
            return Self::ForkServer;
        }
        worker_command(line).unwrap_or(Self::Other)
    }

    /// Whether it is that of a process that a worker's others come from.
    pub(super) fn is_a_workers(&self) -> bool {
        matches!(self, Self::Worker | Self::Standalone)
    }

    /// Whether it is one of those that run or watch over a task.
    pub(super) fn is_of_a_task(&self) -> bool {
        match self {
            Self::Runner { .. } | Self::NamedRunner { .. } | Self::Supervisor { .. } => true,
            Self::Worker | Self::Standalone | Self::ForkServer | Self::Other => false,
        }
    }
}

/// What stands after `LocalExecutor: `, or `LocalExecutor [TEAM]: ` where it is that of a team.
fn local_executor(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("LocalExecutor")?;
    let team = rest.strip_prefix(" [").and_then(|it| it.split_once(']'));
    team.map_or(rest, |(_, rest)| rest).strip_prefix(": ")
}

/// `python -c from multiprocessing.forkserver import main; main(…)`, with the interpreter's own options before it.
fn is_fork_server(line: &str) -> bool {
    let Some((interpreter, code)) = line.split_once(" -c ") else {
        return false;
    };
    let program = interpreter.split(' ').next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or(program);
    name.starts_with("python")
        && code.starts_with("from multiprocessing.forkserver import main; main(")
}

/// `…/airflow scheduler`, `…/airflow triggerer`, `…/airflow celery worker`, with an interpreter before it or not, or as
/// a module of it.
fn worker_command(line: &str) -> Option<Title> {
    let mut words = line.split(' ').filter(|word| !word.is_empty()).peekable();
    let name = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let is_python = words
        .next_if(|word| name(word).starts_with("python"))
        .is_some();
    if is_python {
        // What follows -m is a module.
        while words
            .next_if(|word| ["-u", "-B", "-O", "-I", "-E", "-s"].contains(word))
            .is_some()
        {}
        words.next_if(|word| *word == "-m");
    }
    if words.next().map(name).as_deref() != Some("airflow") {
        return None;
    }
    match words.next()? {
        "scheduler" | "triggerer" => Some(Title::Worker),
        "standalone" => Some(Title::Standalone),
        "celery" => (words.next() == Some("worker")).then_some(Title::Worker),
        _ => None,
    }
}

fn task_instance(text: &str) -> Option<String> {
    let id = text.split(' ').next()?;
    uuid::Uuid::try_parse(id).ok().map(|id| id.to_string())
}

fn named_runner(text: &str) -> Option<Title> {
    let mut words = text.split(' ');
    let (dag_id, task_id, run) = (words.next()?, words.next()?, words.next()?);
    // Before run ids, Airflow 2 put the logical date there.
    let is_date = run.starts_with(|c: char| c.is_ascii_digit());
    (!dag_id.is_empty() && !task_id.is_empty()).then(|| Title::NamedRunner {
        dag_id: dag_id.to_owned(),
        task_id: task_id.to_owned(),
        run_id: (!is_date && !run.is_empty()).then(|| run.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0193a7a0-9d5c-7a7e-b0c8-3d2f4f9f1a11";

    #[test]
    fn each_title_of_airflow_and_celery_is_known_and_nothing_else() {
        let runner = || Title::Runner { ti_id: ID.into() };
        let supervisor = || Title::Supervisor { ti_id: ID.into() };
        let cases = [
            (format!("airflow worker -- {ID}"), runner()),
            (
                format!("airflow worker -- LocalExecutor: {ID}"),
                supervisor(),
            ),
            (
                format!("airflow worker -- LocalExecutor [payments]: {ID}"),
                supervisor(),
            ),
            (
                "airflow worker -- LocalExecutor: <idle>".into(),
                Title::Other,
            ),
            (format!("airflow supervisor: {ID}"), supervisor()),
            ("airflow supervisor: payroll".into(), Title::Other),
            (
                "airflow task runner: payroll load manual__2026 17".into(),
                Title::NamedRunner {
                    dag_id: "payroll".into(),
                    task_id: "load".into(),
                    run_id: Some("manual__2026".into()),
                },
            ),
            (
                "airflow task runner: payroll load 2026-11-21T00:00:00+00:00 17".into(),
                Title::NamedRunner {
                    dag_id: "payroll".into(),
                    task_id: "load".into(),
                    run_id: None,
                },
            ),
            ("airflow task runner: payroll".into(), Title::Other),
            (
                "[celeryd: celery@worker-0:MainProcess] -active- (celery worker)".into(),
                Title::Worker,
            ),
            (
                "[celeryd: celery@worker-0:ForkPoolWorker-4]".into(),
                Title::Other,
            ),
            (
                "/usr/bin/python3.11\0/opt/bin/airflow\0scheduler\0".into(),
                Title::Worker,
            ),
            ("/opt/bin/airflow\0celery\0worker\0".into(), Title::Worker),
            ("/opt/bin/airflow\0celery\0flower\0".into(), Title::Other),
            (
                "python\0-m\0airflow\0celery\0worker\0".into(),
                Title::Worker,
            ),
            (
                "/usr/bin/python3\0-u\0-m\0airflow\0scheduler\0".into(),
                Title::Worker,
            ),
            ("/opt/bin/airflow\0standalone\0".into(), Title::Standalone),
            (
                "/opt/bin/python3.14\0-B\0-c\0from multiprocessing.forkserver import main; main(5, 6, [])\0".into(),
                Title::ForkServer,
            ),
            (
                "bash\0-c\0from multiprocessing.forkserver import main; main(5, 6, [])\0".into(),
                Title::Other,
            ),
            (
                "airflow worker -- LocalExecutor: python -c from multiprocessing.forkserver import main; main(".into(),
                Title::Other,
            ),
            ("python\0-m\0celery\0worker\0".into(), Title::Other),
            ("python\0-c\0airflow\0scheduler\0".into(), Title::Other),
            ("bash\0-c\0echo airflow scheduler\0".into(), Title::Other),
            (String::new(), Title::Other),
        ];
        for (line, title) in cases {
            assert_eq!(Title::read(line.as_bytes()), title, "{line:?}");
        }
        let padded = [format!("airflow worker -- {ID}").as_bytes(), &[0; 900]].concat();
        assert_eq!(Title::read(&padded), runner());
    }

    proptest::proptest! {
        #[test]
        fn no_command_line_is_too_odd_to_be_read(
            line in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        ) {
            let _ = Title::read(&line);
            let _ = Title::read(&[b"airflow worker -- ".as_slice(), &line].concat());
        }
    }
}
