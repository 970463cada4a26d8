//! A root with its key, or a signing authority below an upstream root, in files that are read again as they change.
//!
//! Content is compared and not times: a Secret's mount swaps a symlink, others write in place. A pair that is half
//! written is one that does not fit together, and is left alone until it does.

use super::{Offer, Upstream, UpstreamError};
use crate::store::read_private;
use rustls_pki_types::CertificateDer;
use sidewind_identity::authority::{RootAuthority, SigningAuthority};
use sidewind_identity::{TrustBundle, TrustBundles, TrustDomain};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// The largest file that is read.
pub const MAX_FILE_BYTES: u64 = 256 * 1024;
/// What ends sooner is not taken.
const SHORTEST_LIFE: Duration = Duration::from_secs(300);

const CERTIFICATE: &str = "--root-cert";
const KEY: &str = "--root-key";
const BUNDLE: &str = "--upstream-bundle";

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The root; or the signing authority's certificate and those between it and its root.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
    /// The roots above the signing authority; none when `certificate` is the root itself.
    pub upstream_bundle: Option<PathBuf>,
}

/// Authorities from files.
#[derive(Debug)]
pub struct UpstreamFiles {
    paths: Paths,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// SHA-256 of what was read last, good or bad.
    read: Option<[u8; 32]>,
    /// What was last found in use.
    loaded: Option<Loaded>,
}

#[derive(Debug, Clone)]
struct Loaded {
    /// SHA-256 of the files.
    digest: [u8; 32],
    offer: Arc<Offer>,
    issuer: Issuer,
}

#[derive(Debug, Clone)]
enum Issuer {
    Root(Arc<RootAuthority>),
    Signing(Arc<SigningAuthority>),
}

/// The text of every file.
struct Content {
    certificate: String,
    key: Zeroizing<String>,
    bundle: Option<String>,
}

impl UpstreamFiles {
    /// Authorities from these files.
    #[must_use]
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            state: Arc::default(),
        }
    }

    /// Reads the files now; for the start, when a mistake in them is to be said at once.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), UpstreamError> {
        read(&self.paths, &self.state, trust_domain, now).map(|_| ())
    }
}

#[tonic::async_trait]
impl Upstream for UpstreamFiles {
    async fn offer(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Arc<Offer>, UpstreamError> {
        let (paths, state) = (self.paths.clone(), Arc::clone(&self.state));
        let trust_domain = trust_domain.clone();
        // A mount may hang, and no thread that serves is to wait for it.
        let read = move || read(&paths, &state, &trust_domain, now);
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| UpstreamError::NothingYet)?
    }

