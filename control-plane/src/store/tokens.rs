//! Join tokens: kept as hashes, used once.

use super::registrations::{seconds, services, services_to_json, spiffe_id, svid_ttl};
use super::settling::{Ground, Issuance, Settled};
use super::{AuditRecord, Registration, Store, StoreError, SvidRecord, audit, unix_seconds};
use sidewind_api::ServiceName;
use sidewind_identity::{SpiffeId, TrustDomain};
use sqlx::Row as _;
use std::time::{Duration, SystemTime};

/// A join token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRecord {
    /// The identity that it gives.
    pub spiffe_id: SpiffeId,
    /// Lifetime of the certificates that come of it.
    pub svid_ttl: Duration,
    /// Services that its workload may offer.
    pub services: Vec<ServiceName>,
    /// Foreign trust domains whose bundles its workload gets.
    pub federates_with: Vec<TrustDomain>,
}

/// Why a join token gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedToken {
    /// It was never made.
    Unknown,
    /// It was used before.
    Used,
    /// Its time is over.
    Expired,
}

/// What is written when a join token is used.
#[derive(Debug)]
pub struct Redemption<'a> {
    /// SHA-256 of the token.
    pub sha256: [u8; 32],
    /// What it allows from now on.
    pub registration: &'a Registration,
    /// The first certificate.
    pub svid: &'a SvidRecord,
    /// The record of the issuance.
    pub audit: &'a AuditRecord,
}

impl Store {
    /// Keeps a new join token, with the record of its making.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn insert_join_token(
        &self,
        sha256: [u8; 32],
        token: &JoinTokenRecord,
        expires_at: SystemTime,
        audit: &AuditRecord,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO join_tokens (sha256, spiffe_id, svid_ttl_seconds, services, created_at,
                                      expires_at, federates_with)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(sha256.as_slice())
        .bind(token.spiffe_id.as_str())
        .bind(seconds(token.svid_ttl))
        .bind(services_to_json(&token.services))
        .bind(unix_seconds(audit.at))
        .bind(unix_seconds(expires_at))
        .bind(domains_to_json(&token.federates_with))
        .execute(&mut *transaction)
        .await?;
        audit::insert(&mut transaction, audit).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// What a join token would give now. Nothing is used up.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn join_token(
        &self,
        sha256: [u8; 32],
        now: SystemTime,
    ) -> Result<Result<JoinTokenRecord, RefusedToken>, StoreError> {
        let row = sqlx::query(
            "SELECT spiffe_id, svid_ttl_seconds, services, federates_with, expires_at, used_at
             FROM join_tokens WHERE sha256 = $1",
        )
        .bind(sha256.as_slice())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else {
            return Ok(Err(RefusedToken::Unknown));
        };
        if row.try_get::<Option<i64>, _>("used_at")?.is_some() {
            return Ok(Err(RefusedToken::Used));
        }
        if row.try_get::<i64, _>("expires_at")? <= unix_seconds(now) {
            return Ok(Err(RefusedToken::Expired));
        }
        Ok(Ok(JoinTokenRecord {
            spiffe_id: spiffe_id(&row, "join token")?,
            svid_ttl: svid_ttl(&row)?,
            services: services(&row, "join token")?,
            federates_with: domains(row.try_get("federates_with")?)?,
        }))
    }

    /// Uses a join token up and writes what comes of it, all or nothing. Of any number of callers at
    /// once, one gets `true`.
    ///
    /// # Errors
    /// When the store fails; then the token is not used.
    pub async fn redeem_join_token(&self, redemption: &Redemption<'_>) -> Result<bool, StoreError> {
        let issuance = Issuance {
            ground: Ground::JoinToken(redemption.sha256),
            registration: redemption.registration.clone(),
            svid: redemption.svid.clone(),
            audit: redemption.audit.clone(),
        };
        Ok(self.settle(issuance).await? == Settled::Written)
    }
}

fn domains_to_json(domains: &[TrustDomain]) -> String {
    let names: Vec<&str> = domains.iter().map(TrustDomain::as_str).collect();
    serde_json::Value::from(names).to_string()
}

