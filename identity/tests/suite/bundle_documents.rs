//! SPIFFE bundle documents: one named row for each case of the project's table, and for each form that a case has.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData};
use rustls::{ClientConnection, ServerConnection};
use serde_json::{Value, json};
use sidewind_identity::bundle::document::{
    BundleDocument, DEFAULT_REFRESH_HINT, DocumentError, MAX_DOCUMENT_BYTES, MAX_DOCUMENT_KEYS,
    Succession,
};
use sidewind_identity::bundle::map::{BundleMap, MAX_MAP_TRUST_DOMAINS, MapError};
use sidewind_identity::jwt::VerificationKey;
use sidewind_identity::jwt::bundle::{JwtBundle, JwtBundles};
use sidewind_identity::jwt::svid::JwtSvid;
use sidewind_identity::tls::{self, ClientAuth};
use sidewind_identity::{TrustBundle, TrustBundles, TrustDomain, VerifyError};

use crate::scenario::{NOW, at, ca, uri};
use crate::support::{Mesh, Refused, handshake};
use crate::tokens::{Key, Token};

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn td(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// An `x509-svid` element, with the certificate's own key in the JWK.
fn x509(params: &CertificateParams) -> Value {
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().to_vec();
    element(&key.subject_public_key_info(), &der)
}

fn element(spki: &[u8], der: &[u8]) -> Value {
    let mut jwk = VerificationKey::from_spki_der(spki).unwrap().to_jwk();
    jwk.insert("use".to_owned(), "x509-svid".into());
    jwk.insert("x5c".to_owned(), json!([STANDARD.encode(der)]));
    Value::Object(jwk)
}

fn jwt(kid: &str) -> Value {
    Key::p256().jwk(json!({ "use": "jwt-svid", "kid": kid }))
}

/// A good document of two keys.
fn document() -> Value {
    json!({
        "spiffe_sequence": 12, "spiffe_refresh_hint": 60, "keys": [x509(&ca("root")), jwt("one")],
    })
}

fn parse(document: &Value) -> Result<BundleDocument, DocumentError> {
    BundleDocument::parse(td("td"), document.to_string().as_bytes(), now())
}

/// How many keys of each kind the document has, and what was left out: its reason, and whether that is an alarm.
struct Expected {
    x509: usize,
    jwt: usize,
    left_out: &'static [(&'static str, bool)],
}

const fn kept(x509: usize, jwt: usize) -> Result<Expected, &'static str> {
    Ok(Expected {
        x509,
        jwt,
        left_out: &[],
    })
}

/// The certificate is left out for a reason, silently or with an alarm, and the token key is kept.
const fn without_x509(left_out: &'static [(&'static str, bool)]) -> Result<Expected, &'static str> {
    Ok(Expected {
        x509: 0,
        jwt: 1,
        left_out,
    })
}

const fn without_jwt(left_out: &'static [(&'static str, bool)]) -> Result<Expected, &'static str> {
    Ok(Expected {
        x509: 1,
        jwt: 0,
        left_out,
    })
}

fn check(spoil: impl Fn(&mut Value), expected: Result<Expected, &str>) {
    let mut document = document();
    spoil(&mut document);
    match (parse(&document), expected) {
        (Ok(parsed), Ok(expected)) => {
            assert_eq!(parsed.x509().authorities().len(), expected.x509);
            assert_eq!(parsed.jwt().authorities().len(), expected.jwt);
            let findings = parsed.findings();
            assert_eq!(findings.len(), expected.left_out.len(), "{findings:?}");
            for (finding, (reason, alarm)) in findings.iter().zip(expected.left_out) {
                let text = finding.to_string();
                assert!(text.contains(reason), "'{text}' does not say '{reason}'");
                assert_eq!(finding.reason.is_alarm(), *alarm, "{text}");
            }
        }
        (Err(error), Err(reason)) => {
            let text = error.to_string();
            assert!(text.contains(reason), "'{text}' does not say '{reason}'");
        }
        (Ok(parsed), Err(reason)) => panic!("{parsed:?} was taken, and not refused for {reason}"),
        (Err(error), Ok(_)) => panic!("refused: {error}"),
    }
}

