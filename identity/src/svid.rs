//! A workload's own certificate chain with its key.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::key::PrivateKey;
use crate::pem;
use crate::spiffe_id::SpiffeId;
use crate::verify::{self, Leaf, VerifyError};
use crate::x509::{self, KeyIds};

/// Why a chain and a key do not make an SVID.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The chain breaks a rule that needs no issuer to judge.
    #[error("the certificate is no X.509-SVID: {0}")]
    Chain(#[from] VerifyError),
    /// The leaf was signed for another key.
    #[error("the certificate is for another private key")]
    OtherKey,
    /// The TLS library does not take the key.
    #[error("the TLS library refuses the key: {0}")]
    Key(#[source] rustls::Error),
}

/// An X.509-SVID: who a workload is, and what proves it. Clones share everything.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

struct Inner {
    leaf: Leaf,
    certified_key: Arc<CertifiedKey>,
    key: PrivateKey,
}

impl Svid {
    /// Joins a chain, leaf first and without the root, with the leaf's private key.
    ///
    /// Whether anybody believes the chain is another question: see [`crate::verify_chain`].
    ///
    /// # Errors
    /// [`SvidError`] when the leaf breaks the rules of the X509-SVID document or the key is not the leaf's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, SvidError> {
        let leaf_der = chain.first().ok_or(VerifyError::EmptyChain)?;
        verify::check_bounds(&chain)?;
        let leaf = verify::parse_leaf(leaf_der)?;
        let certificate = x509::parse(leaf_der).map_err(VerifyError::from)?;
        if certificate.public_key().raw != key.public_key_der() {
            return Err(SvidError::OtherKey);
        }
        let pkcs8 = key.to_pkcs8_der();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        let signing_key = any_ecdsa_type(&der).map_err(SvidError::Key)?;
        Ok(Self(Arc::new(Inner {
            leaf,
            certified_key: Arc::new(CertifiedKey::new(chain, signing_key)),
            key,
        })))
    }

    /// Whose SVID it is.
    pub fn id(&self) -> &SpiffeId {
        &self.0.leaf.id
    }

    /// From when on the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        self.0.leaf.not_before
    }

    /// Until when, inclusive, the leaf is valid.
    pub fn not_after(&self) -> SystemTime {
        self.0.leaf.not_after
    }

    /// The leaf's serial number in lower-case hexadecimal.
    pub fn serial_hex(&self) -> &str {
        &self.0.leaf.serial_hex
    }

    /// Key identifiers of every authority that the chain passes, the root's included: those of the intermediates, and
    /// those that leaf and intermediates name as their issuers'.
    pub fn authority_key_ids(&self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        for (position, der) in self.chain().iter().enumerate() {
            // One that cannot be read is no link of a chain that anybody verifies.
            let Ok(of_certificate) = KeyIds::of(der) else {
                continue;
            };
            ids.extend(of_certificate.authority);
            if position > 0 {
                ids.insert(of_certificate.subject);
            }
        }
        ids
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certified_key.cert
    }

    /// The certificates in PEM, leaf first, without the root.
    pub fn chain_pem(&self) -> String {
        let chain = self.chain().iter();
        chain.map(|der| pem::encode("CERTIFICATE", der)).collect()
    }

    /// The leaf's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.0.key
    }

    /// The chain and key in the form that rustls takes.
    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.0.certified_key
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", self.id())
            .field("serial", &self.serial_hex())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}
