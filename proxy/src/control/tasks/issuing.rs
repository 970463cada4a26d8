//! Holds the identities of tasks: issues each once for all who ask, renews what is in use, and forgets the rest.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls_pki_types::CertificateDer;
use sidewind_api::{Reason, v1};
use sidewind_identity::{PrivateKey, SpiffeId, Svid, TaskId, TrustBundles};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::Shared;
use super::super::VERSION;
use super::super::backoff::{Backoff, as_asked};
use super::super::calling::Caller;
use super::super::error::ControlError;
use super::super::identity::renewal_delay;
use super::super::publisher::{MeshIdentity, mesh_identity};
use super::{Answer, Ask, Task, TaskEvidence, TaskIdentity};

/// Most tasks with an identity at once: more than one worker runs within the life of a certificate.
pub(in super::super) const MAX_TASKS: usize = if cfg!(test) { 12 } else { 1024 };
/// Instances of one task whose word is kept.
const MAX_INSTANCES: usize = 16;
/// Most who wait for the identity of one task.
const MAX_WAITING: usize = 1024;
/// Identities asked for at a time.
const AT_ONCE: usize = 8;
/// For how long a task counts as in use after somebody asked for its identity.
const IN_USE: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// What was refused is not asked for again sooner: each of the task's connections would.
const REFUSED: Duration = Duration::from_secs(10);

type Issuing = Pin<Box<dyn Future<Output = (Task, Result<Issued, ControlError>)> + Send>>;

struct Issued {
    svid: Svid,
    worker: SpiffeId,
}

/// The task that holds the identities.
pub(in super::super) struct TaskIssuing {
    caller: Caller,
    shared: Arc<Shared>,
    asks: mpsc::Receiver<Ask>,
    entries: HashMap<Task, Entry>,
    queue: VecDeque<Task>,
    running: FuturesUnordered<Issuing>,
    /// Whose tasks these are.
    worker: Option<SpiffeId>,
    /// Of the last identity that was made.
    generation: u64,
}

struct Entry {
    /// What was brought, one for each of the task's instances, the newest last.
    evidence: Vec<TaskEvidence>,
    waiting: Vec<oneshot::Sender<Answer>>,
    held: Option<Held>,
    /// Why the last try failed, and when the next one may be made.
    failed: Option<(Arc<ControlError>, SystemTime)>,
    backoff: Backoff,
    is_asking: bool,
    /// When somebody asked for it last.
    asked: SystemTime,
}

/// What is brought for a task's identity.
#[derive(Default)]
struct Brought {
    airflow: Option<v1::AirflowTaskToken>,
    instance: Option<v1::TaskInstance>,
}

struct Held {
    svid: Svid,
    bundles: Arc<TrustBundles>,
    identity: watch::Sender<Arc<MeshIdentity>>,
    renew_at: SystemTime,
}

impl Entry {
    fn new(now: SystemTime) -> Self {
        Self {
            evidence: Vec::new(),
            waiting: Vec::new(),
            held: None,
            failed: None,
            backoff: Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF),
            is_asking: false,
            asked: now,
        }
    }

    fn bring(&mut self, evidence: TaskEvidence) {
        self.evidence.retain(|known| known.ti_id != evidence.ti_id);
        if self.evidence.len() >= MAX_INSTANCES {
            self.evidence.remove(0);
        }
        self.evidence.push(evidence);
    }

    /// The instance whose token Airflow has taken last, since one that has ended shows none any more; the newest where no
    /// tokens are wanted.
    fn newest(&self) -> Brought {
        let words = self.evidence.iter().filter_map(|evidence| {
            let (token, shown) = evidence.token.present()?;
            Some((shown, evidence, token))
        });
        match words.max_by_key(|(shown, ..)| *shown) {
            Some((_, evidence, token)) => Brought {
                airflow: Some(v1::AirflowTaskToken {
                    ti_id: evidence.ti_id.clone(),
                    token: token.expose().to_owned(),
                }),
                instance: Some(evidence.said.clone()),
            },
            None => Brought {
                airflow: None,
                instance: self.evidence.last().map(|evidence| evidence.said.clone()),
            },
        }
    }

    fn is_in_use(&self, now: SystemTime) -> bool {
        let is_held = |held: &Held| held.identity.receiver_count() > 0;
        let lately = now.duration_since(self.asked).unwrap_or_default() < IN_USE;
        lately || self.is_asking || self.held.as_ref().is_some_and(is_held)
    }

    /// When it is to be looked at next.
    fn due(&self) -> Option<SystemTime> {
        if self.is_asking {
            return None;
        }
        let retry = self.failed.as_ref().map(|(_, until)| *until);
        match &self.held {
            Some(held) => {
                let renewal = held.renew_at.max(retry.unwrap_or(held.renew_at));
                Some(renewal.min(held.svid.not_after() + Duration::from_secs(1)))
            }
            None => retry,
        }
    }
}

