//! The path of a task's attempt log, which names the task: Airflow opens it before the task's process is forked, so
//! that it is among the open files of whatever runs the task.
//!
//! The template is Airflow's own setting `[logging] log_filename_template`, as it stands there: a user who has changed
//! it gives the same text to the proxy. A template may let two tasks have names that are no longer to be told apart, as
//! `{{ ti.dag_id }}_{{ ti.task_id }}` does: a path that can be read in two ways names no task.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use regex::bytes::{Captures, Match, Regex, RegexBuilder};

use crate::telemetry::TaskContext;

/// Airflow's own default, from 2.3 to 3.3.
pub(crate) const DEFAULT_TEMPLATE: &str = "dag_id={{ ti.dag_id }}/run_id={{ ti.run_id }}/task_id={{ ti.task_id }}/\
    {% if ti.map_index >= 0 %}map_index={{ ti.map_index }}/{% endif %}attempt={{ try_number }}.log";

/// Longest path that is read. Linux's own limit (PATH_MAX).
pub(crate) const MAX_PATH_BYTES: usize = 4096;

/// A compiled template that is larger than this is somebody's mistake.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Reads tasks out of paths.
#[derive(Clone, Debug)]
pub(crate) struct AttemptLogs {
    folder: PathBuf,
    /// Each variable as short as it can be, the first ones before those after them.
    shortest: Regex,
    /// Each as long as it can be. Where both find the same, there is no other way to read the path.
    longest: Regex,
}

/// A template that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A placeholder or tag that is not closed.
    #[error("{0:?} is not closed")]
    Unclosed(&'static str),
    /// An expression that is not understood.
    #[error(
        "{{{{ {0} }}}} is not understood: use ti.dag_id, ti.run_id, ti.task_id, ti.map_index, try_number, or another \
         plain variable, whose value is passed over"
    )]
    Expression(String),
    /// A tag other than if and endif.
    #[error("{{% {0} %}} is not understood: only if and endif are")]
    Tag(String),
    /// What is wanted twice, or not at all.
    #[error("{{{{ {0} }}}} must stand in it exactly once")]
    Once(&'static str),
    /// Too long, or nested too deeply.
    #[error("it is too large")]
    TooLarge,
}

impl AttemptLogs {
    /// Logs under `folder` (Airflow's `[logging] base_log_folder`) whose names follow `template`.
    ///
    /// # Errors
    /// For a template that is not of this subset of Jinja: `{{ variable }}` and `{% if … %}…{% endif %}`, whose
    /// condition is not evaluated: what is in between may stand there or not.
    pub(crate) fn new(folder: &Path, template: &str) -> Result<Self, TemplateError> {
        let pattern = pattern(template)?;
        for field in ["dag_id", "run_id", "task_id"] {
            if !pattern.contains(&group(field)) {
                return Err(TemplateError::Once(field));
            }
        }
        let build = |is_longest| {
            RegexBuilder::new(&pattern)
                .unicode(false)
                .swap_greed(is_longest)
                .size_limit(MAX_PATTERN_BYTES)
                .build()
                .map_err(|_| TemplateError::TooLarge)
        };
        Ok(Self {
            // Without a slash at its end.
            folder: folder.components().collect(),
            shortest: build(false)?,
            longest: build(true)?,
        })
    }

    /// Where the logs are, as Airflow's settings name it: a symbolic link may be part of it.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The task whose attempt is logged at `path`, if it is such a path, and can be that of one task alone. `folder` is
    /// where the logs' folder really is.
    pub(super) fn task(&self, folder: &[u8], path: &[u8]) -> Option<TaskContext> {
        // A log that the log groomer has removed is still open.
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let name = path.strip_prefix(folder)?.strip_prefix(b"/")?;
        let found = self.shortest.captures(name)?;
        if ends(&found) != ends(&self.longest.captures(name)?) {
            return None;
        }
        let text = |field| {
            let value = found.name(field)?.as_bytes();
            std::str::from_utf8(value).ok().map(str::to_owned)
        };
        Some(TaskContext {
            dag_id: text("dag_id")?,
            task_id: text("task_id")?,
            run_id: text("run_id")?,
            map_index: text("map_index").and_then(|index| index.parse().ok()),
            try_number: text("try_number").and_then(|number| number.parse().ok()),
            ..TaskContext::default()
        })
    }
}

/// Where each variable begins and ends. One that stands for nothing is as good as none.
fn ends(found: &Captures<'_>) -> Vec<Option<Range<usize>>> {
    let ends = |value: Option<Match<'_>>| Some(value?.range()).filter(|range| !range.is_empty());
    found.iter().map(ends).collect()
}

