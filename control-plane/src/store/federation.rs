//! Bundle documents of foreign trust domains.

use super::{AuditRecord, Store, StoreError, Topic, audit, from_unix_seconds, unix_seconds};
use sidewind_identity::TrustDomain;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use std::time::SystemTime;

/// The newest bundle document of a foreign trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedBundle {
    /// Whose it is.
    pub trust_domain: TrustDomain,
    /// The document as it was fetched.
    pub document: Vec<u8>,
    /// Where it came from.
    pub url: String,
    /// When it came to be the present one.
    pub taken_at: SystemTime,
    /// When its endpoint was last heard.
    pub confirmed_at: SystemTime,
}

/// What becomes of a document that was fetched.
#[derive(Debug)]
pub enum Settlement {
    /// It is the present one: its endpoint was heard.
    Confirm,
    /// It takes the place of the present one.
    Replace {
        /// The record of it.
        audit: AuditRecord,
    },
    /// The present one stays, and this is on record.
    Refuse {
        /// The record of it; none where it is on record already.
        audit: Option<AuditRecord>,
    },
}

impl Store {
    /// The bundle documents of every foreign trust domain.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn federated_bundles(&self) -> Result<Vec<FederatedBundle>, StoreError> {
        let rows = sqlx::query(
            "SELECT trust_domain, document, url, taken_at, confirmed_at FROM federated_bundles
             ORDER BY trust_domain",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(read).collect()
    }

