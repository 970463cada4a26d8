//! The certificate authority: what it signs, what it refuses, and how it is kept.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls_pki_types::CertificateDer;
use sidewind_identity::authority::{
    AuthorityLoadError, BACKDATE, RootAuthority, SignError, SigningAuthority, SvidTemplate,
    generate_root,
};
use sidewind_identity::{
    KeyIds, PrivateKey, SpiffeId, Svid, SvidError, TrustDomain, Usage, VerifyOptions,
    peer_identity, verify_chain,
};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use crate::scenario::{NOW, ca, extension};
use crate::support::{HOUR, Mesh, csr, parse, seconds};

#[test]
fn an_svid_says_what_its_template_says_and_nothing_else() {
    let mesh = Mesh::new("td");
    let now = SystemTime::now() + HOUR;
    let mut template = mesh.template("/ns/a/sa/w");
    template.dns_names = vec!["w.a.svc".into()];
    let chain = mesh.signing.sign(&csr(), &template, now).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], mesh.signing.chain()[0]);
    for usage in [Usage::Server, Usage::Client] {
        let id = verify_chain(&chain, &mesh.bundles, usage, now, &VerifyOptions::default());
        assert_eq!(id.as_ref(), Ok(&template.id));
    }

    let leaf = parse(&chain[0]);
    assert_eq!(leaf.subject().iter_rdn().count(), 0);
    assert_eq!(
        leaf.validity().not_before.timestamp(),
        seconds(now - BACKDATE)
    );
    assert_eq!(
        leaf.validity().not_after.timestamp(),
        seconds(now + template.ttl)
    );
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    let expected = [
        GeneralName::URI("spiffe://td/ns/a/sa/w"),
        GeneralName::DNSName("w.a.svc"),
    ];
    assert_eq!(names.value.general_names, expected);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any);
    let names_issuer_key = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::AuthorityKeyIdentifier(id) if id.key_identifier.is_some());
    let mut extensions = leaf
        .extensions()
        .iter()
        .map(|extension| extension.parsed_extension());
    assert!(extensions.any(names_issuer_key));
}

#[test]
fn serial_numbers_are_random_even_for_one_key() {
    let mesh = Mesh::new("td");
    let csr = csr();
    let mut serials: Vec<_> = (0..64)
        .map(|_| {
            let chain = mesh
                .signing
                .sign(&csr, &mesh.template("/w"), SystemTime::now());
            let serial = parse(&chain.unwrap()[0]).raw_serial().to_vec();
            assert!((14..=17).contains(&serial.len()), "{serial:?}");
            serial
        })
        .collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 64);
}

#[test]
fn a_template_that_cannot_be_signed_is_refused() {
    let mesh = Mesh::new("td");
    let sign = |spoil: &dyn Fn(&mut SvidTemplate)| {
        let mut template = mesh.template("/w");
        spoil(&mut template);
        mesh.signing
            .sign(&csr(), &template, SystemTime::now())
            .map(|_| ())
    };
    let id = |text: &str| SpiffeId::parse(text).unwrap();
    let other = sign(&|t| t.id = id("spiffe://other/w"));
    assert!(
        matches!(other, Err(SignError::OtherTrustDomain { .. })),
        "{other:?}"
    );
    let rootless = sign(&|t| t.id = id("spiffe://td"));
    assert!(
        matches!(rootless, Err(SignError::NotAWorkload(_))),
        "{rootless:?}"
    );
    for ttl in [0, 59, 24 * 3600 + 1] {
        let result = sign(&|t| t.ttl = Duration::from_secs(ttl));
        assert!(
            matches!(result, Err(SignError::Ttl { seconds }) if seconds == ttl),
            "{result:?}"
        );
    }
    for ttl in [60, 24 * 3600] {
        sign(&|t| t.ttl = Duration::from_secs(ttl)).unwrap();
    }
    for name in [
        "", "a..b", ".a", "-a", "a-", "A", "*.a", "a b", "a\n", "ü", "a_b", "a/b",
    ] {
        let result = sign(&|t| t.dns_names = vec![name.to_owned()]);
        assert!(
            matches!(result, Err(SignError::DnsName(_))),
            "{name:?}: {result:?}"
        );
    }
    let names = |count: usize| (0..count).map(|n| format!("w{n}.svc")).collect::<Vec<_>>();
    sign(&|t| t.dns_names = names(16)).unwrap();
    let many = sign(&|t| t.dns_names = names(17));
    assert!(
        matches!(many, Err(SignError::TooManyDnsNames(17))),
        "{many:?}"
    );
}

