//! The trust bundle of the own trust domain, kept in a file for a restart.
//!
//! A proxy begins with the operator's file of roots, which may be older than the last rotation of the root. With what
//! the control plane has said since, it verifies a control plane that has gone on to another root, and knows which
//! sequence of the bundle it has seen. Never a key is kept, so a restart needs the control plane all the same before
//! this proxy has an identity.
//!
//! Whoever can write the file could write this process' memory too: it is taken only where nobody else can.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sidewind_identity::bundle::document::{
    BundleDocument, DEFAULT_REFRESH_HINT, MAX_DOCUMENT_BYTES,
};
use sidewind_identity::jwt::bundle::JwtBundle;
use sidewind_identity::{TrustBundle, TrustBundles, TrustDomain};
use tokio::time::Instant;

use super::Shared;
use super::occasionally::Occasionally;

/// The file's name in the state directory.
pub(super) const FILE: &str = "trust-bundle.json";
/// Older files are not used: a root in it may have been revoked since, and nobody would say so.
const LONGEST_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// A file from later than this is of a clock that was wrong, and its age is not known.
const FUTURE: Duration = Duration::from_secs(86_400);
/// How often a file that is right is written again, so that its age says when it was last known to be.
const REFRESH: Duration = Duration::from_secs(3600);
const MAX_BYTES: u64 = MAX_DOCUMENT_BYTES as u64 + 4096;

/// Where the bundle is kept.
#[derive(Debug, Clone)]
pub(super) struct BundleCache {
    path: PathBuf,
    trust_domain: TrustDomain,
}

/// What was kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) bundle: TrustBundle,
    /// SHA-256 of the operator's file that was in force then.
    pub(super) operator_bundle: [u8; 32],
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    trust_domain: String,
    saved_unix: u64,
    operator_bundle_sha256: String,
    /// SPIFFE bundle document.
    bundle: Value,
}

#[derive(Debug, thiserror::Error)]
enum CacheError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "it is not a regular file of this user's that nobody else may read or write (mode 0600)"
    )]
    NotPrivate,
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is of trust domain {0:?}")]
    TrustDomain(String),
    #[error("it is {0} days old; at most 30 are believed")]
    Old(u64),
    #[error("it says that it was written in the future; check the clock")]
    Future,
    #[error("{0}")]
    Bundle(String),
}

/// SHA-256.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut array = [0; 32];
    array.copy_from_slice(digest.as_ref());
    array
}

impl BundleCache {
    pub(super) fn new(state_dir: &Path, trust_domain: &TrustDomain) -> Self {
        Self {
            path: state_dir.join(FILE),
            trust_domain: trust_domain.clone(),
        }
    }

    /// What was kept; none, with a warning, where it cannot be used.
    pub(super) async fn load(self, now: SystemTime) -> Option<Kept> {
        let path = self.path.display().to_string();
        // A mount may hang, and this thread renews certificates.
        let read = tokio::task::spawn_blocking(move || self.read(now)).await;
        match read.unwrap_or_else(|_| Err(CacheError::Bundle("reading it failed".to_owned()))) {
            Ok(kept) => {
                tracing::info!(
                    file = path,
                    sequence = kept.bundle.sequence(),
                    authorities = kept.bundle.authorities().len(),
                    "there is a trust bundle of the last run"
                );
                Some(kept)
            }
            Err(CacheError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = path, error = %error, "the trust bundle of the last run is not used");
                None
            }
        }
    }

    fn read(&self, now: SystemTime) -> Result<Kept, CacheError> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
            .open(&self.path)?;
        check_private(&file)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(CacheError::TooLarge);
        }
        self.parse(&text, now)
    }

    fn parse(&self, text: &[u8], now: SystemTime) -> Result<Kept, CacheError> {
        let content: Content = serde_json::from_slice(text)?;
        if content.trust_domain != self.trust_domain.as_str() {
            let named = content.trust_domain.chars().take(64).collect();
            return Err(CacheError::TrustDomain(named));
        }
        let saved = UNIX_EPOCH.checked_add(Duration::from_secs(content.saved_unix));
        let saved = saved.filter(|saved| *saved <= now + FUTURE);
        let age = now.duration_since(saved.ok_or(CacheError::Future)?);
        let age = age.unwrap_or_default();
        if age > LONGEST_KEPT {
            return Err(CacheError::Old(age.as_secs() / 86_400));
        }
        let bad = |problem: &dyn std::fmt::Display| CacheError::Bundle(problem.to_string());
        let operator_bundle = from_hex(&content.operator_bundle_sha256)
            .ok_or_else(|| bad(&"the digest of the operator's file is no SHA-256"))?;
        let document = content.bundle.to_string();
        let document = BundleDocument::parse(self.trust_domain.clone(), document.as_bytes(), now)
            .map_err(|error| bad(&error))?;
        // What was written is right in every part, but for roots that have ended since.
        if let Some(finding) = document.findings().iter().find(|one| !is_expiry(one)) {
            return Err(bad(finding));
        }
        if document.x509().authorities().is_empty() {
            return Err(bad(&"no root in it is valid now"));
        }
        Ok(Kept {
            bundle: document.x509().clone(),
            operator_bundle,
        })
    }

    /// Writes beside the file and renames, so that there is always one whole version.
    fn write(
        &self,
        document: &BundleDocument,
        operator_bundle: &[u8; 32],
        now: SystemTime,
    ) -> Result<(), CacheError> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let content = Content {
            trust_domain: self.trust_domain.to_string(),
            saved_unix: since.as_secs(),
            operator_bundle_sha256: to_hex(operator_bundle),
            bundle: serde_json::from_str(&document.to_json())?,
        };
        let text = serde_json::to_vec(&content)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let new = self.path.with_extension("json.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(dir)?.sync_all()?;
        Ok(())
    }
}

