//! Faults of the API servers, and tasks that are not tried again.
//!
//! Each fault meets tasks at every step of theirs: some have just been triggered, some ask for variables and push XComs
//! all the while, and some end.

use std::collections::BTreeSet;
use std::time::Duration;

use sidewind_tests::access_log::AccessRecord;
use sidewind_tests::airflow::{Deployment, Fault, Plan, Rest};
use sidewind_tests::place::Place;
use sidewind_tests::wait::{eventually, throughout, within};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(240);

/// How long a fault lasts, from the first that has met it.
const OUTAGE: Duration = Duration::from_secs(12);

/// An Airflow that has run the DAG already: that API servers load much at their first requests is none of these faults.
struct Stage {
    airflow: Deployment,
    rest: Rest,
}

/// What became of the runs under one fault.
struct Endured {
    what: String,
    /// Those that asked for something all the while.
    early: BTreeSet<String>,
    took: Duration,
    /// Those that failed, with the states of their tasks.
    failed: Vec<String>,
}

impl Endured {
    #[track_caller]
    fn nothing_failed(&self) {
        assert!(self.failed.is_empty(), "{}: {:#?}", self.what, self.failed);
    }
}

impl Stage {
    fn start(plan: Plan) -> Self {
        let mut airflow = plan.with_faults().start();
        let rest = airflow.login();
        let mut stage = Self { airflow, rest };
        stage.warm("start");
        stage
    }

    /// Has the DAG run until nothing fails.
    #[track_caller]
    fn warm(&mut self, what: &str) {
        let warm = (1..=5).any(|round| {
            let endured = self.endure(&format!("warm_{what}{round}"), 4, |_| {});
            endured.failed.is_empty()
        });
        assert!(warm, "runs fail without a fault");
    }

    /// Has so many runs live through a fault.
    #[track_caller]
    fn endure(&mut self, what: &str, runs: usize, fault: impl FnOnce(&mut Deployment)) -> Endured {
        let runs: Vec<String> = (1..=runs)
            .map(|number| format!("{what}_{number}"))
            .collect();
        let (early, late) = runs.split_at(runs.len() / 2);
        self.airflow.set_variable("stage", "on");
        self.trigger(early);
        // Or they have failed already, which is not for this to judge.
        let under_way = format!(
            "select count(*) from task_instance where dag_id = 'patient' and run_id like '{what}\\_%' \
             and task_id = 'go_on' and state in ('running', 'success', 'failed', 'upstream_failed')"
        );
        eventually("the first tasks are under way", PATIENCE, || {
            (self.airflow.query(&under_way).parse() == Ok(early.len())).then_some(())
        });
        let began = Instant::now();
        self.trigger(late);
        fault(&mut self.airflow);
        self.airflow.set_variable("stage", "over");
        let mut failed = Vec::new();
        for run in &runs {
            if self.airflow.wait_for_run("patient", run, PATIENCE) != "success" {
                failed.push(format!("{run}: {}", self.airflow.tasks("patient", run)));
            }
        }
        Endured {
            what: what.to_owned(),
            took: began.elapsed(),
            early: early.iter().cloned().collect(),
            failed,
        }
    }

    #[track_caller]
    fn trigger(&self, runs: &[String]) {
        for run in runs {
            self.rest.trigger("patient", run, PATIENCE);
        }
    }

    /// In how many tries of tasks a variable had not what is stored.
    fn defaults_taken(&self) -> usize {
        let logs = self.airflow.mesh.scratch.join("home-worker/logs");
        let grep = Place::Host
            .program("grep")
            .args(["-rlE", "(greeting|stage): the default"]);
        grep.arg(logs).finish().out().lines().count()
    }

    /// What the worker's sidecar says of the requests of these runs to the Execution API.
    fn calls(&self, endured: &Endured) -> Vec<AccessRecord> {
        let log = self.airflow.machine("worker").sidecar().access_log();
        let calls = log.into_iter().filter(|record| {
            let run = record.text("run_id");
            let number = run.strip_prefix(&endured.what);
            let is_of_these = number.is_some_and(|number| number.starts_with('_'));
            is_of_these && record.path().starts_with("/execution/")
        });
        calls.collect()
    }

    /// Checks that requests were sent again and answered after all, with the task named that each was of. Gives the runs
    /// that had any sent again.
    #[track_caller]
    fn tasks_were_saved(&self, endured: &Endured) -> BTreeSet<String> {
        let was_sent_again = |record: &AccessRecord| {
            let is_named = record.text("dag_id") == "patient" && !record.text("task_id").is_empty();
            is_named && record.attempts() > 1
        };
        let is_saved = |record: &AccessRecord| (200..300).contains(&record.status());
        let again = within(Duration::from_secs(30), || {
            let mut again = self.calls(endured);
            again.retain(was_sent_again);
            again.iter().any(is_saved).then_some(again)
        });
        let again = again.unwrap_or_else(|| {
            let calls = self.calls(endured);
            let calls: Vec<String> = calls.iter().map(ToString::to_string).collect();
            panic!(
                "{}: no request was saved:\n{}",
                endured.what,
                calls.join("\n")
            )
        });
        self.budget_was_kept(endured);
        again.iter().map(|record| record.text("run_id")).collect()
    }

