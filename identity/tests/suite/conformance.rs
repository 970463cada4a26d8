//! X.509-SVID conformance: what a chain must be to be believed, one named row for each way to spoil it.
//!
//! The numbers are those of the project's table of cases; where one has several forms, letters follow. Not here,
//! because they are not about one chain: 27 (refused when signing, in `authority.rs`), 38 and 39 (refused when the
//! bundle is loaded, in `bundles.rs`) and 47 (resumption, in `handshake.rs`).

use std::time::{Duration, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, PublicKeyData, SanType, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use sidewind_identity::{MAX_CHAIN_BYTES, TrustBundles, Usage, VerifyError};

use crate::scenario::{
    HOUR, KEY_USAGE, NOW, SUBJECT_ALTERNATIVE_NAME, Scenario, WORKLOAD, at, bundle, ca, dns,
    extension, leaf, name, uri, uri_names_der, verify_at,
};

/// What a row expects, for each use of the certificate.
struct Verdict {
    server: Result<(), &'static str>,
    client: Result<(), &'static str>,
}

const ACCEPT: Verdict = Verdict {
    server: Ok(()),
    client: Ok(()),
};

/// Refused either way, with a reason that contains this text.
const fn reject(reason: &'static str) -> Verdict {
    Verdict {
        server: Err(reason),
        client: Err(reason),
    }
}

fn check(spoil: impl Fn(&mut Scenario), expected: Verdict) {
    let uses = [
        (Usage::Server, expected.server),
        (Usage::Client, expected.client),
    ];
    for (usage, expected) in uses {
        let mut scenario = Scenario::new();
        spoil(&mut scenario);
        match (scenario.verify(usage), expected) {
            (Ok(id), Ok(())) => assert_eq!(id.as_str(), WORKLOAD),
            (Err(error), Err(reason)) => {
                let text = error.to_string();
                assert!(
                    text.contains(reason),
                    "{usage:?}: '{text}' does not say '{reason}'"
                );
            }
            (actual, expected) => panic!("{usage:?}: expected {expected:?}, got {actual:?}"),
        }
    }
}

/// Each row is a test: its name, how it spoils a good chain, the verdict.
macro_rules! rows {
    ($($(#[$meta:meta])* $name:ident: $spoil:expr => $verdict:expr;)+) => {
        $($(#[$meta])* #[test] fn $name() { check($spoil, $verdict); })+
    };
}

rows! {
    case_01_a_good_leaf: |_| {} => ACCEPT;
    case_02_a_leaf_that_is_a_ca: |s| s.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
        => reject("CA:FALSE");
    case_03_a_leaf_without_basic_constraints: |s| s.leaf.is_ca = IsCa::NoCa => reject("CA:FALSE");
    case_04_a_leaf_that_may_sign_certificates:
        |s| s.leaf.key_usages.push(KeyUsagePurpose::KeyCertSign) => reject("keyUsage");
    case_05_a_leaf_that_may_sign_revocations:
        |s| s.leaf.key_usages.push(KeyUsagePurpose::CrlSign) => reject("keyUsage");
    case_06_a_leaf_that_may_not_sign_handshakes:
        |s| s.leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement] => reject("keyUsage");
    case_07_a_leaf_without_key_usage: |s| s.leaf.key_usages.clear() => reject("keyUsage");
    case_08_a_leaf_whose_key_usage_is_not_critical: |s| {
        s.leaf.key_usages.clear();
        // BIT STRING with digitalSignature alone.
        s.leaf.custom_extensions.push(extension(KEY_USAGE, false, vec![3, 2, 7, 0x80]));
    } => reject("keyUsage");
    case_08b_a_leaf_with_key_agreement_besides:
        |s| s.leaf.key_usages.push(KeyUsagePurpose::KeyAgreement) => ACCEPT;
    case_09_a_leaf_without_extended_key_usage: |s| s.leaf.extended_key_usages.clear() => ACCEPT;
    case_10_and_11_a_leaf_for_servers_alone:
        |s| s.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
        => reject("extendedKeyUsage");
    case_11b_a_leaf_for_clients_alone:
        |s| s.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]
        => reject("extendedKeyUsage");
    case_12_a_leaf_for_any_purpose_and_neither_by_name:
        |s| s.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any] => reject("extendedKeyUsage");
    case_13a_two_spiffe_ids:
        |s| s.leaf.subject_alt_names.push(uri("spiffe://td/other")) => reject("2 URI names");
    case_13b_a_spiffe_id_and_a_web_address:
        |s| s.leaf.subject_alt_names.push(uri("https://td/other")) => reject("2 URI names");
    case_13c_the_same_spiffe_id_twice:
        |s| s.leaf.subject_alt_names.push(uri(WORKLOAD)) => reject("2 URI names");
    case_14a_a_second_uri_name_that_is_no_text: |s| {
        s.leaf.subject_alt_names.clear();
        let names = uri_names_der(&[WORKLOAD.as_bytes(), b"spiffe://td/\xff"]);
        s.leaf.custom_extensions.push(extension(SUBJECT_ALTERNATIVE_NAME, true, names));
    } => reject("2 URI names");
    case_14b_the_only_uri_name_is_no_text: |s| {
        s.leaf.subject_alt_names.clear();
        let names = uri_names_der(&[b"spiffe://td/\xff"]);
        s.leaf.custom_extensions.push(extension(SUBJECT_ALTERNATIVE_NAME, true, names));
    } => reject("not text");
    case_15a_no_alternative_name: |s| s.leaf.subject_alt_names.clear() => reject("no URI name");
    case_15b_a_dns_name_alone:
        |s| s.leaf.subject_alt_names = vec![dns("w.a.svc")] => reject("no URI name");
    case_15c_a_spiffe_id_as_common_name: |s| {
        s.leaf.distinguished_name = name(WORKLOAD);
        s.leaf.subject_alt_names = vec![dns("w.a.svc")];
    } => reject("no URI name");
    case_16_a_web_address_alone:
        |s| s.leaf.subject_alt_names = vec![uri("https://td/ns/a/sa/w")] => reject("spiffe://");
    case_17_the_id_of_the_trust_domain:
        |s| s.leaf.subject_alt_names = vec![uri("spiffe://td")] => reject("a path must follow");
    case_18a_an_id_with_nul:
        |s| s.leaf.subject_alt_names = vec![uri("spiffe://td/w\0x")] => reject("0x00");
    case_18b_an_id_with_newline:
        |s| s.leaf.subject_alt_names = vec![uri("spiffe://td/w\n")] => reject("0x0a");
    case_18c_an_id_with_percent:
        |s| s.leaf.subject_alt_names = vec![uri("spiffe://td/%77")] => reject("0x25");
    case_18d_an_id_in_upper_case:
        |s| s.leaf.subject_alt_names = vec![uri("spiffe://TD/w")] => reject("0x54");
    case_18e_an_id_with_a_relative_segment:
        |s| s.leaf.subject_alt_names = vec![uri("spiffe://td/x/../w")] => reject("'..'");
    case_19_dns_and_ip_names_besides: |s| {
        s.leaf.subject_alt_names.push(dns("w.a.svc"));
        s.leaf.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
    } => ACCEPT;
    case_19b_another_spiffe_id_as_common_name:
        |s| s.leaf.distinguished_name.push(DnType::CommonName, "spiffe://td/admin") => ACCEPT;
    case_20_an_empty_subject_and_a_name_that_is_not_critical: |s| {
        s.leaf.subject_alt_names.clear();
        let names = uri_names_der(&[WORKLOAD.as_bytes()]);
        s.leaf.custom_extensions.push(extension(SUBJECT_ALTERNATIVE_NAME, false, names));
    } => reject("must be critical");
    case_20b_a_subject_and_a_name_that_is_not_critical:
        |s| s.leaf.distinguished_name = name("w") => ACCEPT;
    case_21_two_alternative_name_extensions: |s| {
        let names = uri_names_der(&[b"spiffe://td/other"]);
        s.leaf.custom_extensions.push(extension(SUBJECT_ALTERNATIVE_NAME, true, names));
    } => reject("twice");
    case_22_an_unknown_critical_extension: |s| {
        let unknown = extension(&[1, 3, 6, 1, 4, 1, 99999, 1], true, vec![5, 0]);
        s.leaf.custom_extensions.push(unknown);
    } => reject("UnsupportedCriticalExtension");
    case_22b_an_unknown_extension_that_is_not_critical: |s| {
        let unknown = extension(&[1, 3, 6, 1, 4, 1, 99999, 1], false, vec![5, 0]);
        s.leaf.custom_extensions.push(unknown);
    } => ACCEPT;
    case_23a_a_byte_after_the_leaf: |s| s.spoil = |chain| {
        chain[0] = CertificateDer::from([chain[0].as_ref(), &[0]].concat());
    } => reject("bytes follow");
    case_23b_a_byte_after_the_intermediate: |s| s.spoil = |chain| {
        chain[1] = CertificateDer::from([chain[1].as_ref(), &[0]].concat());
    } => reject("TrailingData");
    case_23c_no_certificate_at_all: |s| s.spoil = |chain| chain[0] = CertificateDer::from(vec![0x30])
        => reject("not a DER-encoded");
    case_24a_an_expired_leaf: |s| s.leaf.not_after = at(-1) => reject("ended 1 s ago");
    case_24b_a_leaf_not_yet_valid: |s| s.leaf.not_before = at(10) => reject("begins in 10 s");
    case_24c_a_leaf_that_ends_before_it_begins: |s| {
        s.leaf.not_before = at(10);
        s.leaf.not_after = at(-10);
    } => reject("InvalidCertValidity");
    case_25a_a_leaf_in_its_last_second: |s| s.leaf.not_after = at(0) => ACCEPT;
    case_25b_a_leaf_late_in_its_last_second: |s| {
        s.leaf.not_after = at(0);
        s.root.not_after = at(0);
        s.now = UNIX_EPOCH + Duration::from_millis(NOW * 1000 + 999);
    } => ACCEPT;
    case_26a_a_leaf_valid_for_ten_years: |s| {
        s.leaf.not_after = at(10 * 365 * 24 * HOUR);
        s.root.not_after = at(20 * 365 * 24 * HOUR);
        s.intermediates[0].not_after = at(20 * 365 * 24 * HOUR);
    } => reject("87600 h");
    case_26b_a_leaf_valid_for_a_day: |s| s.leaf.not_after = at(24 * HOUR) => ACCEPT;
    case_29_an_issuer_of_the_same_name_with_another_key:
        |s| s.impostor_root = true => reject("InvalidSignature");
    case_30_the_intermediate_is_missing: |s| s.withheld = 1 => reject("signed by 'CN=intermediate 1'");
    case_31_an_intermediate_that_may_not_sign_certificates:
        |s| s.intermediates[0].key_usages = vec![KeyUsagePurpose::DigitalSignature]
        => reject("keyCertSign");
    case_31b_an_intermediate_without_key_usage:
        |s| s.intermediates[0].key_usages.clear() => reject("keyCertSign");
    case_32_a_leaf_used_as_intermediate: |s| {
        s.intermediates[0] = leaf("spiffe://td/ns/a/sa/signer");
        s.intermediates[0].distinguished_name = name("signer");
    } => reject("EndEntityUsedAsCa");
    case_33_a_path_longer_than_an_intermediate_allows: |s| {
        s.with_intermediates(2);
        s.intermediates[0].is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    } => reject("PathLenConstraintViolated");
    case_34_a_path_longer_than_the_root_allows:
        |s| s.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
        => reject("more intermediates than");
    case_34b_a_path_as_long_as_the_root_allows:
        |s| s.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)) => ACCEPT;
    case_35_an_expired_intermediate:
        |s| s.intermediates[0].not_after = at(-5) => reject("ended 5 s ago");
    case_36_an_intermediate_for_servers_alone:
        |s| s.intermediates[0].extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
        => Verdict { server: Ok(()), client: Err("RequiredEkuNotFound") };
    case_37a_an_expired_root: |s| s.root.not_after = at(-1) => reject("'CN=root' is not valid");
    case_37b_a_root_not_yet_valid: |s| s.root.not_before = at(1) => reject("'CN=root' is not valid");
    // The standard allows it; rustls-webpki refuses every URI constraint, so none may be issued.
    case_40_a_uri_name_constraint_that_the_leaf_meets: |s| {
        let extension_content = b"\x30\x08\xa0\x06\x30\x04\x86\x02td".to_vec();
        let constraint = extension(&[2, 5, 29, 30], true, extension_content);
        s.intermediates[0].custom_extensions.push(constraint);
    } => reject("NameConstraintViolation");
    case_41_a_dns_name_constraint_and_no_dns_name:
        |s| s.intermediates[0].name_constraints = only_dns("a.svc") => ACCEPT;
    case_42a_a_dns_name_outside_the_constraint: |s| {
        s.intermediates[0].name_constraints = only_dns("a.svc");
        s.leaf.subject_alt_names.push(dns("w.evil.example"));
    } => reject("NameConstraintViolation");
    case_42b_a_dns_name_inside_the_constraint: |s| {
        s.intermediates[0].name_constraints = only_dns("a.svc");
        s.leaf.subject_alt_names.push(dns("w.a.svc"));
    } => ACCEPT;
    case_43a_no_intermediate: |s| s.with_intermediates(0) => ACCEPT;
    case_43b_six_intermediates: |s| s.with_intermediates(6) => ACCEPT;
    case_43c_seven_intermediates: |s| s.with_intermediates(7) => reject("MaximumPathDepthExceeded");
    case_45a_an_intermediate_of_another_trust_domain:
        |s| s.intermediates[0].subject_alt_names = vec![uri("spiffe://other")] => reject("spiffe://td alone");
    case_45b_an_intermediate_with_a_path:
        |s| s.intermediates[0].subject_alt_names = vec![uri("spiffe://td/ca")] => reject("spiffe://td alone");
    case_45c_an_intermediate_with_two_ids:
        |s| s.intermediates[0].subject_alt_names.push(uri("spiffe://td")) => reject("spiffe://td alone");
    case_45d_an_intermediate_without_an_id:
        |s| s.intermediates[0].subject_alt_names.clear() => ACCEPT;
    case_46a_an_empty_chain: |s| s.spoil = Vec::clear => reject("presented no certificate");
    case_46b_nine_certificates: |s| s.with_intermediates(8) => reject("9 certificates");
    case_46c_too_many_bytes: |s| s.spoil = |chain| {
        chain.push(CertificateDer::from(vec![0; MAX_CHAIN_BYTES]));
    } => reject("bytes long");
    case_46d_an_rsa_key_of_16384_bits: |s| s.leaf_key = Some(rsa_key(16384)) => reject("RSA of 2048 to 4096");
    case_46e_an_rsa_key_of_1024_bits: |s| s.leaf_key = Some(rsa_key(1024)) => reject("RSA of 2048 to 4096");
    case_46f_an_rsa_key_of_4096_bits: |s| s.leaf_key = Some(rsa_key(4096)) => ACCEPT;
    case_46g_a_p384_key: |s| s.leaf_key = Some(key(&PKCS_ECDSA_P384_SHA384)) => ACCEPT;
    case_46h_an_ed25519_key: |s| s.leaf_key = Some(key(&PKCS_ED25519)) => ACCEPT;
    case_46i_a_p521_key: |s| s.leaf_key = Some(key(&PKCS_ECDSA_P521_SHA512)) => reject("public key");
}

