//! A Kubernetes cluster whose service-account tokens are believed.

use super::super::Draft;
use super::super::document::{Reader, present};
use super::{KeySource, audience, file, keys};
use crate::https::HttpsUrl;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::path::PathBuf;

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesCluster {
    /// Its name here.
    pub cluster: String,
    /// What tokens must be made for.
    pub audience: String,
    /// How tokens are checked.
    pub check: ClusterCheck,
    /// Whether a workload that no registration matches gets `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub default_identities: bool,
}

/// How tokens are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterCheck {
    /// By the API server: TokenReview, and the pod as it is now.
    ApiServer(ApiServer),
    /// By the cluster's keys alone. A deleted pod's token is good until it ends.
    Keys {
        /// What tokens must name as their issuer.
        issuer: String,
        /// The cluster's keys.
        keys: KeySource,
    },
}

/// How an API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiServer {
    /// Where it is; none: that of the cluster that the control plane runs in, as its environment says.
    pub url: Option<HttpsUrl>,
    /// Whom to believe there.
    pub ca_file: PathBuf,
    /// The control plane's own token there, read at each use.
    pub token_file: PathBuf,
}

/// Where a pod finds what it needs to reach its own API server.
const POD_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    cluster: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    in_cluster: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "present")]
    api_server: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    ca_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    token_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    issuer: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwks_file: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwks_url: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    audience: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    default_identities: Option<Spanned<bool>>,
}

pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft, entry: &Spanned<Entry>) {
    let Entry {
        cluster,
        audience: given,
        ..
    } = &entry.value;
    if !sidewind_api::service::is_host(&cluster.value) {
        reader.refuse(
            cluster,
            "must be of lower-case letters, digits, `-` and `.`",
        );
    }
    let name = &cluster.value;
    reader.take(draft, cluster, format!("Kubernetes cluster {name}"));
    let audience = audience(reader, given.as_ref());
    let default_identities = entry.value.default_identities.as_ref();
    let check = read_check(reader, entry);
    if let Some(check) = check.filter(|_| reader.is_sound()) {
        let default_at = default_identities.filter(|given| given.value);
        draft.add_cluster(
            KubernetesCluster {
                cluster: name.clone(),
                audience,
                check,
                default_identities: default_at.is_some(),
            },
            default_at.map(|at| reader.place(at)),
        );
    }
}

fn read_check(reader: &mut Reader<'_>, entry: &Spanned<Entry>) -> Option<ClusterCheck> {
    let fields = &entry.value;
    let in_cluster = fields.in_cluster.as_ref().is_some_and(|given| given.value);
    let offline = fields.jwks_file.is_some() || fields.jwks_url.is_some();
    let ways = [in_cluster, fields.api_server.is_some(), offline];
    if ways.iter().filter(|way| **way).count() != 1 {
        reader.refuse(
            entry,
            "must have one of `inCluster: true`, `apiServer`, or `issuer` with `jwksFile` or `jwksUrl`: how tokens are checked",
        );
        return None;
    }
    if offline {
        return read_offline(reader, entry);
    }
    if let Some(issuer) = &fields.issuer {
        reader.refuse(
            issuer,
            "is for `jwksFile` and `jwksUrl`; an API server knows its own",
        );
    }
    let url = match &fields.api_server {
        Some(text) => Some(keys::url(reader, text)?),
        None => None,
    };
    let mut path = |given: Option<&Spanned<String>>, name: &str, default: &str| {
        let path = file(reader, given).or_else(|| in_cluster.then(|| PathBuf::from(default)));
        if path.is_none() {
            reader.refuse(entry, format!("must have `{name}` beside `apiServer`"));
        }
        path
    };
    Some(ClusterCheck::ApiServer(ApiServer {
        ca_file: path(fields.ca_file.as_ref(), "caFile", POD_CA)?,
        token_file: path(fields.token_file.as_ref(), "tokenFile", POD_TOKEN)?,
        url,
    }))
}

fn read_offline(reader: &mut Reader<'_>, entry: &Spanned<Entry>) -> Option<ClusterCheck> {
    let fields = &entry.value;
    if let Some(token) = &fields.token_file {
        reader.refuse(token, "is for `apiServer`; keys are read without it");
    }
    let Some(issuer) = fields
        .issuer
        .as_ref()
        .filter(|issuer| !issuer.value.is_empty())
    else {
        reader.refuse(
            entry,
            "must have `issuer`: what the cluster's tokens have as `iss`",
        );
        return None;
    };
    let (jwks_file, jwks_url) = (fields.jwks_file.as_ref(), fields.jwks_url.as_ref());
    let keys = keys::read(reader, jwks_file, jwks_url, fields.ca_file.as_ref())?;
    let issuer = issuer.value.clone();
    Some(ClusterCheck::Keys { issuer, keys })
}
