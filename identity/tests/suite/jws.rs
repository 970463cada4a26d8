//! Tokens of OIDC issuers, their key sets, and the keys themselves.

use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::RsaPublicKeyComponents;
use serde_json::{Value, json};
use sidewind_identity::jwt::jwks::{IgnoredKey, JwkSet, JwksError, MAX_JWKS_BYTES, MAX_JWKS_KEYS};
use sidewind_identity::jwt::jws::{Rules, Verified, claimed_issuer, verify};
use sidewind_identity::jwt::{JwtError, KeyMaterialError, VerificationKey};

use crate::tokens::{Key, NOW, Token, b64, now};

const ISSUER: &str = "https://issuer.example";

fn keys(jwks: &[Value]) -> JwkSet {
    JwkSet::parse(json!({ "keys": jwks }).to_string().as_bytes()).unwrap()
}

fn token(key: &Key, alg: &str) -> Token {
    let claims = json!({
        "iss": ISSUER, "sub": "repo:a/b", "aud": ["sts", "sidewind"], "exp": NOW + 300,
        "nbf": NOW, "iat": NOW, "kubernetes.io": { "namespace": "airflow" },
    });
    Token::new(key.clone(), alg, claims)
}

fn check(token: &Token, keys: &JwkSet) -> Result<Verified, JwtError> {
    let rules = Rules::oidc(ISSUER, &["sidewind"]).unwrap();
    verify(&token.build(), keys, &rules, now())
}

/// Asserts that a good token spoiled so is refused for a reason that contains the text, or taken.
fn spoiled(spoil: impl Fn(&mut Token), reason: Option<&str>) {
    let key = Key::p256();
    let keys = keys(&[key.jwk(json!({ "kid": "one", "use": "sig", "alg": "ES256" }))]);
    let mut token = token(&key, "ES256");
    spoil(&mut token);
    match (check(&token, &keys), reason) {
        (Ok(_), None) => {}
        (Err(error), Some(reason)) => {
            assert!(error.to_string().contains(reason), "{error}: {reason}");
        }
        (actual, expected) => panic!("expected {expected:?}, got {actual:?}"),
    }
}

#[test]
fn a_token_gives_back_its_claims() {
    let key = Key::rsa_2048();
    let keys = keys(&[key.jwk(json!({ "kid": "one", "use": "sig", "x5t": "ignored" }))]);
    let verified = check(&token(&key, "RS256"), &keys).unwrap();
    assert_eq!(verified.text("sub"), Some("repo:a/b"));
    assert_eq!(verified.claims["kubernetes.io"]["namespace"], "airflow");
    assert_eq!(verified.text("kubernetes.io"), None);
    assert_eq!(verified.audience, ["sts", "sidewind"]);
    assert_eq!(verified.expires, now() + Duration::from_secs(300));
    assert_eq!(verified.header.key_id.as_deref(), Some("one"));
    let claimed = claimed_issuer(&token(&key, "RS256").build());
    assert_eq!(claimed.unwrap(), ISSUER);
}

#[test]
fn headers_that_bring_a_key_or_change_the_reading_are_refused() {
    for name in ["jku", "jwk", "x5u", "x5c", "crit", "b64", "enc", "zip"] {
        let reason = format!("{name:?} is not allowed");
        spoiled(|token| token.header[name] = "x".into(), Some(&reason));
    }
    for name in ["x5t", "x5t#S256", "cty", "mine"] {
        spoiled(|token| token.header[name] = "x".into(), None);
    }
}

