use super::region::Region;
use super::testing::{ACCOUNT, SERVER, evidence, region, set, signed_at};
use super::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use sidewind_api::evidence::STS_BODY;
use sidewind_api::v1;
use std::net::{IpAddr, Ipv4Addr};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An STS that answers everything alike, and the attestor that asks it.
struct Stage {
    attestor: AwsIamAttestor,
    regions: [Arc<AwsRegion>; 1],
    challenges: Arc<Challenges>,
    asked: mpsc::Receiver<String>,
    csr: Vec<u8>,
    _files: TempDir,
    _serving: JoinHandle<()>,
}

impl Stage {
    async fn new(answer: String) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let files = tempfile::tempdir().unwrap();
        let ca_file = files.path().join("ca.pem");
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let (sender, asked) = mpsc::channel(16);
        let serving = tokio::spawn(serve(listener, Arc::new(tls).into(), answer, sender));
        let challenges = Arc::new(Challenges::new(SERVER.to_owned()));
        let region = AwsRegion {
            region: Region::new("eu-west-1", Some(&endpoint)).unwrap(),
            accounts: vec![ACCOUNT.to_owned()],
            ca_file: Some(ca_file),
        };
        let csr = sidewind_identity::PrivateKey::generate().unwrap().csr_der();
        Self {
            attestor: AwsIamAttestor::new(Live::default(), Arc::clone(&challenges)),
            regions: [Arc::new(region)],
            challenges,
            asked,
            csr: csr.unwrap(),
            _files: files,
            _serving: serving,
        }
    }

    /// Evidence for this stage's signing request, over a new nonce.
    fn evidence(&self) -> v1::AwsIam {
        let nonce = self.challenges.give(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let key = super::super::challenge::csr_key(&self.csr).unwrap();
        evidence(&nonce.unwrap(), &hex(&sha256(key)))
    }

    async fn attest(&self, evidence: v1::AwsIam) -> Result<Facts, Refusal> {
        self.attest_for(evidence, &self.csr).await
    }

    async fn attest_for(&self, evidence: v1::AwsIam, csr: &[u8]) -> Result<Facts, Refusal> {
        let evidence = Evidence::AwsIam(evidence);
        let now = signed_at();
        let presented = Presented {
            evidence: &evidence,
            csr,
            now,
        };
        self.attestor.facts(&self.regions, presented).await
    }

    fn was_asked(&mut self) -> bool {
        self.asked.try_recv().is_ok()
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    answer: String,
    asked: mpsc::Sender<String>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = tls.accept(stream).await else {
            continue;
        };
        let mut request = Vec::new();
        while !request.ends_with(STS_BODY.as_bytes()) {
            if stream.read_buf(&mut request).await.unwrap() == 0 {
                break;
            }
        }
        asked
            .send(String::from_utf8(request).unwrap())
            .await
            .unwrap();
        // The client may have had enough of it before its end.
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

fn http(status: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nlocation: https://127.0.0.1:1/\r\n\r\n{body}"
    )
}

fn identity(arn: &str, user_id: &str, account: &str) -> String {
    let body = format!(
        "<GetCallerIdentityResponse xmlns=\"x\"><GetCallerIdentityResult><Arn>{arn}</Arn><UserId>{user_id}</UserId><Account>{account}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
    );
    http("200 OK", "text/xml", &body)
}

const ARN: &str = "arn:aws:sts::123456789012:assumed-role/orders/0f5c";
const USER_ID: &str = "AROA3XFRBF535PLBIFPI4:0f5c";

fn good() -> String {
    identity(ARN, USER_ID, ACCOUNT)
}

#[tokio::test]
async fn sts_is_asked_in_words_of_this_process_and_says_the_role() {
    let mut stage = Stage::new(good()).await;
    let facts = stage.attest(stage.evidence()).await.unwrap();
    let arn = "arn:aws:iam::123456789012:role/orders";
    let known: Vec<String> = facts.selectors.iter().map(ToString::to_string).collect();
    let expected = [
        "aws-iam:account=123456789012".to_owned(),
        "aws-iam:partition=aws".to_owned(),
        format!("aws-iam:role-arn={arn}"),
        "aws-iam:role-id=AROA3XFRBF535PLBIFPI4".to_owned(),
        "aws-iam:role-name=orders".to_owned(),
    ];
    assert_eq!(known, expected);
    let pin = Pin {
        subject: Selector::new("aws-iam:role-arn", arn),
        fact: Selector::new("aws-iam:role-id", "AROA3XFRBF535PLBIFPI4"),
    };
    assert_eq!(facts.pins, [pin]);

    let asked = stage.asked.recv().await.unwrap().to_ascii_lowercase();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("post / http/1.1\r\n"), "{head}");
    assert_eq!(body, STS_BODY.to_ascii_lowercase());
    let mut names: Vec<&str> = head
        .lines()
        .skip(1)
        .filter_map(|line| Some(line.split_once(':')?.0))
        .collect();
    names.sort_unstable();
    let sent = [
        "authorization",
        "content-length",
        "content-type",
        "host",
        "x-amz-date",
        "x-amz-security-token",
        "x-sidewind-key",
        "x-sidewind-nonce",
        "x-sidewind-server-id",
    ];
    assert_eq!(names, sent, "and no accept among them");
    assert!(head.contains(&format!("\r\nhost: {}\r\n", region().host())));
}

