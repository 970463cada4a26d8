//! An authority of the tests' own: to give a control plane its root, and to make certificates that no control plane
//! would sign.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sidewind_identity::authority::{RootAuthority, SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::{PrivateKey, SpiffeId, Svid, TrustDomain};

use crate::mesh::TRUST_DOMAIN;
use crate::scratch::Scratch;

const DAY: Duration = Duration::from_secs(86_400);

/// A root and an intermediate of the tests' trust domain.
pub struct TestAuthority {
    root: RootAuthority,
    signing: SigningAuthority,
}

impl std::fmt::Debug for TestAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestAuthority")
    }
}

/// An SVID as files.
#[derive(Clone, Debug)]
pub struct SvidFiles {
    /// The certificate in DER.
    pub certificate: PathBuf,
    /// The intermediate in PEM.
    pub chain: PathBuf,
    /// The key in PEM.
    pub key: PathBuf,
}

impl TestAuthority {
    /// One that began yesterday.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        Self::of(TRUST_DOMAIN)
    }

    /// One of another trust domain.
    pub fn of(trust_domain: &str) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).expect("a trust domain");
        let yesterday = SystemTime::now() - DAY;
        let root = generate_root(&trust_domain, 365 * DAY, yesterday).expect("a root");
        let signing = root
            .issue_intermediate(30 * DAY, yesterday)
            .expect("an intermediate");
        Self { root, signing }
    }

    /// The root in PEM.
    pub fn root_pem(&self) -> String {
        self.root.certificate_pem()
    }

    /// The root's key in PEM.
    pub fn root_key_pem(&self) -> String {
        self.root.key().to_pkcs8_pem().to_string()
    }

    /// The root's key in DER (PKCS #8), for a search.
    pub fn root_key_der(&self) -> Vec<u8> {
        self.root.key().to_pkcs8_der().to_vec()
    }

    /// A certificate for `id`, valid for an hour from `from` on.
    pub fn svid(&self, id: &str, from: SystemTime) -> Svid {
        let key = PrivateKey::generate().expect("a key");
        let id = SpiffeId::parse(id).expect("a SPIFFE ID");
        let template = SvidTemplate {
            id,
            ttl: Duration::from_secs(3600),
            dns_names: Vec::new(),
        };
        let chain = self
            .signing
            .sign(&key.csr_der().expect("a request"), &template, from);
        Svid::new(chain.expect("an SVID"), key).expect("an SVID")
    }

    /// As [`TestAuthority::svid`], in files called after `name`.
    pub fn svid_files(
        &self,
        scratch: &Scratch,
        name: &str,
        id: &str,
        from: SystemTime,
    ) -> SvidFiles {
        let svid = self.svid(id, from);
        let leaf = svid.chain().first().expect("an SVID has a certificate");
        SvidFiles {
            certificate: scratch.write(&format!("{name}.der"), leaf),
            chain: scratch.write(&format!("{name}-chain.pem"), self.signing.chain_pem()),
            key: scratch.write(&format!("{name}.key"), svid.key().to_pkcs8_pem().as_bytes()),
        }
    }

    /// As [`TestAuthority::svid`], in one PEM file: its certificates and then its key.
    pub fn svid_pem(&self, scratch: &Scratch, name: &str, id: &str, from: SystemTime) -> PathBuf {
        let svid = self.svid(id, from);
        let pem = svid.chain_pem() + &svid.key().to_pkcs8_pem();
        scratch.write(&format!("{name}.pem"), pem)
    }
}