/// Each row is a test: its name, how it changes a good document, the verdict.
macro_rules! rows {
    ($($name:ident: $spoil:expr => $verdict:expr;)+) => {
        $(#[test] fn $name() { check($spoil, $verdict); })+
    };
}

rows! {
    a_good_document: |_| {} => kept(1, 1);
    keys_missing: |d| { d.as_object_mut().unwrap().remove("keys"); } => Err("'keys' must be an array");
    keys_of_null: |d| d["keys"] = Value::Null => Err("'keys' must be an array");
    keys_that_are_an_object: |d| d["keys"] = json!({}) => Err("'keys' must be an array");
    keys_empty: |d| d["keys"] = json!([]) => kept(0, 0);
    no_usable_key: |d| d["keys"] = json!([{ "use": "other" }])
        => Ok(Expected { x509: 0, jwt: 0, left_out: &[("'use' is not", false)] });
    unknown_kty: |d| d["keys"][0]["kty"] = "OKP".into() => without_x509(&[("kind of key is not known", false)]);
    unknown_curve: |d| d["keys"][1]["crv"] = "secp256k1".into()
        => without_jwt(&[("kind of key is not known", false)]);
    no_kty: |d| { d["keys"][0].as_object_mut().unwrap().remove("kty"); }
        => without_x509(&[("kind of key is not known", false)]);
    unknown_use: |d| d["keys"][0]["use"] = "wit-svid".into() => without_x509(&[("'use' is not", false)]);
    missing_use: |d| { d["keys"][1].as_object_mut().unwrap().remove("use"); }
        => without_jwt(&[("'use' is not", false)]);
    use_in_another_case: |d| d["keys"][0]["use"] = "X509-SVID".into() => without_x509(&[("'use' is not", false)]);
    use_of_signatures: |d| d["keys"][1]["use"] = "sig".into() => without_jwt(&[("'use' is not", false)]);
    extra_top_level_members: |d| d["anything"] = json!({ "keys": [1] }) => kept(1, 1);
    extra_jwk_members: |d| {
        d["keys"][0]["alg"] = "ES256".into();
        d["keys"][1]["nbf"] = json!([{}]);
    } => kept(1, 1);
    x509_with_kid: |d| d["keys"][0]["kid"] = "tolerated".into() => kept(1, 1);
    x509_without_x5c: |d| { d["keys"][0].as_object_mut().unwrap().remove("x5c"); }
        => without_x509(&[("without a certificate", false)]);
    x509_with_empty_x5c: |d| d["keys"][0]["x5c"] = json!([]) => without_x509(&[("without a certificate", false)]);
    x5c_with_two_entries: |d| {
        let second = x509(&ca("second"))["x5c"][0].clone();
        d["keys"][0]["x5c"].as_array_mut().unwrap().push(second);
    } => kept(1, 1);
    x5c_with_garbage_second: |d| d["keys"][0]["x5c"].as_array_mut().unwrap().push(json!(1)) => kept(1, 1);
    x5c_of_other_certificate_first: |d| {
        let second = x509(&ca("second"))["x5c"][0].clone();
        d["keys"][0]["x5c"].as_array_mut().unwrap().insert(0, second);
    } => without_x509(&[("not the key of its certificate", true)]);
    x5c_in_base64url: |d| d["keys"][0]["x5c"] = json!(["-_8"]) => without_x509(&[("not base64", true)]);
    x5c_that_is_no_certificate: |d| d["keys"][0]["x5c"] = json!([STANDARD.encode("no DER")])
        => without_x509(&[("not a DER-encoded", true)]);
    sequence_beyond_floats: |d| d["spiffe_sequence"] = u64::MAX.into() => kept(1, 1);
    sequence_missing: |d| { d.as_object_mut().unwrap().remove("spiffe_sequence"); } => kept(1, 1);
    sequence_negative: |d| d["spiffe_sequence"] = (-1).into() => Err("'spiffe_sequence' must be a whole number");
    sequence_as_text: |d| d["spiffe_sequence"] = "12".into() => Err("'spiffe_sequence' must be a whole number");
    sequence_with_a_fraction: |d| d["spiffe_sequence"] = 1.5.into() => Err("'spiffe_sequence' must be a whole number");
    refresh_hint_as_text: |d| d["spiffe_refresh_hint"] = "60".into()
        => Err("'spiffe_refresh_hint' must be a whole number");
    jwk_of_another_key: |d| {
        d["keys"][0] = { let mut other = x509(&ca("other")); other["x5c"] = d["keys"][0]["x5c"].clone(); other };
    } => without_x509(&[("not the key of its certificate", true)]);
    certificate_that_is_no_ca: |d| d["keys"][0] = x509(&{ let mut p = ca("leaf"); p.is_ca = IsCa::ExplicitNoCa; p })
        => without_x509(&[("CA:TRUE", true)]);
    certificate_that_may_not_sign: |d| d["keys"][0] = x509(&{ let mut p = ca("root"); p.key_usages.clear(); p })
        => without_x509(&[("keyCertSign", true)]);
    certificate_that_has_expired: |d| d["keys"][0] = x509(&{ let mut p = ca("old"); p.not_after = at(-1); p })
        => without_x509(&[("has expired", true)]);
    certificate_that_is_not_valid_yet: |d| d["keys"][0]
        = x509(&{ let mut p = ca("next"); p.not_before = at(60); p }) => kept(1, 1);
    certificate_of_another_trust_domain: |d| d["keys"][0]
        = x509(&{ let mut p = ca("root"); p.subject_alt_names = vec![uri("spiffe://other")]; p })
        => without_x509(&[("spiffe://td alone", true)]);
    certificate_with_a_path: |d| d["keys"][0]
        = x509(&{ let mut p = ca("root"); p.subject_alt_names = vec![uri("spiffe://td/ca")]; p })
        => without_x509(&[("spiffe://td alone", true)]);
    jwt_without_kid: |d| { d["keys"][1].as_object_mut().unwrap().remove("kid"); }
        => without_jwt(&[("without a 'kid'", true)]);
    jwt_with_an_empty_kid: |d| d["keys"][1]["kid"] = "".into() => without_jwt(&[("without a 'kid'", true)]);
    jwt_with_a_private_key: |d| d["keys"][1]["d"] = "AA".into() => without_jwt(&[("member 'd' of a private", true)]);
    jwt_off_its_curve: |d| { let y = d["keys"][1]["x"].clone(); d["keys"][1]["y"] = y; }
        => without_jwt(&[("malformed public key", true)]);
    two_jwt_keys_of_one_name: |d| d["keys"].as_array_mut().unwrap().push(jwt("one"))
        => Err("two JWT authorities are named \"one\"");
    an_element_that_is_no_object: |d| d["keys"][0] = "text".into() => without_x509(&[("not a JSON object", true)]);
    keys_at_the_limit: |d| d["keys"] = vec![json!({ "use": "x" }); MAX_DOCUMENT_KEYS].into()
        => Ok(Expected { x509: 0, jwt: 0, left_out: &[("'use' is not", false); MAX_DOCUMENT_KEYS] });
    keys_past_the_limit: |d| d["keys"] = vec![json!({}); MAX_DOCUMENT_KEYS + 1].into() => Err("holds 101 keys");
    seventeen_certificates: |d| d["keys"] = (0..17).map(|_| x509(&ca("root"))).collect::<Vec<_>>().into()
        => Err("17 authorities");
}

#[test]
fn sequences_keep_64_bits_and_the_refresh_hint_has_a_default() {
    let mut good = document();
    good["spiffe_sequence"] = ((1_u64 << 53) + 1).into();
    let parsed = parse(&good).unwrap();
    assert_eq!(parsed.sequence(), (1 << 53) + 1);
    assert_eq!(parsed.refresh_hint(), Duration::from_secs(60));
    good.as_object_mut().unwrap().remove("spiffe_refresh_hint");
    let parsed = parse(&good).unwrap();
    assert_eq!(parsed.refresh_hint(), DEFAULT_REFRESH_HINT);
    assert_eq!(DEFAULT_REFRESH_HINT, Duration::from_secs(300));
}

#[test]
fn documents_that_mean_two_things_or_are_too_large_are_refused() {
    let parse = |text: &[u8]| BundleDocument::parse(td("td"), text, now());
    for text in [
        "",
        "[]",
        r#"{"keys":[],"keys":[]}"#,
        r#"{"keys":[{"use":"a","use":"b"}]}"#,
    ] {
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, DocumentError::Json(_)), "{text}: {error}");
    }
    let mut text = br#"{"keys":[]}"#.to_vec();
    text.resize(MAX_DOCUMENT_BYTES, b' ');
    assert!(parse(&text).unwrap().is_empty());
    text.push(b' ');
    let found = MAX_DOCUMENT_BYTES + 1;
    let allowed = MAX_DOCUMENT_BYTES;
    assert_eq!(
        parse(&text),
        Err(DocumentError::TooLarge { found, allowed })
    );
}

