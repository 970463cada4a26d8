//! Private keys and the certificate signing requests made with them.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::pem;

/// What can be wrong with a private key or with making one.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system's cryptography could not make a key.
    #[error("cannot generate a P-256 key: {0}")]
    Generate(#[source] rcgen::Error),
    /// The bytes are not a P-256 private key.
    #[error(
        "not a P-256 private key in PKCS #8 or SEC 1 form; make one with 'openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256'"
    )]
    NotP256,
    /// The text holds no private key in PEM form.
    #[error("no private key in PEM form found")]
    NoPem,
    /// The certificate signing request could not be made.
    #[error("cannot make a certificate signing request: {0}")]
    Csr(#[source] rcgen::Error),
}

/// An ECDSA P-256 private key. Clones share the key; it is wiped when the last of them goes.
#[derive(Clone)]
pub struct PrivateKey(Arc<WipedKeyPair>);

struct WipedKeyPair(KeyPair);

impl Drop for WipedKeyPair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PrivateKey {
    /// Makes a new key from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Generate`] when the cryptographic library fails.
    pub fn generate() -> Result<Self, KeyError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        Ok(Self(Arc::new(WipedKeyPair(key))))
    }

    /// Reads a key in PKCS #8 DER form.
    ///
    /// # Errors
    /// [`KeyError::NotP256`] for anything but a P-256 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_der(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)))
    }

    /// Reads the first private key of a PEM text (`PRIVATE KEY`, or `EC PRIVATE KEY` as older OpenSSL writes).
    ///
    /// # Errors
    /// [`KeyError::NoPem`] or [`KeyError::NotP256`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::NoPem)?;
        Self::from_der(&der)
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        // Through PKCS #8 whatever the form was, so that the key is always written in one form.
        let key =
            EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_der())
                .map_err(|_| KeyError::NotP256)?;
        let pkcs8 = key.to_pkcs8v1().map_err(|_| KeyError::NotP256)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(pkcs8.as_ref()),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|_| KeyError::NotP256)?;
        Ok(Self(Arc::new(WipedKeyPair(key))))
    }

    /// The key in PKCS #8 DER form, wiped when dropped.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.0.serialize_der())
    }

    /// The key in PKCS #8 PEM form, wiped when dropped.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode("PRIVATE KEY", self.0.0.serialized_der()))
    }

    /// A signing request that carries the public key and no name: the authority decides everything else.
    ///
    /// # Errors
    /// [`KeyError::Csr`] when the cryptographic library fails.
    pub fn csr_der(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&self.0.0).map_err(KeyError::Csr)?;
        Ok(csr.der().to_vec())
    }

    /// The public key as a DER SubjectPublicKeyInfo.
    pub fn public_key_der(&self) -> Vec<u8> {
        self.0.0.subject_public_key_info()
    }
}

/// Lets rcgen sign with a shared key.
pub(crate) struct Signer(pub(crate) PrivateKey);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.0.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.0.0.algorithm()
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.0.0.sign(message)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(P-256, redacted)")
    }
}
