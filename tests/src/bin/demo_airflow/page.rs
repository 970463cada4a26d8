//! What is shown of a call, on a line and on a page.

use std::fmt::Write as _;
use std::path::Path;

use sidewind_tests::access_log::AccessRecord;

/// A call, as the caller's sidecar saw it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) time: String,
    pub(crate) machine: String,
    /// `dag.task[map index]`; empty where the call is no task's.
    pub(crate) task: String,
    pub(crate) run: String,
    pub(crate) attempt: String,
    pub(crate) by: String,
    pub(crate) caller: String,
    pub(crate) called: String,
    pub(crate) call: String,
    pub(crate) outcome: String,
    pub(crate) trace: String,
}

impl Call {
    pub(crate) fn of(machine: &str, record: &AccessRecord) -> Self {
        let task = match (record.text("dag_id"), record.text("map_index")) {
            (dag, _) if dag.is_empty() => String::new(),
            (dag, index) if index.is_empty() => format!("{dag}.{}", record.text("task_id")),
            (dag, index) => format!("{dag}.{}[{index}]", record.text("task_id")),
        };
        let outcome = match record.error() {
            error if error.is_empty() => record.status().to_string(),
            error => error,
        };
        Self {
            time: record.text("timestamp"),
            machine: machine.to_owned(),
            task,
            run: record.text("run_id"),
            attempt: record.text("try_number"),
            by: record.text("triggered_by"),
            caller: record.source_id(),
            called: record.destination_id(),
            call: format!(
                "{} {}{}",
                record.text("method"),
                record.text("authority"),
                record.path()
            ),
            outcome,
            trace: record.text("trace_id"),
        }
    }

    /// For the terminal.
    pub(crate) fn as_line(&self) -> String {
        let task = self.whose();
        format!(
            "{task:<20} {:<7} {:<2} {:<4} {:<48} {}",
            self.run, self.attempt, self.by, self.call, self.outcome
        )
    }

    /// Below it.
    pub(crate) fn identities(&self) -> String {
        format!("{:<20} {} → {}", "", self.caller, self.called)
    }

    /// The task, or the machine where it is no task's or, as with triggers, it cannot be told which one's.
    fn whose(&self) -> String {
        match self.task.as_str() {
            "" => format!("({})", self.machine),
            task => task.to_owned(),
        }
    }

    fn cells<'c>(&'c self, whose: &'c str) -> [&'c str; 10] {
        [
            &self.time,
            whose,
            &self.run,
            &self.attempt,
            &self.by,
            &self.caller,
            &self.called,
            &self.call,
            &self.outcome,
            &self.trace,
        ]
    }
}

const HEADER: [&str; 10] = [
    "time",
    "task",
    "run",
    "try",
    "triggered by",
    "caller",
    "called",
    "call",
    "outcome",
    "trace",
];

/// Writes a page of all calls.
pub(crate) fn write_page(path: &Path, calls: &[Call]) -> std::io::Result<()> {
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><title>Calls of an Airflow run</title>\
         <style>body{font:14px/1.4 system-ui,sans-serif;margin:2em}table{border-collapse:collapse}\
         th,td{text-align:left;padding:.25em .6em;border-bottom:1px solid #ddd;white-space:nowrap}\
         th{background:#f4f4f4;position:sticky;top:0}td{font-family:ui-monospace,monospace;font-size:12px}</style>\
         <h1>Calls of an Airflow run</h1><p>As the sidecars of the callers saw them; all of them over mutual TLS. \
         In parentheses whose call it is where it is no task's, or cannot be told which task's: the triggerer runs all triggers \
         in one process.</p>\
         <table><tr>",
    );
    for name in HEADER {
        let _ = write!(page, "<th>{name}");
    }
    for call in calls {
        page.push_str("<tr>");
        for cell in call.cells(&call.whose()) {
            let _ = write!(page, "<td>{}", escaped(cell));
        }
    }
    page.push_str("</table>\n");
    std::fs::write(path, page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_calls_itself_is_text_on_the_page() {
        assert_eq!(escaped("<b>&"), "&lt;b&gt;&amp;");
    }
}
