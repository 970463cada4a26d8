//! What Airflow puts into the environment of the programs that a task starts (`AIRFLOW_CTX_*`). A task's own code can set
//! it: telemetry, and no evidence.
//!
//! The proxy's own environment can say the same, of a pod or ECS task that runs one task: that is what whoever deployed
//! it has set, which can be the code of a DAG (`overrides` of EcsRunTaskOperator).

use super::Attributed;
use crate::telemetry::TaskContext;

/// Most bytes of an environment that are read.
pub(crate) const MAX_BYTES: usize = 128 * 1024;

/// The task that an environment (`/proc/PID/environ`) names, if it does.
pub(crate) fn task(environment: &[u8]) -> Option<TaskContext> {
    let value = |name: &str| {
        environment.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            std::str::from_utf8(value)
                .ok()
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
        })
    };
    Some(TaskContext {
        dag_id: value("AIRFLOW_CTX_DAG_ID")?,
        task_id: value("AIRFLOW_CTX_TASK_ID")?,
        run_id: value("AIRFLOW_CTX_DAG_RUN_ID")?,
        // Airflow does not say.
        map_index: None,
        try_number: value("AIRFLOW_CTX_TRY_NUMBER").and_then(|number| number.parse().ok()),
        ..TaskContext::default()
    })
}

/// Longest name that is believed.
const MAX_VALUE_BYTES: usize = 1024;

/// Whether a text can be a name of Airflow's.
pub(super) fn is_name(value: &str) -> bool {
    (1..=MAX_VALUE_BYTES).contains(&value.len()) && !value.contains(char::is_control)
}

/// Why the proxy's own environment names no task: a variable, and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable {name} {problem}")]
pub(crate) struct NoTask {
    name: &'static str,
    problem: &'static str,
}

/// The task that the proxy's own environment names, by the variables that Airflow has for it, and
/// `AIRFLOW_CTX_MAP_INDEX` and `AIRFLOW_CTX_TASK_INSTANCE_ID`, which Airflow has not. None where none of them is set: a pod
/// that is no task's has no such annotations either.
///
/// # Errors
/// Where some are missing, or are not of their form.
pub(crate) fn own<'v>(
    variable: impl Fn(&str) -> Option<&'v str>,
) -> Result<Option<Attributed>, NoTask> {
    let error = |name, problem| NoTask { name, problem };
    let value = |name: &'static str| match variable(name).filter(|value| !value.is_empty()) {
        Some(value) if !is_name(value) => Err(error(name, "is no name that Airflow gives")),
        value => Ok(value),
    };
    let names = [
        "AIRFLOW_CTX_DAG_ID",
        "AIRFLOW_CTX_TASK_ID",
        "AIRFLOW_CTX_DAG_RUN_ID",
    ];
    let [dag_id, task_id, run_id] = names.map(value);
    let (dag_id, task_id, run_id) = match (dag_id?, task_id?, run_id?) {
        (Some(dag_id), Some(task_id), Some(run_id)) => (dag_id, task_id, run_id),
        (None, None, None) => return Ok(None),
        found => {
            let all = [found.0, found.1, found.2];
            let missing = names
                .into_iter()
                .zip(all)
                .find(|(_, value)| value.is_none());
            return Err(error(
                missing.map_or("", |(name, _)| name),
                "is missing, and others are set",
            ));
        }
    };
    let number = |name| match value(name)?.map(str::parse::<i64>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(error(name, "is no number")),
    };
    Ok(Some(Attributed {
        task: TaskContext {
            dag_id: dag_id.to_owned(),
            task_id: task_id.to_owned(),
            run_id: run_id.to_owned(),
            // -1 stands for none.
            map_index: number("AIRFLOW_CTX_MAP_INDEX")?
                .and_then(|index| i32::try_from(index).ok())
                .filter(|index| *index >= 0),
            try_number: number("AIRFLOW_CTX_TRY_NUMBER")?
                .and_then(|number| u32::try_from(number).ok()),
            ..TaskContext::default()
        },
        ti_id: value("AIRFLOW_CTX_TASK_INSTANCE_ID")?.map(str::to_owned),
        parent: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_a_program_that_a_task_started_names_the_task() {
        let environment = b"PATH=/bin\0AIRFLOW_CTX_DAG_ID=a\0AIRFLOW_CTX_TASK_ID=b\0\
            AIRFLOW_CTX_DAG_RUN_ID=c\0AIRFLOW_CTX_TRY_NUMBER=2\0AIRFLOW_CTX_DAG_OWNER=x\0";
        let found = task(environment).unwrap();
        assert_eq!(
            (
                found.dag_id.as_str(),
                found.task_id.as_str(),
                found.run_id.as_str()
            ),
            ("a", "b", "c")
        );
        assert_eq!(found.try_number, Some(2));
    }

    #[test]
    fn half_of_it_names_no_task() {
        assert_eq!(task(b"AIRFLOW_CTX_DAG_ID=a\0AIRFLOW_CTX_TASK_ID=b\0"), None);
        assert_eq!(
            task(b"AIRFLOW_CTX_DAG_ID=\0AIRFLOW_CTX_TASK_ID=b\0AIRFLOW_CTX_DAG_RUN_ID=c"),
            None
        );
        assert_eq!(task(&[0; 1440]), None);
    }

    fn own_of(variables: &[(&'static str, &'static str)]) -> Result<Option<Attributed>, NoTask> {
        own(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| *value)
        })
    }

    const THREE: [(&str, &str); 3] = [
        ("AIRFLOW_CTX_DAG_ID", "a"),
        ("AIRFLOW_CTX_TASK_ID", "b"),
        (
            "AIRFLOW_CTX_DAG_RUN_ID",
            "scheduled__2026-11-21T00:00:00+00:00",
        ),
    ];

    #[test]
    fn the_proxys_own_environment_names_the_task_of_its_pod_or_no_task() {
        let found = own_of(&THREE).unwrap().unwrap();
        assert_eq!(found.task.run_id, THREE[2].1);
        assert_eq!((found.task.map_index, found.task.try_number), (None, None));
        let more = [
            ("AIRFLOW_CTX_TRY_NUMBER", "2"),
            ("AIRFLOW_CTX_MAP_INDEX", "7"),
            ("AIRFLOW_CTX_TASK_INSTANCE_ID", "0193"),
        ];
        let found = own_of(&[&THREE[..], &more].concat()).unwrap().unwrap();
        assert_eq!(
            (found.task.map_index, found.task.try_number),
            (Some(7), Some(2))
        );
        assert_eq!(found.ti_id.as_deref(), Some("0193"));
        // Annotations that a pod has not are empty variables.
        for none in [&[][..], &[("AIRFLOW_CTX_DAG_ID", "")]] {
            assert_eq!(own_of(none), Ok(None));
        }
    }

    #[test]
    fn an_environment_that_is_not_right_is_an_error_that_names_the_variable() {
        for (variables, name) in [
            (&THREE[..2], "AIRFLOW_CTX_DAG_RUN_ID is missing"),
            (&THREE[1..], "AIRFLOW_CTX_DAG_ID is missing"),
            (
                &[&THREE[..], &[("AIRFLOW_CTX_TRY_NUMBER", "first")]].concat(),
                "AIRFLOW_CTX_TRY_NUMBER is no number",
            ),
            (
                &[("AIRFLOW_CTX_DAG_ID", "a\nb"), THREE[1], THREE[2]],
                "AIRFLOW_CTX_DAG_ID is no name",
            ),
        ] {
            let error = own_of(variables).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
