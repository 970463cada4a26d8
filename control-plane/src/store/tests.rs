use super::*;
use sidewind_identity::{SpiffeId, TrustDomain};

use std::ops::Deref;

#[path = "../../tests/postgres/mod.rs"]
mod postgres;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// An empty store, and what it lives in.
pub(crate) struct TestStore {
    store: Store,
    _directory: tempfile::TempDir,
    _server: Option<postgres::PostgresServer>,
}

impl Deref for TestStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl TestStore {
    /// The store as a second replica has it, with connections of its own; on SQLite there is one replica,
    /// and this is the same again.
    pub(crate) async fn second_replica(&self) -> Store {
        if !self.is_shared() {
            return self.store.clone();
        }
        let (_directory, state) = state_dir();
        Store::open_at(&state, self.location().clone(), None)
            .await
            .unwrap()
    }
}

impl Store {
    /// Changes what is in it, behind its back.
    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.pool).await.unwrap();
    }

    /// Caller and detail of every audit record, the oldest first.
    pub(crate) async fn audit_details(&self) -> Vec<(String, String)> {
        sqlx::query_as("SELECT caller, coalesce(detail, '') FROM audit ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }
}

/// A state directory of its own.
pub(crate) fn state_dir() -> (tempfile::TempDir, StateDir) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    (directory, state)
}

/// An empty SQLite store in a directory of its own.
pub(crate) async fn empty_store() -> (tempfile::TempDir, Store) {
    let (directory, state) = state_dir();
    let store = Store::open(&state).await.unwrap();
    (directory, store)
}

/// An empty store of each kind: what holds on one must hold on the other.
pub(crate) async fn each_store() -> [TestStore; 2] {
    let (directory, store) = empty_store().await;
    let sqlite = TestStore {
        store,
        _directory: directory,
        _server: None,
    };
    let server = postgres::PostgresServer::start().await;
    let (directory, state) = state_dir();
    let location = Location::parse(&server.url()).unwrap();
    let store = Store::open_at(&state, location, None).await.unwrap();
    let postgres = TestStore {
        store,
        _directory: directory,
        _server: Some(server),
    };
    [sqlite, postgres]
}

pub(crate) fn audit_record(event: &'static str, at: SystemTime) -> AuditRecord {
    AuditRecord {
        at,
        event,
        outcome: GRANTED,
        detail: None,
        spiffe_id: None,
        registration: None,
        serial: None,
        not_after: None,
        caller: "127.0.0.1".to_owned(),
        csr_sha256: None,
    }
}

fn token() -> JoinTokenRecord {
    JoinTokenRecord {
        spiffe_id: SpiffeId::parse("spiffe://example.org/ns/data/sa/orders").unwrap(),
        svid_ttl: MINUTE,
        services: vec!["orders.data".parse().unwrap()],
        federates_with: vec![TrustDomain::parse("partner.example").unwrap()],
    }
}

/// Keeps a join token whose hash is the same byte throughout.
pub(crate) async fn insert_token(store: &Store, byte: u8, expires_at: SystemTime) {
    let audit = audit_record("token-create", SystemTime::now());
    store
        .insert_join_token([byte; 32], &token(), expires_at, &audit)
        .await
        .unwrap();
}

/// What such a token allows.
pub(crate) fn registration() -> Registration {
    let token = token();
    Registration {
        svid_ttl: token.svid_ttl,
        services: token.services,
        federates_with: token.federates_with,
        ..Registration::new(token.spiffe_id, "join-token")
    }
}

/// A certificate with this serial number.
pub(crate) fn svid(serial: &str, not_after: SystemTime) -> SvidRecord {
    SvidRecord {
        serial: serial.to_owned(),
        not_after,
        sha256: Some(digest_of(serial)),
    }
}

/// What stands for the digest of such a certificate.
pub(crate) fn digest_of(serial: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest[..serial.len()].copy_from_slice(serial.as_bytes());
    digest
}

/// Uses such a token, and gives back what came of it, if it was the first.
pub(crate) async fn redeem(
    store: &Store,
    byte: u8,
    serial: &str,
    at: SystemTime,
) -> Option<Registration> {
    let registration = registration();
    let redemption = Redemption {
        sha256: [byte; 32],
        registration: &registration,
        svid: &svid(serial, at + MINUTE),
        audit: &audit_record("attest", at),
    };
    let first = store.redeem_join_token(&redemption).await.unwrap();
    first.then_some(registration)
}

/// What comes of a new token that is used at once.
pub(crate) async fn token_registration(store: &Store, byte: u8, serial: &str) -> Registration {
    let now = SystemTime::now();
    insert_token(store, byte, now + MINUTE).await;
    redeem(store, byte, serial, now).await.unwrap()
}

#[tokio::test]
async fn a_store_stays_with_its_trust_domain() {
    for store in each_store().await {
        store.claim_trust_domain("one.example").await.unwrap();
        store.claim_trust_domain("one.example").await.unwrap();
        let error = store.claim_trust_domain("two.example").await.unwrap_err();
        assert!(error.to_string().contains("--trust-domain one.example"));
    }
}

#[tokio::test]
async fn the_database_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, _store) = empty_store().await;
    let state = directory.path().join("state");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_transaction_that_sqlite_itself_rolled_back_leaves_the_store_usable() {
    let (_directory, store) = empty_store().await;
    // No page more than there are: for this connection the disk is full.
    sqlx::query("PRAGMA max_page_count = 1")
        .execute(&store.pool)
        .await
        .unwrap();
    let fill = async || {
        let mut transaction = store.begin().await?;
        sqlx::query("INSERT INTO settings (name, value) VALUES ('filler', $1)")
            .bind("x".repeat(1 << 20))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok::<_, StoreError>(())
    };
    let error = crate::telemetry::chain(&fill().await.unwrap_err());
    assert!(error.contains("full"), "{error}");
    // The next connection finds room.
    fill().await.unwrap();
}
