//! A chain of certificates from a stranger: bounded before it is read, read before anything is computed.

use super::roots::{Root, Roots};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use sidewind_api::evidence::{
    MAX_PROOF_CERTIFICATE_BYTES, MAX_PROOF_CERTIFICATES, MAX_PROOF_CHAIN_BYTES,
};
use std::cell::RefCell;
use std::time::SystemTime;
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bits of RSA keys. Verification by longer ones is work that strangers could make.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// How the signatures of chains may be made.
const CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// A chain that has been read, leaf first.
pub(super) struct Chain<'a> {
    leaf_der: &'a [u8],
    leaf: X509Certificate<'a>,
    /// The leaf again, as what verifies.
    end_entity: EndEntityCert<'a>,
    intermediates: &'a [CertificateDer<'a>],
    algorithm: &'static dyn SignatureVerificationAlgorithm,
}

impl<'a> Chain<'a> {
    /// Reads a chain. Nothing is verified yet.
    ///
    /// # Errors
    /// Which bound it passes, or what of it cannot be taken.
    pub(super) fn read(chain: &'a [CertificateDer<'a>]) -> Result<Self, String> {
        let Some((leaf_der, rest)) = chain.split_first() else {
            return Err("the chain is empty".to_owned());
        };
        if chain.len() > MAX_PROOF_CERTIFICATES {
            return Err(format!(
                "the chain has more than {MAX_PROOF_CERTIFICATES} certificates"
            ));
        }
        let longest = chain.iter().map(|der| der.len()).max().unwrap_or_default();
        let total: usize = chain.iter().map(|der| der.len()).sum();
        if longest > MAX_PROOF_CERTIFICATE_BYTES || total > MAX_PROOF_CHAIN_BYTES {
            return Err("the chain has too many bytes".to_owned());
        }
        let (leaf, algorithm) = read(leaf_der)?;
        for der in rest {
            read(der)?;
        }
        let end_entity = EndEntityCert::try_from(leaf_der)
            .map_err(|error| format!("the certificate cannot be taken: {error}"))?;
        Ok(Self {
            leaf_der,
            leaf,
            end_entity,
            intermediates: rest,
            algorithm,
        })
    }

    /// The leaf.
    pub(super) fn leaf(&self) -> &X509Certificate<'a> {
        &self.leaf
    }

    /// The leaf's bytes.
    pub(super) fn leaf_der(&self) -> &'a [u8] {
        self.leaf_der
    }

    /// Verifies that the leaf's key signed a message.
    ///
    /// # Errors
    /// When it did not.
    pub(super) fn verify_signature(&self, message: &[u8], signature: &[u8]) -> Result<(), String> {
        let verified = self
            .end_entity
            .verify_signature(self.algorithm, message, signature);
        verified.map_err(|_| {
            "the signature is not by the certificate's key, over this challenge and this signing request".to_owned()
        })
    }

    /// Finds a path from the leaf to a root, by RFC 5280 (section 6), with the leaf as a TLS client's: an
    /// extended key usage must allow that where there is one.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn verify_path(&self, roots: &Roots, now: SystemTime) -> Result<(), String> {
        let mut why = "its root is not valid now".to_owned();
        for root in roots.valid_at(now) {
            match self.verify_path_to(root, now) {
                Ok(()) => return Ok(()),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn verify_path_to(&self, root: &Root, now: SystemTime) -> Result<(), String> {
        let anchor = webpki::anchor_from_trusted_cert(&root.der).map_err(|e| e.to_string())?;
        let anchors = [anchor];
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        // webpki's own error type has no room for the reason, so it is kept beside.
        let refusal = RefCell::new(None);
        let check = |path: &VerifiedPath<'_>| {
            check_path(path, root).map_err(|reason| {
                refusal.borrow_mut().get_or_insert(reason);
                webpki::Error::UnknownIssuer
            })
        };
        let verified = self.end_entity.verify_for_usage(
            CHAIN_ALGORITHMS,
            &anchors,
            self.intermediates,
            UnixTime::since_unix_epoch(since_epoch),
            KeyUsage::client_auth(),
            None,
            Some(&check),
        );
        match verified {
            Ok(_) => Ok(()),
            Err(error) => Err(refusal
                .take()
                .map_or_else(|| error.to_string(), str::to_owned)),
        }
    }
}

/// What rustls-webpki leaves to its callers: the root's path length, and the key usage of intermediates.
fn check_path(path: &VerifiedPath<'_>, root: &Root) -> Result<(), &'static str> {
    if path.intermediate_certificates().count() > root.path_length {
        return Err("its root allows fewer intermediates");
    }
    for intermediate in path.intermediate_certificates() {
        let der = intermediate.der();
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|_| "an intermediate is malformed")?;
        let usage = parsed
            .key_usage()
            .map_err(|_| "an intermediate is malformed")?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err("an intermediate may not sign certificates");
        }
    }
    Ok(())
}

/// A certificate, and the algorithm that its key implies.
fn read(
    der: &[u8],
) -> Result<
    (
        X509Certificate<'_>,
        &'static dyn SignatureVerificationAlgorithm,
    ),
    String,
> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => {
            let algorithm = algorithm_of(certificate.public_key())?;
            Ok((certificate, algorithm))
        }
        _ => Err("the chain holds a certificate that cannot be read".to_owned()),
    }
}

/// How a key of this kind signs proofs.
fn algorithm_of(
    key: &SubjectPublicKeyInfo<'_>,
) -> Result<&'static dyn SignatureVerificationAlgorithm, String> {
    let kind = &key.algorithm.algorithm;
    let parameters = key.algorithm.parameters.as_ref();
    let curve = parameters.and_then(|parameters| parameters.as_oid().ok());
    if *kind == OID_SIG_ED25519 {
        return Ok(algorithms::ED25519);
    }
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        match curve {
            Some(curve) if curve == OID_EC_P256 => return Ok(algorithms::ECDSA_P256_SHA256),
            Some(curve) if curve == OID_NIST_EC_P384 => return Ok(algorithms::ECDSA_P384_SHA384),
            _ => {}
        }
    }
    if *kind == OID_PKCS1_RSAENCRYPTION
        && let Ok(PublicKey::RSA(rsa)) = key.parsed()
        && RSA_BITS.contains(&rsa.key_size())
    {
        return Ok(algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY);
    }
    Err(
        "the chain holds a key that is not P-256, P-384, Ed25519 or RSA with 2048 to 4096 bits"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    }

    /// The SubjectPublicKeyInfo of an RSA key (RFC 8017, appendix A.1.1).
    fn rsa(bits: usize) -> Vec<u8> {
        let mut modulus = vec![0xff; bits / 8];
        modulus.insert(0, 0);
        let key = [element(2, &modulus), element(2, &[1, 0, 1])].concat();
        let key = [&[0][..], &element(0x30, &key)].concat();
        let rsa_encryption = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
        element(
            0x30,
            &[element(0x30, &rsa_encryption), element(3, &key)].concat(),
        )
    }

    #[test]
    fn rsa_keys_are_bounded() {
        for (bits, taken) in [
            (1024, false),
            (2040, false),
            (2048, true),
            (3072, true),
            (4096, true),
            (4104, false),
            (16_384, false),
        ] {
            let der = rsa(bits);
            let (_, key) = SubjectPublicKeyInfo::from_der(&der).unwrap();
            assert_eq!(algorithm_of(&key).is_ok(), taken, "{bits}");
        }
    }
}