fn domains(text: &str) -> Result<Vec<TrustDomain>, StoreError> {
    let corrupt = |why: String| StoreError::Corrupt {
        what: "join token",
        why,
    };
    let names: Vec<String> =
        serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))?;
    let parse =
        |name: &String| TrustDomain::parse(name).map_err(|error| corrupt(error.to_string()));
    names.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        MINUTE, TestStore, audit_record, each_store, insert_token, redeem, registration, svid,
    };
    use super::*;

    async fn stores_with_token(expires_at: SystemTime) -> [TestStore; 2] {
        let stores = each_store().await;
        for store in &stores {
            insert_token(store, 7, expires_at).await;
        }
        stores
    }

    #[tokio::test]
    async fn a_join_token_is_used_once() {
        let now = SystemTime::now();
        for store in stores_with_token(now + MINUTE).await {
            assert!(store.join_token([7; 32], now).await.unwrap().is_ok());
            assert!(redeem(&store, 7, "01", now).await.is_some());
            assert!(redeem(&store, 7, "02", now).await.is_none());
            let refused = store.join_token([7; 32], now).await.unwrap();
            assert_eq!(refused, Err(RefusedToken::Used));
            let living = store.living_registrations(now).await.unwrap();
            assert_eq!(living.len(), 1);
            assert_eq!(living[0].0.services[0].as_str(), "orders.data");
            let (services, _) = store.services_since(0).await.unwrap();
            assert_eq!(services, ["orders.data"]);
        }
    }

    #[tokio::test]
    async fn of_a_hundred_at_once_over_two_replicas_one_uses_the_token() {
        let now = SystemTime::now();
        for store in stores_with_token(now + MINUTE).await {
            let other = store.second_replica().await;
            let mut redeems = tokio::task::JoinSet::new();
            for number in 0..100 {
                let of = if number % 2 == 0 { &store } else { &other };
                let of = Store::clone(of);
                redeems.spawn(async move { redeem(&of, 7, &format!("{number}"), now).await });
            }
            let used = redeems.join_all().await.into_iter().flatten().count();
            assert_eq!(used, 1);
            assert_eq!(store.living_registrations(now).await.unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn on_a_full_disk_a_token_is_not_used() {
        let now = SystemTime::now();
        let (_directory, store) = super::super::tests::empty_store().await;
        insert_token(&store, 7, now + MINUTE).await;
        let limit = async |pages: i64| {
            let limit = format!("PRAGMA max_page_count = {pages}");
            let limit = sqlx::query(sqlx::AssertSqlSafe(limit));
            limit.execute(&store.pool).await.unwrap();
        };
        limit(1).await;
        let registration = token_registration_of_many_services();
        let redemption = Redemption {
            sha256: [7; 32],
            registration: &registration,
            svid: &svid("01", now + MINUTE),
            audit: &audit_record("attest", now),
        };
        let error = store.redeem_join_token(&redemption).await.unwrap_err();
        let error = crate::telemetry::chain(&error);
        assert!(error.contains("full"), "{error}");
        limit(1_000_000).await;
        assert!(store.join_token([7; 32], now).await.unwrap().is_ok());
        assert!(store.redeem_join_token(&redemption).await.unwrap());
    }

    /// More than fits into the pages that there are.
    fn token_registration_of_many_services() -> Registration {
        let service = |number| format!("service-{number}.data").parse().unwrap();
        Registration {
            services: (0..1000).map(service).collect(),
            ..registration()
        }
    }

    #[tokio::test]
    async fn an_expired_or_made_up_join_token_gives_nothing() {
        let now = SystemTime::now();
        for store in stores_with_token(now + MINUTE).await {
            let late = now + MINUTE + Duration::from_secs(1);
            let refused = store.join_token([7; 32], late).await.unwrap();
            assert_eq!(refused, Err(RefusedToken::Expired));
            assert!(redeem(&store, 7, "01", late).await.is_none());
            let refused = store.join_token([8; 32], now).await.unwrap();
            assert_eq!(refused, Err(RefusedToken::Unknown));
        }
    }

    #[tokio::test]
    async fn the_audit_cannot_be_changed() {
        for store in stores_with_token(SystemTime::now() + MINUTE).await {
            let changed = sqlx::query("UPDATE audit SET caller = 'nobody'")
                .execute(&store.pool)
                .await;
            assert!(changed.unwrap_err().to_string().contains("append-only"));
        }
    }
}
