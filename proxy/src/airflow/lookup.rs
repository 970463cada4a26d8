//! The thread that finds out whose connections are. Reading `/proc` blocks, so that workers only ask.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, SyncSender},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    Owner, Unknown,
    attempt_log::AttemptLogs,
    attribute::attribute,
    processes::{NotFound, Processes},
    socket::{SocketPair, SocketTable},
};
use crate::telemetry::{
    logs::Throttle,
    metrics::{Metrics, TaskLookup},
};

/// Connections that wait for their turn. One that finds no place stays unattributed.
const MAX_WAITING: usize = 1024;

/// How long one search may take, unless there is more to read than anybody's processes have.
const SEARCH_TIME: Duration = Duration::from_millis(50);

/// Whose a connection is.
pub(crate) type Answer = Result<Owner, Unknown>;

/// Asks whose connections are. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    questions: SyncSender<Question>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Question {
    pair: SocketPair,
    answer: oneshot::Sender<Answer>,
}

impl Lookup {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// Where `/proc` or the kernel's socket diagnosis cannot be opened.
    pub(crate) fn start(logs: AttemptLogs, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let mut finder = Finder::new(logs, SEARCH_TIME)?;
        let (questions, asked) = mpsc::sync_channel::<Question>(MAX_WAITING);
        let counted = Arc::clone(metrics);
        std::thread::Builder::new()
            .name("airflow".to_owned())
            .spawn(move || {
                while let Ok(question) = asked.recv() {
                    // The connection may have ended meanwhile.
                    if question.answer.is_closed() {
                        continue;
                    }
                    let began = Instant::now();
                    let answer = finder.find(question.pair);
                    counted.task_lookup(result(&answer), Some(began.elapsed()));
                    if answer == Err(Unknown::Denied) {
                        say_what_is_missing();
                    }
                    let _ = question.answer.send(answer);
                }
            })?;
        Ok(Self {
            questions,
            metrics: Arc::clone(metrics),
        })
    }

    /// Asks whose the connection is that has these ends. An answer that never comes means that it is not known.
    pub(crate) fn ask(&self, pair: SocketPair) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        if let Err(error) = self.questions.try_send(Question { pair, answer }) {
            let question = match error {
                mpsc::TrySendError::Full(question) | mpsc::TrySendError::Disconnected(question) => {
                    question
                }
            };
            self.metrics.task_lookup(TaskLookup::Busy, None);
            let _ = question.answer.send(Err(Unknown::Busy));
        }
        receiver
    }
}

fn say_what_is_missing() {
    static DENIED: Throttle = Throttle::new();
    if let Some(suppressed) = DENIED.admit() {
        tracing::warn!(
            suppressed,
            "the task behind a connection is not known, since the open files of other processes are hidden from this one; \
             give the sidecar the capability SYS_PTRACE, and run it as root or with DAC_READ_SEARCH"
        );
    }
}

fn result(answer: &Answer) -> TaskLookup {
    match answer {
        Ok(Owner::Task(_)) => TaskLookup::Task,
        Ok(Owner::Instance(_)) => TaskLookup::Instance,
        Ok(Owner::NoTask) => TaskLookup::NoTask,
        Err(Unknown::SocketGone) => TaskLookup::SocketGone,
        Err(Unknown::NoOwner) => TaskLookup::NoOwner,
        Err(Unknown::Denied) => TaskLookup::Denied,
        Err(Unknown::Ambiguous) => TaskLookup::Ambiguous,
        Err(Unknown::TimedOut) => TaskLookup::TimedOut,
        Err(Unknown::Busy) => TaskLookup::Busy,
    }
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Finder {
    sockets: SocketTable,
    processes: Processes,
}

impl Finder {
    pub(super) fn new(logs: AttemptLogs, search_time: Duration) -> io::Result<Self> {
        Ok(Self {
            sockets: SocketTable::open()?,
            processes: Processes::new(logs, search_time)?,
        })
    }

    pub(super) fn find(&mut self, pair: SocketPair) -> Answer {
        let inode = match self.sockets.inode(pair) {
            Ok(Some(inode)) => inode,
            Ok(None) => return Err(Unknown::SocketGone),
            Err(error) => {
                tracing::debug!(%error, "the kernel was not to be asked for a socket");
                return Err(Unknown::SocketGone);
            }
        };
        let chain = self.processes.owner(inode).map_err(|error| match error {
            NotFound::Nobody => Unknown::NoOwner,
            NotFound::Denied => Unknown::Denied,
            NotFound::TimedOut => Unknown::TimedOut,
        })?;
        attribute(&chain, |pid| self.processes.process(pid))
    }
}
