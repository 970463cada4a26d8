//! As whom the connections of the workload go to peers, where its registration lets its tasks have identities: as the
//! task that has a connection, as far as that is sure ([`Standing`]), else as the workload.
//!
//! A task for which there is no identity gets no connection. As the workload it would be somebody else, for whom other
//! rules hold; and a task that is banned would only have to be called by its worker's name.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sidewind_api::v1;
use sidewind_identity::SpiffeId;
use tokio::time::Instant;

use super::{ConnectionTask, Standing, Vouched};
use crate::{
    control::{MeshIdentity, TaskEvidence, TaskIdentities, TaskIdentity, TaskTerms, is_refusal},
    errors::{ErrorCode, ProxyError},
    telemetry::{Telemetry, logs::Throttle, metrics::TaskCaller as Outcome},
};

/// How long a request waits until it is known whose it is, and for its task's identity: below the time after which clients give up.
const WAIT: Duration = Duration::from_secs(3);

/// When a client may try again whose task has no identity just now.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The identities of tasks that the connections of one worker thread go by.
#[derive(Debug)]
pub(crate) struct Callers {
    tasks: TaskIdentities,
    /// Whether a connection goes nowhere of which it is not sure whose it is.
    refuse_unproven: bool,
    /// Those in use, by DAG and task.
    in_use: RefCell<HashMap<Name, Weak<TaskCaller>>>,
    telemetry: Telemetry,
}

/// A task, by its names in Airflow.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Name {
    dag_id: Box<str>,
    task_id: Box<str>,
}

/// As whom a connection goes.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    Workload,
    Task(Rc<TaskCaller>),
}

/// The identity of a task, which is renewed for as long as a connection goes by it.
#[derive(Debug)]
pub(super) struct TaskCaller(TaskIdentity);

impl TaskCaller {
    /// The identity with its present certificate; none once that has ended, or the task may have none any more.
    fn usable(&self) -> Option<Arc<MeshIdentity>> {
        let present = self.0.present();
        (!self.0.is_over() && present.not_after > SystemTime::now()).then_some(present)
    }
}

impl Callers {
    pub(crate) fn new(tasks: TaskIdentities, refuse_unproven: bool, telemetry: Telemetry) -> Self {
        Self {
            tasks,
            refuse_unproven,
            in_use: RefCell::default(),
            telemetry,
        }
    }

    /// As whom a connection goes whose task is `task`, in a workload that is `own`.
    ///
    /// # Errors
    /// Where it goes as nobody: there is no identity of its task, or it is not sure whose it is and that is not to be.
    pub(crate) async fn of(
        &self,
        task: &ConnectionTask,
        own: Arc<MeshIdentity>,
        terms: TaskTerms,
    ) -> Result<Arc<MeshIdentity>, ProxyError> {
        match task.caller() {
            Some(Caller::Workload) => return Ok(own),
            Some(Caller::Task(caller)) => {
                if let Some(identity) = caller.usable() {
                    return Ok(identity);
                }
            }
            None => {}
        }
        let until = Instant::now() + WAIT;
        let (outcome, result) = match task.standing(WAIT).await {
            Standing::Task(vouched) => match self.get(&vouched, terms, until).await {
                Ok((caller, identity)) => {
                    task.set_caller(Caller::Task(caller));
                    (Outcome::Task, Ok(identity))
                }
                Err(error) if error.code() == ErrorCode::TaskIdentityRefused => {
                    (Outcome::Denied, Err(error))
                }
                Err(error) => (Outcome::Unavailable, Err(error)),
            },
            Standing::Unproven if self.refuse_unproven => (Outcome::Refused, Err(unproven())),
            Standing::NotKnown if self.refuse_unproven => (Outcome::Unavailable, Err(not_known())),
            standing => {
                task.set_caller(Caller::Workload);
                match standing {
                    Standing::Worker => (Outcome::Worker, Ok(own)),
                    _ => (Outcome::Unproven, Ok(own)),
                }
            }
        };
        self.telemetry.metrics().task_caller(outcome);
        if let Err(error) = &result {
            say(error);
        }
        result
    }

    /// The present certificate of a task's identity that connections go by.
    pub(crate) fn present(&self, id: &SpiffeId) -> Option<Arc<MeshIdentity>> {
        let in_use = self.in_use.borrow();
        let mut present = in_use
            .values()
            .filter_map(|caller| caller.upgrade()?.usable());
        present.find(|identity| identity.id == *id)
    }

