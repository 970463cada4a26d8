//! What becomes known of the task behind one connection, while the connection already goes on.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    time::Duration,
};

use futures_util::{FutureExt, future};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Finding, Lookup, Owner, SocketPair, Standing,
    caller::Caller,
    lookup::{Answer, result},
    open::Place,
    overhear::By,
    roots::Supervisor,
};
use crate::telemetry::{TaskContext, metrics::TaskLookup, trace::TraceParent};

/// How often it is asked again whose a connection is that must be known.
const MAX_QUESTIONS: u32 = 4;

/// In place of a reason, where the search goes on.
const UNANSWERED: &str = "unanswered";

/// The task behind a connection, as far as it is known. Clones share what becomes known.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionTask(Option<Rc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// Several requests of one connection may wait for it.
    pending: RefCell<Option<Pending>>,
    known: OnceCell<Known>,
    /// What will be said of a task that begins by a request of this connection.
    told: RefCell<Option<Told>>,
    /// Its task as it was said then; none where Airflow has named another run.
    begun: OnceCell<Option<TaskContext>>,
    /// As whom the connection goes, once that was decided.
    caller: RefCell<Option<Caller>>,
    place: RefCell<Option<Place>>,
    /// Whom to ask again, and how often that has been done.
    asked: Option<(Lookup, SocketPair, Cell<u32>)>,
}

type Pending = future::Shared<oneshot::Receiver<Finding>>;

type Told = future::Shared<oneshot::Receiver<Option<TaskContext>>>;

#[derive(Debug, Default)]
struct Known {
    task: Option<TaskContext>,
    /// Why there is none, unless that is sure.
    unknown: Option<&'static str>,
    parent: Option<TraceParent>,
    standing: Standing,
    supervisor: Option<Supervisor>,
}

impl ConnectionTask {
    /// A task that is being looked for.
    #[cfg(test)]
    pub(crate) fn pending((finding, place): (oneshot::Receiver<Finding>, Place)) -> Self {
        Self::asked(finding, place, None)
    }

    /// Looks for the task behind the connection with these ends.
    pub(crate) fn ask(lookup: &Lookup, socket: SocketPair) -> Self {
        let (finding, place) = lookup.ask(socket);
        let again = (lookup.clone(), socket, Cell::new(1));
        Self::asked(finding, place, Some(again))
    }

    fn asked(
        finding: oneshot::Receiver<Finding>,
        place: Place,
        asked: Option<(Lookup, SocketPair, Cell<u32>)>,
    ) -> Self {
        Self(Some(Rc::new(Shared {
            pending: RefCell::new(Some(finding.shared())),
            known: OnceCell::new(),
            told: RefCell::default(),
            begun: OnceCell::new(),
            caller: RefCell::default(),
            place: RefCell::new(Some(place)),
            asked,
        })))
    }

    /// A task that a believed peer has named, or none.
    pub(crate) fn known(task: Option<TaskContext>) -> Self {
        Self(task.map(|task| {
            Rc::new(Shared {
                pending: RefCell::new(None),
                known: OnceCell::from(Known {
                    task: Some(task),
                    ..Known::default()
                }),
                told: RefCell::default(),
                begun: OnceCell::new(),
                caller: RefCell::default(),
                place: RefCell::default(),
                asked: None,
            })
        }))
    }

    /// The task, if it is known by now.
    pub(crate) fn now(&self) -> Option<&TaskContext> {
        let shared = self.0.as_ref()?;
        match shared.begun() {
            Some(task) => task.as_ref(),
            None => self.found()?.task.as_ref(),
        }
    }

