//! Against an API that answers as told.

use super::*;
use crate::issuance::authority::{CertificateAuthority, RootSource};
use crate::store::tests::empty_store;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use sidewind_identity::authority::SvidTemplate;
use sidewind_identity::{SpiffeId, Usage, VerifyOptions, verify_chain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const ARN: &str = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/2f6c";
const CERTIFICATE: &str =
    "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/2f6c/certificate/1";
const YEAR: Duration = Duration::from_secs(365 * 86_400);

type Answer = Box<dyn FnMut(&str, &Value) -> (u16, String) + Send>;

/// An authority at AWS: its root, and what is answered.
struct Aws {
    pca: AwsPca,
    _files: tempfile::TempDir,
}

/// The root of AWS Private CA, and what it signs requests with.
struct Root {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Root {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let now = std::time::SystemTime::now();
        (params.not_before, params.not_after) = (now.into(), (now + YEAR).into());
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap());
        Self {
            issuer: issuer.unwrap(),
        }
    }

    /// What the template makes of a request, changed as a test says.
    fn sign(&self, request: &Value, change: impl FnOnce(&mut CertificateParams)) -> String {
        let pem = STANDARD.decode(request["Csr"].as_str().unwrap()).unwrap();
        let pem = String::from_utf8(pem).unwrap();
        let asked = CertificateSigningRequestParams::from_pem(&pem).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = asked.params.distinguished_name;
        params.subject_alt_names = asked.params.subject_alt_names;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        params.use_authority_key_identifier_extension = true;
        let until = request["Validity"]["Value"].as_u64().unwrap();
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(until);
        let from = SystemTime::now() - Duration::from_secs(3600);
        (params.not_before, params.not_after) = (from.into(), until.into());
        change(&mut params);
        params
            .signed_by(&asked.public_key, &self.issuer)
            .unwrap()
            .pem()
    }

    fn certificate(&self) -> (u16, String) {
        (200, json!({"Certificate": self.issuer.pem()}).to_string())
    }
}

