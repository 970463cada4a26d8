//! Certificate authorities and their keys.

use super::keys::authority_context;
use super::{Store, StoreError, Topic, unix_seconds};
use sqlx::Row as _;
use sqlx::any::AnyRow;
use std::time::SystemTime;
use zeroize::Zeroizing;

/// What an authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityRole {
    /// Intermediates; its certificate is in the trust bundle.
    Root,
    /// SVIDs.
    Signing,
}

impl AuthorityRole {
    fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Signing => "signing",
        }
    }
}

/// An authority as it is kept.
pub struct AuthorityRecord {
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// The key in PKCS#8; absent when it is kept elsewhere.
    pub private_key: Option<Zeroizing<Vec<u8>>>,
    /// End of the certificate.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for AuthorityRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityRecord")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// The authority of a role that is in use, if there is one yet.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn active_authority(
        &self,
        role: AuthorityRole,
    ) -> Result<Option<AuthorityRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT certificate, private_key, not_after FROM authorities
             WHERE role = $1 AND state = 'active'",
        )
        .bind(role.as_str())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(|row| self.record(row)).transpose()
    }

    /// Certificates of every root that has not ended, the one in use first: what the trust bundle holds.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn trusted_roots(&self, now: SystemTime) -> Result<Vec<Vec<u8>>, StoreError> {
        let certificates = sqlx::query_scalar(
            "SELECT certificate FROM authorities WHERE role = 'root' AND not_after >= $1
             ORDER BY state = 'active' DESC, id DESC",
        )
        .bind(unix_seconds(now))
        .fetch_all(&self.pool)
        .await?;
        Ok(certificates)
    }

    /// Puts an authority in use in place of the present one of its role, which becomes old. A new root
    /// also raises the bundle's sequence, and puts the signing authority made by the old one away.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed.
    pub async fn activate_authority(
        &self,
        role: AuthorityRole,
        authority: &AuthorityRecord,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let context = authority_context(&authority.certificate);
        let seal = |key: &Zeroizing<Vec<u8>>| self.seal_key(&context, key);
        let private_key = authority.private_key.as_ref().map(seal).transpose()?;
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE authorities SET state = 'old' WHERE role = $1 AND state = 'active'")
            .bind(role.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO authorities (role, state, certificate, private_key, not_after, created_at)
             VALUES ($1, 'active', $2, $3, $4, $5)
             ON CONFLICT (certificate) DO UPDATE SET state = 'active'",
        )
        .bind(role.as_str())
        .bind(authority.certificate.as_slice())
        .bind(private_key.as_ref().map(|key| key.as_slice()))
        .bind(unix_seconds(authority.not_after))
        .bind(unix_seconds(now))
        .execute(&mut *transaction)
        .await?;
        if role == AuthorityRole::Root {
            sqlx::query(
                "INSERT INTO settings (name, value) VALUES ('bundle_sequence', '1')
                 ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(settings.value AS BIGINT) + 1 AS TEXT)",
            )
            .execute(&mut *transaction)
            .await?;
        }
        // An old signing key has no further use, and what is not there cannot leak. A new root makes new
        // signing authorities.
        sqlx::query(
            "DELETE FROM authorities WHERE role = 'signing' AND (state = 'old' OR $1 = 'root')",
        )
        .bind(role.as_str())
        .execute(&mut *transaction)
        .await?;
        self.announce(&mut transaction, Topic::Authorities).await?;
        transaction.commit().await?;
        Ok(())
    }
}

impl Store {
    fn record(&self, row: &AnyRow) -> Result<AuthorityRecord, StoreError> {
        let certificate: Vec<u8> = row.try_get("certificate")?;
        let stored: Option<Vec<u8>> = row.try_get("private_key")?;
        let context = authority_context(&certificate);
        let open = |stored: Vec<u8>| self.open_key(&context, &Zeroizing::new(stored));
        Ok(AuthorityRecord {
            private_key: stored.map(open).transpose()?,
            not_after: super::from_unix_seconds(row.try_get("not_after")?),
            certificate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::empty_store;
    use super::*;
    use std::time::Duration;

    fn authority(name: &str, lifetime: Duration) -> AuthorityRecord {
        AuthorityRecord {
            certificate: name.into(),
            private_key: Some(Zeroizing::new(b"key".to_vec())),
            not_after: SystemTime::now() + lifetime,
        }
    }

    #[tokio::test]
    async fn a_new_root_keeps_the_old_one_trusted_and_raises_the_sequence() {
        let (_directory, store) = empty_store().await;
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let activate = async |name, lifetime| {
            let record = authority(name, lifetime);
            store
                .activate_authority(AuthorityRole::Root, &record, now)
                .await
                .unwrap();
        };
        activate("one", hour).await;
        assert_eq!(store.bundle_sequence().await.unwrap(), 1);
        activate("two", 2 * hour).await;
        assert_eq!(store.bundle_sequence().await.unwrap(), 2);
        let roots = async |at| store.trusted_roots(at).await.unwrap();
        assert_eq!(roots(now).await, [b"two".to_vec(), b"one".to_vec()]);
        assert_eq!(
            roots(now + hour + Duration::from_secs(2)).await,
            [b"two".to_vec()]
        );
        let active = store
            .active_authority(AuthorityRole::Root)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(active.certificate, b"two");
    }

    #[tokio::test]
    async fn an_old_signing_key_is_deleted() {
        let (_directory, store) = empty_store().await;
        let now = SystemTime::now();
        for name in ["one", "two"] {
            let record = authority(name, Duration::from_secs(60));
            store
                .activate_authority(AuthorityRole::Signing, &record, now)
                .await
                .unwrap();
        }
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM authorities")
            .fetch_one(&store.pool)
            .await
            .unwrap();
        assert_eq!(count, 1);
    }
}
