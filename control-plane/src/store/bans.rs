//! What is banned.

use super::{AuditRecord, Store, StoreError, Topic, audit, from_unix_seconds, unix_seconds};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sidewind_api::Banned;
use sqlx::Row as _;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// One ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BanRecord {
    /// Who or what.
    pub banned: Banned,
    /// Why, for people; may be empty.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
}

/// How much a change adds to the version of the list. While an older copy of the store stands in for it a change adds
/// one: whatever is banned in that time, the lists that proxies have of the time that is lost stay later ones, and are
/// asked for.
const STEP: u64 = 1 << 20;
/// Changes that may have been made after the last one that was remembered outside the store.
const UNREMEMBERED_CHANGES: u64 = 64;

/// Every ban, and the version of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BanRecords {
    /// Grows with each change; 0 before the first.
    pub version: u64,
    /// The bans, the oldest first.
    pub bans: Vec<BanRecord>,
}

impl Store {
    /// Every ban.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn bans(&self) -> Result<BanRecords, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let version = number(&mut transaction, "bans_version").await?;
        let rows = sqlx::query("SELECT subject, reason, since FROM bans ORDER BY since, subject")
            .fetch_all(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let corrupt = |why: String| StoreError::Corrupt { what: "ban", why };
        let bans = rows.iter().map(|row| {
            let subject: String = row.try_get("subject")?;
            Ok(BanRecord {
                banned: subject
                    .parse()
                    .map_err(|error| corrupt(format!("{subject:?}: {error}")))?,
                reason: row.try_get("reason")?,
                since: from_unix_seconds(row.try_get("since")?),
            })
        });
        Ok(BanRecords {
            version,
            bans: bans.collect::<Result<_, StoreError>>()?,
        })
    }

