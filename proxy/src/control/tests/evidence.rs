//! Evidence that can be brought again: at the start, when an SVID has expired, when a registration has gone.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKeyData as _};
use sidewind_api::evidence::x509_proof;
use sidewind_api::v1::attest_request::Evidence;

use super::fake::SERVER;
use super::*;

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap()
}

fn files(authority: &Authority) -> tempfile::TempDir {
    let files = tempfile::tempdir().unwrap();
    let bundle = authority.root.certificate_pem();
    std::fs::write(files.path().join("roots.pem"), bundle).unwrap();
    std::fs::write(files.path().join("token"), "first\n").unwrap();
    files
}

fn flag(files: &tempfile::TempDir, flag: &str, name: &str) -> String {
    format!("--{flag}={}", files.path().join(name).display())
}

fn brought(fake: &Fake) -> Vec<Evidence> {
    fake.behaviour.lock().unwrap().brought.clone()
}

#[tokio::test(start_paused = true)]
async fn a_service_account_token_is_read_again_when_the_svid_has_expired() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let files = files(&fake.authority);
    let token = flag(&files, "kubernetes-token-file", "token");
    let flags = [token, "--cluster=prod".to_owned()];
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &[]);
    proxy.identity(1).await;
    fake.kill().await;
    // The kubelet replaces the file while nobody can be asked.
    std::fs::write(proxy.files.path().join("token"), "second").unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    fake.restart().await;
    proxy.identity(2).await;
    let of = |token: &str| {
        Evidence::Kubernetes(v1::KubernetesToken {
            token: token.to_owned(),
            cluster: "prod".to_owned(),
        })
    };
    assert_eq!(brought(&fake), [of("first"), of("second")]);
    let status = proxy.status(|status| status.identity_error.is_none()).await;
    assert!(matches!(
        status.identity_state(world.time.now()),
        IdentityState::Valid { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn evidence_that_is_refused_is_brought_again_and_ever_less_often() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.takes_evidence = false);
    let files = files(&fake.authority);
    let flags = [flag(&files, "oidc-token-file", "token")];
    let start = tokio::time::Instant::now();
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &[]);
    for _ in 0..12 {
        assert!(matches!(fake.next().await, Seen::AttestationRefused));
    }
    // 0.5 + 1 + 2 + ... + 32 + 60 + 60 + 60 + 60, each a fifth more or less.
    let took = start.elapsed().as_secs_f64();
    assert!((240.0..=370.0).contains(&took), "{took} s");
    fake.behave(|behaviour| behaviour.takes_evidence = true);
    proxy.identity(1).await;
    let token = "first".to_owned();
    assert_eq!(brought(&fake), [Evidence::Oidc(v1::OidcToken { token })]);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_has_gone_is_asked_for_anew() {
    let world = World::new();
    let fake = world.control_plane().await;
    let files = files(&fake.authority);
    let flags = [flag(&files, "oidc-token-file", "token")];
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &[]);
    let first = proxy.identity(1).await;
    fake.behave(|behaviour| behaviour.forgets = true);
    let second = proxy.identity(2).await;
    assert_eq!(brought(&fake).len(), 2);
    assert!(first.not_after > world.time.now(), "long before the end");
    assert_ne!(first.serial_hex, second.serial_hex);
}

#[tokio::test(start_paused = true)]
async fn a_missing_token_is_said_and_waited_for() {
    let world = World::new();
    let fake = world.control_plane().await;
    let files = files(&fake.authority);
    let flags = [flag(&files, "kubernetes-token-file", "later")];
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &[]);
    let status = proxy.status(|status| status.svid_failures > 1).await;
    let error = status.identity_error.unwrap();
    assert!(error.contains("later cannot be read"), "{error}");
    std::fs::write(proxy.files.path().join("later"), "token").unwrap();
    proxy.identity(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_to_sts_is_signed_over_the_challenge_of_its_own_connection() {
    let world = World::new();
    let fake = world.control_plane().await;
    let variables = [
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "ASIAIOSFODNN7EXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret-key"),
        ("AWS_SESSION_TOKEN", "session-token"),
    ];
    let flags = ["--attestor=aws-iam".to_owned()];
    let files = files(&fake.authority);
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &variables);
    proxy.identity(1).await;
    let brought = brought(&fake);
    let [Evidence::AwsIam(signed)] = brought.as_slice() else {
        panic!("{brought:?}");
    };
    let server_id = v1::HttpHeader {
        name: "x-sidewind-server-id".to_owned(),
        value: SERVER.to_owned(),
    };
    assert!(signed.headers.contains(&server_id));
    assert_eq!(signed.region, "eu-west-1");
}

#[tokio::test(start_paused = true)]
async fn an_existing_certificate_signs_the_challenge_and_the_new_key() {
    let world = World::new();
    let fake = world.control_plane().await;
    let files = files(&fake.authority);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    std::fs::write(files.path().join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(files.path().join("key.pem"), key.serialize_pem()).unwrap();
    let flags = [
        flag(&files, "x509-cert-file", "cert.pem"),
        flag(&files, "x509-key-file", "key.pem"),
    ];
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &[]);
    proxy.identity(1).await;
    let brought = brought(&fake);
    let [Evidence::X509(proof)] = brought.as_slice() else {
        panic!("{brought:?}");
    };
    assert_eq!(proof.certificate_chain, [certificate.der().to_vec()]);
    let request = fake.behaviour.lock().unwrap().requests[0].clone();
    let request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
    let key_sha256 = sha256(&request.public_key.subject_public_key_info());
    let signed = x509_proof(SERVER, &proof.nonce, &key_sha256);
    let algorithm = &ECDSA_P256_SHA256_ASN1;
    let public_key = UnparsedPublicKey::new(algorithm, key.public_key_raw());
    public_key.verify(&signed, &proof.signature).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_key_of_another_certificate_is_not_used() {
    let world = World::new();
    let fake = world.control_plane().await;
    let files = files(&fake.authority);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let other = KeyPair::generate().unwrap();
    std::fs::write(files.path().join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(files.path().join("key.pem"), other.serialize_pem()).unwrap();
    let flags = [
        flag(&files, "x509-cert-file", "cert.pem"),
        flag(&files, "x509-key-file", "key.pem"),
    ];
    let mut proxy = Proxy::start_proving(&world, files, &[fake.url()], &flags, &[]);
    let status = proxy.status(|status| status.svid_failures > 1).await;
    let error = status.identity_error.unwrap();
    assert!(error.contains("is not that of the certificate"), "{error}");
    assert!(brought(&fake).is_empty());
    std::fs::write(proxy.files.path().join("key.pem"), key.serialize_pem()).unwrap();
    proxy.identity(1).await;
}
