//! Projected service-account tokens of Kubernetes, bound to their pod.
//!
//! - `review`: asks the cluster's API server about the token, and for the pod as it is now
//! - `offline`: verifies the token with the cluster's keys alone
//!
//! Either way the token must be made for this control plane's audience and bound to a pod: what
//! `kubectl create token` makes, and the secrets of old, are refused.

mod offline;
mod review;

use super::keys::KeyCache;
use super::places::{self, Places};
use super::{Answer, Attested, Attestor, Facts, Presented, Selectors};
use crate::config::Live;
use crate::config::attestor_config::{ClusterCheck, KubernetesCluster};
use crate::issuance::Refusal;
use sidewind_api::Reason;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_identity::jwt::jws::MAX_TOKEN_BYTES;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Takes service-account tokens.
#[derive(Debug)]
pub struct KubernetesAttestor {
    config: Live,
    keys: Arc<KeyCache>,
    api_servers: Places,
}

/// What a token and its pod say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Workload {
    namespace: String,
    service_account: String,
    pod_name: String,
    pod_uid: String,
    node: Option<String>,
    /// Of the pod as it is now; none where the API server is not asked.
    labels: BTreeMap<String, String>,
}

impl KubernetesAttestor {
    /// Takes tokens of the clusters of a configuration.
    #[must_use]
    pub fn new(config: Live, keys: Arc<KeyCache>) -> Self {
        let api_servers = Places::new(places::API_SERVERS);
        Self {
            config,
            keys,
            api_servers,
        }
    }
}

impl Attestor for KubernetesAttestor {
    fn attest<'a>(&'a self, presented: Presented<'a>) -> Answer<'a, Attested> {
        Box::pin(async move {
            let Evidence::Kubernetes(evidence) = presented.evidence else {
                let message = "this is no Kubernetes token";
                return Err(Refusal::new(Reason::EvidenceMissing, message));
            };
            let config = self.config.load();
            let clusters = &config.attestors().kubernetes;
            let cluster = cluster_of(clusters, &evidence.cluster)?;
            let token = evidence.token.trim();
            check_form(token)?;
            let workload = match &cluster.check {
                ClusterCheck::ApiServer(server) => {
                    let _place = self.api_servers.to_ask("the API server").await?;
                    review::check(cluster, server, token).await?
                }
                ClusterCheck::Keys { issuer, keys } => {
                    let issuer = offline::Issuer {
                        cluster,
                        issuer,
                        keys,
                    };
                    offline::check(&self.keys, &issuer, token, presented.now).await?
                }
            };
            Ok(Attested::Facts(facts(cluster, workload)))
        })
    }
}

fn cluster_of<'a>(
    clusters: &'a [Arc<KubernetesCluster>],
    name: &str,
) -> Result<&'a KubernetesCluster, Refusal> {
    let not_configured = |message: String| Refusal::new(Reason::AttestorNotConfigured, message);
    match clusters {
        [] => Err(not_configured(
            "this control plane takes no Kubernetes tokens; an AttestorConfig would name its clusters"
                .to_owned(),
        )),
        [only] if name.is_empty() => Ok(only),
        several => {
            let found = several.iter().find(|cluster| cluster.cluster == name);
            found.map(Arc::as_ref).ok_or_else(|| {
                let name: String = name.chars().take(64).collect();
                not_configured(format!(
                    "cluster {name:?} is not configured at this control plane; the token must come with the name of its cluster"
                ))
            })
        }
    }
}

/// A token is looked at before anything is asked about it: three parts of base64url, within bounds.
fn check_form(token: &str) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(Reason::EvidenceRefused, message));
    if token.len() > MAX_TOKEN_BYTES {
        let length = token.len();
        return refuse(format!(
            "the token has {length} bytes; at most {MAX_TOKEN_BYTES} are taken"
        ));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let part = |part: &str| !part.is_empty() && part.bytes().all(legal);
    if token.split('.').count() != 3 || !token.split('.').all(part) {
        return refuse(
            "this is no service-account token: one is three parts of base64url".to_owned(),
        );
    }
    Ok(())
}

