//! `AttestorConfig`: whose evidence is believed. One entry for each cluster, issuer or authority.

mod airflow;
mod aws_iam;
mod keys;
mod kubernetes;
mod oidc;
mod x509;

pub use airflow::{Airflow, AirflowKeys};
pub use aws_iam::AwsRegion;
pub use keys::{KeySource, TOKEN_ALGORITHMS};
pub use kubernetes::{ApiServer, ClusterCheck, KubernetesCluster};
pub use oidc::OidcIssuer;
pub use x509::X509Authority;

use super::Draft;
use super::document::{Reader, Resource, present};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::path::PathBuf;
use std::sync::Arc;

/// The audience that evidence must be made for, unless the configuration says another.
pub const DEFAULT_AUDIENCE: &str = "sidewind";

/// Whose evidence is believed, of every kind.
#[derive(Debug, Default)]
pub struct AttestorConfigs {
    /// Kubernetes clusters.
    pub kubernetes: Vec<Arc<KubernetesCluster>>,
    /// Issuers of OIDC tokens.
    pub oidc: Vec<Arc<OidcIssuer>>,
    /// Regions whose STS says who signed a request.
    pub aws_iam: Vec<Arc<AwsRegion>>,
    /// Authorities of existing certificates.
    pub x509: Vec<Arc<X509Authority>>,
    /// Airflows whose word about running tasks is believed.
    pub airflow: Vec<Arc<Airflow>>,
}

impl AttestorConfigs {
    /// How many clusters, issuers, regions, authorities and Airflows there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.kubernetes.len()
            + self.oidc.len()
            + self.aws_iam.len()
            + self.x509.len()
            + self.airflow.len()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default, deserialize_with = "present")]
    kubernetes: Option<Vec<Spanned<kubernetes::Entry>>>,
    #[serde(default, deserialize_with = "present")]
    oidc: Option<Vec<Spanned<oidc::Entry>>>,
    #[serde(default, deserialize_with = "present")]
    aws_iam: Option<Vec<Spanned<aws_iam::Entry>>>,
    #[serde(default, deserialize_with = "present")]
    x509: Option<Vec<Spanned<x509::Entry>>>,
    #[serde(default, deserialize_with = "present")]
    airflow: Option<Vec<Spanned<airflow::Entry>>>,
}

/// Reads a document into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spanned<Spec>>>() else {
        return;
    };
    resource.metadata.check("AttestorConfig", reader, draft);
    let spec = &resource.spec.value;
    let kinds = [
        spec.kubernetes.is_some(),
        spec.oidc.is_some(),
        spec.aws_iam.is_some(),
        spec.x509.is_some(),
        spec.airflow.is_some(),
    ];
    if !kinds.contains(&true) {
        reader.refuse(
            &resource.spec,
            "must have an attestor: kubernetes, oidc, awsIam, x509 or airflow",
        );
    }
    for entry in spec.kubernetes.iter().flatten() {
        kubernetes::read(reader, draft, entry);
    }
    for entry in spec.oidc.iter().flatten() {
        oidc::read(reader, draft, entry);
    }
    for entry in spec.aws_iam.iter().flatten() {
        aws_iam::read(reader, draft, entry);
    }
    for entry in spec.x509.iter().flatten() {
        x509::read(reader, draft, entry);
    }
    for entry in spec.airflow.iter().flatten() {
        airflow::read(reader, draft, entry);
    }
}

/// The audience of an entry: what it says, or the default.
fn audience(reader: &mut Reader<'_>, given: Option<&Spanned<String>>) -> String {
    let Some(given) = given else {
        return DEFAULT_AUDIENCE.to_owned();
    };
    let audience = given.value.as_str();
    if audience.is_empty() || audience.len() > 1000 || audience.chars().any(char::is_control) {
        reader.refuse(given, "must be a text of 1 to 1000 bytes");
    }
    // A token that is good at an API server must not be handed to anything else.
    if audience.contains("kubernetes.default") {
        reader.refuse(
            given,
            "is the API server's own audience: whoever saw such a token could use it there; choose one that is the control plane's alone",
        );
    }
    audience.to_owned()
}

/// A path of a file; relative ones would depend on where the process was started.
fn file(reader: &mut Reader<'_>, given: Option<&Spanned<String>>) -> Option<PathBuf> {
    let given = given?;
    if !given.value.starts_with('/') {
        reader.refuse(given, "must be the absolute path of a file");
    }
    Some(PathBuf::from(&given.value))
}

#[cfg(test)]
mod tests;
