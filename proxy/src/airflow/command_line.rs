//! The task that an executor has put into the command which runs it: `execute_workload --json-string '{…}'` of the
//! Kubernetes and ECS executors, and `airflow tasks run …` of Airflow 2. Exact, where a pod's labels are cut, and there
//! before the command runs. Whoever starts containers can say what he likes in it: telemetry, and no evidence.

use std::ffi::OsString;
use std::io::Read as _;

use serde::Deserialize;

use super::Attributed;
use crate::telemetry::TaskContext;

/// Longest description of a workload that is read. The JSON of an argument is shorter than the kernel's 128 KiB.
const MAX_JSON_BYTES: u64 = 1024 * 1024;

/// What `airflow.executors.workloads.ExecuteTask` says, without the token that it also holds.
#[derive(Deserialize)]
struct Workload {
    ti: TaskInstance,
}

#[derive(Deserialize)]
struct TaskInstance {
    id: Option<String>,
    dag_id: String,
    task_id: String,
    run_id: String,
    try_number: Option<u32>,
    map_index: Option<i32>,
}

/// The task that a command runs, if it says so.
pub(crate) fn task(words: &[OsString]) -> Option<Attributed> {
    let words: Vec<&str> = words
        .iter()
        .map(|word| word.to_str().unwrap_or(""))
        .collect();
    let instance = of_workload(&words).or_else(|| of_tasks_run(&words))?;
    let names = [&instance.dag_id, &instance.task_id, &instance.run_id];
    if names.iter().any(|name| !super::environment::is_name(name)) {
        return None;
    }
    Some(Attributed {
        task: TaskContext {
            dag_id: instance.dag_id,
            task_id: instance.task_id,
            run_id: instance.run_id,
            // -1 stands for none.
            map_index: instance.map_index.filter(|index| *index >= 0),
            try_number: instance.try_number,
            ..TaskContext::default()
        },
        ti_id: instance.id.filter(|id| super::environment::is_name(id)),
        parent: None,
    })
}

/// `python -m airflow.sdk.execution_time.execute_workload --json-string JSON`, or `--json-path FILE`.
fn of_workload(words: &[&str]) -> Option<TaskInstance> {
    if let Some(json) = value_of(words, "--json-string") {
        return read(json.as_bytes());
    }
    let path = value_of(words, "--json-path")?;
    let mut json = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MAX_JSON_BYTES).read_to_end(&mut json).ok()?;
    read(&json)
}

fn read(json: &[u8]) -> Option<TaskInstance> {
    let workload: Workload = serde_json::from_slice(json).ok()?;
    Some(workload.ti)
}

/// `airflow tasks run DAG TASK RUN … [--map-index N]` of Airflow 2.
fn of_tasks_run(words: &[&str]) -> Option<TaskInstance> {
    let run = words.windows(2).position(|pair| pair == ["tasks", "run"])?;
    let [dag_id, task_id, run_id, ..] = words.get(run + 2..)? else {
        return None;
    };
    let is_name = |word: &&str| !word.starts_with('-');
    [dag_id, task_id, run_id]
        .into_iter()
        .all(is_name)
        .then(|| TaskInstance {
            id: None,
            dag_id: (*dag_id).to_owned(),
            task_id: (*task_id).to_owned(),
            run_id: (*run_id).to_owned(),
            try_number: None,
            map_index: value_of(words, "--map-index").and_then(|index| index.parse().ok()),
        })
}

/// The value of an option, in a word of its own or after `=`.
fn value_of<'w>(words: &[&'w str], option: &str) -> Option<&'w str> {
    let mut words = words.iter();
    words
        .find_map(|word| match word.strip_prefix(option)? {
            "" => Some(""),
            rest => rest.strip_prefix('='),
        })
        .and_then(|value| match value {
            "" => words.next().copied(),
            value => Some(value),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "scheduled__2026-11-21T00:00:00+00:00";

    /// Names, map index, try number and task instance.
    type Said = (String, Option<i32>, Option<u32>, Option<String>);

    fn said(words: &[&str]) -> Option<Said> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let Attributed { task, ti_id, .. } = task(&words)?;
        let names = format!("{} {} {}", task.dag_id, task.task_id, task.run_id);
        Some((names, task.map_index, task.try_number, ti_id))
    }

    fn json(map_index: i32) -> String {
        format!(
            r#"{{"token":"eyJ.secret","dag_rel_path":"a.py","type":"ExecuteTask","ti":{{"id":"0193","dag_id":"payroll",
            "task_id":"load","run_id":"{RUN}","try_number":2,"map_index":{map_index},"pool_slots":1}}}}"#
        )
    }

    #[test]
    fn the_workload_of_a_container_names_its_task_exactly() {
        let module = "airflow.sdk.execution_time.execute_workload";
        let plain = json(-1);
        let mapped = format!("--json-string={}", json(3));
        let names = format!("payroll load {RUN}");
        let id = Some("0193".to_owned());
        assert_eq!(
            said(&["python", "-m", module, "--json-string", &plain]),
            Some((names.clone(), None, Some(2), id.clone()))
        );
        assert_eq!(
            said(&["python", "-m", module, &mapped]),
            Some((names.clone(), Some(3), Some(2), id.clone()))
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("input.json");
        std::fs::write(&path, json(0)).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(
            said(&["python", "-m", module, "--json-path", path]),
            Some((names, Some(0), Some(2), id))
        );
    }

    #[test]
    fn airflow_2_names_it_in_words() {
        let names = Some((format!("payroll load {RUN}"), Some(4), None, None));
        let words = ["airflow", "tasks", "run", "payroll", "load", RUN, "--local"];
        let mapped = [&words[..], &["--map-index", "4"]].concat();
        assert_eq!(said(&mapped), names);
        assert_eq!(said(&words).unwrap().1, None);
    }

    #[test]
    fn what_is_not_of_that_form_names_no_task() {
        let control = json(-1).replace("load", "lo\\nad");
        for words in [
            &[][..],
            &["sleep", "1"],
            &["x", "--json-string"],
            &["x", "--json-string", "{"],
            &["x", "--json-string", r#"{"ti":{"dag_id":"a"}}"#],
            &[
                "x",
                "--json-string",
                r#"{"ti":{"dag_id":"","task_id":"b","run_id":"c"}}"#,
            ],
            &["x", "--json-string", &control],
            &["x", "--json-path", "/nowhere/input.json"],
            &["airflow", "tasks", "run", "payroll", "load"],
            &["airflow", "tasks", "run", "--help", "payroll", "load"],
        ] {
            assert_eq!(said(words), None, "{words:?}");
        }
    }
}
