use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
};
use rustls::SignatureScheme;
use rustls_pki_types::PrivateKeyDer;
use sidewind_api::v1;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const SERVER: &str = "sidewind://example.org";
const DAY: Duration = Duration::from_secs(86_400);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str, path_length: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    lasting(
        &mut params,
        SystemTime::now() - DAY,
        SystemTime::now() + DAY,
    );
    params
}

fn lasting(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    params.not_before = from.into();
    params.not_after = to.into();
}

fn root() -> Authority {
    CertifiedIssuer::self_signed(
        ca("old root", BasicConstraints::Unconstrained),
        KeyPair::generate().unwrap(),
    )
    .unwrap()
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "orders");
    params.subject_alt_names = vec![
        SanType::DnsName("Orders.Data.svc".try_into().unwrap()),
        SanType::DnsName("orders.data".try_into().unwrap()),
        SanType::URI("spiffe://old.example/ns/data/sa/orders".try_into().unwrap()),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    lasting(
        &mut params,
        SystemTime::now() - DAY,
        SystemTime::now() + DAY,
    );
    params
}

/// A certificate, the chain above it, and its key.
struct Holder {
    chain: Vec<Vec<u8>>,
    key: KeyPair,
}

impl Holder {
    fn new(params: &CertificateParams, issuer: &Issuer<'_, KeyPair>, above: &[&Authority]) -> Self {
        Self::with(params, issuer, above, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn with(
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
        above: &[&Authority],
        algorithm: &'static SignatureAlgorithm,
    ) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = params.signed_by(&key, issuer).unwrap();
        let certificates = std::iter::once(&leaf).chain(above.iter().map(|ca| ca.as_ref()));
        let chain = certificates.map(|certificate| certificate.der().to_vec());
        Self {
            chain: chain.collect(),
            key,
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let schemes = [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
        ];
        key.choose_scheme(&schemes).unwrap().sign(message).unwrap()
    }
}

/// An attestor that believes some roots.
struct Stage {
    attestor: X509Attestor,
    authorities: Vec<Arc<X509Authority>>,
    csr: Vec<u8>,
    _files: TempDir,
}

impl Stage {
    fn believing(roots: &[&Authority]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let ca_file = files.path().join("roots.pem");
        let pem: String = roots.iter().map(|root| root.pem()).collect();
        std::fs::write(&ca_file, pem).unwrap();
        let authority = X509Authority {
            authority: "old".to_owned(),
            ca_file,
        };
        let challenges = Arc::new(Challenges::new(SERVER.to_owned()));
        Self {
            attestor: X509Attestor::new(Live::default(), challenges),
            authorities: vec![Arc::new(authority)],
            csr: new_csr(),
            _files: files,
        }
    }

    fn nonce(&self) -> String {
        let caller = IpAddr::V4(Ipv4Addr::LOCALHOST);
        self.attestor.challenges.give(caller).unwrap()
    }

    fn proof(&self, holder: &Holder) -> v1::X509Proof {
        let nonce = self.nonce();
        let key_sha256 = sha256(csr_key(&self.csr).unwrap());
        v1::X509Proof {
            certificate_chain: holder.chain.clone(),
            signature: holder.sign(&x509_proof(SERVER, &nonce, &key_sha256)),
            nonce,
        }
    }

    async fn attest(&self, proof: v1::X509Proof) -> Result<Facts, Refusal> {
        self.attest_for(proof, &self.csr).await
    }

    async fn attest_for(&self, proof: v1::X509Proof, csr: &[u8]) -> Result<Facts, Refusal> {
        let evidence = Evidence::X509(proof);
        let now = SystemTime::now();
        let presented = Presented {
            evidence: &evidence,
            csr,
            now,
        };
        self.attestor.facts(&self.authorities, presented).await
    }

    async fn refuses(&self, proof: v1::X509Proof, says: &str) {
        let refusal = self.attest(proof).await.expect_err(says);
        assert_eq!(refusal.reason, Reason::EvidenceRefused, "{says}: {refusal}");
        assert!(refusal.message.contains(says), "{says}: {refusal}");
    }
}

fn new_csr() -> Vec<u8> {
    sidewind_identity::PrivateKey::generate()
        .unwrap()
        .csr_der()
        .unwrap()
}

#[tokio::test]
async fn a_certificate_says_its_names() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let holder = Holder::new(&leaf(), &root, &[]);
    let facts = stage.attest(stage.proof(&holder)).await.unwrap();
    let known: Vec<String> = facts.selectors.iter().map(ToString::to_string).collect();
    let expected = [
        "x509:authority=old".to_owned(),
        "x509:dns=orders.data".to_owned(),
        "x509:dns=orders.data.svc".to_owned(),
        "x509:issuer=CN=old root".to_owned(),
        format!("x509:sha256={}", hex(&sha256(&holder.chain[0]))),
        "x509:subject-cn=orders".to_owned(),
        "x509:uri=spiffe://old.example/ns/data/sa/orders".to_owned(),
    ];
    assert_eq!(known, expected);
    assert!(facts.pins.is_empty());
}

#[tokio::test]
async fn keys_of_every_kind_that_is_taken_prove_themselves() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let holder = Holder::with(&leaf(), &root, &[], algorithm);
        stage.attest(stage.proof(&holder)).await.unwrap();
    }
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let mut proof = stage.proof(&Holder::new(&leaf(), &root, &[]));
    proof.certificate_chain = vec![leaf().signed_by(&other, &root).unwrap().der().to_vec()];
    stage.refuses(proof, "P-256").await;
}

