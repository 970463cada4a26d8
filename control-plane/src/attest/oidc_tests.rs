use super::*;
use crate::attest::testing::{Signer, jwks, now};
use crate::config::Config;
use crate::config::document::SourceFile;
use serde_json::json;
use sidewind_api::v1;

const ISSUER: &str = "https://issuer.example/tenant";

/// An attestor whose issuer's keys are in a file.
struct Fixture {
    attestor: OidcAttestor,
    signer: Signer,
    ed25519: Signer,
    _directory: tempfile::TempDir,
}

fn fixture(more: &str) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("jwks.json");
    let (signer, second) = (Signer::es256("first"), Signer::es384("second"));
    let ed25519 = Signer::ed25519("third");
    std::fs::write(&path, jwks(&[&signer, &second, &ed25519])).unwrap();
    let text = format!(
        "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: x }}\nspec:\n  oidc: [{{ issuer: \"{ISSUER}\", jwksFile: \"{}\"{more} }}]\n",
        path.display()
    );
    let name = "mesh.yaml".to_owned();
    let config = Config::parse(&[SourceFile { name, text }]).unwrap_or_else(|e| panic!("{e}"));
    let live = Live::default();
    live.set(Arc::new(config));
    Fixture {
        attestor: OidcAttestor::new(live, Arc::default()),
        signer,
        ed25519,
        _directory: directory,
    }
}

impl Fixture {
    async fn attest(&self, token: &str) -> Result<Selectors, Refusal> {
        let token = token.to_owned();
        let evidence = Evidence::Oidc(v1::OidcToken { token });
        let presented = Presented {
            evidence: &evidence,
            csr: &[],
            now: SystemTime::now(),
        };
        match self.attestor.attest(presented).await? {
            Attested::Facts(facts) => Ok(facts.selectors),
            Attested::Granted(_) => panic!("a token grants nothing by itself"),
        }
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "sidewind", "sub": "repo:org/app",
        "iat": now(), "nbf": now(), "exp": now() + 300,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name).unwrap();
    claims
}

#[tokio::test]
async fn a_good_token_gives_issuer_subject_and_claims() {
    let fixture = fixture("");
    let mut claims = claims();
    claims["repository"] = json!("org/app");
    claims["groups"] = json!(["a", "b", 7]);
    claims["verified"] = json!(true);
    claims["run"] = json!(17);
    claims["nothing"] = Value::Null;
    let selectors = fixture
        .attest(&fixture.signer.token(&claims))
        .await
        .unwrap();
    assert_eq!(
        selectors.to_string(),
        "oidc:claim:groups=a, oidc:claim:groups=b, oidc:claim:repository=org/app, oidc:claim:run=17, oidc:claim:verified=true, oidc:issuer=https://issuer.example/tenant, oidc:subject=repo:org/app"
    );
}