impl Aws {
    async fn start(mut answer: Answer) -> Self {
        let files = tempfile::tempdir().unwrap();
        let server = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let ca_file = files.path().join("ca.pem");
        std::fs::write(&ca_file, server.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls_pki_types::PrivateKeyDer::try_from(server.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![server.cert.der().clone()], key.unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let Some((head, body)) = read(&mut stream).await else {
                    continue;
                };
                assert!(head.contains("/eu-west-1/acm-pca/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature="), "{head}");
                let action = head.split("x-amz-target: ACMPrivateCA.").nth(1).unwrap();
                let action = action.split("\r\n").next().unwrap();
                let (status, body) = answer(action, &serde_json::from_slice(&body).unwrap());
                let text = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let credentials = CredentialsSource::from_variables(|name| match name {
            "AWS_ACCESS_KEY_ID" => Some("AKIDEXAMPLE".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("secret".to_owned()),
            _ => None,
        });
        let pca = AwsPca::new(Settings {
            arn: ARN.parse().unwrap(),
            endpoint: Some(HttpsUrl::from_host("127.0.0.1", port).unwrap()),
            ca_file: Some(ca_file),
            credentials: credentials.unwrap(),
        });
        Self { pca, _files: files }
    }
}

/// A request's head and body.
async fn read(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head
                .split("content-length: ")
                .nth(1)?
                .split("\r\n")
                .next()?;
            let length: usize = length.parse().unwrap();
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes[end + 4..].to_vec()));
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// Answers as AWS does; the certificate is being made for so many questions.
fn faithful(root: Root, mut pending: usize) -> Answer {
    let mut issued = String::new();
    Box::new(move |action, body| {
        assert_eq!(body["CertificateAuthorityArn"], ARN);
        match action {
            "GetCertificateAuthorityCertificate" => root.certificate(),
            "IssueCertificate" => {
                assert_eq!(
                    body["TemplateArn"],
                    "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1"
                );
                assert_eq!(body["SigningAlgorithm"], "SHA256WITHECDSA");
                issued = root.sign(body, |_| {});
                (200, json!({"CertificateArn": CERTIFICATE}).to_string())
            }
            "GetCertificate" if pending > 0 => {
                pending -= 1;
                let refusal = json!({"__type": "RequestInProgressException", "message": "wait"});
                (400, refusal.to_string())
            }
            "GetCertificate" => {
                assert_eq!(body["CertificateArn"], CERTIFICATE);
                (
                    200,
                    json!({"Certificate": issued, "CertificateChain": root.issuer.pem()})
                        .to_string(),
                )
            }
            other => panic!("{other} was asked for"),
        }
    })
}

#[tokio::test]
async fn a_control_plane_signs_below_the_root_of_aws() {
    let aws = Aws::start(faithful(Root::new(), 2)).await;
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let source = RootSource::Upstream(Arc::new(aws.pca));
    let authority = CertificateAuthority::open(store, trust_domain(), source, now)
        .await
        .unwrap();
    let key = PrivateKey::generate().unwrap();
    let template = SvidTemplate {
        id: SpiffeId::parse("spiffe://example.org/w").unwrap(),
        ttl: Duration::from_secs(3600),
        dns_names: Vec::new(),
    };
    let issued = authority.sign_template(&key.csr_der().unwrap(), &template, now);
    let chain = issued.unwrap().chain;
    assert_eq!(chain.len(), 2);
    let options = VerifyOptions::default();
    let id = verify_chain(&chain, &authority.bundles(), Usage::Client, now, &options).unwrap();
    assert_eq!(id, template.id);
}

#[tokio::test]
async fn each_signing_authority_has_a_key_and_a_name_of_its_own() {
    let aws = Aws::start(faithful(Root::new(), 0)).await;
    let now = SystemTime::now();
    let offer = aws.pca.offer(&trust_domain(), now).await.unwrap();
    let again = aws.pca.offer(&trust_domain(), now).await.unwrap();
    assert!(
        Arc::ptr_eq(&offer, &again),
        "it is asked for once in a while"
    );
    let month = Duration::from_secs(30 * 86_400);
    let first = aws.pca.issue(month, now).await.unwrap();
    let second = aws.pca.issue(month, now).await.unwrap();
    assert_ne!(first.key_id(), second.key_id());
    assert_ne!(first.chain()[0], second.chain()[0]);
    assert!(first.not_after() <= now + month);
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_refused_with_what_is_wrong() {
    type Say = fn(&Root, &str, &Value) -> Option<(u16, String)>;
    let rows: [(&str, Say, &str); 6] = [
        (
            "denied",
            |_, action, _| {
                let refusal = json!({"__type": "com.amazonaws.acmpca#AccessDeniedException", "Message": "not you"});
                (action == "IssueCertificate").then(|| (400, refusal.to_string()))
            },
            "IssueCertificate was refused with AccessDeniedException: not you",
        ),
        (
            "garbage",
            |_, action, _| (action == "GetCertificate").then(|| (200, "<html>".to_owned())),
            "the answer to GetCertificate cannot be read",
        ),
        (
            "no PEM",
            |_, action, _| {
                let body = json!({"Certificate": "nothing"}).to_string();
                (action == "GetCertificate").then_some((200, body))
            },
            "holds 0 certificates",
        ),
        (
            "too much",
            |_, action, _| (action == "GetCertificate").then(|| (200, " ".repeat(300_000))),
            "more than 262144 bytes",
        ),
        (
            "an error without a word",
            |_, action, _| (action == "IssueCertificate").then(|| (503, String::new())),
            "has status 503",
        ),
        (
            "another's certificate",
            |root, action, _| {
                let body = json!({"Certificate": root.issuer.pem()}).to_string();
                (action == "GetCertificate").then_some((200, body))
            },
            "",
        ),
    ];
    for (name, say, expected) in rows {
        let root = Root::new();
        let mut answer = faithful(Root::new(), 0);
        let aws = Aws::start(Box::new(move |action, body| {
            say(&root, action, body).unwrap_or_else(|| answer(action, body))
        }))
        .await;
        let now = SystemTime::now();
        aws.pca.offer(&trust_domain(), now).await.unwrap();
        let error = aws.pca.issue(Duration::from_secs(86_400), now).await;
        let error = crate::telemetry::chain(&error.map(|_| ()).unwrap_err());
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_template_signs_nothing() {
    type Change = fn(&mut CertificateParams);
    let rows: [(&str, Change); 3] = [
        ("no authority", |params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }),
        ("no extensions, as moto answers", |params| {
            params.is_ca = IsCa::NoCa;
            params.key_usages = Vec::new();
        }),
        ("may not sign certificates", |params| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }),
    ];
    for (name, change) in rows {
        let root = Root::new();
        let mut issued = String::new();
        let aws = Aws::start(Box::new(move |action, body| match action {
            "GetCertificateAuthorityCertificate" => root.certificate(),
            "IssueCertificate" => {
                issued = root.sign(body, change);
                (200, json!({"CertificateArn": CERTIFICATE}).to_string())
            }
            _ => (200, json!({"Certificate": issued}).to_string()),
        }))
        .await;
        let now = SystemTime::now();
        let source = RootSource::Upstream(Arc::new(aws.pca));
        let (_directory, store) = empty_store().await;
        let opened = CertificateAuthority::open(store, trust_domain(), source, now).await;
        assert!(opened.is_err(), "{name}");
    }
}

#[test]
fn credentials_come_from_variables_or_an_endpoint_beside_the_container() {
    let from = |pairs: &'static [(&'static str, &'static str)]| {
        CredentialsSource::from_variables(move |wanted| {
            let found = pairs.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        })
    };
    assert!(matches!(
        from(&[
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "hidden")
        ]),
        Ok(CredentialsSource::Given(_))
    ));
    for uri in [
        "http://127.0.0.1:51679/v1",
        "http://169.254.170.23/v1/credentials",
        "http://[::1]/x",
    ] {
        let source = CredentialsSource::from_variables(|name| {
            (name == "AWS_CONTAINER_CREDENTIALS_FULL_URI").then(|| uri.to_owned())
        });
        assert!(
            matches!(source, Ok(CredentialsSource::Endpoint(_))),
            "{uri}"
        );
    }
    for (pairs, says) in [
        (&[][..], "set AWS_ACCESS_KEY_ID"),
        (&[("AWS_ACCESS_KEY_ID", "a")], "go together"),
        (
            &[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "x")],
            "begin with /",
        ),
        (
            &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://10.0.0.1/x")],
            "loopback",
        ),
        (
            &[(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://127.0.0.1@evil/x",
            )],
            "loopback",
        ),
        (
            &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://127.0.0.1/x")],
            "loopback",
        ),
    ] {
        let error = from(pairs).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let given = from(&[
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
    ]);
    assert!(!format!("{given:?}").contains("hidden"));
}