#[tokio::test]
async fn a_proof_is_good_once_for_one_key_at_one_control_plane() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let holder = Holder::new(&leaf(), &root, &[]);
    let proof = stage.proof(&holder);
    stage.attest(proof.clone()).await.unwrap();
    let replayed = stage.attest(proof).await.unwrap_err();
    assert_eq!(replayed.reason, Reason::ChallengeUnknown);

    let refusal = stage
        .attest_for(stage.proof(&holder), &new_csr())
        .await
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::EvidenceRefused, "another key");
    let refusal = stage
        .attest_for(stage.proof(&holder), b"")
        .await
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::CsrRefused);

    let (nonce, key_sha256) = (stage.nonce(), sha256(csr_key(&stage.csr).unwrap()));
    let good = v1::X509Proof {
        signature: holder.sign(&x509_proof(SERVER, &nonce, &key_sha256)),
        ..stage.proof(&holder)
    };
    stage.refuses(good.clone(), "signature").await;
    let elsewhere = v1::X509Proof {
        signature: holder.sign(&x509_proof("sidewind://example.com", &nonce, &key_sha256)),
        nonce,
        ..good
    };
    stage.refuses(elsewhere, "signature").await;
}

#[tokio::test]
async fn the_certificate_that_is_checked_is_the_one_that_signed() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let stolen = Holder::new(&leaf(), &root, &[]);
    let own = CertifiedIssuer::self_signed(
        ca("mine", BasicConstraints::Unconstrained),
        KeyPair::generate().unwrap(),
    )
    .unwrap();
    let mine = Holder::new(&leaf(), &own, &[]);
    for chain in [
        vec![stolen.chain[0].clone()],
        vec![stolen.chain[0].clone(), mine.chain[0].clone()],
    ] {
        let mut proof = stage.proof(&mine);
        proof.certificate_chain = chain;
        stage.refuses(proof, "signature").await;
    }
    let mut proof = stage.proof(&mine);
    proof.certificate_chain.push(stolen.chain[0].clone());
    proof.certificate_chain.push(root.der().to_vec());
    stage.refuses(proof, "vouches").await;
    let mut altered = stage.proof(&stolen);
    altered.signature.pop();
    stage.refuses(altered, "signature").await;
    let mut none = stage.proof(&stolen);
    none.signature.clear();
    stage.refuses(none, "signature").await;
}

type Change = fn(&mut CertificateParams);

#[tokio::test]
async fn certificates_that_are_no_clients_are_refused() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let changes: [(Change, &str); 5] = [
        (
            |leaf| lasting(leaf, SystemTime::now() - 2 * DAY, SystemTime::now() - DAY),
            "Expired",
        ),
        (
            |leaf| lasting(leaf, SystemTime::now() + DAY, SystemTime::now() + 2 * DAY),
            "NotValidYet",
        ),
        (
            |leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "vouches",
        ),
        (
            |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "CaUsedAsEndEntity",
        ),
        (
            |leaf| {
                leaf.distinguished_name
                    .push(DnType::OrganizationName, "x".repeat(20_000))
            },
            "too many bytes",
        ),
    ];
    for (change, says) in changes {
        let mut params = leaf();
        change(&mut params);
        let holder = Holder::new(&params, &root, &[]);
        stage.refuses(stage.proof(&holder), says).await;
    }
    let mut any = leaf();
    any.extended_key_usages.clear();
    let holder = Holder::new(&any, &root, &[]);
    stage.attest(stage.proof(&holder)).await.unwrap();
}

