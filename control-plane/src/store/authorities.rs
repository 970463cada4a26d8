//! Certificate authorities in their slots, and their keys.
//!
//! Whoever changes slots has read them before and names the version that it saw. All changes of one step are
//! one transaction that begins by raising the version, if it is still that one: of several processes that
//! rotate at once exactly one does, and the others read again.

use super::keys::authority_context;
use super::{AuditRecord, Store, StoreError, Topic, audit, from_unix_seconds, unix_seconds};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row as _};
use std::fmt;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

mod laggards;
mod remembered;
#[cfg(test)]
mod tests;

pub use laggards::LaggardReport;
pub use remembered::RememberedRoot;

/// What an authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AuthorityRole {
    /// Signing authorities; its certificate is in the trust bundle.
    Root,
    /// SVIDs.
    Signing,
}

/// Where an authority is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AuthorityState {
    /// Ready to be used; a root in this state is in the trust bundle already.
    Prepared,
    /// In use.
    Active,
    /// Signs no more. A root in this state stays in the trust bundle.
    Old,
    /// Distrusted: not in the trust bundle, and not to be taken up again.
    Revoked,
}

macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ }) => {
        impl $type {
            /// The word that it is kept and shown as.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            fn parse(word: &str) -> Result<Self, StoreError> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(StoreError::Corrupt {
                        what: "authority",
                        why: format!("{word:?} is not known"),
                    }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(AuthorityRole { Root = "root", Signing = "signing" });
words!(AuthorityState { Prepared = "prepared", Active = "active", Old = "old", Revoked = "revoked" });

/// An authority as it is kept, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// Names the record.
    pub id: i64,
    /// What it signs.
    pub role: AuthorityRole,
    /// Where it is in its life.
    pub state: AuthorityState,
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// Certificates between this one and its root, each in DER, one after the other.
    pub intermediates: Vec<u8>,
    /// Whether the key is kept here.
    pub has_key: bool,
    /// When it came into its state.
    pub changed_at: SystemTime,
    /// Sequence of the trust bundle that first had it; of a root alone.
    pub introduced: u64,
    /// Whether what it signed is to be replaced at once.
    pub tainted: bool,
    /// The latest end of all SVIDs that were signed below it, as far as it was noted.
    pub signed_until: SystemTime,
}

/// Every authority, as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRecords {
    /// Grows with every change of a slot.
    pub version: u64,
    /// Sequence of the trust bundle.
    pub bundle_sequence: u64,
    /// The authorities, in the order in which they came.
    pub records: Vec<AuthorityRecord>,
}

/// An authority that is to be kept.
pub struct NewAuthority {
    /// What it signs.
    pub role: AuthorityRole,
    /// Where it is in its life.
    pub state: AuthorityState,
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// Certificates between this one and its root, each in DER, one after the other.
    pub intermediates: Vec<u8>,
    /// The key in PKCS#8; absent when it is kept elsewhere.
    pub private_key: Option<Zeroizing<Vec<u8>>>,
    /// End of the certificate.
    pub not_after: SystemTime,
}

impl fmt::Debug for NewAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAuthority")
            .field("role", &self.role)
            .field("state", &self.state)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// One change of a slot.
#[derive(Debug)]
pub enum AuthorityChange {
    /// Keeps a new authority.
    Insert(NewAuthority),
    /// Brings one from a state into the next. The key of one that will sign no more is deleted: what is not
    /// there cannot leak.
    Move {
        /// Which.
        id: i64,
        /// The state that it is in.
        from: AuthorityState,
        /// The state that it comes into.
        to: AuthorityState,
    },
    /// Marks an old one as not to be relied on.
    Taint {
        /// Which.
        id: i64,
    },
    /// Forgets one.
    Delete {
        /// Which.
        id: i64,
        /// The state that it is in.
        state: AuthorityState,
    },
}