    /// Why it is not known which task the connection belongs to; none where it is, where it surely is no task's, and where
    /// nobody looks for that.
    pub(crate) fn unknown(&self) -> Option<&'static str> {
        let shared = self.0.as_ref()?;
        if self.now().is_some() {
            return None;
        }
        if shared.begun().is_some() {
            return Some(TaskLookup::Contradicted.as_str());
        }
        match self.found() {
            Some(known) => known.unknown,
            None => shared.last_reason(),
        }
    }

    /// A task begins by a request of the connection, of which Airflow is saying more than its processes show. What is told
    /// of it is the task of the connection from then on; none where Airflow names another run.
    pub(super) fn begins(&self) -> Option<oneshot::Sender<Option<TaskContext>>> {
        let shared = self.0.as_ref()?;
        let (tell, told) = oneshot::channel();
        *shared.told.borrow_mut() = Some(told.shared());
        Some(tell)
    }

    /// Whether more is about to become known, since a task begins by it.
    pub(crate) fn is_being_told(&self) -> bool {
        let shared = self.0.as_ref();
        shared.is_some_and(|it| it.begun().is_none() && it.told.borrow().is_some())
    }

    /// The span of Airflow's trace that the task belongs to, as far as it is known by now.
    pub(crate) fn trace_parent(&self) -> Option<TraceParent> {
        self.found()?.parent
    }

    /// The process that has the connection, if that may be the supervisor of a task; or the connection, where that is not
    /// known yet.
    pub(super) fn asked_by(&self) -> By {
        let known = self.found().map(|known| known.supervisor);
        let asked = self.0.as_ref().and_then(|shared| shared.asked.as_ref());
        match (known, asked) {
            (Some(supervisor), _) => By::Process(supervisor),
            (None, Some((_, socket, _))) => By::Connection(*socket),
            (None, None) => By::Process(None),
        }
    }

    fn found(&self) -> Option<&Known> {
        let shared = self.0.as_ref()?;
        if shared.known.get().is_none() {
            let pending = shared.pending.borrow().clone()?;
            shared.set(pending.now_or_never()?.ok());
        }
        shared.known.get()
    }

    /// The task, waiting for it no longer than `limit`.
    pub(crate) async fn within(&self, limit: Duration) -> Option<&TaskContext> {
        let shared = self.0.as_ref()?;
        let until = Instant::now() + limit;
        self.found_within(limit).await;
        let told = shared.told.borrow().clone();
        if let Some(told) = told {
            let _ = tokio::time::timeout_at(until, told).await;
        }
        self.now()
    }

    /// As whom the connection may go, waiting for it no longer than `limit`. Where it could not be found out the last time,
    /// it is asked again.
    pub(super) async fn standing(&self, limit: Duration) -> Standing {
        let Some(shared) = &self.0 else {
            return Standing::Unproven;
        };
        shared.ask_again();
        let found = self.found_within(limit).await;
        found.map_or(Standing::NotKnown, |known| known.standing.clone())
    }

    /// As whom the connection goes, if that was decided.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.0.as_ref()?.caller.borrow().clone()
    }

    /// Notes as whom the connection goes, unless whose it is may become known yet.
    pub(super) fn set_caller(&self, caller: Caller) {
        if let Some(shared) = &self.0
            && shared.known.get().is_some()
        {
            *shared.caller.borrow_mut() = Some(caller);
        }
    }

    async fn found_within(&self, limit: Duration) -> Option<&Known> {
        let shared = self.0.as_ref()?;
        if shared.known.get().is_none() {
            let pending = shared.pending.borrow().clone()?;
            // What comes later is still for the record.
            if let Ok(finding) = tokio::time::timeout(limit, pending).await {
                shared.set(finding.ok());
            }
        }
        self.found()
    }
}

impl Shared {
    /// What was said of the task that began by the connection, if one did and it was said.
    fn begun(&self) -> Option<&Option<TaskContext>> {
        let told = self.told.borrow().clone();
        if let Some(answer) = told.and_then(FutureExt::now_or_never) {
            self.told.take();
            // Where nothing was to be said, what its processes show stays.
            if let Ok(task) = answer {
                if let (Some(task), Some(place)) = (&task, &*self.place.borrow()) {
                    place.enter(task.clone());
                }
                let _ = self.begun.set(task);
            }
        }
        self.begun.get()
    }

    /// Asks again, if the answer to the last question was that it could not be found out.
    fn ask_again(&self) {
        let Some((lookup, socket, times)) = &self.asked else {
            return;
        };
        let last = self.pending.borrow().clone();
        let answered = last.and_then(|pending| pending.now_or_never()?.ok());
        if self.known.get().is_none() && answered.is_some_and(|it| self.may_ask_again(&it)) {
            times.set(times.get() + 1);
            let (finding, place) = lookup.ask(*socket);
            *self.pending.borrow_mut() = Some(finding.shared());
            *self.place.borrow_mut() = Some(place);
        }
    }

    /// Whether another question may bring a better answer.
    fn may_ask_again(&self, finding: &Finding) -> bool {
        let asked = self.asked.as_ref();
        matches!(finding.standing, Standing::NotKnown)
            && asked.is_some_and(|(.., times)| times.get() < MAX_QUESTIONS)
    }

    fn set(&self, finding: Option<Finding>) {
        if finding.as_ref().is_some_and(|it| self.may_ask_again(it)) {
            return;
        }
        let known = finding.map(|finding| {
            let unknown = reason(&finding.answer);
            let (task, parent) = match finding.answer {
                Ok(Owner::Task(found)) => (Some(found.task), found.parent),
                _ => (None, None),
            };
            Known {
                task,
                unknown,
                parent,
                standing: finding.standing,
                supervisor: finding.supervisor,
            }
        });
        let _ = self.known.set(known.unwrap_or(Known {
            unknown: Some(UNANSWERED),
            ..Known::default()
        }));
        self.pending.take();
    }