    async fn issue(
        &self,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<SigningAuthority, UpstreamError> {
        let loaded = locked(&self.state).loaded.clone();
        match loaded.ok_or(UpstreamError::NothingYet)?.issuer {
            Issuer::Root(root) => Ok(root.issue_intermediate(lifetime, now)?),
            Issuer::Signing(signing) => Ok(SigningAuthority::from_der(
                signing.trust_domain().clone(),
                signing.chain().to_vec(),
                signing.key().clone(),
            )
            .map_err(load(CERTIFICATE))?),
        }
    }

    fn name(&self) -> String {
        format!("{CERTIFICATE} {}", self.paths.certificate.display())
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(
    flag: &'static str,
) -> impl FnOnce(sidewind_identity::authority::AuthorityLoadError) -> UpstreamError {
    move |source| UpstreamError::Load { flag, source }
}

/// What the files say now. Content that is new and bad is believed to be bad when it is still there at the next
/// look: until then it may be half written.
fn read(
    paths: &Paths,
    state: &Mutex<State>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Arc<Offer>, UpstreamError> {
    let content = Content::read(paths)?;
    let digest = content.digest();
    let mut state = locked(state);
    let seen_before = state.read.replace(digest) == Some(digest);
    if let Some(loaded) = state.loaded.as_ref().filter(|it| it.digest == digest) {
        return Ok(Arc::clone(&loaded.offer));
    }
    match content.load(trust_domain, now) {
        Ok((offer, issuer)) => {
            let offer = Arc::new(offer);
            state.loaded = Some(Loaded {
                digest,
                offer: Arc::clone(&offer),
                issuer,
            });
            Ok(offer)
        }
        Err(error) => match &state.loaded {
            Some(loaded) if !seen_before => Ok(Arc::clone(&loaded.offer)),
            _ => Err(error),
        },
    }
}

impl Content {
    fn read(paths: &Paths) -> Result<Self, UpstreamError> {
        let private = |source| UpstreamError::File { flag: KEY, source };
        let key = read_private(&paths.key, MAX_FILE_BYTES).map_err(private)?;
        Ok(Self {
            certificate: text(CERTIFICATE, &paths.certificate)?,
            key: std::str::from_utf8(&key)
                .map(|key| Zeroizing::new(key.to_owned()))
                .map_err(|_| not_text(KEY, &paths.key))?,
            bundle: match &paths.upstream_bundle {
                Some(path) => Some(text(BUNDLE, path)?),
                None => None,
            },
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let bundle = self.bundle.as_deref().unwrap_or_default();
        for part in [self.certificate.as_str(), self.key.as_str(), bundle] {
            context.update(&part.len().to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    fn load(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(Offer, Issuer), UpstreamError> {
        let soon = now + SHORTEST_LIFE;
        let Some(bundle) = &self.bundle else {
            let root = RootAuthority::from_pem(trust_domain.clone(), &self.certificate, &self.key)
                .map_err(load(CERTIFICATE))?;
            if root.not_after() < soon {
                return Err(UpstreamError::Ended("the root certificate"));
            }
            let anchor = root.certificate().clone();
            let offer = Offer {
                roots: vec![anchor.clone()],
                anchor,
                signing: None,
                not_after: root.not_after(),
            };
            return Ok((offer, Issuer::Root(Arc::new(root))));
        };
        let bundle =
            TrustBundle::from_pem(trust_domain.clone(), bundle).map_err(UpstreamError::Bundle)?;
        let signing = below(trust_domain, &bundle, &self.certificate, &self.key)?;
        let end = signing.not_after();
        if end < soon {
            return Err(UpstreamError::Ended(
                "the signing certificate of --root-cert",
            ));
        }
        let offer = Offer {
            anchor: anchor(&signing, &bundle, now)?,
            roots: bundle
                .authorities()
                .iter()
                .map(|root| root.certificate().clone())
                .collect(),
            signing: signing.chain().first().cloned(),
            not_after: end,
        };
        Ok((offer, Issuer::Signing(Arc::new(signing))))
    }
}

/// The signing authority; roots at the end of its chain are left out, as peers have them.
fn below(
    trust_domain: &TrustDomain,
    bundle: &TrustBundle,
    certificates: &str,
    key: &str,
) -> Result<SigningAuthority, UpstreamError> {
    let given = SigningAuthority::from_pem(trust_domain.clone(), certificates, key)
        .map_err(load(CERTIFICATE))?;
    let is_root = |der: &CertificateDer<'_>| {
        bundle
            .authorities()
            .iter()
            .any(|root| root.certificate() == der)
    };
    let chain = given
        .chain()
        .iter()
        .filter(|der| !is_root(der))
        .cloned()
        .collect();
    SigningAuthority::from_der(trust_domain.clone(), chain, given.key().clone())
        .map_err(load(CERTIFICATE))
}

/// The root that what the authority signs is verified with.
fn anchor(
    signing: &SigningAuthority,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<CertificateDer<'static>, UpstreamError> {
    let mut refusal = None;
    for root in bundle.authorities() {
        let root = root.certificate();
        let alone = TrustBundle::from_der(bundle.trust_domain().clone(), 0, vec![root.to_vec()])
            .map_err(UpstreamError::Bundle)?;
        match signing.check(&TrustBundles::from(alone), now) {
            Ok(()) => return Ok(root.clone()),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.map_or(UpstreamError::NothingYet, UpstreamError::NoRoot))
}

fn text(flag: &'static str, path: &Path) -> Result<String, UpstreamError> {
    let read = || {
        let mut text = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    let bytes = read().map_err(|source| UpstreamError::File {
        flag,
        source: crate::store::StateDirError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        },
    })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(not_text(flag, path));
    }
    String::from_utf8(bytes).map_err(|_| not_text(flag, path))
}

fn not_text(flag: &'static str, path: &Path) -> UpstreamError {
    UpstreamError::NotText {
        flag,
        path: path.display().to_string(),
    }
}
