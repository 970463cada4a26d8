//! That no connection goes unverified because an earlier one was verified.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::ServerSessionMemoryCache;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, HandshakeKind,
    ServerConfig, ServerConnection, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{SpiffeVerifier, TlsOptions, client_config_of, server_config_of, server_name};
use crate::authority::{SvidTemplate, generate_root};
use crate::{PrivateKey, SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain, VerifyOptions};

/// Counts how often it is asked before it asks the real one.
#[derive(Debug)]
struct Counting {
    real: SpiffeVerifier,
    calls: AtomicUsize,
}

impl Counting {
    fn new(bundles: &Arc<TrustBundles>) -> Arc<Self> {
        Arc::new(Self {
            real: SpiffeVerifier::new(bundles.clone(), VerifyOptions::default()),
            calls: AtomicUsize::new(0),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

type Signature = Result<HandshakeSignatureValid, Error>;

impl ClientCertVerifier for Counting {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        ClientCertVerifier::root_hint_subjects(&self.real)
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.real.verify_client_cert(leaf, rest, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        ClientCertVerifier::verify_tls12_signature(&self.real, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        ClientCertVerifier::verify_tls13_signature(&self.real, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(&self.real)
    }
}

impl ServerCertVerifier for Counting {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.real
            .verify_server_cert(leaf, rest, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        ServerCertVerifier::verify_tls12_signature(&self.real, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        ServerCertVerifier::verify_tls13_signature(&self.real, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&self.real)
    }
}

/// Both configurations of one workload that speaks to itself, each with its counter.
struct Pair {
    client: ClientConfig,
    server: ServerConfig,
    asked_by_client: Arc<Counting>,
    asked_by_server: Arc<Counting>,
}

impl Pair {
    fn new() -> Self {
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 60 * 60);
        let trust_domain = TrustDomain::parse("td").unwrap();
        let root = generate_root(&trust_domain, 30 * day, now).unwrap();
        let signing = root.issue_intermediate(7 * day, now).unwrap();
        let certificates = vec![root.certificate().to_vec()];
        let bundle = TrustBundle::from_der(trust_domain, 1, certificates).unwrap();
        let bundles = Arc::new(TrustBundles::from(bundle));
        let key = PrivateKey::generate().unwrap();
        let template = SvidTemplate {
            id: SpiffeId::parse("spiffe://td/w").unwrap(),
            ttl: day,
            dns_names: Vec::new(),
        };
        let chain = signing.sign(&key.csr_der().unwrap(), &template, now);
        let svid = Svid::new(chain.unwrap(), key).unwrap();

        let (asked_by_client, asked_by_server) = (Counting::new(&bundles), Counting::new(&bundles));
        let options = TlsOptions::default();
        let client = client_config_of(Some(&svid), asked_by_client.clone(), &[], &options);
        let server = server_config_of(&svid, asked_by_server.clone(), &[], &options);
        Self {
            client: ClientConfig::clone(&client.unwrap()),
            server: ServerConfig::clone(&server.unwrap()),
            asked_by_client,
            asked_by_server,
        }
    }

    /// Connects twice with the same configurations and gives back the second handshake's kind.
    fn connect_twice(&self) -> HandshakeKind {
        let client = Arc::new(self.client.clone());
        let server = Arc::new(self.server.clone());
        let connect = || {
            let mut from = ClientConnection::new(client.clone(), server_name()).unwrap();
            let mut to = ServerConnection::new(server.clone()).unwrap();
            while from.wants_write() || to.wants_write() {
                let mut wire = Vec::new();
                from.write_tls(&mut wire).unwrap();
                to.read_tls(&mut wire.as_slice()).unwrap();
                to.process_new_packets().unwrap();
                let mut wire = Vec::new();
                to.write_tls(&mut wire).unwrap();
                from.read_tls(&mut wire.as_slice()).unwrap();
                from.process_new_packets().unwrap();
            }
            from.handshake_kind().unwrap()
        };
        connect();
        connect()
    }
}

#[test]
fn each_connection_is_verified_by_both_sides() {
    let pair = Pair::new();
    assert_eq!(pair.connect_twice(), HandshakeKind::Full);
    assert_eq!(pair.asked_by_client.calls(), 2);
    assert_eq!(pair.asked_by_server.calls(), 2);
}

#[test]
fn a_client_that_would_resume_is_verified_again() {
    let mut pair = Pair::new();
    pair.client.resumption = Resumption::in_memory_sessions(8);
    assert_eq!(pair.connect_twice(), HandshakeKind::Full);
    assert_eq!(pair.asked_by_server.calls(), 2);
}

#[test]
fn a_server_that_would_resume_is_verified_again() {
    let mut pair = Pair::new();
    pair.server.session_storage = ServerSessionMemoryCache::new(8);
    pair.server.send_tls13_tickets = 2;
    assert_eq!(pair.connect_twice(), HandshakeKind::Full);
    assert_eq!(pair.asked_by_client.calls(), 2);
}

/// Guards the tests above: with resumption on, the second connection goes unverified.
#[test]
fn with_resumption_on_both_sides_the_second_connection_would_go_unverified() {
    let mut pair = Pair::new();
    pair.client.resumption = Resumption::in_memory_sessions(8);
    pair.server.session_storage = ServerSessionMemoryCache::new(8);
    pair.server.send_tls13_tickets = 2;
    assert_eq!(pair.connect_twice(), HandshakeKind::Resumed);
    assert_eq!(pair.asked_by_server.calls(), 1);
}
