//! Which Airflow task a connection belongs to, with no change to DAGs.
//!
//! On a worker that runs many tasks the way goes from the connection to its socket's inode ([`socket`], one exact
//! question to the kernel), from there to the process that owns it ([`processes`], the shallowest of those that hold
//! it), and from that process to the task ([`attribute`]): by the attempt log that its supervisor has open
//! ([`attempt_log`]), or, where there is none to be seen, by the process's title ([`title`]) or environment
//! ([`environment`]). [`lookup`] does it on a thread of its own.
//!
//! Where the proxy may not look into processes, tasks say themselves which they are ([`plugin`]); where it stands beside
//! one task, its own environment says so ([`environment`]). [`sight`] finds out what it may see.
//!
//! What Airflow tells the API server of a task goes through the same proxy: [`execution_api`] knows such requests,
//! [`overhear`] copies what is to be read, [`run_response`] reads it, and [`facts`] keeps it for as long as the task runs, so that the person behind a run and
//! its trace become known too.
//!
//! While no API server answers, such requests are held and tried again ([`outage`]).
//!
//! [`connection`] keeps it for a connection's requests and record; [`baggage`] takes it to the next proxy, which
//! tells it to the workload ([`told`]).
//!
//! What is not known is said to be unknown; nothing is guessed. What is known so is for telemetry, since most of it a
//! task's own code could have made up. What it cannot is kept apart ([`standing`]), and gives connections their identity
//! ([`caller`]).

mod attempt_log;
mod attribute;
pub(crate) mod baggage;
mod caller;
pub(crate) mod command_line;
mod connection;
pub(crate) mod environment;
mod execution_api;
mod facts;
mod finder;
mod lookup;
mod open;
pub(crate) mod outage;
mod overhear;
mod plugin;
mod process;
mod processes;
mod roots;
mod run_response;
mod sight;
mod socket;
mod standing;
mod title;
pub(crate) mod told;

pub(crate) use self::{
    attempt_log::{AttemptLogs, DEFAULT_TEMPLATE},
    caller::Callers,
    connection::ConnectionTask,
    execution_api::Call as ExecutionCall,
    finder::Finder,
    lookup::{Finding, Lookup, TaskSource},
    open::OpenTasks,
    overhear::{Answered, Overheard},
    sight::Sight,
    socket::SocketPair,
    standing::{LiveToken, Standing, Vouched},
};
use crate::telemetry::{TaskContext, trace::TraceParent};

/// Whose a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A task's.
    Task(Attributed),
    /// A task's, of which only the task instance's id is known.
    Instance(String),
    /// No task's: the worker's own.
    NoTask,
}

/// A task, and what else is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributed {
    pub(crate) task: TaskContext,
    /// The id of the task instance, where it was to be seen.
    pub(crate) ti_id: Option<String>,
    /// The span of Airflow's own trace that it belongs to, where Airflow has told.
    pub(crate) parent: Option<TraceParent>,
}

/// Why it is not known whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unknown {
    /// It was closed before it was looked at.
    SocketGone,
    /// No process holds it that the proxy can see.
    NoOwner,
    /// The proxy may not read the open files of some processes.
    Denied,
    /// Its process works for several tasks.
    Ambiguous,
    /// It does not surely descend from the worker beside it, and shows a task all the same; or it has more ancestors than are
    /// looked at.
    Stray,
    /// Its processes show another run than Airflow has named.
    Contradicted,
    /// Looking took too long.
    TimedOut,
    /// Too many connections were waiting to be looked at.
    Busy,
}
