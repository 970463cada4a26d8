//! `airflow trace`: what the tasks of a run have called, from access logs.

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

pub(super) fn run(flags: &AirflowTraceFlags) -> Result<(), Failure> {
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
        read(BufReader::new(input), &flags.run_id, &mut found).map_err(failed)?;
        if found.len() > MAX_RECORDS {
            let message = format!(
                "the run has more than {MAX_RECORDS} calls; give it the logs of fewer sidecars"
            );
            return Err(Failure::Other(message));
        }
    }
    found.sort_by(|one, other| text(one, "timestamp").cmp(text(other, "timestamp")));
    match flags.output {
        OutputFormat::Table => print!("{}", for_people(&flags.run_id, &found)),
        OutputFormat::Json => println!("{:#}", Value::from(found)),
    }
    Ok(())
}

/// Adds the records of a run. Lines that are no record, too long or of another run are passed over.
fn read(mut input: impl BufRead, run_id: &str, found: &mut Vec<Value>) -> std::io::Result<()> {
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
        found.extend(record.filter(|it| text(it, "run_id") == run_id && it["kind"].is_string()));
    }
}

fn text<'v>(record: &'v Value, field: &str) -> &'v str {
    record[field].as_str().unwrap_or_default()
}

fn for_people(run_id: &str, found: &[Value]) -> String {
    if found.is_empty() {
        return format!("no call of the run {} is in these logs\n", shown(run_id));
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

    #[test]
    fn the_calls_of_one_run_are_told_in_their_order() {
        let mut found = Vec::new();
        read(LOG.as_bytes(), "r1", &mut found).unwrap();
        found.sort_by(|one, other| text(one, "timestamp").cmp(text(other, "timestamp")));
        let told = for_people("r1", &found);
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
        assert!(for_people("r\u{7}", &[]).contains(r"the run r\u{7} is"));
    }

    #[test]
    fn a_line_without_an_end_is_passed_over_and_the_next_one_is_read() {
        let long = format!("{{\"x\":\"{}\"}}\n{LOG}", "a".repeat(3 << 16));
        let mut found = Vec::new();
        read(long.as_bytes(), "r1", &mut found).unwrap();
        assert_eq!(found.len(), 2);
    }
}
