//! Tasks that say which they are, where the proxy may not look into processes: Airflow's plugin `sidewind-airflow` runs
//! in each task's process, says at a Unix socket which task it is, and is then asked for each new connection of that user
//! whether one of the task's processes has its socket.
//!
//! It needs no privilege and no common PID namespace: the kernel says to everybody which socket belongs to a connection
//! and to which user, and to the proxy who is at the other end of the Unix socket. What a task says of itself, its own code
//! could have made up: telemetry, and no evidence. It is asked about its own user's sockets alone.

use std::{
    cell::RefCell, collections::HashMap, io, os::unix::net, rc::Rc, sync::Arc, time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::{LocalSet, spawn_local},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Attributed, Owner, Unknown,
    facts::{Facts, OtherRun},
    lookup::{Answer, Inbox, Message, Question, result},
    socket::{Seen, SocketTable},
};
use crate::{
    telemetry::{
        TaskContext,
        metrics::{Metrics, TaskFact},
    },
    workload_api::Socket,
};

/// Tasks that may be connected.
const MAX_TELLERS: usize = 256;

/// Longest line that one says.
const MAX_LINE_BYTES: usize = 4096;

/// Longest name in it.
const MAX_NAME_BYTES: usize = 512;

/// How long one may take to say which task it is.
const HELLO_TIME: Duration = Duration::from_secs(5);

/// How long an answer is waited for: a task may be busy. The connection's request waits no longer than it is told to, and
/// what comes later is still for its record.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// How long a second one that says the same is waited for.
const DOUBT_TIME: Duration = Duration::from_millis(5);

/// Questions that one may owe an answer.
const MAX_OWED: usize = 64;

/// Connections that are asked about at once.
const MAX_QUESTIONS: usize = 256;

/// The socket at which tasks say which they are.
#[derive(Debug)]
pub(super) struct Plugin {
    listener: net::UnixListener,
    sockets: SocketTable,
    /// Removed in the end.
    _path: Socket,
}

impl Plugin {
    pub(super) fn new(listener: net::UnixListener, path: Socket) -> io::Result<Self> {
        Ok(Self {
            listener,
            sockets: SocketTable::open()?,
            _path: path,
        })
    }

    /// Answers questions until nobody can ask any more.
    pub(super) fn run(self, inbox: Inbox, metrics: Arc<Metrics>) -> io::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tasks = Rc::new(Tasks {
            tellers: RefCell::default(),
            facts: RefCell::default(),
            questions: Rc::default(),
            connections: Rc::default(),
            metrics,
        });
        LocalSet::new().block_on(&runtime, async {
            // Inside the runtime, which it belongs to.
            let listener = UnixListener::from_std(self.listener)?;
            tasks.serve(&listener, self.sockets, inbox).await;
            Ok(())
        })
    }
}

/// What the thread knows.
#[derive(Debug)]
struct Tasks {
    tellers: RefCell<Vec<Teller>>,
    facts: RefCell<Facts>,
    /// Counted by their clones.
    questions: Rc<()>,
    connections: Rc<()>,
    metrics: Arc<Metrics>,
}