#[tokio::test]
async fn evidence_is_good_once_and_for_one_key() {
    let mut stage = Stage::new(good()).await;
    let evidence = stage.evidence();
    let other = sidewind_identity::PrivateKey::generate()
        .unwrap()
        .csr_der()
        .unwrap();
    let refusal = stage
        .attest_for(evidence.clone(), &other)
        .await
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::EvidenceRefused);
    assert!(
        !stage.was_asked(),
        "STS learns nothing of a key that it is not for"
    );

    stage.attest(evidence.clone()).await.unwrap();
    assert!(stage.was_asked());
    let refusal = stage.attest(evidence).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::ChallengeUnknown);
    assert!(!stage.was_asked(), "a replay goes nowhere");

    let mut invented = stage.evidence();
    set(&mut invented, "x-sidewind-nonce", Some(&"x".repeat(43)));
    let refusal = stage.attest(invented).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::ChallengeUnknown);
    let refusal = stage
        .attest_for(stage.evidence(), b"no csr")
        .await
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::CsrRefused);
}

#[tokio::test]
async fn a_nonce_is_spent_even_when_sts_refuses() {
    let answer = http(
        "403 Forbidden",
        "text/xml",
        "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code></Error></ErrorResponse>",
    );
    let stage = Stage::new(answer).await;
    let evidence = stage.evidence();
    let refusal = stage.attest(evidence.clone()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::EvidenceRefused);
    assert!(refusal.message.contains("SignatureDoesNotMatch"));
    let refusal = stage.attest(evidence).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::ChallengeUnknown);
}

#[tokio::test]
async fn answers_that_are_not_stss_are_refused() {
    let body = "x".repeat(70_000);
    for (answer, says) in [
        (http("302 Found", "text/xml", ""), "redirects"),
        (http("200 OK", "application/json", "{}"), "text/xml"),
        (http("200 OK", "text/xml", &body), "cannot be asked"),
        (http("200 OK", "text/xml", "<!DOCTYPE x><x/>"), "form"),
        ("not HTTP".to_owned(), "cannot be asked"),
        (String::new(), "cannot be asked"),
    ] {
        let stage = Stage::new(answer.clone()).await;
        let refusal = stage.attest(stage.evidence()).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::EvidenceUnverifiable, "{answer:.50}");
        assert!(refusal.message.contains(says), "{answer:.50}: {refusal}");
    }
}

#[tokio::test]
async fn a_server_that_the_authorities_do_not_vouch_for_is_not_asked() {
    let mut stage = Stage::new(good()).await;
    let other = Stage::new(good()).await;
    let mut region = AwsRegion::clone(&stage.regions[0]);
    region.ca_file.clone_from(&other.regions[0].ca_file);
    stage.regions = [Arc::new(region)];
    let refusal = stage.attest(stage.evidence()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::EvidenceUnverifiable);
    assert!(!stage.was_asked());
}

#[tokio::test]
async fn callers_that_are_not_roles_of_known_accounts_are_refused() {
    let role = |rest: &str| format!("arn:aws:sts::{rest}");
    for (arn, user_id, account, says) in [
        (
            role("999999999999:assumed-role/orders/0f5c"),
            USER_ID,
            "999999999999",
            "account 999999999999",
        ),
        (
            role("999999999999:assumed-role/orders/0f5c"),
            USER_ID,
            ACCOUNT,
            "contradicts",
        ),
        (ARN.to_owned(), USER_ID, "999999999999", "contradicts"),
        (
            ARN.to_owned(),
            "AROA3XFRBF535PLBIFPI4:else",
            ACCOUNT,
            "contradicts",
        ),
        (
            ARN.to_owned(),
            "AIDA3XFRBF535PLBIFPI4:0f5c",
            ACCOUNT,
            "not those of an assumed role",
        ),
        (ARN.to_owned(), "AIDACKCEVSQ6C2EXAMPLE", ACCOUNT, "form"),
        (
            ARN.replace(":aws:", ":aws-cn:"),
            USER_ID,
            ACCOUNT,
            "partition",
        ),
        (
            "arn:aws:iam::123456789012:user/alice".to_owned(),
            "AIDACKCEVSQ6C2EXAMPLE",
            ACCOUNT,
            "not those of an assumed role",
        ),
        (
            "arn:aws:iam::123456789012:root".to_owned(),
            ACCOUNT,
            ACCOUNT,
            "not those of an assumed role",
        ),
        (
            role("123456789012:assumed-role/a/orders/0f5c"),
            USER_ID,
            ACCOUNT,
            "not those of an assumed role",
        ),
    ] {
        let stage = Stage::new(identity(&arn, user_id, account)).await;
        let refusal = stage.attest(stage.evidence()).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::EvidenceRefused);
        assert!(refusal.message.contains(says), "{arn}: {refusal}");
    }
}

#[tokio::test]
async fn without_a_configuration_nothing_is_taken() {
    let stage = Stage::new(good()).await;
    let evidence = Evidence::AwsIam(stage.evidence());
    let presented = Presented {
        evidence: &evidence,
        csr: &stage.csr,
        now: signed_at(),
    };
    let refusal = stage.attestor.attest(presented).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::AttestorNotConfigured);
}
