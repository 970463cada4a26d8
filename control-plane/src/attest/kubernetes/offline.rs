//! A token verified with the cluster's keys alone: works while the API server is away, and does not see
//! that a pod is gone before its token ends.

use super::{Workload, is_name, refused, service_account};
use crate::attest::keys::{KeyCache, TokenError};
use crate::attest::unverifiable;
use crate::config::attestor_config::{KeySource, KubernetesCluster, TOKEN_ALGORITHMS};
use crate::issuance::Refusal;
use serde_json::Value;
use sidewind_identity::jwt::Algorithm;
use sidewind_identity::jwt::jws::{Rules, Verified};
use std::time::{Duration, SystemTime};

/// By how much the clocks of cluster and control plane may differ.
const LEEWAY: Duration = Duration::from_secs(60);

/// Whose tokens they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Issuer<'a> {
    pub(super) cluster: &'a KubernetesCluster,
    pub(super) issuer: &'a str,
    pub(super) keys: &'a KeySource,
}

/// What a token says, once its signature, issuer, audience and times are right.
pub(super) async fn check(
    keys: &KeyCache,
    issuer: &Issuer<'_>,
    token: &str,
    now: SystemTime,
) -> Result<Workload, Refusal> {
    let audiences = [issuer.cluster.audience.as_str()];
    let rules = Rules::oidc(issuer.issuer, &audiences);
    let mut rules = rules.map_err(|error| refused(error.to_string()))?;
    rules.leeway = LEEWAY;
    let verified = keys.verify(token, issuer.keys, &rules, now).await;
    let verified = verified.map_err(|error| match error {
        TokenError::Refused(error) => refused(error.to_string()),
        TokenError::NoKeys { .. } => {
            let what = format!("the keys of cluster {}", issuer.cluster.cluster);
            unverifiable("kubernetes-keys", &what, &error)
        }
    })?;
    check_algorithm(verified.header.algorithm)?;
    if verified.issued_at.is_none() {
        return Err(refused("the token does not say when it was issued"));
    }
    workload(&verified).ok_or_else(|| {
        refused(
            "the token is not bound to a pod; use a projected service-account token with the control plane's audience",
        )
    })
}

fn check_algorithm(algorithm: Algorithm) -> Result<(), Refusal> {
    if TOKEN_ALGORITHMS.contains(&algorithm) {
        Ok(())
    } else {
        Err(refused(format!(
            "tokens signed with {algorithm} are not taken"
        )))
    }
}

/// The claims under `kubernetes.io`, which must agree with the subject.
fn workload(verified: &Verified) -> Option<Workload> {
    let (namespace, name) = service_account(verified.text("sub")?)?;
    let claims = verified.claims.get("kubernetes.io")?;
    let text = |path: &[&str]| {
        let found = path.iter().try_fold(claims, |value, name| value.get(name));
        found
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    let same = text(&["namespace"])? == namespace && text(&["serviceaccount", "name"])? == name;
    let pod_name = text(&["pod", "name"]).filter(|name| is_name(name))?;
    same.then_some(())?;
    Some(Workload {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
        pod_name: pod_name.to_owned(),
        pod_uid: text(&["pod", "uid"])?.to_owned(),
        node: text(&["node", "name"]).map(str::to_owned),
        ..Workload::default()
    })
}

#[cfg(test)]
#[path = "offline_tests.rs"]
mod tests;
