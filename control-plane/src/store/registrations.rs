//! What attestations allowed, and which certificates came of them.

use super::rows::{pieces, placeholders};
use super::{Store, StoreError, Topic, from_unix_seconds, terms, unix_seconds};
use crate::attest::Selectors;
use sidewind_api::ServiceName;
use sidewind_identity::{SpiffeId, TrustDomain};
use sqlx::any::AnyRow;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row as _, Transaction};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Names one registration, randomly.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistrationId(Arc<str>);

impl RegistrationId {
    /// A new name.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string().into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// On what terms tasks of a workload have identities of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTerms {
    /// Lifetime of their certificates.
    pub svid_ttl: Duration,
    /// The Airflow whose word is demanded that the task is running; none where the worker's is enough.
    pub airflow: Option<String>,
}

impl Default for TaskTerms {
    fn default() -> Self {
        Self {
            svid_ttl: Duration::from_secs(300),
            airflow: None,
        }
    }
}

/// What one attested workload may have: its identity, how long its certificates last, which services it
/// may offer, and what it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its name.
    pub id: RegistrationId,
    /// The identity of its certificates.
    pub spiffe_id: SpiffeId,
    /// The attestor that vouched for it.
    pub attestor: &'static str,
    /// Lifetime of its certificates.
    pub svid_ttl: Duration,
    /// Services that it may offer.
    pub services: Vec<ServiceName>,
    /// DNS names of its certificates.
    pub dns_names: Vec<String>,
    /// Whether identities of tasks may be derived from its own, and how.
    pub task_identities: Option<TaskTerms>,
    /// Lifetime of its JWT-SVIDs, where it is not the control plane's default.
    pub jwt_ttl: Option<Duration>,
    /// Foreign trust domains whose bundles it gets.
    pub federates_with: Vec<TrustDomain>,
    /// The document that allowed it, `namespace/name`; none for a join token, which needs no document to
    /// be renewed.
    pub document: Option<String>,
    /// What was attested: a renewal is held against the documents of its own time.
    pub selectors: Selectors,
}

impl Registration {
    /// A new registration of an identity with the default lifetime, and nothing beyond.
    #[must_use]
    pub fn new(spiffe_id: SpiffeId, attestor: &'static str) -> Self {
        Self {
            id: RegistrationId::random(),
            spiffe_id,
            attestor,
            svid_ttl: Duration::from_secs(3600),
            services: Vec::new(),
            dns_names: Vec::new(),
            task_identities: None,
            jwt_ttl: None,
            federates_with: Vec::new(),
            document: None,
            selectors: Selectors::default(),
        }
    }
}

/// What is on record of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidRecord {
    /// Its serial number in lower-case hexadecimal.
    pub serial: String,
    /// Its end.
    pub not_after: SystemTime,
    /// SHA-256 of its DER form; unknown for one that an earlier version has signed.
    pub sha256: Option<[u8; 32]>,
}

/// The attestors whose registrations the store may hold.
const ATTESTORS: &[&str] = &["join-token", "kubernetes", "oidc", "aws-iam", "x509"];

/// What [`read`] reads.
pub(super) const COLUMNS: &str = "id, spiffe_id, attestor, svid_ttl_seconds, services, terms";

impl Store {
    /// Every registration with a certificate that has not ended, with each of those certificates.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn living_registrations(
        &self,
        now: SystemTime,
    ) -> Result<Vec<(Registration, SvidRecord)>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS}, serial, not_after, sha256
             FROM registrations JOIN svids ON registration = id
             WHERE not_after >= $1 ORDER BY created_at, id, not_after"
        )))
        .bind(unix_seconds(now))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| Ok((read(row)?, read_svid(row)?)))
            .collect()
    }
}

/// Adds a registration.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    registration: &Registration,
    now: SystemTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO registrations (id, spiffe_id, attestor, svid_ttl_seconds, services, created_at,
                                    terms)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(registration.id.as_str())
    .bind(registration.spiffe_id.as_str())
    .bind(registration.attestor)
    .bind(seconds(registration.svid_ttl))
    .bind(services_to_json(&registration.services))
    .bind(unix_seconds(now))
    .bind(terms::write(registration))
    .execute(connection)
    .await?;
    Ok(())
}

/// A certificate that came of a registration.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewSvid<'a> {
    pub(super) svid: &'a SvidRecord,
    pub(super) registration: &'a RegistrationId,
}