fn is_expiry(finding: &sidewind_identity::bundle::document::Finding) -> bool {
    use sidewind_identity::bundle::document::ElementError;
    matches!(finding.reason, ElementError::Expired)
}

fn check_private(file: &File) -> Result<(), CacheError> {
    let metadata = file.metadata()?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    if metadata.is_file() && is_own && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(CacheError::NotPrivate)
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Keeps the file up to date for as long as the process runs.
pub(super) async fn keep(cache: Option<BundleCache>, shared: Arc<Shared>) {
    let Some(cache) = cache else { return };
    let mut credentials = shared.publisher.credentials();
    let mut operator = shared.operator_bundle.subscribe();
    let mut keeper = Keeper {
        cache,
        written: None,
        failed: Occasionally::default(),
    };
    loop {
        let present = credentials.borrow_and_update().clone();
        // A file that could not be had has no digest, and no file has this one.
        let operator_bundle = operator.borrow_and_update().unwrap_or_default();
        // What the control plane has said comes with an SVID, or after it.
        if let Some(present) = present {
            let now = shared.clock.now();
            keeper.update(&present.bundles, operator_bundle, now).await;
        }
        tokio::select! {
            changed = credentials.changed() => if changed.is_err() { return },
            changed = operator.changed() => if changed.is_err() { return },
        }
    }
}

/// Writes what has changed.
#[derive(Debug)]
struct Keeper {
    cache: BundleCache,
    /// What is in the file, and since when.
    written: Option<(BundleDocument, [u8; 32], Instant)>,
    failed: Occasionally,
}

impl Keeper {
    async fn update(&mut self, bundles: &TrustBundles, operator_bundle: [u8; 32], now: SystemTime) {
        let Some(document) = self.document(bundles) else {
            return;
        };
        let is_written = self.written.as_ref().is_some_and(|(known, operator, at)| {
            *known == document && *operator == operator_bundle && at.elapsed() < REFRESH
        });
        if is_written {
            return;
        }
        let (cache, to_write) = (self.cache.clone(), document.clone());
        // A disk may hang, and this thread renews certificates.
        let write = move || cache.write(&to_write, &operator_bundle, now);
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {
                self.failed.reset();
                self.written = Some((document, operator_bundle, Instant::now()));
            }
            Ok(Err(error)) => {
                if let Some(times) = self.failed.count() {
                    let file = self.cache.path.display();
                    tracing::warn!(
                        %file, error = %error, times,
                        "the trust bundle cannot be kept for a restart"
                    );
                }
            }
            Err(panicked) => tracing::error!(error = %panicked, "writing the trust bundle failed"),
        }
    }

    /// Roots alone: the keys of tokens come with an SVID, and nothing asks for them before.
    fn document(&self, bundles: &TrustBundles) -> Option<BundleDocument> {
        let trust_domain = &self.cache.trust_domain;
        let x509 = bundles.get(trust_domain)?.clone();
        let jwt = JwtBundle::new(trust_domain.clone(), Vec::new()).ok()?;
        BundleDocument::new(x509, jwt, DEFAULT_REFRESH_HINT).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sidewind_identity::authority::generate_root;

    use super::*;

    const OPERATOR: [u8; 32] = [7; 32];

    struct Given {
        dir: tempfile::TempDir,
        cache: BundleCache,
        now: SystemTime,
    }

    fn bundle(trust_domain: &str, sequence: u64) -> TrustBundle {
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        let life = Duration::from_secs(40 * 86_400);
        let root = generate_root(&trust_domain, life, SystemTime::now()).unwrap();
        let der = root.certificate().to_vec();
        TrustBundle::from_der(trust_domain, sequence, vec![der]).unwrap()
    }

    fn given() -> (Given, BundleDocument) {
        let dir = tempfile::tempdir().unwrap();
        let bundle = bundle("sidewind.local", 5);
        let given = Given {
            cache: BundleCache::new(dir.path(), bundle.trust_domain()),
            dir,
            now: SystemTime::now(),
        };
        let jwt = JwtBundle::new(bundle.trust_domain().clone(), Vec::new()).unwrap();
        let document = BundleDocument::new(bundle, jwt, DEFAULT_REFRESH_HINT).unwrap();
        given.cache.write(&document, &OPERATOR, given.now).unwrap();
        (given, document)
    }

    impl Given {
        fn path(&self) -> PathBuf {
            self.dir.path().join(FILE)
        }

        fn refusal(&self) -> String {
            self.cache.read(self.now).unwrap_err().to_string()
        }

        fn edit(&self, change: impl FnOnce(&mut Value)) {
            let text = fs::read(self.path()).unwrap();
            let mut content = serde_json::from_slice(&text).unwrap();
            change(&mut content);
            fs::write(self.path(), content.to_string()).unwrap();
        }
    }

    #[test]
    fn what_was_kept_is_read_back_and_only_its_owner_may_read_it() {
        let (given, document) = given();
        let kept = given.cache.read(given.now).unwrap();
        assert_eq!(kept.bundle, *document.x509());
        assert_eq!(kept.operator_bundle, OPERATOR);
        let mode = fs::metadata(given.path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = fs::read_to_string(given.path()).unwrap();
        assert!(
            !text.contains("PRIVATE") && !text.contains("\"d\""),
            "{text}"
        );
        let others: Vec<_> = fs::read_dir(given.dir.path()).unwrap().collect();
        assert_eq!(others.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_version_that_was_half_written_leaves_the_one_before() {
        let (given, document) = given();
        fs::write(given.dir.path().join("trust-bundle.json.new"), "{").unwrap();
        assert!(given.cache.read(given.now).is_ok());
        given.cache.write(&document, &OPERATOR, given.now).unwrap();
        assert!(given.cache.read(given.now).is_ok());
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_believed() {
        for mode in [0o644, 0o640, 0o602, 0o660] {
            let (given, _) = given();
            fs::set_permissions(given.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(given.refusal().contains("mode 0600"), "{mode:o}");
        }
        let (given, _) = given();
        let elsewhere = given.dir.path().join("elsewhere");
        fs::rename(given.path(), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, given.path()).unwrap();
        assert!(matches!(
            given.cache.read(given.now),
            Err(CacheError::Io(_))
        ));
        fs::remove_file(given.path()).unwrap();
        fs::create_dir(given.path()).unwrap();
        assert!(given.refusal().contains("regular file"));
    }

    #[test]
    fn what_was_changed_is_not_believed() {
        type Change = fn(&mut Value);
        let table: [(&str, Change, &str); 8] = [
            (
                "another trust domain",
                |it| it["trust_domain"] = "other.org".into(),
                "trust domain \"other.org\"",
            ),
            (
                "no digest",
                |it| it["operator_bundle_sha256"] = "zz".into(),
                "no SHA-256",
            ),
            (
                "a digest of other letters",
                |it| it["operator_bundle_sha256"] = "é".repeat(32).into(),
                "no SHA-256",
            ),
            ("a field more", |it| it["key"] = "x".into(), "unknown field"),
            (
                "no bundle",
                |it| it["bundle"] = Value::Null,
                "cannot be read",
            ),
            (
                "no roots",
                |it| it["bundle"]["keys"] = Value::Array(Vec::new()),
                "no root",
            ),
            (
                "a root that is none",
                |it| it["bundle"]["keys"][0]["x5c"][0] = "AAAA".into(),
                "",
            ),
            (
                "another key",
                |it| it["bundle"]["keys"][0]["x"] = "AAAA".into(),
                "",
            ),
        ];
        for (name, change, expected) in table {
            let (given, _) = given();
            given.edit(change);
            let refusal = given.refusal();
            assert!(refusal.contains(expected), "{name}: {refusal}");
        }
        let (given, _) = given();
        fs::write(given.path(), "garbage").unwrap();
        assert!(given.refusal().contains("cannot be read"));
        fs::write(given.path(), vec![b' '; MAX_BYTES as usize + 1]).unwrap();
        assert!(given.refusal().contains("bytes"));
    }

    #[test]
    fn a_file_that_is_too_old_or_of_the_future_is_not_believed() {
        let day = Duration::from_secs(86_400);
        for (later, expected) in [(day * 29, None), (day * 31, Some("31 days old"))] {
            let (mut given, _) = given();
            given.now += later;
            let read = given
                .cache
                .read(given.now)
                .map_err(|error| error.to_string());
            match expected {
                None => assert!(read.is_ok()),
                Some(expected) => assert!(read.unwrap_err().contains(expected)),
            }
        }
        let (mut given, _) = given();
        given.now -= day * 2;
        assert!(given.refusal().contains("future"));
    }
}