impl TaskIssuing {
    pub(super) fn new(caller: Caller, shared: Arc<Shared>, asks: mpsc::Receiver<Ask>) -> Self {
        Self {
            caller,
            shared,
            asks,
            entries: HashMap::new(),
            queue: VecDeque::new(),
            running: FuturesUnordered::new(),
            worker: None,
            generation: 0,
        }
    }

    /// Runs for as long as the process does.
    pub(in super::super) async fn run(mut self) {
        let mut credentials = self.shared.publisher.credentials();
        let mut tainted = self.shared.tainted.subscribe();
        let clock = self.shared.clock.clone();
        loop {
            self.begin();
            self.count();
            let now = clock.now();
            let due = self.entries.values().filter_map(Entry::due).min();
            let wait = due.map(|due| due.duration_since(now).unwrap_or_default());
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.take(ask),
                    None => return,
                },
                Some((task, issued)) = self.running.next() => self.settle(&task, issued),
                () = clock.sleep(wait.unwrap_or_default()), if wait.is_some() => self.review(),
                Ok(()) = credentials.changed() => {
                    credentials.borrow_and_update();
                    self.follow();
                }
                Ok(()) = tainted.changed() => {
                    let tainted = tainted.borrow_and_update().clone();
                    let now = clock.now();
                    for held in self.entries.values_mut().filter_map(|entry| entry.held.as_mut()) {
                        if !held.svid.authority_key_ids().is_disjoint(&tainted) {
                            held.renew_at = now;
                        }
                    }
                }
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        let now = self.shared.clock.now();
        let is_known = self.entries.contains_key(&ask.task);
        if !is_known && self.entries.len() >= MAX_TASKS && !self.forget_one(now) {
            let problem = format!("{MAX_TASKS} tasks have identities already, and all are in use");
            // Whoever asked may be gone.
            let _ = ask.answer.send(Err(Arc::new(ControlError::Task(problem))));
            return;
        }
        let task = ask.task.clone();
        let entry = self.entries.entry(ask.task);
        let entry = entry.or_insert_with(|| Entry::new(now));
        entry.asked = now;
        if let Some(evidence) = ask.evidence {
            entry.bring(evidence);
        }
        if let Some(held) = &entry.held
            && held.svid.not_after() >= now
        {
            let present = held.identity.subscribe();
            let _ = ask.answer.send(Ok(TaskIdentity { present }));
            return;
        }
        if let Some((error, until)) = &entry.failed
            && *until > now
        {
            let _ = ask.answer.send(Err(error.clone()));
            return;
        }
        if entry.waiting.len() >= MAX_WAITING {
            let problem = format!("{MAX_WAITING} wait for the identity of this task already");
            let _ = ask.answer.send(Err(Arc::new(ControlError::Task(problem))));
            return;
        }
        entry.waiting.push(ask.answer);
        if !std::mem::replace(&mut entry.is_asking, true) {
            self.queue.push_back(task);
        }
    }

