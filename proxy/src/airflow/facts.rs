//! What is known of task instances from the Execution API's traffic, for as long as they run.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    overhear::News,
    process::{Pid, ProcessKey},
    run_response::{Run, Unreadable},
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
    by_runner: HashMap<ProcessKey, String>,
    /// Of the last one that was added.
    number: u64,
    cleaned: Instant,
}

/// A task is of another run than Airflow has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OtherRun;

/// What is known of one.
#[derive(Debug)]
pub(super) struct Known {
    number: u64,
    run: Option<Run>,
    runner: Option<ProcessKey>,
    parent: Option<TraceParent>,
    until: Instant,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            instances: HashMap::new(),
            by_runner: HashMap::new(),
            number: 0,
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
                Ok((run, pid)) => match self.begins(ti_id, run.clone()) {
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

    /// A task instance begins. False when something else is known of it already: whoever spoke first was its supervisor,
    /// before the task's own code could run.
    pub(super) fn begins(&mut self, ti_id: &str, run: Run) -> bool {
        let known = self.known(ti_id);
        known
            .run
            .get_or_insert_with(|| run.clone())
            .agrees_with(&run)
    }

    /// A task instance runs in the process `runner`, which its supervisor has started for it.
    pub(super) fn runs_in(&mut self, ti_id: &str, runner: ProcessKey) {
        let before = self.known(ti_id).runner.replace(runner);
        if let Some(before) = before.filter(|before| *before != runner) {
            self.by_runner.remove(&before);
        }
        self.by_runner
            .entry(runner)
            .or_insert_with(|| ti_id.to_owned());
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

    /// Adds to a task what is known of its instance, found by the processes from the owner of the connection upwards, or
    /// by its id.
    ///
    /// # Errors
    /// Where Airflow has named another DAG or run.
    pub(super) fn complete(
        &self,
        task: &mut TaskContext,
        ti_id: Option<&str>,
        lineage: &[ProcessKey],
    ) -> Result<Option<TraceParent>, OtherRun> {
        // The topmost: what is below it is the task's own.
        let mut runners = lineage.iter().rev();
        let by_runner = runners.find_map(|process| self.by_runner.get(process));
        let id = by_runner.map(String::as_str).or(ti_id);
        let Some(known) = id.and_then(|id| self.living(id)) else {
            return Ok(None);
        };
        match &known.run {
            Some(run) if !run.is_of(task) => return Err(OtherRun),
            Some(run) => run.tell(task),
            None => {}
        }
        Ok(known.parent)
    }

    /// The same where all connections are one task's: what was heard first of its run came from its supervisor.
    pub(super) fn complete_the_only(
        &self,
        task: &mut TaskContext,
        ti_id: Option<&str>,
    ) -> Option<TraceParent> {
        let now = Instant::now();
        let living = || self.instances.values().filter(|known| known.until > now);
        let of_id = ti_id.and_then(|id| self.living(id));
        let is_of_it = |known: &&Known| known.run.as_ref().is_some_and(|run| run.is_of(task));
        let first = || living().filter(is_of_it).min_by_key(|known| known.number);
        let known = of_id.filter(is_of_it).or_else(first);
        if let Some(run) = known.and_then(|known| known.run.as_ref()) {
            run.tell(task);
        }
        let mut parents = living().filter_map(|known| known.parent);
        let only = || parents.next().filter(|_| parents.next().is_none());
        of_id.and_then(|known| known.parent).or_else(only)
    }

    fn living(&self, ti_id: &str) -> Option<&Known> {
        let known = self.instances.get(ti_id)?;
        (known.until > Instant::now()).then_some(known)
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
        self.number += 1;
        let known = self.instances.entry(ti_id.to_owned()).or_insert(Known {
            number: self.number,
            run: None,
            runner: None,
            parent: None,
            until: now,
        });
        known.until = now + SILENCE;
        known
    }

    fn forget_those(&mut self, is_over: impl Fn(&Known) -> bool) {
        self.instances.retain(|_, known| !is_over(known));
        let instances = &self.instances;
        self.by_runner.retain(|_, id| instances.contains_key(id));
    }
}

impl Run {
    fn is_of(&self, task: &TaskContext) -> bool {
        self.dag_id == task.dag_id && self.run_id == task.run_id
    }

    fn tell(&self, task: &mut TaskContext) {
        task.triggered_by.clone_from(&self.triggered_by);
        task.run_type.clone_from(&self.run_type);
        task.team.clone_from(&self.team);
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
            is_cut: false,
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

    fn runner(pid: Pid) -> ProcessKey {
        ProcessKey { pid, start_time: 7 }
    }

    /// Who is behind a task of `dag`, by what is known, and whether its trace is.
    fn of(facts: &Facts, dag: &str, id: Option<&str>, pids: &[Pid]) -> (Option<String>, bool) {
        let mut task = task(dag);
        let lineage: Vec<_> = pids.iter().copied().map(runner).collect();
        let parent = facts.complete(&mut task, id, &lineage).ok().flatten();
        (task.triggered_by, parent.is_some())
    }

    fn ada(trace: bool) -> (Option<String>, bool) {
        (Some("ada".to_owned()), trace)
    }

    const NOBODY: (Option<String>, bool) = (None, false);

    #[tokio::test(start_paused = true)]
    async fn a_task_is_completed_by_its_instance_or_its_process_and_never_by_its_run_alone() {
        let mut facts = Facts::default();
        assert!(facts.begins("one", run("a", "ada")));
        facts.runs_in("one", runner(7));
        facts.belongs_to("one", TraceParent::parse(PARENT.as_bytes()).unwrap());
        assert_eq!(of(&facts, "a", Some("one"), &[]), ada(true));
        assert_eq!(of(&facts, "a", None, &[9, 7]), ada(true));
        assert_eq!(of(&facts, "a", None, &[]), NOBODY);
        assert_eq!(of(&facts, "a", Some("two"), &[8]), NOBODY);
        // A number that was given again.
        let mut other = task("a");
        let again = ProcessKey {
            pid: 7,
            start_time: 8,
        };
        assert_eq!(facts.complete(&mut other, None, &[again]), Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_another_run_than_airflow_has_named_is_contradicted() {
        let mut facts = Facts::default();
        facts.begins("one", run("a", "ada"));
        facts.runs_in("one", runner(7));
        for (id, lineage) in [(Some("one"), vec![]), (None, vec![runner(9), runner(7)])] {
            let found = facts.complete(&mut task("b"), id, &lineage);
            assert_eq!(found, Err(OtherRun), "{id:?}");
        }
        // The process says more than a title, and the topmost of several counts.
        facts.begins("two", run("b", "bob"));
        facts.runs_in("two", runner(9));
        let found = facts.complete(&mut task("b"), Some("two"), &[runner(9), runner(7)]);
        assert_eq!(found, Err(OtherRun));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_first_of_an_instance_stays_and_of_a_process_too() {
        let mut facts = Facts::default();
        assert!(facts.begins("one", run("a", "ada")));
        facts.runs_in("one", runner(7));
        assert!(!facts.begins("one", run("a", "mallory")));
        assert_eq!(of(&facts, "a", Some("one"), &[]), ada(false));
        facts.begins("forged", run("a", "mallory"));
        facts.runs_in("forged", runner(7));
        assert_eq!(of(&facts, "a", None, &[7]), ada(false));
        // Deferred and begun again, in another process.
        assert!(facts.begins("one", run("a", "ada")));
        facts.runs_in("one", runner(9));
        assert_eq!(of(&facts, "a", None, &[7]), NOBODY);
        assert_eq!(of(&facts, "a", None, &[9]), ada(false));
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_is_one_tasks_what_was_heard_first_of_its_run_completes_it() {
        let mut facts = Facts::default();
        facts.begins("other", run("b", "bob"));
        facts.begins("one", run("a", "ada"));
        facts.begins("forged", run("a", "mallory"));
        let completed = |id| {
            let mut task = task("a");
            facts.complete_the_only(&mut task, id);
            task.triggered_by
        };
        assert_eq!(completed(None).as_deref(), Some("ada"));
        assert_eq!(completed(Some("other")).as_deref(), Some("ada"));
        assert_eq!(completed(Some("one")).as_deref(), Some("ada"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_forgotten_a_minute_after_its_end_or_when_it_falls_silent() {
        let mut facts = Facts::default();
        facts.begins("one", run("a", "ada"));
        facts.runs_in("one", runner(7));
        for _ in 0..200 {
            tokio::time::advance(Duration::from_secs(5)).await;
            facts.is_there("one");
        }
        facts.ends("one");
        tokio::time::advance(AFTERMATH - Duration::from_secs(1)).await;
        assert_eq!(of(&facts, "a", Some("one"), &[]), ada(false));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(of(&facts, "a", Some("one"), &[7]), NOBODY);

        facts.begins("two", run("a", "ada"));
        tokio::time::advance(SILENCE).await;
        assert_eq!(of(&facts, "a", Some("two"), &[]), NOBODY);
        facts.begins("three", run("a", "ada"));
        assert_eq!(facts.instances.len(), 1);
        assert!(facts.by_runner.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_instances_is_bounded_and_the_oldest_go_first() {
        let mut facts = Facts::default();
        for n in 0..2 * MAX_INSTANCES {
            tokio::time::advance(Duration::from_millis(1)).await;
            facts.begins(&n.to_string(), run("a", "ada"));
            facts.runs_in(&n.to_string(), runner(n as Pid));
        }
        assert_eq!(facts.instances.len(), MAX_INSTANCES);
        assert_eq!(facts.by_runner.len(), MAX_INSTANCES);
        assert!(!facts.instances.contains_key("0"));
    }
}
