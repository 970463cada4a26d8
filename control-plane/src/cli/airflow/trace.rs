//! `airflow trace`: what the tasks of a run have called, from access logs.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{instance, shown, table};
use crate::cli::Failure;
use crate::cli::arguments::{AirflowTraceFlags, OutputFormat};

/// The longest line that is read whole; the proxy writes none that is longer.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Records of one run that are kept.
const MAX_RECORDS: usize = 100_000;

/// DAGs that are named where one has to be chosen.
const MAX_NAMED_DAGS: usize = 20;

/// The run that is asked for. Its name alone may be that of several: each daily DAG has a run
/// `scheduled__2026-11-21T00:00:00+00:00`.
struct Run<'a> {
    run_id: &'a str,
    dag_id: Option<&'a str>,
}

impl Run<'_> {
    fn has(&self, record: &Value) -> bool {
        text(record, "run_id") == self.run_id
            && self.dag_id.is_none_or(|id| text(record, "dag_id") == id)
            && record["kind"].is_string()
    }

    /// Refuses records of several runs, which nobody could tell apart in one table.
    fn check_is_one(&self, found: &[Value]) -> Result<(), Failure> {
        let dags: BTreeSet<&str> = found.iter().map(|it| text(it, "dag_id")).collect();
        if dags.len() < 2 {
            return Ok(());
        }
        let mut named: Vec<String> = dags
            .iter()
            .take(MAX_NAMED_DAGS)
            .map(|it| shown(it))
            .collect();
        if dags.len() > named.len() {
            named.push(format!("{} more", dags.len() - named.len()));
        }
        let message = format!(
            "{} DAGs have a run {} in these logs; say which is meant with --dag: {}",
            dags.len(),
            shown(self.run_id),
            named.join(", ")
        );
        Err(Failure::Usage(message))
    }
}

pub(super) fn run(flags: &AirflowTraceFlags) -> Result<(), Failure> {
    let run = Run {
        run_id: &flags.run_id,
        dag_id: flags.dag_id.as_deref(),
    };
    let mut found = Vec::new();
    let stdin = [PathBuf::from("-")];
    let files: &[PathBuf] = match flags.files.as_slice() {
        [] => &stdin,
        files => files,
    };
    for path in files {
        let failed = |error: std::io::Error| Failure::Other(format!("{}: {error}", path.display()));
        let input: Box<dyn Read> = if path == Path::new("-") {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(std::fs::File::open(path).map_err(failed)?)
        };
        read(BufReader::new(input), &run, &mut found).map_err(failed)?;
        if found.len() > MAX_RECORDS {
            let message = format!(
                "the run has more than {MAX_RECORDS} calls; give it the logs of fewer sidecars"
            );
            return Err(Failure::Other(message));
        }
    }
    run.check_is_one(&found)?;
    found.sort_by(|one, other| text(one, "timestamp").cmp(text(other, "timestamp")));
    match flags.output {
        OutputFormat::Table => print!("{}", for_people(&run, &found)),
        OutputFormat::Json => println!("{:#}", Value::from(found)),
    }
    Ok(())
}

/// Adds the records of a run. Lines that are no record, too long or of another run are passed over.
fn read(mut input: impl BufRead, run: &Run<'_>, found: &mut Vec<Value>) -> std::io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = input
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if length == 0 || found.len() > MAX_RECORDS {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && length as u64 == MAX_LINE_BYTES {
            input.skip_until(b'\n')?;
            continue;
        }
        let record: Option<Value> = serde_json::from_slice(&line).ok();
        found.extend(record.filter(|it| run.has(it)));
    }
}

fn text<'v>(record: &'v Value, field: &str) -> &'v str {
    record[field].as_str().unwrap_or_default()
}

fn for_people(run: &Run<'_>, found: &[Value]) -> String {
    if found.is_empty() {
        let of = run.dag_id.map(|id| format!(" of the DAG {}", shown(id)));
        return format!(
            "no call of the run {}{} is in these logs\n",
            shown(run.run_id),
            of.unwrap_or_default()
        );
    }
    let header = [
        "TIME", "TASK", "BY", "SEEN", "CALLER", "CALLED", "CALL", "OUTCOME", "MS", "TRACE",
    ];
    table(header, found.iter().map(row).collect())
}

fn row(record: &Value) -> [String; 10] {
    let or_dash = |text: &str| match text {
        "" => "-".to_owned(),
        text => shown(text),
    };
    let status = record["status"].as_u64();
    let outcome = match (text(record, "error"), status) {
        ("", Some(status)) => status.to_string(),
        ("", None) => format!(
            "{} bytes",
            record["response_bytes"].as_u64().unwrap_or_default()
        ),
        (error, status) => format!(
            "{}{}",
            status.map(|it| format!("{it} ")).unwrap_or_default(),
            shown(error)
        ),
    };
    let service = match text(record, "service") {
        "" => record["destination"]["address"]
            .as_str()
            .unwrap_or_default(),
        service => service,
    };
    let call = match text(record, "method") {
        "" => format!("{} {service}", text(record, "protocol")),
        method => format!("{method} {service}{}", text(record, "path")),
    };
    let attempts = record["attempts"].as_u64().unwrap_or_default();
    let outcome = if attempts > 1 {
        format!("{outcome} after {attempts} tries")
    } else {
        outcome
    };
    [
        or_dash(text(record, "timestamp")),
        instance(
            text(record, "dag_id"),
            text(record, "task_id"),
            record["map_index"].as_i64(),
            record["try_number"].as_u64(),
        ),
        or_dash(text(record, "triggered_by")),
        or_dash(text(record, "direction")),
        or_dash(&short(&record["source"])),
        or_dash(&short(&record["destination"])),
        shown(&call),
        outcome,
        record["duration_ms"].to_string(),
        or_dash(text(record, "trace_id")),
    ]
}