#[test]
fn case_27_nothing_outlives_its_issuer_and_the_refusal_has_the_arithmetic() {
    let now = SystemTime::now();
    let trust_domain = TrustDomain::parse("td").unwrap();
    let root = generate_root(&trust_domain, 10 * HOUR, now).unwrap();
    let beyond = root.issue_intermediate(11 * HOUR, now).unwrap_err();
    assert!(
        matches!(beyond, SignError::OutlivesIssuer { ttl: 39_600, .. }),
        "{beyond}"
    );

    // Certificates count whole seconds, so the end of "10 hours from now" may be a second away.
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(now) as u64);
    let signing = root.issue_intermediate(2 * HOUR, whole).unwrap();
    let template = SvidTemplate {
        id: SpiffeId::parse("spiffe://td/w").unwrap(),
        ttl: HOUR,
        dns_names: Vec::new(),
    };
    signing.sign(&csr(), &template, whole + HOUR).unwrap();
    let late = whole + HOUR + Duration::from_secs(1);
    let error = signing.sign(&csr(), &template, late).unwrap_err();
    assert!(
        matches!(
            error,
            SignError::OutlivesIssuer {
                ttl: 3600,
                left: 3599
            }
        ),
        "{error}"
    );
    let ended = signing
        .sign(&csr(), &template, whole + 3 * HOUR)
        .unwrap_err();
    assert!(
        matches!(ended, SignError::OutlivesIssuer { left: 0, .. }),
        "{ended}"
    );
    let early = signing.sign(&csr(), &template, whole - HOUR).unwrap_err();
    assert!(
        matches!(early, SignError::IssuerNotYetValid(3570)),
        "{early}"
    );
}

#[test]
fn an_svid_begins_no_earlier_than_its_issuer() {
    let mesh = Mesh::new("td");
    let begin = mesh.signing.not_before();
    let chain = mesh
        .signing
        .sign(&csr(), &mesh.template("/w"), begin)
        .unwrap();
    assert_eq!(
        parse(&chain[0]).validity().not_before.timestamp(),
        seconds(begin)
    );
}

#[test]
fn authorities_are_cas_of_their_trust_domain_with_names_of_their_own() {
    let mesh = Mesh::new("td");
    let another = mesh
        .root
        .issue_intermediate(HOUR, SystemTime::now())
        .unwrap();
    let other_root = Mesh::new("td").root;
    let certificates = [
        (mesh.root.certificate(), 1),
        (other_root.certificate(), 1),
        (&mesh.signing.chain()[0], 0),
        (&another.chain()[0], 0),
    ];
    let mut subjects = Vec::new();
    for (der, path_length) in certificates {
        let certificate = parse(der);
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(path_length));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
        let names = certificate
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value;
        assert_eq!(names.general_names, [GeneralName::URI("spiffe://td")]);
        subjects.push(certificate.subject().as_raw().to_vec());
    }
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects.len(), 4);
}