fn below(params: CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Authority {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

#[tokio::test]
async fn paths_lead_to_a_root_by_every_rule() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let first = below(ca("first", BasicConstraints::Unconstrained), &root);
    let second = below(ca("second", BasicConstraints::Constrained(0)), &first);
    let holder = Holder::new(&leaf(), &second, &[&second, &first]);
    stage.attest(stage.proof(&holder)).await.unwrap();
    let missing = Holder::new(&leaf(), &second, &[&second]);
    stage.refuses(stage.proof(&missing), "UnknownIssuer").await;

    let third = below(ca("third", BasicConstraints::Unconstrained), &second);
    let too_deep = Holder::new(&leaf(), &third, &[&third, &second, &first]);
    stage.refuses(stage.proof(&too_deep), "PathLen").await;

    let mut crl_signer = ca("lists", BasicConstraints::Unconstrained);
    crl_signer.key_usages = vec![KeyUsagePurpose::CrlSign];
    let crl_signer = below(crl_signer, &root);
    let holder = Holder::new(&leaf(), &crl_signer, &[&crl_signer]);
    stage.refuses(stage.proof(&holder), "may not sign").await;

    let not_a_ca = Holder::new(&leaf(), &root, &[]);
    let mut forged = leaf();
    forged.distinguished_name.push(DnType::CommonName, "admin");
    let issuer = Issuer::new(
        leaf(),
        KeyPair::try_from(not_a_ca.key.serialize_der()).unwrap(),
    );
    let mut holder = Holder::new(&forged, &issuer, &[]);
    holder.chain.extend(not_a_ca.chain);
    stage.refuses(stage.proof(&holder), "vouches").await;
}

#[tokio::test]
async fn what_webpki_forgets_of_roots_is_remembered() {
    let constrained = ca("narrow", BasicConstraints::Constrained(0));
    let narrow = CertifiedIssuer::self_signed(constrained, KeyPair::generate().unwrap()).unwrap();
    let stage = Stage::believing(&[&narrow]);
    let holder = Holder::new(&leaf(), &narrow, &[]);
    stage.attest(stage.proof(&holder)).await.unwrap();
    let middle = below(ca("middle", BasicConstraints::Unconstrained), &narrow);
    let holder = Holder::new(&leaf(), &middle, &[&middle]);
    stage
        .refuses(stage.proof(&holder), "fewer intermediates")
        .await;

    let mut ended = ca("ended", BasicConstraints::Unconstrained);
    lasting(
        &mut ended,
        SystemTime::now() - 2 * DAY,
        SystemTime::now() - DAY,
    );
    let ended = CertifiedIssuer::self_signed(ended, KeyPair::generate().unwrap()).unwrap();
    let stage = Stage::believing(&[&ended]);
    let holder = Holder::new(&leaf(), &ended, &[]);
    stage.refuses(stage.proof(&holder), "not valid now").await;
}

#[tokio::test]
async fn chains_are_bounded_before_they_are_read() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let holder = Holder::new(&leaf(), &root, &[]);
    let chains: [(Vec<Vec<u8>>, &str); 7] = [
        (Vec::new(), "empty"),
        (vec![holder.chain[0].clone(); 6], "more than 5"),
        (
            vec![holder.chain[0].clone(), vec![0x30; 16 * 1024 + 1]],
            "too many bytes",
        ),
        (vec![vec![0x30; 16 * 1024]; 4], "too many bytes"),
        (vec![b"text".to_vec()], "cannot be read"),
        (vec![holder.chain[0].clone(), Vec::new()], "cannot be read"),
        (
            vec![[&holder.chain[0][..], &[0]].concat()],
            "cannot be read",
        ),
    ];
    for (chain, says) in chains {
        let mut proof = stage.proof(&holder);
        let nonce = proof.nonce.clone();
        proof.certificate_chain = chain;
        stage.refuses(proof, says).await;
        assert_eq!(
            stage.attestor.challenges.take(&nonce),
            Ok(()),
            "{says}: nothing was computed"
        );
    }
    let mut proof = stage.proof(&holder);
    proof.signature = vec![0; 1025];
    stage.refuses(proof, "too long").await;
}

#[tokio::test]
async fn roots_are_read_again_when_they_change() {
    let (old, new) = (root(), root());
    let stage = Stage::believing(&[&old]);
    let holder = Holder::new(&leaf(), &new, &[]);
    stage.refuses(stage.proof(&holder), "vouches").await;
    std::fs::write(&stage.authorities[0].ca_file, new.pem()).unwrap();
    stage.attest(stage.proof(&holder)).await.unwrap();
    std::fs::remove_file(&stage.authorities[0].ca_file).unwrap();
    let refusal = stage.attest(stage.proof(&holder)).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::EvidenceUnverifiable);
    assert!(!refusal.message.contains("roots.pem"), "{refusal}");
}

#[tokio::test]
async fn without_a_configuration_nothing_is_taken() {
    let root = root();
    let stage = Stage::believing(&[&root]);
    let evidence = Evidence::X509(stage.proof(&Holder::new(&leaf(), &root, &[])));
    let presented = Presented {
        evidence: &evidence,
        csr: &stage.csr,
        now: SystemTime::now(),
    };
    let refusal = stage.attestor.attest(presented).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::AttestorNotConfigured);
}
