//! JWT-SVID conformance: one named row for each case of the project's table, and for each form that a case has.

use std::time::Duration;

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use sidewind_identity::jwt::JwtError;
use sidewind_identity::jwt::bundle::{JwtAuthority, JwtBundle, JwtBundles};
use sidewind_identity::jwt::jws::MAX_TOKEN_BYTES;
use sidewind_identity::jwt::signer::{JwtSignError, JwtSigner, MAX_JWT_TTL};
use sidewind_identity::jwt::svid::JwtSvid;
use sidewind_identity::{PrivateKey, SpiffeId, TrustDomain};

use crate::tokens::{Key, NOW, Token, b64, now};

const WORKLOAD: &str = "spiffe://td/ns/airflow/sa/worker";
const AUDIENCE: &str = "orders";

/// A good token, the bundles that believe it, and what may be changed about both.
struct Case {
    token: Token,
    bundles: JwtBundles,
    /// Sent instead of the token.
    sent: Option<String>,
}

fn trust_domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn bundle(name: &str, keys: &[(&str, &Key)]) -> JwtBundle {
    let authority = |(key_id, key): &(&str, &Key)| {
        JwtAuthority::from_spki_der(key_id, &key.spki(), None).unwrap()
    };
    let authorities = keys.iter().map(authority).collect();
    JwtBundle::new(trust_domain(name), authorities).unwrap()
}

impl Case {
    fn new() -> Self {
        Self::signed_by(Key::p256(), "ES256")
    }

    fn signed_by(key: Key, alg: &str) -> Self {
        let claims = json!({
            "sub": WORKLOAD, "aud": AUDIENCE, "exp": NOW + 300, "iat": NOW, "jti": "1",
        });
        let bundles = JwtBundles::from_iter([bundle("td", &[("one", &key)])]);
        Self {
            token: Token::new(key, alg, claims),
            bundles,
            sent: None,
        }
    }

    fn alg(&mut self, alg: &str) {
        self.token.header["alg"] = alg.into();
    }

    fn header(&mut self, name: &str, value: impl Into<Value>) {
        self.token.header[name] = value.into();
    }

    fn claim(&mut self, name: &str, value: impl Into<Value>) {
        self.token.claims[name] = value.into();
    }

    fn validate(&self) -> Result<JwtSvid, JwtError> {
        let token = self.sent.clone().unwrap_or_else(|| self.token.build());
        JwtSvid::validate(&token, AUDIENCE, &self.bundles, now())
    }
}

fn check(spoil: impl Fn(&mut Case), expected: Result<(), &str>) {
    let mut case = Case::new();
    spoil(&mut case);
    match (case.validate(), expected) {
        (Ok(svid), Ok(())) => assert_eq!(svid.id().as_str(), WORKLOAD),
        (Err(error), Err(reason)) => {
            let text = error.to_string();
            assert!(text.contains(reason), "'{text}' does not say '{reason}'");
        }
        (actual, expected) => panic!("expected {expected:?}, got {actual:?}"),
    }
}

const ACCEPT: Result<(), &str> = Ok(());

