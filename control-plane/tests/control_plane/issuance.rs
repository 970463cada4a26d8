//! What certificates are given for.

use crate::support::{
    ControlPlane, TRUST_DOMAIN, attest_request, hello, refusal, signing_in, svid_of, until,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_control_plane::server::Settings;
use sidewind_identity::authority::{SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::{
    PrivateKey, SpiffeId, Svid, TrustDomain, Usage, VerifyOptions, verify_chain,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn lifetime(svid: &Svid) -> u64 {
    svid.not_after()
        .duration_since(svid.not_before())
        .unwrap()
        .as_secs()
}

#[tokio::test]
async fn a_token_gives_its_identity_and_renewals_keep_it() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let request = v1::CreateJoinTokenRequest {
        spiffe_id: ORDERS.to_owned(),
        svid_ttl_seconds: 90,
        ..Default::default()
    };
    let token = client.token_for(request).await.unwrap();
    let key = PrivateKey::generate().unwrap();
    let response = client.attest(&token, key.csr_der().unwrap()).await.unwrap();
    assert_eq!(response.trust_bundles.len(), 1);
    let bundle = &response.trust_bundles[0];
    assert_eq!(
        (bundle.authorities.len(), bundle.jwt_authorities.len()),
        (1, 1)
    );
    // The root and the key of JWT-SVIDs, each a change.
    assert_eq!(bundle.sequence, 2);
    let first = svid_of(response, key);
    assert_eq!(first.id().as_str(), ORDERS);
    // Backdated by 30 seconds.
    assert_eq!(lifetime(&first), 120);

    let mut present = first.clone();
    for _ in 0..3 {
        let key = PrivateKey::generate().unwrap();
        let response = client
            .renew(&present, key.csr_der().unwrap())
            .await
            .unwrap();
        let renewed = svid_of(response, key);
        assert_eq!((renewed.id().as_str(), lifetime(&renewed)), (ORDERS, 120));
        assert_ne!(renewed.serial_hex(), present.serial_hex());
        present = renewed;
    }
    for usage in [Usage::Client, Usage::Server] {
        let (now, options) = (SystemTime::now(), VerifyOptions::default());
        verify_chain(present.chain(), &client.bundles, usage, now, &options).unwrap();
    }
    control_plane
        .metric("sidewind_svids_issued_total{call=\"renew\"} 3")
        .await;
}

#[tokio::test]
async fn nothing_of_a_request_but_its_key_is_in_the_certificate() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "spiffe://sidewind.local/admin");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![SanType::DnsName("control-plane".try_into().unwrap())];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    // rcgen writes no basic constraints into requests; the rest is asked for.
    params.is_ca = IsCa::NoCa;
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let token = client.token(ORDERS, &[]).await;
    let response = client.attest(&token, csr).await.unwrap();
    let der = &response.certificate_chain[0];
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    assert!(!certificate.is_ca());
    assert_eq!(certificate.subject().iter().count(), 0);
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(certificate.public_key().raw, key_der(&key));
}

fn key_der(key: &KeyPair) -> Vec<u8> {
    rcgen::PublicKeyData::subject_public_key_info(key)
}

fn csr(algorithm: &'static rcgen::SignatureAlgorithm, names: Vec<SanType>) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_bad_signing_request_is_refused_with_its_reason_and_costs_no_token() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let token = client.token(ORDERS, &[]).await;
    let good = csr(&PKCS_ECDSA_P256_SHA256, vec![]);
    let mut bad_signature = good.clone();
    *bad_signature.last_mut().unwrap() ^= 1;
    let other = SanType::URI(
        "spiffe://sidewind.local/ns/data/sa/admin"
            .try_into()
            .unwrap(),
    );
    let long_name = SanType::DnsName("x".repeat(9_000).try_into().unwrap());
    let table = [
        (
            "other key type",
            csr(&PKCS_ECDSA_P384_SHA384, vec![]),
            "only ECDSA P-256",
        ),
        ("other key type", csr(&PKCS_ED25519, vec![]), "Ed25519"),
        (
            "other SPIFFE ID",
            csr(&PKCS_ECDSA_P256_SHA256, vec![other]),
            "leave the name out",
        ),
        ("bad signature", bad_signature, "does not hold the key"),
        (
            "bytes after it",
            [good.clone(), vec![0]].concat(),
            "bytes follow",
        ),
        ("no request", b"hello".to_vec(), "not a DER-encoded"),
        ("empty", vec![], "not a DER-encoded"),
        (
            "too large",
            csr(&PKCS_ECDSA_P256_SHA256, vec![long_name]),
            "at most 8192",
        ),
    ];
    let number = table.len();
    for (name, csr, expected) in table {
        let (reason, message) = refusal(client.attest(&token, csr).await);
        assert_eq!(reason, Reason::CsrRefused, "{name}");
        assert!(message.contains(expected), "{name}: {message}");
    }
    let key = PrivateKey::generate().unwrap();
    client.attest(&token, key.csr_der().unwrap()).await.unwrap();
    let line =
        format!("sidewind_svid_refusals_total{{call=\"attest\",reason=\"csr-refused\"}} {number}");
    control_plane.metric(&line).await;
}