fn only_dns(suffix: &str) -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(suffix.to_owned())],
        excluded_subtrees: Vec::new(),
    })
}

fn key(algorithm: &'static SignatureAlgorithm) -> Box<dyn PublicKeyData> {
    Box::new(KeyPair::generate_for(algorithm).unwrap())
}

/// An RSA public key without a private one: making one of 16384 bits takes minutes.
struct RsaPublicKey(Vec<u8>);

impl PublicKeyData for RsaPublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

fn rsa_key(bits: usize) -> Box<dyn PublicKeyData> {
    let integer = |bytes: &[u8]| tlv(2, bytes);
    let modulus = integer(&[&[0], vec![0xc5; bits / 8].as_slice()].concat());
    let exponent = integer(&[1, 0, 1]);
    Box::new(RsaPublicKey(tlv(0x30, &[modulus, exponent].concat())))
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    let header = [tag, 0x84, length[0], length[1], length[2], length[3]];
    let header: &[u8] = match content.len() {
        0..=0x7f => &[tag, length[3]],
        0x80..=0xff => &[tag, 0x81, length[3]],
        0x100..=0xffff => &[tag, 0x82, length[2], length[3]],
        _ => &header,
    };
    [header, content].concat()
}

#[test]
fn case_28_a_trust_domain_that_vouches_for_a_member_of_another() {
    // The authority of "other" signs an ID of "td"; both bundles are known. Its root names no ID, so that only the
    // choice of the bundle stands in the way.
    let mut theirs = Scenario::new();
    theirs.root.subject_alt_names.clear();
    theirs.intermediates.clear();
    let (chain, their_root) = theirs.build();
    let (_, own_root) = Scenario::new().build();
    let apart: TrustBundles = [
        bundle("td", std::slice::from_ref(&own_root)).unwrap(),
        bundle("other", std::slice::from_ref(&their_root)).unwrap(),
    ]
    .into_iter()
    .collect();
    let pooled = TrustBundles::from(bundle("td", &[own_root, their_root]).unwrap());

    for usage in [Usage::Server, Usage::Client] {
        let verdict = verify_at(&chain, &apart, usage, theirs.now);
        let refused = matches!(
            verdict,
            Err(VerifyError::UnknownIssuer { .. } | VerifyError::Path(_))
        );
        assert!(refused, "{usage:?}: {verdict:?}");
        // Guards this test: were all authorities one pool, the same chain would pass.
        assert!(verify_at(&chain, &pooled, usage, theirs.now).is_ok());
    }
}