    /// Why it is not known by now.
    fn last_reason(&self) -> Option<&'static str> {
        let last = self.pending.borrow().clone();
        match last.and_then(FutureExt::now_or_never) {
            Some(Ok(finding)) => reason(&finding.answer),
            _ => Some(UNANSWERED),
        }
    }
}

/// Why an answer names no task; none where it is sure that there is none.
fn reason(answer: &Answer) -> Option<&'static str> {
    match result(answer) {
        TaskLookup::Task | TaskLookup::NoTask => None,
        unknown => Some(unknown.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::airflow::{Attributed, Unknown};

    fn task() -> TaskContext {
        TaskContext {
            dag_id: "payroll".into(),
            task_id: "load".into(),
            run_id: "manual__1".into(),
            ..TaskContext::default()
        }
    }

    fn place() -> Place {
        crate::airflow::OpenTasks::default().question().2
    }

    fn found() -> Finding {
        let found = Owner::Task(Attributed {
            task: task(),
            ti_id: None,
            parent: None,
        });
        Ok(found).into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_task_no_longer_than_the_limit_and_the_record_still_gets_it() {
        let (answer, receiver) = oneshot::channel();
        let connection = ConnectionTask::pending((receiver, place()));
        assert_eq!(connection.within(Duration::from_millis(20)).await, None);
        assert_eq!(connection.now(), None);
        answer.send(found()).unwrap();
        assert_eq!(connection.clone().now(), Some(&task()));
        assert_eq!(connection.now(), Some(&task()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_airflow_says_of_a_task_that_begins_by_a_connection_is_its_task_from_then_on() {
        let of_ada = TaskContext {
            triggered_by: Some("ada".into()),
            ..task()
        };
        for (said, expected) in [
            (Some(Some(of_ada.clone())), Some(&of_ada)),
            // Another run than its processes show.
            (Some(None), None),
            // It is not the supervisor of a task.
            (None, Some(&task())),
        ] {
            let (answer, receiver) = oneshot::channel();
            let connection = ConnectionTask::pending((receiver, place()));
            answer.send(found()).unwrap();
            let tell = connection.begins().unwrap();
            assert!(connection.is_being_told());
            // No longer than for anything else, and what is known already stays until then.
            let waited = connection.within(Duration::from_millis(20)).await;
            assert_eq!(waited, Some(&task()));
            match said {
                Some(said) => tell.send(said).unwrap(),
                None => drop(tell),
            }
            assert_eq!(connection.clone().now(), expected);
            assert!(!connection.is_being_told());
            let waited = connection.within(Duration::from_secs(9)).await;
            assert_eq!(waited, expected);
        }
    }

    #[tokio::test]
    async fn what_is_not_known_is_no_task() {
        for answer in [
            Err(Unknown::Busy),
            Ok(Owner::NoTask),
            Ok(Owner::Instance("x".into())),
        ] {
            let (sender, receiver) = oneshot::channel();
            sender.send(answer.into()).unwrap();
            let connection = ConnectionTask::pending((receiver, place()));
            assert_eq!(connection.within(Duration::from_secs(1)).await, None);
        }
        let (sender, receiver) = oneshot::channel::<Finding>();
        drop(sender);
        assert_eq!(ConnectionTask::pending((receiver, place())).now(), None);
        assert_eq!(ConnectionTask::default().now(), None);
        assert_eq!(ConnectionTask::known(Some(task())).now(), Some(&task()));
    }

    #[tokio::test]
    async fn why_a_task_is_not_known_is_told_from_that_there_is_none() {
        for (answer, unknown) in [
            (Ok(Owner::NoTask), None),
            (Ok(Owner::Instance("x".into())), Some("instance")),
            (Err(Unknown::TimedOut), Some("timed-out")),
            (Err(Unknown::Stray), Some("stray")),
        ] {
            let (sender, receiver) = oneshot::channel();
            let connection = ConnectionTask::pending((receiver, place()));
            assert_eq!(connection.unknown(), Some("unanswered"));
            sender.send(answer.into()).unwrap();
            assert_eq!(connection.unknown(), unknown);
        }
        let (sender, receiver) = oneshot::channel();
        let connection = ConnectionTask::pending((receiver, place()));
        sender.send(found()).unwrap();
        assert_eq!(connection.unknown(), None);
        let tell = connection.begins().unwrap();
        tell.send(None).unwrap();
        assert_eq!(connection.unknown(), Some("contradicted"));
        // Where nobody looks, and where a peer has said that there is none.
        assert_eq!(ConnectionTask::default().unknown(), None);
        assert_eq!(ConnectionTask::known(None).unknown(), None);
        let (sender, receiver) = oneshot::channel::<Finding>();
        drop(sender);
        let lost = ConnectionTask::pending((receiver, place()));
        assert_eq!(lost.unknown(), Some("unanswered"));
    }
}
