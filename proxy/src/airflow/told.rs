//! What the workload is told of the task that a request comes from: `x-airflow-*` headers, which it can believe since
//! the proxy removes every other one.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::telemetry::TaskContext;

const DAG_ID: HeaderName = HeaderName::from_static("x-airflow-dag-id");
const TASK_ID: HeaderName = HeaderName::from_static("x-airflow-task-id");
const RUN_ID: HeaderName = HeaderName::from_static("x-airflow-run-id");
const MAP_INDEX: HeaderName = HeaderName::from_static("x-airflow-map-index");
const TRY_NUMBER: HeaderName = HeaderName::from_static("x-airflow-try-number");
const TRIGGERED_BY: HeaderName = HeaderName::from_static("x-airflow-triggered-by");

/// Puts in what is known. A value that no header can carry is left out.
pub(crate) fn tell(headers: &mut HeaderMap, task: &TaskContext) {
    let mut put = |name: HeaderName, value: &str| {
        // Names outside ASCII go as UTF-8, which RFC 9110 calls opaque (section 5.5).
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.insert(name, value);
        }
    };
    put(DAG_ID, &task.dag_id);
    put(TASK_ID, &task.task_id);
    if !task.run_id.is_empty() {
        put(RUN_ID, &task.run_id);
    }
    if let Some(index) = task.map_index {
        put(MAP_INDEX, &index.to_string());
    }
    if let Some(number) = task.try_number {
        put(TRY_NUMBER, &number.to_string());
    }
    if let Some(user) = &task.triggered_by {
        put(TRIGGERED_BY, user);
    }
}
