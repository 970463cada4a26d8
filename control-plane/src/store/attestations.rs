//! What comes of evidence that may be brought again: a registration, and facts that are held to.

use super::settling::{Ground, Issuance, Settled};
use super::{AuditRecord, Registration, Store, StoreError, SvidRecord, unix_seconds};
use sqlx::AnyConnection;
use std::time::SystemTime;

/// What is written when an attestation succeeds.
#[derive(Debug)]
pub struct Attestation<'a> {
    /// What it allows from now on.
    pub registration: &'a Registration,
    /// The first certificate.
    pub svid: &'a SvidRecord,
    /// The record of the issuance.
    pub audit: &'a AuditRecord,
    /// Facts that are held to.
    pub pins: &'a [PinnedFact],
}

/// A fact that stays what it was when it was first seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedFact {
    /// What it is about, and which fact of it.
    pub subject: String,
    /// What is so now.
    pub value: String,
    /// Take what is so now in place of what was: a registration names it.
    pub named: bool,
}

/// A fact that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFact {
    /// What it is about.
    pub subject: String,
    /// What is so now.
    pub value: String,
}

impl Store {
    /// Writes what comes of an attestation, all or nothing. `Some` fact that is another than before: then
    /// nothing was written.
    ///
    /// # Errors
    /// When the store fails; then nothing was written.
    pub async fn settle_attestation(
        &self,
        attestation: &Attestation<'_>,
    ) -> Result<Option<ChangedFact>, StoreError> {
        let issuance = Issuance {
            ground: Ground::Facts(attestation.pins.to_vec()),
            registration: attestation.registration.clone(),
            svid: attestation.svid.clone(),
            audit: attestation.audit.clone(),
        };
        Ok(match self.settle(issuance).await? {
            Settled::Changed(fact) => Some(fact),
            Settled::Written => None,
            // Facts never say so; whatever it means, nothing was written.
            Settled::NoToken => return Err(StoreError::Slow),
        })
    }
}

/// Keeps a fact that is new; whether one that is known is the same.
pub(super) async fn hold(
    connection: &mut AnyConnection,
    pin: &PinnedFact,
    now: SystemTime,
) -> Result<bool, StoreError> {
    // One statement decides for any number of callers at once: it changes a row when the fact is new, the
    // same, or named.
    let kept = sqlx::query(
        "INSERT INTO pinned_facts (subject, value, seen_at) VALUES ($1, $2, $3)
         ON CONFLICT (subject) DO UPDATE SET value = excluded.value, seen_at = excluded.seen_at
         WHERE pinned_facts.value = excluded.value OR $4 = 1",
    )
    .bind(pin.subject.as_str())
    .bind(pin.value.as_str())
    .bind(unix_seconds(now))
    .bind(i64::from(pin.named))
    .execute(connection)
    .await?;
    Ok(kept.rows_affected() == 1)
}

#[cfg(test)]
mod tests {
    use super::super::audit::GRANTED;
    use super::super::tests::{empty_store, svid};
    use super::*;
    use sidewind_identity::SpiffeId;
    use std::time::Duration;

    async fn settle(store: &Store, serial: &str, pin: PinnedFact) -> Option<ChangedFact> {
        let now = SystemTime::now();
        let id = SpiffeId::parse("spiffe://example.org/ns/data/sa/orders").unwrap();
        let registration = Registration::new(id, "aws-iam");
        let audit = AuditRecord {
            at: now,
            event: "attest",
            outcome: GRANTED,
            detail: None,
            spiffe_id: None,
            registration: None,
            serial: Some(serial.to_owned()),
            not_after: None,
            caller: "127.0.0.1".to_owned(),
            csr_sha256: None,
        };
        let attestation = Attestation {
            registration: &registration,
            svid: &svid(serial, now + Duration::from_secs(60)),
            audit: &audit,
            pins: &[pin],
        };
        store.settle_attestation(&attestation).await.unwrap()
    }

    fn role_id(value: &str, named: bool) -> PinnedFact {
        PinnedFact {
            subject: "aws-iam:role-arn=arn:aws:iam::1:role/r aws-iam:role-id".to_owned(),
            value: value.to_owned(),
            named,
        }
    }

    #[tokio::test]
    async fn a_fact_stays_what_it_was_until_a_registration_names_another() {
        let (_directory, store) = empty_store().await;
        assert_eq!(settle(&store, "01", role_id("AROA1", false)).await, None);
        assert_eq!(settle(&store, "02", role_id("AROA1", false)).await, None);
        let changed = settle(&store, "03", role_id("AROA2", false)).await;
        assert_eq!(changed.unwrap().value, "AROA2");
        assert_eq!(settle(&store, "04", role_id("AROA2", true)).await, None);
        assert_eq!(settle(&store, "05", role_id("AROA2", false)).await, None);
        assert!(
            settle(&store, "06", role_id("AROA1", false))
                .await
                .is_some()
        );
        let living = store.living_registrations(SystemTime::now()).await.unwrap();
        let serials: Vec<&str> = living
            .iter()
            .map(|(_, svid)| svid.serial.as_str())
            .collect();
        assert_eq!(serials.len(), 4, "{serials:?}");
    }
}