/// Changes that are made together or not at all.
#[derive(Debug)]
pub struct AuthorityStep<'a> {
    /// The version of the slots that the step was decided on.
    pub version: u64,
    /// What changes, in this order.
    pub changes: Vec<AuthorityChange>,
    /// Whether the trust bundle is another from now on, so that its sequence grows.
    pub raises_bundle: bool,
    /// The record of it.
    pub audit: Option<&'a AuditRecord>,
    /// When.
    pub now: SystemTime,
}

impl Store {
    /// Every authority.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn authorities(&self) -> Result<AuthorityRecords, StoreError> {
        // A transaction alone is no snapshot in every database. What was read while others changed it goes by
        // the older version, and so no step can be made on it.
        let mut transaction = self.pool.begin().await?;
        let version = number(&mut transaction, VERSION).await?.unwrap_or(0);
        let rows = sqlx::query(
            "SELECT id, role, state, certificate, intermediates, changed_at, introduced, tainted,
                    signed_until, CASE WHEN private_key IS NULL THEN 0 ELSE 1 END AS has_key
             FROM authorities ORDER BY id",
        )
        .fetch_all(&mut *transaction)
        .await?;
        let bundle_sequence = number(&mut transaction, SEQUENCE).await?.unwrap_or(1);
        transaction.rollback().await?;
        Ok(AuthorityRecords {
            version,
            bundle_sequence,
            records: rows.iter().map(record).collect::<Result<_, _>>()?,
        })
    }

    /// The key of an authority in PKCS#8, when it is kept here.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn authority_key(&self, id: i64) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let row = sqlx::query("SELECT certificate, private_key FROM authorities WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let certificate: Vec<u8> = row.try_get("certificate")?;
        let stored: Option<Vec<u8>> = row.try_get("private_key")?;
        let context = authority_context(&certificate);
        let open = |stored: Vec<u8>| self.open_key(&context, &Zeroizing::new(stored));
        stored.map(open).transpose()
    }

    /// Makes a step, if the slots are still as they were when it was decided on. `false`: somebody was
    /// faster, and nothing has changed.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed either.
    pub async fn change_authorities(&self, step: AuthorityStep<'_>) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let raised = sqlx::query("UPDATE settings SET value = $1 WHERE name = $2 AND value = $3")
            .bind((step.version + 1).to_string())
            .bind(VERSION)
            .bind(step.version.to_string())
            .execute(&mut *transaction)
            .await?;
        if raised.rows_affected() != 1 {
            transaction.rollback().await?;
            return Ok(false);
        }
        if step.raises_bundle {
            sqlx::query(
                "INSERT INTO settings (name, value) VALUES ($1, '1') ON CONFLICT (name)
                 DO UPDATE SET value = CAST(CAST(settings.value AS BIGINT) + 1 AS TEXT)",
            )
            .bind(SEQUENCE)
            .execute(&mut *transaction)
            .await?;
        }
        let sequence = number(&mut transaction, SEQUENCE).await?.unwrap_or(1);
        for change in &step.changes {
            if !change
                .make(self, &mut transaction, sequence, step.now)
                .await?
            {
                transaction.rollback().await?;
                return Ok(false);
            }
        }
        if let Some(record) = step.audit {
            audit::insert(&mut transaction, record).await?;
        }
        self.announce(&mut transaction, Topic::Authorities).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Notes that SVIDs below these authorities may be good until a time; an earlier one changes nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn note_signed_until(
        &self,
        authorities: &[i64],
        until: SystemTime,
    ) -> Result<(), StoreError> {
        for id in authorities {
            sqlx::query(
                "UPDATE authorities SET signed_until = $1 WHERE id = $2 AND signed_until < $1",
            )
            .bind(unix_seconds(until + Duration::from_secs(1)))
            .bind(*id)
            .execute(&self.pool)
            .await?;
        }
        Ok(())
    }
}

/// The version of the slots.
pub(super) async fn version(connection: &mut AnyConnection) -> Result<u64, StoreError> {
    Ok(number(connection, VERSION).await?.unwrap_or(0))
}

