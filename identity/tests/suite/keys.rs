//! Private keys: forms, and that they do not leak.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384};
use sidewind_identity::{KeyError, PrivateKey};

use crate::support::Mesh;

/// The key in the SEC 1 form (RFC 5915) that `openssl ecparam -name prime256v1 -genkey -noout` writes.
fn sec1_pem(key: &PrivateKey) -> String {
    const CURVE: [u8; 12] = [0xa0, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let pkcs8 = key.to_pkcs8_der();
    let spki = key.public_key_der();
    let der = [
        &[0x30, 0x77, 2, 1, 1, 4, 0x20],
        secret_scalar(&pkcs8),
        &CURVE,
        &[0xa1, 0x44, 3, 0x42, 0],
        &spki[spki.len() - 65..],
    ];
    let base64 = STANDARD.encode(der.concat());
    format!("-----BEGIN EC PRIVATE KEY-----\n{base64}\n-----END EC PRIVATE KEY-----\n")
}

/// The private scalar of a P-256 key in PKCS #8 form: 32 bytes after a fixed header.
fn secret_scalar(pkcs8: &[u8]) -> &[u8] {
    &pkcs8[36..68]
}

#[test]
fn a_key_is_read_as_it_was_written() {
    let key = PrivateKey::generate().unwrap();
    let from_der = PrivateKey::from_pkcs8_der(&key.to_pkcs8_der()).unwrap();
    let from_pem = PrivateKey::from_pem(&key.to_pkcs8_pem()).unwrap();
    assert_eq!(from_der.public_key_der(), key.public_key_der());
    assert_eq!(from_pem.public_key_der(), key.public_key_der());
    assert_ne!(
        PrivateKey::generate().unwrap().public_key_der(),
        key.public_key_der()
    );
}

#[test]
fn a_key_in_sec1_form_is_read_too_and_written_as_pkcs8() {
    let key = PrivateKey::generate().unwrap();
    let from_sec1 = PrivateKey::from_pem(&sec1_pem(&key)).unwrap();
    assert_eq!(from_sec1.public_key_der(), key.public_key_der());
    assert_eq!(from_sec1.to_pkcs8_der(), key.to_pkcs8_der());
    assert!(
        from_sec1
            .to_pkcs8_pem()
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
}

#[test]
fn other_keys_and_garbage_are_refused() {
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(matches!(
        PrivateKey::from_pkcs8_der(p384.serialized_der()),
        Err(KeyError::NotP256)
    ));
    assert!(matches!(
        PrivateKey::from_pem(&p384.serialize_pem()),
        Err(KeyError::NotP256)
    ));
    assert!(matches!(
        PrivateKey::from_pkcs8_der(&[1, 2, 3]),
        Err(KeyError::NotP256)
    ));
    for text in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        assert!(
            matches!(PrivateKey::from_pem(text), Err(KeyError::NoPem)),
            "{text:?}"
        );
    }
}

#[test]
fn no_debug_form_shows_a_key() {
    let mesh = Mesh::new("td");
    let svid = mesh.svid("/w");
    let keys = [svid.key(), mesh.root.key(), mesh.signing.key()];
    let texts = [
        format!("{:?}", svid.key()),
        format!("{svid:#?}"),
        format!("{:#?}", mesh.root),
        format!("{:#?}", mesh.signing),
    ];
    for key in keys {
        let der = key.to_pkcs8_der();
        let secret = secret_scalar(&der);
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let decimal = format!("{secret:?}");
        let decimal = decimal.trim_matches(['[', ']']);
        for text in &texts {
            let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                !text.contains(&hex) && !squeezed.contains(decimal),
                "{text}"
            );
        }
    }
    assert_eq!(texts[0], "PrivateKey(P-256, redacted)");
}

#[test]
fn a_request_carries_no_name() {
    use x509_parser::prelude::FromDer as _;
    let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
    let (rest, parsed) =
        x509_parser::certification_request::X509CertificationRequest::from_der(&csr).unwrap();
    assert!(rest.is_empty());
    assert_eq!(
        parsed.certification_request_info.subject.iter_rdn().count(),
        0
    );
    assert!(
        parsed
            .requested_extensions()
            .is_none_or(|mut all| all.next().is_none())
    );
    assert!(csr.len() < 400);
}