const fn reject(reason: &'static str) -> Result<(), &'static str> {
    Err(reason)
}

/// Each row is a test: its name, how it changes a good token, the verdict.
macro_rules! rows {
    ($($name:ident: $spoil:expr => $verdict:expr;)+) => {
        $(#[test] fn $name() { check($spoil, $verdict); })+
    };
}

rows! {
    case_01a_a_good_token: |_| {} => ACCEPT;
    case_01b_the_audience_in_an_array: |c| c.claim("aud", json!([AUDIENCE])) => ACCEPT;
    case_01c_es384: |c| *c = Case::signed_by(Key::p384(), "ES384") => ACCEPT;
    case_01d_es512: |c| *c = Case::signed_by(Key::p521(), "ES512") => ACCEPT;
    case_01e_rs256: |c| *c = Case::signed_by(Key::rsa_2048(), "RS256") => ACCEPT;
    case_01f_rs384: |c| *c = Case::signed_by(Key::rsa_2048(), "RS384") => ACCEPT;
    case_01g_rs512: |c| *c = Case::signed_by(Key::rsa_2048(), "RS512") => ACCEPT;
    case_01h_ps256: |c| *c = Case::signed_by(Key::rsa_2048(), "PS256") => ACCEPT;
    case_01i_ps384: |c| *c = Case::signed_by(Key::rsa_2048(), "PS384") => ACCEPT;
    case_01j_ps512: |c| *c = Case::signed_by(Key::rsa_2048(), "PS512") => ACCEPT;
    case_01k_another_key_of_that_name: |c| c.token.key = Key::p256() => reject("does not verify");
    case_01l_changed_claims: |c| {
        let good = c.token.build();
        c.claim("sub", "spiffe://td/admin");
        let (forged, signature) = (c.token.signing_input(), good.rsplit('.').next().unwrap());
        c.sent = Some(format!("{forged}.{signature}"));
    } => reject("does not verify");
    case_01m_no_signature: |c| c.sent = Some(format!("{}.", c.token.signing_input()))
        => reject("does not verify");
    case_01n_a_signature_in_der: |c| {
        let key = rcgen::KeyPair::generate().unwrap();
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        let authority = JwtAuthority::from_spki_der("one", &public, None).unwrap();
        c.bundles.insert(JwtBundle::new(trust_domain("td"), vec![authority]).unwrap());
        let signed = c.token.signing_input();
        let signature = rcgen::SigningKey::sign(&key, signed.as_bytes()).unwrap();
        c.sent = Some(format!("{signed}.{}", b64(signature)));
    } => reject("does not verify");

    case_02a_flattened_json: |c| {
        let token = c.token.build();
        let parts: Vec<&str> = token.split('.').collect();
        c.sent = Some(json!({
            "protected": parts[0], "payload": parts[1], "signature": parts[2],
        }).to_string());
    } => reject("three parts");
    case_02b_general_json: |c| {
        let token = c.token.build();
        let parts: Vec<&str> = token.split('.').collect();
        let signatures = json!([{ "protected": parts[0], "signature": parts[2] }]);
        c.sent = Some(json!({ "payload": parts[1], "signatures": signatures }).to_string());
    } => reject("three parts");
    case_02c_json_with_two_dots: |c| c.sent = Some(r#"{"a":"b.c.d"}"#.to_owned())
        => reject("header is not base64url");
    case_03a_five_parts: |c| c.sent = Some(format!("{}.a.b", c.token.build()))
        => reject("this has 5");
    case_03b_two_parts: |c| c.sent = Some(c.token.signing_input()) => reject("this has 2");
    case_03c_nothing: |c| c.sent = Some(String::new()) => reject("this has 1");
    case_03d_white_space_after: |c| c.sent = Some(format!("{}\n", c.token.build()))
        => reject("signature is not base64url");
    case_03e_padding: |c| c.sent = Some(format!("{}==", c.token.build()))
        => reject("signature is not base64url");
    case_03f_the_alphabet_of_plain_base64: |c| {
        let mut token = c.token.build();
        token.truncate(token.len() - 2);
        c.sent = Some(token + "+A");
    } => reject("signature is not base64url");
    case_03g_unused_bits_in_the_last_character: |c| {
        // 64 bytes end in a character of which two bits are used.
        let mut token = c.token.build();
        let last = token.pop().unwrap();
        token.push(char::from(last as u8 + 1));
        c.sent = Some(token);
    } => reject("signature is not base64url");

    case_04a_alg_none: |c| {
        c.alg("none");
        c.sent = Some(format!("{}.", c.token.signing_input()));
    } => reject("'alg' must be one of");
    case_04b_alg_none_in_capitals: |c| c.alg("None") => reject("'alg' must be one of");
    case_04c_alg_eddsa: |c| c.alg("EdDSA") => reject("'alg' must be one of");
    case_04d_alg_es256k: |c| c.alg("ES256K") => reject("'alg' must be one of");
    case_04e_alg_in_lower_case: |c| c.alg("es256") => reject("'alg' must be one of");
    case_04f_no_alg: |c| c.token.without_header("alg") => reject("'alg' must be one of");
    case_04g_alg_that_is_no_text: |c| c.header("alg", 256) => reject("'alg' must be one of");
    case_04h_alg_before_anything_else: |c| {
        c.alg("none");
        c.header("jku", "https://evil");
        c.token.raw_claims = Some("not JSON".to_owned());
    } => reject("'alg' must be one of");
    case_05a_hs256_with_the_public_key_as_secret: |c| {
        c.alg("HS256");
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &c.token.key.spki());
        let signed = c.token.signing_input();
        let tag = hmac::sign(&secret, signed.as_bytes());
        c.sent = Some(format!("{signed}.{}", b64(tag)));
    } => reject("'alg' must be one of");
    case_05b_hs512: |c| c.alg("HS512") => reject("'alg' must be one of");
    case_06a_es256_with_an_rsa_key: |c| {
        *c = Case::signed_by(Key::rsa_2048(), "RS256");
        c.alg("ES256");
    } => reject("of kind RSA");
    case_06b_rs256_with_an_ec_key: |c| c.alg("RS256") => reject("of kind P-256");
    case_06c_es384_with_a_p256_key: |c| c.alg("ES384") => reject("of kind P-256");
    case_06d_ps256_said_and_rs256_signed: |c| {
        *c = Case::signed_by(Key::rsa_2048(), "RS256");
        let signed = { c.alg("PS256"); c.token.signing_input() };
        let signature = c.token.key.sign("RS256", signed.as_bytes());
        c.sent = Some(format!("{signed}.{}", b64(signature)));
    } => reject("does not verify");

    case_07a_no_typ: |c| c.token.without_header("typ") => ACCEPT;
    case_07b_typ_jose: |c| c.header("typ", "JOSE") => ACCEPT;
    case_07c_typ_of_an_access_token: |c| c.header("typ", "at+jwt") => reject("'typ'");
    case_07d_typ_of_a_workload_identity_token: |c| c.header("typ", "wit+jwt") => reject("'typ'");
    case_07e_typ_in_lower_case: |c| c.header("typ", "jwt") => reject("'typ'");
    case_07f_typ_that_is_no_text: |c| c.header("typ", json!(["JWT"])) => reject("'typ'");
    case_08a_jku: |c| c.header("jku", "https://evil/keys") => reject("\"jku\" is not allowed");
    case_08b_jwk: |c| { let jwk = c.token.key.jwk(json!({})); c.header("jwk", jwk); }
        => reject("\"jwk\" is not allowed");
    case_08c_x5c: |c| c.header("x5c", json!(["MA=="])) => reject("\"x5c\" is not allowed");
    case_08d_x5u: |c| c.header("x5u", "https://evil/c") => reject("\"x5u\" is not allowed");
    case_08e_crit: |c| c.header("crit", json!([])) => reject("\"crit\" is not allowed");
    case_08f_b64: |c| c.header("b64", false) => reject("\"b64\" is not allowed");
    case_08g_a_private_header: |c| c.header("x-mine\n", 1) => reject(r#""x-mine\n" is not allowed"#);

    case_09a_no_kid: |c| c.token.without_header("kid") => reject("'kid'");
    case_09b_an_empty_kid: |c| c.header("kid", "") => reject("'kid'");
    case_09c_a_kid_of_257_bytes: |c| c.header("kid", "k".repeat(257)) => reject("'kid'");
    case_09d_a_kid_that_is_no_text: |c| c.header("kid", 1) => reject("'kid'");
    case_10a_an_unknown_kid: |c| c.header("kid", "two") => reject("\"two\" is known for td");
    case_10b_a_kid_of_another_trust_domain: |c| {
        c.bundles = JwtBundles::from_iter([
            bundle("td", &[("other", &Key::p256())]),
            bundle("evil", &[("one", &c.token.key)]),
        ]);
    } => reject("\"one\" is known for td");
    case_10c_a_token_of_a_trust_domain_that_is_not_known: |c| c.claim("sub", "spiffe://evil/w")
        => reject("trust domain evil");
    case_10d_a_trust_domain_whose_bundle_is_empty: |c| { c.bundles.insert(bundle("td", &[])); }
        => reject("trust domain td");
    case_10e_a_key_that_has_ended: |c| {
        let ended = Some(now() - Duration::from_secs(1));
        let key = c.token.key.spki();
        let authority = JwtAuthority::from_spki_der("one", &key, ended).unwrap();
        c.bundles.insert(JwtBundle::new(trust_domain("td"), vec![authority]).unwrap());
    } => reject("\"one\" is known for td");

    case_11a_no_sub: |c| c.token.without_claim("sub") => reject("'sub' is missing");
    case_11b_a_sub_that_is_a_web_address: |c| c.claim("sub", "https://td/w") => reject("spiffe://");
    case_11c_a_sub_that_is_a_trust_domain: |c| c.claim("sub", "spiffe://td") => reject("path must follow");
    case_11d_a_sub_that_is_no_text: |c| c.claim("sub", 1) => reject("'sub' must be");
    case_11e_a_sub_with_percent: |c| c.claim("sub", "spiffe://td/%77") => reject("0x25");
    case_11f_a_sub_in_upper_case: |c| c.claim("sub", "spiffe://TD/w") => reject("0x54");
    case_12a_no_aud: |c| c.token.without_claim("aud") => reject("'aud' is missing");
    case_12b_an_empty_array_as_aud: |c| c.claim("aud", json!([])) => reject("'aud' must be");
    case_12c_another_audience: |c| c.claim("aud", "billing") => reject("\"orders\"");
    case_12d_an_audience_that_begins_alike: |c| c.claim("aud", "orders2") => reject("\"orders\"");
    case_12e_an_audience_in_another_case: |c| c.claim("aud", "Orders") => reject("\"orders\"");
    case_12f_an_array_with_what_is_no_text: |c| c.claim("aud", json!([AUDIENCE, 1]))
        => reject("'aud' must be");
    case_12g_an_audience_of_null: |c| c.claim("aud", Value::Null) => reject("'aud' must be");

    case_14a_no_exp: |c| c.token.without_claim("exp") => reject("'exp' is missing");
    case_14b_expired: |c| c.claim("exp", NOW - 60) => reject("expired 60 s ago");
    case_14c_expired_within_the_leeway: |c| c.claim("exp", NOW - 29) => ACCEPT;
    case_14d_expired_by_the_leeway: |c| c.claim("exp", NOW - 30) => reject("expired");
    case_14e_exp_as_text: |c| c.claim("exp", (NOW + 300).to_string()) => reject("'exp' must be");
    case_14f_exp_of_null: |c| c.claim("exp", Value::Null) => reject("'exp' must be");
    case_14g_exp_with_a_fraction: |c| c.claim("exp", NOW as f64 + 0.5) => ACCEPT;
    case_14h_a_negative_exp: |c| c.claim("exp", -1) => reject("'exp' must be");
    case_14i_exp_beyond_what_a_clock_holds: |c| c.claim("exp", u64::MAX) => reject("'exp' must be");
    case_14j_exp_of_true: |c| c.claim("exp", true) => reject("'exp' must be");
    case_15a_nbf_in_the_future: |c| c.claim("nbf", NOW + 60) => reject("holds only in 60 s");
    case_15b_nbf_within_the_leeway: |c| c.claim("nbf", NOW + 30) => ACCEPT;
    case_15c_iat_in_the_future: |c| c.claim("iat", NOW + 3600) => reject("3600 s in the future");
    case_15d_iat_within_the_leeway: |c| c.claim("iat", NOW + 30) => ACCEPT;
    case_15e_no_iat: |c| c.token.without_claim("iat") => ACCEPT;
    case_15f_nbf_as_text: |c| c.claim("nbf", "now") => reject("'nbf' must be");
    case_17_several_audiences: |c| c.claim("aud", json!(["billing", AUDIENCE])) => ACCEPT;
    case_19a_sub_twice: |c| c.token.raw_claims = Some(format!(
        r#"{{"sub":"{WORKLOAD}","aud":"{AUDIENCE}","exp":{},"sub":"spiffe://td/admin"}}"#, NOW + 300,
    )) => reject("\"sub\" is there twice");
    case_19b_alg_twice: |c| c.token.raw_header
        = Some(r#"{"alg":"ES256","kid":"one","alg":"none"}"#.to_owned())
        => reject("\"alg\" is there twice");
    case_19c_a_nested_member_twice: |c| c.token.raw_claims = Some(format!(
        r#"{{"sub":"{WORKLOAD}","aud":"{AUDIENCE}","exp":{},"x":[{{"a":1,"a":2}}]}}"#, NOW + 300,
    )) => reject("twice");

    bytes_after_the_claims: |c| c.token.raw_claims = Some(format!("{}x", c.token.claims))
        => reject("claims cannot be read");
    claims_that_are_an_array: |c| c.token.raw_claims = Some("[]".to_owned())
        => reject("not a JSON object");
    claims_of_a_thousand_levels: |c| c.token.raw_claims = Some("[".repeat(1000))
        => reject("claims cannot be read");
    a_token_at_the_limit_of_size: |c| { c.sent = Some(padded(c, MAX_TOKEN_BYTES)); } => ACCEPT;
    a_token_one_byte_past_the_limit_of_size:
        |c| c.sent = Some("a".repeat(MAX_TOKEN_BYTES + 1)) => reject("16385 bytes");
}

/// A good token of this length, by a claim that nobody reads.
fn padded(case: &mut Case, length: usize) -> String {
    // Base64 makes four of three, so a padding in the header evens out what one in the claims cannot.
    let mut token = case.token.clone();
    for header in 1..=4 {
        token.header["kid"] = "k".repeat(header).into();
        for padding in (0..length * 3 / 4).rev() {
            token.claims["pad"] = "x".repeat(padding).into();
            // The signature of 64 bytes has 86 characters.
            let total = token.signing_input().len() + 1 + 86;
            if total == length {
                let key_id = token.header["kid"].as_str().unwrap();
                case.bundles.insert(bundle("td", &[(key_id, &token.key)]));
                return token.build();
            }
            if total < length {
                break;
            }
        }
    }
    panic!("no padding gives {length} bytes");
}

#[test]
fn case_13_an_empty_expected_audience_is_refused() {
    let case = Case::new();
    let error = JwtSvid::validate(&case.token.build(), "", &case.bundles, now()).unwrap_err();
    assert_eq!(error, JwtError::NoExpectedAudience);
    let mut case = case;
    case.claim("aud", "");
    let error = JwtSvid::validate(&case.token.build(), "", &case.bundles, now()).unwrap_err();
    assert_eq!(error, JwtError::NoExpectedAudience);
}

#[test]
fn case_18_the_same_token_is_taken_twice() {
    let case = Case::new();
    let token = case.token.build();
    for _ in 0..2 {
        let svid = JwtSvid::validate(&token, AUDIENCE, &case.bundles, now()).unwrap();
        assert_eq!(svid.claims()["jti"], "1");
    }
}

#[test]
fn a_refusal_shows_nothing_of_the_token() {
    let mut case = Case::new();
    case.token.claims["secret"] = "canary".into();
    case.header("kid", "\u{1b}[31m".repeat(20));
    let token = case.token.build();
    let error = case.validate().unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("canary") && !text.contains(&token), "{text}");
    assert!(!text.contains('\u{1b}') && text.len() < 2000, "{text}");
}

fn signer(expires: u64) -> JwtSigner {
    let expires = now() + Duration::from_secs(expires);
    JwtSigner::new(&PrivateKey::generate().unwrap(), expires).unwrap()
}

fn audience(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_token_signed_here_is_valid_here() {
    let (signer, id) = (signer(3600), SpiffeId::parse(WORKLOAD).unwrap());
    let bundle = JwtBundle::new(trust_domain("td"), vec![signer.authority().clone()]).unwrap();
    let bundles = JwtBundles::from_iter([bundle]);
    let ttl = Duration::from_secs(300);
    for names in [&[AUDIENCE][..], &["billing", AUDIENCE]] {
        let signed = signer.sign(&id, &audience(names), ttl, now()).unwrap();
        let svid = JwtSvid::validate(&signed.token, AUDIENCE, &bundles, now()).unwrap();
        assert_eq!((svid.id(), svid.audience()), (&id, &*audience(names)));
        assert_eq!(svid.expires(), now() + ttl);
        assert_eq!(svid.expires(), signed.expires);
        assert_eq!(svid.issued_at(), Some(now()));
        assert_eq!(svid.claims()["jti"], signed.token_id.as_str());
        assert!(!format!("{signed:?}").contains(&signed.token));
    }
}

#[test]
fn what_a_token_cannot_have_is_not_signed() {
    let (signer, id) = (signer(600), SpiffeId::parse(WORKLOAD).unwrap());
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let try_to = |names: &[&str], ttl| signer.sign(&id, &audience(names), ttl, now());
    let longest = "a".repeat(256);
    let too_long = "a".repeat(257);
    assert!(try_to(&[&*longest; 16], minutes(5)).is_ok());
    assert!(try_to(&[AUDIENCE], minutes(10)).is_ok());
    for (names, reason) in [
        (vec![], "0 audiences"),
        (vec![AUDIENCE; 17], "17 audiences"),
        (vec![AUDIENCE, ""], "audience 2"),
        (vec![&*too_long], "audience 1"),
        (vec!["a\nb"], "audience 1"),
    ] {
        let error = try_to(&names, minutes(5)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    for ttl in [
        Duration::ZERO,
        Duration::from_millis(999),
        MAX_JWT_TTL + minutes(1),
    ] {
        let error = try_to(&[AUDIENCE], ttl).unwrap_err();
        assert!(matches!(error, JwtSignError::Ttl(_)), "{error}");
    }
    let error = try_to(&[AUDIENCE], minutes(11)).unwrap_err();
    assert!(matches!(error, JwtSignError::OutlivesKey { .. }), "{error}");
    let id = trust_domain("td").id();
    let error = signer.sign(&id, &audience(&[AUDIENCE]), minutes(5), now());
    assert!(matches!(error, Err(JwtSignError::NotAWorkload(_))));
}
