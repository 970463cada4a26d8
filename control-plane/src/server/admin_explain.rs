//! What this control plane knows of one workload, and what follows from it.

use super::admin_socket::AdminApi;
use crate::issuance::Refusal;
use crate::issuance::authority::slots::Slot;
use crate::registry::WorkloadKey;
use crate::registry::acknowledgements::Acknowledged;
use crate::store::{ReplicaId, from_unix_seconds};
use sidewind_api::{BanList, Reason, duration, v1};
use sidewind_identity::{SpiffeId, SpiffeIdPattern, TaskId, TrustDomain};
use std::sync::Arc;
use std::time::SystemTime;

/// Most workloads that one question is answered for.
const MAX_EXPLAINED: usize = 100;

/// Who would call, should the question be about a caller.
struct Call {
    from: SpiffeId,
    port: Option<u32>,
}

impl AdminApi {
    /// Explains every workload that a SPIFFE ID, a name, an address or a serial number means.
    pub(super) fn explained(
        &self,
        request: &v1::ExplainRequest,
    ) -> Result<v1::ExplainResponse, Refusal> {
        let call = call(request)?;
        let peer = request.peer.as_str();
        // An Airflow task is in no list: what there is of it is its worker.
        let task = SpiffeId::parse(peer).ok().and_then(|id| TaskId::of(&id));
        let mut explanations = Vec::new();
        for workload in self.registry.workloads() {
            let Ok(id) = SpiffeId::parse(&workload.spiffe_id) else {
                continue;
            };
            let key = WorkloadKey {
                spiffe_id: id,
                instance_id: Arc::from(workload.instance_id.as_str()),
            };
            let said = self.registry.acknowledged(&key).unwrap_or_default();
            let is_meant = [
                &workload.spiffe_id,
                &workload.workload_name,
                &workload.address,
                &said.svid_serial,
            ]
            .contains(&&request.peer)
                || task
                    .as_ref()
                    .is_some_and(|task| task.worker.as_str() == workload.spiffe_id);
            if is_meant && !peer.is_empty() {
                explanations.push(self.explain_one(workload, &key, said, call.as_ref()));
            }
            if explanations.len() == MAX_EXPLAINED {
                break;
            }
        }
        if explanations.is_empty() {
            let peer: String = peer.chars().take(128).collect();
            let message = format!(
                "no workload that is known here has the SPIFFE ID, name, address or serial number {peer:?}; `sidewind workloads` lists them"
            );
            return Err(Refusal::new(Reason::InvalidMessage, message));
        }
        Ok(v1::ExplainResponse { explanations })
    }

    fn explain_one(
        &self,
        workload: v1::Workload,
        key: &WorkloadKey,
        said: Acknowledged,
        call: Option<&Call>,
    ) -> v1::Explanation {
        let slots = self.authority.slots();
        let issuer_key_id = self.registry.issuer_of(key).unwrap_or_default();
        let issuer = slots.iter().find(|slot| slot.key_id == issuer_key_id);
        let mut findings = vec![expiry(&workload)];
        let federation = self.registry.federation_of(key);
        // What a proxy has is known where its stream is.
        if let Some(replica) = self.registry.replica_of(key) {
            findings.push(elsewhere(&replica, workload.confirmed));
            findings.extend(self.ban_finding(key, ""));
        } else {
            findings.extend(issuer_finding(&issuer_key_id, issuer));
            findings.extend(self.bundle_finding(&workload, &said));
            findings.extend(federation_findings(&federation, &said));
            findings.extend(self.ban_finding(key, &said.svid_serial));
            findings.extend(self.list_finding(&said));
        }
        findings.extend(call.map(|call| self.policy_finding(&key.spiffe_id, call)));
        let bundles = said.bundles.iter();
        let acknowledged = bundles.map(|(domain, sequence)| v1::BundleSequence {
            trust_domain: domain.to_string(),
            sequence: *sequence,
        });
        let own = (
            self.authority.trust_domain(),
            Some(self.authority.published_sequence()),
        );
        let foreign = federation
            .iter()
            .map(|(domain, sequence)| (domain, *sequence));
        let current = std::iter::once(own).chain(foreign);
        let current = current.filter_map(|(domain, sequence)| {
            Some(v1::BundleSequence {
                trust_domain: domain.to_string(),
                sequence: sequence?,
            })
        });
        let current = current.collect();
        v1::Explanation {
            svid_serial: said.svid_serial.clone(),
            issuer_subject: issuer.map(subject).unwrap_or_default(),
            issuer_key_id,
            acknowledged: acknowledged.collect(),
            current,
            bans_version: said.bans_version,
            findings,
            workload: Some(workload),
        }
    }

    fn bundle_finding(&self, workload: &v1::Workload, said: &Acknowledged) -> Option<String> {
        let current = self.authority.published_sequence();
        if !workload.confirmed {
            return Some("its proxy is not connected here; it was before a restart".to_owned());
        }
        match said.bundles.get(self.authority.trust_domain()) {
            Some(has) if *has >= current => None,
            Some(has) => Some(format!(
                "its proxy has trust bundle {has} and not the present one, {current}"
            )),
            None => Some("its proxy has not said which trust bundle it has".to_owned()),
        }
    }

    fn ban_finding(&self, key: &WorkloadKey, serial: &str) -> Option<String> {
        let (list, _) = BanList::from_api(&self.bans.api());
        list.refuses(&key.spiffe_id, serial)
            .then(|| "it is banned; `sidewind bans` says why".to_owned())
    }