#[test]
fn case_28b_a_trust_domain_without_a_bundle_or_with_an_empty_one() {
    let scenario = Scenario::new();
    let (chain, _) = scenario.build();
    let none = TrustBundles::new();
    let empty = TrustBundles::from(bundle("td", &[]).unwrap());
    for bundles in [none, empty] {
        let verdict = verify_at(&chain, &bundles, Usage::Server, scenario.now);
        assert!(
            matches!(verdict, Err(VerifyError::UnknownTrustDomain(_))),
            "{verdict:?}"
        );
    }
}

#[test]
fn case_37c_an_expired_root_beside_its_renewal_with_the_same_name_and_key() {
    let scenario = Scenario::new();
    let root_key = KeyPair::generate().unwrap();
    let mut expired = ca("root");
    expired.not_after = at(-1);
    let current: CertificateDer<'_> = ca("root").self_signed(&root_key).unwrap().into();
    let expired: CertificateDer<'_> = expired.self_signed(&root_key).unwrap().into();
    let issuer = Issuer::new(ca("root"), root_key);
    let leaf_key = KeyPair::generate().unwrap();
    let chain = [leaf(WORKLOAD).signed_by(&leaf_key, &issuer).unwrap().into()];
    for roots in [[expired.clone(), current.clone()], [current, expired]] {
        let bundles = bundle("td", &roots).unwrap().into();
        assert!(verify_at(&chain, &bundles, Usage::Server, scenario.now).is_ok());
    }
}

