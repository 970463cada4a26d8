//! The record of every issuance and refusal.

use super::audit_chain::{KEPT_RECORDS, KEPT_SECONDS};
use super::{StoreError, unix_seconds};
use crate::telemetry::Throttle;
use sqlx::{Any, AnyConnection, Transaction};
use std::time::SystemTime;

/// One thing that was granted or refused. Holds no secret: no token, no key, no request body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When.
    pub at: SystemTime,
    /// What was asked for: `attest`, `renew` or `token-create`.
    pub event: &'static str,
    /// `granted`, or the reason of the refusal.
    pub outcome: &'static str,
    /// More about a refusal, for people.
    pub detail: Option<String>,
    /// The identity concerned, where it is known.
    pub spiffe_id: Option<String>,
    /// The registration that it went by.
    pub registration: Option<String>,
    /// Serial number of the certificate issued.
    pub serial: Option<String>,
    /// End of the certificate issued.
    pub not_after: Option<SystemTime>,
    /// Who asked: an IP address, or the user id on the Unix socket.
    pub caller: String,
    /// SHA-256 of the certificate signing request, in hexadecimal.
    pub csr_sha256: Option<String>,
}

/// The outcome of what was not refused.
pub const GRANTED: &str = "granted";

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
        } else if let Some(unsaid) = REFUSED.admit(outcome) {
            tracing::warn!(
                target: "sidewind::audit",
                event, outcome, detail, spiffe_id, registration, caller, csr_sha256, unsaid,
                "refused"
            );
        }
    }
}

/// Adds a record.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    record: &AuditRecord,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit (at, event, outcome, detail, spiffe_id, registration, serial, not_after,
                            caller, csr_sha256)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(unix_seconds(record.at))
    .bind(record.event)
    .bind(record.outcome)
    .bind(record.detail.as_deref())
    .bind(record.spiffe_id.as_deref())
    .bind(record.registration.as_deref())
    .bind(record.serial.as_deref())
    .bind(record.not_after.map(unix_seconds))
    .bind(record.caller.as_str())
    .bind(record.csr_sha256.as_deref())
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes records beyond 90 days and beyond a number that a disk bears.
pub(super) async fn prune(
    transaction: &mut Transaction<'_, Any>,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM audit WHERE at < $1 OR id <= (SELECT coalesce(max(id), 0) - $2 FROM audit)",
    )
    .bind(now - KEPT_SECONDS)
    .bind(KEPT_RECORDS)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}
