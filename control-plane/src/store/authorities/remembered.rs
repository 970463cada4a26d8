//! Roots that are remembered beside the store: an older copy of it must not bring back those that were distrusted since, nor
//! forget those that came since.

use super::super::{Store, StoreError, from_unix_seconds, unix_seconds};
use super::{AuthorityRole, AuthorityState, NewAuthority, insert};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sidewind_identity::KeyIds;
use sqlx::{AnyConnection, Row as _};
use std::time::SystemTime;

/// A root that was trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedRoot {
    /// The certificate: DER in base64.
    certificate: String,
    /// Its end, in Unix time.
    not_after: i64,
}

impl Store {
    /// The roots that are trusted.
    ///
    /// # Errors
    /// When the store fails.
    pub(in crate::store) async fn trusted_roots(&self) -> Result<Vec<RememberedRoot>, StoreError> {
        let rows = sqlx::query(
            "SELECT certificate, not_after FROM authorities
             WHERE role = 'root' AND state <> 'revoked' ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await?;
        let root = |row: &sqlx::any::AnyRow| {
            Ok(RememberedRoot {
                certificate: BASE64.encode(row.try_get::<Vec<u8>, _>("certificate")?),
                not_after: row.try_get("not_after")?,
            })
        };
        rows.iter().map(root).collect()
    }

    /// Trusts those roots again that were trusted before the store was put back to an older copy, and no others: of those
    /// that had come by a sequence of the trust bundle, which is when this was remembered. Gives back sentences that say
    /// what was done. The slots' version is for the caller to raise.
    ///
    /// # Errors
    /// When the store fails; and when the root in use is one that was not trusted any more.
    pub(in crate::store) async fn restore_roots(
        &self,
        connection: &mut AnyConnection,
        remembered: &[RememberedRoot],
        sequence: u64,
        now: SystemTime,
    ) -> Result<Vec<String>, StoreError> {
        // An earlier version remembered none.
        if remembered.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "SELECT id, state, certificate, not_after, introduced FROM authorities
             WHERE role = 'root' ORDER BY id",
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut known = Vec::new();
        let mut done = Vec::new();
        for row in &rows {
            let certificate: Vec<u8> = row.try_get("certificate")?;
            let text = BASE64.encode(&certificate);
            let was_trusted = remembered.iter().any(|root| root.certificate == text);
            known.push(text);
            let state = AuthorityState::parse(row.try_get("state")?)?;
            let introduced: i64 = row.try_get("introduced")?;
            let is_later = u64::try_from(introduced).is_ok_and(|introduced| introduced > sequence);
            let has_ended = row.try_get::<i64, _>("not_after")? < unix_seconds(now);
            if was_trusted || is_later || has_ended || state == AuthorityState::Revoked {
                continue;
            }
            let key_id = key_id(&certificate);
            if state == AuthorityState::Active {
                return Err(StoreError::DistrustedRoot { key_id });
            }
            sqlx::query(
                "UPDATE authorities SET state = 'revoked', changed_at = $1, private_key = NULL
                 WHERE id = $2",
            )
            .bind(unix_seconds(now))
            .bind(row.try_get::<i64, _>("id")?)
            .execute(&mut *connection)
            .await?;
            done.push(format!(
                "root certificate {key_id} was not trusted any more and is revoked"
            ));
        }
        for root in remembered {
            if known.contains(&root.certificate) || root.not_after < unix_seconds(now) {
                continue;
            }
            let Ok(certificate) = BASE64.decode(&root.certificate) else {
                continue;
            };
            let key_id = key_id(&certificate);
            let new = NewAuthority {
                role: AuthorityRole::Root,
                state: AuthorityState::Old,
                certificate,
                intermediates: Vec::new(),
                private_key: None,
                not_after: from_unix_seconds(root.not_after),
            };
            insert(self, connection, &new, sequence + 1, now).await?;
            done.push(format!(
                "root certificate {key_id} had come since and stays trusted, without its key"
            ));
        }
        Ok(done)
    }
}

fn key_id(certificate: &[u8]) -> String {
    KeyIds::of(certificate).map_or_else(|_| "unknown".to_owned(), |ids| ids.subject)
}