/// A SPIFFE ID without its trust domain; of who has none, that it was plaintext.
fn short(end: &Value) -> String {
    match end["spiffe_id"].as_str() {
        None => "plaintext".to_owned(),
        Some(id) => {
            let path = id
                .strip_prefix("spiffe://")
                .and_then(|id| id.split_once('/'));
            path.map_or(id, |(_, path)| path).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = concat!(
        r#"{"level":"info","run_id":"r1"}"#,
        "\n",
        r#"{"timestamp":"2026-11-21T06:13:02Z","kind":"connection","direction":"outbound","protocol":"tcp","service":"redis.airflow","source":{},"destination":{},"response_bytes":7,"duration_ms":1.5,"run_id":"r1","dag_id":"d","task_id":"late"}"#,
        "\n",
        r#"{"timestamp":"2026-11-21T06:13:01Z","kind":"request","direction":"outbound","protocol":"HTTP/1.1","method":"GET","path":"/pay","status":200,"service":"pay.data","source":{"spiffe_id":"spiffe://x/ns/airflow/sa/worker"},"destination":{"spiffe_id":"spiffe://x/ns/data/sa/pay"},"attempts":2,"duration_ms":3.042,"run_id":"r1","dag_id":"d","task_id":"load","map_index":0,"try_number":2,"triggered_by":"ada"}"#,
        "\n",
        r#"{"timestamp":"2026-11-21T06:13:00Z","kind":"request","run_id":"r2","dag_id":"d","task_id":"other"}"#,
        "\nnot JSON\n",
    );

    const R1: Run<'_> = Run {
        run_id: "r1",
        dag_id: None,
    };

    /// The run of a day, of three DAGs, and what else there is of them.
    const DAY: &str = concat!(
        r#"{"kind":"request","run_id":"day","dag_id":"pay","task_id":"t"}"#,
        "\n",
        r#"{"kind":"request","run_id":"day","dag_id":"mail\u001b[2J","task_id":"t"}"#,
        "\n",
        r#"{"kind":"connection","run_id":"day","dag_id":"pay","task_id":"u"}"#,
        "\n",
        r#"{"kind":"request","run_id":"eve","dag_id":"pay","task_id":"t"}"#,
        "\n",
    );

    fn found(run: &Run<'_>) -> Vec<Value> {
        let mut found = Vec::new();
        read(DAY.as_bytes(), run, &mut found).unwrap();
        found
    }

    #[test]
    fn runs_of_several_dags_with_one_name_are_not_told_as_one() {
        let day = |dag_id| Run {
            run_id: "day",
            dag_id,
        };
        let all = found(&day(None));
        assert_eq!(all.len(), 3);
        let Err(Failure::Usage(message)) = day(None).check_is_one(&all) else {
            panic!("the runs of two DAGs are taken for one");
        };
        let named = r"2 DAGs have a run day in these logs; say which is meant with --dag: mail\u{1b}[2J, pay";
        assert_eq!(message, named);
        let pay = found(&day(Some("pay")));
        assert_eq!(pay.len(), 2, "{pay:?}");
        assert!(day(Some("pay")).check_is_one(&pay).is_ok());
        let told = for_people(&day(Some("post")), &found(&day(Some("post"))));
        assert_eq!(
            told,
            "no call of the run day of the DAG post is in these logs\n"
        );
        let eve = Run {
            run_id: "eve",
            dag_id: None,
        };
        assert!(eve.check_is_one(&found(&eve)).is_ok());
    }

    #[test]
    fn of_very_many_dags_some_are_named_and_the_others_counted() {
        let many: Vec<Value> = (0..50)
            .map(|it| serde_json::json!({"dag_id": format!("d{it:02}")}))
            .collect();
        let Err(Failure::Usage(message)) = R1.check_is_one(&many) else {
            panic!("fifty DAGs are taken for one");
        };
        assert!(message.starts_with("50 DAGs "), "{message}");
        assert!(message.ends_with(", d18, d19, 30 more"), "{message}");
    }

    #[test]
    fn the_calls_of_one_run_are_told_in_their_order() {
        let mut found = Vec::new();
        read(LOG.as_bytes(), &R1, &mut found).unwrap();
        found.sort_by(|one, other| text(one, "timestamp").cmp(text(other, "timestamp")));
        let told = for_people(&R1, &found);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 3, "{told}");
        for wanted in [
            "d.load[0] try 2",
            "  ada ",
            "ns/airflow/sa/worker",
            "ns/data/sa/pay",
            "GET pay.data/pay",
            "200 after 2 tries",
        ] {
            assert!(lines[1].contains(wanted), "{wanted}: {told}");
        }
        assert!(lines[2].contains("tcp redis.airflow"), "{told}");
        assert!(
            lines[2].contains("7 bytes") && lines[2].contains("plaintext"),
            "{told}"
        );
        let rung = Run {
            run_id: "r\u{7}",
            dag_id: None,
        };
        assert!(for_people(&rung, &[]).contains(r"the run r\u{7} is"));
    }

    #[test]
    fn a_line_without_an_end_is_passed_over_and_the_next_one_is_read() {
        let long = format!("{{\"x\":\"{}\"}}\n{LOG}", "a".repeat(3 << 16));
        let mut found = Vec::new();
        read(long.as_bytes(), &R1, &mut found).unwrap();
        assert_eq!(found.len(), 2);
    }
}
