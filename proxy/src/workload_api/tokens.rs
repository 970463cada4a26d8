//! JWT-SVIDs of this workload: asked of the control plane, and kept for half their life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sidewind_api::{Reason, v1};
use sidewind_identity::SpiffeId;
use sidewind_identity::jwt::bundle::JwtBundles;
use sidewind_identity::jwt::signer::check_audience;
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::state::Present;
use crate::control::{ControlError, Minter};
use crate::telemetry::logs::Throttle;

/// Most tokens that are kept.
const MAX_KEPT: usize = 256;

/// Most calls to the control plane at once; the others wait, and mostly find what they want when it is their turn.
const MAX_MINTING: usize = 4;

/// Signs tokens: the control plane, or in tests somebody else.
#[tonic::async_trait]
pub(super) trait Mint: Send + Sync {
    async fn mint(&self, audience: &[String]) -> Result<v1::MintJwtSvidResponse, ControlError>;
}

#[tonic::async_trait]
impl Mint for Minter {
    async fn mint(&self, audience: &[String]) -> Result<v1::MintJwtSvidResponse, ControlError> {
        Minter::mint(self, audience).await
    }
}

/// A token that is wiped when the last copy is dropped.
pub(super) type Token = Arc<Zeroizing<String>>;

/// Where tokens come from.
pub(super) struct Tokens {
    minter: Arc<dyn Mint>,
    minting: Semaphore,
    kept: Mutex<Kept>,
}

/// Tokens by their audience.
#[derive(Default)]
struct Kept {
    by_audience: BTreeMap<Vec<String>, KeptToken>,
    /// Whose, and the keys that verify them: a token must not outlive either, since its key may be revoked.
    of: Option<(SpiffeId, Arc<JwtBundles>)>,
}

struct KeptToken {
    token: Token,
    /// Half of its life.
    until: SystemTime,
}

impl Tokens {
    pub(super) fn new(minter: Arc<dyn Mint>) -> Self {
        Self {
            minter,
            minting: Semaphore::new(MAX_MINTING),
            kept: Mutex::default(),
        }
    }

    /// A token of the workload for these audiences, with at least half of its life before it.
    ///
    /// # Errors
    /// `InvalidArgument` for audiences that cannot be, otherwise what keeps the control plane from signing.
    pub(super) async fn get(
        &self,
        present: &Present,
        mut audience: Vec<String>,
    ) -> Result<Token, Status> {
        check(&audience)?;
        present.svid()?;
        let mut key = audience.clone();
        key.sort_unstable();
        key.dedup();
        if key.len() < audience.len() {
            audience.clone_from(&key);
        }
        if let Some(token) = self.find(present, &key) {
            return Ok(token);
        }
        let _permit = self
            .minting
            .acquire()
            .await
            .map_err(|_| super::push::stopping())?;
        if let Some(token) = self.find(present, &key) {
            return Ok(token);
        }
        let minted = self
            .minter
            .mint(&audience)
            .await
            .map_err(|error| refused(&error))?;
        if key.len() > 1 {
            warn_of_several(key.len());
        }
        self.keep(present, key, minted)
    }

    fn find(&self, present: &Present, key: &Vec<String>) -> Option<Token> {
        let mut kept = self.kept();
        kept.belong_to(present);
        let found = kept.by_audience.get(key)?;
        (present.now() < found.until).then(|| Arc::clone(&found.token))
    }

    fn keep(
        &self,
        present: &Present,
        key: Vec<String>,
        minted: v1::MintJwtSvidResponse,
    ) -> Result<Token, Status> {
        let now = present.now();
        let expires = u64::try_from(minted.expires_at_unix)
            .ok()
            .and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
            .filter(|expires| *expires > now);
        let token = Arc::new(Zeroizing::new(minted.token));
        let (Some(expires), false) = (expires, token.is_empty()) else {
            return Err(Status::unavailable(
                "the control plane sent a token that cannot be used; compare the clocks",
            ));
        };
        let until = now + expires.duration_since(now).unwrap_or_default() / 2;
        let mut kept = self.kept();
        kept.belong_to(present);
        kept.make_room(now);
        let token_kept = Arc::clone(&token);
        kept.by_audience.insert(
            key,
            KeptToken {
                token: token_kept,
                until,
            },
        );
        Ok(token)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing in here panics half-way.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Forgets the tokens of another identity, and all when the keys have changed.
    fn belong_to(&mut self, present: &Present) {
        let Ok(credentials) = present.credentials() else {
            self.by_audience.clear();
            return;
        };
        let (id, bundles) = (credentials.svid.id(), &credentials.jwt_bundles);
        let same = self.of.as_ref().is_some_and(|(own, keys)| {
            own == id && (Arc::ptr_eq(keys, bundles) || keys == bundles)
        });
        if !same {
            self.by_audience.clear();
            self.of = Some((id.clone(), Arc::clone(bundles)));
        }
    }

    /// Drops what is over, and when that is not enough what is over next.
    fn make_room(&mut self, now: SystemTime) {
        self.by_audience.retain(|_, kept| now < kept.until);
        while self.by_audience.len() >= MAX_KEPT {
            let next = self.by_audience.iter().min_by_key(|(_, kept)| kept.until);
            let Some(key) = next.map(|(key, _)| key.clone()) else {
                return;
            };
            self.by_audience.remove(&key);
        }
    }
}

/// The standard's rule, and the bounds of whoever signs.
fn check(audience: &[String]) -> Result<(), Status> {
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(Status::invalid_argument(
            "the audience is missing: name whom the token is for",
        ));
    }
    check_audience(audience).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// What a client of the socket is told when there is no token: the standard knows four codes, and clients act on them.
fn refused(error: &ControlError) -> Status {
    static FAILED: Throttle = Throttle::new();
    if let Some(unsaid) = FAILED.admit() {
        tracing::warn!(%error, unsaid, "no JWT-SVID");
    }
    let ControlError::Refused { status, .. } = error else {
        return Status::unavailable(format!("no JWT-SVID just now, try again: {error}"));
    };
    match (Reason::of(status), status.code()) {
        (_, Code::InvalidArgument) => Status::invalid_argument(status.message()),
        (Some(Reason::NotOffered), _) | (_, Code::Unimplemented) => {
            Status::unimplemented("the control plane signs no JWT-SVIDs")
        }
        (_, Code::PermissionDenied) => {
            Status::permission_denied(format!("no identity issued: {}", status.message()))
        }
        _ => Status::unavailable(format!(
            "no JWT-SVID just now, try again: {}",
            status.message()
        )),
    }
}

/// Each of its audiences can pass the token on to the others (JWT-SVID, section 7.2).
fn warn_of_several(audiences: usize) {
    static SEVERAL: Throttle = Throttle::new();
    if let Some(suppressed) = SEVERAL.admit() {
        tracing::warn!(
            audiences,
            suppressed,
            "a token was asked for that is good for several audiences; ask for one for each"
        );
    }
}