    /// Checks that no more was sent than the budget of retries allows (a fifth of the requests, ten a second, and a hundred
    /// that were saved up), and what waits: one at a time, ten times a second, and in the end each once.
    #[track_caller]
    fn budget_was_kept(&self, endured: &Endured) {
        let calls = self.calls(endured);
        let again = calls.iter().map(|call| call.attempts().saturating_sub(1));
        let again: u64 = again.sum();
        let (count, seconds) = (calls.len() as u64, endured.took.as_secs() + 1);
        let (budget, waiting) = (count / 5 + 10 * seconds + 100, 10 * seconds + count);
        let what = &endured.what;
        println!("{what}: {count} calls in {seconds} s, {again} sent again");
        assert!(
            again <= budget + waiting,
            "{what}: {again} > {budget} + {waiting}"
        );
    }
}

/// Has this be wrong with all API servers for the outage.
#[track_caller]
fn for_an_outage(airflow: &mut Deployment, fault: Fault) {
    let before = airflow.spoiled();
    airflow.set_fault(fault);
    eventually("somebody has met the fault", PATIENCE, || {
        (airflow.spoiled() > before).then_some(())
    });
    throughout("the worker runs", OUTAGE, || {
        airflow.process("worker").is_running()
    });
    airflow.set_fault(Fault::None);
}

#[test]
fn api_servers_that_refuse_for_twelve_seconds_fail_no_task() {
    let mut stage = Stage::start(Plan::celery(&["patient.py"]));
    let endured = stage.endure("refused", 6, |airflow| {
        for_an_outage(airflow, Fault::Refused);
    });
    endured.nothing_failed();
    let met = stage.tasks_were_saved(&endured);
    assert!(endured.early.is_subset(&met), "{met:?}");
    let log = stage.airflow.machine("worker").sidecar().log();
    let saved = log
        .lines()
        .find(|line| line.contains("got through after an outage"));
    let saved = saved.unwrap_or_else(|| panic!("nothing was saved: {log}"));
    assert!(
        saved.contains(r#""dag_id":"patient","task_id":""#),
        "{saved}"
    );
}

mod soak {
    use rustix::process::Signal;

    use super::*;

    /// Runs under each fault.
    const RUNS: usize = 10;

    /// How long one API server hangs, from the first request that has met it.
    const HANG: Duration = Duration::from_secs(30);

    /// What befalls the API servers.
    #[derive(Clone, Copy, Debug)]
    enum Trouble {
        /// All of them, for the outage.
        All(Fault),
        /// Both are ended and started again, one after the other.
        Restart,
        /// One of them is stopped for half a minute.
        Hang,
    }

    impl Trouble {
        const ALL: [(&str, Self); 6] = [
            ("refused", Self::All(Fault::Refused)),
            ("unavailable", Self::All(Fault::Unavailable)),
            ("reset", Self::All(Fault::Reset)),
            ("lost_response", Self::All(Fault::LostResponse)),
            ("restart", Self::Restart),
            ("hang", Self::Hang),
        ];

        #[track_caller]
        fn befall(self, airflow: &mut Deployment) {
            match self {
                Self::All(fault) => for_an_outage(airflow, fault),
                Self::Restart => {
                    airflow.restart("api-server-1");
                    airflow.restart("api-server-2");
                }
                Self::Hang => {
                    airflow.process("api-server-1").signal_group(Signal::STOP);
                    eventually("a request meets the one that hangs", PATIENCE, || {
                        (airflow.unread("api-server-1") > 0).then_some(())
                    });
                    throughout("the worker runs", HANG, || {
                        airflow.process("worker").is_running()
                    });
                    airflow.process("api-server-1").signal_group(Signal::CONT);
                }
            }
        }
    }

    fn plan() -> Plan {
        Plan::celery(&["patient.py"]).concurrency(12)
    }

    #[test]
    fn no_fault_of_the_api_servers_fails_a_task() {
        let mut stage = Stage::start(plan());
        let mut failed = Vec::new();
        for (what, trouble) in Trouble::ALL {
            stage.warm(what);
            let endured = stage.endure(what, RUNS, |airflow| trouble.befall(airflow));
            println!("{what}: {} of {RUNS} runs failed", endured.failed.len());
            failed.extend(endured.failed.iter().cloned());
            let met = stage.tasks_were_saved(&endured);
            if let Trouble::All(_) = trouble {
                assert!(endured.early.is_subset(&met), "{what}: {met:?}");
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(stage.defaults_taken(), 0);
    }

    /// What the test above is worth, and the table in docs/airflow.md.
    #[test]
    fn without_a_mesh_the_same_faults_fail_tasks() {
        let mut stage = Stage::start(plan().unmeshed());
        for (what, trouble) in Trouble::ALL {
            stage.warm(what);
            let before = stage.defaults_taken();
            let endured = stage.endure(what, RUNS, |airflow| trouble.befall(airflow));
            let (failed, defaults) = (endured.failed.len(), stage.defaults_taken() - before);
            println!("{what}: {failed} of {RUNS} runs failed, {defaults} tasks took a default");
            if matches!(trouble, Trouble::All(_)) {
                assert!(failed > 0, "{what}");
            }
        }
    }
}
