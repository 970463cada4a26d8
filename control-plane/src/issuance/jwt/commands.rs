//! What people do with the keys of JWT-SVIDs: one step of a rotation, taint, revoke.

use super::plan::{Asked, Step, due};
use super::{JwtKeys, JwtKeysError, changes, say};
use crate::issuance::Refusal;
use crate::issuance::authority::{Actor, RotateOptions};
use crate::store::{GRANTED, JwtKeyChange, JwtKeyRecord, JwtKeyState, StoreError, unix_seconds};
use sidewind_api::{Reason, duration};
use sidewind_identity::jwt::signer::MAX_JWT_TTL;
use std::time::SystemTime;

/// What became of a request for a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JwtRotation {
    /// What was done or would be, each a sentence.
    pub steps: Vec<String>,
    /// Nothing was done, since the prepared key is not known long enough.
    pub is_waiting: bool,
    /// What was done, for metrics.
    pub done: Vec<&'static str>,
}

impl JwtKeys {
    /// Whether there is a key of this name.
    #[must_use]
    pub fn has(&self, key_id: &str) -> bool {
        let current = self.current.load();
        current.records.keys.iter().any(|key| key.key_id == key_id)
    }

    /// Every key with its state, the newest first.
    #[must_use]
    pub fn keys(&self) -> Vec<JwtKeyRecord> {
        self.current.load().records.keys.clone()
    }

    /// Goes one step further in the rotation: publishes the next key, or signs with the one that is published.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn rotate(
        &self,
        options: RotateOptions,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<JwtRotation, Refusal> {
        let asked = Asked::Rotate {
            force: options.force,
        };
        let mut steps = Vec::new();
        if options.dry_run {
            let records = self.store.jwt_keys().await;
            let records = records.map_err(|error| Refusal::store(&error))?;
            steps = due(&records.keys, now, self.store.passed(now), asked);
        } else {
            let decide = |keys: &[JwtKeyRecord]| {
                steps = due(keys, now, self.store.passed(now), asked);
                let changes = steps.iter().map(|step| changes(step, keys, now));
                let changes: Result<Vec<_>, JwtKeysError> = changes.collect();
                let sentences: Vec<String> = steps.iter().map(say).collect();
                let audit = actor.audit(GRANTED, sentences.join("; "), now);
                Ok((changes?.into_iter().flatten().collect(), Some(audit)))
            };
            self.change(decide).await?;
        }
        let is_waiting = steps.iter().any(|step| matches!(step, Step::Wait(_)));
        let sentence = |step: &Step| match (step, options.dry_run) {
            (Step::Wait(_), _) | (_, false) => say(step),
            (_, true) => format!("would {}", say(step)),
        };
        Ok(JwtRotation {
            steps: steps.iter().map(sentence).collect(),
            is_waiting,
            done: match options.dry_run {
                true => Vec::new(),
                false => steps.iter().filter_map(counted).collect(),
            },
        })
    }

    /// Marks an old key as not to be relied on: it ends with the last token that it may have signed, and proxies, to
    /// whom that is news of their bundle, ask for new tokens at once.
    ///
    /// # Errors
    /// Why it cannot be, and what to do first.
    pub async fn taint(
        &self,
        key_id: &str,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        self.change(|keys| {
            let key = find(keys, key_id)?;
            check_taint(key)?;
            if key.tainted {
                return Ok((Vec::new(), None));
            }
            let not_after = key.not_after.min(now + MAX_JWT_TTL);
            let change = JwtKeyChange::Taint {
                key_id: key_id.to_owned(),
                not_after,
            };
            let sentence = format!(
                "tainted JWT key {key_id}: believed until {} (Unix time), when its last token has ended",
                unix_seconds(not_after)
            );
            let audit = actor.audit(GRANTED, sentence, now);
            Ok((vec![change], Some(audit)))
        })
        .await
    }

