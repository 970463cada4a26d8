//! The thread that finds out whose connections are. Reading `/proc` blocks, so that workers only ask.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};

use super::{
    Attributed, Owner, Unknown,
    attempt_log::AttemptLogs,
    execution_api::Call,
    facts::{Facts, OtherRun},
    finder::{Finder, Found},
    open::{OpenTasks, Place, Reply},
    overhear::{Begun, By, News, Places, Report},
    plugin::Plugin,
    roots::Supervisor,
    sight,
    socket::SocketPair,
    standing::{Proofs, Standing},
};
use crate::{
    admin::Readiness,
    telemetry::{
        logs::Throttle,
        metrics::{Metrics, TaskFact, TaskLookup},
    },
    workload_api::{Socket, SocketError},
};

/// Connections that wait for their turn. One that finds no place stays unattributed.
const MAX_WAITING: usize = 1024;

/// What was overheard and waits to be read. Half of it is for tasks that begin, without which nothing is known of them.
const MAX_REPORTS: usize = 1024;

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
    pub(crate) supervisor: Option<Supervisor>,
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
    questions: mpsc::Sender<Question>,
    reports: mpsc::Sender<Report>,
    places: Places,
    open: OpenTasks,
    metrics: Arc<Metrics>,
}

/// What the thread is sent.
#[derive(Debug)]
pub(super) struct Inbox {
    questions: mpsc::Receiver<Question>,
    reports: mpsc::Receiver<Report>,
}

/// One piece of it.
#[derive(Debug)]
pub(super) enum Message {
    Question(Question),
    Report(Report),
}

impl Inbox {
    /// What comes next, reports first: what begins a task is known before its connections are asked about. None when
    /// nobody can send any more. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            biased;
            Some(report) = self.reports.recv() => Some(Message::Report(report)),
            question = self.questions.recv() => question.map(Message::Question),
        }
    }
}

