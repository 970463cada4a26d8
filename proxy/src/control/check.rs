//! Judges what the control plane sends before the data path sees it. What cannot be right is left out in a way that
//! never opens anything: an endpoint whose identity is unreadable is no plaintext endpoint, a rule whose pattern is
//! unreadable is no rule that allows all.

use std::net::IpAddr;

use sidewind_api::v1;
use sidewind_identity::{SpiffeId, SpiffeIdPattern};

/// Most endpoints of one service that are kept.
const MAX_ENDPOINTS: usize = 10_000;

/// The service without the endpoints that cannot be right, and why each cannot.
pub(super) fn service(mut service: v1::Service) -> (v1::Service, Vec<String>) {
    let mut problems = Vec::new();
    if service.endpoints.len() > MAX_ENDPOINTS {
        problems.push(format!(
            "{} endpoints; the first {MAX_ENDPOINTS} are used",
            service.endpoints.len()
        ));
        service.endpoints.truncate(MAX_ENDPOINTS);
    }
    service
        .endpoints
        .retain(|endpoint| match check_endpoint(endpoint) {
            Ok(()) => true,
            Err(problem) => {
                problems.push(format!("endpoint {:?}: {problem}", endpoint.address));
                false
            }
        });
    (service, problems)
}

fn check_endpoint(endpoint: &v1::Endpoint) -> Result<(), String> {
    if endpoint.address.parse::<IpAddr>().is_err() {
        return Err("no IP address".to_owned());
    }
    if !is_port(endpoint.port) {
        return Err(format!("{} is no port", endpoint.port));
    }
    match (endpoint.mesh_port, endpoint.spiffe_id.as_str()) {
        (0, "") => Ok(()),
        (0, _) => Err("a SPIFFE ID without a mesh port".to_owned()),
        (port, _) if !is_port(port) => Err(format!("{port} is no mesh port")),
        (_, id) => match SpiffeId::parse(id) {
            Ok(id) if id.is_workload() => Ok(()),
            Ok(id) => Err(format!("{id} is no workload's SPIFFE ID")),
            Err(error) => Err(format!("SPIFFE ID {id:?}: {error}")),
        },
    }
}

/// Why a policy cannot be used; the one before it stays then.
pub(super) fn policy(policy: &v1::InboundPolicy) -> Result<(), String> {
    for rule in &policy.rules {
        for source in &rule.sources {
            SpiffeIdPattern::parse(source).map_err(|error| {
                format!("rule of {:?}: source {source:?}: {error}", rule.policy)
            })?;
        }
        if let Some(port) = rule.ports.iter().find(|port| !is_port(**port)) {
            return Err(format!("rule of {:?}: {port} is no port", rule.policy));
        }
    }
    Ok(())
}

fn is_port(number: u32) -> bool {
    (1..=65_535).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, port: u32, mesh_port: u32, spiffe_id: &str) -> v1::Endpoint {
        v1::Endpoint {
            address: address.to_owned(),
            port,
            mesh_port,
            spiffe_id: spiffe_id.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn endpoints_that_cannot_be_right_are_left_out() {
        let id = "spiffe://td/ns/a/sa/b";
        let good = [
            endpoint("10.0.0.1", 80, 0, ""),
            endpoint("10.0.0.1", 80, 15008, id),
            endpoint("fd00::1", 80, 15008, id),
        ];
        let bad = [
            endpoint("host", 80, 0, ""),
            endpoint("10.0.0.1", 0, 0, ""),
            endpoint("10.0.0.1", 70_000, 0, ""),
            endpoint("10.0.0.1", 80, 15008, ""),
            endpoint("10.0.0.1", 80, 0, id),
            endpoint("10.0.0.1", 80, 70_000, id),
            endpoint("10.0.0.1", 80, 15008, "spiffe://td"),
            endpoint("10.0.0.1", 80, 15008, "not an id"),
        ];
        let (checked, problems) = service(v1::Service {
            endpoints: good.iter().chain(&bad).cloned().collect(),
            ..Default::default()
        });
        assert_eq!(checked.endpoints, good);
        assert_eq!(problems.len(), bad.len());
    }

    #[test]
    fn a_policy_with_an_unreadable_rule_is_no_policy() {
        let with = |source: &str, port: u32| v1::InboundPolicy {
            rules: vec![v1::AllowRule {
                sources: vec![source.to_owned()],
                ports: vec![port],
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(policy(&v1::InboundPolicy::default()), Ok(()));
        assert_eq!(policy(&with("spiffe://td/ns/*/sa/b", 80)), Ok(()));
        assert!(policy(&with("spiffe://td/ns/a*/sa/b", 80)).is_err());
        assert!(policy(&with("*", 80)).is_err());
        assert!(policy(&with("spiffe://td/ns/*/sa/b", 0)).is_err());
    }
}
