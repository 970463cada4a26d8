//! Signing requests from clients that may be hostile.

use std::time::SystemTime;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use sidewind_identity::PrivateKey;
use sidewind_identity::authority::{MAX_CSR_BYTES, SignError};
use x509_parser::extensions::GeneralName;

use crate::scenario::{SUBJECT_ALTERNATIVE_NAME, dns, extension, name, uri, uri_names_der};
use crate::support::{HOUR, Mesh, csr, parse, seconds};

fn csr_of(params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn a_request_that_smuggles_powers_gets_a_plain_leaf() {
    let mesh = Mesh::new("td");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = name("admin");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.subject_alt_names = vec![dns("control-plane"), uri("spiffe://td/w")];
    let now = SystemTime::now();
    let chain = mesh
        .signing
        .sign(&csr_of(&params, &key), &mesh.template("/w"), now)
        .unwrap();

    let leaf = parse(&chain[0]);
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter_rdn().count(), 0);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1);
    assert!(
        !leaf
            .extended_key_usage()
            .unwrap()
            .unwrap()
            .value
            .code_signing
    );
    let names = leaf.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names, [GeneralName::URI("spiffe://td/w")]);
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(now + HOUR));
}

#[test]
fn a_request_that_names_another_identity_is_refused() {
    let mesh = Mesh::new("td");
    let key = KeyPair::generate().unwrap();
    let ask = |params: &CertificateParams| {
        mesh.signing.sign(
            &csr_of(params, &key),
            &mesh.template("/w"),
            SystemTime::now(),
        )
    };
    let mut same = CertificateParams::default();
    same.subject_alt_names = vec![uri("spiffe://td/w")];
    assert!(ask(&same).is_ok());

    for other in [
        "spiffe://td/scheduler",
        "spiffe://td/w/",
        "spiffe://td",
        "https://td/w",
        "w\n",
    ] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(other)];
        let error = ask(&params).unwrap_err();
        assert!(
            matches!(error, SignError::CsrNamesOtherId { .. }),
            "{other:?}: {error}"
        );
        assert!(!error.to_string().contains('\n'));
        // Also behind the right one.
        params.subject_alt_names = vec![uri("spiffe://td/w"), uri(other)];
        assert!(matches!(
            ask(&params),
            Err(SignError::CsrNamesOtherId { .. })
        ));
    }
    let mut no_text = CertificateParams::default();
    let names = uri_names_der(&[b"spiffe://td/\xff"]);
    no_text.custom_extensions = vec![extension(SUBJECT_ALTERNATIVE_NAME, false, names)];
    assert!(matches!(
        ask(&no_text),
        Err(SignError::CsrNamesOtherId { .. })
    ));
}

#[test]
fn a_request_for_another_kind_of_key_is_refused_and_told_so() {
    let mesh = Mesh::new("td");
    let rows = [
        (&PKCS_ECDSA_P384_SHA384, "ECDSA P-384"),
        (&PKCS_ED25519, "Ed25519"),
        (&PKCS_RSA_SHA256, "RSA"),
    ];
    for (algorithm, kind) in rows {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = csr_of(&CertificateParams::default(), &key);
        let error = mesh
            .signing
            .sign(&csr, &mesh.template("/w"), SystemTime::now())
            .unwrap_err();
        assert!(
            matches!(&error, SignError::CsrKeyType(found) if found == kind),
            "{error}"
        );
        assert!(error.to_string().contains("only ECDSA P-256"));
    }
}

#[test]
fn a_request_whose_signature_is_wrong_is_refused() {
    let mesh = Mesh::new("td");
    let mut csr = csr();
    *csr.last_mut().unwrap() ^= 1;
    let result = mesh
        .signing
        .sign(&csr, &mesh.template("/w"), SystemTime::now());
    assert!(matches!(result, Err(SignError::CsrSignature)), "{result:?}");
}

#[test]
fn a_request_with_anything_after_it_or_too_much_in_it_is_refused() {
    let mesh = Mesh::new("td");
    let sign = |csr: &[u8]| {
        mesh.signing
            .sign(csr, &mesh.template("/w"), SystemTime::now())
    };
    let trailing = [csr(), vec![0]].concat();
    assert!(matches!(
        sign(&trailing),
        Err(SignError::CsrTrailingBytes(1))
    ));

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let padded = |bytes: usize| {
        let mut params = CertificateParams::default();
        let padding = extension(&[1, 3, 6, 1, 4, 1, 99999, 1], false, vec![0; bytes]);
        params.custom_extensions = vec![padding];
        csr_of(&params, &key)
    };
    let overhead = padded(8000).len() - 8000;
    // ECDSA signatures differ by a few bytes, so sizes around the wanted one are tried until it is hit.
    let of_exactly = |length: usize| {
        let mut candidates = (0..1000).map(|n| padded(length - overhead - 4 + n % 9));
        candidates.find(|csr| csr.len() == length).unwrap()
    };
    assert!(sign(&of_exactly(MAX_CSR_BYTES)).is_ok());
    let one_past = sign(&of_exactly(MAX_CSR_BYTES + 1));
    assert!(matches!(one_past, Err(SignError::CsrTooLarge(length)) if length == MAX_CSR_BYTES + 1));
    assert!(matches!(
        sign(&padded(1 << 20)),
        Err(SignError::CsrTooLarge(_))
    ));
}

#[test]
fn a_request_with_any_byte_changed_certifies_no_other_key_and_a_cut_one_none() {
    let mesh = Mesh::new("td");
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_der().unwrap();
    let template = mesh.template("/w");
    for position in 0..csr.len() {
        let mut changed = csr.clone();
        changed[position] ^= 1;
        // The tag of the signature algorithm is outside what is signed, and the parser is lenient about it.
        if let Ok(chain) = mesh.signing.sign(&changed, &template, SystemTime::now()) {
            assert_eq!(
                parse(&chain[0]).public_key().raw,
                key.public_key_der(),
                "{position}"
            );
        }
        let cut = &csr[..position];
        assert!(
            mesh.signing
                .sign(cut, &template, SystemTime::now())
                .is_err(),
            "cut at {position}"
        );
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_authority_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        thread_local!(static MESH: Mesh = Mesh::new("td"));
        let refused = MESH.with(|mesh| {
            mesh.signing.sign(&bytes, &mesh.template("/w"), SystemTime::now()).is_err()
        });
        prop_assert!(refused);
    }
}
