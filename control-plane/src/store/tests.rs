use super::*;

use std::ops::Deref;

#[path = "../../tests/postgres/mod.rs"]
mod postgres;

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

/// An empty SQLite store in a directory of its own.
pub(crate) async fn empty_store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
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
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(&directory.path().join("state")).unwrap();
    let location = Location::parse(&server.url()).unwrap();
    let store = Store::open_at(&state, &location).await.unwrap();
    let postgres = TestStore {
        store,
        _directory: directory,
        _server: Some(server),
    };
    [sqlite, postgres]
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