    fn list_finding(&self, said: &Acknowledged) -> Option<String> {
        let (has, present) = (said.bans_version, self.bans.version());
        (has < present).then(|| {
            format!("its proxy has list {has} of the bans and not the present one, {present}")
        })
    }

    /// Which rule lets a caller in, as its proxy decides it.
    fn policy_finding(&self, workload: &SpiffeId, call: &Call) -> String {
        let policy = self.registry.inbound_policy(workload);
        let Call { from, port } = call;
        if !policy.default_deny {
            return format!("{from} may call it: no AuthorizationPolicy selects it");
        }
        let rules = policy.rules.iter();
        let matching = rules.filter(|rule| names(rule, from) && has_port(rule, *port));
        let matching: Vec<_> = matching.map(described).collect();
        if matching.is_empty() {
            let sources = policy.rules.iter().flat_map(|rule| &rule.sources);
            let besides = task_hint(from, sources.map(String::as_str));
            format!(
                "{from} may not call it: no rule of a policy that selects it names the caller and port{besides}"
            )
        } else {
            format!("{from} may call it by {}", matching.join(", and by "))
        }
    }
}

/// Where to ask.
fn elsewhere(replica: &ReplicaId, confirmed: bool) -> String {
    if !confirmed {
        return format!(
            "its proxy was connected to replica {replica}, of which nothing is heard just now"
        );
    }
    format!(
        "its proxy is connected to replica {replica}: which certificate, trust bundle and list of bans it has, that one \
         knows (each logs its name at its start); ask `sidewind explain` there"
    )
}

/// That rules name an Airflow worker's tasks and not the worker itself, or the other way round: neither means the other.
fn task_hint<'s>(from: &SpiffeId, mut sources: impl Iterator<Item = &'s str>) -> String {
    let is_task_of_it = |source: &&str| {
        let below = source.strip_prefix(from.as_str());
        below.is_some_and(|below| below.starts_with("/dag/"))
    };
    match TaskId::of(from) {
        Some(task) => sources
            .find(|source| *source == task.worker.as_str())
            .map(|worker| format!("; one names {worker}, which does not mean its Airflow tasks")),
        None => sources
            .find(is_task_of_it)
            .map(|tasks| format!("; one names Airflow tasks of it, {tasks}")),
    }
    .unwrap_or_default()
}

/// What is missing of the foreign bundles that the workload's registration names.
fn federation_findings(
    federation: &[(TrustDomain, Option<u64>)],
    said: &Acknowledged,
) -> Vec<String> {
    let finding = |(domain, sequence): &(TrustDomain, Option<u64>)| match sequence {
        None => Some(format!(
            "it federates with {domain}, of which there is no bundle; `sidewind federation list` says why"
        )),
        Some(current) => match said.bundles.get(domain) {
            Some(has) if has >= current => None,
            Some(has) => Some(format!(
                "its proxy has bundle {has} of {domain} and not the present one, {current}"
            )),
            None => Some(format!(
                "its proxy has not said that it has a bundle of {domain}"
            )),
        },
    };
    federation.iter().filter_map(finding).collect()
}

fn call(request: &v1::ExplainRequest) -> Result<Option<Call>, Refusal> {
    if request.from.is_empty() {
        return Ok(None);
    }
    let from = SpiffeId::parse(&request.from)
        .map_err(|error| Refusal::new(Reason::InvalidMessage, format!("the caller: {error}")))?;
    let port = Some(request.port).filter(|port| *port != 0);
    Ok(Some(Call { from, port }))
}

fn expiry(workload: &v1::Workload) -> String {
    let end = from_unix_seconds(workload.svid_expires_at_unix);
    match end.duration_since(SystemTime::now()) {
        Ok(left) => format!(
            "the certificate that it connected with ends in {}",
            duration::format(left)
        ),
        Err(_) => "the certificate that it connected with has ended".to_owned(),
    }
}

fn issuer_finding(key_id: &str, issuer: Option<&Slot>) -> Option<String> {
    match issuer {
        None if key_id.is_empty() => None,
        None => Some(format!(
            "its certificate was signed by {key_id}, which is no authority here (any more)"
        )),
        Some(slot) if slot.tainted => Some(format!(
            "its certificate was signed by the tainted authority {key_id}; its proxy is to renew at once"
        )),
        Some(_) => None,
    }
}

fn subject(slot: &Slot) -> String {
    let parsed = x509_parser::parse_x509_certificate(slot.certificate());
    parsed.map_or_else(
        |_| String::new(),
        |(_, certificate)| certificate.subject().to_string(),
    )
}

fn names(rule: &v1::AllowRule, from: &SpiffeId) -> bool {
    let matches = |text: &String| SpiffeIdPattern::parse(text).is_ok_and(|it| it.matches(from));
    rule.sources.is_empty() || rule.sources.iter().any(matches)
}

fn has_port(rule: &v1::AllowRule, port: Option<u32>) -> bool {
    port.is_none_or(|port| rule.ports.is_empty() || rule.ports.contains(&port))
}

/// A rule's name, with what it asks of requests.
fn described(rule: &v1::AllowRule) -> String {
    let list = |what: &str, list: &[String]| match list {
        [] => String::new(),
        list => format!(" {what} {}", list.join(" ")),
    };
    let methods = list("for", &rule.methods);
    let paths = list("at", &rule.path_patterns);
    format!("policy {}{methods}{paths}", rule.policy)
}