pub(super) async fn set_version(
    connection: &mut AnyConnection,
    version: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(VERSION)
    .bind(version.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// Counts the changes of slots.
const VERSION: &str = "authority_version";
/// The sequence of the trust bundle.
const SEQUENCE: &str = "bundle_sequence";

impl AuthorityChange {
    /// `false` when the authority is not in the state that the change begins with.
    async fn make(
        &self,
        store: &Store,
        connection: &mut AnyConnection,
        bundle_sequence: u64,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        let result = match self {
            Self::Insert(new) => {
                insert(store, connection, new, bundle_sequence, now).await?;
                return Ok(true);
            }
            Self::Move { id, from, to } => {
                sqlx::query(
                    "UPDATE authorities SET state = $1, changed_at = $2,
                            private_key = CASE WHEN $1 IN ('prepared', 'active') THEN private_key END
                     WHERE id = $3 AND state = $4",
                )
                .bind(to.as_str())
                .bind(unix_seconds(now))
                .bind(*id)
                .bind(from.as_str())
                .execute(connection)
                .await?
            }
            Self::Taint { id } => {
                sqlx::query("UPDATE authorities SET tainted = 1 WHERE id = $1 AND state = 'old'")
                    .bind(*id)
                    .execute(connection)
                    .await?
            }
            Self::Delete { id, state } => {
                sqlx::query("DELETE FROM authorities WHERE id = $1 AND state = $2")
                    .bind(*id)
                    .bind(state.as_str())
                    .execute(connection)
                    .await?
            }
        };
        Ok(result.rows_affected() == 1)
    }
}

async fn insert(
    store: &Store,
    connection: &mut AnyConnection,
    new: &NewAuthority,
    bundle_sequence: u64,
    now: SystemTime,
) -> Result<(), StoreError> {
    let introduced = match new.role {
        AuthorityRole::Root => i64::try_from(bundle_sequence).unwrap_or(i64::MAX),
        AuthorityRole::Signing => 0,
    };
    let context = authority_context(&new.certificate);
    let seal = |key: &Zeroizing<Vec<u8>>| store.seal_key(&context, key);
    let private_key = new.private_key.as_ref().map(seal).transpose()?;
    let intermediates = Some(new.intermediates.as_slice()).filter(|der| !der.is_empty());
    sqlx::query(
        "INSERT INTO authorities (role, state, certificate, intermediates, private_key, not_after,
                                  created_at, changed_at, introduced)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
    )
    .bind(new.role.as_str())
    .bind(new.state.as_str())
    .bind(new.certificate.as_slice())
    .bind(intermediates)
    .bind(private_key.as_ref().map(|key| key.as_slice()))
    .bind(unix_seconds(new.not_after))
    .bind(unix_seconds(now))
    .bind(introduced)
    .execute(connection)
    .await?;
    Ok(())
}

async fn number(connection: &mut AnyConnection, name: &str) -> Result<Option<u64>, StoreError> {
    let text: Option<String> = sqlx::query_scalar("SELECT value FROM settings WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    let parse = |text: String| {
        text.parse().map_err(|_| StoreError::Corrupt {
            what: "setting",
            why: format!("{name} is {text:?}, which is not a number"),
        })
    };
    text.map(parse).transpose()
}

fn record(row: &AnyRow) -> Result<AuthorityRecord, StoreError> {
    let intermediates: Option<Vec<u8>> = row.try_get("intermediates")?;
    let introduced: i64 = row.try_get("introduced")?;
    Ok(AuthorityRecord {
        id: row.try_get("id")?,
        role: AuthorityRole::parse(row.try_get("role")?)?,
        state: AuthorityState::parse(row.try_get("state")?)?,
        certificate: row.try_get("certificate")?,
        intermediates: intermediates.unwrap_or_default(),
        has_key: row.try_get::<i64, _>("has_key")? == 1,
        changed_at: from_unix_seconds(row.try_get("changed_at")?),
        introduced: u64::try_from(introduced).unwrap_or(0),
        tainted: row.try_get::<i64, _>("tainted")? == 1,
        signed_until: from_unix_seconds(row.try_get("signed_until")?),
    })
}
