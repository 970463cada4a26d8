//! The registration of a certificate that this replica has not seen.

use super::registrations::{COLUMNS, read, read_svid};
use super::{Registration, Store, StoreError, SvidRecord};
use sidewind_identity::SpiffeId;
use sqlx::{Any, AssertSqlSafe, Transaction};
use std::time::Duration;

/// How often, and in which steps, an unconfirmed commit is looked for.
const LOOKS: u32 = 3;
const LOOK_AFTER: Duration = Duration::from_millis(500);

impl Store {
    /// The registration that a certificate came from, with what is on record of that.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn registration_of(
        &self,
        serial: &str,
        spiffe_id: &SpiffeId,
    ) -> Result<Option<(Registration, SvidRecord)>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS}, serial, not_after, sha256
             FROM registrations JOIN svids ON registration = id
             WHERE serial = $1 AND spiffe_id = $2"
        )))
        .bind(serial)
        .bind(spiffe_id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let found = |row| Ok((read(row)?, read_svid(row)?));
        row.as_ref().map(found).transpose()
    }

    /// The newest registration of an identity, for a certificate whose record was lost, with the replica that issued
    /// it or because an older copy was restored.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn newest_registration(
        &self,
        spiffe_id: &SpiffeId,
    ) -> Result<Option<Registration>, StoreError> {
        let by_identity = sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM registrations WHERE spiffe_id = $1
             ORDER BY created_at DESC, id DESC LIMIT 1"
        )))
        .bind(spiffe_id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        by_identity.as_ref().map(read).transpose()
    }

    /// Commits a transaction that issues a certificate. A connection that breaks in this moment leaves open
    /// whether it was committed; then the certificate's record is looked for.
    ///
    /// # Errors
    /// When it was not committed, or nobody can say whether it was.
    pub async fn commit_issuance(
        &self,
        transaction: Transaction<'_, Any>,
        serial: &str,
    ) -> Result<(), StoreError> {
        let Err(error) = transaction.commit().await else {
            return Ok(());
        };
        for _ in 0..LOOKS {
            let found: Result<Option<i64>, _> =
                sqlx::query_scalar("SELECT not_after FROM svids WHERE serial = $1")
                    .bind(serial)
                    .fetch_optional(&self.pool)
                    .await;
            match found {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => return Err(error.into()),
                Err(_) => tokio::time::sleep(LOOK_AFTER).await,
            }
        }
        Err(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{digest_of, each_store, token_registration};
    use super::*;

    #[tokio::test]
    async fn a_certificate_is_found_by_its_serial_and_an_identity_by_its_newest_registration() {
        for store in each_store().await {
            let first = token_registration(&store, 1, "01").await;
            let second = token_registration(&store, 2, "02").await;
            let id = &first.spiffe_id;
            let find = async |serial, id: &SpiffeId| {
                let found = store.registration_of(serial, id).await.unwrap();
                found.map(|(registration, svid)| {
                    assert_eq!(svid.sha256, Some(digest_of(serial)));
                    registration.id
                })
            };
            assert_eq!(find("01", id).await, Some(first.id.clone()));
            assert_eq!(find("02", id).await, Some(second.id.clone()));
            assert_eq!(find("03", id).await, None);
            let newest = store.newest_registration(id).await.unwrap().unwrap();
            assert!([first.id, second.id].contains(&newest.id));
            let other = SpiffeId::parse("spiffe://example.org/other").unwrap();
            assert_eq!(find("01", &other).await, None);
            assert_eq!(store.newest_registration(&other).await.unwrap(), None);
        }
    }
}
