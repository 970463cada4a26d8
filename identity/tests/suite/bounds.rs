//! What is at a bound is taken, and what is one past it is not: sizes of chains, names beside the ID, clocks that are off.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ED25519};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::CertificateDer;
use sidewind_identity::tls::{self, ClientAuth};
use sidewind_identity::{
    MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, PrivateKey, Svid, TrustBundles, Usage, VerifyError,
    peer_identity,
};
use time::OffsetDateTime;

use crate::scenario::{
    HOUR, Scenario, TRUST_DOMAIN, WORKLOAD, bundle, ca, dns, extension, leaf, name, verify_at,
};
use crate::support::{self, Mesh, handshake};

/// A CA certificate of exactly so many bytes that nothing else is signed by.
fn stray_authority(bytes: usize) -> CertificateDer<'static> {
    // Its signatures are of one length.
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let of = |filler: usize| -> CertificateDer<'static> {
        let mut params = ca("stray");
        params.serial_number = Some(vec![1].into());
        let filler = extension(&[1, 3, 6, 1, 4, 1, 99999, 2], false, vec![0; filler]);
        params.custom_extensions.push(filler);
        params.self_signed(&key).unwrap().into()
    };
    // Long enough that every length is written in two bytes.
    let overhead = of(1000).len() - 1000;
    let certificate = of(bytes - overhead);
    assert_eq!(certificate.len(), bytes);
    certificate
}

#[test]
fn a_chain_of_as_many_bytes_as_are_taken_is_verified_and_one_byte_more_is_not() {
    let scenario = Scenario::new();
    let (chain, root) = scenario.build();
    let bundles = TrustBundles::from(bundle(TRUST_DOMAIN, &[root]).unwrap());
    let sent: usize = chain.iter().map(|der| der.len()).sum();
    let verify = |bytes: usize| {
        let mut chain = chain.clone();
        chain.push(stray_authority(bytes - sent));
        assert_eq!(chain.iter().map(|der| der.len()).sum::<usize>(), bytes);
        verify_at(&chain, &bundles, Usage::Client, scenario.now)
    };
    assert_eq!(verify(MAX_CHAIN_BYTES).unwrap().as_str(), WORKLOAD);
    assert_eq!(
        verify(MAX_CHAIN_BYTES + 1),
        Err(VerifyError::ChainTooLarge(MAX_CHAIN_BYTES + 1))
    );
}

#[test]
fn as_many_certificates_as_are_taken_are_verified_and_one_more_is_not() {
    let scenario = Scenario::new();
    let (chain, root) = scenario.build();
    let bundles = TrustBundles::from(bundle(TRUST_DOMAIN, &[root]).unwrap());
    let verify = |count: usize| {
        let mut chain = chain.clone();
        chain.resize_with(count, || stray_authority(2000));
        verify_at(&chain, &bundles, Usage::Server, scenario.now)
    };
    assert_eq!(verify(MAX_CHAIN_CERTIFICATES).unwrap().as_str(), WORKLOAD);
    assert_eq!(
        verify(MAX_CHAIN_CERTIFICATES + 1),
        Err(VerifyError::TooManyCertificates(MAX_CHAIN_CERTIFICATES + 1))
    );
}

#[test]
fn a_clock_that_is_off_by_seconds_believes_and_one_that_is_off_by_hours_or_days_does_not() {
    let now = SystemTime::now();
    let mesh = Mesh::at("td", now);
    let chain = mesh.svid_at("/w", now).chain().to_vec();
    // The other side's clock against the authority's, just after a certificate was issued for an hour.
    for (offset, expected) in [
        (-3 * 24 * HOUR, "begins in"),
        (-HOUR, "begins in"),
        (-31, "begins in"),
        (-10, ""),
        (0, ""),
        (10, ""),
        (HOUR - 10, ""),
        (HOUR + 1, "ended 1 s ago"),
        (3 * 24 * HOUR, "ended"),
    ] {
        let shift = Duration::from_secs(offset.unsigned_abs());
        let theirs = if offset < 0 { now - shift } else { now + shift };
        for usage in [Usage::Client, Usage::Server] {
            match verify_at(&chain, &mesh.bundles, usage, theirs) {
                Ok(id) => assert!(expected.is_empty(), "{offset} s: {id} was believed"),
                Err(error) => {
                    let text = error.to_string();
                    let told = !expected.is_empty() && text.contains(expected);
                    assert!(told, "{offset} s: {text}");
                }
            }
        }
    }
}