#[test]
fn authorities_are_read_as_they_were_written() {
    let mesh = Mesh::new("td");
    let td = || mesh.trust_domain.clone();
    let key = mesh.root.key().to_pkcs8_pem();
    let root = RootAuthority::from_pem(td(), &mesh.root.certificate_pem(), &key).unwrap();
    assert_eq!(root.certificate(), mesh.root.certificate());
    assert_eq!(root.not_after(), mesh.root.not_after());
    // What the copy signs is believed by those who know the original.
    let signing = root
        .issue_intermediate(2 * HOUR, SystemTime::now())
        .unwrap();
    let key = signing.key().to_pkcs8_pem();
    let signing = SigningAuthority::from_pem(td(), &signing.chain_pem(), &key).unwrap();
    let now = SystemTime::now();
    let chain = signing.sign(&csr(), &mesh.template("/w"), now).unwrap();
    let id = verify_chain(
        &chain,
        &mesh.bundles,
        Usage::Client,
        now,
        &VerifyOptions::default(),
    );
    assert_eq!(id.unwrap().as_str(), "spiffe://td/w");
}

#[test]
fn an_authority_with_a_wrong_certificate_or_key_is_refused() {
    let (mesh, other) = (Mesh::new("td"), Mesh::new("td"));
    let td = || mesh.trust_domain.clone();
    let certificate = mesh.root.certificate().clone();
    let result = RootAuthority::from_der(td(), certificate.clone(), other.root.key().clone());
    assert!(
        matches!(result, Err(AuthorityLoadError::OtherKey)),
        "{result:?}"
    );

    let elsewhere = TrustDomain::parse("elsewhere").unwrap();
    let result = RootAuthority::from_der(elsewhere, certificate, mesh.root.key().clone());
    assert!(
        matches!(result, Err(AuthorityLoadError::Certificate(_))),
        "{result:?}"
    );

    let svid = mesh.svid("/w");
    let result = SigningAuthority::from_der(td(), svid.chain().to_vec(), svid.key().clone());
    assert!(
        matches!(result, Err(AuthorityLoadError::Certificate(_))),
        "{result:?}"
    );
    let result = SigningAuthority::from_der(td(), Vec::new(), svid.key().clone());
    assert!(
        matches!(result, Err(AuthorityLoadError::NoCertificate)),
        "{result:?}"
    );

    let pem = mesh.root.certificate_pem();
    let result = RootAuthority::from_pem(td(), &pem, "no key");
    assert!(
        matches!(result, Err(AuthorityLoadError::Key(_))),
        "{result:?}"
    );
    let result = RootAuthority::from_pem(td(), "no certificate", "no key");
    assert!(
        matches!(result, Err(AuthorityLoadError::NoCertificate)),
        "{result:?}"
    );
}

/// A root that somebody else made, spoiled.
fn foreign_root(spoil: impl Fn(&mut CertificateParams)) -> RootAuthority {
    let key = PrivateKey::generate().unwrap();
    let rcgen_key = KeyPair::try_from(key.to_pkcs8_der().as_slice()).unwrap();
    let mut params = ca("corporate root");
    params.subject_alt_names.clear();
    spoil(&mut params);
    let certificate = params.self_signed(&rcgen_key).unwrap().into();
    RootAuthority::from_der(TrustDomain::parse("td").unwrap(), certificate, key).unwrap()
}

#[test]
fn a_root_of_an_organisation_signs_unless_it_leaves_no_room_for_an_intermediate() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    foreign_root(|_| {}).issue_intermediate(HOUR, now).unwrap();

    let no_room = foreign_root(|root| root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let error = no_room.issue_intermediate(HOUR, now).unwrap_err();
    assert!(
        error.to_string().contains("more intermediates than"),
        "{error}"
    );

    // Every peer that verifies with rustls-webpki would refuse what it signs.
    let uri_constraint = b"\x30\x08\xa0\x06\x30\x04\x86\x02td".to_vec();
    let constrained = foreign_root(|root| {
        let constraint = extension(&[2, 5, 29, 30], true, uri_constraint.clone());
        root.custom_extensions.push(constraint);
    });
    let error = constrained.issue_intermediate(HOUR, now).unwrap_err();
    assert!(
        error.to_string().contains("NameConstraintViolation"),
        "{error}"
    );
}