/// Notes which certificates came of which registrations. One whose registration has been deleted meanwhile
/// is passed over, so that a batch of writes never fails for it; and one that is noted already, by a commit
/// that was not confirmed.
pub(super) async fn insert_svids(
    connection: &mut AnyConnection,
    svids: &[NewSvid<'_>],
) -> Result<(), StoreError> {
    for piece in pieces(svids) {
        // Both databases call the columns of VALUES so.
        let statement = format!(
            "INSERT INTO svids (serial, registration, not_after, sha256)
             SELECT column1, column2, column3, column4 FROM (VALUES {}) AS fresh
             WHERE EXISTS (SELECT 1 FROM registrations WHERE id = column2)
             ON CONFLICT (serial) DO NOTHING",
            placeholders(piece.len(), 4)
        );
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for NewSvid { svid, registration } in piece {
            query = query
                .bind(svid.serial.as_str())
                .bind(registration.as_str())
                .bind(unix_seconds(svid.not_after))
                .bind(svid.sha256.as_ref().map(<[u8; 32]>::as_slice));
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Notes that services belong to the mesh. Those that were not known are announced to every replica.
pub(super) async fn note_services(
    store: &Store,
    transaction: &mut Transaction<'_, Any>,
    services: &[ServiceName],
    now: SystemTime,
) -> Result<(), StoreError> {
    // A name that is in use is noted again long before it is deleted.
    const NOTED_SECONDS: i64 = 86_400;
    let mut change = None;
    for service in services {
        let known: Option<i64> =
            sqlx::query_scalar("SELECT change FROM services WHERE name = $1 AND noted_at > $2")
                .bind(service.as_str())
                .bind(unix_seconds(now) - NOTED_SECONDS)
                .fetch_optional(&mut **transaction)
                .await?;
        if known.is_some() {
            continue;
        }
        let change = match change {
            Some(change) => change,
            None => *change.insert(store.announce(transaction, Topic::Services).await?),
        };
        sqlx::query(
            "INSERT INTO services (name, change, noted_at) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET change = excluded.change, noted_at = excluded.noted_at",
        )
        .bind(service.as_str())
        .bind(change)
        .bind(unix_seconds(now))
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Reads a registration from a row with [`COLUMNS`].
pub(super) fn read(row: &AnyRow) -> Result<Registration, StoreError> {
    let attestor: &str = row.try_get("attestor")?;
    let corrupt = |why: String| StoreError::Corrupt {
        what: "registration",
        why,
    };
    let known = ATTESTORS.iter().find(|known| **known == attestor);
    let id: String = row.try_get("id")?;
    let attestor = known.ok_or_else(|| corrupt(format!("attestor {attestor:?} is not known")))?;
    let mut registration = Registration {
        id: RegistrationId(id.into()),
        svid_ttl: svid_ttl(row)?,
        services: services(row, "registration")?,
        ..Registration::new(spiffe_id(row, "registration")?, attestor)
    };
    terms::read(row.try_get("terms")?, &mut registration)?;
    Ok(registration)
}

/// Reads what is on record of a certificate.
pub(super) fn read_svid(row: &AnyRow) -> Result<SvidRecord, StoreError> {
    let sha256: Option<Vec<u8>> = row.try_get("sha256")?;
    Ok(SvidRecord {
        serial: row.try_get("serial")?,
        not_after: from_unix_seconds(row.try_get("not_after")?),
        sha256: sha256.and_then(|digest| digest.try_into().ok()),
    })
}

pub(super) fn spiffe_id(row: &AnyRow, what: &'static str) -> Result<SpiffeId, StoreError> {
    let text: &str = row.try_get("spiffe_id")?;
    SpiffeId::parse(text).map_err(|error| StoreError::Corrupt {
        what,
        why: error.to_string(),
    })
}

pub(super) fn svid_ttl(row: &AnyRow) -> Result<Duration, StoreError> {
    let seconds: i64 = row.try_get("svid_ttl_seconds")?;
    Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(super) fn services(row: &AnyRow, what: &'static str) -> Result<Vec<ServiceName>, StoreError> {
    let corrupt = |why: String| StoreError::Corrupt { what, why };
    let names: Vec<String> = serde_json::from_str(row.try_get("services")?)
        .map_err(|error| corrupt(error.to_string()))?;
    let parse = |name: &String| name.parse().map_err(|error| corrupt(format!("{error}")));
    names.iter().map(parse).collect()
}

pub(super) fn services_to_json(services: &[ServiceName]) -> String {
    let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
    serde_json::Value::from(names).to_string()
}

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
