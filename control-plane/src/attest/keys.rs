//! The keys of issuers: from a file, a URL or by discovery; kept, and fetched again when they change.

use crate::config::attestor_config::KeySource;
use crate::https::{self, HttpsError, HttpsRequest, HttpsUrl};
use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use sidewind_identity::jwt::JwtError;
use sidewind_identity::jwt::jwks::{JwkSet, JwksError, MAX_JWKS_BYTES};
use sidewind_identity::jwt::jws::{Rules, Verified, verify};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long fetched keys are used before they are fetched again: a key that its issuer has withdrawn is
/// believed for this long at most, while the issuer can be reached.
const FRESH: Duration = Duration::from_secs(600);
/// How long they are used when they cannot be fetched again.
const STALE: Duration = Duration::from_secs(3600);
/// A token with an unknown key makes them be fetched again, but strangers cannot make that often.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(30);
/// How soon after a failure it is tried again.
const FAILURE_INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_DISCOVERY_BYTES: usize = 64 * 1024;
/// Sources remembered; configurations have few, and old ones are of no use.
const MAX_SOURCES: usize = 256;

/// Why a token could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not good.
    #[error(transparent)]
    Refused(#[from] JwtError),
    /// There are no keys to say whether it is.
    #[error("the keys of {issuer} cannot be had")]
    NoKeys {
        /// Whose.
        issuer: String,
        /// Why not.
        source: Arc<KeysError>,
    },
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is there is no key set.
    #[error(transparent)]
    Parse(#[from] JwksError),
    /// Nothing was answered.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// Something else was answered.
    #[error("{url} answered with status {status}; redirects are not followed")]
    Status {
        /// What was asked.
        url: HttpsUrl,
        /// The status.
        status: StatusCode,
    },
    /// Whoever fetched them went away meanwhile.
    #[error(
        "they were being fetched, and that was given up; they are fetched again in some seconds"
    )]
    Interrupted,
    /// The discovery document is not as it should be.
    #[error("the discovery document at {url} {why}")]
    Discovery {
        /// Where it is.
        url: HttpsUrl,
        /// What is wrong with it.
        why: String,
    },
}

/// Keys by where they come from.
#[derive(Debug, Default)]
pub struct KeyCache {
    sources: Mutex<HashMap<KeySource, Arc<tokio::sync::Mutex<Kept>>>>,
}

/// Keys, and why they could not be had anew where that was tried.
#[derive(Debug)]
struct Found {
    keys: Arc<JwkSet>,
    failure: Option<Arc<KeysError>>,
}

/// The keys of one source. Whoever fetches holds the lock, so that one fetches for all.
#[derive(Debug, Default)]
struct Kept {
    keys: Option<(Arc<JwkSet>, Instant)>,
    tried: Option<Instant>,
    failure: Option<Arc<KeysError>>,
}

impl KeyCache {
    /// Verifies a token with the keys of a source.
    ///
    /// # Errors
    /// When the token is not good, or there are no keys to say so.
    pub async fn verify(
        &self,
        token: &str,
        source: &KeySource,
        rules: &Rules<'_>,
        now: SystemTime,
    ) -> Result<Verified, TokenError> {
        let issuer = rules.expected_issuer().unwrap_or("the issuer").to_owned();
        let no_keys = |source| TokenError::NoKeys {
            issuer: issuer.clone(),
            source,
        };
        let found = self.keys(source, FRESH).await.map_err(no_keys)?;
        let verified = verify(token, &found.keys, rules, now);
        let Err(JwtError::KeyUnknown { .. } | JwtError::KeyAmbiguous(0)) = verified else {
            return Ok(verified?);
        };
        // The issuer may have a new key since.
        let again = self.keys(source, UNKNOWN_KEY_INTERVAL).await;
        let again = again.map_err(no_keys)?;
        match (verify(token, &again.keys, rules, now), again.failure) {
            // Whether it has is not known.
            (Err(JwtError::KeyUnknown { .. } | JwtError::KeyAmbiguous(0)), Some(failure)) => {
                Err(no_keys(failure))
            }
            (verified, _) => Ok(verified?),
        }
    }