fn group(field: &str) -> String {
    format!("(?P<{field}>")
}

/// A regular expression that matches the names that `template` makes, each variable in a group, and every repetition as
/// short as it can be.
fn pattern(template: &str) -> Result<String, TemplateError> {
    // As it has to stand in airflow.cfg, where a single % refers to another setting.
    let template = &*template.replace("%%", "%");
    let mut pattern = String::from("^");
    let mut open_ifs = 0_usize;
    let mut rest = template;
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let (literal, tail) = rest.split_at(at);
        pattern.push_str(&regex::escape(literal));
        let (opening, closing) = if tail.starts_with("{{") {
            ("{{", "}}")
        } else {
            ("{%", "%}")
        };
        let tail = tail.strip_prefix(opening).unwrap_or(tail);
        let (inside, tail) = tail
            .split_once(closing)
            .ok_or(TemplateError::Unclosed(opening))?;
        let inside = inside.trim_matches('-').trim();
        if opening == "{{" {
            push_variable(&mut pattern, inside)?;
        } else {
            match inside.split_whitespace().next() {
                Some("if") => {
                    open_ifs += 1;
                    pattern.push_str("(?:");
                }
                Some("endif") if open_ifs > 0 => {
                    open_ifs -= 1;
                    pattern.push_str(")??");
                }
                _ => return Err(TemplateError::Tag(inside.to_owned())),
            }
        }
        rest = tail;
    }
    if open_ifs > 0 {
        return Err(TemplateError::Unclosed("{% if"));
    }
    pattern.push_str(&regex::escape(rest));
    pattern.push('$');
    Ok(pattern)
}

