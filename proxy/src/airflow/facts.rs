//! What is known of task instances from the Execution API's traffic, for as long as they run.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    execution_api::{Run, Unreadable},
    overhear::News,
    process::Pid,
};
use crate::telemetry::{TaskContext, metrics::TaskFact, trace::TraceParent};

/// Task instances that are remembered at once: many times what a worker runs.
const MAX_INSTANCES: usize = 1024;

/// For how long one is remembered of which nothing more is heard. It tells of itself every five seconds, and the server
/// gives it up after five minutes.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// For how long one is remembered that has ended: what it has begun may still call.
const AFTERMATH: Duration = Duration::from_secs(60);

/// Between two looks for what is to be forgotten.
const CLEANING: Duration = Duration::from_secs(60);

/// What is known of task instances. Bounded; each is forgotten when it ends, or is not heard of any more.
#[derive(Debug)]
pub(super) struct Facts {
    instances: HashMap<String, Known>,
    by_pid: HashMap<Pid, String>,
    cleaned: Instant,
}

/// What is known of one.
#[derive(Debug)]
pub(super) struct Known {
    run: Option<Run>,
    pid: Option<Pid>,
    parent: Option<TraceParent>,
    until: Instant,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            instances: HashMap::new(),
            by_pid: HashMap::new(),
            cleaned: Instant::now(),
        }
    }
}

impl Facts {
    /// Takes over what was overheard of a task instance. Says what it was worth, unless it was nothing new, and of one
    /// that begins what Airflow has said, with the number of the process that runs it.
    pub(super) fn learn(
        &mut self,
        ti_id: &str,
        news: News,
    ) -> (Option<TaskFact>, Option<(Run, Option<Pid>)>) {
        match news {
            News::Begins(bodies) => match bodies.read() {
                Ok((run, pid)) => match self.begins(ti_id, run.clone(), pid) {
                    true => (Some(TaskFact::Learned), Some((run, pid))),
                    false => (Some(TaskFact::Contradicted), None),
                },
                Err(Unreadable::TooLarge) => (Some(TaskFact::TooLarge), None),
                Err(error) => {
                    tracing::debug!(%error, "what Airflow says of a task was not understood");
                    (Some(TaskFact::Unreadable), None)
                }
            },
            News::BelongsTo(parent) => {
                self.belongs_to(ti_id, parent);
                (Some(TaskFact::Learned), None)
            }
            News::Ends => {
                self.ends(ti_id);
                (None, None)
            }
            News::IsThere => {
                self.is_there(ti_id);
                (None, None)
            }
        }
    }

    /// A task instance begins, in the process `pid` where it said so. False when something else is known of it
    /// already: whoever spoke first was its supervisor, before the task's own code could run.
    pub(super) fn begins(&mut self, ti_id: &str, run: Run, pid: Option<Pid>) -> bool {
        let known = self.known(ti_id);
        match &known.run {
            Some(before) if *before != run => return false,
            _ => known.run = Some(run),
        }
        let before = std::mem::replace(&mut known.pid, pid);
        if before != pid {
            if let Some(before) = before {
                self.forget_pid(before, ti_id);
            }
            if let Some(pid) = pid {
                self.by_pid.insert(pid, ti_id.to_owned());
            }
        }
        true
    }

    /// The span of Airflow's trace that a task instance belongs to. The first that is told stays.
    pub(super) fn belongs_to(&mut self, ti_id: &str, parent: TraceParent) {
        self.known(ti_id).parent.get_or_insert(parent);
    }

    /// A task instance is still there.
    pub(super) fn is_there(&mut self, ti_id: &str) {
        if let Some(known) = self.instances.get_mut(ti_id) {
            known.until = known.until.max(Instant::now() + SILENCE);
        }
    }

    /// A task instance has ended.
    pub(super) fn ends(&mut self, ti_id: &str) {
        if let Some(known) = self.instances.get_mut(ti_id) {
            known.until = Instant::now() + AFTERMATH;
        }
    }

    /// Adds to a task what is known of its instance, found by its id, or by the processes on the way to the owner of the
    /// connection, or by the run. What belongs to another DAG or run is nobody's: titles can be faked and numbers of
    /// processes given again.
    pub(super) fn complete(
        &self,
        task: &mut TaskContext,
        ti_id: Option<&str>,
        pids: impl Iterator<Item = Pid>,
    ) -> Option<TraceParent> {
        let now = Instant::now();
        let agrees = |known: &&Known| {
            let run = known.run.as_ref();
            known.until > now
                && run.is_none_or(|run| run.dag_id == task.dag_id && run.run_id == task.run_id)
        };
        let by_id = ti_id.and_then(|id| self.instances.get(id)).filter(agrees);
        let by_pid = || {
            let mut ids = pids.filter_map(|pid| self.by_pid.get(&pid));
            let known = ids.find_map(|id| self.instances.get(id))?;
            // By its number alone it has to agree, not just not to differ.
            Some(known).filter(|known| known.run.is_some() && agrees(known))
        };
        let exact = by_id.or_else(by_pid);
        // All tasks of a run have the same person behind them; each has its own span.
        let known = exact.or_else(|| {
            let mut all = self.instances.values();
            all.find(|known| known.run.is_some() && agrees(known))
        })?;
        if let Some(run) = &known.run {
            task.triggered_by.clone_from(&run.triggered_by);
            task.run_type.clone_from(&run.run_type);
            task.team.clone_from(&run.team);
        }
        exact.and_then(|known| known.parent)
    }

