//! What is told to nobody.

use crate::attestation::{
    AUTHENTICATED, OWN_TOKEN, REGISTRATION, TOKEN, attest, kubernetes, oidc, pod, with_cluster,
};
use crate::stub::Reply;
use crate::support::{refusal, until};
use serde_json::json;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Everything that is logged in this process.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_refusal_leaves_a_token_in_logs_audit_metrics_or_answers() {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // Where all tests are one process, another one's subscriber could be there; then there is nothing to see.
    let ours = tracing::subscriber::set_global_default(subscriber).is_ok();
    let (control_plane, stub) = with_cluster("", REGISTRATION).await;
    let token = TOKEN.trim();
    let echo = format!("{{\"status\":{{\"authenticated\":false,\"error\":\"{token}\"}}}}");
    let wrong_type = format!("{{\"status\":{{\"authenticated\":\"{token}\"}}}}");
    let mut unmatched = pod();
    unmatched["metadata"]["labels"] = json!({});
    let unmatched = unmatched.to_string();
    let mut answers = Vec::new();
    for reply in [
        Reply::status(500, token),
        Reply::status(302, token),
        Reply::ok(echo),
        Reply::ok(wrong_type),
        Reply::ok(token),
        Reply::ok(AUTHENTICATED),
    ] {
        let pod = unmatched.clone();
        stub.set(move |asked| match asked.path.starts_with("/api/v1") {
            true => Reply::ok(pod.clone()),
            false => reply.clone(),
        });
        answers.push(refusal(attest(&control_plane, kubernetes(token)).await).1);
    }
    for evidence in [
        oidc(token),
        kubernetes(&format!("{token}.x")),
        kubernetes(&token.repeat(40)),
    ] {
        answers.push(refusal(attest(&control_plane, evidence).await).1);
    }
    let database = control_plane.database().await;
    let count = async || -> i64 {
        let query = sqlx::query_scalar("SELECT count(*) FROM audit WHERE event = 'attest'");
        query.fetch_one(&database).await.unwrap()
    };
    until(async || count().await == 9).await;
    let details: Vec<String> =
        sqlx::query_scalar("SELECT outcome || coalesce(detail, '') FROM audit")
            .fetch_all(&database)
            .await
            .unwrap();
    let metrics = control_plane.get("/metrics").await.1;
    let logs = String::from_utf8_lossy(&logged.0.lock().unwrap()).into_owned();
    assert!(!ours || logs.contains("no-registration-matches"), "{logs}");
    for secret in token.split('.').chain([OWN_TOKEN]) {
        for (place, text) in [
            ("answers", &answers.join("\n")),
            ("audit", &details.join("\n")),
            ("metrics", &metrics),
            ("logs", &logs),
        ] {
            assert!(!text.contains(secret), "{place} hold {secret:.20}");
        }
    }
}
