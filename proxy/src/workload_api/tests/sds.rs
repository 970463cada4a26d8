//! Envoy's side of the socket.

use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::super::proto::envoy::config::core::v3::{DataSource, data_source};
use super::super::proto::envoy::extensions::transport_sockets::tls::v3::{
    Secret, SpiffeCertValidatorConfig, secret,
};
use super::super::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use super::super::proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use super::super::proto::google::rpc;
use super::super::secrets::SECRET_TYPE;
use super::*;

/// An Envoy, which sends no metadata.
struct Envoy {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

fn wanting(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        type_url: SECRET_TYPE.to_owned(),
        ..DiscoveryRequest::default()
    }
}

impl Envoy {
    async fn start(world: &World, names: &[&str]) -> Self {
        let (requests, stream) = mpsc::channel(8);
        requests.send(wanting(names)).await.unwrap();
        let mut client = SecretDiscoveryServiceClient::new(world.channel().await);
        let responses = client.stream_secrets(ReceiverStream::new(stream)).await;
        Self {
            requests,
            responses: responses.unwrap().into_inner(),
        }
    }

    async fn next(&mut self) -> Result<DiscoveryResponse, Status> {
        next(&mut self.responses).await
    }

    /// Says what became of a response.
    async fn answer(&self, response: &DiscoveryResponse, names: &[&str], error: Option<&str>) {
        let request = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| rpc::Status {
                code: 13,
                message: message.to_owned(),
            }),
            ..wanting(names)
        };
        self.requests.send(request).await.unwrap();
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<Secret> {
    assert_eq!(response.type_url, SECRET_TYPE);
    let resources = response.resources.iter();
    resources
        .map(|resource| {
            assert_eq!(resource.type_url, SECRET_TYPE);
            Secret::decode(resource.value.as_slice()).unwrap()
        })
        .collect()
}

fn text(source: Option<&DataSource>) -> String {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(data_source::Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes.clone()).unwrap()
        }
        None => panic!("no data"),
    }
}

fn certificate(secret: &Secret) -> (String, String) {
    let Some(secret::Type::TlsCertificate(certificate)) = &secret.r#type else {
        panic!("{} is no certificate", secret.name);
    };
    (
        text(certificate.certificate_chain.as_ref()),
        text(certificate.private_key.as_ref()),
    )
}

/// The PEM roots, or the trust domains and PEM roots of Envoy's SPIFFE validator.
fn validation(secret: &Secret) -> (Option<String>, Vec<(String, String)>) {
    let Some(secret::Type::ValidationContext(context)) = &secret.r#type else {
        panic!("{} is no validation context", secret.name);
    };
    let trusted = context.trusted_ca.as_ref();
    let config = context.custom_validator_config.as_ref().map(|custom| {
        assert_eq!(custom.name, "envoy.tls.cert_validator.spiffe");
        let packed = custom.typed_config.as_ref().unwrap();
        assert!(packed.type_url.ends_with(".SPIFFECertValidatorConfig"));
        SpiffeCertValidatorConfig::decode(packed.value.as_slice()).unwrap()
    });
    let domains = config.unwrap_or_default().trust_domains;
    (
        trusted.map(|trusted| text(Some(trusted))),
        domains
            .iter()
            .map(|domain| (domain.name.clone(), text(domain.trust_bundle.as_ref())))
            .collect(),
    )
}

