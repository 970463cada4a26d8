//! What is thrown away instead of given out, had the certificate been made otherwise than was asked.

use rcgen::DnType;

use super::super::{BACKDATE, generate_root};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn authority(now: SystemTime) -> SigningAuthority {
    let trust_domain = TrustDomain::parse("td").unwrap();
    let root = generate_root(&trust_domain, 10 * HOUR, now - HOUR).unwrap();
    root.issue_intermediate(5 * HOUR, now - HOUR).unwrap()
}

fn template() -> SvidTemplate {
    SvidTemplate {
        id: SpiffeId::parse("spiffe://td/w").unwrap(),
        ttl: HOUR,
        dns_names: vec!["w.svc".to_owned()],
    }
}

/// Makes a leaf of the right parameters spoiled, and checks it against the right ones.
fn verdict(spoil: impl Fn(&mut CertificateParams)) -> Result<(), SignError> {
    let now = SystemTime::now();
    let (authority, template) = (authority(now), template());
    let csr = PrivateKey::generate()?.csr_der()?;
    let public_key = csr::public_key(&csr, &template.id)?;
    let mut asked = leaf_params(&template)?;
    (asked.not_before, asked.not_after) = authority.authority.validity(template.ttl, now)?;
    let mut made = asked.clone();
    spoil(&mut made);
    let leaf = made.signed_by(&public_key, &authority.authority.issuer)?;
    authority.check_leaf(&leaf.into(), &template, &asked, now)
}

#[test]
fn a_certificate_that_says_something_else_than_was_asked_is_thrown_away() {
    verdict(|_| {}).unwrap();
    let name = |name: &str| SanType::DnsName(name.try_into().unwrap());
    type Spoil<'a> = &'a dyn Fn(&mut CertificateParams);
    let table: &[(&str, Spoil<'_>)] = &[
        ("begin of validity", &|leaf| leaf.not_before -= HOUR),
        ("begin of validity", &|leaf| leaf.not_before += BACKDATE / 2),
        ("end of validity", &|leaf| leaf.not_after += HOUR),
        ("end of validity", &|leaf| leaf.not_after += 9 * HOUR),
        ("serial number", &|leaf| {
            leaf.serial_number = Some(issue::random_serial().unwrap());
        }),
        ("issuer's key identifier", &|leaf| {
            leaf.use_authority_key_identifier_extension = false;
        }),
        ("subject", &|leaf| {
            leaf.distinguished_name.push(DnType::CommonName, "admin");
        }),
        ("alternative names", &|leaf| {
            leaf.subject_alt_names.push(name("admin.svc"));
        }),
        ("alternative names", &|leaf| {
            leaf.subject_alt_names.truncate(1);
        }),
    ];
    for (what, spoil) in table {
        let error = verdict(spoil).unwrap_err();
        assert!(
            matches!(error, SignError::SelfCheckContent(found) if found == *what),
            "{what}: {error}"
        );
    }
    let ca: Spoil<'_> = &|leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let usage: Spoil<'_> = &|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let purpose: Spoil<'_> = &|leaf| leaf.extended_key_usages.truncate(1);
    for spoil in [ca, usage, purpose] {
        let error = verdict(spoil).unwrap_err();
        assert!(matches!(error, SignError::SelfCheck(_)), "{error}");
    }
    let other = PrivateKey::generate().unwrap().csr_der().unwrap();
    let other = csr::public_key(&other, &template().id).unwrap();
    let now = SystemTime::now();
    let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
    let chain = authority(now).sign(&csr, &template(), now).unwrap();
    assert!(matches!(
        check_key(&chain[0], &other),
        Err(SignError::SelfCheckContent("public key"))
    ));
}
