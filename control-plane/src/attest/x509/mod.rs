//! Existing certificates: of another CA, whose workloads move into the mesh.
//!
//! The bearer signs a nonce of ours, our name and the key that the new certificate is for. One object, made
//! of the leaf's bytes once, verifies the signature, is what the path leads to, and gives the facts: the
//! certificate that was checked is the one that signed.
//!
//! Revocation lists are not read: take the authority out of the configuration, or name certificates.

mod chain;
mod roots;

use super::challenge::{Challenges, csr_key, sha256};
use super::{Answer, Attested, Attestor, Facts, Presented, Selectors};
use crate::config::Live;
use crate::config::attestor_config::X509Authority;
use crate::issuance::Refusal;
use crate::issuance::issuer::hex;
use chain::Chain;
use roots::Roots;
use rustls_pki_types::CertificateDer;
use sidewind_api::Reason;
use sidewind_api::evidence::x509_proof;
use sidewind_api::v1::attest_request::Evidence;
use std::sync::Arc;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// The attestor's kind.
pub const KIND: &str = "x509";
/// Most bytes of a signature; one by RSA with 4096 bits has 512.
const MAX_SIGNATURE_BYTES: usize = 1024;

/// Takes existing certificates.
#[derive(Debug)]
pub struct X509Attestor {
    config: Live,
    challenges: Arc<Challenges>,
}

impl X509Attestor {
    /// Takes certificates of the authorities of a configuration. The challenges are those that proxies are
    /// given.
    #[must_use]
    pub fn new(config: Live, challenges: Arc<Challenges>) -> Self {
        Self { config, challenges }
    }

    async fn facts(
        &self,
        authorities: &[Arc<X509Authority>],
        presented: Presented<'_>,
    ) -> Result<Facts, Refusal> {
        let Evidence::X509(proof) = presented.evidence else {
            let message = "this is no proof by an existing certificate";
            return Err(Refusal::new(Reason::EvidenceMissing, message));
        };
        if authorities.is_empty() {
            return Err(Refusal::new(
                Reason::AttestorNotConfigured,
                "this control plane takes no existing certificates; an AttestorConfig would name their authorities",
            ));
        }
        if proof.signature.len() > MAX_SIGNATURE_BYTES {
            return Err(refused("the signature is too long"));
        }
        let certificates = proof.certificate_chain.iter();
        let certificates: Vec<CertificateDer<'_>> = certificates
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let chain = Chain::read(&certificates).map_err(refused)?;
        let key_sha256 = sha256(csr_key(presented.csr)?);
        // One nonce buys one verification.
        self.challenges.take(&proof.nonce)?;
        let message = x509_proof(self.challenges.server_id(), &proof.nonce, &key_sha256);
        chain
            .verify_signature(&message, &proof.signature)
            .map_err(refused)?;
        let mut why = String::new();
        for authority in authorities {
            let roots = Roots::read(&authority.ca_file).await.map_err(|error| {
                let what = format!("the roots of authority {}", authority.authority);
                super::unverifiable("x509-roots", &what, &error)
            })?;
            match chain.verify_path(&roots, presented.now) {
                Ok(()) => return Ok(facts(&authority.authority, &chain)),
                Err(error) => why = error,
            }
        }
        Err(refused(format!(
            "no authority vouches for the certificate: {why}"
        )))
    }
}

/// What is true of a certificate that was checked.
fn facts(authority: &str, chain: &Chain<'_>) -> Facts {
    let leaf = chain.leaf();
    let mut selectors = Selectors::default();
    selectors.add("x509:authority", authority);
    selectors.add("x509:sha256", hex(&sha256(chain.leaf_der())));
    selectors.add("x509:issuer", leaf.issuer().to_string());
    if let Some(name) = common_name(leaf) {
        selectors.add("x509:subject-cn", name);
    }
    let names = leaf.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => selectors.add("x509:dns", name.to_ascii_lowercase()),
            GeneralName::URI(uri) => selectors.add("x509:uri", *uri),
            _ => {}
        }
    }
    Facts {
        attestor: KIND,
        selectors,
        pins: Vec::new(),
    }
}

/// The common name of a subject that has exactly one.
fn common_name<'a>(leaf: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = leaf.subject().iter_common_name();
    let first = names.next()?.as_str().ok()?;
    names.next().is_none().then_some(first)
}

fn refused(why: impl Into<String>) -> Refusal {
    Refusal::new(Reason::EvidenceRefused, why)
}

impl Attestor for X509Attestor {
    fn attest<'a>(&'a self, presented: Presented<'a>) -> Answer<'a, Attested> {
        Box::pin(async move {
            let config = self.config.load();
            let facts = self.facts(&config.attestors().x509, presented).await?;
            Ok(Attested::Facts(facts))
        })
    }
}

#[cfg(test)]
mod tests;
