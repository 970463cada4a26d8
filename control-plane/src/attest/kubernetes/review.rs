//! Asks the API server: TokenReview (authentication.k8s.io/v1), then the pod as it is now.

use super::{Workload, is_name, refused, service_account};
use crate::attest::unverifiable;
use crate::config::attestor_config::{ApiServer, KubernetesCluster};
use crate::https::{self, HttpsError, HttpsRequest, HttpsResponse, HttpsUrl, HttpsUrlError};
use crate::issuance::Refusal;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A review holds the token again, and what is known of its user.
const MAX_REVIEW_BYTES: usize = 64 * 1024;
/// Pods are large: etcd takes objects of one and a half megabytes.
const MAX_POD_BYTES: usize = 1 << 20;
/// The control plane's own token.
const MAX_TOKEN_FILE_BYTES: u64 = 64 * 1024;

/// Why the API server could not be asked, or did not answer as it should.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(
        "the environment names no API server (KUBERNETES_SERVICE_HOST); `inCluster` is for control planes that run in a pod"
    )]
    NotInCluster,
    #[error(transparent)]
    Url(#[from] HttpsUrlError),
    #[error("the control plane's own token in {} cannot be used", path.display())]
    OwnToken { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Https(#[from] HttpsError),
    #[error(
        "the API server answered {what} with status {status}; it needs to let the control plane create tokenreviews and get pods"
    )]
    Status {
        what: &'static str,
        status: StatusCode,
    },
    #[error(
        "the API server's answer to {what} cannot be read from line {line}, column {column} on"
    )]
    Form {
        what: &'static str,
        line: usize,
        column: usize,
    },
}

/// What a token is worth: who it is of, and that its pod is alive.
pub(super) async fn check(
    cluster: &KubernetesCluster,
    server: &ApiServer,
    token: &str,
) -> Result<Workload, Refusal> {
    let away = |error: AskError| {
        let what = format!("the API server of cluster {}", cluster.cluster);
        unverifiable("kubernetes-api-server", &what, &error)
    };
    let api = Api::of(server).await.map_err(away)?;
    let review = api.review(token, &cluster.audience).await.map_err(away)?;
    let mut workload = reviewed(&review, &cluster.audience)?;
    let pod = api.pod(&workload).await.map_err(away)?;
    let pod = pod.ok_or_else(|| {
        refused(format!(
            "there is no pod {}/{} (any more)",
            workload.namespace, workload.pod_name
        ))
    })?;
    alive(&pod, &workload)?;
    workload.node = pod.spec.node_name;
    workload.labels = pod.metadata.labels;
    Ok(workload)
}

/// The API server, and what it knows the control plane by.
struct Api<'a> {
    url: HttpsUrl,
    server: &'a ApiServer,
    authorization: HeaderValue,
}

impl<'a> Api<'a> {
    async fn of(server: &'a ApiServer) -> Result<Self, AskError> {
        let url = match &server.url {
            Some(url) => url.clone(),
            None => in_cluster()?,
        };
        let own_token = |source| AskError::OwnToken {
            path: server.token_file.clone(),
            source,
        };
        // Kubelet replaces it now and then.
        let content = https::read_bounded(&server.token_file, MAX_TOKEN_FILE_BYTES).await;
        let content = Zeroizing::new(content.map_err(own_token)?);
        let mut value = Zeroizing::new(b"Bearer ".to_vec());
        value.extend_from_slice(content.trim_ascii());
        let illegal = |_| own_token(io::Error::new(io::ErrorKind::InvalidData, "it is no token"));
        let mut authorization = HeaderValue::from_bytes(&value).map_err(illegal)?;
        authorization.set_sensitive(true);
        Ok(Self {
            url,
            server,
            authorization,
        })
    }