    /// Bans somebody or lifts a ban, with the record of it, all or nothing. A ban that is there already takes
    /// the new reason.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed.
    pub async fn change_ban(
        &self,
        ban: &BanRecord,
        lift: bool,
        audit: &AuditRecord,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let subject = ban.banned.to_string();
        if lift {
            sqlx::query("DELETE FROM bans WHERE subject = $1")
                .bind(subject)
                .execute(&mut *transaction)
                .await?;
        } else {
            sqlx::query(
                "INSERT INTO bans (subject, reason, since) VALUES ($1, $2, $3)
                 ON CONFLICT (subject) DO UPDATE SET reason = excluded.reason",
            )
            .bind(subject)
            .bind(ban.reason.as_str())
            .bind(unix_seconds(ban.since))
            .execute(&mut *transaction)
            .await?;
        }
        raise_version(&mut transaction).await?;
        audit::insert(&mut transaction, audit).await?;
        self.announce(&mut transaction, Topic::Bans).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The secret that lists of bans are sealed with; made when it is asked for first.
    ///
    /// # Errors
    /// When the store fails, or keys in it are sealed with another key.
    pub async fn bans_secret(&self) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        const NAME: &str = "bans_seal";
        let corrupt = |why: &str| StoreError::Corrupt {
            what: "seal of bans",
            why: why.to_owned(),
        };
        let mut secret = Zeroizing::new(vec![0; 32]);
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| corrupt("there are no random numbers"))?;
        let fresh = self.seal_key(NAME, &secret)?;
        self.set_default(NAME, &BASE64.encode(&*fresh)).await?;
        let stored = self.setting(NAME).await?.unwrap_or_default();
        let stored = BASE64.decode(stored).map(Zeroizing::new);
        self.open_key(NAME, &stored.map_err(|_| corrupt("it is not base64"))?)
    }

    /// Adds bans of a later list, that this store has lost, and raises the version above that list's. Gives back how
    /// many were not there.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed.
    pub async fn restore_bans(
        &self,
        version: u64,
        bans: &[BanRecord],
        now: SystemTime,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.begin_alone("bans").await?;
        let mut found = 0;
        for ban in bans {
            let added = sqlx::query(
                "INSERT INTO bans (subject, reason, since) VALUES ($1, $2, $3)
                 ON CONFLICT (subject) DO NOTHING",
            )
            .bind(ban.banned.to_string())
            .bind(ban.reason.as_str())
            .bind(unix_seconds(ban.since))
            .execute(&mut *transaction)
            .await?;
            found += added.rows_affected();
        }
        let present = number(&mut transaction, "bans_version").await?;
        set_number(&mut transaction, "bans_version", present.max(version)).await?;
        // Another proxy may have a later one yet.
        stand_in(&mut transaction, version).await?;
        raise_version(&mut transaction).await?;
        let record = AuditRecord {
            at: now,
            event: "bans-returned",
            outcome: audit::NOTED,
            detail: Some(format!(
                "the store was restored from an older copy: {found} bans of list {version} were lost, and given back by a proxy"
            )),
            spiffe_id: None,
            registration: None,
            serial: None,
            not_after: None,
            caller: self.replica().to_string(),
            csr_sha256: None,
        };
        audit::insert(&mut transaction, &record).await?;
        self.announce(&mut transaction, Topic::Bans).await?;
        transaction.commit().await?;
        Ok(found)
    }

    /// Forgets bans of certificates that were made before a time: those certificates have ended by then.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_bans_of_certificates(&self, before: SystemTime) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let forgotten =
            sqlx::query("DELETE FROM bans WHERE since < $1 AND subject NOT LIKE 'spiffe:%'")
                .bind(unix_seconds(before))
                .execute(&mut *transaction)
                .await?;
        if forgotten.rows_affected() > 0 {
            raise_version(&mut transaction).await?;
            self.announce(&mut transaction, Topic::Bans).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// Notes that an older copy of the store stands in for one whose list of bans had come to this version at least.
pub(super) async fn stand_in(
    connection: &mut sqlx::AnyConnection,
    lost: u64,
) -> Result<(), StoreError> {
    let present = number(connection, "bans_version").await?;
    let known = number(connection, "bans_lost_until").await?;
    let until = lost
        .max(present)
        .saturating_add(UNREMEMBERED_CHANGES * STEP);
    set_number(connection, "bans_lost_until", until.max(known)).await
}

async fn raise_version(connection: &mut sqlx::AnyConnection) -> Result<(), StoreError> {
    let present = number(connection, "bans_version").await?;
    let lost_until = number(connection, "bans_lost_until").await?;
    let step = if present < lost_until { 1 } else { STEP };
    // Of two replicas that read the same each adds its own.
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ('bans_version', $1)
         ON CONFLICT (name) DO UPDATE
         SET value = CAST(CAST(settings.value AS BIGINT) + CAST($1 AS BIGINT) AS TEXT)",
    )
    .bind(step.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// A setting that is a number; 0 where it is not there.
pub(super) async fn number(
    connection: &mut sqlx::AnyConnection,
    name: &'static str,
) -> Result<u64, StoreError> {
    let text: Option<String> = sqlx::query_scalar("SELECT value FROM settings WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    text.map_or(Ok(0), |text| {
        text.parse().map_err(|_| StoreError::Corrupt {
            what: "ban",
            why: format!("{name} {text:?} is not a number"),
        })
    })
}

async fn set_number(
    connection: &mut sqlx::AnyConnection,
    name: &'static str,
    value: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(name)
    .bind(value.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::empty_store;
    use super::*;
    use crate::store::GRANTED;
    use std::time::Duration;

    fn audit_record() -> AuditRecord {
        AuditRecord {
            at: SystemTime::now(),
            event: "ban",
            outcome: GRANTED,
            detail: None,
            spiffe_id: None,
            registration: None,
            serial: None,
            not_after: None,
            caller: "uid 0".to_owned(),
            csr_sha256: None,
        }
    }

    fn ban(subject: &str, since: SystemTime) -> BanRecord {
        BanRecord {
            banned: subject.parse().unwrap(),
            reason: "stolen".to_owned(),
            since: from_unix_seconds(unix_seconds(since)),
        }
    }

    #[tokio::test]
    async fn bans_are_kept_until_they_are_lifted_and_each_change_counts() {
        let (_directory, store) = empty_store().await;
        assert_eq!(store.bans().await.unwrap(), BanRecords::default());
        let now = SystemTime::now();
        let (id, serial) = (ban("spiffe://td/x", now), ban("0f", now));
        for one in [&id, &serial, &id] {
            store.change_ban(one, false, &audit_record()).await.unwrap();
        }
        let bans = vec![serial.clone(), id.clone()];
        let kept = store.bans().await.unwrap();
        let version = 3 * STEP;
        assert_eq!(kept, BanRecords { version, bans });
        store.change_ban(&id, true, &audit_record()).await.unwrap();
        let kept = store.bans().await.unwrap();
        assert_eq!((kept.version, kept.bans), (4 * STEP, vec![serial]));
    }

    #[tokio::test]
    async fn bans_of_a_restored_copy_never_overtake_the_lists_of_the_time_that_is_lost() {
        use super::super::tests::each_store;
        for store in each_store().await {
            let now = SystemTime::now();
            let change = async |name: &str| {
                let (ban, audit) = (ban(name, now), audit_record());
                store.change_ban(&ban, false, &audit).await.unwrap();
                store.bans().await.unwrap().version
            };
            let copy = change("spiffe://td/early").await;
            // What the copy does not know: its list had come to four changes.
            let mut before = store.position().await.unwrap();
            before.record += 40;
            before.bans_version = copy + 3 * STEP;
            assert!(store.make_up_for_loss(&before, now).await.unwrap());
            for number in 0..20 {
                let version = change(&format!("spiffe://td/new-{number}")).await;
                assert!(version > copy && version < copy + STEP, "{version}");
            }
            // A proxy gives one of the lost lists back; those after it are later ones still.
            let lost = [ban("spiffe://td/lost", now)];
            let returned = store.restore_bans(copy + 2 * STEP, &lost, now).await;
            assert_eq!(returned.unwrap(), 1);
            let version = change("spiffe://td/newer").await;
            let list = copy + 2 * STEP..copy + 3 * STEP;
            assert!(list.contains(&version), "{version}");
        }
    }

    #[tokio::test]
    async fn bans_of_certificates_end_with_the_certificates_and_bans_of_identities_do_not() {
        let (_directory, store) = empty_store().await;
        let now = SystemTime::now();
        let (id, serial) = (ban("spiffe://td/x", now), ban("0f", now));
        for one in [&id, &serial] {
            store.change_ban(one, false, &audit_record()).await.unwrap();
        }
        let forget = async |before| store.forget_bans_of_certificates(before).await.unwrap();
        forget(now - Duration::from_secs(60)).await;
        assert_eq!(store.bans().await.unwrap().version, 2 * STEP);
        forget(now + Duration::from_secs(60)).await;
        let kept = store.bans().await.unwrap();
        assert_eq!((kept.version, kept.bans), (3 * STEP, vec![id]));
    }
}
