//! Identities of Airflow tasks, derived from the identity of the worker that runs them.
//!
//! `spiffe://td/ns/airflow/sa/worker` running task `charge` of DAG `payroll` is
//! `spiffe://td/ns/airflow/sa/worker/dag/payroll/task/charge`.
//!
//! A name that is a path segment as it stands is written as it stands, which is every name that a present Airflow
//! accepts but `.` and `..`. Any other is written with a prefix and its bytes escaped, and so is a name that looks
//! as if it had been: no two names are written alike, and the name can be read back.

use crate::spiffe_id::{SpiffeId, SpiffeIdError, check_segment};
use std::borrow::Cow;
use std::fmt::Write as _;

/// The longest name of a DAG or task in bytes: Airflow's 250 characters, in UTF-8.
pub const MAX_TASK_NAME_BYTES: usize = 1000;

/// What an escaped name begins with.
const ESCAPED: &str = "x--";

/// Why a task has no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskIdError {
    /// A DAG or task without a name.
    #[error("the name of the {0} is empty")]
    Empty(&'static str),
    /// A name of more than [`MAX_TASK_NAME_BYTES`].
    #[error("the name of the {0} has {1} bytes; at most {MAX_TASK_NAME_BYTES} are taken")]
    TooLong(&'static str, usize),
    /// The worker is itself a task, or the trust domain.
    #[error("tasks have identities below that of a workload, and not below {0}")]
    NotAWorkload(&'static str),
    /// What comes of the names is no SPIFFE ID: it is too long.
    #[error("the names make no SPIFFE ID: {0}")]
    SpiffeId(#[from] SpiffeIdError),
}

/// A task's identity taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskId {
    /// The workload that ran it.
    pub worker: SpiffeId,
    /// The DAG's name as Airflow has it.
    pub dag_id: String,
    /// The task's name as Airflow has it.
    pub task_id: String,
}

impl TaskId {
    /// The identity of a task of a worker.
    ///
    /// # Errors
    /// When a name is empty or too long, or the worker is no workload that could have tasks.
    ///
    /// ```
    /// # use sidewind_identity::{SpiffeId, TaskId};
    /// let worker = SpiffeId::parse("spiffe://td/ns/airflow/sa/worker")?;
    /// let id = TaskId::derive(&worker, "payroll", "charge")?;
    /// assert_eq!(id.path(), "/ns/airflow/sa/worker/dag/payroll/task/charge");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn derive(worker: &SpiffeId, dag_id: &str, task_id: &str) -> Result<SpiffeId, TaskIdError> {
        if !worker.is_workload() {
            return Err(TaskIdError::NotAWorkload("a trust domain"));
        }
        if Self::of(worker).is_some() {
            return Err(TaskIdError::NotAWorkload("another task"));
        }
        let (dag, task) = (segment("DAG", dag_id)?, segment("task", task_id)?);
        let path = format!("{}/dag/{dag}/task/{task}", worker.path());
        Ok(SpiffeId::from_parts(worker.trust_domain(), &path)?)
    }

    /// Takes a task's identity apart; none for one that [`TaskId::derive`] does not make.
    pub fn of(id: &SpiffeId) -> Option<Self> {
        let mut segments = id.path().rsplitn(5, '/');
        let task = segments.next()?;
        if segments.next()? != "task" {
            return None;
        }
        let dag = segments.next()?;
        if segments.next()? != "dag" {
            return None;
        }
        let worker = segments.next().filter(|path| !path.is_empty())?;
        let worker = SpiffeId::from_parts(id.trust_domain(), worker).ok()?;
        if Self::of(&worker).is_some() {
            return None;
        }
        Some(Self {
            worker,
            dag_id: name(dag)?,
            task_id: name(task)?,
        })
    }
}

/// Writes a name as a path segment.
fn segment<'a>(of: &'static str, name: &'a str) -> Result<Cow<'a, str>, TaskIdError> {
    match name.len() {
        0 => return Err(TaskIdError::Empty(of)),
        bytes if bytes > MAX_TASK_NAME_BYTES => return Err(TaskIdError::TooLong(of, bytes)),
        _ => {}
    }
    if check_segment(name).is_ok() && !name.starts_with(ESCAPED) {
        return Ok(Cow::Borrowed(name));
    }
    let mut escaped = ESCAPED.to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _infallible = write!(escaped, "-{byte:02x}");
        }
    }
    Ok(Cow::Owned(escaped))
}

/// Reads a name back; none for a segment that no name is written as.
fn name(written: &str) -> Option<String> {
    let Some(mut rest) = written.strip_prefix(ESCAPED) else {
        return Some(written.to_owned());
    };
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((plain, escaped)) = rest.split_once('-') {
        bytes.extend_from_slice(plain.as_bytes());
        let (digits, after) = escaped.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    let name = String::from_utf8(bytes).ok()?;
    // One spelling for each name: what was escaped without need was not written here.
    (segment("", &name).ok()? == written).then_some(name)
}
