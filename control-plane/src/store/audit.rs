//! The record of every issuance and refusal.

use super::audit_chain::{KEPT_RECORDS, KEPT_SECONDS};
use super::rows::{pieces, placeholders};
use super::{StoreError, unix_seconds};
use crate::telemetry::Throttle;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Transaction};
use std::time::SystemTime;

/// One thing that was granted or refused. Holds no secret: no token, no key, no request body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When.
    pub at: SystemTime,
    /// What was asked for: `attest`, `renew`, `mint-jwt`, `token-create`, `ban`, `unban`, `ca-rotate`, `ca-taint` or
    /// `ca-revoke`.
    pub event: &'static str,
    /// `granted`, or the reason of the refusal.
    pub outcome: &'static str,
    /// More about it, for people: why it was refused, for whom a token is, what was done.
    pub detail: Option<String>,
    /// The identity concerned, where it is known.
    pub spiffe_id: Option<String>,
    /// The registration that it went by.
    pub registration: Option<String>,
    /// Serial number of the certificate issued, or the name of the token (`jti`).
    pub serial: Option<String>,
    /// End of the certificate or token issued.
    pub not_after: Option<SystemTime>,
    /// Who asked: an IP address, or the user id on the Unix socket.
    pub caller: String,
    /// SHA-256 of the certificate signing request, in hexadecimal.
    pub csr_sha256: Option<String>,
}

/// The outcome of what was not refused.
pub const GRANTED: &str = "granted";
/// The outcome of what nobody asked for.
pub(super) const NOTED: &str = "noted";

static REFUSED: Throttle = Throttle::new();

impl AuditRecord {
    /// Says the record as one log event. Anybody can cause refusals, so of those with one reason a line a
    /// minute is said; the store has them all.
    pub fn log(&self) {
        let Self {
            event,
            outcome,
            detail,
            spiffe_id,
            registration,
            serial,
            caller,
            csr_sha256,
            ..
        } = self;
        let not_after = self.not_after.map(unix_seconds);
        if *outcome == GRANTED {
            tracing::info!(
                target: "sidewind::audit",
                event, outcome, detail, spiffe_id, registration, serial, not_after, caller, csr_sha256,
                "granted"
            );
        } else if *outcome == NOTED {
            tracing::error!(target: "sidewind::audit", event, outcome, detail, caller, "noted");
        } else if let Some(unsaid) = REFUSED.admit(outcome) {
            tracing::warn!(
                target: "sidewind::audit",
                event, outcome, detail, spiffe_id, registration, caller, csr_sha256, unsaid,
                "refused"
            );
        }
    }
}

/// Adds records. One that was added before, by a commit that was not confirmed, is not added again.
pub(super) async fn insert_named(
    connection: &mut AnyConnection,
    records: &[(&str, &AuditRecord)],
) -> Result<(), StoreError> {
    for piece in pieces(records) {
        let statement = format!(
            "INSERT INTO audit (record, at, event, outcome, detail, spiffe_id, registration, serial,
                                not_after, caller, csr_sha256)
             VALUES {} ON CONFLICT (record) DO NOTHING",
            placeholders(piece.len(), 11)
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for (name, record) in piece {
            query = query
                .bind(*name)
                .bind(unix_seconds(record.at))
                .bind(record.event)
                .bind(record.outcome)
                .bind(record.detail.as_deref().map(without_nul))
                .bind(record.spiffe_id.as_deref())
                .bind(record.registration.as_deref())
                .bind(record.serial.as_deref())
                .bind(record.not_after.map(unix_seconds))
                .bind(record.caller.as_str())
                .bind(record.csr_sha256.as_deref());
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Adds a record.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    record: &AuditRecord,
) -> Result<(), StoreError> {
    insert_named(connection, &[(&new_name(), record)]).await
}

/// A name for a record.
pub(super) fn new_name() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// PostgreSQL takes every character but this one, and one record must not hold up the others.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Deletes records beyond 90 days and beyond a number that a disk bears.
pub(super) async fn prune(
    transaction: &mut Transaction<'_, Any>,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        // The newest stays: its number says how far the store has come.
        "DELETE FROM audit WHERE id < (SELECT max(id) FROM audit)
         AND (at < $1 OR id <= (SELECT max(id) - $2 FROM audit))",
    )
    .bind(now - KEPT_SECONDS)
    .bind(KEPT_RECORDS)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