#[tokio::test]
async fn a_renewal_needs_a_certificate_and_takes_nobody_elses_name() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut anonymous = client.identity_service().await;
    let (reason, _) = refusal(anonymous.renew(v1::RenewRequest::default()).await);
    assert_eq!(reason, Reason::CertificateRequired);
    let svid = client.svid(ORDERS, &[]).await;
    let admin = SanType::URI("spiffe://sidewind.local/admin".try_into().unwrap());
    let (reason, _) = refusal(
        client
            .renew(&svid, csr(&PKCS_ECDSA_P256_SHA256, vec![admin]))
            .await,
    );
    assert_eq!(reason, Reason::CsrRefused);
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_in_the_handshake() {
    let control_plane = ControlPlane::start().await;
    let elsewhere = ControlPlane::start().await;
    let svid = elsewhere.client.svid(ORDERS, &[]).await;
    let client = &control_plane.client;
    // With TLS 1.3 the client learns of it from its first read.
    let refused = match client.channel(client.tls(&svid)).await {
        Err(_) => true,
        Ok(channel) => {
            let request = v1::RenewRequest::default();
            let result = IdentityServiceClient::new(channel).renew(request).await;
            Reason::of(&result.unwrap_err()).is_none()
        }
    };
    assert!(refused);
    control_plane
        .metric("sidewind_connections_refused_total{reason=\"handshake-failed\"} 1")
        .await;
}

#[tokio::test]
async fn a_request_without_evidence_is_told_what_is_taken() {
    let control_plane = ControlPlane::start().await;
    let mut service = control_plane.client.identity_service().await;
    let mut request = attest_request("", vec![]);
    request.evidence = None;
    let (reason, message) = refusal(service.attest(request).await);
    assert_eq!(reason, Reason::EvidenceMissing);
    assert!(message.contains("join tokens"), "{message}");
}

#[tokio::test]
async fn a_lifetime_out_of_range_is_refused_when_the_token_is_made() {
    let control_plane = ControlPlane::start().await;
    for seconds in [59, 86_401, u64::MAX] {
        let request = v1::CreateJoinTokenRequest {
            spiffe_id: ORDERS.to_owned(),
            svid_ttl_seconds: seconds,
            ..Default::default()
        };
        let (reason, _) = refusal(control_plane.client.token_for(request).await);
        assert_eq!(reason, Reason::LifetimeRefused, "{seconds}");
    }
}

#[tokio::test]
async fn readiness_really_signs() {
    let control_plane = ControlPlane::start().await;
    let (status, body) = control_plane.get("/ready").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["components"]["signing"]["ready"], true, "{body}");
    assert_eq!(control_plane.get("/live").await.0, "HTTP/1.1 200 OK");
    assert_eq!(control_plane.get("/").await.0, "HTTP/1.1 404 Not Found");
    let day = Duration::from_secs(86_400).as_secs_f64();
    let metrics = control_plane.get("/metrics").await.1;
    let signing = metrics.lines().find_map(|line| {
        line.strip_prefix("sidewind_certificate_expiry_timestamp_seconds{certificate=\"signing\"} ")
    });
    let end: f64 = signing.unwrap().parse().unwrap();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!((end - now.as_secs_f64() - 30.0 * day).abs() < 300.0);
}