#[test]
fn case_44_sixteen_roots_of_one_name_are_searched() {
    let scenario = Scenario::new();
    let (chain, root) = scenario.build();
    let mut roots: Vec<_> = (0..15).map(|_| Scenario::new().build().1).collect();
    roots.push(root);
    let bundles = bundle("td", &roots).unwrap().into();
    assert!(verify_at(&chain, &bundles, Usage::Client, scenario.now).is_ok());
}

#[test]
fn every_prefix_and_every_flipped_byte_of_a_chain_is_refused_without_panic() {
    let scenario = Scenario::new();
    let (chain, root) = scenario.build();
    let bundles = TrustBundles::from(bundle("td", &[root]).unwrap());
    for certificate in 0..chain.len() {
        let der = chain[certificate].to_vec();
        let check = |bytes: Vec<u8>, what: &str| {
            let mut chain = chain.clone();
            chain[certificate] = CertificateDer::from(bytes);
            let verdict = verify_at(&chain, &bundles, Usage::Server, scenario.now);
            assert!(verdict.is_err(), "certificate {certificate}, {what}");
        };
        for length in 0..der.len() {
            check(der[..length].to_vec(), "cut");
        }
        for position in 0..der.len() {
            let mut bytes = der.clone();
            bytes[position] ^= 0x01;
            check(bytes, "flipped");
        }
    }
}