    /// Makes room by forgetting the task that was asked for longest ago, of those that nobody uses.
    fn forget_one(&mut self, now: SystemTime) -> bool {
        let unused = self.entries.iter();
        let unused = unused.filter(|(_, entry)| {
            let held = entry.held.as_ref();
            !entry.is_asking && held.is_none_or(|held| held.identity.receiver_count() == 0)
        });
        let oldest = unused.min_by_key(|(_, entry)| entry.asked);
        let Some((task, _)) = oldest else {
            return false;
        };
        let task = task.clone();
        tracing::debug!(
            ?task,
            ?now,
            "the identity of a task is forgotten for want of room"
        );
        self.entries.remove(&task).is_some()
    }

    /// Asks for those that wait, as many as may be asked for at a time.
    fn begin(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some(task) = self.queue.pop_front()
        {
            let brought = self.entries.get(&task).map(Entry::newest);
            let caller = self.caller.clone();
            self.running.push(Box::pin(async move {
                let issued = issue(&caller, &task, brought.unwrap_or_default()).await;
                (task, issued)
            }));
        }
    }

    fn settle(&mut self, task: &Task, issued: Result<Issued, ControlError>) {
        let made = issued.and_then(|issued| self.make(issued));
        let now = self.shared.clock.now();
        let Some(entry) = self.entries.get_mut(task) else {
            return;
        };
        entry.is_asking = false;
        let answer = match made {
            Ok((svid, bundles, identity)) => {
                entry.failed = None;
                entry.backoff.reset();
                let life = svid.not_after().duration_since(now).unwrap_or_default();
                let renew_at = now + renewal_delay(life);
                tracing::info!(
                    spiffe_id = %svid.id(), serial = svid.serial_hex(), valid_seconds = life.as_secs(),
                    "SVID of a task issued"
                );
                let identity = match entry.held.take() {
                    Some(held) => {
                        held.identity.send_replace(identity);
                        held.identity
                    }
                    None => watch::Sender::new(identity),
                };
                let held = entry.held.insert(Held {
                    svid,
                    bundles,
                    identity,
                    renew_at,
                });
                Ok(held.identity.clone())
            }
            Err(error) => {
                let refused = is_refusal(&error);
                let asked = error.retry_after().map(as_asked).unwrap_or_default();
                let least = if refused { REFUSED } else { Duration::ZERO };
                let wait = entry.backoff.next().max(asked).max(least);
                if refused {
                    entry.held = None;
                }
                tracing::debug!(?task, error = %error, "no SVID for a task");
                let error = Arc::new(error);
                entry.failed = Some((error.clone(), now + wait));
                Err(error)
            }
        };
        let is_issued = answer.is_ok();
        for waiting in entry.waiting.drain(..) {
            let answer = match &answer {
                Ok(identity) => Ok(TaskIdentity {
                    present: identity.subscribe(),
                }),
                Err(error) => Err(error.clone()),
            };
            let _ = waiting.send(answer);
        }
        self.shared.status.send_modify(|status| match is_issued {
            true => status.task_svids_issued += 1,
            false => status.task_svid_failures += 1,
        });
    }

    /// The identity of a certificate in the form that connections use.
    fn make(
        &mut self,
        issued: Issued,
    ) -> Result<(Svid, Arc<TrustBundles>, Arc<MeshIdentity>), ControlError> {
        let own = self.shared.publisher.svid();
        if own.is_none_or(|own| *own.id() != issued.worker) {
            let problem = "this workload has got another identity meanwhile";
            return Err(ControlError::Task(problem.to_owned()));
        }
        let bundles = self.shared.publisher.bundles();
        self.generation += 1;
        let identity = mesh_identity(&issued.svid, &bundles, self.generation)?;
        self.worker = Some(issued.worker);
        Ok((issued.svid, bundles, Arc::new(identity)))
    }

