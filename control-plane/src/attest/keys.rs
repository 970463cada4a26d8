//! The keys of issuers: from a file, a URL or by discovery; kept, and fetched again when they change.

use super::places::{self, Places};
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Many wait for them already.
    #[error("too many tokens wait for them")]
    Crowded,
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
#[derive(Debug)]
pub struct KeyCache {
    sources: Mutex<HashMap<KeySource, Arc<Source>>>,
    /// For those who wait while another fetches.
    places: Places,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self {
            sources: Mutex::default(),
            places: Places::new(places::KEYS),
        }
    }
}

/// Whether keys that are not as young as they should be are good enough while somebody fetches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    UseKept,
    Wait,
}

/// Keys, and why they could not be had anew where that was tried.
#[derive(Debug)]
struct Found {
    keys: Arc<JwkSet>,
    failure: Option<Arc<KeysError>>,
}

/// Whoever fetches the keys of a source has the turn, so that one fetches for all.
#[derive(Debug, Default)]
struct Source {
    kept: Mutex<Kept>,
    turn: tokio::sync::Mutex<()>,
}

/// The keys of one source.
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
        let found = self.keys(source, FRESH, Meanwhile::UseKept).await;
        let found = found.map_err(no_keys)?;
        let verified = verify(token, &found.keys, rules, now);
        let Err(JwtError::KeyUnknown { .. } | JwtError::KeyAmbiguous(0)) = verified else {
            return Ok(verified?);
        };
        // The issuer may have a new key since.
        let again = self
            .keys(source, UNKNOWN_KEY_INTERVAL, Meanwhile::Wait)
            .await;
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
    async fn keys(
        &self,
        source: &KeySource,
        max_age: Duration,
        meanwhile: Meanwhile,
    ) -> Result<Found, Arc<KeysError>> {
        if let KeySource::File(path) = source {
            return Ok(Found {
                keys: Arc::new(read(path).await.map_err(Arc::new)?),
                failure: None,
            });
        }
        let known = self.known(source);
        if let Some(found) = known.kept().younger_than(max_age) {
            return Ok(found);
        }
        let turn = known.turn.try_lock();
        if turn.is_err()
            && meanwhile == Meanwhile::UseKept
            && let Some(found) = known.kept().younger_than(STALE)
        {
            return Ok(found);
        }
        let (_turn, _place) = match turn {
            Ok(turn) => (turn, None),
            Err(_) => {
                let place = self.places.take().await;
                let place = place.ok_or_else(|| Arc::new(KeysError::Crowded))?;
                (known.turn.lock().await, Some(place))
            }
        };
        // Somebody may have fetched them meanwhile, or tried.
        if let Some(found) = known.kept().younger_than(max_age) {
            return Ok(found);
        }
        if known.kept().may_try() {
            // Noted before, too: whoever fetches may go away in the middle.
            known.kept().tried = Some(Instant::now());
            let fetched = fetch(source).await;
            known.kept().note(fetched);
        }
        known.kept().found()
    }

    fn known(&self, source: &KeySource) -> Arc<Source> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MAX_SOURCES && !sources.contains_key(source) {
            sources.clear();
        }
        Arc::clone(sources.entry(source.clone()).or_default())
    }
}

impl Source {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn younger_than(&self, max_age: Duration) -> Option<Found> {
        let (keys, at) = self.keys.as_ref()?;
        (at.elapsed() < max_age).then(|| Found {
            keys: Arc::clone(keys),
            failure: None,
        })
    }

    fn may_try(&self) -> bool {
        self.tried.is_none_or(|at| at.elapsed() >= FAILURE_INTERVAL)
    }

    /// Takes what came of a try. It may have lasted, and those who have waited for it must not try again one after the
    /// other.
    fn note(&mut self, fetched: Result<JwkSet, KeysError>) {
        let now = Instant::now();
        self.tried = Some(now);
        match fetched {
            Ok(keys) => (self.keys, self.failure) = (Some((Arc::new(keys), now)), None),
            Err(error) => self.failure = Some(Arc::new(error)),
        }
    }