#[test]
fn an_older_or_contradicting_document_is_told_apart_from_a_newer_one() {
    let with = |sequence: u64, keys: &[&Value]| {
        parse(&json!({ "spiffe_sequence": sequence, "keys": keys })).unwrap()
    };
    let (one, two) = (x509(&ca("one")), jwt("two"));
    let current = with(12, &[&one, &two]);
    assert_eq!(
        with(11, &[&one, &two]).succeeds(&current),
        Succession::Rollback
    );
    assert_eq!(with(0, &[&one]).succeeds(&current), Succession::Rollback);
    assert_eq!(with(13, &[]).succeeds(&current), Succession::Accept);
    assert_eq!(
        with(12, &[&two, &one]).succeeds(&current),
        Succession::Unchanged
    );
    for other in [&[&one][..], &[&two], &[]] {
        let succession = with(12, other).succeeds(&current);
        assert_eq!(succession, Succession::SameSequenceOtherContent);
    }
    // Publishers that do not count are believed at their latest word.
    assert_eq!(
        with(0, &[&one]).succeeds(&with(0, &[&two])),
        Succession::Accept
    );
    let largest = with(u64::MAX, &[]);
    assert_eq!(
        with(u64::MAX - 1, &[]).succeeds(&largest),
        Succession::Rollback
    );
}