    /// The keys of a source, not older than this where they can be had.
    async fn keys(&self, source: &KeySource, max_age: Duration) -> Result<Found, Arc<KeysError>> {
        if let KeySource::File(path) = source {
            return Ok(Found {
                keys: Arc::new(read(path).await.map_err(Arc::new)?),
                failure: None,
            });
        }
        let kept = self.kept(source);
        let mut kept = kept.lock().await;
        let now = Instant::now();
        if let Some((keys, at)) = &kept.keys
            && now.duration_since(*at) < max_age
        {
            return Ok(Found {
                keys: Arc::clone(keys),
                failure: None,
            });
        }
        let wait = kept.tried.map(|at| at + FAILURE_INTERVAL);
        if wait.is_none_or(|until| now >= until) {
            kept.tried = Some(now);
            match fetch(source).await {
                Ok(keys) => {
                    kept.keys = Some((Arc::new(keys), now));
                    kept.failure = None;
                }
                Err(error) => kept.failure = Some(Arc::new(error)),
            }
        }
        let failure = kept.failure.clone();
        match (&kept.keys, failure) {
            (Some((_, at)), Some(failure)) if now.duration_since(*at) >= STALE => Err(failure),
            (None, Some(failure)) => Err(failure),
            (Some((keys, _)), failure) => Ok(Found {
                keys: Arc::clone(keys),
                failure,
            }),
            (None, None) => Err(Arc::new(KeysError::Interrupted)),
        }
    }

    fn kept(&self, source: &KeySource) -> Arc<tokio::sync::Mutex<Kept>> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MAX_SOURCES && !sources.contains_key(source) {
            sources.clear();
        }
        Arc::clone(sources.entry(source.clone()).or_default())
    }
}

async fn read(path: &Path) -> Result<JwkSet, KeysError> {
    let content = https::read_bounded(path, MAX_JWKS_BYTES as u64).await;
    let content = content.map_err(|source| KeysError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(JwkSet::parse(&content)?)
}

async fn fetch(source: &KeySource) -> Result<JwkSet, KeysError> {
    match source {
        KeySource::File(path) => read(path).await,
        KeySource::Url { url, ca_file } => fetch_keys(url, ca_file.as_deref()).await,
        KeySource::Discovery {
            issuer,
            given,
            ca_file,
        } => {
            let url = discover(issuer, given, ca_file.as_deref()).await?;
            fetch_keys(&url, ca_file.as_deref()).await
        }
    }
}

async fn fetch_keys(url: &HttpsUrl, ca_file: Option<&Path>) -> Result<JwkSet, KeysError> {
    Ok(JwkSet::parse(&get(url, ca_file, MAX_JWKS_BYTES).await?)?)
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

/// OpenID Connect Discovery 1.0, section 4: where an issuer has its keys.
async fn discover(
    issuer: &HttpsUrl,
    given: &str,
    ca_file: Option<&Path>,
) -> Result<HttpsUrl, KeysError> {
    let at = issuer.join("/.well-known/openid-configuration");
    let document = get(&at, ca_file, MAX_DISCOVERY_BYTES).await?;
    let wrong = |why: String| KeysError::Discovery {
        url: at.clone(),
        why,
    };
    let document: Discovered =
        serde_json::from_slice(&document).map_err(|error| wrong(error.to_string()))?;
    if document.issuer != given {
        return Err(wrong(format!("is of issuer {:?}", document.issuer)));
    }
    let url = HttpsUrl::parse(&document.jwks_uri).map_err(|error| wrong(error.to_string()))?;
    if url.host() != issuer.host() {
        return Err(wrong(format!(
            "has its keys at another host, {:?}; if that is right, set `jwksUrl`",
            url.host()
        )));
    }
    Ok(url)
}

async fn get(
    url: &HttpsUrl,
    ca_file: Option<&Path>,
    max_body_bytes: usize,
) -> Result<Bytes, KeysError> {
    let answer = https::send(HttpsRequest {
        method: Method::GET,
        url,
        headers: vec![(ACCEPT, HeaderValue::from_static("application/json"))],
        body: Bytes::new(),
        ca_file,
        timeout: TIMEOUT,
        max_body_bytes,
    })
    .await?;
    if answer.status != StatusCode::OK {
        let (url, status) = (url.clone(), answer.status);
        return Err(KeysError::Status { url, status });
    }
    Ok(answer.body)
}
