//! `federation list` and `federation forget`.

use super::Failure;
use super::arguments::{FederationForgetFlags, FederationListFlags, OutputFormat};
use super::client::ask;
use super::output::timestamp;
use serde_json::{Value, json};
use sidewind_api::v1;

pub(super) fn list(flags: &FederationListFlags) -> Result<(), Failure> {
    let answer = ask(&flags.socket, async |mut client| {
        client.list_federation(v1::ListFederationRequest {}).await
    })?;
    match flags.output {
        OutputFormat::Json => {
            let all: Value = answer.relations.iter().map(as_json).collect();
            println!("{all:#}");
        }
        OutputFormat::Table if answer.relations.is_empty() => {
            println!("no foreign trust domain is configured");
        }
        OutputFormat::Table => answer.relations.iter().for_each(print),
    }
    Ok(())
}

pub(super) fn forget(flags: FederationForgetFlags) -> Result<(), Failure> {
    let trust_domain = flags.trust_domain.to_string();
    let request = v1::ForgetTrustDomainRequest {
        trust_domain: trust_domain.clone(),
    };
    ask(&flags.socket, async |mut client| {
        client.forget_trust_domain(request).await
    })?;
    println!("the bundle of {trust_domain} is forgotten");
    Ok(())
}

fn print(relation: &v1::FederationRelation) {
    let state = match relation.sequence {
        _ if relation.url.is_empty() => "not configured any more",
        None => "no bundle yet",
        Some(_) if relation.x509_authorities + relation.jwt_authorities == 0 => "empty: distrusted",
        Some(_) if relation.stale => "stale",
        Some(_) => "fresh",
    };
    println!("{}  {state}", relation.trust_domain);
    if !relation.url.is_empty() {
        let server = match relation.endpoint_spiffe_id.as_str() {
            "" => String::new(),
            id => format!(" as {id}"),
        };
        println!(
            "  endpoint      {} {}{server}",
            relation.profile, relation.url
        );
    }
    if let Some(sequence) = relation.sequence {
        println!(
            "  bundle        sequence {sequence}: {} X.509 and {} JWT authorities, since {}",
            relation.x509_authorities,
            relation.jwt_authorities,
            timestamp(relation.taken_at_unix)
        );
        println!("  last heard    {}", timestamp(relation.confirmed_at_unix));
    }
    println!("  fetched every {} s", relation.refresh_seconds);
    println!("  workloads     {}", relation.workloads);
    if !relation.last_error.is_empty() {
        println!("  last error    {}", relation.last_error.escape_debug());
    }
}

fn as_json(relation: &v1::FederationRelation) -> Value {
    let time = |seconds: i64| (seconds != 0).then(|| timestamp(seconds));
    json!({
        "trustDomain": relation.trust_domain,
        "url": relation.url,
        "profile": relation.profile,
        "endpointSpiffeId": relation.endpoint_spiffe_id,
        "sequence": relation.sequence,
        "x509Authorities": relation.x509_authorities,
        "jwtAuthorities": relation.jwt_authorities,
        "refreshSeconds": relation.refresh_seconds,
        "takenAt": time(relation.taken_at_unix),
        "lastHeard": time(relation.confirmed_at_unix),
        "lastError": relation.last_error,
        "stale": relation.stale,
        "workloads": relation.workloads,
    })
}
