use super::super::tests::empty_store;
use super::super::{AuditRecord, GRANTED, audit};
use super::*;

async fn write(store: &Store, number: usize, at: SystemTime) {
    let mut connection = store.pool.acquire().await.unwrap();
    for index in 0..number {
        let record = AuditRecord {
            at,
            event: "renew",
            outcome: GRANTED,
            detail: (index % 2 == 0).then(|| "detail".to_owned()),
            spiffe_id: Some(format!("spiffe://example.org/{index}")),
            registration: None,
            serial: Some(format!("{index:x}")),
            not_after: Some(at + Duration::from_secs(60)),
            caller: "192.0.2.1".to_owned(),
            csr_sha256: None,
        };
        audit::insert(&mut connection, &record).await.unwrap();
    }
}

async fn sealed(number: usize) -> (tempfile::TempDir, Store) {
    let (directory, store) = empty_store().await;
    write(&store, number, SystemTime::now()).await;
    seal_all(&store).await.unwrap();
    (directory, store)
}

async fn run(store: &Store, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&store.pool).await.unwrap();
}

async fn verify(store: &Store) -> Verification {
    store.verify_audit(SystemTime::now()).await.unwrap()
}

#[tokio::test]
async fn every_record_is_sealed_once_and_the_chain_holds() {
    let (_directory, store) = sealed(600).await;
    let first = verify(&store).await;
    assert_eq!((first.verified, first.first, first.unsealed), (600, 1, 0));
    assert!(first.problems.is_empty(), "{first:?}");
    write(&store, 3, SystemTime::now()).await;
    assert_eq!(verify(&store).await.unsealed, 3);
    assert_eq!(store.seal_audit().await.unwrap(), 3);
    assert_eq!(store.seal_audit().await.unwrap(), 0);
    let second = verify(&store).await;
    assert_eq!((second.verified, second.unsealed), (603, 0));
    assert_eq!(second.head.unwrap().position, 603);
}

#[tokio::test]
async fn a_record_that_becomes_visible_late_is_sealed_where_it_came() {
    let (_directory, store) = empty_store().await;
    write(&store, 3, SystemTime::now()).await;
    // As a transaction of another replica leaves it: numbered before, and not there yet.
    run(
        &store,
        "CREATE TABLE late AS SELECT * FROM audit WHERE id = 2; DELETE FROM audit WHERE id = 2",
    )
    .await;
    seal_all(&store).await.unwrap();
    run(&store, "INSERT INTO audit SELECT * FROM late").await;
    seal_all(&store).await.unwrap();
    let found = verify(&store).await;
    assert_eq!((found.verified, found.unsealed), (3, 0));
    assert!(found.problems.is_empty(), "{found:?}");
}

#[tokio::test]
async fn what_was_changed_taken_out_or_put_in_is_found() {
    let table = [
        (
            "DROP TRIGGER audit_is_append_only; UPDATE audit SET outcome = 'x' WHERE id = 5",
            "record 5 is not what seal 5 was made for",
        ),
        (
            "DROP TRIGGER audit_is_append_only; UPDATE audit SET detail = '' WHERE id = 6",
            "record 6 is not what",
        ),
        (
            "DELETE FROM audit WHERE id = 5",
            "record 5, of seal 5, is gone",
        ),
        (
            "DELETE FROM audit WHERE id = 1",
            "record 1, of seal 1, is gone",
        ),
        (
            "DELETE FROM audit_chain WHERE position IN (4, 5); DELETE FROM audit WHERE id IN (4, 5)",
            "the seals 4 to 5 are gone",
        ),
        (
            "DROP TRIGGER audit_chain_is_append_only;
             UPDATE audit_chain SET hash = zeroblob(32) WHERE position = 7",
            "seal 8 does not go on from the one before",
        ),
    ];
    for (statement, expected) in table {
        let (_directory, store) = sealed(10).await;
        run(&store, statement).await;
        let problems = verify(&store).await.problems;
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{statement}: {problems:?}"
        );
    }
}

#[tokio::test]
async fn seals_and_records_cannot_be_changed_in_place() {
    let (_directory, store) = sealed(1).await;
    for statement in [
        "UPDATE audit SET outcome = 'x'",
        "UPDATE audit_chain SET at = 0",
    ] {
        let refused = sqlx::raw_sql(statement).execute(&store.pool).await;
        assert!(refused.unwrap_err().to_string().contains("append-only"));
    }
}

#[tokio::test]
async fn pruned_records_leave_a_chain_that_holds() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    write(&store, 5, now - Duration::from_secs(100 * 86_400)).await;
    write(&store, 5, now).await;
    seal_all(&store).await.unwrap();
    store.prune(now).await.unwrap();
    let between = verify(&store).await;
    assert_eq!((between.verified, between.problems.len()), (5, 0));
    store.prune_audit_chain(now).await.unwrap();
    let found = verify(&store).await;
    assert_eq!((found.verified, found.first), (5, 6));
    assert!(found.problems.is_empty(), "{found:?}");
    write(&store, 1, now).await;
    seal_all(&store).await.unwrap();
    assert_eq!(verify(&store).await.head.unwrap().position, 11);
}

#[tokio::test]
async fn records_are_listed_from_a_time_on_page_by_page() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    write(&store, 2, now - Duration::from_secs(7200)).await;
    write(&store, 5, now).await;
    let since = now - Duration::from_secs(3600);
    let first = store.audit_records(since, 0, 3).await.unwrap();
    let ids: Vec<i64> = first.iter().map(|record| record.id).collect();
    assert_eq!(ids, [3, 4, 5]);
    let rest = store.audit_records(since, 5, 3).await.unwrap();
    assert_eq!(rest.len(), 2);
    assert_eq!(rest[0].spiffe_id.as_deref(), Some("spiffe://example.org/3"));
}