/// A process that has said which task it works for.
#[derive(Clone, Debug)]
struct Teller {
    /// As the kernel says; 0 for one of another PID namespace.
    pid: i32,
    uid: u32,
    task: Rc<Attributed>,
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
struct Ask {
    inode: u32,
    holds: oneshot::Sender<bool>,
}

impl Tasks {
    async fn serve(
        self: Rc<Self>,
        listener: &UnixListener,
        mut sockets: SocketTable,
        mut inbox: Inbox,
    ) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.accept(stream),
                    // Out of files, mostly: not at once again.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                },
                message = inbox.next() => match message {
                    None => return,
                    Some(Message::Report(report)) => {
                        let learned = self.facts.borrow_mut().learn(&report.ti_id, report.news);
                        if let (Some(fact), _) = learned {
                            self.metrics.task_fact(fact);
                        }
                    }
                    Some(Message::Question(question)) => self.ask(question, &mut sockets),
                },
            }
        }
    }

    fn accept(self: &Rc<Self>, stream: UnixStream) {
        if Rc::strong_count(&self.connections) > MAX_TELLERS {
            return self.metrics.task_fact(TaskFact::Busy);
        }
        let (tasks, place) = (Rc::clone(self), Rc::clone(&self.connections));
        spawn_local(async move {
            if let Err(error) = tasks.listen(stream).await {
                tracing::debug!(%error, "a task's connection to the task socket ended");
            }
            drop(place);
        });
    }

    /// Serves one task's connection to its end.
    async fn listen(&self, stream: UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        let mut lines = Lines::new(stream);
        let hello = timeout(HELLO_TIME, lines.next()).await;
        let task = match hello {
            Ok(Ok(line)) => Hello::read(&line),
            _ => None,
        };
        let Some(task) = task else {
            self.metrics.task_fact(TaskFact::Unreadable);
            return Err(io::ErrorKind::InvalidData.into());
        };
        self.metrics.task_fact(TaskFact::Learned);
        let (asks, mut asked) = mpsc::channel(MAX_OWED);
        let teller = Teller {
            pid: peer.pid().unwrap_or_default(),
            uid: peer.uid(),
            task: Rc::new(task),
            asks,
        };
        // A process works for one task at a time. Whose place is taken ends, since nobody can ask it any more.
        self.tellers
            .borrow_mut()
            .retain(|other| other.pid == 0 || other.pid != teller.pid);
        let own = teller.asks.clone().downgrade();
        self.tellers.borrow_mut().push(teller);
        // From now on its connections are known, so that its code may begin.
        let served = match lines.say(&Welcome {}) {
            Ok(()) => serve_teller(&mut lines, &mut asked).await,
            Err(error) => Err(error),
        };
        if let Some(own) = own.upgrade() {
            self.tellers
                .borrow_mut()
                .retain(|other| !other.asks.same_channel(&own));
        }
        served
    }

    fn ask(self: &Rc<Self>, question: Question, sockets: &mut SocketTable) {
        if question.answer.is_closed() {
            return;
        }
        let began = Instant::now();
        let seen = sockets.look(question.pair);
        let Ok(Some(seen)) = seen else {
            return self.answer(question, Err(Unknown::SocketGone), began);
        };
        if Rc::strong_count(&self.questions) > MAX_QUESTIONS {
            return self.answer(question, Err(Unknown::Busy), began);
        }
        let (tasks, place) = (Rc::clone(self), Rc::clone(&self.questions));
        spawn_local(async move {
            let answer = tasks.find(seen).await;
            tasks.answer(question, answer, began);
            drop(place);
        });
    }

    fn answer(&self, question: Question, answer: Answer, began: Instant) {
        let took = (answer != Err(Unknown::Busy)).then(|| began.elapsed());
        self.metrics.task_lookup(result(&answer), took);
        question.answer.send(answer.into());
    }

    /// Asks every task of the socket's user.
    async fn find(&self, seen: Seen) -> Answer {
        let tellers: Vec<Teller> = self
            .tellers
            .borrow()
            .iter()
            .filter(|teller| teller.uid == seen.uid)
            .cloned()
            .collect();
        let mut answers: FuturesUnordered<_> = tellers
            .into_iter()
            .filter_map(|teller| {
                let (holds, answer) = oneshot::channel();
                let inode = seen.inode;
                teller.asks.try_send(Ask { inode, holds }).ok()?;
                Some(async move { answer.await.is_ok_and(|holds| holds).then_some(teller.task) })
            })
            .collect();
        let mut holder: Option<Rc<Attributed>> = None;
        let mut until = Instant::now() + ANSWER_TIME;
        loop {
            match timeout_at(until, answers.next()).await {
                Ok(Some(Some(task))) => match &holder {
                    None => {
                        until = until.min(Instant::now() + DOUBT_TIME);
                        holder = Some(task);
                    }
                    // A process that a task has forked says the same as the one above it.
                    Some(known) if *known == task => {}
                    Some(_) => return Err(Unknown::Ambiguous),
                },
                Ok(Some(None)) => {}
                Ok(None) => break,
                Err(_) if holder.is_none() => return Err(Unknown::TimedOut),
                Err(_) => break,
            }
        }
        let Some(holder) = holder else {
            return Err(Unknown::NoOwner);
        };
        let mut found = Attributed::clone(&holder);
        let ti_id = found.ti_id.as_deref();
        let facts = self.facts.borrow();
        match facts.complete(&mut found.task, ti_id, &[]) {
            Ok(parent) => found.parent = parent,
            Err(OtherRun) => return Err(Unknown::Contradicted),
        }
        Ok(Owner::Task(found))
    }
}