    fn found(&self) -> Result<Found, Arc<KeysError>> {
        let failure = self.failure.clone();
        match (&self.keys, failure) {
            (Some((_, at)), Some(failure)) if at.elapsed() >= STALE => Err(failure),
            (None, Some(failure)) => Err(failure),
            (Some((keys, _)), failure) => Ok(Found {
                keys: Arc::clone(keys),
                failure,
            }),
            (None, None) => Err(Arc::new(KeysError::Interrupted)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::testing::{Signer, jwks, now};
    use serde_json::json;
    use std::net::TcpListener;

    /// An issuer that takes connections and says nothing.
    struct Silent {
        listener: TcpListener,
        source: KeySource,
    }

    impl Silent {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let url = format!("https://{}/keys", listener.local_addr().unwrap());
            let source = KeySource::Url {
                url: HttpsUrl::parse(&url).unwrap(),
                ca_file: None,
            };
            Self { listener, source }
        }

        /// How often it was asked since the last time.
        fn asked(&self) -> usize {
            std::iter::from_fn(|| self.listener.accept().ok()).count()
        }
    }

    async fn ask(
        keys: &KeyCache,
        silent: &Silent,
        signer: &Signer,
    ) -> Result<Verified, TokenError> {
        let token = signer.token(&json!({
            "iss": "x", "aud": "sidewind", "sub": "s", "iat": now(), "exp": now() + 300,
        }));
        let audiences = ["sidewind"];
        let rules = Rules::oidc("x", &audiences).unwrap();
        keys.verify(&token, &silent.source, &rules, SystemTime::now())
            .await
    }

    fn keep(keys: &KeyCache, silent: &Silent, signer: &Signer) {
        let set = JwkSet::parse(jwks(&[signer]).as_bytes()).unwrap();
        keys.known(&silent.source).kept().note(Ok(set));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_waited_for_a_try_that_failed_does_not_make_another() {
        let (silent, keys) = (Silent::new(), KeyCache::default());
        let signer = Signer::es256("first");
        let tries = tokio::join!(
            ask(&keys, &silent, &signer),
            ask(&keys, &silent, &signer),
            ask(&keys, &silent, &signer)
        );
        for tried in [tries.0, tries.1, tries.2] {
            assert!(matches!(tried, Err(TokenError::NoKeys { .. })), "{tried:?}");
        }
        assert_eq!(silent.asked(), 1);
        tokio::time::advance(FAILURE_INTERVAL).await;
        ask(&keys, &silent, &signer).await.unwrap_err();
        assert_eq!(silent.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn while_one_fetches_the_others_use_the_keys_that_are_kept() {
        let (silent, keys) = (Silent::new(), KeyCache::default());
        let (signer, stranger) = (Signer::es256("first"), Signer::es256("new"));
        keep(&keys, &silent, &signer);
        tokio::time::advance(FRESH).await;
        let begun = Instant::now();
        let fetches = async {
            ask(&keys, &silent, &signer).await.unwrap();
            begun.elapsed()
        };
        let meanwhile = async {
            tokio::task::yield_now().await;
            assert!(keys.known(&silent.source).turn.try_lock().is_err());
            ask(&keys, &silent, &signer).await.unwrap();
            begun.elapsed()
        };
        // Whether a new key is good is known when it was looked for.
        let unknown = async {
            tokio::task::yield_now().await;
            let refused = ask(&keys, &silent, &stranger).await.unwrap_err();
            assert!(matches!(refused, TokenError::NoKeys { .. }), "{refused:?}");
            begun.elapsed()
        };
        let (fetches, meanwhile, unknown) = tokio::join!(fetches, meanwhile, unknown);
        assert!(
            fetches >= TIMEOUT && unknown >= TIMEOUT,
            "{fetches:?} {unknown:?}"
        );
        assert!(meanwhile < TIMEOUT, "{meanwhile:?}");
        assert_eq!(silent.asked(), 1);
        // What is too old is used by nobody.
        tokio::time::advance(STALE).await;
        ask(&keys, &silent, &signer).await.unwrap_err();
    }
}
