//! Identities of tasks: which name is written how, and that no two are written alike.

use proptest::prelude::*;
use sidewind_identity::{SpiffeId, SpiffeIdPattern, TaskId, TaskIdError};

fn worker() -> SpiffeId {
    SpiffeId::parse("spiffe://sidewind.local/ns/airflow/sa/worker").unwrap()
}

fn derived(dag: &str, task: &str) -> String {
    let id = TaskId::derive(&worker(), dag, task).unwrap();
    let path = id.path().strip_prefix(worker().path()).unwrap();
    path.to_owned()
}

#[test]
fn names_of_present_airflow_are_written_as_they_are() {
    for (dag, task) in [
        ("payroll", "charge"),
        ("a.b-c_d", "group.inner"),
        ("UPPER", "..."),
        ("..dots", "x-"),
    ] {
        assert_eq!(derived(dag, task), format!("/dag/{dag}/task/{task}"));
    }
}

#[test]
fn names_that_are_no_path_segments_are_escaped() {
    for (name, written) in [
        (".", "x--."),
        ("..", "x--.."),
        ("a/b", "x--a-2fb"),
        ("a%2Fb", "x--a-252Fb"),
        ("a b", "x--a-20b"),
        ("é", "x---c3-a9"),
        ("x--plain", "x--x-2d-2dplain"),
        ("a-b c", "x--a-2db-20c"),
        ("a\nb\0", "x--a-0ab-00"),
        ("*", "x---2a"),
    ] {
        assert_eq!(
            derived(name, "t"),
            format!("/dag/{written}/task/t"),
            "{name:?}"
        );
        assert_eq!(
            derived("d", name),
            format!("/dag/d/task/{written}"),
            "{name:?}"
        );
    }
}

#[test]
fn what_can_have_no_identity_is_refused() {
    let long = "a".repeat(1001);
    let wide = "é".repeat(500);
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    let derive = |worker: &SpiffeId, dag: &str, task: &str| TaskId::derive(worker, dag, task);
    assert_eq!(derive(&worker(), "", "t"), Err(TaskIdError::Empty("DAG")));
    assert_eq!(derive(&worker(), "d", ""), Err(TaskIdError::Empty("task")));
    assert_eq!(
        derive(&worker(), &long, "t"),
        Err(TaskIdError::TooLong("DAG", 1001))
    );
    assert!(matches!(
        derive(&worker(), &wide, "t"),
        Err(TaskIdError::SpiffeId(_))
    ));
    assert_eq!(
        derive(&id("spiffe://td"), "d", "t"),
        Err(TaskIdError::NotAWorkload("a trust domain"))
    );
    let task = TaskId::derive(&worker(), "d", "t").unwrap();
    assert_eq!(
        derive(&task, "d", "t"),
        Err(TaskIdError::NotAWorkload("another task"))
    );
}

#[test]
fn only_what_was_derived_is_read_as_a_task() {
    for other in [
        "spiffe://td",
        "spiffe://td/dag/d/task/t",
        "spiffe://td/w/dag/d",
        "spiffe://td/w/dag/d/task",
        "spiffe://td/w/dag/d/task/t/more",
        "spiffe://td/w/dags/d/task/t",
        "spiffe://td/w/dag/d/task/t/dag/d/task/t",
        "spiffe://td/w/dag/d/tasks/t",
        // Spellings that no name has.
        "spiffe://td/w/dag/x--plain/task/t",
        "spiffe://td/w/dag/x---2/task/t",
        "spiffe://td/w/dag/x---zz/task/t",
        "spiffe://td/w/dag/x---2F/task/t",
        "spiffe://td/w/dag/x---ff/task/t",
        "spiffe://td/w/dag/x--/task/t",
    ] {
        assert_eq!(
            TaskId::of(&SpiffeId::parse(other).unwrap()),
            None,
            "{other}"
        );
    }
}

#[test]
fn a_pattern_can_name_dags_and_tasks() {
    let matches = |pattern: &str, dag: &str, task: &str| {
        let pattern = format!("spiffe://sidewind.local/ns/airflow/sa/worker{pattern}");
        let id = TaskId::derive(&worker(), dag, task).unwrap();
        SpiffeIdPattern::parse(&pattern).unwrap().matches(&id)
    };
    for (pattern, dag, task, expected) in [
        ("/dag/payroll/task/*", "payroll", "charge", true),
        ("/dag/payroll/task/*", "payroll2", "charge", false),
        ("/dag/payroll/task/*", "pay", "roll", false),
        ("/dag/*/task/charge", "payroll", "charge", true),
        ("/dag/*/task/charge", "payroll", "charge2", false),
        ("/dag/*/task/*", "anything", "at.all", true),
        ("/dag/payroll/task/charge", "payroll", "charge", true),
        ("/*", "payroll", "charge", true),
        ("", "payroll", "charge", false),
        ("/dag/*/task/*", "a/task/b", "c", true),
        ("/dag/a/task/*", "a/task/b", "c", false),
    ] {
        assert_eq!(
            matches(pattern, dag, task),
            expected,
            "{pattern} {dag} {task}"
        );
    }
    let all = SpiffeIdPattern::parse("spiffe://sidewind.local/ns/airflow/sa/worker/dag/*/task/*");
    assert!(!all.unwrap().matches(&worker()));
}

/// Names of every kind, among them those made of what escapes are made of.
fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9._-]{1,12}",
        "[x.-]{1,6}",
        "(x--)?[-0-9a-f./%]{1,10}",
        any::<String>().prop_filter("a name", |name| !name.is_empty()),
    ]
}

proptest! {
    #[test]
    fn every_name_can_be_read_back(dag in names(), task in names()) {
        let id = TaskId::derive(&worker(), &dag, &task);
        prop_assume!(id.is_ok());
        let read = TaskId::of(&id.unwrap()).unwrap();
        prop_assert_eq!(read, TaskId { worker: worker(), dag_id: dag, task_id: task });
    }

    #[test]
    fn no_two_tasks_have_one_identity(a in (names(), names()), b in (names(), names())) {
        prop_assume!(a != b);
        let derive = |(dag, task): &(String, String)| TaskId::derive(&worker(), dag, task).ok();
        let (a, b) = (derive(&a), derive(&b));
        prop_assert!(a.is_none() || a != b);
    }

    #[test]
    fn any_identity_that_reads_as_a_task_is_the_one_that_is_derived(
        path in "(/[a-z]{1,3}){0,2}/dag/(x--)?[a-z.0-9-]{1,8}/task/(x--)?[a-z.0-9-]{1,8}",
    ) {
        let Ok(id) = SpiffeId::parse(&format!("spiffe://td{path}")) else { return Ok(()) };
        if let Some(task) = TaskId::of(&id) {
            prop_assert_eq!(TaskId::derive(&task.worker, &task.dag_id, &task.task_id), Ok(id));
        }
    }
}
