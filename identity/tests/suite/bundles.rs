//! Trust bundles: what may be an authority, and how bundles are read, written and kept apart.

use std::time::{Duration, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use sidewind_identity::{BundleError, MAX_AUTHORITIES, TrustBundle, TrustBundles, TrustDomain};

use crate::scenario::{HOUR, NOW, Scenario, WORKLOAD, at, bundle, ca, leaf, uri};

fn self_signed(params: &CertificateParams) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().into()
}

/// Asserts that a root spoiled so cannot be loaded, for a reason that contains the text.
fn refused(spoil: impl Fn(&mut CertificateParams), reason: &str) {
    let mut params = ca("root");
    spoil(&mut params);
    let good = self_signed(&ca("good"));
    let error = bundle("td", &[good, self_signed(&params)])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(reason) && error.contains("authority 2"),
        "{error}"
    );
}

#[test]
fn case_38_an_authority_that_is_no_ca_is_refused() {
    refused(|params| params.is_ca = IsCa::ExplicitNoCa, "CA:TRUE");
    refused(|params| params.is_ca = IsCa::NoCa, "CA:TRUE");
}

#[test]
fn case_39_a_self_signed_leaf_is_refused() {
    refused(|params| *params = leaf(WORKLOAD), "CA:TRUE");
}

#[test]
fn an_authority_that_may_not_sign_is_refused() {
    refused(|params| params.key_usages.clear(), "keyCertSign");
    refused(
        |params| params.key_usages = vec![KeyUsagePurpose::CrlSign],
        "keyCertSign",
    );
}

#[test]
fn an_authority_of_another_trust_domain_or_with_a_path_is_refused() {
    refused(
        |params| params.subject_alt_names = vec![uri("spiffe://other")],
        "spiffe://td alone",
    );
    refused(
        |params| params.subject_alt_names = vec![uri("spiffe://td/ca")],
        "spiffe://td alone",
    );
    refused(
        |params| params.subject_alt_names.push(uri("spiffe://td")),
        "spiffe://td alone",
    );
    refused(
        |params| params.subject_alt_names = vec![uri("https://td")],
        "spiffe://td alone",
    );
}

#[test]
fn an_authority_without_an_id_is_taken() {
    let mut params = ca("corporate root");
    params.subject_alt_names.clear();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(3));
    params.key_usages.push(KeyUsagePurpose::CrlSign);
    assert_eq!(
        bundle("td", &[self_signed(&params)])
            .unwrap()
            .authorities()
            .len(),
        1
    );
}

#[test]
fn garbage_and_oversized_certificates_are_refused() {
    let rows = [
        (vec![], "not a DER-encoded"),
        (vec![0x30, 0x03, 1, 2, 3], "not a DER-encoded"),
        (
            [self_signed(&ca("root")).to_vec(), vec![0]].concat(),
            "bytes follow",
        ),
        (vec![0; 20_000], "20000 bytes long"),
    ];
    for (der, reason) in rows {
        let error = bundle("td", &[der.into()]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn case_44_more_than_sixteen_authorities_are_refused_and_repetitions_are_not_counted() {
    let key = KeyPair::generate().unwrap();
    let roots: Vec<CertificateDer<'static>> = (0..=MAX_AUTHORITIES)
        .map(|n| {
            let mut params = ca("root");
            params.serial_number = Some((n as u64 + 1).into());
            params.self_signed(&key).unwrap().into()
        })
        .collect();
    let error = bundle("td", &roots).unwrap_err();
    assert_eq!(error, BundleError::TooManyAuthorities(MAX_AUTHORITIES + 1));
    let repeated = [&roots[..MAX_AUTHORITIES], &roots[..MAX_AUTHORITIES]].concat();
    assert_eq!(
        bundle("td", &repeated).unwrap().authorities().len(),
        MAX_AUTHORITIES
    );
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let roots = [self_signed(&ca("one")), self_signed(&ca("two"))];
    let written = bundle("td", &roots).unwrap();
    let text = format!("one and two\n{}trailing notes\n", written.to_pem());
    let read = TrustBundle::from_pem(TrustDomain::parse("td").unwrap(), &text).unwrap();
    assert_eq!(read.authorities(), written.authorities());
    assert_eq!((written.sequence(), read.sequence()), (1, 0));
    assert!(text.lines().all(|line| line.len() <= 64));
}

#[test]
fn a_text_without_certificates_is_an_error_and_not_an_empty_bundle() {
    let trust_domain = TrustDomain::parse("td").unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for text in ["", "not PEM", key] {
        let result = TrustBundle::from_pem(trust_domain.clone(), text);
        assert_eq!(result, Err(BundleError::NoCertificate), "{text:?}");
    }
    let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
    let result = TrustBundle::from_pem(trust_domain, cut);
    assert!(matches!(result, Err(BundleError::Pem(_))), "{result:?}");
}

#[test]
fn a_bundle_is_usable_while_one_authority_is_valid() {
    let mut ended = ca("ended");
    ended.not_after = at(-1);
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let ended = self_signed(&ended);
    let both = bundle("td", &[ended.clone(), self_signed(&ca("current"))]).unwrap();
    assert!(both.is_usable_at(now));
    assert!(!both.is_usable_at(now + Duration::from_secs(25 * HOUR as u64)));
    assert!(!bundle("td", &[ended]).unwrap().is_usable_at(now));
    assert!(!bundle("td", &[]).unwrap().is_usable_at(now));
}

#[test]
fn each_trust_domain_has_one_bundle() {
    let root = Scenario::new().build().1;
    let td = TrustDomain::parse("td").unwrap();
    let mut bundles = TrustBundles::from(bundle("td", &[root]).unwrap());
    assert_eq!(bundles.get(&td).unwrap().authorities().len(), 1);
    assert!(
        bundles
            .get(&TrustDomain::parse("td.evil").unwrap())
            .is_none()
    );
    let earlier = bundles.insert(bundle("td", &[]).unwrap()).unwrap();
    assert_eq!(earlier.authorities().len(), 1);
    assert!(bundles.get(&td).unwrap().authorities().is_empty());
    bundles.remove(&td);
    assert!(bundles.is_empty() && bundles.get(&td).is_none());
}