fn push_variable(pattern: &mut String, expression: &str) -> Result<(), TemplateError> {
    // `try_number|default(ti.try_number)` is try_number.
    let variable = expression.split('|').next().unwrap_or_default().trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if variable.is_empty() || !variable.chars().all(plain) {
        return Err(TemplateError::Expression(expression.to_owned()));
    }
    let name = variable.rsplit('.').next().unwrap_or(variable);
    let (field, values) = match name {
        "dag_id" => ("dag_id", "[^/]+?"),
        "run_id" => ("run_id", "[^/]+?"),
        "task_id" => ("task_id", "[^/]+?"),
        "map_index" => ("map_index", "-??[0-9]{1,9}?"),
        "try_number" => ("try_number", "[0-9]{1,9}?"),
        _ => {
            pattern.push_str("([^/]*?)");
            return Ok(());
        }
    };
    if pattern.contains(&group(field)) {
        return Err(TemplateError::Once(field));
    }
    pattern.push_str(&group(field));
    pattern.push_str(values);
    pattern.push(')');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(template: &str, path: &str) -> Option<TaskContext> {
        let logs = AttemptLogs::new(Path::new("/opt/airflow/logs/"), template).unwrap();
        let folder = logs.folder().as_os_str().as_encoded_bytes();
        logs.task(folder, path.as_bytes())
    }

    fn task(map_index: Option<i32>, try_number: Option<u32>) -> TaskContext {
        TaskContext {
            dag_id: "pay.roll".into(),
            run_id: "scheduled__2026-11-21T00:00:00+00:00".into(),
            task_id: "group.load".into(),
            map_index,
            try_number,
            ..TaskContext::default()
        }
    }

    const RUN: &str = "/opt/airflow/logs/dag_id=pay.roll/run_id=scheduled__2026-11-21T00:00:00+00:00/task_id=group.load";

    #[test]
    fn the_default_template_names_the_task_its_mapped_index_and_its_attempt() {
        let mapped = format!("{RUN}/map_index=7/attempt=2.log");
        assert_eq!(
            read(DEFAULT_TEMPLATE, &mapped),
            Some(task(Some(7), Some(2)))
        );
        let plain = format!("{RUN}/attempt=1.log");
        assert_eq!(read(DEFAULT_TEMPLATE, &plain), Some(task(None, Some(1))));
        let removed = format!("{RUN}/attempt=1.log (deleted)");
        assert_eq!(read(DEFAULT_TEMPLATE, &removed), Some(task(None, Some(1))));
    }

    #[test]
    fn what_only_looks_like_an_attempt_log_names_no_task() {
        for path in [
            "/tmp/dag_id=a/run_id=b/task_id=c/attempt=1.log",
            "/opt/airflow/logs/../x/dag_id=a/run_id=b/task_id=c/attempt=1.log",
            "/opt/airflow/logs/dag_id=a/run_id=b/task_id=c/attempt=x.log",
            "/opt/airflow/logs/dag_id=a/run_id=b/task_id=c/attempt=1.log.old",
            "/opt/airflow/logs/dag_id=a/run_id=b/attempt=1.log",
            "/opt/airflow/logs/dag_id=/run_id=b/task_id=c/attempt=1.log",
            "socket:[12345]",
            "",
        ] {
            assert_eq!(read(DEFAULT_TEMPLATE, path), None, "{path}");
        }
    }

    #[test]
    fn a_template_of_ones_own_is_taken_as_it_stands_in_airflows_configuration() {
        let flat = "{{ ti.dag_id }}__{{ ti.task_id }}/{{ logical_date }}/{{ run_id }}-{{ try_number|default(ti.try_number) }}.log";
        let found = read(flat, "/opt/airflow/logs/a__b/2026-11-21/manual-3.log").unwrap();
        assert_eq!(
            (
                found.dag_id.as_str(),
                found.task_id.as_str(),
                found.run_id.as_str()
            ),
            ("a", "b", "manual")
        );
        assert_eq!(found.try_number, Some(3));
    }

    #[test]
    fn a_path_that_could_be_of_two_tasks_is_of_none() {
        let flat = "{{ ti.dag_id }}_{{ ti.task_id }}/{{ ti.run_id }}/{{ try_number }}.log";
        let mapped = "{{ ti.dag_id }}/{{ ti.run_id }}/{{ ti.task_id }}\
            {% if ti.map_index >= 0 %}-{{ ti.map_index }}{% endif %}.log";
        let noted = "{{ x }}-{{ ti.dag_id }}-{{ y }}/{{ ti.run_id }}/{{ ti.task_id }}.log";
        let numbered = "{{ ti.dag_id }}/{{ ti.run_id }}/{{ ti.task_id }}-{{ try_number }}.log";
        for (template, name, task) in [
            (flat, "etl_load/run/1.log", Some(("etl", "load", Some(1)))),
            (flat, "etl_daily_load/run/1.log", None),
            (flat, "etl__load/run/1.log", None),
            (mapped, "etl/run/load.log", Some(("etl", "load", None))),
            (mapped, "etl/run/load-3.log", None),
            (noted, "a-b-c/run/load.log", Some(("b", "load", None))),
            // The shortest and the longest agree on the DAG, and what is between them does not.
            (noted, "a-b-a-b-a/run/load.log", None),
            (
                numbered,
                "etl/run/load-3-12.log",
                Some(("etl", "load-3", Some(12))),
            ),
        ] {
            let found = read(template, &format!("/opt/airflow/logs/{name}"));
            let said = found
                .as_ref()
                .map(|it| (it.dag_id.as_str(), it.task_id.as_str(), it.try_number));
            assert_eq!(said, task, "{name}");
        }
    }

    #[test]
    fn a_template_may_stand_as_it_does_in_airflow_cfg() {
        let doubled = DEFAULT_TEMPLATE.replace('%', "%%");
        let mapped = format!("{RUN}/map_index=7/attempt=2.log");
        assert_eq!(read(&doubled, &mapped), Some(task(Some(7), Some(2))));
    }

    #[test]
    fn a_template_that_cannot_be_used_says_why() {
        let refused = |template| AttemptLogs::new(Path::new("/logs"), template).unwrap_err();
        assert_eq!(refused("{{ ti.dag_id"), TemplateError::Unclosed("{{"));
        assert_eq!(
            refused("{{ ti.dag_id }}{% if x %}"),
            TemplateError::Unclosed("{% if")
        );
        assert_eq!(
            refused("{% for x in y %}"),
            TemplateError::Tag("for x in y".into())
        );
        assert_eq!(
            refused("{{ ti.run_id.replace(':', '_') }}"),
            TemplateError::Expression("ti.run_id.replace(':', '_')".into())
        );
        assert_eq!(refused("{{ dag_id }}/x.log"), TemplateError::Once("run_id"));
        assert_eq!(
            refused("{{ dag_id }}{{ ti.dag_id }}"),
            TemplateError::Once("dag_id")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_path_and_no_template_is_too_odd_to_be_read(
            template in ".{0,80}",
            path in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        ) {
            if let Ok(logs) = AttemptLogs::new(Path::new("/"), &template) {
                let _ = logs.task(b"", &path);
            }
            let default = AttemptLogs::new(Path::new("/"), DEFAULT_TEMPLATE).unwrap();
            let _ = default.task(b"", &path);
        }
    }
}
