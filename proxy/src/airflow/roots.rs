//! The worker that all tasks of a container descend from, and what follows from it for the processes below.
//!
//! A task can start a process that calls itself a worker, but none that is older, nor one in another container. What a
//! task leaves behind, on the other hand, is nobody's child any more, and may open what it likes and call itself what it
//! likes: where there is a worker, only what descends from it is believed.

use super::{
    process::{Pid, Process, ProcessKey},
    processes::Chain,
    title::Title,
};

/// Control groups whose worker is remembered.
pub(super) const MAX_CONTROL_GROUPS: usize = 64;

/// The worker of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roots {
    /// The one that was there first, which is never replaced.
    first: ProcessKey,
    /// The one that is there now.
    pub(super) now: Root,
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) key: ProcessKey,
    /// It is the first process of its PID namespace, whose child every process becomes that has lost its parent.
    is_init: bool,
    /// It starts what supervises tasks by one process in between (`airflow standalone`).
    starts_workers: bool,
}

/// Where a process is below a worker.
#[derive(Clone, Copy, Debug)]
struct Below {
    root: Root,
    /// Without those between the worker and what it starts supervisors by; 0 is the worker, or one of these.
    generations: usize,
    /// A fork server of Python's multiprocessing is in between. It forks whatever any process of its user asks it for:
    /// the key that it asks for since Python 3.14 is in the memory of all that it has forked, tasks included.
    by_fork_server: bool,
}

/// Who supervises a task, as far as its processes show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Supervisor {
    pub(crate) process: ProcessKey,
    /// Nothing that a task leaves behind can be in its place.
    pub(crate) is_sure: bool,
}

impl Roots {
    /// The oldest of the workers of a container that no task has started.
    pub(super) fn elect<'p>(
        mut workers: Vec<(&'p Process, Title)>,
        process: impl Fn(Pid) -> Option<&'p Process>,
        most_ancestors: usize,
    ) -> Option<Root> {
        // Within one tick of the clock the lower number came first.
        workers.sort_unstable_by_key(|(process, _)| (process.start_time, process.pid));
        let is_tasks_own = |worker: &Process| {
            let parent = |child: &&Process| child.parent().and_then(&process);
            let ancestors = std::iter::successors(parent(&worker), parent);
            ancestors
                .take(most_ancestors)
                .any(|it| it.title().is_of_a_task())
        };
        let (root, title) = workers.into_iter().find(|(it, _)| !is_tasks_own(it))?;
        Some(Root {
            key: root.key(),
            is_init: root.is_init(),
            starts_workers: title == Title::Standalone,
        })
    }

    pub(super) fn new(root: Root) -> Self {
        Self {
            first: root.key,
            now: root,
        }
    }

    /// Another one has been started when that had ended.
    pub(super) fn followed_by(self, now: Root) -> Self {
        Self { now, ..self }
    }
}

impl Chain {
    /// Whether what its processes show is to be believed: they descend from the worker beside them, if there is one.
    pub(super) fn is_of_the_worker(&self) -> bool {
        let root = self.roots.map(|roots| roots.now.key);
        root.is_none_or(|root| self.lineage.contains(&root))
    }

    /// Whether its owner is the worker itself, or one of those that it supervises tasks by. Not known, and so false, where
    /// every process becomes a child of the worker's that has lost its parent, and below a fork server.
    pub(super) fn is_the_workers_own(&self) -> bool {
        let Some(Below {
            root,
            generations,
            by_fork_server,
        }) = self.below_the_worker()
        else {
            return false;
        };
        let is_own = generations == 0 || generations == 1 && !root.is_init;
        is_own && !by_fork_server && self.roots.is_some_and(Roots::is_first)
    }

    /// The owner, if it may be what supervises a task: in a container with a worker one of its children alone, or the
    /// worker itself (Celery's pool `solo`), which vouches for nothing: its tasks are where others' supervisors are.
    pub(super) fn supervisor(&self) -> Option<Supervisor> {
        let process = *self.lineage.first()?;
        let is_sure = match self.roots {
            None => true,
            Some(roots) => {
                let Below {
                    root,
                    generations,
                    by_fork_server,
                } = self.below_the_worker()?;
                if generations > 1 || generations == 0 && by_fork_server {
                    return None;
                }
                generations == 1 && !by_fork_server && !root.is_init && roots.is_first()
            }
        };
        Some(Supervisor { process, is_sure })
    }

    /// Where the owner is below the worker that starts supervisors.
    fn below_the_worker(&self) -> Option<Below> {
        let root = self.roots?.now;
        let mut generations = self.lineage.iter().position(|key| *key == root.key)?;
        let title_at = |at: usize| Some(&self.holders.get(at)?.title);
        let next = |at: usize| at.checked_sub(1).and_then(title_at);
        if root.starts_workers && next(generations) == Some(&Title::Worker) {
            generations -= 1;
        }
        let by_fork_server = next(generations) == Some(&Title::ForkServer);
        if by_fork_server {
            generations -= 1;
        }
        Some(Below {
            root,
            generations,
            by_fork_server,
        })
    }
}

impl Roots {
    fn is_first(self) -> bool {
        self.first == self.now.key
    }
}
