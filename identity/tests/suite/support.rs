//! What the test files of this crate share: a mesh to issue from, and connections in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::CertificateDer;
use sidewind_identity::authority::{RootAuthority, SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::{PrivateKey, SpiffeId, Svid, TrustBundle, TrustBundles, TrustDomain};
use x509_parser::certificate::X509Certificate;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A trust domain with its authorities.
pub(crate) struct Mesh {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) root: RootAuthority,
    pub(crate) signing: SigningAuthority,
    pub(crate) bundles: Arc<TrustBundles>,
}

impl Mesh {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::at(trust_domain, SystemTime::now())
    }

    pub(crate) fn at(trust_domain: &str, now: SystemTime) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        let root = generate_root(&trust_domain, 24 * 365 * HOUR, now).unwrap();
        let signing = root.issue_intermediate(24 * 7 * HOUR, now).unwrap();
        let bundle =
            TrustBundle::from_der(trust_domain.clone(), 1, vec![root.certificate().to_vec()]);
        Self {
            bundles: Arc::new(bundle.unwrap().into()),
            trust_domain,
            root,
            signing,
        }
    }

    pub(crate) fn template(&self, path: &str) -> SvidTemplate {
        SvidTemplate {
            id: SpiffeId::from_parts(&self.trust_domain, path).unwrap(),
            ttl: HOUR,
            dns_names: Vec::new(),
        }
    }

    pub(crate) fn svid(&self, path: &str) -> Svid {
        self.svid_at(path, SystemTime::now())
    }

    pub(crate) fn svid_at(&self, path: &str, now: SystemTime) -> Svid {
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr_der().unwrap();
        let chain = self.signing.sign(&csr, &self.template(path), now).unwrap();
        Svid::new(chain, key).unwrap()
    }
}

/// Which side refused, and why.
#[derive(Debug)]
pub(crate) enum Refused {
    ByClient(rustls::Error),
    ByServer(rustls::Error),
}

/// Moves TLS records between both sides until neither has any, as TCP would.
pub(crate) fn handshake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<(), Refused> {
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(Refused::ByServer)?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(Refused::ByClient)?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    x509_parser::parse_x509_certificate(der).unwrap().1
}

pub(crate) fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr_der().unwrap()
}

pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}