    async fn review(&self, token: &str, audience: &str) -> Result<ReviewStatus, AskError> {
        const WHAT: &str = "the token review";
        let body = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        });
        let url = self.url.join("/apis/authentication.k8s.io/v1/tokenreviews");
        let body = Bytes::from(body.to_string());
        let answer = self.ask(Method::POST, &url, body, MAX_REVIEW_BYTES).await?;
        if !matches!(answer.status, StatusCode::OK | StatusCode::CREATED) {
            return Err(AskError::Status {
                what: WHAT,
                status: answer.status,
            });
        }
        let review: Review = parse(WHAT, &answer)?;
        Ok(review.status)
    }

    /// The pod as it is now; none when there is no such pod.
    async fn pod(&self, workload: &Workload) -> Result<Option<Pod>, AskError> {
        const WHAT: &str = "the request for the pod";
        let (namespace, name) = (&workload.namespace, &workload.pod_name);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let url = self.url.join(&path);
        let answer = self.ask(Method::GET, &url, Bytes::new(), MAX_POD_BYTES);
        let answer = answer.await?;
        match answer.status {
            StatusCode::OK => parse(WHAT, &answer).map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(AskError::Status { what: WHAT, status }),
        }
    }

    async fn ask(
        &self,
        method: Method,
        url: &HttpsUrl,
        body: Bytes,
        max_body_bytes: usize,
    ) -> Result<HttpsResponse, AskError> {
        let json = HeaderValue::from_static("application/json");
        let mut headers = vec![
            (AUTHORIZATION, self.authorization.clone()),
            (ACCEPT, json.clone()),
        ];
        if !body.is_empty() {
            headers.push((CONTENT_TYPE, json));
        }
        let request = HttpsRequest {
            method,
            url,
            headers,
            body,
            ca_file: Some(&self.server.ca_file),
            timeout: TIMEOUT,
            max_body_bytes,
        };
        Ok(https::send(request).await?)
    }
}

fn in_cluster() -> Result<HttpsUrl, AskError> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").map_err(|_| AskError::NotInCluster)?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok();
    let port = port.and_then(|port| port.parse().ok()).unwrap_or(443);
    Ok(HttpsUrl::from_host(&host, port)?)
}

/// The place alone is told of what cannot be read: serde_json quotes texts of the wrong type, and an answer
/// to a review holds the token.
fn parse<T: DeserializeOwned>(what: &'static str, answer: &HttpsResponse) -> Result<T, AskError> {
    serde_json::from_slice(&answer.body).map_err(|error| AskError::Form {
        what,
        line: error.line(),
        column: error.column(),
    })
}

#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

/// What is read of a `TokenReviewStatus`. Its `error` is not: it may quote the token.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    audiences: Vec<String>,
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    uid: String,
    deletion_timestamp: Option<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    service_account_name: String,
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

/// Who the token is of, by the review.
fn reviewed(status: &ReviewStatus, audience: &str) -> Result<Workload, Refusal> {
    if !status.authenticated {
        return Err(refused(format!(
            "the API server does not take this token for audience {audience:?}: it has expired, its pod is gone, or it was made for another audience or cluster"
        )));
    }
    // An authenticator that knows no audiences answers with none, and has not looked.
    if !status.audiences.iter().any(|known| known == audience) {
        return Err(refused(format!(
            "the API server does not say that the token is for audience {audience:?}"
        )));
    }
    let (namespace, name) = service_account(&status.user.username)
        .ok_or_else(|| refused("the token is not of a service account"))?;
    let extra = |name: &str| {
        let key = format!("authentication.kubernetes.io/{name}");
        match status.user.extra.get(&key).map(Vec::as_slice) {
            Some([only]) if !only.is_empty() => Some(only.clone()),
            _ => None,
        }
    };
    let pod_name = extra("pod-name").filter(|name| is_name(name));
    let (Some(pod_name), Some(pod_uid)) = (pod_name, extra("pod-uid")) else {
        return Err(refused(
            "the token is not bound to a pod; use a projected service-account token with the control plane's audience",
        ));
    };
    Ok(Workload {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
        pod_name,
        pod_uid,
        ..Workload::default()
    })
}

/// Whether the pod is the one that the token is bound to, and runs.
fn alive(pod: &Pod, workload: &Workload) -> Result<(), Refusal> {
    let which = format!("pod {}/{}", workload.namespace, workload.pod_name);
    if pod.metadata.uid != workload.pod_uid {
        return Err(refused(format!(
            "{which} is another one than the token was made for: it was deleted and made again"
        )));
    }
    if pod.spec.service_account_name != workload.service_account {
        return Err(refused(format!(
            "{which} runs as another service account than the token's"
        )));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(refused(format!("{which} is being deleted")));
    }
    // A pod that has no phase yet, or an unknown one, has not been seen to run or to be about to.
    match pod.status.phase.as_str() {
        "Pending" | "Running" => Ok(()),
        "Succeeded" | "Failed" => Err(refused(format!("{which} has ended"))),
        _ => Err(refused(format!("{which} is not known to run"))),
    }
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