    /// The same where all connections are one task's.
    pub(super) fn complete_the_only(
        &self,
        task: &mut TaskContext,
        ti_id: Option<&str>,
    ) -> Option<TraceParent> {
        let parent = self.complete(task, ti_id, std::iter::empty());
        let mut all = self.instances.values().filter_map(|known| known.parent);
        parent.or_else(|| all.next().filter(|_| all.next().is_none()))
    }

    fn known(&mut self, ti_id: &str) -> &mut Known {
        let now = Instant::now();
        let is_full = self.instances.len() >= MAX_INSTANCES && !self.instances.contains_key(ti_id);
        if is_full || now.duration_since(self.cleaned) > CLEANING {
            self.cleaned = now;
            self.forget_those(|known| known.until <= now);
        }
        if self.instances.len() >= MAX_INSTANCES && !self.instances.contains_key(ti_id) {
            let oldest = self.instances.values().map(|known| known.until).min();
            self.forget_those(|known| Some(known.until) == oldest);
        }
        let known = self.instances.entry(ti_id.to_owned()).or_insert(Known {
            run: None,
            pid: None,
            parent: None,
            until: now,
        });
        known.until = now + SILENCE;
        known
    }

    fn forget_those(&mut self, is_over: impl Fn(&Known) -> bool) {
        self.instances.retain(|_, known| !is_over(known));
        let instances = &self.instances;
        self.by_pid.retain(|_, id| instances.contains_key(id));
    }

    fn forget_pid(&mut self, pid: Pid, ti_id: &str) {
        if self.by_pid.get(&pid).is_some_and(|id| id == ti_id) {
            self.by_pid.remove(&pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn run(dag: &str, user: &str) -> Run {
        Run {
            dag_id: dag.into(),
            run_id: "r".into(),
            run_type: Some("manual".into()),
            team: None,
            triggered_by: Some(user.into()),
        }
    }

    fn task(dag: &str) -> TaskContext {
        TaskContext {
            dag_id: dag.into(),
            task_id: "t".into(),
            run_id: "r".into(),
            ..TaskContext::default()
        }
    }

    /// Who is behind a task of `dag`, by what is known, and whether its trace is.
    fn of(facts: &Facts, dag: &str, id: Option<&str>, pids: &[Pid]) -> (Option<String>, bool) {
        let mut task = task(dag);
        let parent = facts.complete(&mut task, id, pids.iter().copied());
        (task.triggered_by, parent.is_some())
    }

    fn ada(trace: bool) -> (Option<String>, bool) {
        (Some("ada".to_owned()), trace)
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_completed_by_its_instance_its_process_or_its_run() {
        let mut facts = Facts::default();
        assert!(facts.begins("one", run("a", "ada"), Some(7)));
        facts.belongs_to("one", TraceParent::parse(PARENT.as_bytes()).unwrap());
        assert_eq!(of(&facts, "a", Some("one"), &[]), ada(true));
        assert_eq!(of(&facts, "a", None, &[9, 7]), ada(true));
        assert_eq!(of(&facts, "a", None, &[]), ada(false));
        assert_eq!(of(&facts, "b", Some("one"), &[7]), (None, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_first_of_an_instance_stays() {
        let mut facts = Facts::default();
        assert!(facts.begins("one", run("a", "ada"), Some(7)));
        assert!(!facts.begins("one", run("a", "mallory"), Some(8)));
        assert_eq!(of(&facts, "a", Some("one"), &[]), ada(false));
        // Deferred and begun again, in another process.
        assert!(facts.begins("one", run("a", "ada"), Some(9)));
        assert!(facts.begins("two", run("b", "bob"), Some(7)));
        assert_eq!(of(&facts, "b", None, &[7]).0.as_deref(), Some("bob"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_forgotten_a_minute_after_its_end_or_when_it_falls_silent() {
        let mut facts = Facts::default();
        facts.begins("one", run("a", "ada"), Some(7));
        for _ in 0..200 {
            tokio::time::advance(Duration::from_secs(5)).await;
            facts.is_there("one");
        }
        facts.ends("one");
        tokio::time::advance(AFTERMATH - Duration::from_secs(1)).await;
        assert_eq!(of(&facts, "a", Some("one"), &[]), ada(false));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(of(&facts, "a", Some("one"), &[7]), (None, false));

        facts.begins("two", run("a", "ada"), None);
        tokio::time::advance(SILENCE).await;
        assert_eq!(of(&facts, "a", Some("two"), &[]), (None, false));
        facts.begins("three", run("a", "ada"), None);
        assert_eq!(facts.instances.len(), 1);
        assert!(facts.by_pid.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_instances_is_bounded_and_the_oldest_go_first() {
        let mut facts = Facts::default();
        for n in 0..2 * MAX_INSTANCES {
            tokio::time::advance(Duration::from_millis(1)).await;
            facts.begins(&n.to_string(), run("a", "ada"), Some(n as Pid));
        }
        assert_eq!(facts.instances.len(), MAX_INSTANCES);
        assert_eq!(facts.by_pid.len(), MAX_INSTANCES);
        assert!(!facts.instances.contains_key("0"));
    }
}
