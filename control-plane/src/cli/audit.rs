//! `audit`: what was granted and refused, page by page; and whether the chain of hashes over it holds.

use super::arguments::{AuditFlags, OutputFormat};
use super::client::ask;
use super::output::timestamp;
use super::{Failure, output};
use crate::store::unix_seconds;
use serde_json::json;
use sidewind_api::v1;
use std::time::SystemTime;

pub(super) fn run(flags: &AuditFlags) -> Result<(), Failure> {
    if flags.verify {
        verify(flags)
    } else {
        list(flags)
    }
}

fn list(flags: &AuditFlags) -> Result<(), Failure> {
    let since = SystemTime::now().checked_sub(flags.since);
    let since_unix = since.map_or(0, unix_seconds);
    let mut printer = Printer::new(flags.output);
    ask(&flags.socket, async |mut client| {
        let mut request = v1::ListAuditRequest {
            since_unix,
            ..Default::default()
        };
        // Each page is printed before the next is asked for: there may be millions of records.
        loop {
            let answer = client.list_audit(request).await?;
            let entries = &answer.get_ref().entries;
            let Some(last) = entries.last() else {
                return Ok(answer);
            };
            request.after_id = last.id;
            entries.iter().for_each(|entry| printer.entry(entry));
        }
    })?;
    printer.end();
    Ok(())
}

fn verify(flags: &AuditFlags) -> Result<(), Failure> {
    let found = ask(&flags.socket, async |mut client| {
        client.verify_audit(v1::VerifyAuditRequest {}).await
    })?;
    match flags.output {
        OutputFormat::Json => println!(
            "{:#}",
            json!({
                "verified": found.verified,
                "firstPosition": found.first_position,
                "headPosition": found.head_position,
                "headHash": found.head_hash,
                "unsealed": found.unsealed,
                "problems": found.problems,
            })
        ),
        OutputFormat::Table => {
            println!("records verified  {}", found.verified);
            println!("first seal        {}", found.first_position);
            println!("last seal         {}", found.head_position);
            println!("hash of the last  {}", found.head_hash);
            println!("not yet sealed    {}", found.unsealed);
        }
    }
    if found.problems.is_empty() {
        return Ok(());
    }
    let problems = found.problems.join("\n");
    Err(Failure::Other(format!(
        "the audit was changed:\n{problems}"
    )))
}

/// Prints records as they come.
struct Printer {
    form: OutputFormat,
    printed: u64,
}

impl Printer {
    fn new(form: OutputFormat) -> Self {
        Self { form, printed: 0 }
    }

    fn entry(&mut self, entry: &v1::AuditEntry) {
        match self.form {
            OutputFormat::Table => {
                if self.printed == 0 {
                    println!("{}", output::audit_header());
                }
                println!("{}", output::audit_row(entry));
            }
            OutputFormat::Json => {
                let begin = if self.printed == 0 { "[" } else { "," };
                println!("{begin}{}", json_of(entry));
            }
        }
        self.printed += 1;
    }

    fn end(&self) {
        match (self.form, self.printed) {
            (OutputFormat::Json, 0) => println!("[]"),
            (OutputFormat::Json, _) => println!("]"),
            (OutputFormat::Table, _) => {}
        }
    }
}

fn json_of(entry: &v1::AuditEntry) -> serde_json::Value {
    json!({
        "id": entry.id,
        "at": timestamp(entry.at_unix),
        "event": entry.event,
        "outcome": entry.outcome,
        "detail": entry.detail,
        "spiffeId": entry.spiffe_id,
        "registration": entry.registration,
        "serial": entry.serial,
        "notAfter": entry.not_after_unix.map(timestamp),
        "caller": entry.caller,
        "csrSha256": entry.csr_sha256,
    })
}
