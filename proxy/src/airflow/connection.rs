//! What becomes known of the task behind one connection, while the connection already goes on.

use std::{
    cell::{OnceCell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Answer, Owner, open::Place};
use crate::telemetry::{TaskContext, trace::TraceParent};

/// The task behind a connection, as far as it is known. Clones share what becomes known.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionTask(Option<Rc<Shared>>);

#[derive(Debug)]
struct Shared {
    pending: RefCell<Option<oneshot::Receiver<Answer>>>,
    known: OnceCell<Option<Found>>,
    _place: Option<Place>,
}

#[derive(Debug)]
struct Found {
    task: TaskContext,
    parent: Option<TraceParent>,
}

impl ConnectionTask {
    /// A task that is being looked for.
    pub(crate) fn pending((answer, place): (oneshot::Receiver<Answer>, Place)) -> Self {
        Self(Some(Rc::new(Shared {
            pending: RefCell::new(Some(answer)),
            known: OnceCell::new(),
            _place: Some(place),
        })))
    }

    /// A task that a believed peer has named, or none.
    pub(crate) fn known(task: Option<TaskContext>) -> Self {
        Self(task.map(|task| {
            Rc::new(Shared {
                pending: RefCell::new(None),
                known: OnceCell::from(Some(Found { task, parent: None })),
                _place: None,
            })
        }))
    }

    /// The task, if it is known by now.
    pub(crate) fn now(&self) -> Option<&TaskContext> {
        self.found().map(|found| &found.task)
    }

    /// The span of Airflow's trace that the task belongs to, as far as it is known by now.
    pub(crate) fn trace_parent(&self) -> Option<TraceParent> {
        self.found()?.parent
    }

    fn found(&self) -> Option<&Found> {
        let shared = self.0.as_ref()?;
        if shared.known.get().is_none() {
            let answer = match shared.pending.borrow_mut().as_mut()?.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return None,
                answer => answer.ok(),
            };
            shared.set(answer);
        }
        shared.known.get()?.as_ref()
    }

    /// The task, waiting for it no longer than `limit`.
    pub(crate) async fn within(&self, limit: Duration) -> Option<&TaskContext> {
        let shared = self.0.as_ref()?;
        if shared.known.get().is_none() {
            let pending = shared.pending.take();
            if let Some(mut pending) = pending {
                match tokio::time::timeout(limit, &mut pending).await {
                    Ok(answer) => shared.set(answer.ok()),
                    // It may still come, for the record.
                    Err(_) => *shared.pending.borrow_mut() = Some(pending),
                }
            }
        }
        self.now()
    }
}

impl Shared {
    fn set(&self, answer: Option<Answer>) {
        let task = match answer {
            Some(Ok(Owner::Task(found))) => Some(Found {
                task: found.task,
                parent: found.parent,
            }),
            _ => None,
        };
        let _ = self.known.set(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::airflow::{Attributed, Evidence, Unknown};

    fn task() -> TaskContext {
        TaskContext {
            dag_id: "payroll".into(),
            task_id: "load".into(),
            run_id: "manual__1".into(),
            ..TaskContext::default()
        }
    }

    fn place() -> Place {
        crate::airflow::OpenTasks::default().question().2
    }

    fn found() -> Answer {
        Ok(Owner::Task(Attributed {
            task: task(),
            ti_id: None,
            parent: None,
            evidence: Evidence::Process,
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_task_no_longer_than_the_limit_and_the_record_still_gets_it() {
        let (answer, receiver) = oneshot::channel();
        let connection = ConnectionTask::pending((receiver, place()));
        assert_eq!(connection.within(Duration::from_millis(20)).await, None);
        assert_eq!(connection.now(), None);
        answer.send(found()).unwrap();
        assert_eq!(connection.clone().now(), Some(&task()));
        assert_eq!(connection.now(), Some(&task()));
    }

    #[tokio::test]
    async fn what_is_not_known_is_no_task() {
        for answer in [
            Err(Unknown::Busy),
            Ok(Owner::NoTask),
            Ok(Owner::Instance("x".into())),
        ] {
            let (sender, receiver) = oneshot::channel();
            sender.send(answer).unwrap();
            let connection = ConnectionTask::pending((receiver, place()));
            assert_eq!(connection.within(Duration::from_secs(1)).await, None);
        }
        let (sender, receiver) = oneshot::channel::<Answer>();
        drop(sender);
        assert_eq!(ConnectionTask::pending((receiver, place())).now(), None);
        assert_eq!(ConnectionTask::default().now(), None);
        assert_eq!(ConnectionTask::known(Some(task())).now(), Some(&task()));
    }
}
