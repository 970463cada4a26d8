//! As whom a connection may go: what is known for sure of the process that owns it.
//!
//! What processes show of themselves a task's own code can make up: titles, environments, open files, and even the path
//! of the log that its supervisor has open, since whoever may write below the log folder may rename it. It cannot make
//! up what Airflow's API server says. Each task begins with a request of its supervisor, which shows the task's own
//! token there and names the process that it has started; the answer names DAG and run; and the task's own code does
//! not begin before it has come. Where the proxy has carried that request to the service that is Airflow's API server,
//! it knows of which task instance the processes below that one are, from then on.
//!
//! The name of the task alone is in no answer. It is the one in the path of the log that the supervisor has open when
//! the answer comes, which has to be of the same DAG and run.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::process::ProcessKey;
use crate::{config::Secret, telemetry::TaskContext};

/// Tasks that are remembered at once: many times what a worker runs.
const MAX_PROOFS: usize = 1024;

/// As whom a connection may go.
#[derive(Clone, Debug, Default)]
pub(crate) enum Standing {
    /// As the workload: the worker itself has it, or one of the processes that it supervises tasks by.
    Worker,
    /// As this task, on Airflow's word.
    Task(Arc<Vouched>),
    /// Neither is sure.
    #[default]
    Unproven,
    /// It could not be found out just now.
    NotKnown,
}

/// A task for which Airflow has vouched.
#[derive(Debug)]
pub(crate) struct Vouched {
    pub(crate) ti_id: String,
    /// As it was when the task began.
    pub(crate) task: TaskContext,
    pub(crate) token: LiveToken,
}

/// The newest token of the Execution API that a task instance was seen to use; none where nobody wants it. Clones see
/// the same. In memory alone, for as long as something is held of the task, and wiped then.
#[derive(Clone, Default)]
pub(crate) struct LiveToken(Arc<Mutex<Option<(Secret, Instant)>>>);

impl LiveToken {
    pub(crate) fn set(&self, token: Secret) {
        *self.lock() = Some((token, Instant::now()));
    }

    /// The token, and when it was last used.
    pub(crate) fn present(&self) -> Option<(Secret, Instant)> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Secret, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LiveToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveToken")
            .field(&self.lock().is_some())
            .finish()
    }
}

/// What Airflow has said of the processes that run now. Bounded.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    /// By the process that supervises the task.
    by_supervisor: HashMap<ProcessKey, Proof>,
    /// Of the last one that was added.
    number: u64,
}

#[derive(Debug)]
struct Proof {
    number: u64,
    /// What the supervisor has started for it.
    runner: ProcessKey,
    task: Arc<Vouched>,
}