#[test]
fn tokens_of_other_kinds_issuers_and_audiences_are_refused() {
    for kind in ["JWT", "jwt", "at+jwt", "application/at+jwt"] {
        spoiled(|token| token.header["typ"] = kind.into(), None);
    }
    spoiled(|token| token.without_header("typ"), None);
    for kind in ["logout+jwt", "dpop+jwt", "secevent+jwt", ""] {
        spoiled(|token| token.header["typ"] = kind.into(), Some("'typ'"));
    }
    for issuer in [
        json!("https://issuer.example/"),
        json!("evil"),
        json!([ISSUER]),
        json!(null),
    ] {
        spoiled(|token| token.claims["iss"] = issuer.clone(), Some("'iss'"));
    }
    spoiled(|token| token.without_claim("iss"), Some("'iss'"));
    spoiled(|token| token.claims["aud"] = "sts".into(), Some("'aud'"));
    spoiled(|token| token.without_claim("exp"), Some("'exp'"));
    spoiled(
        |token| token.claims["exp"] = (NOW - 31).into(),
        Some("expired"),
    );
    spoiled(
        |token| token.claims["nbf"] = (NOW + 31).into(),
        Some("only in"),
    );
    spoiled(|token| token.header["alg"] = "HS256".into(), Some("'alg'"));
    spoiled(|token| token.key = Key::p256(), Some("does not verify"));
}

#[test]
fn nobody_is_the_issuer_or_audience_by_being_empty() {
    let none: [&str; 0] = [];
    let error = |result: Result<Rules<'_>, JwtError>| result.unwrap_err();
    assert_eq!(
        error(Rules::oidc(ISSUER, &none)),
        JwtError::NoExpectedAudience
    );
    assert_eq!(
        error(Rules::oidc(ISSUER, &["a", ""])),
        JwtError::NoExpectedAudience
    );
    assert_eq!(error(Rules::oidc("", &["a"])), JwtError::NoExpectedIssuer);
    assert_eq!(error(Rules::svid("")), JwtError::NoExpectedAudience);
}

#[test]
fn a_token_without_a_key_name_means_the_only_key_that_fits() {
    let (ec, rsa) = (Key::p256(), Key::rsa_2048());
    let mut nameless = token(&ec, "ES256");
    nameless.without_header("kid");
    let one = keys(&[ec.jwk(json!({})), rsa.jwk(json!({ "kid": "r" }))]);
    check(&nameless, &one).unwrap();
    let two = keys(&[ec.jwk(json!({})), Key::p256().jwk(json!({}))]);
    assert_eq!(
        check(&nameless, &two).unwrap_err(),
        JwtError::KeyAmbiguous(2)
    );
    let none = keys(&[rsa.jwk(json!({}))]);
    assert_eq!(
        check(&nameless, &none).unwrap_err(),
        JwtError::KeyAmbiguous(0)
    );
}

#[test]
fn a_key_for_one_algorithm_verifies_no_other() {
    let key = Key::rsa_2048();
    let only = keys(&[key.jwk(json!({ "kid": "one", "alg": "PS256" }))]);
    check(&token(&key, "PS256"), &only).unwrap();
    let error = check(&token(&key, "RS256"), &only).unwrap_err();
    assert!(matches!(error, JwtError::KeyUnknown { .. }), "{error}");
}

#[test]
fn a_token_that_is_signed_with_ed25519_is_verified() {
    let (key, other) = (Key::ed25519(), Key::ed25519());
    // As Airflow's own library writes the key, and with what others add.
    for members in [
        json!({ "kid": "one" }),
        json!({ "kid": "one", "alg": "EdDSA", "use": "sig" }),
    ] {
        let keys = keys(&[Key::rsa_2048().jwk(json!({ "kid": "r" })), key.jwk(members)]);
        let good = token(&key, "EdDSA");
        assert_eq!(check(&good, &keys).unwrap().text("sub"), Some("repo:a/b"));
        let mut nameless = good.clone();
        nameless.without_header("kid");
        check(&nameless, &keys).unwrap();
        let mut forged = good;
        forged.key = other.clone();
        assert_eq!(check(&forged, &keys).unwrap_err(), JwtError::Signature);
    }
}

