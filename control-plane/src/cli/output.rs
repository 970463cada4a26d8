//! What the commands print.

use super::Failure;
use crate::store::from_unix_seconds;
use serde_json::{Value, json};
use sidewind_api::service::protocol_name;
use sidewind_api::{duration, v1};
use sidewind_identity::{TrustBundle, TrustDomain};
use std::fmt::Write as _;
use std::time::SystemTime;

/// The roots in PEM.
pub(super) fn roots_pem(answer: &v1::GetAuthorityResponse) -> Result<String, Failure> {
    let failed = |error: String| Failure::Other(format!("the answer cannot be read: {error}"));
    let trust_domain =
        TrustDomain::parse(&answer.trust_domain).map_err(|error| failed(error.to_string()))?;
    let roots = answer
        .authorities
        .iter()
        .filter(|authority| authority.role == "root" && authority.state != "revoked");
    let roots = roots.map(|root| root.certificate.clone()).collect();
    TrustBundle::from_der(trust_domain, answer.bundle_sequence, roots)
        .map(|bundle| bundle.to_pem())
        .map_err(|error| failed(error.to_string()))
}

/// The authority for people.
pub(super) fn authority(answer: &v1::GetAuthorityResponse) -> String {
    let mut text = String::new();
    let v1::GetAuthorityResponse {
        trust_domain,
        bundle_sequence,
        authorities,
    } = answer;
    // Writing to a String does not fail.
    let _ = writeln!(text, "trust domain     {trust_domain}");
    let _ = writeln!(text, "bundle sequence  {bundle_sequence}");
    for authority in authorities {
        let what = match authority.role.as_str() {
            "jwt" => "JWT key".to_owned(),
            role => format!("{role} certificate"),
        };
        let _ = writeln!(text, "\n{what} ({})", authority.state);
        let _ = writeln!(text, "  key id   {}", authority.subject_key_id);
        if !authority.certificate.is_empty() {
            let _ = writeln!(text, "  subject  {}", authority.subject);
            let _ = writeln!(text, "  serial   {}", authority.serial);
        }
        let _ = writeln!(text, "  sha256   {}", authority.sha256);
        let _ = writeln!(
            text,
            "  valid    {} to {} ({})",
            timestamp(authority.not_before_unix),
            timestamp(authority.not_after_unix),
            remaining(authority.not_after_unix)
        );
    }
    text
}

/// The workloads for programs.
pub(super) fn workloads_json(workloads: &[v1::Workload]) -> String {
    let port = |port: &v1::ServedPort| {
        json!({
            "targetPort": port.target_port,
            "protocol": protocol_name(port.protocol()),
            "service": (!port.service.is_empty()).then_some(&port.service),
            "servicePort": (!port.service.is_empty()).then_some(port.service_port),
        })
    };
    let workload = |workload: &v1::Workload| {
        json!({
            "spiffeId": workload.spiffe_id,
            "workloadName": workload.workload_name,
            "instanceId": workload.instance_id,
            "address": workload.address,
            "meshPort": workload.mesh_port,
            "ports": workload.ports.iter().map(port).collect::<Vec<_>>(),
            "connectedSince": timestamp(workload.connected_since_unix),
            "svidExpiresAt": timestamp(workload.svid_expires_at_unix),
            "version": workload.version,
            "confirmed": workload.confirmed,
        })
    };
    let list: Vec<Value> = workloads.iter().map(workload).collect();
    format!("{:#}", Value::from(list))
}

/// The workloads for people.
pub(super) fn workloads_table(workloads: &[v1::Workload]) -> String {
    let header = [
        "WORKLOAD",
        "SPIFFE ID",
        "ADDRESS",
        "SERVES",
        "CONNECTED",
        "SVID",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(workloads.iter().map(row));
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(String::len).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn row(workload: &v1::Workload) -> [String; 6] {
    let port = |port: &v1::ServedPort| {
        let protocol = protocol_name(port.protocol());
        match port.service.as_str() {
            "" => format!("{}/{protocol}", port.target_port),
            service => format!("{service}:{}/{protocol}", port.service_port),
        }
    };
    let ports: Vec<String> = workload.ports.iter().map(port).collect();
    let since = SystemTime::now()
        .duration_since(from_unix_seconds(workload.connected_since_unix))
        .unwrap_or_default();
    [
        workload.workload_name.clone(),
        workload.spiffe_id.clone(),
        workload.address.clone(),
        if ports.is_empty() {
            "-".to_owned()
        } else {
            ports.join(",")
        },
        if workload.confirmed {
            duration::format(since)
        } else {
            "awaited".to_owned()
        },
        remaining(workload.svid_expires_at_unix),
    ]
}

/// The head of a table of the audit.
pub(super) fn audit_header() -> String {
    audit_line("TIME", "EVENT", "OUTCOME", "CALLER", "SPIFFE ID")
}

/// A record of the audit for people; what a stranger sent is in none of its columns but escaped.
pub(super) fn audit_row(entry: &v1::AuditEntry) -> String {
    let spiffe_id = entry.spiffe_id.as_deref().unwrap_or("-");
    let line = audit_line(
        &timestamp(entry.at_unix),
        &entry.event,
        &entry.outcome,
        &entry.caller,
        spiffe_id,
    );
    match &entry.detail {
        Some(detail) => format!("{line}  {}", detail.escape_debug()),
        None => line,
    }
}

fn audit_line(at: &str, event: &str, outcome: &str, caller: &str, spiffe_id: &str) -> String {
    format!("{at:20}  {event:13}  {outcome:20}  {caller:15}  {spiffe_id}")
}

fn remaining(end: i64) -> String {
    match from_unix_seconds(end).duration_since(SystemTime::now()) {
        Ok(left) => format!("ends in {}", duration::format(left)),
        Err(_) => "ended".to_owned(),
    }
}

pub(super) fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}
