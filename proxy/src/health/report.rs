//! What people are shown of endpoints, at the admin port.

use serde_json::{Value, json};

use super::endpoint::EndpointHealth;
use super::{Health, ServiceHealth, lock};

impl Health {
    /// Every service in use with its endpoints, for people: state, reason and how long it has been so.
    pub(crate) fn report(&self) -> Value {
        let mut services: Vec<_> = self.services().iter().map(|it| it.report()).collect();
        services.sort_by_cached_key(|service| service["service"].to_string());
        json!({ "services": services })
    }
}

impl ServiceHealth {
    fn report(&self) -> Value {
        let now = self.now();
        let members = lock(&self.members);
        let endpoints: Vec<Value> = members.list.iter().map(|cell| shown(cell, now)).collect();
        json!({
            "service": &*members.name,
            "port": members.port,
            "policy": &*members.policy,
            "checked": members.settings.check.is_some(),
            "endpoints": endpoints,
        })
    }
}

fn shown(cell: &EndpointHealth, now: u64) -> Value {
    let desc = cell.desc();
    let ejection = match (cell.is_probing(), cell.is_ejected()) {
        (true, _) => Some("probing"),
        (false, true) => Some("ejected"),
        (false, false) => None,
    };
    // What checks say comes first: while they fail nobody finds out whether the time of an ejection is over.
    let checked = cell.checked().as_str();
    let state = match ejection {
        Some(ejection) if cell.passes_checks() => ejection,
        _ => checked,
    };
    let reasons = cell.reasons();
    let reason = match ejection {
        None if reasons.check.is_empty() => reasons.ejection.clone(),
        Some(_) if cell.passes_checks() => reasons.ejection.clone(),
        Some(_) => format!("{}; {}", reasons.check, reasons.ejection),
        None => reasons.check.clone(),
    };
    json!({
        "address": desc.address.to_string(),
        "workloadName": &*desc.workload_name,
        "spiffeId": desc.mesh.as_ref().map(|mesh| mesh.id.to_string()),
        "zone": &*desc.zone,
        "priority": desc.priority,
        "weight": desc.weight,
        "state": state,
        "reason": reason,
        "check": { "state": checked, "reason": reasons.check },
        "ejection": ejection.map(|state| json!({ "state": state, "reason": reasons.ejection })),
        "sinceMilliseconds": now.saturating_sub(cell.changed_at()),
        "ejections": cell.ejections(),
        "ejectedForMilliseconds": cell.ejected_until().saturating_sub(now),
    })
}