#[test]
fn a_document_is_read_as_it_was_written() {
    let mut roots = Vec::new();
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        roots.push(ca("root").self_signed(&key).unwrap().der().to_vec());
    }
    let x509 = TrustBundle::from_der(td("td"), 7, roots).unwrap();
    let jwt = parse(&document()).unwrap().jwt().clone();
    let written = BundleDocument::new(x509, jwt, Duration::from_secs(120)).unwrap();
    let text = written.to_json();
    let read = BundleDocument::parse(td("td"), text.as_bytes(), now()).unwrap();
    assert_eq!((read.sequence(), read.refresh_hint().as_secs()), (7, 120));
    assert_eq!(read.jwt(), written.jwt());
    // JSON Web Keys have no form for the Ed25519 root that readers are bound to know.
    assert_eq!(
        read.x509().authorities(),
        &written.x509().authorities()[..1]
    );
    assert_eq!(read.findings(), []);

    let json: Value = serde_json::from_str(&text).unwrap();
    let keys = json["keys"].as_array().unwrap();
    assert!(keys[0].get("kid").is_none() && keys[0]["x5c"].as_array().unwrap().len() == 1);
    assert!(keys[1]["kid"] == "one" && keys[1].get("x5c").is_none());
    let jwks: Value = serde_json::from_str(&read.jwt().to_jwks()).unwrap();
    assert_eq!(jwks, json!({ "keys": [keys[1]] }));
}

#[test]
fn parts_of_two_trust_domains_make_no_document() {
    let x509 = TrustBundle::from_der(td("one"), 1, Vec::new()).unwrap();
    let jwt = JwtBundle::new(td("two"), Vec::new()).unwrap();
    assert!(BundleDocument::new(x509, jwt, DEFAULT_REFRESH_HINT).is_err());
}

#[test]
fn jwt_case_16_a_key_for_certificates_or_nothing_verifies_no_token() {
    let key = Key::p256();
    let claims = json!({ "sub": "spiffe://td/w", "aud": "a", "exp": NOW + 60 });
    let token = Token::new(key.clone(), "ES256", claims).build();
    let validate = |jwk: Value| {
        let document = parse(&json!({ "keys": [jwk, jwt("other")] })).unwrap();
        let bundles = JwtBundles::from_iter([document.jwt().clone()]);
        JwtSvid::validate(&token, "a", &bundles, now())
    };
    assert!(validate(key.jwk(json!({ "use": "jwt-svid", "kid": "one" }))).is_ok());
    for members in [
        json!({ "use": "x509-svid", "kid": "one" }),
        json!({ "kid": "one" }),
        json!({ "use": "sig", "kid": "one" }),
        json!({ "use": "JWT-SVID", "kid": "one" }),
    ] {
        let error = validate(key.jwk(members)).unwrap_err().to_string();
        assert!(error.contains("no key named \"one\""), "{error}");
    }
}