    /// Renews what is due and in use, and forgets what is not.
    fn review(&mut self) {
        let now = self.shared.clock.now();
        let queue = &mut self.queue;
        self.entries.retain(|task, entry| {
            if entry.due().is_none_or(|due| due > now) {
                return true;
            }
            // Whoever holds one that has ended sees that there will be no other.
            let held = entry.held.take();
            entry.held = held.filter(|held| held.svid.not_after() >= now);
            let is_kept = entry.held.is_some() && entry.is_in_use(now);
            if is_kept {
                entry.is_asking = true;
                queue.push_back(task.clone());
            }
            is_kept
        });
    }

    /// Takes what has changed of the workload's own identity and of the trust bundles.
    fn follow(&mut self) {
        let own = self.shared.publisher.svid();
        if let (Some(own), Some(worker)) = (own, &self.worker)
            && own.id() != worker
        {
            // Those being asked for are not taken when they arrive.
            self.entries.retain(|_, entry| entry.is_asking);
            for entry in self.entries.values_mut() {
                entry.held = None;
            }
            self.worker = None;
        }
        let bundles = self.shared.publisher.bundles();
        for held in self
            .entries
            .values_mut()
            .filter_map(|entry| entry.held.as_mut())
        {
            if Arc::ptr_eq(&held.bundles, &bundles) {
                continue;
            }
            self.generation += 1;
            match mesh_identity(&held.svid, &bundles, self.generation) {
                Ok(identity) => {
                    held.bundles = Arc::clone(&bundles);
                    held.identity.send_replace(Arc::new(identity));
                }
                Err(error) => tracing::error!(error = %error, "a task's identity cannot be used"),
            }
        }
    }

    fn count(&self) {
        let held = self.entries.values().filter(|entry| entry.held.is_some());
        let held = held.count();
        self.shared.status.send_if_modified(|status| {
            std::mem::replace(&mut status.task_identities, held) != held
        });
    }
}

/// Whether the control plane has said that the task is to have no identity.
pub(crate) fn is_refusal(error: &ControlError) -> bool {
    match error {
        // Its name makes none.
        ControlError::TaskName(_) => true,
        ControlError::Refused { status, .. } => {
            status.code() == tonic::Code::PermissionDenied
                || Reason::of(status) == Some(Reason::EvidenceMissing)
        }
        _ => false,
    }
}

async fn issue(caller: &Caller, task: &Task, brought: Brought) -> Result<Issued, ControlError> {
    let local = |what| {
        move |error: sidewind_identity::KeyError| ControlError::Local {
            what,
            problem: error.to_string(),
        }
    };
    let key = PrivateKey::generate().map_err(local("generate a key"))?;
    let request = v1::IssueTaskSvidRequest {
        csr: key.csr_der().map_err(local("sign a request"))?,
        dag_id: task.dag_id.to_string(),
        task_id: task.task_id.to_string(),
        airflow: brought.airflow,
        instance: brought.instance,
        version: VERSION.to_owned(),
    };
    let call = caller.call(|mut client| {
        let request = request.clone();
        async move { client.issue_task_svid(request).await }
    });
    let answered = call.await?;
    let bad = |problem: String| ControlError::BadAnswer {
        address: answered.control_plane.clone(),
        problem,
    };
    let chain = answered.answer.certificate_chain.into_iter();
    let svid = Svid::new(chain.map(CertificateDer::from).collect(), key)
        .map_err(|error| bad(format!("a certificate that cannot be used: {error}")))?;
    let worker = answered.svid.id().clone();
    let expected = TaskId::derive(&worker, &task.dag_id, &task.task_id)
        .map_err(|error| ControlError::TaskName(error.to_string()))?;
    if *svid.id() != expected {
        return Err(bad(format!(
            "an SVID for {} in place of {expected}",
            svid.id()
        )));
    }
    Ok(Issued { svid, worker })
}