#[derive(Debug)]
pub(super) struct Question {
    pub(super) pair: SocketPair,
    pub(super) asked: Instant,
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
        let (questions, asked) = mpsc::channel(MAX_WAITING);
        let (reports, reported) = mpsc::channel(MAX_REPORTS);
        let inbox = Inbox {
            questions: asked,
            reports: reported,
        };
        let lookup = Self {
            questions,
            reports,
            places: Places::default(),
            open: OpenTasks::default(),
            metrics: Arc::clone(metrics),
        };
        let searching = Searching {
            source: match source {
                TaskSource::Processes(logs) => {
                    let finder = Finder::new(logs, SEARCH_TIME)?;
                    let watch = sight::Watch::begin(metrics, readiness);
                    Source::Processes(Box::new(finder), watch)
                }
                TaskSource::Given(task) => Source::Given(task),
                TaskSource::Plugin(path) => {
                    let (socket, listener) = Socket::bind(&path, PLUGIN_SOCKET_MODE)?;
                    let plugin = Plugin::new(listener, socket)?;
                    let counted = Arc::clone(metrics);
                    thread().spawn(move || {
                        if let Err(error) = plugin.run(inbox, counted) {
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
        let runtime = Builder::new_current_thread().build()?;
        thread().spawn(move || {
            sight::use_capabilities();
            searching.run(&runtime, inbox);
        })?;
        Ok(lookup)
    }

    /// Asks whose the connection is that has these ends. An answer that never comes means that it is not known.
    /// The connection is among the open ones of its task for as long as its place is kept.
    pub(crate) fn ask(&self, pair: SocketPair) -> (oneshot::Receiver<Finding>, Place) {
        let (answer, receiver, place) = self.open.question();
        let question = Question {
            pair,
            asked: Instant::now(),
            answer,
        };
        if let Err(TrySendError::Full(question) | TrySendError::Closed(question)) =
            self.questions.try_send(question)
        {
            self.metrics.task_lookup(TaskLookup::Busy, None);
            question.answer.send(Finding {
                standing: Standing::NotKnown,
                ..Err(Unknown::Busy).into()
            });
        }
        (receiver, place)
    }

    /// The tasks that have connections open.
    pub(crate) fn open(&self) -> &OpenTasks {
        &self.open
    }

    /// Tells what was overheard of a task instance.
    pub(super) fn report(&self, report: Report) {
        let begins = matches!(report.news, News::Begins(_));
        let has_place = begins || self.reports.capacity() > MAX_REPORTS / 2;
        if !has_place || self.reports.try_send(report).is_err() {
            self.count(TaskFact::Busy);
        }
    }

    /// Passes over a request of Airflow's client to a `service` that the configuration does not name as Airflow's.
    pub(crate) fn pass_over(&self, call: &Call, service: &str) {
        static OTHER: Throttle = Throttle::new();
        if !call.begins() {
            return;
        }
        self.count(TaskFact::OtherService);
        if let Some(suppressed) = OTHER.admit() {
            tracing::warn!(
                service,
                suppressed,
                "Airflow begins a task by a service that --execution-api-service does not name: what it says of tasks \
                 does not count, and none gets an identity; name the service if it is Airflow's API server"
            );
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
    Processes(Box<Finder>, sight::Watch),
    Given(Box<Attributed>),
}

impl Searching {
    fn run(mut self, runtime: &Runtime, mut inbox: Inbox) {
        runtime.block_on(async move {
            while let Some(message) = inbox.next().await {
                match message {
                    Message::Question(question) => self.answer(question),
                    Message::Report(report) => self.hear(report),
                }
            }
        });
    }

    fn hear(&mut self, report: Report) {
        let Report {
            ti_id,
            news,
            by,
            by_airflow,
            token,
            begun,
        } = report;
        let Source::Processes(finder, _) = &mut self.source else {
            return self.hear_of_the_only(&ti_id, news, begun);
        };
        let (supervisor, shown) = match by {
            By::Process(supervisor) => (supervisor, None),
            By::Connection(pair) => match finder.search(pair, Instant::now()) {
                Ok(found) => (found.supervisor, found.answer.ok()),
                Err(_) => (None, None),
            },
        };
        // A task's own code may ask a server of its own, and about any task.
        let Some(supervisor) = supervisor else {
            return self.metrics.task_fact(TaskFact::Unsupervised);
        };
        let (fact, said) = self.facts.learn(&ti_id, news);
        if let Some(fact) = fact {
            self.metrics.task_fact(fact);
        }
        if let (Some(_), Some(begun)) = (&said, begun) {
            let shown = match shown {
                Some(Owner::Task(found)) => Some(found.task),
                _ => begun.task,
            };
            if let Some(mut task) = shown {
                let completed = self.facts.complete(&mut task, Some(&ti_id), &[]);
                let _ = begun.tell.send(completed.is_ok().then_some(task));
            }
        }
        let is_vouched = by_airflow && supervisor.is_sure;
        let supervisor = supervisor.process;
        if let Some((run, Some(runner))) = said {
            if let Some(runner) = finder.child(supervisor, runner) {
                self.facts.runs_in(&ti_id, runner);
            }
            match finder.started(supervisor, runner, &run) {
                _ if !is_vouched => {}
                Some((runner, mut task)) => {
                    // Whose run it is, for the audit of its identity. The log is of the run that Airflow has just named.
                    let _ = self.facts.complete(&mut task, Some(&ti_id), &[]);
                    self.proofs.begins(supervisor, runner, &ti_id, task);
                }
                None => self.metrics.task_fact(TaskFact::Unproven),
            }
        }
        if let Some(token) = token.filter(|_| is_vouched) {
            self.proofs.shows(supervisor, &ti_id, token);
        }
    }

    /// The same where all connections are one task's.
    fn hear_of_the_only(&mut self, ti_id: &str, news: News, begun: Option<Box<Begun>>) {
        if let (Some(fact), _) = self.facts.learn(ti_id, news) {
            self.metrics.task_fact(fact);
        }
        if let (Source::Given(given), Some(begun)) = (&self.source, begun) {
            let mut task = given.task.clone();
            let ti_id = given.ti_id.as_deref();
            self.facts.complete_the_only(&mut task, ti_id);
            let _ = begun.tell.send(Some(task));
        }
    }

    fn answer(&mut self, question: Question) {
        // The connection may have ended meanwhile.
        if question.answer.is_closed() {
            return;
        }
        let (finding, took) = match &mut self.source {
            Source::Given(task) => {
                let mut found = (**task).clone();
                let ti_id = found.ti_id.as_deref();
                found.parent = self.facts.complete_the_only(&mut found.task, ti_id);
                (Finding::from(Ok(Owner::Task(found))), None)
            }
            Source::Processes(finder, watch) => {
                watch.look_again();
                let finding = match finder.search(question.pair, question.asked) {
                    Ok(found) => self.complete(found),
                    Err(unknown) => Finding {
                        standing: match unknown {
                            Unknown::NoOwner | Unknown::TimedOut => Standing::NotKnown,
                            _ => Standing::Unproven,
                        },
                        ..Err(unknown).into()
                    },
                };
                (finding, Some(question.asked.elapsed()))
            }
        };
        self.metrics.task_lookup(result(&finding.answer), took);
        if finding.answer == Err(Unknown::Denied) {
            sight::say_what_is_missing();
        }
        question.answer.send(finding);
    }

    /// Adds to what processes show what Airflow has said.
    fn complete(&self, found: Found) -> Finding {
        let mut answer = found.answer;
        let standing = match self.proofs.task(&found.lineage) {
            Some(vouched) => {
                // Whatever its processes show by now.
                answer = Ok(Owner::Task(Attributed {
                    task: vouched.task.clone(),
                    ti_id: Some(vouched.ti_id.clone()),
                    parent: None,
                }));
                Standing::Task(Arc::clone(vouched))
            }
            None if found.is_worker => Standing::Worker,
            None => Standing::Unproven,
        };
        if let Ok(Owner::Task(task)) = &mut answer {
            let ti_id = task.ti_id.as_deref();
            match self.facts.complete(&mut task.task, ti_id, &found.lineage) {
                Ok(parent) => task.parent = parent,
                Err(OtherRun) => answer = Err(Unknown::Contradicted),
            }
        }
        Finding {
            answer,
            standing,
            supervisor: found.supervisor,
        }
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
        Err(Unknown::Stray) => TaskLookup::Stray,
        Err(Unknown::Contradicted) => TaskLookup::Contradicted,
        Err(Unknown::TimedOut) => TaskLookup::TimedOut,
        Err(Unknown::Busy) => TaskLookup::Busy,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;
    use crate::airflow::ConnectionTask;

    fn report(news: News) -> Report {
        Report {
            ti_id: "one".to_owned(),
            news,
            by: By::Process(None),
            by_airflow: false,
            token: None,
            begun: None,
        }
    }

    fn lookup(questions: usize) -> (Lookup, Inbox) {
        let (questions, asked) = mpsc::channel(questions);
        let (reports, reported) = mpsc::channel(MAX_REPORTS);
        let lookup = Lookup {
            questions,
            reports,
            places: Places::default(),
            open: OpenTasks::default(),
            metrics: Arc::new(Metrics::new()),
        };
        let inbox = Inbox {
            questions: asked,
            reports: reported,
        };
        (lookup, inbox)
    }

    fn pair() -> SocketPair {
        let address = "127.0.0.1:1".parse().unwrap();
        SocketPair {
            local: address,
            remote: address,
        }
    }

    #[tokio::test(flavor = "local")]
    async fn whose_a_connection_is_that_announces_a_task_is_asked_with_it_where_it_is_not_known_yet()
     {
        let (lookup, mut inbox) = lookup(1);
        let task = ConnectionTask::ask(&lookup, pair());
        assert!(matches!(task.asked_by(), By::Connection(asked) if asked == pair()));
        let Some(Message::Question(question)) = inbox.next().await else {
            panic!("nobody has asked");
        };
        question.answer.send(Ok(Owner::NoTask).into());
        assert!(matches!(task.asked_by(), By::Process(None)));
    }

    #[tokio::test(flavor = "local")]
    async fn no_flood_of_questions_or_of_other_news_takes_the_place_of_a_task_that_begins() {
        let (lookup, mut inbox) = lookup(1);
        let (first, _place) = lookup.ask(pair());
        let (second, _other) = lookup.ask(pair());
        let refused = second.await.unwrap();
        assert_eq!(refused.answer, Err(Unknown::Busy));
        assert!(matches!(refused.standing, Standing::NotKnown));
        for _ in 0..2 * MAX_REPORTS {
            lookup.report(report(News::IsThere));
        }
        lookup.report(report(News::begins_of_nothing()));
        let (mut others, mut begun) = (0, 0);
        // Before the question, which was there first.
        while let Some(Message::Report(report)) = inbox.next().await {
            match report.news {
                News::Begins(_) => begun += 1,
                _ => others += 1,
            }
        }
        assert_eq!((others, begun), (MAX_REPORTS / 2, 1));
        drop((first, lookup));
    }

    #[tokio::test(flavor = "local")]
    async fn what_could_not_be_found_out_is_asked_again_for_later_requests_and_not_for_ever() {
        for unlucky in [2, 100] {
            let (lookup, mut inbox) = lookup(8);
            let asked = Rc::new(Cell::new(0));
            let count = Rc::clone(&asked);
            tokio::task::spawn_local(async move {
                while let Some(Message::Question(question)) = inbox.next().await {
                    count.set(count.get() + 1);
                    let (answer, standing) = match count.get() <= unlucky {
                        true => (Err(Unknown::TimedOut), Standing::NotKnown),
                        false => (Ok(Owner::NoTask), Standing::Worker),
                    };
                    question.answer.send(Finding {
                        standing,
                        ..answer.into()
                    });
                }
            });
            let connection = ConnectionTask::ask(&lookup, pair());
            let mut found = Vec::new();
            for _ in 0..6 {
                let standing = connection.standing(Duration::from_secs(60)).await;
                found.push(matches!(standing, Standing::Worker));
            }
            match unlucky {
                2 => assert_eq!(found, [false, false, true, true, true, true]),
                _ => assert_eq!(found, [false; 6]),
            }
            assert_eq!(asked.get(), if unlucky == 2 { 3 } else { 4 });
        }
    }
}
