//! A client that attests, step by step: what a proxy does, and what it never would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_identity::{PrivateKey, TrustBundle, TrustBundles, TrustDomain, tls};
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::mesh::{Mesh, TRUST_DOMAIN};

const TIMEOUT: Duration = Duration::from_secs(15);

/// One connection to a control plane, without a certificate, and a key to be certified.
#[derive(Debug)]
pub struct Attesting {
    runtime: Runtime,
    client: IdentityServiceClient<Channel>,
    /// The key that certificates are asked for.
    pub key: PrivateKey,
}

/// A refusal: the word for programs and the sentence for people.
pub type Refused = (Option<Reason>, String);

impl Attesting {
    /// Connects from the control plane's own host.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn connect(mesh: &Mesh) -> Self {
        let host = mesh.control_plane.host();
        let address = SocketAddr::from((host.address, 15010));
        let stream = host.place.connect(address, TIMEOUT);
        let stream = stream.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        stream.set_nonblocking(true).expect("a socket of one's own");
        let domain = TrustDomain::parse(TRUST_DOMAIN).expect("a trust domain");
        let bundle = TrustBundle::from_pem(domain, &mesh.control_plane.trust_bundle());
        let bundles = Arc::new(TrustBundles::from(bundle.expect("a trust bundle")));
        let config = tls::anonymous_client_config(&bundles, &[b"h2"]).expect("a TLS client");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let channel = runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
            let connecting = TlsConnector::from(config).connect(tls::server_name(), stream);
            let mut stream = Some(TokioIo::new(connecting.await.expect("a TLS handshake")));
            let connector = tower::service_fn(move |_: http::Uri| {
                let stream = stream.take();
                async move { stream.ok_or_else(|| std::io::Error::other("it has ended")) }
            });
            let endpoint = Endpoint::from_static("https://control-plane").timeout(TIMEOUT);
            endpoint
                .connect_with_connector(connector)
                .await
                .expect("HTTP/2")
        });
        Self {
            runtime,
            client: IdentityServiceClient::new(channel),
            key: PrivateKey::generate().expect("a key"),
        }
    }

    /// A challenge.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn challenge(&mut self) -> v1::ChallengeResponse {
        let asked = self.client.challenge(v1::ChallengeRequest::default());
        let answer = self.runtime.block_on(asked);
        answer.expect("a challenge").into_inner()
    }

    /// Attests for this connection's key.
    ///
    /// # Errors
    /// Why the control plane refused.
    pub fn attest(&mut self, evidence: Evidence) -> Result<v1::SvidResponse, Refused> {
        let request = v1::AttestRequest {
            csr: self.key.csr_der().expect("a signing request"),
            evidence: Some(evidence),
            version: "0.0.0".to_owned(),
        };
        let asked = self.client.attest(request);
        match self.runtime.block_on(asked) {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err((Reason::of(&status), status.message().to_owned())),
        }
    }
}
