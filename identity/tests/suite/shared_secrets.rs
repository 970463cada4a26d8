//! Tokens that are signed with a shared secret, as Airflow's Execution API has them.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sidewind_identity::jwt::JwtError;
use sidewind_identity::jwt::jws::Rules;
use sidewind_identity::jwt::shared::{SharedSecret, verify_shared};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECRET: &[u8] = b"0123456789abcdef+airflow";
const AUDIENCE: &str = "urn:airflow.apache.org:task";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn header() -> Value {
    json!({"alg": "HS512", "kid": "not-used", "typ": "JWT"})
}

fn claims() -> Value {
    json!({
        "sub": "0199-ti", "aud": AUDIENCE, "scope": "execution", "iat": 1_799_999_990,
        "nbf": 1_799_999_990, "exp": 1_800_000_590,
    })
}

fn token(header: &Value, claims: &Value, algorithm: hmac::Algorithm, secret: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let tag = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn verify(token: &str) -> Result<String, JwtError> {
    let secret = SharedSecret::new(SECRET).unwrap();
    let rules = Rules::audience(AUDIENCE, None).unwrap();
    let claims = verify_shared(token, &secret, &rules, now())?;
    Ok(claims["sub"].as_str().unwrap().to_owned())
}

#[test]
fn a_token_of_the_secret_is_taken() {
    let token = token(&header(), &claims(), hmac::HMAC_SHA512, SECRET);
    assert_eq!(verify(&token).unwrap(), "0199-ti");
}

#[test]
fn what_is_no_token_of_the_secret_is_refused() {
    let good = |header: &Value| token(header, &claims(), hmac::HMAC_SHA512, SECRET);
    let with = |name: &str, value: Value| {
        let mut header = header();
        header[name] = value;
        header
    };
    let said = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        token(&header(), &claims, hmac::HMAC_SHA512, SECRET)
    };
    let unsigned = good(&header());
    let unsigned = unsigned.rsplit_once('.').unwrap().0;
    for (name, token, expected) in [
        (
            "another secret",
            token(
                &header(),
                &claims(),
                hmac::HMAC_SHA512,
                b"another secret, longer",
            ),
            "does not verify",
        ),
        ("no signature", format!("{unsigned}."), "does not verify"),
        ("none", good(&with("alg", "none".into())), "must be HS512"),
        ("EdDSA", good(&with("alg", "EdDSA".into())), "must be HS512"),
        (
            "a shorter hash",
            token(
                &with("alg", "HS256".into()),
                &claims(),
                hmac::HMAC_SHA256,
                SECRET,
            ),
            "must be HS512",
        ),
        (
            "a shorter hash under the right name",
            token(&header(), &claims(), hmac::HMAC_SHA256, SECRET),
            "does not verify",
        ),
        (
            "a public key's algorithm",
            good(&with("alg", "RS256".into())),
            "must be HS512",
        ),
        (
            "a key to fetch",
            good(&with("jku", "https://evil".into())),
            "\"jku\" is not allowed",
        ),
        (
            "another type",
            good(&with("typ", "logout+jwt".into())),
            "'typ'",
        ),
        (
            "another audience",
            said("aud", "urn:airflow.apache.org:api".into()),
            "'aud' does not name",
        ),
        ("ended", said("exp", 1_799_999_900.into()), "expired"),
        (
            "of the future",
            said("nbf", 1_800_000_500.into()),
            "holds only in",
        ),
        ("no end", said("exp", Value::Null), "'exp' must be"),
    ] {
        let error = verify(&token).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn an_issuer_is_held_to_where_one_is_named() {
    let token = token(&header(), &claims(), hmac::HMAC_SHA512, SECRET);
    let secret = SharedSecret::new(SECRET).unwrap();
    let rules = Rules::audience(AUDIENCE, Some("airflow")).unwrap();
    let error = verify_shared(&token, &secret, &rules, now()).unwrap_err();
    assert!(matches!(error, JwtError::Issuer(_)));
}

#[test]
fn a_secret_that_could_be_guessed_is_none_and_no_secret_is_shown() {
    assert!(
        SharedSecret::new(b"short")
            .unwrap_err()
            .to_string()
            .contains("5 bytes")
    );
    let secret = SharedSecret::new(SECRET).unwrap();
    assert_eq!(format!("{secret:?}"), "SharedSecret");
}