impl Proofs {
    /// A task instance has begun, which `supervisor` has started `runner` for. It takes the place of the one before of
    /// that supervisor, and of the one that the instance had before.
    pub(super) fn begins(
        &mut self,
        supervisor: ProcessKey,
        runner: ProcessKey,
        ti_id: &str,
        task: TaskContext,
    ) {
        // So that one task has one place, whatever it does.
        self.by_supervisor
            .retain(|_, proof| proof.task.ti_id != ti_id);
        if self.by_supervisor.len() >= MAX_PROOFS {
            let oldest = self
                .by_supervisor
                .iter()
                .min_by_key(|(_, proof)| proof.number);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.by_supervisor.remove(&oldest);
            }
        }
        self.number += 1;
        let proof = Proof {
            number: self.number,
            runner,
            task: Arc::new(Vouched {
                ti_id: ti_id.to_owned(),
                task,
                token: LiveToken::default(),
            }),
        };
        self.by_supervisor.insert(supervisor, proof);
    }

    /// A supervisor has shown the token of the instance that it supervises.
    pub(super) fn shows(&self, supervisor: ProcessKey, ti_id: &str, token: Secret) {
        let proof = self.by_supervisor.get(&supervisor);
        if let Some(proof) = proof.filter(|proof| proof.task.ti_id == ti_id) {
            proof.task.token.set(token);
        }
    }

    /// The task of a process, by the processes from it upwards, each surely a child of the next. The topmost counts:
    /// what runs below it is that task's own code, whatever it has said since.
    pub(super) fn task(&self, lineage: &[ProcessKey]) -> Option<&Arc<Vouched>> {
        let mut pairs = lineage.windows(2).rev();
        pairs.find_map(|pair| {
            let [child, parent] = pair else { return None };
            let proof = self.by_supervisor.get(parent)?;
            (proof.runner == *child).then_some(&proof.task)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_time: 7 }
    }

    fn again(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_time: 8 }
    }

    fn task(dag: &str) -> TaskContext {
        TaskContext {
            dag_id: dag.into(),
            task_id: "t".into(),
            run_id: "r".into(),
            ..TaskContext::default()
        }
    }

    fn dag(proofs: &Proofs, lineage: &[ProcessKey]) -> Option<String> {
        proofs.task(lineage).map(|it| it.task.dag_id.clone())
    }

    const WORKER: u32 = 10;
    const SUPERVISOR: u32 = 11;
    const RUNNER: u32 = 12;

    #[test]
    fn a_task_is_what_runs_below_the_process_that_its_supervisor_has_started_for_it() {
        let mut proofs = Proofs::default();
        proofs.begins(key(SUPERVISOR), key(RUNNER), "one", task("payroll"));
        let above = [key(SUPERVISOR), key(WORKER)];
        let below = |pids: &[ProcessKey]| [pids, &above].concat();
        let payroll = Some("payroll".to_owned());
        for (lineage, found) in [
            (below(&[key(RUNNER)]), &payroll),
            (below(&[key(30), key(20), key(RUNNER)]), &payroll),
            // Its supervisor, and what the supervisor may have started besides.
            (below(&[]), &None),
            (below(&[key(13)]), &None),
            // Numbers that were given again.
            (below(&[again(RUNNER)]), &None),
            (vec![key(RUNNER), again(SUPERVISOR), key(WORKER)], &None),
            // It was not sure who is above.
            (vec![key(RUNNER)], &None),
            (vec![], &None),
        ] {
            assert_eq!(dag(&proofs, &lineage), *found, "{lineage:?}");
        }
    }

    #[test]
    fn a_supervisors_next_task_takes_the_place_of_the_one_before() {
        let mut proofs = Proofs::default();
        proofs.begins(key(SUPERVISOR), key(RUNNER), "one", task("reports"));
        proofs.begins(key(SUPERVISOR), key(14), "two", task("payroll"));
        let left = [key(RUNNER), key(SUPERVISOR), key(WORKER)];
        assert_eq!(dag(&proofs, &left), None);
        let next = [key(14), key(SUPERVISOR), key(WORKER)];
        assert_eq!(dag(&proofs, &next).as_deref(), Some("payroll"));
    }

    #[test]
    fn what_a_tasks_own_code_says_to_airflow_makes_nothing_else_of_what_it_starts() {
        let mut proofs = Proofs::default();
        proofs.begins(key(SUPERVISOR), key(RUNNER), "one", task("reports"));
        // With a token that it has from elsewhere.
        proofs.begins(key(RUNNER), key(15), "two", task("payroll"));
        let lineage = [key(15), key(RUNNER), key(SUPERVISOR), key(WORKER)];
        assert_eq!(dag(&proofs, &lineage).as_deref(), Some("reports"));
    }

    #[test]
    fn one_instance_has_one_place_and_the_oldest_of_too_many_goes() {
        let mut proofs = Proofs::default();
        proofs.begins(key(1), key(2), "first", task("payroll"));
        for pid in 100..200 {
            proofs.begins(key(pid), key(pid + 1), "same", task("reports"));
        }
        assert_eq!(proofs.by_supervisor.len(), 2);
        for number in 0..MAX_PROOFS as u32 {
            let (supervisor, runner) = (key(1000 + 2 * number), key(1001 + 2 * number));
            proofs.begins(supervisor, runner, &number.to_string(), task("reports"));
        }
        assert_eq!(proofs.by_supervisor.len(), MAX_PROOFS);
        assert_eq!(dag(&proofs, &[key(2), key(1)]), None);
    }

    #[tokio::test]
    async fn a_token_is_taken_from_the_tasks_own_supervisor_alone_and_shown_nowhere() {
        let mut proofs = Proofs::default();
        proofs.begins(key(SUPERVISOR), key(RUNNER), "one", task("payroll"));
        let lineage = [key(RUNNER), key(SUPERVISOR)];
        let vouched = Arc::clone(proofs.task(&lineage).unwrap());
        for (process, ti_id) in [(key(RUNNER), "one"), (key(SUPERVISOR), "two")] {
            proofs.shows(process, ti_id, Secret::new("forged"));
            assert!(vouched.token.present().is_none());
        }
        for token in ["first-secret", "second-secret"] {
            proofs.shows(key(SUPERVISOR), "one", Secret::new(token));
            let (present, _) = vouched.token.present().unwrap();
            assert_eq!(present.expose(), token);
        }
        let shown = format!("{proofs:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }
}