#[test]
fn what_airflow_3_3_signed_with_an_ed25519_key_is_verified() {
    let keys = keys(&[json!({
        "x": "74UiazXGmBWaJ7A6N0bDzvC9HguJ4NhJu1VSsTUb68A", "kty": "OKP", "crv": "Ed25519",
        "kid": "ZB65LbfUoyyerr0uvc7O31OSZwSjRo1TtSZT8d8m7x8",
    })]);
    let token = [
        "eyJhbGciOiJFZERTQSIsImtpZCI6IlpCNjVMYmZVb3l5ZXJyMHV2YzdPMzFPU1p3U2pSbzFUdFNaVDhkOG03eDgiLCJ0eXAiOiJKV1QifQ",
        "eyJzdWIiOiIwMTk5LXRpIiwiaXNzIjoiaHR0cHM6Ly9pc3N1ZXIuZXhhbXBsZSIsImF1ZCI6InNpZGV3aW5kIiwic2NvcGUiOiJleGVjdXRpb24iLCJuYmYiOjE4MDAwMDAwMDAsImV4cCI6MTgwMDAwMDMwMCwiaWF0IjoxODAwMDAwMDAwfQ",
        "PXv6Zeeg3dULwiZMEecW2AuMFYNzIwOfNDFZm9FrQmjmqeiaJLcm1JNsjgVYHJ9uQz5w731efzwKyuY4LPOPBA",
    ]
    .join(".");
    let rules = Rules::oidc(ISSUER, &["sidewind"]).unwrap();
    let verified = verify(&token, &keys, &rules, now()).unwrap();
    assert_eq!(verified.text("sub"), Some("0199-ti"));
}

#[test]
fn a_key_of_one_kind_is_never_used_as_one_of_another() {
    let (ed, ec, rsa) = (Key::ed25519(), Key::p256(), Key::rsa_2048());
    // What the token says, who signs it, and which key the issuer has under that name.
    for (alg, signer, known) in [
        ("EdDSA", &ed, &ec),
        ("EdDSA", &ed, &rsa),
        ("EdDSA", &rsa, &rsa),
        ("EdDSA", &ec, &ec),
        ("ES256", &ed, &ed),
        ("RS256", &ed, &ed),
        ("ES256", &ec, &ed),
        ("RS256", &rsa, &ed),
    ] {
        let keys = keys(&[known.jwk(json!({ "kid": "one" }))]);
        let error = check(&token(signer, alg), &keys).unwrap_err();
        assert!(matches!(error, JwtError::KeyKind { .. }), "{alg}: {error}");
    }
    // The public key as the secret of a MAC, and names that are no algorithm here.
    let keys = keys(&[ed.jwk(json!({ "kid": "one" }))]);
    for alg in ["HS256", "HS512", "none", "eddsa", "Ed25519", "Ed448"] {
        let error = check(&token(&ed, alg), &keys).unwrap_err();
        assert_eq!(error, JwtError::Algorithm, "{alg}");
    }
}

#[test]
fn keys_that_cannot_be_used_are_passed_over() {
    let key = Key::p256();
    let rows: [(Value, IgnoredKey); 16] = [
        (json!("text"), IgnoredKey::NotAnObject),
        (key.jwk(json!({ "use": "enc" })), IgnoredKey::OtherUse),
        (key.jwk(json!({ "use": "jwt-svid" })), IgnoredKey::OtherUse),
        (
            key.jwk(json!({ "key_ops": ["sign"] })),
            IgnoredKey::OtherUse,
        ),
        (
            key.jwk(json!({ "alg": "HS256" })),
            IgnoredKey::OtherAlgorithm,
        ),
        (
            key.jwk(json!({ "alg": "ES384" })),
            IgnoredKey::OtherAlgorithm,
        ),
        (key.jwk(json!({ "kid": "" })), IgnoredKey::KeyId),
        (key.jwk(json!({ "kid": 1 })), IgnoredKey::KeyId),
        (
            json!({ "kty": "OKP", "crv": "Ed25519", "x": "AA" }),
            KeyMaterialError::Member("x").into(),
        ),
        (
            json!({ "kty": "OKP", "crv": "Ed448", "x": "AA" }),
            KeyMaterialError::Kind.into(),
        ),
        (
            Key::ed25519().jwk(json!({ "crv": "X25519" })),
            KeyMaterialError::Kind.into(),
        ),
        (
            Key::ed25519().jwk(json!({ "kty": "EC" })),
            KeyMaterialError::Kind.into(),
        ),
        (
            Key::ed25519().jwk(json!({ "d": "AA" })),
            KeyMaterialError::Private("d").into(),
        ),
        (
            Key::ed25519().jwk(json!({ "alg": "RS256" })),
            IgnoredKey::OtherAlgorithm,
        ),
        (
            key.jwk(json!({ "alg": "EdDSA" })),
            IgnoredKey::OtherAlgorithm,
        ),
        (
            json!({ "kty": "oct", "k": "AA" }),
            KeyMaterialError::Private("k").into(),
        ),
    ];
    let mut elements: Vec<Value> = rows.iter().map(|row| row.0.clone()).collect();
    elements.push(key.jwk(json!({ "kid": "good", "key_ops": ["verify"] })));
    let set = keys(&elements);
    let ignored: Vec<IgnoredKey> = set.ignored().iter().map(|(_, reason)| *reason).collect();
    assert_eq!(ignored, rows.map(|row| row.1));
    assert!(set.len() == 1 && set.contains("good") && !set.contains("one"));
}

