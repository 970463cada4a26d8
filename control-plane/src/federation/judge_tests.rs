//! What becomes of a fetched document, case by case.

use super::*;
use sidewind_identity::bundle::document::BundleDocument;
use sidewind_identity::jwt::bundle::{JwtAuthority, JwtBundle};
use sidewind_identity::{PrivateKey, TrustBundle};
use std::time::Duration;

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

/// A root certificate of a key, with this URI name if any.
fn root(key: &rcgen::KeyPair, uri: Option<&str>) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    if let Some(uri) = uri {
        let uri = rcgen::SanType::URI(uri.try_into().unwrap());
        params.subject_alt_names.push(uri);
    }
    params.self_signed(key).unwrap().der().to_vec()
}

fn key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().unwrap()
}

fn bundle(name: &str, sequence: u64, roots: Vec<Vec<u8>>) -> TrustBundle {
    TrustBundle::from_der(domain(name), sequence, roots).unwrap()
}

fn document(sequence: u64, roots: Vec<Vec<u8>>, jwt: &[JwtAuthority]) -> Vec<u8> {
    let jwt = JwtBundle::new(domain("partner.example"), jwt.to_vec()).unwrap();
    let x509 = bundle("partner.example", sequence, roots);
    let document = BundleDocument::new(x509, jwt, Duration::from_secs(300)).unwrap();
    document.to_json().into_bytes()
}

#[test]
fn each_document_is_taken_kept_or_refused_with_its_alarm() {
    let (first, second, own_key) = (key(), key(), key());
    let (one, two) = (root(&first, None), root(&second, None));
    let private = PrivateKey::generate().unwrap();
    let jwt = JwtAuthority::from_spki_der("a", &private.public_key_der(), None).unwrap();
    let own = bundle("sidewind.local", 1, vec![root(&own_key, None)]);
    let foreign = bundle("other.example", 1, vec![root(&second, None)]);
    let uncounted = br#"{"keys":[]}"#.to_vec();
    let with_a_leaf = String::from_utf8(document(8, vec![one.clone()], &[])).unwrap();
    let claims_own = root(&key(), Some("spiffe://sidewind.local"));
    // A root of ours under their name, as they might write it: the document's own writer would not.
    let der = |der: &[u8]| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(der)
    };
    let claiming = with_a_leaf.replace(&der(&one), &der(&claims_own));
    let present = || document(7, vec![one.clone()], &[]);
    let (none, nobody) = (Vec::new(), Vec::new());
    type Row<'a> = (
        &'a str,
        Vec<u8>,
        Option<Vec<u8>>,
        &'a [TrustBundle],
        &'a str,
        &'a [FederationAlarm],
    );
    use FederationAlarm::{Element, Rollback, SameSequence, SharedKey};
    let rows: Vec<Row<'_>> = vec![
        ("the first", present(), None, &none, "take", &[]),
        (
            "a later one",
            document(8, vec![two.clone()], &[]),
            Some(present()),
            &none,
            "take",
            &[],
        ),
        ("the same", present(), Some(present()), &none, "keep", &[]),
        (
            "an older one",
            document(6, vec![two.clone()], &[]),
            Some(present()),
            &none,
            "refuse: its sequence 6 is older than 7",
            &[Rollback],
        ),
        (
            "other roots under the same sequence",
            document(7, vec![two.clone()], &[]),
            Some(present()),
            &none,
            "take",
            &[SameSequence],
        ),
        (
            "other JWT keys under the same sequence",
            document(7, vec![one.clone()], &[jwt]),
            Some(present()),
            &none,
            "take",
            &[SameSequence],
        ),
        (
            "no keys under the same sequence: a revocation",
            document(7, nobody, &[]),
            Some(present()),
            &none,
            "take",
            &[SameSequence],
        ),
        (
            "no keys",
            document(8, Vec::new(), &[]),
            Some(present()),
            &none,
            "take",
            &[],
        ),
        (
            "no sequence after none",
            uncounted.clone(),
            Some(uncounted.clone()),
            &none,
            "keep",
            &[],
        ),
        (
            "no sequence after one",
            uncounted,
            Some(present()),
            &none,
            "refuse: its sequence 0 is older than 7",
            &[Rollback],
        ),
        (
            "a root with a key of ours",
            document(8, vec![root(&own_key, None)], &[]),
            Some(present()),
            std::slice::from_ref(&own),
            "refuse: it has an authority with a key of trust domain sidewind.local",
            &[SharedKey],
        ),
        (
            "a root with a key of a third",
            document(8, vec![two], &[]),
            Some(present()),
            std::slice::from_ref(&foreign),
            "refuse: it has an authority with a key of trust domain other.example",
            &[SharedKey],
        ),
        (
            "a root that is named as ours",
            claiming.into_bytes(),
            Some(present()),
            std::slice::from_ref(&own),
            "take",
            &[Element],
        ),
    ];
    for (name, fetched, present, others, expected, alarms) in rows {
        let partner = domain("partner.example");
        let now = SystemTime::now();
        let judged = judge(&partner, &fetched, present.as_deref(), others.iter(), now).unwrap();
        let verdict = match &judged.verdict {
            Verdict::Take => "take".to_owned(),
            Verdict::Unchanged => "keep".to_owned(),
            Verdict::Refuse(reason) => format!("refuse: {reason}"),
        };
        assert!(verdict.starts_with(expected), "{name}: {verdict}");
        let raised: Vec<_> = judged.alarms.iter().map(|(alarm, _)| *alarm).collect();
        assert_eq!(raised, alarms, "{name}");
        let kept = if matches!(judged.verdict, Verdict::Refuse(_)) {
            present
        } else {
            Some(fetched)
        };
        let kept = kept.map(|text| BundleDocument::parse(partner, &text, now).unwrap());
        assert_eq!(judged.document, kept, "{name}");
    }
}

#[test]
fn an_authority_that_claims_our_trust_domain_is_left_out_and_believed_for_nobody() {
    let claims_own = root(&key(), Some("spiffe://sidewind.local"));
    let refused = TrustBundle::from_der(domain("partner.example"), 1, vec![claims_own]);
    assert!(refused.is_err());
}

#[test]
fn what_is_no_document_is_an_error() {
    for text in [
        "",
        "[]",
        "{}",
        "{\"keys\":1}",
        "not json",
        "{\"keys\":[],\"keys\":[]}",
    ] {
        let judged = judge(
            &domain("partner.example"),
            text.as_bytes(),
            None,
            std::iter::empty(),
            SystemTime::now(),
        );
        assert!(judged.is_err(), "{text}");
    }
}
