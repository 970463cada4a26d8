//! Slots as they are kept.

use super::super::tests::{each_store, empty_store};
use super::*;
use AuthorityRole::{Root, Signing};
use AuthorityState::{Active, Old, Prepared, Revoked};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

fn new(role: AuthorityRole, state: AuthorityState, name: &str) -> AuthorityChange {
    AuthorityChange::Insert(NewAuthority {
        role,
        state,
        certificate: name.into(),
        intermediates: Vec::new(),
        private_key: Some(Zeroizing::new(b"key".to_vec())),
        not_after: SystemTime::now() + Duration::from_secs(3600),
    })
}

fn step(
    version: u64,
    changes: Vec<AuthorityChange>,
    raises_bundle: bool,
) -> AuthorityStep<'static> {
    AuthorityStep {
        version,
        changes,
        raises_bundle,
        audit: None,
        now: SystemTime::now(),
    }
}

fn names(records: &AuthorityRecords) -> Vec<(String, AuthorityState, bool)> {
    let name = |record: &AuthorityRecord| String::from_utf8(record.certificate.clone()).unwrap();
    let records = records.records.iter();
    records.map(|it| (name(it), it.state, it.has_key)).collect()
}

#[tokio::test]
async fn an_authority_that_signs_no_more_keeps_its_place_and_loses_its_key() {
    let (_directory, store) = empty_store().await;
    let made = store
        .change_authorities(step(0, vec![new(Root, Active, "one")], true))
        .await;
    assert!(made.unwrap());
    let records = store.authorities().await.unwrap();
    assert_eq!((records.version, records.bundle_sequence), (1, 1));
    assert_eq!(records.records[0].introduced, 1);
    let id = records.records[0].id;
    assert_eq!(
        store.authority_key(id).await.unwrap().unwrap().as_slice(),
        b"key"
    );

    let changes = vec![
        AuthorityChange::Move {
            id,
            from: Active,
            to: Old,
        },
        new(Root, Active, "two"),
    ];
    assert!(
        store
            .change_authorities(step(1, changes, true))
            .await
            .unwrap()
    );
    let records = store.authorities().await.unwrap();
    assert_eq!((records.version, records.bundle_sequence), (2, 2));
    let expected = [
        ("one".to_owned(), Old, false),
        ("two".to_owned(), Active, true),
    ];
    assert_eq!(names(&records), expected);
    assert!(store.authority_key(id).await.unwrap().is_none());
}

#[tokio::test]
async fn of_two_steps_on_the_same_version_one_is_made() {
    let (_directory, store) = empty_store().await;
    let steps = ["one", "two", "three"].map(|name| {
        let store = store.clone();
        async move {
            let step = step(0, vec![new(Signing, Active, name)], false);
            store.change_authorities(step).await.unwrap()
        }
    });
    let made = futures_util::future::join_all(steps).await;
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
    assert_eq!(store.authorities().await.unwrap().records.len(), 1);
}

#[tokio::test]
async fn a_step_that_finds_another_state_changes_nothing() {
    let (_directory, store) = empty_store().await;
    let changes = vec![new(Root, Active, "one"), new(Root, Prepared, "two")];
    assert!(
        store
            .change_authorities(step(0, changes, true))
            .await
            .unwrap()
    );
    let before = store.authorities().await.unwrap();
    let id = before.records[1].id;
    let wrong = [
        AuthorityChange::Move {
            id,
            from: Old,
            to: Active,
        },
        AuthorityChange::Taint { id },
        AuthorityChange::Delete { id, state: Old },
        AuthorityChange::Delete {
            id: 77,
            state: Prepared,
        },
    ];
    for change in wrong {
        let changes = vec![new(Signing, Active, "three"), change];
        let made = store
            .change_authorities(step(before.version, changes, true))
            .await;
        assert!(!made.unwrap());
        assert_eq!(store.authorities().await.unwrap(), before);
    }
    let two = AuthorityChange::Move {
        id,
        from: Prepared,
        to: Active,
    };
    let error = store
        .change_authorities(step(before.version, vec![two], true))
        .await;
    error.expect_err("two active roots");
    assert_eq!(store.authorities().await.unwrap(), before);
}

#[tokio::test]
async fn how_long_svids_are_good_only_grows() {
    let (_directory, store) = empty_store().await;
    let made = store
        .change_authorities(step(0, vec![new(Root, Active, "one")], true))
        .await;
    assert!(made.unwrap());
    let at = |seconds| from_unix_seconds(seconds);
    let id = store.authorities().await.unwrap().records[0].id;
    for seconds in [1000, 2000, 500] {
        store.note_signed_until(&[id], at(seconds)).await.unwrap();
    }
    let records = store.authorities().await.unwrap();
    assert_eq!(records.records[0].signed_until, at(2001));
    assert_eq!(records.version, 1);
}