#[test]
fn a_set_that_cannot_be_relied_on_is_refused() {
    let parse = |text: &str| JwkSet::parse(text.as_bytes()).unwrap_err();
    let key = |kid: &str| Key::p256().jwk(json!({ "kid": kid }));
    for text in ["{}", r#"{"keys":{}}"#, r#"{"keys":null}"#] {
        assert_eq!(parse(text), JwksError::NoKeys);
    }
    for text in ["", "[]", r#"{"keys":[],"keys":[]}"#] {
        assert!(matches!(parse(text), JwksError::Json(_)), "{text}");
    }
    let twins = json!({ "keys": [key("one"), key("one")] }).to_string();
    assert_eq!(parse(&twins), JwksError::DuplicateKeyId("one".to_owned()));
    let many = |count: usize| json!({ "keys": vec![json!({}); count] }).to_string();
    let parsed = JwkSet::parse(many(MAX_JWKS_KEYS).as_bytes()).unwrap();
    assert!(parsed.is_empty() && parsed.ignored().len() == MAX_JWKS_KEYS);
    let past = MAX_JWKS_KEYS + 1;
    assert_eq!(parse(&many(past)), JwksError::TooManyKeys(past));
    let large = format!("{{\"keys\":[]}}{}", " ".repeat(MAX_JWKS_BYTES));
    assert_eq!(parse(&large), JwksError::TooLarge(large.len()));
    let mut at_limit = large;
    at_limit.truncate(MAX_JWKS_BYTES);
    assert!(JwkSet::parse(at_limit.as_bytes()).unwrap().is_empty());
}

#[test]
fn a_key_is_the_same_in_each_of_its_forms() {
    for key in [Key::p256(), Key::p384(), Key::p521(), Key::rsa_2048()] {
        let public = key.public();
        assert_eq!(public.spki_der(), key.spki());
        assert_eq!(VerificationKey::from_jwk(&public.to_jwk()), Ok(public));
    }
    // JWT-SVIDs have no keys of this kind.
    let ed25519 = Key::ed25519();
    let jwk = ed25519.jwk(json!({}));
    let refused = VerificationKey::from_jwk(jwk.as_object().unwrap());
    assert_eq!(refused, Err(KeyMaterialError::Kind));
    let refused = VerificationKey::from_spki_der(&ed25519.spki());
    assert_eq!(refused, Err(KeyMaterialError::Kind));
}