/// Namespace and name out of `system:serviceaccount:NAMESPACE:NAME`, which has exactly these parts.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let mut parts = user.split(':');
    let (system, kind) = (parts.next()?, parts.next()?);
    let (namespace, name) = (parts.next()?, parts.next()?);
    let exact = system == "system" && kind == "serviceaccount" && parts.next().is_none();
    // They go into a path of the API and into identities.
    let legal = sidewind_api::service::is_label(namespace) && is_name(name);
    (exact && legal).then_some((namespace, name))
}

/// Whether a text is the name of a pod or service account (RFC 1123 subdomain).
fn is_name(text: &str) -> bool {
    sidewind_api::service::is_host(text)
}

fn facts(cluster: &KubernetesCluster, workload: Workload) -> Facts {
    let mut selectors: Selectors = [
        ("kubernetes:cluster", cluster.cluster.clone()),
        ("kubernetes:namespace", workload.namespace),
        ("kubernetes:service-account", workload.service_account),
        ("kubernetes:pod-name", workload.pod_name),
        ("kubernetes:pod-uid", workload.pod_uid),
    ]
    .into_iter()
    .collect();
    if let Some(node) = workload.node {
        selectors.add("kubernetes:node", node);
    }
    for (name, value) in workload.labels {
        selectors.add(format!("kubernetes:pod-label:{name}"), value);
    }
    Facts {
        attestor: "kubernetes",
        selectors,
        pins: Vec::new(),
    }
}

/// The refusal of evidence that is not good.
fn refused(message: impl Into<String>) -> Refusal {
    Refusal::new(Reason::EvidenceRefused, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_is_split_exactly() {
        let good = service_account("system:serviceaccount:airflow:airflow-worker");
        assert_eq!(good, Some(("airflow", "airflow-worker")));
        assert!(service_account("system:serviceaccount:a:b.c").is_some());
        for bad in [
            "",
            "system:serviceaccount:airflow",
            "system:serviceaccount:airflow:",
            "system:serviceaccount::x",
            "system:serviceaccount:airflow:x:y",
            "System:serviceaccount:airflow:x",
            "system:node:airflow:x",
            "xsystem:serviceaccount:airflow:x",
            "system:serviceaccount:a/b:x",
            "system:serviceaccount:a.b:x",
            "system:serviceaccount:a:../x",
            "system:serviceaccount:a:x\n",
            "alice",
        ] {
            assert_eq!(service_account(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_bounded_before_it_is_sent_anywhere() {
        let part = |length: usize| "a".repeat(length);
        let of = |length: usize| format!("a.b.{}", part(length - 4));
        check_form(&of(MAX_TOKEN_BYTES)).unwrap();
        for bad in [
            of(MAX_TOKEN_BYTES + 1),
            String::new(),
            "a.b".to_owned(),
            "a..c".to_owned(),
            "a.b.c.d".to_owned(),
            "a.b.c\r\nx".to_owned(),
            "a.b.c=".to_owned(),
        ] {
            let refusal = check_form(&bad).unwrap_err();
            assert_eq!(refusal.reason, Reason::EvidenceRefused);
        }
    }

    #[test]
    fn the_cluster_may_go_without_saying_only_where_there_is_one() {
        let cluster = |name: &str| {
            Arc::new(KubernetesCluster {
                cluster: name.to_owned(),
                audience: "sidewind".to_owned(),
                check: ClusterCheck::Keys {
                    issuer: "x".to_owned(),
                    keys: crate::config::attestor_config::KeySource::File("/x".into()),
                },
                default_identities: false,
            })
        };
        let one = [cluster("prod")];
        assert_eq!(cluster_of(&one, "").unwrap().cluster, "prod");
        assert_eq!(cluster_of(&one, "prod").unwrap().cluster, "prod");
        cluster_of(&one, "other").unwrap_err();
        let two = [cluster("prod"), cluster("staging")];
        assert_eq!(cluster_of(&two, "staging").unwrap().cluster, "staging");
        cluster_of(&two, "").unwrap_err();
        cluster_of(&[], "").unwrap_err();
    }
}
