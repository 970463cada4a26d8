//! What Airflow puts into the environment of the programs that a task starts (`AIRFLOW_CTX_*`).
//!
//! A task's own code can set it: telemetry, and no evidence.

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
}
