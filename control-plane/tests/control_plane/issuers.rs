//! OIDC tokens over the real API, against an issuer that answers as told.

use crate::attestation::{attest, oidc, renew, while_a_crowd_waits};
use crate::signer::{Signer, jwks, now};
use crate::stub::{Asked, Reply, Stub};
use crate::support::{ControlPlane, refusal};
use serde_json::{Value, json};
use sidewind_api::Reason;
use std::path::Path;

/// An issuer with discovery, on a control plane of its own.
async fn with_issuer(directory: &Path, signer: &Signer) -> (Stub, String) {
    let stub = Stub::start(&directory.join("issuer.pem"), |_| Reply::status(503, "")).await;
    let issuer = stub.url();
    publish(&stub, &[signer]);
    let config = format!(
        "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: x }}\nspec:\n  oidc: [{{ issuer: \"{issuer}\", caFile: {} }}]\n---\napiVersion: sidewind.dev/v1alpha1\nkind: Registration\nmetadata: {{ name: ci }}\nspec:\n  selectors: {{ oidc: {{ issuer: \"{issuer}\", claims: {{ team: data }} }} }}\n  spiffeId: \"spiffe://sidewind.local/ci/{{oidc.subject}}\"\n",
        directory.join("issuer.pem").display()
    );
    (stub, config)
}

fn publish(stub: &Stub, signers: &[&Signer]) {
    let (issuer, keys) = (stub.url(), jwks(signers));
    stub.set(move |asked| match asked.path.as_str() {
        "/.well-known/openid-configuration" => {
            let jwks_uri = format!("{issuer}/keys");
            Reply::ok(json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string())
        }
        "/keys" => Reply::ok(keys.clone()),
        other => panic!("{other} was asked for"),
    });
}

fn claims(issuer: &str, subject: &str) -> Value {
    json!({
        "iss": issuer, "aud": "sidewind", "sub": subject, "team": "data",
        "iat": now(), "exp": now() + 300,
    })
}

#[tokio::test]
async fn a_token_of_a_pinned_issuer_gives_the_identity_of_its_registration() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es384("first");
    let (stub, config) = with_issuer(directory.path(), &signer).await;
    let control_plane = ControlPlane::start_with(&config).await;
    for _ in 0..3 {
        let token = signer.token(&claims(&stub.url(), "builder"));
        let svid = attest(&control_plane, oidc(&token)).await.unwrap();
        assert_eq!(svid.id().as_str(), "spiffe://sidewind.local/ci/builder");
        renew(&control_plane, &svid).await.unwrap();
    }
    // Discovery and keys, once.
    assert_eq!(stub.asked().len(), 2);

    let slash = signer.token(&claims(&stub.url(), "../admin"));
    let (reason, message) = refusal(attest(&control_plane, oidc(&slash)).await);
    assert_eq!(reason, Reason::NoRegistrationMatches);
    assert!(message.contains("oidc.subject"), "{message}");

    // Strangers' key names make the keys be fetched again, but not each time.
    for index in 0..20 {
        let stranger = Signer::es256(&format!("stranger-{index}"));
        let token = stranger.token(&claims(&stub.url(), "builder"));
        let (reason, _) = refusal(attest(&control_plane, oidc(&token)).await);
        assert_eq!(reason, Reason::EvidenceRefused);
    }
    assert_eq!(stub.asked().len(), 2);
}

#[tokio::test]
async fn an_issuer_that_is_away_or_lies_about_itself_lets_nobody_in() {
    let signer = Signer::es256("first");
    type Answer = fn(&Asked, &str) -> Reply;
    let rows: &[(&str, Answer)] = &[
        ("an error", |_, _| Reply::status(500, "")),
        ("another issuer", |_, url| {
            Reply::ok(
                json!({"issuer": "https://evil", "jwks_uri": format!("{url}/keys")}).to_string(),
            )
        }),
        ("keys elsewhere", |_, url| {
            Reply::ok(json!({"issuer": url, "jwks_uri": "https://localhost/keys"}).to_string())
        }),
        ("keys in plaintext", |_, url| {
            let plain = url.replace("https", "http");
            Reply::ok(json!({"issuer": url, "jwks_uri": format!("{plain}/keys")}).to_string())
        }),
        ("a redirect", |_, url| Reply {
            status: 302,
            location: Some(format!("{url}/other")),
            body: Vec::new(),
        }),
        ("too much", |_, _| Reply::ok(" ".repeat(70_000))),
        ("garbage for keys", |asked, url| match asked.path.as_str() {
            "/keys" => Reply::ok("{}"),
            _ => Reply::ok(json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string()),
        }),
    ];
    for (name, answer) in rows {
        let directory = tempfile::tempdir().unwrap();
        let (stub, config) = with_issuer(directory.path(), &signer).await;
        let (url, answer) = (stub.url(), *answer);
        stub.set(move |asked| answer(asked, &url));
        let control_plane = ControlPlane::start_with(&config).await;
        let token = signer.token(&claims(&stub.url(), "builder"));
        let (reason, message) = refusal(attest(&control_plane, oidc(&token)).await);
        assert_eq!(reason, Reason::EvidenceUnverifiable, "{name}: {message}");
        control_plane.stop().await;
    }
}

#[tokio::test]
async fn while_an_issuer_does_not_answer_join_tokens_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es256("first");
    let (stub, config) = with_issuer(directory.path(), &signer).await;
    stub.set(|_| Reply::none());
    let control_plane = ControlPlane::start_with(&config).await;
    let token = signer.token(&claims(&stub.url(), "builder"));
    while_a_crowd_waits(&control_plane, &stub, 1, oidc(&token)).await;
}
