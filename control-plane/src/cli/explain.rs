//! `explain`.

use super::Failure;
use super::arguments::{ExplainFlags, OutputFormat};
use super::client::ask;
use super::output::{timestamp, workloads_json};
use serde_json::{Value, json};
use sidewind_api::v1;

pub(super) fn run(flags: &ExplainFlags) -> Result<(), Failure> {
    let request = v1::ExplainRequest {
        peer: flags.peer.clone(),
        from: flags
            .from
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        port: flags.port.map_or(0, u32::from),
    };
    let answer = ask(&flags.socket, async |mut client| {
        client.explain(request).await
    })?;
    match flags.output {
        OutputFormat::Table => answer.explanations.iter().for_each(print),
        OutputFormat::Json => {
            let all: Value = answer.explanations.iter().map(as_json).collect();
            println!("{all:#}");
        }
    }
    Ok(())
}

fn print(explanation: &v1::Explanation) {
    let v1::Explanation {
        workload,
        svid_serial,
        issuer_subject,
        issuer_key_id,
        bans_version,
        findings,
        ..
    } = explanation;
    let workload = workload.clone().unwrap_or_default();
    println!("{}  {}", workload.spiffe_id, workload.workload_name);
    println!("  address       {}", workload.address);
    println!(
        "  certificate   {svid_serial}, ends {}",
        timestamp(workload.svid_expires_at_unix)
    );
    println!("  signed by     {issuer_key_id} {issuer_subject}");
    let sequences = |bundles: &[v1::BundleSequence]| {
        let each = bundles
            .iter()
            .map(|it| format!("{} {}", it.trust_domain, it.sequence));
        each.collect::<Vec<_>>().join(", ")
    };
    println!("  bundle here   {}", sequences(&explanation.current));
    println!("  bundle there  {}", sequences(&explanation.acknowledged));
    println!("  list of bans  {bans_version}");
    for finding in findings {
        println!("  - {finding}");
    }
}

fn as_json(explanation: &v1::Explanation) -> Value {
    let sequences = |bundles: &[v1::BundleSequence]| -> Value {
        let each = bundles.iter();
        each.map(|it| json!({ "trustDomain": it.trust_domain, "sequence": it.sequence }))
            .collect()
    };
    let workload = explanation.workload.clone().unwrap_or_default();
    let workload: Value = serde_json::from_str(&workloads_json(&[workload])).unwrap_or_default();
    json!({
        "workload": workload.get(0),
        "svidSerial": explanation.svid_serial,
        "issuerSubject": explanation.issuer_subject,
        "issuerKeyId": explanation.issuer_key_id,
        "bundleHere": sequences(&explanation.current),
        "bundleThere": sequences(&explanation.acknowledged),
        "bansVersion": explanation.bans_version,
        "findings": explanation.findings,
    })
}