/// A control plane whose signing key is known here, so that certificates can be made that are not on its record: for it
/// they are those whose record was lost.
struct Forge {
    control_plane: ControlPlane,
    signing: SigningAuthority,
}

impl Forge {
    async fn start() -> Self {
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
        let month = Duration::from_secs(30 * 86_400);
        // Old enough to have signed what is about to end.
        let begin = SystemTime::now() - Duration::from_secs(600);
        let root = generate_root(&trust_domain, 3 * month, begin).unwrap();
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let signing = root.issue_intermediate(month, begin).unwrap();
        let source = signing_in(directory.path(), &signing, &root);
        let change = |settings: &mut Settings| settings.root = source;
        Self {
            control_plane: ControlPlane::start_in(directory, change).await,
            signing,
        }
    }

    /// An SVID that lives this much longer.
    fn svid(&self, id: &str, left: Duration) -> Svid {
        let template = SvidTemplate {
            id: SpiffeId::parse(id).unwrap(),
            ttl: Duration::from_secs(60),
            dns_names: vec![],
        };
        let key = PrivateKey::generate().unwrap();
        let begin = SystemTime::now() + left - template.ttl;
        let chain = self
            .signing
            .sign(&key.csr_der().unwrap(), &template, begin)
            .unwrap();
        Svid::new(chain, key).unwrap()
    }
}

#[tokio::test]
async fn a_stream_ends_when_its_certificate_does() {
    let forge = Forge::start().await;
    let client = &forge.control_plane.client;
    // Registers the identity; a certificate without record goes by that.
    client.svid(ORDERS, &[]).await;
    let short = forge.svid(ORDERS, Duration::from_secs(3));
    let mut stream = client.stream(&short, hello(vec![])).await.unwrap();
    let status = stream.end().await;
    assert_eq!(Reason::of(&status), Some(Reason::CertificateExpired));
    assert!(SystemTime::now() > short.not_after());
    until(async || client.workloads().await.is_empty()).await;
}

#[tokio::test]
async fn a_certificate_that_expired_on_an_open_connection_renews_nothing() {
    let forge = Forge::start().await;
    let client = &forge.control_plane.client;
    client.svid(ORDERS, &[]).await;
    let short = forge.svid(ORDERS, Duration::from_secs(2));
    let channel = client.channel(client.tls(&short)).await.unwrap();
    let mut service = IdentityServiceClient::new(channel);
    let request = || v1::RenewRequest {
        csr: PrivateKey::generate().unwrap().csr_der().unwrap(),
        version: String::new(),
    };
    service.renew(request()).await.unwrap();
    until(async || SystemTime::now() > short.not_after() + Duration::from_secs(1)).await;
    let (reason, _) = refusal(service.renew(request()).await);
    assert_eq!(reason, Reason::CertificateExpired);
}

#[tokio::test]
async fn a_valid_certificate_without_registration_is_told_to_attest_again() {
    let forge = Forge::start().await;
    let client = &forge.control_plane.client;
    let minute = Duration::from_secs(60);
    let table = [
        (ORDERS, Reason::NotRegistered),
        (
            "spiffe://sidewind.local/sidewind/control-plane",
            Reason::NotAWorkload,
        ),
    ];
    for (id, expected) in table {
        let svid = forge.svid(id, minute);
        let csr = PrivateKey::generate().unwrap().csr_der().unwrap();
        assert_eq!(refusal(client.renew(&svid, csr).await).0, expected);
        assert_eq!(
            refusal(client.stream(&svid, hello(vec![])).await).0,
            expected
        );
    }
}

#[tokio::test]
async fn while_the_store_is_away_renewals_go_on_and_attestations_wait_for_it() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let csr = || PrivateKey::generate().unwrap().csr_der().unwrap();
    let svid = client.svid(ORDERS, &[]).await;
    let token = client.token(ORDERS, &[]).await;
    let pool = control_plane.database().await;
    let lock = pool.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    let begin = Instant::now();
    client.renew(&svid, csr()).await.unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(
        refusal(client.attest(&token, csr()).await).0,
        Reason::StoreUnavailable
    );
    lock.rollback().await.unwrap();
    client.attest(&token, csr()).await.unwrap();
    let renewed = |(event, _, _): &(String, String, Option<String>)| event == "renew";
    until(async || control_plane.audit().await.iter().any(renewed)).await;
}
