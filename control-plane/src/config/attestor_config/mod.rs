//! `AttestorConfig`: whose evidence is believed. One entry for each cluster, issuer or authority.

mod keys;
mod kubernetes;
mod oidc;

pub use keys::{KeySource, TOKEN_ALGORITHMS};
pub use kubernetes::{ApiServer, ClusterCheck, KubernetesCluster};
pub use oidc::OidcIssuer;

use super::Draft;
use super::document::{Metadata, Reader, present};
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
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resource {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: Spanned<Spec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default, deserialize_with = "present")]
    kubernetes: Option<Vec<Spanned<kubernetes::Entry>>>,
    #[serde(default, deserialize_with = "present")]
    oidc: Option<Vec<Spanned<oidc::Entry>>>,
}

/// Reads a document into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource>() else {
        return;
    };
    resource.metadata.check("AttestorConfig", reader, draft);
    let spec = &resource.spec.value;
    if spec.kubernetes.is_none() && spec.oidc.is_none() {
        reader.refuse(&resource.spec, "must have an attestor: kubernetes or oidc");
    }
    for entry in spec.kubernetes.iter().flatten() {
        kubernetes::read(reader, draft, entry);
    }
    for entry in spec.oidc.iter().flatten() {
        oidc::read(reader, draft, entry);
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
