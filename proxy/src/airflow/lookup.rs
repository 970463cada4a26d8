//! The thread that finds out whose connections are. Reading `/proc` blocks, so that workers only ask.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, SyncSender, TrySendError},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{
    Owner, Unknown,
    attempt_log::AttemptLogs,
    attribute::attribute,
    execution_api::Unreadable,
    facts::Facts,
    overhear::{News, Places, Report},
    processes::{NotFound, Processes},
    socket::{SocketPair, SocketTable},
};
use crate::telemetry::{
    logs::Throttle,
    metrics::{Metrics, TaskFact, TaskLookup},
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
    messages: SyncSender<Message>,
    places: Places,
    metrics: Arc<Metrics>,
}

/// What the thread is sent.
#[derive(Debug)]
enum Message {
    Question(Question),
    Report(Report),
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
        let (messages, received) = mpsc::sync_channel::<Message>(MAX_WAITING);
        let counted = Arc::clone(metrics);
        std::thread::Builder::new()
            .name("airflow".to_owned())
            .spawn(move || {
                while let Ok(message) = received.recv() {
                    match message {
                        Message::Question(question) => finder.answer(question, &counted),
                        Message::Report(report) => {
                            if let Some(fact) = finder.learn(report) {
                                counted.task_fact(fact);
                            }
                        }
                    }
                }
            })?;
        Ok(Self {
            messages,
            places: Places::default(),
            metrics: Arc::clone(metrics),
        })
    }

    /// Asks whose the connection is that has these ends. An answer that never comes means that it is not known.
    pub(crate) fn ask(&self, pair: SocketPair) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let question = Message::Question(Question { pair, answer });
        if let Err(
            TrySendError::Full(Message::Question(question))
            | TrySendError::Disconnected(Message::Question(question)),
        ) = self.messages.try_send(question)
        {
            self.metrics.task_lookup(TaskLookup::Busy, None);
            let _ = question.answer.send(Err(Unknown::Busy));
        }
        receiver
    }

    /// Tells what was overheard of a task instance.
    pub(super) fn report(&self, report: Report) {
        if self.messages.try_send(Message::Report(report)).is_err() {
            self.count(TaskFact::Busy);
        }
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn count(&self, fact: TaskFact) {
        self.metrics.task_fact(fact);
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
    facts: Facts,
}

impl Finder {
    pub(super) fn new(logs: AttemptLogs, search_time: Duration) -> io::Result<Self> {
        Ok(Self {
            sockets: SocketTable::open()?,
            processes: Processes::new(logs, search_time)?,
            facts: Facts::default(),
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
        let mut owner = attribute(&chain, |pid| self.processes.process(pid))?;
        if let Owner::Task(found) = &mut owner {
            let pids = chain.iter().map(|holder| holder.pid);
            let ti_id = found.ti_id.as_deref();
            found.parent = self.facts.complete(&mut found.task, ti_id, pids);
        }
        Ok(owner)
    }

    fn answer(&mut self, question: Question, metrics: &Metrics) {
        // The connection may have ended meanwhile.
        if question.answer.is_closed() {
            return;
        }
        let began = Instant::now();
        let answer = self.find(question.pair);
        metrics.task_lookup(result(&answer), Some(began.elapsed()));
        if answer == Err(Unknown::Denied) {
            say_what_is_missing();
        }
        let _ = question.answer.send(answer);
    }

    /// Takes over what was overheard; says what it was worth, unless it was nothing new.
    pub(super) fn learn(&mut self, report: Report) -> Option<TaskFact> {
        let Report { ti_id, news } = report;
        Some(match news {
            News::Begins(bodies) => match bodies.read() {
                Ok((run, pid)) => match self.facts.begins(&ti_id, run, pid) {
                    true => TaskFact::Learned,
                    false => TaskFact::Contradicted,
                },
                Err(Unreadable::TooLarge) => TaskFact::TooLarge,
                Err(error) => {
                    tracing::debug!(%error, "what Airflow says of a task was not understood");
                    TaskFact::Unreadable
                }
            },
            News::BelongsTo(parent) => {
                self.facts.belongs_to(&ti_id, parent);
                TaskFact::Learned
            }
            News::Ends => {
                self.facts.ends(&ti_id);
                return None;
            }
            News::IsThere => {
                self.facts.is_there(&ti_id);
                return None;
            }
        })
    }
}