#[tokio::test(start_paused = true)]
async fn each_name_brings_its_secret() {
    let world = World::new();
    let other = Authority::new("other.example");
    let mut bundles = TrustBundles::from(world.authority.bundle());
    bundles.insert(other.bundle());
    world.change_bundles(bundles, JwtBundles::new());
    tokio::task::yield_now().await;
    let svid = world.credentials.borrow().clone().unwrap().svid.clone();
    let mut client = SecretDiscoveryServiceClient::new(world.channel().await);
    let (own, foreign) = (world.authority.bundle().to_pem(), other.bundle().to_pem());
    for name in ["default", OWN] {
        let response = client.fetch_secrets(wanting(&[name])).await.unwrap();
        let [secret] = &secrets(response.get_ref())[..] else {
            panic!("one secret");
        };
        assert_eq!(secret.name, name);
        let (chain, key) = certificate(secret);
        assert_eq!(chain, svid.chain_pem());
        assert_eq!(key, *svid.key().to_pkcs8_pem());
    }
    for (name, roots) in [
        ("ROOTCA", &own),
        ("spiffe://sidewind.local", &own),
        ("spiffe://other.example", &foreign),
    ] {
        let response = client.fetch_secrets(wanting(&[name])).await.unwrap();
        let found = secrets(response.get_ref());
        assert_eq!(validation(&found[0]), (Some(roots.clone()), Vec::new()));
    }
    let response = client.fetch_secrets(wanting(&["ALL"])).await.unwrap();
    let each = vec![
        ("other.example".to_owned(), foreign),
        ("sidewind.local".to_owned(), own),
    ];
    assert_eq!(validation(&secrets(response.get_ref())[0]), (None, each));
    let response = client.fetch_secrets(wanting(&[])).await.unwrap();
    let names: Vec<String> = secrets(response.get_ref())
        .into_iter()
        .map(|secret| secret.name.clone())
        .collect();
    assert_eq!(names, ["ALL", "ROOTCA", "default"]);
}

#[tokio::test(start_paused = true)]
async fn names_of_others_and_other_types_are_refused() {
    let world = World::new();
    let mut client = SecretDiscoveryServiceClient::new(world.channel().await);
    let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let other_type = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..wanting(&["default"])
    };
    for request in [
        wanting(&["spiffe://sidewind.local/ns/data/sa/other"]),
        wanting(&["default", "spiffe://unknown.example"]),
        wanting(&["Default"]),
        wanting(&many),
        other_type,
    ] {
        let refused = client.fetch_secrets(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_told_of_each_rotation_and_of_nothing_else() {
    let world = World::new();
    let mut certificates = Envoy::start(&world, &["default"]).await;
    let mut roots = Envoy::start(&world, &["ROOTCA"]).await;
    let first = certificates.next().await.unwrap();
    certificates.answer(&first, &["default"], None).await;
    let bundle = roots.next().await.unwrap();
    roots.answer(&bundle, &["ROOTCA"], None).await;
    assert!(is_quiet(&mut certificates.responses).await);

    let svid = world.rotate(HOUR);
    let second = certificates.next().await.unwrap();
    assert_ne!(second.version_info, first.version_info);
    assert_ne!(second.nonce, first.nonce);
    assert_eq!(certificate(&secrets(&second)[0]).0, svid.chain_pem());
    assert!(
        is_quiet(&mut roots.responses).await,
        "the roots are the same"
    );

    // About an earlier response, which is the past.
    certificates.answer(&first, &["default"], None).await;
    certificates.answer(&second, &["default"], None).await;
    assert!(is_quiet(&mut certificates.responses).await);
}

#[tokio::test(start_paused = true)]
async fn a_refused_secret_is_not_sent_again_and_its_successor_is() {
    let world = World::new();
    let mut envoy = Envoy::start(&world, &["default"]).await;
    let first = envoy.next().await.unwrap();
    envoy
        .answer(&first, &["default"], Some("bad certificate"))
        .await;
    assert!(is_quiet(&mut envoy.responses).await);
    world.rotate(HOUR);
    assert_ne!(envoy.next().await.unwrap().version_info, first.version_info);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_wants_other_names_gets_them() {
    let world = World::new();
    let mut envoy = Envoy::start(&world, &["default"]).await;
    let first = envoy.next().await.unwrap();
    envoy.answer(&first, &["default", "ROOTCA"], None).await;
    let both = envoy.next().await.unwrap();
    assert_eq!(secrets(&both).len(), 2);
    envoy.answer(&both, &["unknown"], None).await;
    let refused = envoy.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_the_svid_does() {
    let world = World::new();
    world.rotate(2 * MINUTE);
    let mut envoy = Envoy::start(&world, &["default"]).await;
    envoy.next().await.unwrap();
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(envoy.next().await.unwrap_err().code(), Code::Unavailable);
}