    async fn get(
        &self,
        vouched: &Vouched,
        terms: TaskTerms,
        until: Instant,
    ) -> Result<(Rc<TaskCaller>, Arc<MeshIdentity>), ProxyError> {
        let name = Name {
            dag_id: vouched.task.dag_id.as_str().into(),
            task_id: vouched.task.task_id.as_str().into(),
        };
        let known = self.in_use.borrow().get(&name).and_then(Weak::upgrade);
        // With a token each connection brings the one of its own instance, so that the newest is there for renewal.
        if !terms.needs_token
            && let Some(caller) = known
            && let Some(identity) = caller.usable()
        {
            return Ok((caller, identity));
        }
        let task = &vouched.task;
        let evidence = TaskEvidence {
            ti_id: vouched.ti_id.clone(),
            token: vouched.token.clone(),
            said: v1::TaskInstance {
                run_id: task.run_id.clone(),
                map_index: task.map_index,
                try_number: task.try_number.unwrap_or_default(),
                triggered_by: task.triggered_by.clone().unwrap_or_default(),
            },
        };
        let asking = (self.tasks).task_identity(&task.dag_id, &task.task_id, Some(evidence));
        let answer = tokio::time::timeout_at(until, asking).await;
        let subject = format!("The Airflow task {} of {}", task.task_id, task.dag_id);
        let unavailable = |cause: String| {
            let message = format_args!("{subject} has no certificate just now.");
            ProxyError::new(ErrorCode::TaskIdentityUnavailable, message)
                .with_source(cause)
                .with_retry_after(RETRY_AFTER)
        };
        let identity = match answer {
            Ok(Ok(identity)) => identity,
            Ok(Err(error)) if is_refusal(&error) => {
                let message = format_args!("{subject} is given no identity by the control plane.");
                return Err(ProxyError::new(ErrorCode::TaskIdentityRefused, message)
                    .with_source(error.to_string()));
            }
            Ok(Err(error)) => return Err(unavailable(error.to_string())),
            Err(_) => {
                let cause = "the control plane has not answered in time";
                return Err(unavailable(cause.to_owned()));
            }
        };
        let caller = Rc::new(TaskCaller(identity));
        let Some(identity) = caller.usable() else {
            return Err(unavailable("its certificate has ended".to_owned()));
        };
        let mut in_use = self.in_use.borrow_mut();
        in_use.retain(|_, caller| caller.strong_count() > 0);
        in_use.insert(name, Rc::downgrade(&caller));
        Ok((caller, identity))
    }
}

fn unproven() -> ProxyError {
    let message = "It is not sure which Airflow task the connection belongs to, if any, and this proxy is set to let no \
                   such connection into the mesh.";
    ProxyError::new(ErrorCode::TaskIdentityRefused, message)
}

fn not_known() -> ProxyError {
    let message = "It was not to be found out in time which Airflow task the connection belongs to, if any, and this proxy \
                   is set to let no such connection into the mesh.";
    ProxyError::new(ErrorCode::TaskIdentityUnavailable, message).with_retry_after(RETRY_AFTER)
}