    /// Takes a key that does not sign out of the trust bundle: no token of it is believed any more.
    ///
    /// # Errors
    /// Why it cannot be, and what to do first; with `force` also while its tokens may be good.
    pub async fn revoke(
        &self,
        key_id: &str,
        force: bool,
        actor: &Actor<'_>,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        self.change(|keys| {
            let key = find(keys, key_id)?;
            check_revoke(key, force, now)?;
            let change = JwtKeyChange::Revoke(key_id.to_owned());
            let sentence = format!("revoked JWT key {key_id} (not in the trust bundle any more)");
            let audit = actor.audit(GRANTED, sentence, now);
            Ok((vec![change], Some(audit)))
        })
        .await
    }

    async fn change(
        &self,
        decide: impl FnOnce(&[JwtKeyRecord]) -> Result<Decided, CommandError>,
    ) -> Result<(), Refusal> {
        let mut record = None;
        let changed = self.store.change_jwt_keys(|keys| {
            let (changes, audit) = decide(keys)?;
            record.clone_from(&audit);
            Ok::<_, CommandError>((changes, audit))
        });
        let records = changed.await.map_err(Refusal::from)?;
        if let Some(record) = record {
            record.log();
        }
        self.take(records)
            .map(drop)
            .map_err(|error| CommandError::from(error).into())
    }
}

type Decided = (Vec<JwtKeyChange>, Option<crate::store::AuditRecord>);

/// Why a command did nothing.
enum CommandError {
    Refused(Refusal),
    Failed(JwtKeysError),
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<JwtKeysError> for CommandError {
    fn from(error: JwtKeysError) -> Self {
        Self::Failed(error)
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<CommandError> for Refusal {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refusal) => refusal,
            CommandError::Failed(JwtKeysError::Store(error)) => Self::store(&error),
            CommandError::Failed(error) => refused(crate::telemetry::chain(&error)),
        }
    }
}

fn find<'a>(keys: &'a [JwtKeyRecord], key_id: &str) -> Result<&'a JwtKeyRecord, Refusal> {
    let found = keys.iter().find(|key| key.key_id == key_id);
    found.ok_or_else(|| refused(format!("no key of JWT-SVIDs has the key id {key_id:?}")))
}

fn check_taint(key: &JwtKeyRecord) -> Result<(), Refusal> {
    let key_id = &key.key_id;
    match key.state {
        JwtKeyState::Old => Ok(()),
        JwtKeyState::Active => Err(refused(format!(
            "JWT key {key_id} is the one in use, and only an old one can be tainted; bring another one into use first: `sidewind ca rotate --jwt`, twice"
        ))),
        JwtKeyState::Prepared => Err(refused(format!(
            "JWT key {key_id} is prepared and has signed nothing; to be rid of it, run `sidewind ca revoke` with its key id"
        ))),
    }
}

fn check_revoke(key: &JwtKeyRecord, force: bool, now: SystemTime) -> Result<(), Refusal> {
    let key_id = &key.key_id;
    match key.state {
        JwtKeyState::Prepared => Ok(()),
        JwtKeyState::Active => Err(refused(format!(
            "JWT key {key_id} is the one in use; bring another one into use first (`sidewind ca rotate --jwt`, twice), then taint this one (`sidewind ca taint {key_id}`), and revoke it when its tokens have ended"
        ))),
        JwtKeyState::Old if force || key.not_after < now => Ok(()),
        JwtKeyState::Old if key.tainted => {
            let left = key.not_after.duration_since(now).unwrap_or_default();
            Err(refused(format!(
                "tokens of JWT key {key_id} may be good for another {}: wait for their end, or give --force",
                duration::format(left)
            )))
        }
        JwtKeyState::Old => Err(refused(format!(
            "tokens of JWT key {key_id} may be in use: taint it first (`sidewind ca taint {key_id}`), so that proxies ask for new ones, and revoke it an hour later, or give --force"
        ))),
    }
}

/// What a step is in metrics.
fn counted(step: &Step) -> Option<&'static str> {
    match step {
        Step::Prepare => Some("prepared"),
        Step::Begin | Step::Activate(_) => Some("activated"),
        Step::Remove(_) => Some("retired"),
        Step::Wait(_) => None,
    }
}

fn refused(message: String) -> Refusal {
    Refusal::new(Reason::AuthorityRefused, message)
}