/// A handshake from a workload of one trust domain to one of another that believes these bundles.
fn connect(client: &Mesh, server: &Mesh, believed: TrustBundles) -> Result<(), Refused> {
    let both = [client, server].map(|mesh| mesh.bundles.iter());
    let both: TrustBundles = both.into_iter().flatten().cloned().collect();
    let from = tls::client_config(&client.svid("/c"), &Arc::new(both), &[]).unwrap();
    let to = server.svid("/s");
    let to = tls::server_config(&to, &Arc::new(believed), &[], ClientAuth::Required).unwrap();
    let mut from = ClientConnection::new(from, tls::server_name()).unwrap();
    handshake(&mut from, &mut ServerConnection::new(to).unwrap())
}

#[test]
fn an_empty_document_takes_trust_away_from_its_trust_domain_alone() {
    let (own, foreign) = (Mesh::new("own"), Mesh::new("foreign"));
    let document = |mesh: &Mesh| {
        let x509 = mesh.bundles.get(&mesh.trust_domain).unwrap().clone();
        let jwt = JwtBundle::new(mesh.trust_domain.clone(), Vec::new()).unwrap();
        let text = BundleDocument::new(x509, jwt, DEFAULT_REFRESH_HINT)
            .unwrap()
            .to_json();
        BundleDocument::parse(
            mesh.trust_domain.clone(),
            text.as_bytes(),
            SystemTime::now(),
        )
    };
    let mut believed = TrustBundles::from_iter(own.bundles.iter().cloned());
    believed.insert(document(&foreign).unwrap().x509().clone());
    connect(&foreign, &own, believed.clone()).unwrap();

    let text = br#"{"spiffe_sequence":2,"keys":[]}"#;
    let empty = BundleDocument::parse(td("foreign"), text, SystemTime::now()).unwrap();
    assert!(empty.is_empty());
    believed.insert(empty.x509().clone());
    match connect(&foreign, &own, believed.clone()) {
        Err(Refused::ByServer(error)) => {
            assert_eq!(
                VerifyError::code_of_tls(&error),
                Some("unknown-trust-domain")
            );
        }
        other => panic!("{other:?}"),
    }
    connect(&own, &own, believed).unwrap();
}

#[test]
fn a_map_keeps_trust_domains_apart() {
    let map = json!({
        "spiffe_refresh_hint": 900,
        "trust_domains": { "a": document(), "b": { "keys": [] }, "UPPER": document(), "c": [] },
    });
    let map = BundleMap::parse(map.to_string().as_bytes(), now()).unwrap();
    let names: Vec<&str> = map
        .documents
        .iter()
        .map(|one| one.trust_domain().as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    // The certificates of `document()` name no other trust domain than `td`, so only the token key is left of it.
    assert_eq!(map.documents[0].jwt().authorities().len(), 1);
    assert!(map.documents[1].is_empty());
    assert_eq!(map.documents[0].refresh_hint(), Duration::from_secs(60));
    assert_eq!(
        map.refresh_hint,
        Duration::from_secs(900),
        "an entry's hint is not the map's"
    );
    let refused: Vec<&str> = map.refused.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(refused, ["UPPER", "c"]);
}

#[test]
fn a_map_that_names_a_trust_domain_twice_or_shares_keys_is_refused() {
    let parse = |text: &str| BundleMap::parse(text.as_bytes(), now()).unwrap_err();
    let twice = r#"{"trust_domains":{"a":{"keys":[]},"a":{"keys":[]}}}"#;
    assert!(matches!(
        parse(twice),
        MapError::Document(DocumentError::Json(_))
    ));
    for text in ["{}", r#"{"trust_domains":[]}"#] {
        let error = parse(text);
        assert!(matches!(
            error,
            MapError::Document(DocumentError::Member { .. })
        ));
    }
    let mut root = ca("root");
    root.subject_alt_names.clear();
    let keys = json!({ "keys": [x509(&root)] });
    let shared = json!({ "trust_domains": { "a": keys, "b": keys } }).to_string();
    assert!(matches!(parse(&shared), MapError::SharedKey { .. }));
    let many: serde_json::Map<String, Value> = (0..=MAX_MAP_TRUST_DOMAINS)
        .map(|n| (format!("td{n}"), json!({ "keys": [] })))
        .collect();
    let many = json!({ "trust_domains": many }).to_string();
    assert_eq!(parse(&many), MapError::TooMany(MAX_MAP_TRUST_DOMAINS + 1));
}