#[test]
fn rsa_keys_of_other_sizes_and_exponents_are_refused() {
    let jwk = |n: &[u8], e: &[u8]| {
        let jwk = json!({ "kty": "RSA", "n": b64(n), "e": b64(e) });
        VerificationKey::from_jwk(jwk.as_object().unwrap())
    };
    let odd = |bits: usize| {
        let mut n = vec![0xff; bits.div_ceil(8)];
        if !bits.is_multiple_of(8) {
            n[0] = (1 << (bits % 8)) - 1;
        }
        n
    };
    let exponent = [1, 0, 1];
    assert!(jwk(&odd(2048), &exponent).is_ok());
    assert!(jwk(&odd(4096), &exponent).is_ok());
    for bits in [1024, 2047, 4097, 8192, 16384] {
        let error = jwk(&odd(bits), &exponent).unwrap_err();
        assert_eq!(error, KeyMaterialError::RsaSize(bits));
    }
    assert_eq!(jwk(&[], &exponent), Err(KeyMaterialError::Member("n")));
    let padded = [vec![0], odd(2048)].concat();
    assert_eq!(jwk(&padded, &exponent), Err(KeyMaterialError::Member("n")));
    for e in [&[][..], &[3], &[1, 0, 0], &[0, 1, 0, 1], &[1, 0, 0, 0, 1]] {
        assert_eq!(
            jwk(&odd(2048), e),
            Err(KeyMaterialError::RsaExponent),
            "{e:?}"
        );
    }
    for (bits, expected) in [
        (4104, KeyMaterialError::RsaSize(4104)),
        (8192, KeyMaterialError::Malformed),
    ] {
        let (n, e) = (odd(bits), &exponent[..]);
        let der = RsaPublicKeyComponents { n: &n[..], e }.as_der().unwrap();
        assert_eq!(VerificationKey::from_spki_der(der.as_ref()), Err(expected));
    }
}

#[test]
fn points_off_their_curve_and_malformed_keys_are_refused() {
    let good = Key::p256().public().to_jwk();
    let with = |name: &str, value: Value| {
        let mut jwk = good.clone();
        jwk.insert(name.to_owned(), value);
        VerificationKey::from_jwk(&jwk)
    };
    let off = with("y", b64([1; 32]).into());
    assert_eq!(off, Err(KeyMaterialError::Malformed));
    let rows = [
        ("x", json!(b64([1; 31])), KeyMaterialError::Member("x")),
        ("x", json!(b64([0; 33])), KeyMaterialError::Member("x")),
        ("y", json!("a=="), KeyMaterialError::Member("y")),
        ("y", json!(1), KeyMaterialError::Member("y")),
        ("crv", json!("secp256k1"), KeyMaterialError::Kind),
        ("crv", json!("P-384"), KeyMaterialError::Member("x")),
        ("kty", json!("ec"), KeyMaterialError::Kind),
        ("d", json!("AA"), KeyMaterialError::Private("d")),
    ];
    for (name, value, error) in rows {
        assert_eq!(with(name, value), Err(error), "{name}");
    }
    let spki = Key::p256().spki();
    for der in [
        &[][..],
        &spki[..90],
        &[&spki[..], &[0]].concat(),
        &[0; 2000],
    ] {
        assert!(VerificationKey::from_spki_der(der).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn a_token_with_any_character_changed_is_refused(at in 0_usize..1000, by in 1_u8..127) {
        let key = Key::p256();
        let keys = keys(&[key.jwk(json!({ "kid": "one" }))]);
        let mut bytes = token(&key, "ES256").build().into_bytes();
        let at = at % bytes.len();
        bytes[at] = (bytes[at] + by) % 128;
        let changed = String::from_utf8(bytes).unwrap();
        let rules = Rules::oidc(ISSUER, &["sidewind"]).unwrap();
        proptest::prop_assert!(verify(&changed, &keys, &rules, now()).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_panic(text in "\\PC{0,200}", bytes in proptest::collection::vec(0_u8.., 0..300)) {
        let rules = Rules::oidc(ISSUER, &["sidewind"]).unwrap();
        for header in [text.clone(), b64(&bytes)] {
            let made = format!("{header}.{}.{}", b64(&text), b64(&bytes));
            proptest::prop_assert!(verify(&made, &JwkSet::default(), &rules, now()).is_err());
        }
        let _ = JwkSet::parse(&bytes);
        let _ = VerificationKey::from_spki_der(&bytes);
    }
}
