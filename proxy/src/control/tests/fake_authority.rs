//! Certificates as a real control plane signs them.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use sidewind_api::v1;
use sidewind_identity::authority::{RootAuthority, SigningAuthority, SvidTemplate, generate_root};
use sidewind_identity::{SpiffeId, TrustDomain};

const HOUR: Duration = Duration::from_secs(3600);

/// A root and what it signs with.
pub(super) struct Authority {
    pub(super) root: RootAuthority,
    signing: Mutex<SigningAuthority>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let trust_domain = TrustDomain::parse("sidewind.local").unwrap();
        let now = SystemTime::now() - HOUR;
        let root = generate_root(&trust_domain, 1000 * HOUR, now).unwrap();
        let signing = root.issue_intermediate(900 * HOUR, now).unwrap();
        Self {
            root,
            signing: Mutex::new(signing),
        }
    }

    /// Signs by another authority from now on, and gives the key identifier of the one before.
    pub(super) fn rotate(&self) -> String {
        let now = SystemTime::now() - HOUR;
        let next = self.root.issue_intermediate(900 * HOUR, now).unwrap();
        let before = std::mem::replace(&mut *self.signing.lock().unwrap(), next);
        before.key_id().to_owned()
    }

    pub(super) fn bundle(&self, sequence: u64) -> v1::TrustBundle {
        v1::TrustBundle {
            trust_domain: "sidewind.local".to_owned(),
            sequence,
            authorities: vec![self.root.certificate().to_vec()],
            ..v1::TrustBundle::default()
        }
    }

    /// An SVID that real verifiers take now, and that ends at a moment of simulated time.
    pub(super) fn sign(&self, csr: &[u8], id: &str, end: SystemTime) -> Vec<Vec<u8>> {
        // Simulated time may be behind real time by what the test has taken.
        self.sign_from(csr, id, SystemTime::now() - Duration::from_secs(300), end)
    }

    /// The same, valid from about `begin` on.
    pub(super) fn sign_from(
        &self,
        csr: &[u8],
        id: &str,
        begin: SystemTime,
        end: SystemTime,
    ) -> Vec<Vec<u8>> {
        let template = SvidTemplate {
            id: SpiffeId::parse(id).unwrap(),
            ttl: end.duration_since(begin).unwrap(),
            dns_names: Vec::new(),
        };
        let signing = self.signing.lock().unwrap();
        let chain = signing.sign(csr, &template, begin).unwrap();
        chain
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect()
    }
}
