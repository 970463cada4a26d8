//! What is counted by DAG and task.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use super::Families;
use super::cell::{Counter, Gauge, Histogram, Latency};
use super::family::{Family, Labels};
use super::labels::{Name, StatusClass, encode_as_str};
use crate::airflow::Sight;
use crate::telemetry::record::{Direction, TaskContext};

/// Series of one of these families: DAGs are many, and a scrape is to stay small.
const MAX_SERIES: usize = 500;

/// The same of histograms, each of which is more than a dozen lines.
const MAX_HISTOGRAMS: usize = 100;

/// Tasks whose series a worker keeps at hand.
const MAX_RECENT: usize = 32;

/// Labels of what is counted for each task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct TaskLabels {
    direction: Direction,
    dag_id: Name,
    task_id: Name,
}

impl Labels for TaskLabels {
    fn overflow(&self) -> Self {
        Self {
            direction: self.direction,
            dag_id: Name::overflow(),
            task_id: Name::overflow(),
        }
    }
}

/// Labels of `sidewind_task_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct TaskRequestLabels {
    direction: Direction,
    dag_id: Name,
    task_id: Name,
    status: StatusClass,
}

impl Labels for TaskRequestLabels {
    fn overflow(&self) -> Self {
        Self {
            dag_id: Name::overflow(),
            task_id: Name::overflow(),
            ..self.clone()
        }
    }
}

/// Labels of `sidewind_task_saved_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct SavedLabels {
    dag_id: Name,
    task_id: Name,
}

impl Labels for SavedLabels {
    fn overflow(&self) -> Self {
        Self {
            dag_id: Name::overflow(),
            task_id: Name::overflow(),
        }
    }
}

/// Labels of `sidewind_task_sight`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub(crate) struct SightLabels {
    sight: Sight,
}

impl Labels for SightLabels {
    fn overflow(&self) -> Self {
        self.clone()
    }
}

encode_as_str!(Sight);

/// The families that have tasks for labels.
#[derive(Debug)]
pub(crate) struct TaskFamilies {
    requests: Family<TaskRequestLabels, Counter>,
    duration: Family<TaskLabels, Histogram<Latency>>,
    connections: Family<TaskLabels, Counter>,
    saved: Family<SavedLabels, Counter>,
    sight: Family<SightLabels, Gauge>,
}

impl TaskFamilies {
    pub(super) fn register(families: &mut Families<'_>) -> Self {
        Self {
            requests: families.add_bounded(
                "sidewind_task_requests",
                "Requests that Airflow tasks have made, as far as the task is known",
                MAX_SERIES,
            ),
            duration: families.add_bounded(
                "sidewind_task_request_duration_seconds",
                "How long they took, from the first byte of a request to the last of its response",
                MAX_HISTOGRAMS,
            ),
            connections: families.add_bounded(
                "sidewind_task_connections",
                "Connections of Airflow tasks that were carried as bytes and have ended",
                MAX_SERIES,
            ),
            saved: families.add_bounded(
                "sidewind_task_saved_requests",
                "Requests to Airflow's Execution API that were answered after more than one try",
                MAX_SERIES,
            ),
            sight: families.add(
                "sidewind_task_sight",
                "What can be seen of the processes of Airflow's tasks: 1 for what holds",
            ),
        }
    }

    /// Says what can be seen of other processes.
    pub(super) fn set_sight(&self, now: Sight) {
        for sight in [Sight::Whole, Sight::Partial, Sight::Alone] {
            let gauge = self.sight.cell(0, &SightLabels { sight });
            gauge.set(i64::from(sight == now));
        }
    }

    /// Counts a request that was answered after more than one try.
    pub(super) fn saved(&self, worker: usize, task: Option<&TaskContext>) {
        let name = |of: fn(&TaskContext) -> &str| Name::new(task.map_or("", of));
        let labels = SavedLabels {
            dag_id: name(|task| &task.dag_id),
            task_id: name(|task| &task.task_id),
        };
        self.saved.cell(worker, &labels).inc();
    }
}

/// A worker's series of the tasks that it has met of late.
#[derive(Debug, Default)]
pub(super) struct RecentTasks(RefCell<Vec<Recent>>);

#[derive(Debug)]
struct Recent {
    direction: Direction,
    dag_id: String,
    task_id: String,
    labels: TaskLabels,
    duration: Option<Arc<Histogram<Latency>>>,
    connections: Option<Arc<Counter>>,
    requests: Vec<(StatusClass, Arc<Counter>)>,
}

impl RecentTasks {
    pub(super) fn request(
        &self,
        (families, worker): (&TaskFamilies, usize),
        direction: Direction,
        task: &TaskContext,
        status: Option<StatusCode>,
        took: Duration,
    ) {
        self.with(direction, task, |recent| {
            let status = StatusClass::from(status);
            let known = recent.requests.iter().find(|(class, _)| *class == status);
            if let Some((_, counter)) = known {
                counter.inc();
            } else {
                let labels = TaskRequestLabels {
                    direction,
                    dag_id: recent.labels.dag_id.clone(),
                    task_id: recent.labels.task_id.clone(),
                    status,
                };
                let counter = families.requests.cell(worker, &labels);
                counter.inc();
                recent.requests.push((status, counter));
            }
            let duration = recent
                .duration
                .get_or_insert_with(|| families.duration.cell(worker, &recent.labels));
            duration.observe(took);
        });
    }

    pub(super) fn connection(
        &self,
        (families, worker): (&TaskFamilies, usize),
        direction: Direction,
        task: &TaskContext,
    ) {
        self.with(direction, task, |recent| {
            let counter = recent
                .connections
                .get_or_insert_with(|| families.connections.cell(worker, &recent.labels));
            counter.inc();
        });
    }

    fn with(&self, direction: Direction, task: &TaskContext, then: impl FnOnce(&mut Recent)) {
        let mut all = self.0.borrow_mut();
        let known = all.iter_mut().find(|recent| {
            recent.direction == direction
                && recent.dag_id == task.dag_id
                && recent.task_id == task.task_id
        });
        if let Some(recent) = known {
            return then(recent);
        }
        if all.len() >= MAX_RECENT {
            all.clear();
        }
        let mut recent = Recent {
            direction,
            dag_id: task.dag_id.clone(),
            task_id: task.task_id.clone(),
            labels: TaskLabels {
                direction,
                dag_id: Name::new(&task.dag_id),
                task_id: Name::new(&task.task_id),
            },
            duration: None,
            connections: None,
            requests: Vec::new(),
        };
        then(&mut recent);
        all.push(recent);
    }
}