#[tokio::test]
async fn every_way_in_which_a_token_is_wrong_is_a_refusal() {
    let fixture = fixture("");
    let stranger = Signer::es256("first");
    let signer = &fixture.signer;
    let header = |more: Value| {
        let mut header = json!({"alg": "ES256", "kid": "first"});
        header
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        header
    };
    let rows = [
        (
            "another issuer",
            signer.token(&with("iss", json!("https://evil.example"))),
        ),
        (
            "a longer issuer",
            signer.token(&with("iss", json!(format!("{ISSUER}/")))),
        ),
        ("no issuer", signer.token(&without("iss"))),
        (
            "another audience",
            signer.token(&with("aud", json!("other"))),
        ),
        ("no audience", signer.token(&without("aud"))),
        (
            "an empty audience list",
            signer.token(&with("aud", json!([]))),
        ),
        ("expired", signer.token(&with("exp", json!(now() - 61)))),
        ("no end", signer.token(&without("exp"))),
        (
            "an end that is a text",
            signer.token(&with("exp", json!("tomorrow"))),
        ),
        (
            "not yet valid",
            signer.token(&with("nbf", json!(now() + 120))),
        ),
        (
            "issued in the future",
            signer.token(&with("iat", json!(now() + 120))),
        ),
        ("no time of issue", signer.token(&without("iat"))),
        ("too old", signer.token(&with("iat", json!(now() - 3700)))),
        ("no subject", signer.token(&without("sub"))),
        ("an empty subject", signer.token(&with("sub", json!("")))),
        (
            "a subject that is a number",
            signer.token(&with("sub", json!(7))),
        ),
        ("another key of the same name", stranger.token(&claims())),
        ("an unknown key", Signer::es256("other").token(&claims())),
        (
            "alg none",
            signer.token_with(&json!({"alg": "none"}), &claims()),
        ),
        (
            "alg HS256",
            signer.token_with(&header(json!({"alg": "HS256"})), &claims()),
        ),
        (
            "alg of another key",
            signer.token_with(&header(json!({"alg": "ES384"})), &claims()),
        ),
        (
            "jku",
            signer.token_with(&header(json!({"jku": "https://evil"})), &claims()),
        ),
        (
            "jwk",
            signer.token_with(&header(json!({"jwk": {}})), &claims()),
        ),
        (
            "x5u",
            signer.token_with(&header(json!({"x5u": "https://evil"})), &claims()),
        ),
        (
            "x5c",
            signer.token_with(&header(json!({"x5c": []})), &claims()),
        ),
        (
            "crit",
            signer.token_with(&header(json!({"crit": ["exp"]})), &claims()),
        ),
        ("no token", String::new()),
        ("too large", "a".repeat(20_000)),
    ];
    for (name, token) in rows {
        let refusal = fixture.attest(&token).await.expect_err(name);
        assert_eq!(refusal.reason, Reason::EvidenceRefused, "{name}: {refusal}");
    }
    fixture.attest(&signer.token(&claims())).await.unwrap();
    // Within the leeway.
    fixture
        .attest(&signer.token(&with("exp", json!(now() - 30))))
        .await
        .unwrap();
    fixture
        .attest(&signer.token(&with("iat", json!(now() + 30))))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_issuers_own_rules_hold() {
    let strict = fixture(", algorithms: [ES384], audience: mesh, maxAge: 1m");
    let token = strict.signer.token(&with("aud", json!("mesh")));
    let refusal = strict.attest(&token).await.unwrap_err();
    assert!(refusal.message.contains("ES256"), "{refusal}");

    let any = fixture("");
    let token = any.ed25519.token(&with("aud", json!("sidewind")));
    let refusal = any.attest(&token).await.unwrap_err();
    assert!(refusal.message.contains("EdDSA are not taken"), "{refusal}");

    let short = fixture(", maxAge: 1m");
    let old = short.signer.token(&with("iat", json!(now() - 130)));
    short.attest(&old).await.unwrap_err();
    let young = short.signer.token(&with("iat", json!(now() - 50)));
    short.attest(&young).await.unwrap();
}

#[tokio::test]
async fn of_what_aws_says_the_account_counts_and_what_the_caller_chose_does_not() {
    let aws = fixture(", awsAccounts: [\"123456789012\"]");
    let of = |account: &str| {
        with(
            AWS_CLAIM,
            json!({
                "aws_account": account,
                "org_id": "o-1",
                "request_tags": {"team": "admin"},
                "principal_tags": {"team": "blue"},
            }),
        )
    };
    let selectors = aws
        .attest(&aws.signer.token(&of("123456789012")))
        .await
        .unwrap();
    let account = "oidc:claim:https://sts.amazonaws.com/:aws_account";
    assert_eq!(selectors.only(account), Some("123456789012"));
    assert!(!selectors.to_string().contains("team"), "{selectors}");

    for token in [
        aws.signer.token(&of("999999999999")),
        aws.signer.token(&claims()),
        aws.signer
            .token(&with("aws_account", json!("123456789012"))),
        aws.signer.token(&with(AWS_CLAIM, json!("123456789012"))),
        aws.signer.token(&with(
            AWS_CLAIM,
            json!({"aws_account": 123_456_789_012_u64}),
        )),
    ] {
        let refusal = aws.attest(&token).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::EvidenceRefused);
    }
}

#[tokio::test]
async fn a_claim_cannot_pass_for_the_member_of_another() {
    let fixture = fixture("");
    let mut claims = claims();
    claims["a"] = json!({"b": "inner"});
    claims["a:b"] = json!("outer");
    let selectors = fixture
        .attest(&fixture.signer.token(&claims))
        .await
        .unwrap();
    assert_eq!(selectors.values("oidc:claim:a:b").count(), 0, "{selectors}");
}

#[tokio::test]
async fn without_issuers_no_token_is_taken() {
    let attestor = OidcAttestor::new(Live::default(), Arc::default());
    let evidence = Evidence::Oidc(v1::OidcToken::default());
    let presented = Presented {
        evidence: &evidence,
        csr: &[],
        now: SystemTime::now(),
    };
    let refusal = attestor.attest(presented).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::AttestorNotConfigured);
}