#[test]
fn a_signing_authority_knows_whether_it_would_be_believed() {
    let (mesh, other) = (Mesh::new("td"), Mesh::new("td"));
    let now = SystemTime::now();
    mesh.signing.check(&mesh.bundles, now).unwrap();
    assert!(matches!(
        mesh.signing.check(&other.bundles, now),
        Err(SignError::SelfCheck(_))
    ));
    let after = mesh.signing.not_after() + HOUR;
    assert!(matches!(
        mesh.signing.check(&mesh.bundles, after),
        Err(SignError::OutlivesIssuer { .. })
    ));
}

#[test]
fn an_svid_needs_its_own_key() {
    let mesh = Mesh::new("td");
    let svid = mesh.svid("/ns/a/sa/w");
    let other = PrivateKey::generate().unwrap();
    let result = Svid::new(svid.chain().to_vec(), other);
    assert!(matches!(result, Err(SvidError::OtherKey)), "{result:?}");
    let ca = Svid::new(mesh.signing.chain().to_vec(), mesh.signing.key().clone());
    assert!(matches!(ca, Err(SvidError::Chain(_))), "{ca:?}");
    assert!(matches!(
        Svid::new(Vec::new(), svid.key().clone()),
        Err(SvidError::Chain(_))
    ));

    assert_eq!(svid.id().as_str(), "spiffe://td/ns/a/sa/w");
    let life = svid.not_after().duration_since(svid.not_before()).unwrap();
    assert_eq!(life, HOUR + BACKDATE);
    assert_eq!(svid.serial_hex().len() % 2, 0);
}

#[test]
fn authorities_and_svids_may_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<RootAuthority>();
    shared::<SigningAuthority>();
    shared::<Svid>();
    shared::<PrivateKey>();
}

#[test]
fn certificates_name_the_authorities_that_signed_them_by_key_identifiers() {
    let mesh = Mesh::new("td");
    let svid = mesh.svid("/w");
    let of_leaf = KeyIds::of(&svid.chain()[0]).unwrap();
    assert_eq!(of_leaf.authority.as_deref(), Some(mesh.signing.key_id()));
    let of_signing = KeyIds::of(&svid.chain()[1]).unwrap();
    assert_eq!(of_signing.subject, mesh.signing.key_id());
    assert_eq!(of_signing.authority.as_deref(), Some(mesh.root.key_id()));
    assert_eq!(mesh.root.key_id().len(), 40);
    let expected = [mesh.root.key_id(), mesh.signing.key_id()].map(str::to_owned);
    assert_eq!(svid.authority_key_ids(), expected.into());
    let peer = peer_identity(Some(svid.chain())).unwrap();
    assert_eq!(peer.issuer_key_id, mesh.signing.key_id());
}

#[test]
fn a_root_without_a_key_identifier_gets_the_one_that_its_certificates_name_it_by() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    // The library writes the identifier beside its own basic constraints alone.
    let root = foreign_root(|root| {
        root.is_ca = IsCa::NoCa;
        let constraints = extension(&[2, 5, 29, 19], true, b"\x30\x03\x01\x01\xff".to_vec());
        root.custom_extensions.push(constraints);
    });
    let has_own = |der: &CertificateDer<'_>| {
        let certificate = parse(der);
        let mut extensions = certificate.extensions().iter();
        extensions.any(|extension| {
            matches!(
                extension.parsed_extension(),
                ParsedExtension::SubjectKeyIdentifier(_)
            )
        })
    };
    assert!(!has_own(root.certificate()));
    let signing = root.issue_intermediate(HOUR, now).unwrap();
    let of_signing = KeyIds::of(&signing.chain()[0]).unwrap();
    assert_eq!(of_signing.authority.as_deref(), Some(root.key_id()));
}
