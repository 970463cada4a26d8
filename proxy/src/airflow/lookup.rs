//! The thread that finds out whose connections are. Reading `/proc` blocks, so that workers only ask.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};

use super::{
    Attributed, Owner, Unknown,
    attempt_log::AttemptLogs,
    attribute::attribute,
    execution_api::Run,
    facts::Facts,
    open::{OpenTasks, Place, Reply},
    overhear::{Places, Report},
    plugin::Plugin,
    process::{Pid, ProcessKey},
    processes::{NotFound, Processes},
    sight::{self, Sight},
    socket::{SocketPair, SocketTable},
    standing::{Proofs, Standing},
};
use crate::{
    admin::{Component, Readiness},
    telemetry::{
        TaskContext,
        logs::Throttle,
        metrics::{Metrics, TaskFact, TaskLookup},
    },
    workload_api::{Socket, SocketError},
};

/// Connections that wait for their turn. One that finds no place stays unattributed.
const MAX_WAITING: usize = 1024;

/// How much processor time one search may take: there is more to read then than anybody's processes have.
const SEARCH_TIME: Duration = Duration::from_millis(50);

/// Tasks run as another user than the proxy; whoever reaches the socket may say what he likes of his own connections.
const PLUGIN_SOCKET_MODE: u32 = 0o666;

/// Whose a connection is.
pub(crate) type Answer = Result<Owner, Unknown>;

/// What the thread says of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) answer: Answer,
    pub(crate) standing: Standing,
    /// The process that has it, if it may be the supervisor of a task.
    pub(crate) supervisor: Option<ProcessKey>,
}

impl From<Answer> for Finding {
    /// What is said where nothing is sure.
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            standing: Standing::Unproven,
            supervisor: None,
        }
    }
}

/// Where it is known from whose connections are.
#[derive(Clone, Debug)]
pub(crate) enum TaskSource {
    /// From the processes beside the proxy, and the logs that they have open.
    Processes(AttemptLogs),
    /// All are this task's.
    Given(Box<Attributed>),
    /// From Airflow's plugin, at a Unix socket of this path.
    Plugin(PathBuf),
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("tasks cannot be looked for")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Socket(#[from] SocketError),
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("airflow".to_owned())
}

/// Asks whose connections are. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    messages: mpsc::Sender<Message>,
    places: Places,
    open: OpenTasks,
    metrics: Arc<Metrics>,
}

/// What the thread is sent.
#[derive(Debug)]
pub(super) enum Message {
    Question(Question),
    Report(Report),
}

#[derive(Debug)]
pub(super) struct Question {
    pub(super) pair: SocketPair,
    pub(super) answer: Reply,
}

impl Lookup {
    /// Starts the thread, in the network namespace of the caller. What it can see is said in `readiness`.
    ///
    /// # Errors
    /// Where `/proc`, the kernel's socket diagnosis or the plugin's socket cannot be opened.
    pub(crate) fn start(
        source: TaskSource,
        metrics: &Arc<Metrics>,
        readiness: &Readiness,
    ) -> Result<Self, StartError> {
        let (messages, received) = mpsc::channel(MAX_WAITING);
        let lookup = Self {
            messages,
            places: Places::default(),
            open: OpenTasks::default(),
            metrics: Arc::clone(metrics),
        };
        let searching = Searching {
            source: match source {
                TaskSource::Processes(logs) => {
                    let finder = Finder::new(logs, SEARCH_TIME)?;
                    let watch = Watch::begin(metrics, readiness);
                    Source::Processes(Box::new(finder), watch)
                }
                TaskSource::Given(task) => Source::Given(task),
                TaskSource::Plugin(path) => {
                    let (socket, listener) = Socket::bind(&path, PLUGIN_SOCKET_MODE)?;
                    let plugin = Plugin::new(listener, socket)?;
                    let counted = Arc::clone(metrics);
                    thread().spawn(move || {
                        if let Err(error) = plugin.run(received, counted) {
                            tracing::error!(%error, "tasks cannot say which they are");
                        }
                    })?;
                    return Ok(lookup);
                }
            },
            facts: Facts::default(),
            proofs: Proofs::default(),
            metrics: Arc::clone(metrics),
        };
        thread().spawn(move || {
            sight::use_capabilities();
            searching.run(received)
        })?;
        Ok(lookup)
    }

    /// Asks whose the connection is that has these ends. An answer that never comes means that it is not known.
    /// The connection is among the open ones of its task for as long as its place is kept.
    pub(crate) fn ask(&self, pair: SocketPair) -> (oneshot::Receiver<Finding>, Place) {
        let (answer, receiver, place) = self.open.question();
        let question = Message::Question(Question { pair, answer });
        if let Err(
            TrySendError::Full(Message::Question(question))
            | TrySendError::Closed(Message::Question(question)),
        ) = self.messages.try_send(question)
        {
            self.metrics.task_lookup(TaskLookup::Busy, None);
            question.answer.send(Err(Unknown::Busy).into());
        }
        (receiver, place)
    }

