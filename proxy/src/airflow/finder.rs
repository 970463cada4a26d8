//! Finds the processes behind a connection and what they show: from the socket to the task.

use std::{io, time::Duration};

use tokio::time::Instant;

#[cfg(test)]
use super::process::Process;
use super::{
    Owner, Unknown,
    attempt_log::AttemptLogs,
    attribute::attribute,
    lookup::Answer,
    process::{Pid, ProcessKey},
    processes::{NotFound, Processes},
    roots::Supervisor,
    run_response::Run,
    socket::{SocketPair, SocketTable},
};
use crate::telemetry::TaskContext;

/// Finds owners among processes.
#[derive(Debug)]
pub(crate) struct Finder {
    sockets: SocketTable,
    processes: Processes,
}

impl Finder {
    pub(crate) fn new(logs: AttemptLogs, search_time: Duration) -> io::Result<Self> {
        Ok(Self {
            sockets: SocketTable::open()?,
            processes: Processes::new(logs, search_time)?,
        })
    }

    /// The same, where processes of one container are told by something else.
    #[cfg(test)]
    pub(super) fn contained_by(self, container: fn(&Process) -> Option<Vec<u8>>) -> Self {
        Self {
            processes: self.processes.contained_by(container),
            ..self
        }
    }

    /// Files that were looked at.
    #[cfg(test)]
    pub(super) fn files(&self) -> u64 {
        self.processes.files
    }

    #[cfg(test)]
    pub(super) fn find(&mut self, pair: SocketPair) -> Answer {
        self.search(pair, Instant::now())?.answer
    }

    /// Whose a connection is that was open at the time `asked`.
    pub(crate) fn search(&mut self, pair: SocketPair, asked: Instant) -> Result<Found, Unknown> {
        let inode = match self.sockets.look(pair) {
            Ok(Some(seen)) => seen.inode,
            Ok(None) => return Err(Unknown::SocketGone),
            Err(error) => {
                tracing::debug!(%error, "the kernel was not to be asked for a socket");
                return Err(Unknown::SocketGone);
            }
        };
        let processes = &mut self.processes;
        let chain = processes.owner(inode, asked).map_err(|error| match error {
            NotFound::Nobody => Unknown::NoOwner,
            NotFound::Denied => Unknown::Denied,
            NotFound::TimedOut => Unknown::TimedOut,
            NotFound::TooDeep => Unknown::Stray,
        })?;
        let shown = attribute(&chain.holders, |pid| processes.process(pid));
        Ok(Found {
            answer: match shown {
                Ok(Owner::NoTask) => Ok(Owner::NoTask),
                _ if !chain.is_of_the_worker() => Err(Unknown::Stray),
                shown => shown,
            },
            is_worker: chain.is_the_workers_own(),
            supervisor: chain.supervisor(),
            lineage: chain.lineage,
        })
    }

    /// The process with the number `child`, if it is a child of `parent`.
    pub(super) fn child(&mut self, parent: ProcessKey, child: Pid) -> Option<ProcessKey> {
        self.processes.child(parent, child)
    }

    /// The process that `supervisor` has started for a task of `run`, and the task; none where it is not sure.
    pub(super) fn started(
        &mut self,
        supervisor: ProcessKey,
        runner: Pid,
        run: &Run,
    ) -> Option<(ProcessKey, TaskContext)> {
        let (runner, task) = self.processes.started(supervisor, runner)?;
        let agrees = task.dag_id == run.dag_id && task.run_id == run.run_id;
        agrees.then_some((runner, task))
    }
}

/// What was found of a connection.
#[derive(Debug)]
pub(crate) struct Found {
    /// What its processes show.
    pub(crate) answer: Answer,
    /// The processes from its owner upwards of which it is sure that each is a child of the next.
    pub(super) lineage: Vec<ProcessKey>,
    /// It is Airflow's own, of those that run no task's code.
    pub(super) is_worker: bool,
    /// Its owner, if that may be what supervises a task.
    pub(super) supervisor: Option<Supervisor>,
}
