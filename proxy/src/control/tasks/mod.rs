//! Identities of Airflow tasks: an SVID for each task that this workload runs, whose key is in this process alone.
//!
//! [`TaskIdentities`] is asked on any thread; [`issuing`] holds what there is on the control thread, renews what is in
//! use and forgets the rest.

mod issuing;

use std::sync::Arc;

use sidewind_api::v1;
use sidewind_identity::MAX_TASK_NAME_BYTES;
use tokio::sync::{mpsc, oneshot, watch};

use super::Shared;
use super::calling::{Caller, TIMEOUT};
use super::error::ControlError;
use super::publisher::MeshIdentity;
use crate::airflow::LiveToken;
#[cfg(test)]
pub(super) use issuing::MAX_TASKS;
use issuing::TaskIssuing;
pub(crate) use issuing::is_refusal;

/// Asks that wait for the control thread; more wait for room.
const QUEUE: usize = 64;

/// The instance of a task that asks for its identity.
#[derive(Clone, Debug)]
pub(crate) struct TaskEvidence {
    /// Its UUID.
    pub(crate) ti_id: String,
    /// Airflow's own word that it is running, for control planes that demand it: its token of the Execution API, at each
    /// renewal the newest. None where nobody wants it.
    pub(crate) token: LiveToken,
    /// What the control plane's audit is told of it.
    pub(crate) said: v1::TaskInstance,
}

/// A task, by its names in Airflow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Task {
    dag_id: Arc<str>,
    task_id: Arc<str>,
}

/// The identity of a task. While one is held, the identity is renewed.
#[derive(Debug, Clone)]
pub(crate) struct TaskIdentity {
    present: watch::Receiver<Arc<MeshIdentity>>,
}

impl TaskIdentity {
    /// The identity with its present certificate: for new connections.
    pub(crate) fn present(&self) -> Arc<MeshIdentity> {
        self.present.borrow().clone()
    }

    /// Whether there will be no other certificate: the last one has ended, or the task may have no identity any more.
    pub(crate) fn is_over(&self) -> bool {
        self.present.has_changed().is_err()
    }

    /// Waits for the next certificate or trust bundle. False once there will be none: the last certificate has ended,
    /// or the task may have no identity any more.
    #[cfg(test)]
    pub(crate) async fn changed(&mut self) -> bool {
        self.present.changed().await.is_ok()
    }
}

type Answer = Result<TaskIdentity, Arc<ControlError>>;

struct Ask {
    task: Task,
    evidence: Option<TaskEvidence>,
    answer: oneshot::Sender<Answer>,
}

/// Gets identities of tasks. Clones ask the same.
#[derive(Debug, Clone)]
pub(crate) struct TaskIdentities {
    asks: mpsc::Sender<Ask>,
}

impl TaskIdentities {
    /// The identity of a task of this workload: the one that there is, or a new one.
    ///
    /// # Errors
    /// Why there is none: the control plane refuses, cannot be reached, or too many tasks have one. What was refused
    /// or failed is not asked for again within some seconds.
    pub(crate) async fn task_identity(
        &self,
        dag_id: &str,
        task_id: &str,
        evidence: Option<TaskEvidence>,
    ) -> Answer {
        let longest = dag_id.len().max(task_id.len());
        if longest > MAX_TASK_NAME_BYTES {
            let problem = format!("a name of {longest} bytes is no task's");
            return Err(Arc::new(ControlError::TaskName(problem)));
        }
        let (answer, answered) = oneshot::channel();
        let task = Task {
            dag_id: dag_id.into(),
            task_id: task_id.into(),
        };
        let ask = Ask {
            task,
            evidence,
            answer,
        };
        let asked = async {
            self.asks.send(ask).await.ok()?;
            answered.await.ok()
        };
        let gone = |problem: &str| Err(Arc::new(ControlError::Task(problem.to_owned())));
        match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Some(answer)) => answer,
            Ok(None) => gone("this proxy is ending"),
            Err(_) => gone("the control plane has not answered in time"),
        }
    }
}

#[cfg(test)]
impl TaskIdentities {
    /// One whose answers a test gives, of a DAG and a task.
    pub(crate) fn answered(
        answer: impl Fn(&str, &str) -> Option<Result<watch::Receiver<Arc<MeshIdentity>>, ControlError>>
        + 'static,
    ) -> Self {
        let (asks, mut asked) = mpsc::channel::<Ask>(QUEUE);
        tokio::task::spawn_local(async move {
            let mut silent = Vec::new();
            while let Some(ask) = asked.recv().await {
                match answer(&ask.task.dag_id, &ask.task.task_id) {
                    Some(Ok(present)) => {
                        let _ = ask.answer.send(Ok(TaskIdentity { present }));
                    }
                    Some(Err(error)) => drop(ask.answer.send(Err(Arc::new(error)))),
                    None => silent.push(ask),
                }
            }
        });
        Self { asks }
    }
}

/// The handle, and what does the work on the control thread.
pub(super) fn new(caller: Caller, shared: Arc<Shared>) -> (TaskIdentities, TaskIssuing) {
    let (asks, asked) = mpsc::channel(QUEUE);
    (
        TaskIdentities { asks },
        TaskIssuing::new(caller, shared, asked),
    )
}
