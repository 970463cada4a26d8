//! A proof by an existing certificate: its key signs the challenge and the key that is to be certified.

use std::path::Path;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sidewind_api::evidence::{MAX_PROOF_CERTIFICATES, MAX_PROOF_CHAIN_BYTES, x509_proof};
use sidewind_api::v1;

use super::Binding;
use crate::config::read_bounded;

/// Most bytes of a PEM file: base64 makes a third more of what may be sent.
const MAX_FILE_BYTES: usize = 2 * MAX_PROOF_CHAIN_BYTES;

/// What the control plane verifies by the certificate's kind of key.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// A certificate and its key.
#[derive(Debug)]
pub(super) struct Holder {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
}

impl Holder {
    /// Reads both from their files.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub(super) fn read(certificate_file: &Path, key_file: &Path) -> Result<Self, String> {
        let certificates = read_bounded(certificate_file, MAX_FILE_BYTES)?;
        let key = read_bounded(key_file, MAX_FILE_BYTES)?;
        let (certificate_file, key_file) = (certificate_file.display(), key_file.display());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(certificates.as_bytes()).collect();
        let chain =
            chain.map_err(|error| format!("the file {certificate_file} is no PEM: {error}"))?;
        if chain.is_empty() || chain.len() > MAX_PROOF_CERTIFICATES {
            return Err(format!(
                "the file {certificate_file} holds {} certificates; it must hold one, and at most {} intermediates",
                chain.len(),
                MAX_PROOF_CERTIFICATES - 1
            ));
        }
        // The errors of PEM and of the library may quote what they read.
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| format!("the file {key_file} holds no private key in PEM"))?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|_| format!("the file {key_file} holds a key of a kind that is not known"))?;
        let pair = CertifiedKey::new(chain, key);
        pair.keys_match().map_err(|_| {
            format!("the key of {key_file} is not that of the certificate in {certificate_file}")
        })?;
        Ok(Self {
            chain: pair.cert,
            key: pair.key,
        })
    }

    /// The proof for one occasion.
    pub(super) fn evidence(&self, binding: &Binding) -> Result<v1::X509Proof, String> {
        let signer = self
            .key
            .choose_scheme(&SCHEMES)
            .ok_or("the existing certificate's key is not P-256, P-384, Ed25519 or RSA")?;
        let message = x509_proof(&binding.server_id, &binding.nonce, &binding.key_sha256);
        let signature = signer.sign(&message);
        Ok(v1::X509Proof {
            certificate_chain: self.chain.iter().map(|der| der.to_vec()).collect(),
            nonce: binding.nonce.clone(),
            signature: signature.map_err(|_| "the existing certificate's key does not sign")?,
        })
    }
}
