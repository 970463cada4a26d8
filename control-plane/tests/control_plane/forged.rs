//! Certificates that somebody signed with an authority's stolen key: once it is tainted or revoked they renew nothing.

use crate::support::{ControlPlane, TRUST_DOMAIN, hello, refusal, svid_of};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_identity::{PrivateKey, Svid, TrustBundle, TrustDomain};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

/// An authority's certificate, and its key as a thief has it.
struct Stolen {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// A leaf or authority that was signed by somebody.
struct Signed {
    der: Vec<u8>,
    key: KeyPair,
}

impl Stolen {
    /// The one in use.
    async fn from(control_plane: &ControlPlane, role: &str) -> Self {
        let row = sqlx::query_as(
            "SELECT certificate, private_key FROM authorities WHERE role = $1 AND state = 'active'",
        );
        let database = control_plane.database().await;
        let (certificate, key) = row.bind(role).fetch_one(&database).await.unwrap();
        Self { certificate, key }
    }

    fn key_id(&self) -> String {
        sidewind_identity::KeyIds::of(&self.certificate)
            .unwrap()
            .subject
    }

    fn sign(&self, mut params: CertificateParams) -> Signed {
        let own = KeyPair::try_from(self.key.as_slice()).unwrap();
        let issuer = Issuer::from_ca_cert_der(&self.certificate.as_slice().into(), own).unwrap();
        params.not_before = (SystemTime::now() - Duration::from_secs(20)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &issuer).unwrap().der().to_vec();
        Signed { der, key }
    }
}

fn leaf(serial: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(ORDERS.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.serial_number = serial.map(|hex| {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        SerialNumber::from(bytes)
    });
    params
}

fn svid(chain: &[&Signed], stolen: &Stolen, is_below_root: bool) -> Svid {
    let mut ders: Vec<_> = chain.iter().map(|it| it.der.clone().into()).collect();
    if !is_below_root {
        ders.push(stolen.certificate.clone().into());
    }
    let key = PrivateKey::from_pkcs8_der(&chain[0].key.serialize_der()).unwrap();
    Svid::new(ders, key).unwrap()
}

async fn rotate(control_plane: &ControlPlane, kind: v1::AuthorityKind) {
    let request = v1::RotateAuthorityRequest {
        kind: kind.into(),
        dry_run: false,
        force: true,
    };
    let mut admin = control_plane.client.admin_service().await;
    for _ in 0..2 {
        admin.rotate_authority(request).await.unwrap();
    }
}

async fn taint(control_plane: &ControlPlane, key_id: String) {
    let request = v1::TaintAuthorityRequest {
        subject_key_id: key_id,
    };
    let mut admin = control_plane.client.admin_service().await;
    admin.taint_authority(request).await.unwrap();
}

fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr_der().unwrap()
}

/// Neither a renewal nor a stream comes of it.
async fn is_worthless(control_plane: &ControlPlane, name: &str, forged: &Svid) {
    let client = &control_plane.client;
    let (reason, message) = refusal(client.renew(forged, csr()).await);
    assert_eq!(reason, Reason::NotRegistered, "{name}: {message}");
    assert!(message.contains("attest again"), "{name}: {message}");
    let (reason, message) = refusal(client.stream(forged, hello(vec![])).await);
    assert_eq!(reason, Reason::NotRegistered, "{name}: {message}");
}

#[tokio::test]
async fn with_the_key_of_a_tainted_authority_nobody_renews_but_those_it_signed_for() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let genuine = client.svid(ORDERS, &[]).await;
    let stolen = Stolen::from(&control_plane, "signing").await;
    let forged = svid(&[&stolen.sign(leaf(None))], &stolen, false);
    let copied = stolen.sign(leaf(Some(genuine.serial_hex())));
    let copied = svid(&[&copied], &stolen, false);
    assert_eq!(copied.serial_hex(), genuine.serial_hex());
    rotate(&control_plane, v1::AuthorityKind::Signing).await;
    taint(&control_plane, stolen.key_id()).await;
    is_worthless(&control_plane, "made up", &forged).await;
    is_worthless(&control_plane, "with a real serial number", &copied).await;
    let key = PrivateKey::generate().unwrap();
    let renewed = client
        .renew(&genuine, key.csr_der().unwrap())
        .await
        .unwrap();
    let renewed = svid_of(renewed, key);
    assert!(!renewed.authority_key_ids().contains(&stolen.key_id()));
}

#[tokio::test]
async fn below_a_stolen_root_nobody_makes_an_authority_that_counts() {
    let control_plane = ControlPlane::start().await;
    let genuine = control_plane.client.svid(ORDERS, &[]).await;
    let stolen = Stolen::from(&control_plane, "root").await;
    let signing = Stolen::from(&control_plane, "signing").await;
    let authority = |key_identifier_method| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![SanType::URI(
            format!("spiffe://{TRUST_DOMAIN}").try_into().unwrap(),
        )];
        params.distinguished_name.push(DnType::CommonName, "forged");
        params.key_identifier_method = key_identifier_method;
        stolen.sign(params)
    };
    let disguise = sidewind_identity::KeyIds::of(&signing.certificate).unwrap();
    let disguise: Vec<u8> = (0..disguise.subject.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&disguise.subject[at..at + 2], 16).unwrap())
        .collect();
    let table = [
        ("of its own name", KeyIdMethod::Sha256, None),
        (
            "with the key id of the one in use",
            KeyIdMethod::PreSpecified(disguise),
            None,
        ),
        (
            "with a real serial number",
            KeyIdMethod::Sha256,
            Some(genuine.serial_hex()),
        ),
    ];
    for (name, method, serial) in table {
        let forged = authority(method);
        let below = Stolen {
            certificate: forged.der.clone(),
            key: forged.key.serialize_der(),
        };
        let forged = svid(&[&below.sign(leaf(serial)), &forged], &stolen, true);
        is_worthless(&control_plane, name, &forged).await;
    }
    let direct = svid(&[&stolen.sign(leaf(None))], &stolen, true);
    is_worthless(&control_plane, "by the root itself", &direct).await;
    control_plane.client.renew(&genuine, csr()).await.unwrap();
}

#[tokio::test]
async fn a_connection_from_before_its_root_was_revoked_renews_nothing() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    let root = Stolen::from(&control_plane, "root").await;
    let channel = client.channel(client.tls(&svid)).await.unwrap();
    let mut service = IdentityServiceClient::new(channel);
    let request = || v1::RenewRequest {
        csr: csr(),
        version: String::new(),
    };
    rotate(&control_plane, v1::AuthorityKind::Root).await;
    service.renew(request()).await.unwrap();
    let request_to_revoke = v1::RevokeAuthorityRequest {
        subject_key_id: root.key_id(),
        force: true,
    };
    let mut admin = client.admin_service().await;
    admin.revoke_authority(request_to_revoke).await.unwrap();
    let (reason, message) = refusal(service.renew(request()).await);
    assert_eq!(reason, Reason::NotRegistered, "{message}");
    assert!(message.contains("no authority in use"), "{message}");
    // Who attests gets a certificate below the root that is left.
    let mut client = client.clone();
    let pem = std::fs::read_to_string(client.admin_socket().with_file_name("trust-bundle.pem"));
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let bundle = TrustBundle::from_pem(trust_domain, &pem.unwrap()).unwrap();
    client.bundles = Arc::new(bundle.into());
    let svid = client.svid(ORDERS, &[]).await;
    client.renew(&svid, csr()).await.unwrap();
}