fn say(error: &ProxyError) {
    static FAILED: Throttle = Throttle::new();
    if let Some(suppressed) = FAILED.admit() {
        tracing::warn!(code = %error.code(), error = %error.chain(), suppressed, "a connection goes into the mesh as nobody");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::{oneshot, watch};

    use super::*;
    use crate::{
        airflow::{Attributed, Finding, OpenTasks, Owner, Unknown},
        control::ControlError,
        mesh::testing::Realm,
        telemetry::TaskContext,
        worker::testing,
    };

    const TERMS: TaskTerms = TaskTerms { needs_token: false };

    fn context() -> TaskContext {
        TaskContext {
            dag_id: "payroll".into(),
            task_id: "charge".into(),
            ..TaskContext::default()
        }
    }

    fn finding(standing: Standing) -> Finding {
        let found = Owner::Task(Attributed {
            task: context(),
            ti_id: None,
            parent: None,
        });
        Finding {
            standing,
            ..Ok(found).into()
        }
    }

    fn task() -> Standing {
        Standing::Task(Arc::new(Vouched {
            ti_id: "one".into(),
            task: context(),
            token: crate::airflow::LiveToken::default(),
        }))
    }

    /// A connection, and where it is said whose it is.
    fn connection() -> (oneshot::Sender<Finding>, ConnectionTask) {
        let (said, receiver) = oneshot::channel();
        let place = OpenTasks::default().question().2;
        (said, ConnectionTask::pending((receiver, place)))
    }

    fn of(standing: Standing) -> ConnectionTask {
        let (said, connection) = connection();
        assert!(said.send(finding(standing)).is_ok());
        connection
    }

    fn own() -> Arc<MeshIdentity> {
        Realm::shared().identity("worker", 1)
    }

    fn callers(refuse_unproven: bool, tasks: TaskIdentities) -> Callers {
        Callers::new(tasks, refuse_unproven, testing::worker().telemetry.clone())
    }

    /// Those of a control plane that gives every task this identity.
    fn giving(present: &watch::Sender<Arc<MeshIdentity>>) -> TaskIdentities {
        let present = present.clone();
        TaskIdentities::answered(move |_, _| Some(Ok(present.subscribe())))
    }

    async fn id(callers: &Callers, task: &ConnectionTask) -> Result<String, ErrorCode> {
        let identity = callers.of(task, own(), TERMS).await;
        identity
            .map(|identity| identity.id.to_string())
            .map_err(|error| error.code())
    }

    #[tokio::test(flavor = "local")]
    async fn a_connection_goes_as_its_task_the_worker_or_as_what_the_setting_says() {
        let present = watch::Sender::new(Realm::shared().identity("task", 1));
        let task_id = present.borrow().id.to_string();
        let own_id = own().id.to_string();
        for (standing, refuse, expected) in [
            (task(), false, Ok(&task_id)),
            (task(), true, Ok(&task_id)),
            (Standing::Worker, true, Ok(&own_id)),
            (Standing::Unproven, false, Ok(&own_id)),
            (
                Standing::Unproven,
                true,
                Err(ErrorCode::TaskIdentityRefused),
            ),
            // A client that tries again may have more luck.
            (
                Standing::NotKnown,
                true,
                Err(ErrorCode::TaskIdentityUnavailable),
            ),
            (Standing::NotKnown, false, Ok(&own_id)),
        ] {
            let callers = callers(refuse, giving(&present));
            let connection = of(standing);
            for _ in 0..2 {
                let got = id(&callers, &connection).await;
                assert_eq!(got.as_ref().map_err(|code| *code), expected);
            }
        }
    }

    #[tokio::test(flavor = "local")]
    async fn all_requests_of_a_connection_wait_for_whose_it_is() {
        let present = watch::Sender::new(Realm::shared().identity("task", 1));
        let callers = callers(false, giving(&present));
        let (said, connection) = connection();
        let waiting = futures_util::future::join3(
            id(&callers, &connection),
            id(&callers, &connection),
            async {
                tokio::task::yield_now().await;
                assert!(said.send(finding(task())).is_ok());
            },
        );
        let (first, second, ()) = waiting.await;
        assert_eq!(first, second);
        assert_eq!(first.unwrap(), present.borrow().id.to_string());
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_task_without_an_identity_goes_nowhere_and_soon_knows() {
        let refusal = || ControlError::TaskName("a test".into());
        let failure = || ControlError::Task("a test".into());
        type Says = Box<dyn Fn() -> Option<ControlError>>;
        let cases: [(Says, ErrorCode); 3] = [
            (
                Box::new(move || Some(refusal())),
                ErrorCode::TaskIdentityRefused,
            ),
            (
                Box::new(move || Some(failure())),
                ErrorCode::TaskIdentityUnavailable,
            ),
            (Box::new(|| None), ErrorCode::TaskIdentityUnavailable),
        ];
        for (says, code) in cases {
            let tasks = TaskIdentities::answered(move |_, _| says().map(Err));
            let callers = callers(false, tasks);
            let began = Instant::now();
            assert_eq!(id(&callers, &of(task())).await, Err(code));
            assert!(began.elapsed() <= WAIT);
        }
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn what_is_not_known_in_time_is_not_decided_for_the_whole_connection() {
        let present = watch::Sender::new(Realm::shared().identity("task", 1));
        let callers = callers(false, giving(&present));
        let (said, connection) = connection();
        assert_eq!(
            id(&callers, &connection).await.unwrap(),
            own().id.to_string()
        );
        assert!(said.send(finding(task())).is_ok());
        let later = id(&callers, &connection).await.unwrap();
        assert_eq!(later, present.borrow().id.to_string());
        let lost = ConnectionTask::pending({
            let (said, receiver) = oneshot::channel::<Finding>();
            assert!(said.send(Err(Unknown::NoOwner).into()).is_ok());
            (receiver, OpenTasks::default().question().2)
        });
        assert_eq!(id(&callers, &lost).await.unwrap(), own().id.to_string());
    }

    #[tokio::test(flavor = "local")]
    async fn a_connection_follows_its_tasks_renewals_and_asks_again_when_the_identity_is_taken_away()
     {
        let asked = Rc::new(Cell::new(0));
        let current: Rc<RefCell<Option<watch::Sender<Arc<MeshIdentity>>>>> = Rc::default();
        let tasks = TaskIdentities::answered({
            let (asked, current) = (Rc::clone(&asked), Rc::clone(&current));
            move |_, _| {
                asked.set(asked.get() + 1);
                let refused = || ControlError::TaskName("taken away".into());
                Some(
                    current
                        .borrow()
                        .as_ref()
                        .map(watch::Sender::subscribe)
                        .ok_or_else(refused),
                )
            }
        });
        let first = Realm::shared().identity("task", 1);
        *current.borrow_mut() = Some(watch::Sender::new(Arc::clone(&first)));
        let callers = callers(false, tasks);
        let (one, two) = (of(task()), of(task()));
        for connection in [&one, &two, &one] {
            let got = callers.of(connection, own(), TERMS).await.unwrap();
            assert_eq!(got.generation, 1);
        }
        assert_eq!(asked.get(), 1, "they share it");
        assert!(callers.present(&first.id).is_some());

        let renewed = Realm::shared().identity("task", 2);
        current.borrow().as_ref().unwrap().send_replace(renewed);
        let got = callers.of(&one, own(), TERMS).await.unwrap();
        assert_eq!((got.generation, asked.get()), (2, 1));

        current.take();
        assert_eq!(
            id(&callers, &one).await,
            Err(ErrorCode::TaskIdentityRefused)
        );
        assert!(callers.present(&first.id).is_none());
    }
}