    /// Decides about a document that was fetched, with the present one before the eyes and no other replica deciding
    /// meanwhile. A change is announced to every replica.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed.
    pub async fn settle_federated_bundle<T>(
        &self,
        fetched: &FederatedBundle,
        decide: impl FnOnce(Option<&FederatedBundle>) -> (Settlement, T),
    ) -> Result<T, StoreError> {
        let mut transaction = self.begin_alone("federation").await?;
        let row = sqlx::query(
            "SELECT trust_domain, document, url, taken_at, confirmed_at FROM federated_bundles
             WHERE trust_domain = $1",
        )
        .bind(fetched.trust_domain.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
        let present = row.as_ref().map(read).transpose()?;
        let (settlement, decision) = decide(present.as_ref());
        match settlement {
            Settlement::Confirm => {
                sqlx::query(
                    "UPDATE federated_bundles SET url = $1, confirmed_at = $2
                     WHERE trust_domain = $3",
                )
                .bind(fetched.url.as_str())
                .bind(unix_seconds(fetched.confirmed_at))
                .bind(fetched.trust_domain.as_str())
                .execute(&mut *transaction)
                .await?;
            }
            Settlement::Replace { audit } => {
                sqlx::query(
                    "INSERT INTO federated_bundles
                         (trust_domain, document, url, taken_at, confirmed_at)
                     VALUES ($1, $2, $3, $4, $5)
                     ON CONFLICT (trust_domain) DO UPDATE
                     SET document = excluded.document, url = excluded.url,
                         taken_at = excluded.taken_at, confirmed_at = excluded.confirmed_at",
                )
                .bind(fetched.trust_domain.as_str())
                .bind(fetched.document.as_slice())
                .bind(fetched.url.as_str())
                .bind(unix_seconds(fetched.taken_at))
                .bind(unix_seconds(fetched.confirmed_at))
                .execute(&mut *transaction)
                .await?;
                audit::insert(&mut transaction, &audit).await?;
                self.announce(&mut transaction, Topic::Federation).await?;
            }
            Settlement::Refuse { audit } => {
                if let Some(audit) = audit {
                    audit::insert(&mut transaction, &audit).await?;
                }
            }
        }
        transaction.commit().await?;
        Ok(decision)
    }

    /// Forgets the bundle document of a trust domain, and with it which sequence it had. Gives back whether there was one.
    ///
    /// # Errors
    /// When the store fails; then nothing is forgotten.
    pub async fn forget_federated_bundle(
        &self,
        trust_domain: &TrustDomain,
        audit: &AuditRecord,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin_alone("federation").await?;
        let deleted = sqlx::query("DELETE FROM federated_bundles WHERE trust_domain = $1")
            .bind(trust_domain.as_str())
            .execute(&mut *transaction)
            .await?;
        let was_there = deleted.rows_affected() > 0;
        if was_there {
            audit::insert(&mut transaction, audit).await?;
            self.announce(&mut transaction, Topic::Federation).await?;
        }
        transaction.commit().await?;
        Ok(was_there)
    }
}

fn read(row: &AnyRow) -> Result<FederatedBundle, StoreError> {
    let name: &str = row.try_get("trust_domain")?;
    let trust_domain = TrustDomain::parse(name).map_err(|error| StoreError::Corrupt {
        what: "federated bundle",
        why: format!("{name:?}: {error}"),
    })?;
    Ok(FederatedBundle {
        trust_domain,
        document: row.try_get("document")?,
        url: row.try_get("url")?,
        taken_at: from_unix_seconds(row.try_get("taken_at")?),
        confirmed_at: from_unix_seconds(row.try_get("confirmed_at")?),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{audit_record, each_store};
    use super::*;
    use std::time::Duration;

    fn bundle(document: &str, at: SystemTime) -> FederatedBundle {
        let at = from_unix_seconds(unix_seconds(at));
        FederatedBundle {
            trust_domain: TrustDomain::parse("partner.example").unwrap(),
            document: document.as_bytes().to_vec(),
            url: "https://partner.example/".to_owned(),
            taken_at: at,
            confirmed_at: at,
        }
    }

    fn replace(at: SystemTime) -> Settlement {
        Settlement::Replace {
            audit: audit_record("federation-bundle", at),
        }
    }

    #[tokio::test]
    async fn a_document_is_kept_and_every_replica_hears_of_a_new_one() {
        for store in each_store().await {
            let now = SystemTime::now();
            let second = store.second_replica().await;
            let mut heard = second.watch(Topic::Federation);
            let hearing = tokio::spawn(second.clone().hear_notices());
            let first = bundle("one", now);
            let decide = |present: Option<&FederatedBundle>| (replace(now), present.cloned());
            let before = store.settle_federated_bundle(&first, decide).await.unwrap();
            assert_eq!(before, None);
            heard.wait_for(|number| *number > 0).await.unwrap();
            let kept = second.federated_bundles().await.unwrap();
            assert_eq!(kept, std::slice::from_ref(&first));

            let later = bundle("two", now + Duration::from_secs(60));
            let confirm =
                |present: Option<&FederatedBundle>| (Settlement::Confirm, present.cloned());
            let before = second
                .settle_federated_bundle(&later, confirm)
                .await
                .unwrap();
            assert_eq!(before, Some(first.clone()));
            let confirmed = FederatedBundle {
                confirmed_at: later.confirmed_at,
                ..first
            };
            let kept = store.federated_bundles().await.unwrap();
            assert_eq!(kept, std::slice::from_ref(&confirmed));
            let refuse = |_: Option<&FederatedBundle>| (Settlement::Refuse { audit: None }, ());
            store.settle_federated_bundle(&later, refuse).await.unwrap();
            assert_eq!(store.federated_bundles().await.unwrap(), [confirmed]);
            hearing.abort();
        }
    }

    #[tokio::test]
    async fn of_two_replicas_that_decide_at_once_the_second_sees_what_the_first_did() {
        for store in each_store().await {
            let now = SystemTime::now();
            let second = store.second_replica().await;
            let decide = |present: Option<&FederatedBundle>| (replace(now), present.is_some());
            let (one, other) = (bundle("one", now), bundle("two", now));
            let (first, other) = tokio::join!(
                store.settle_federated_bundle(&one, decide),
                second.settle_federated_bundle(&other, decide),
            );
            assert_ne!(first.unwrap(), other.unwrap());
        }
    }

    #[tokio::test]
    async fn what_is_forgotten_is_gone_with_its_sequence() {
        for store in each_store().await {
            let now = SystemTime::now();
            let one = bundle("one", now);
            let audit = audit_record("federation-forget", now);
            let forget = async || {
                let forgotten = store.forget_federated_bundle(&one.trust_domain, &audit);
                forgotten.await.unwrap()
            };
            assert!(!forget().await);
            let decide = |_: Option<&FederatedBundle>| (replace(now), ());
            store.settle_federated_bundle(&one, decide).await.unwrap();
            assert!(forget().await);
            assert_eq!(store.federated_bundles().await.unwrap(), []);
        }
    }
}