#[tokio::test]
async fn reports_of_laggards_are_replaced_and_those_of_the_asker_are_not_given() {
    let (_directory, store) = empty_store().await;
    let now = from_unix_seconds(1_000_000);
    let report = |waiting, seconds| LaggardReport {
        bundle_sequence: 7,
        waiting,
        laggards: vec![r#"spiffe://x/"y" (z)"#.to_owned()],
        reported_at: now + Duration::from_secs(seconds),
    };
    for (process, waiting, at) in [("a", 1, 0), ("b", 2, 0), ("b", 3, 60)] {
        store
            .report_laggards(process, &report(waiting, at))
            .await
            .unwrap();
    }
    let elsewhere = async |process, since| store.laggards_elsewhere(process, since).await.unwrap();
    assert_eq!(elsewhere("a", now).await, [report(3, 60)]);
    assert_eq!(elsewhere("b", now).await, [report(1, 0)]);
    assert_eq!(
        elsewhere("c", now + Duration::from_secs(1)).await,
        [report(3, 60)]
    );
}

#[tokio::test]
async fn authorities_from_before_there_were_slots_are_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(directory.path().join("old.db"))
        .create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let migration = |text: &'static str| sqlx::raw_sql(text);
    let first = include_str!("../../../migrations/sqlite/0001_initial.sql");
    migration(first).execute(&pool).await.unwrap();
    for (state, name) in [("old", "one"), ("active", "two")] {
        sqlx::query(
            "INSERT INTO authorities (role, state, certificate, private_key, not_after, created_at)
             VALUES ('root', $1, $2, x'01', 99, 11)",
        )
        .bind(state)
        .bind(name.as_bytes())
        .execute(&pool)
        .await
        .unwrap();
    }
    let slots = include_str!("../../../migrations/sqlite/0010_authority_slots.sql");
    migration(slots).execute(&pool).await.unwrap();
    let kept: Vec<(Vec<u8>, String, bool, i64)> = sqlx::query_as(
        "SELECT certificate, state, private_key IS NOT NULL, changed_at FROM authorities ORDER BY id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let expected = [
        (b"one".to_vec(), "old".to_owned(), false, 11),
        (b"two".to_vec(), "active".to_owned(), true, 11),
    ];
    assert_eq!(kept, expected);
}

#[tokio::test]
async fn an_older_copy_gets_the_roots_that_were_trusted_and_those_that_came_later_stay() {
    for store in each_store().await {
        let now = SystemTime::now();
        let changes = vec![
            new(Root, Old, "distrusted"),
            new(Root, Active, "in use"),
            new(Root, Old, "trusted"),
        ];
        let made = store.change_authorities(step(0, changes, true)).await;
        assert!(made.unwrap());
        let mut before = store.position().await.unwrap();
        before.record += 40;
        before.roots.remove(0);
        // As another replica remembers what came after this one was stopped.
        let later = vec![new(Root, Prepared, "later")];
        let made = store.change_authorities(step(1, later, true)).await;
        assert!(made.unwrap());
        let mut lost = before.clone();
        lost.roots = lost.roots.iter().cloned().map(lost_root).collect();
        before.roots.extend(lost.roots.split_off(1));
        assert!(store.make_up_for_loss(&before, now).await.unwrap());
        let records = store.authorities().await.unwrap();
        let expected = [
            ("distrusted".to_owned(), Revoked, false),
            ("in use".to_owned(), Active, true),
            ("trusted".to_owned(), Old, true),
            ("later".to_owned(), Prepared, true),
            ("lost trusted".to_owned(), Old, false),
        ];
        assert_eq!(names(&records), expected);
        assert_eq!((records.version, records.bundle_sequence), (3, 2));

        before.record += 40;
        before.bundle_sequence = records.bundle_sequence;
        before.roots.remove(0);
        let refused = store.make_up_for_loss(&before, now).await.unwrap_err();
        assert!(matches!(refused, StoreError::DistrustedRoot { .. }));
        assert_eq!(store.authorities().await.unwrap(), records);
    }
}

/// A root that the copy does not know.
fn lost_root(root: RememberedRoot) -> RememberedRoot {
    let known: serde_json::Value = serde_json::to_value(root).unwrap();
    let certificate = known["certificate"].as_str().unwrap();
    let name = BASE64.decode(certificate).unwrap();
    let name = [b"lost ".as_slice(), &name].concat();
    let lost = serde_json::json!({
        "certificate": BASE64.encode(name), "not_after": known["not_after"],
    });
    serde_json::from_value(lost).unwrap()
}