#[test]
fn an_authority_whose_clock_jumped_signs_nothing_wrong() {
    let now = SystemTime::now();
    let mesh = Mesh::at("td", now);
    let signing_life = mesh.signing.not_after().duration_since(now).unwrap();
    let day = Duration::from_secs(86_400);
    // Days before the signing certificate began, all of its life, and days after its end.
    for step in 0..200_u32 {
        let then = now - 3 * day + (signing_life + 6 * day) / 200 * step;
        let signed = mesh
            .signing
            .sign(&support::csr(), &mesh.template("/w"), then);
        let Ok(chain) = signed else {
            let outside = then < mesh.signing.not_before()
                || then + mesh.template("/w").ttl > mesh.signing.not_after();
            assert!(outside, "{then:?}: {signed:?}");
            continue;
        };
        // What it signs is valid by its own clock, and inside its issuer's life by anybody's.
        let id = verify_at(&chain, &mesh.bundles, Usage::Server, then);
        assert_eq!(id.unwrap().as_str(), "spiffe://td/w");
        let leaf = support::parse(&chain[0]);
        let validity = leaf.validity();
        let issuer = support::parse(&chain[1]);
        assert!(validity.not_before >= issuer.validity().not_before);
        assert!(validity.not_after <= issuer.validity().not_after);
    }
}

/// An SVID by a CA that puts more names into certificates than Sidewind's does.
fn svid_with_other_names(issuer: &Issuer<'_, KeyPair>) -> Svid {
    let key = PrivateKey::generate().unwrap();
    let public = KeyPair::try_from(key.to_pkcs8_der().as_slice()).unwrap();
    let mut params = lasting(leaf("spiffe://td/ns/a/sa/worker"));
    params.distinguished_name = name("spiffe://td/ns/a/sa/admin");
    for other in ["admin.a.svc", "control-plane"] {
        params.subject_alt_names.push(dns(other));
    }
    let certificate = params.signed_by(&public, issuer).unwrap();
    Svid::new(vec![certificate.into()], key).unwrap()
}

/// Valid now, and not at the moment of the scenarios.
fn lasting(mut params: CertificateParams) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(30);
    params.not_after = now + Duration::from_secs(3600);
    params
}

#[test]
fn a_common_name_or_dns_name_makes_nobody_somebody_else() {
    let key = KeyPair::generate().unwrap();
    let root = lasting(ca("root"));
    let certificate: CertificateDer<'_> = root.self_signed(&key).unwrap().into();
    let bundles = std::sync::Arc::new(TrustBundles::from(
        bundle(TRUST_DOMAIN, &[certificate]).unwrap(),
    ));
    let svid = svid_with_other_names(&Issuer::new(root, key));
    let client = tls::client_config(&svid, &bundles, &[]).unwrap();
    let server = tls::server_config(&svid, &bundles, &[], ClientAuth::Required).unwrap();
    let mut from = ClientConnection::new(client, tls::server_name()).unwrap();
    let mut to = ServerConnection::new(server).unwrap();
    handshake(&mut from, &mut to).unwrap();
    for certificates in [from.peer_certificates(), to.peer_certificates()] {
        let peer = peer_identity(certificates).unwrap();
        assert_eq!(peer.id.as_str(), "spiffe://td/ns/a/sa/worker");
    }
}