    /// The tasks that have connections open.
    pub(crate) fn open(&self) -> &OpenTasks {
        &self.open
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

/// What the thread does.
#[derive(Debug)]
struct Searching {
    source: Source,
    facts: Facts,
    proofs: Proofs,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Source {
    Processes(Box<Finder>, Watch),
    Given(Box<Attributed>),
}

impl Searching {
    fn run(mut self, mut received: mpsc::Receiver<Message>) {
        while let Some(message) = received.blocking_recv() {
            match message {
                Message::Question(question) => self.answer(question),
                Message::Report(report) => self.hear(report),
            }
        }
    }

    fn hear(&mut self, report: Report) {
        let Report {
            ti_id,
            news,
            vouched,
        } = report;
        let (fact, begun) = self.facts.learn(&ti_id, news);
        if let Some(fact) = fact {
            self.metrics.task_fact(fact);
        }
        let (Some(vouched), Source::Processes(finder, _)) = (vouched, &mut self.source) else {
            return;
        };
        if let Some((run, Some(runner))) = begun {
            match finder.started(vouched.supervisor, runner, &run) {
                Some((runner, mut task)) => {
                    // Whose run it is, for the audit of its identity.
                    self.facts
                        .complete(&mut task, Some(&ti_id), std::iter::empty());
                    self.proofs.begins(vouched.supervisor, runner, &ti_id, task);
                }
                None => self.metrics.task_fact(TaskFact::Unproven),
            }
        }
        if let Some(token) = vouched.token {
            self.proofs.shows(vouched.supervisor, &ti_id, token);
        }
    }

    fn answer(&mut self, question: Question) {
        // The connection may have ended meanwhile.
        if question.answer.is_closed() {
            return;
        }
        let began = Instant::now();
        let (finding, took) = match &mut self.source {
            Source::Given(task) => {
                let mut found = (**task).clone();
                let ti_id = found.ti_id.as_deref();
                found.parent = self.facts.complete_the_only(&mut found.task, ti_id);
                (Finding::from(Ok(Owner::Task(found))), None)
            }
            Source::Processes(finder, watch) => {
                watch.look_again();
                let finding = match finder.search(question.pair) {
                    Ok(found) => self.complete(found),
                    Err(unknown) => Finding::from(Err(unknown)),
                };
                (finding, Some(began.elapsed()))
            }
        };
        self.metrics.task_lookup(result(&finding.answer), took);
        if finding.answer == Err(Unknown::Denied) {
            say_what_is_missing();
        }
        question.answer.send(finding);
    }

    /// Adds to what processes show what Airflow has said.
    fn complete(&self, found: Found) -> Finding {
        let mut owner = found.owner;
        let standing = match self.proofs.task(&found.lineage) {
            Some(vouched) => {
                // Whatever its processes show by now.
                owner = Owner::Task(Attributed {
                    task: vouched.task.clone(),
                    ti_id: Some(vouched.ti_id.clone()),
                    parent: None,
                });
                Standing::Task(Arc::clone(vouched))
            }
            None if found.is_worker => Standing::Worker,
            None => Standing::Unproven,
        };
        if let Owner::Task(task) = &mut owner {
            let ti_id = task.ti_id.as_deref();
            let pids = found.pids.into_iter();
            task.parent = self.facts.complete(&mut task.task, ti_id, pids);
        }
        let supervisor = found.lineage.first().copied();
        Finding {
            answer: Ok(owner),
            standing,
            supervisor: supervisor.filter(|_| found.may_supervise),
        }
    }
}

/// Says what can be seen of other processes: at the start, and when the first connection comes if that is something else:
/// the worker may have been started after the proxy.
#[derive(Debug)]
struct Watch {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    said: Sight,
    is_last: bool,
}

impl Watch {
    fn begin(metrics: &Arc<Metrics>, readiness: &Readiness) -> Self {
        let watch = Self {
            metrics: Arc::clone(metrics),
            readiness: readiness.clone(),
            said: Sight::now(),
            is_last: false,
        };
        watch.say();
        watch
    }

    fn look_again(&mut self) {
        if std::mem::replace(&mut self.is_last, true) {
            return;
        }
        let now = Sight::now();
        if std::mem::replace(&mut self.said, now) != now {
            self.say();
        }
    }

    fn say(&self) {
        let (sight, explanation) = (self.said.as_str(), self.said.explanation());
        match self.said {
            Sight::Whole => tracing::info!(sight, "tasks are looked for: {explanation}"),
            _ => tracing::warn!(sight, "tasks may not be found: {explanation}"),
        }
        self.metrics.set_task_sight(self.said);
        let is_whole = self.said == Sight::Whole;
        let detail = if is_whole { "" } else { explanation };
        self.readiness.set(Component::TaskLookup, is_whole, detail);
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

pub(super) fn result(answer: &Answer) -> TaskLookup {
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

    #[cfg(test)]
    pub(super) fn find(&mut self, pair: SocketPair) -> Answer {
        self.search(pair).map(|found| found.owner)
    }

    /// Whose a connection is.
    pub(crate) fn search(&mut self, pair: SocketPair) -> Result<Found, Unknown> {
        let inode = match self.sockets.look(pair) {
            Ok(Some(seen)) => seen.inode,
            Ok(None) => return Err(Unknown::SocketGone),
            Err(error) => {
                tracing::debug!(%error, "the kernel was not to be asked for a socket");
                return Err(Unknown::SocketGone);
            }
        };
        let processes = &mut self.processes;
        let chain = processes.owner(inode).map_err(|error| match error {
            NotFound::Nobody => Unknown::NoOwner,
            NotFound::Denied => Unknown::Denied,
            NotFound::TimedOut => Unknown::TimedOut,
        })?;
        let owner = attribute(&chain, |pid| processes.process(pid))?;
        let lineage = processes.lineage(&chain);
        Ok(Found {
            owner,
            pids: chain.iter().map(|holder| holder.pid).collect(),
            is_worker: Processes::worker(&chain, &lineage).is_some(),
            may_supervise: processes.may_supervise(&chain, &lineage),
            lineage,
        })
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
    pub(crate) owner: Owner,
    /// The processes from its owner up to the first one.
    pub(super) pids: Vec<Pid>,
    /// Those of them of which it is sure that each is a child of the next.
    pub(super) lineage: Vec<ProcessKey>,
    /// It is Airflow's own, of those that run no task's code.
    pub(super) is_worker: bool,
    pub(super) may_supervise: bool,
}