/// Passes questions on and takes answers, until either side is gone.
async fn serve_teller(lines: &mut Lines, asked: &mut mpsc::Receiver<Ask>) -> io::Result<()> {
    let mut owed: HashMap<u32, oneshot::Sender<bool>> = HashMap::new();
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(Ask { inode, holds }) = ask else { return Ok(()) };
                owed.retain(|_, holds| !holds.is_closed());
                if owed.len() >= MAX_OWED {
                    continue;
                }
                lines.say(&QuestionLine { socket: inode })?;
                owed.insert(inode, holds);
            }
            line = lines.next() => {
                let answer: AnswerLine = serde_json::from_slice(&line?)?;
                if let Some(holds) = owed.remove(&answer.socket) {
                    let _ = holds.send(answer.held);
                }
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Welcome {}

#[derive(Debug, Serialize)]
struct QuestionLine {
    socket: u32,
}

#[derive(Debug, Deserialize)]
struct AnswerLine {
    socket: u32,
    held: bool,
}

#[derive(Debug, Deserialize)]
struct Hello {
    dag_id: String,
    task_id: String,
    run_id: String,
    #[serde(default)]
    map_index: Option<i32>,
    #[serde(default)]
    try_number: Option<u32>,
    #[serde(default)]
    ti_id: Option<String>,
}

impl Hello {
    /// The task that a process says it works for; none where what it says is not of that form.
    fn read(line: &[u8]) -> Option<Attributed> {
        let hello: Self = serde_json::from_slice(line).ok()?;
        let mut names = [&hello.dag_id, &hello.task_id, &hello.run_id]
            .into_iter()
            .chain(&hello.ti_id);
        let is_name = |name: &String| {
            (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control)
        };
        let are_names = names.all(is_name);
        drop(names);
        if !are_names {
            return None;
        }
        Some(Attributed {
            task: TaskContext {
                dag_id: hello.dag_id,
                task_id: hello.task_id,
                run_id: hello.run_id,
                map_index: hello.map_index.filter(|index| *index >= 0),
                try_number: hello.try_number,
                ..TaskContext::default()
            },
            ti_id: hello.ti_id,
            parent: None,
        })
    }
}

/// Lines of bounded length.
#[derive(Debug)]
struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// The next line. May be dropped and called again; the end is an error.
    async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.buffer.len() >= MAX_LINE_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.stream.readable().await?;
            let mut chunk = [0; 1024];
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self
                    .buffer
                    .extend_from_slice(chunk.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Says a line. One who does not read is not waited for.
    fn say(&self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        match self.stream.try_write(&bytes)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that says it holds every socket.
    fn claims(hello: &str) -> Teller {
        let (asks, mut asked) = mpsc::channel::<Ask>(MAX_OWED);
        spawn_local(async move {
            while let Some(ask) = asked.recv().await {
                let _ = ask.holds.send(true);
            }
        });
        Teller {
            pid: 0,
            uid: 1000,
            task: Rc::new(Hello::read(hello.as_bytes()).unwrap()),
            asks,
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn processes_that_name_the_same_task_agree_and_others_do_not() {
        let hello = |try_number| {
            format!(r#"{{"dag_id":"a","task_id":"b","run_id":"c","try_number":{try_number}}}"#)
        };
        for (said, is_known) in [
            ([1, 1, 1], true),
            ([1, 1, 2], false),
            // Of the same task too, and of another try.
            ([2, 1, 1], false),
        ] {
            let tasks = Tasks {
                tellers: RefCell::new(said.map(|it| claims(&hello(it))).into()),
                facts: RefCell::default(),
                questions: Rc::default(),
                connections: Rc::default(),
                metrics: Arc::new(Metrics::new()),
            };
            let seen = Seen {
                inode: 7,
                uid: 1000,
            };
            match tasks.find(seen).await {
                Ok(Owner::Task(found)) => assert!(is_known && found.task.dag_id == "a"),
                answer => assert!(!is_known && answer == Err(Unknown::Ambiguous), "{answer:?}"),
            }
        }
    }

    #[test]
    fn a_task_that_says_which_it_is_is_believed_for_telemetry_alone_and_only_in_that_form() {
        let hello = br#"{"dag_id":"a","task_id":"b","run_id":"c","map_index":-1,"try_number":2,"ti_id":null,"more":1}"#;
        let found = Hello::read(hello).unwrap();
        assert_eq!(
            (found.task.map_index, found.task.try_number),
            (None, Some(2))
        );
        let long = format!(
            r#"{{"dag_id":"{}","task_id":"b","run_id":"c"}}"#,
            "a".repeat(513)
        );
        for bad in [
            "",
            "[]",
            r#"{"dag_id":"a","task_id":"b"}"#,
            r#"{"dag_id":"","task_id":"b","run_id":"c"}"#,
            r#"{"dag_id":"a\nb","task_id":"b","run_id":"c"}"#,
            r#"{"dag_id":7,"task_id":"b","run_id":"c"}"#,
            r#"{"dag_id":"a","task_id":"b","run_id":"c","try_number":-1}"#,
            &long,
        ] {
            assert!(Hello::read(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_an_error_and_not_kept() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(near);
        far.try_write(&[b'x'; MAX_LINE_BYTES]).unwrap();
        assert!(lines.next().await.is_err());

        let (near, far) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(near);
        far.try_write(b"one\ntwo\n").unwrap();
        assert_eq!(lines.next().await.unwrap(), b"one");
        assert_eq!(lines.next().await.unwrap(), b"two");
        drop(far);
        assert!(lines.next().await.is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_too_odd_to_be_read(line in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Hello::read(&line);
        }
    }
}
