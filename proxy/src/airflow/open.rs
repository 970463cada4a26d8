//! The tasks that have connections open now, for `GET /tasks`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Finding, Owner};
use crate::telemetry::TaskContext;

/// The connections whose task is known, by a number of their own. No more than there are connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenTasks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    last: AtomicU64,
    by_connection: Mutex<HashMap<u64, TaskContext>>,
}

/// One connection's place, which it leaves when it ends.
#[derive(Debug)]
pub(crate) struct Place {
    open: OpenTasks,
    number: u64,
}

impl OpenTasks {
    /// What the task of a connection is asked with, and a place for the connection.
    pub(super) fn question(&self) -> (Reply, oneshot::Receiver<Finding>, Place) {
        let (sender, receiver) = oneshot::channel();
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let reply = Reply {
            sender,
            open: self.clone(),
            number,
        };
        let place = Place {
            open: self.clone(),
            number,
        };
        (reply, receiver, place)
    }

    fn leave(&self, number: u64) {
        self.all().remove(&number);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, TaskContext>> {
        let all = self.0.by_connection.lock();
        all.unwrap_or_else(PoisonError::into_inner)
    }

    /// Each task with the number of its connections, in order.
    pub(crate) fn report(&self) -> Value {
        let mut tasks: BTreeMap<_, (TaskContext, u64)> = BTreeMap::new();
        for task in self.all().values() {
            let key = (
                task.dag_id.clone(),
                task.run_id.clone(),
                task.task_id.clone(),
                task.map_index,
                task.try_number,
            );
            tasks.entry(key).or_insert_with(|| (task.clone(), 0)).1 += 1;
        }
        let shown = tasks.into_values().map(|(task, connections)| {
            json!({
                "dag_id": task.dag_id,
                "run_id": task.run_id,
                "task_id": task.task_id,
                "map_index": task.map_index,
                "try_number": task.try_number,
                "triggered_by": task.triggered_by,
                "connections": connections,
            })
        });
        json!({ "tasks": shown.collect::<Vec<_>>() })
    }
}

/// Where the answer goes.
#[derive(Debug)]
pub(super) struct Reply {
    sender: oneshot::Sender<Finding>,
    open: OpenTasks,
    number: u64,
}

impl Reply {
    /// Whether the connection has ended meanwhile.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Answers. With a task the connection enters its place.
    pub(super) fn send(self, finding: Finding) {
        if let Ok(Owner::Task(found)) = &finding.answer {
            self.open.all().insert(self.number, found.task.clone());
        }
        if self.sender.send(finding).is_err() {
            // It has ended, and may have left before it entered.
            self.open.leave(self.number);
        }
    }
}

impl Place {
    /// Has the connection belong to this task, of which more is known now.
    pub(super) fn enter(&self, task: TaskContext) {
        self.open.all().insert(self.number, task);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::airflow::Attributed;

    fn found(task: TaskContext) -> Finding {
        let found = Owner::Task(Attributed {
            task,
            ti_id: None,
            parent: None,
        });
        Ok(found).into()
    }

    #[test]
    fn a_task_is_shown_once_with_its_connections_for_as_long_as_it_has_any() {
        let open = OpenTasks::default();
        let task = |task_id: &str, map_index| TaskContext {
            dag_id: "payroll".into(),
            run_id: "manual__1".into(),
            task_id: task_id.into(),
            map_index,
            ..TaskContext::default()
        };
        let questions = [0, 1, 2, 3].map(|_| open.question());
        let tasks = [
            task("load", Some(1)),
            task("load", Some(0)),
            task("load", Some(1)),
        ];
        let mut tasks = tasks.into_iter();
        let places = questions.map(|(reply, receiver, place)| {
            reply.send(tasks.next().map_or(Ok(Owner::NoTask).into(), found));
            (receiver, place)
        });
        let shown = || {
            let report = open.report();
            let tasks = report["tasks"].as_array().cloned().unwrap_or_default();
            let each = tasks
                .iter()
                .map(|it| (it["map_index"].as_i64(), it["connections"].as_u64()));
            each.collect::<Vec<_>>()
        };
        assert_eq!(shown(), [(Some(0), Some(1)), (Some(1), Some(2))]);
        let [first, second, third, _] = places;
        drop(first);
        assert_eq!(shown(), [(Some(0), Some(1)), (Some(1), Some(1))]);
        drop((second, third));
        assert_eq!(shown(), []);
        // One that has ended before its task was found.
        let (reply, receiver, place) = open.question();
        drop((receiver, place));
        assert!(reply.is_closed());
        reply.send(found(task("late", None)));
        assert_eq!(shown(), []);
    }
}
