//! The audit as the command line shows and checks it.

use crate::lifecycle::{Process, run, state};
use crate::support::attest_request;
use std::path::Path;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

async fn audit(state: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut arguments = vec!["audit", "--state-dir", state.to_str().unwrap()];
    arguments.extend(flags);
    let output = run(&arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

async fn verified(state: &Path) -> (Option<i32>, serde_json::Value, String) {
    let (code, out, error) = audit(state, &["--verify", "-o", "json"]).await;
    (code, serde_json::from_str(&out).unwrap(), error)
}

/// Waits until everything that is written is sealed, and gives how much that is.
async fn sealed(state: &Path, wanted: u64) -> serde_json::Value {
    let mut last = serde_json::Value::Null;
    crate::support::until(async || {
        last = verified(state).await.1;
        last["unsealed"] == 0 && last["verified"].as_u64() >= Some(wanted)
    })
    .await;
    last
}

#[tokio::test]
async fn the_audit_is_listed_and_its_chain_holds_over_a_restart_until_a_record_is_changed() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    process.client.svid(ORDERS, &[]).await;
    let mut service = process.client.identity_service().await;
    let refused = service.attest(attest_request("made-up", vec![])).await;
    assert!(refused.is_err());
    // The first root, the token, its use, and the refusal.
    let before = sealed(&state, 4).await;
    assert_eq!(before["verified"], 4, "{before}");

    let (code, listed, _) = audit(&state, &["-o", "json"]).await;
    assert_eq!(code, Some(0));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of = |field: &str| -> Vec<_> {
        let entries = listed.as_array().unwrap().iter();
        entries.map(|entry| entry[field].clone()).collect()
    };
    assert_eq!(
        of("event"),
        ["ca-rotate", "token-create", "attest", "attest"]
    );
    assert_eq!(
        of("outcome")[1..],
        ["granted", "granted", "join-token-unknown"]
    );
    assert_eq!(of("spiffeId")[2], ORDERS);
    let (_, table, _) = audit(&state, &[]).await;
    assert!(
        table.starts_with("TIME ") && table.lines().count() == 5,
        "{table}"
    );

    process.end("-TERM").await;
    let process = Process::start(&state, &[]).await;
    process.client.svid(ORDERS, &[]).await;
    let after = sealed(&state, 6).await;
    assert_eq!(after["firstPosition"], 1);
    assert_ne!(after["headHash"], before["headHash"]);
    assert_eq!(verified(&state).await.0, Some(0));

    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(state.join("sidewind.db"));
    let database = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql("DELETE FROM audit WHERE outcome = 'join-token-unknown'")
        .execute(&database)
        .await
        .unwrap();
    let (code, found, said) = verified(&state).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("record 4, of seal 4, is gone"), "{said}");
    assert_eq!(found["problems"].as_array().unwrap().len(), 1, "{found}");
    drop(process);
}

#[tokio::test]
async fn an_audit_longer_than_a_page_is_listed_whole() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    for _ in 0..3 {
        process.client.token(ORDERS, &[]).await;
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(state.join("sidewind.db"));
    let database = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::raw_sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
         INSERT INTO audit (at, event, outcome, caller) SELECT unixepoch(), 'renew', 'granted', 'x' FROM n",
    )
    .execute(&database)
    .await
    .unwrap();
    let (_, listed, _) = audit(&state, &["-o", "json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2504);
    assert_eq!(sealed(&state, 2504).await["headPosition"], 2504);
    drop(process);
}
