//! The signing CA: turns a signing request and a template into an SVID.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::issue::{self, Authority};
use super::{AuthorityLoadError, MAX_DNS_NAMES, MAX_SVID_TTL, MIN_SVID_TTL, SignError, csr};
use crate::bundle::TrustBundles;
use crate::key::PrivateKey;
use crate::pem;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::verify::{Usage, VerifyError, VerifyOptions, verify_chain};
use crate::x509;

/// Everything that an SVID says, from attestation and registration.
#[derive(Clone, Debug)]
pub struct SvidTemplate {
    /// Who the workload is. A workload's ID in the authority's trust domain.
    pub id: SpiffeId,
    /// How long the SVID lives from now: one minute to 24 hours.
    pub ttl: Duration,
    /// DNS names for clients that are not in the mesh; never an identity.
    pub dns_names: Vec<String>,
}

/// A CA that signs SVIDs: a certificate, its key, and the chain that leads to the root.
pub struct SigningAuthority {
    authority: Authority,
    /// What goes after the leaf: this CA's certificate, then those above it, without the root.
    chain: Vec<CertificateDer<'static>>,
    /// This CA's certificate as the only authority, to check what it signs.
    own_bundle: TrustBundles,
}

impl SigningAuthority {
    /// Takes a signing CA that was made before, here or by an upstream: its certificate first, then those
    /// between it and the root.
    ///
    /// # Errors
    /// [`AuthorityLoadError`] when the certificate may not sign for the trust domain, or the key is not its.
    pub fn from_der(
        trust_domain: TrustDomain,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
    ) -> Result<Self, AuthorityLoadError> {
        let certificate = chain.first().ok_or(AuthorityLoadError::NoCertificate)?;
        let authority = Authority::load(trust_domain.clone(), certificate.clone(), key)?;
        let own_bundle = issue::own_bundle(&trust_domain, certificate)?;
        Ok(Self {
            authority,
            chain,
            own_bundle,
        })
    }

    /// As [`SigningAuthority::from_der`], from PEM texts.
    ///
    /// # Errors
    /// As [`SigningAuthority::from_der`], and for texts that hold no certificate or key.
    pub fn from_pem(
        trust_domain: TrustDomain,
        chain_pem: &str,
        key_pem: &str,
    ) -> Result<Self, AuthorityLoadError> {
        let chain = issue::certificates_of_pem(chain_pem)?;
        Self::from_der(trust_domain, chain, PrivateKey::from_pem(key_pem)?)
    }

    /// Signs an SVID for the key of a signing request, and gives back the chain: the SVID, then the certificates
    /// between it and the root.
    ///
    /// # Errors
    /// [`SignError`], which says what is wrong with the request or the template. What was made is verified as a
    /// peer would before it is given out.
    pub fn sign(
        &self,
        csr_der: &[u8],
        template: &SvidTemplate,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.check_template(template)?;
        let public_key = csr::public_key(csr_der, &template.id)?;
        let mut params = leaf_params(template)?;
        (params.not_before, params.not_after) = self.authority.validity(template.ttl, now)?;
        let leaf: CertificateDer<'static> = params
            .signed_by(&public_key, &self.authority.issuer)?
            .into();
        self.check_leaf(&leaf, template, &params, now)?;
        check_key(&leaf, &public_key)?;
        let mut chain = Vec::with_capacity(1 + self.chain.len());
        chain.push(leaf);
        chain.extend_from_slice(&self.chain);
        Ok(chain)
    }

    /// Signs an SVID for nobody and verifies its whole chain as a peer that has these bundles would: whether what this
    /// CA signs now will be believed.
    ///
    /// # Errors
    /// [`SignError`] when signing fails, and [`SignError::SelfCheck`] when no peer would believe the chain: the
    /// authority above limits path lengths, names or purposes, or is not in the bundle.
    pub fn check(&self, bundles: &TrustBundles, now: SystemTime) -> Result<(), SignError> {
        let path = "/sidewind/self-check";
        let template = SvidTemplate {
            id: SpiffeId::from_parts(self.trust_domain(), path).map_err(VerifyError::from)?,
            ttl: MIN_SVID_TTL,
            dns_names: Vec::new(),
        };
        let csr = PrivateKey::generate()?.csr_der()?;
        let chain = self.sign(&csr, &template, now)?;
        let options = VerifyOptions::default();
        for usage in [Usage::Client, Usage::Server] {
            verify_chain(&chain, bundles, usage, now, &options)?;
        }
        Ok(())
    }

    fn check_template(&self, template: &SvidTemplate) -> Result<(), SignError> {
        if template.id.trust_domain() != self.trust_domain() {
            return Err(SignError::OtherTrustDomain {
                id: template.id.clone(),
                trust_domain: self.trust_domain().clone(),
            });
        }
        if !template.id.is_workload() {
            return Err(SignError::NotAWorkload(template.id.clone()));
        }
        if !(MIN_SVID_TTL..=MAX_SVID_TTL).contains(&template.ttl) {
            return Err(SignError::Ttl {
                seconds: template.ttl.as_secs(),
            });
        }
        if template.dns_names.len() > MAX_DNS_NAMES {
            return Err(SignError::TooManyDnsNames(template.dns_names.len()));
        }
        match template.dns_names.iter().find(|name| !is_dns_name(name)) {
            Some(name) => Err(SignError::DnsName(
                name.escape_default().take(256).collect(),
            )),
            None => Ok(()),
        }
    }

    /// Reads the new certificate back as a peer would, and compares it with what was asked for.
    fn check_leaf(
        &self,
        leaf: &CertificateDer<'static>,
        template: &SvidTemplate,
        params: &CertificateParams,
        now: SystemTime,
    ) -> Result<(), SignError> {
        // One use is enough: no leaf passes that is not for both.
        let chain = std::slice::from_ref(leaf);
        let options = VerifyOptions::default();
        let id = verify_chain(chain, &self.own_bundle, Usage::Server, now, &options)?;
        if id != template.id {
            return Err(SignError::SelfCheckContent("SPIFFE ID"));
        }
        let parsed = parse(leaf)?;
        let (begin, end) = (parsed.validity().not_before, parsed.validity().not_after);
        if begin.to_datetime() != params.not_before || x509::system_time(begin) < self.not_before()
        {
            return Err(SignError::SelfCheckContent("begin of validity"));
        }
        if end.to_datetime() != params.not_after || x509::system_time(end) > self.not_after() {
            return Err(SignError::SelfCheckContent("end of validity"));
        }
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes);
        let serial = serial.as_deref().map(x509::serial_hex);
        if serial != Some(x509::serial_hex(parsed.raw_serial())) {
            return Err(SignError::SelfCheckContent("serial number"));
        }
        if x509::KeyIds::read(&parsed).authority.as_deref() != Some(self.key_id()) {
            return Err(SignError::SelfCheckContent("issuer's key identifier"));
        }
        check_names(&parsed, template)
    }

    /// The trust domain that this CA signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.authority.trust_domain
    }

    /// This CA's certificate, then those between it and the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The chain as PEM text.
    pub fn chain_pem(&self) -> String {
        let certificates = self.chain.iter();
        certificates
            .map(|der| pem::encode("CERTIFICATE", der))
            .collect()
    }

    /// This CA's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.authority.key
    }

    /// The key identifier of this CA in lower-case hexadecimal: what its certificates name their issuer by.
    pub fn key_id(&self) -> &str {
        &self.authority.key_id
    }

    /// From when on this CA is valid.
    pub fn not_before(&self) -> SystemTime {
        self.authority.not_before
    }

    /// Until when this CA is valid: nothing that it signs lives longer.
    pub fn not_after(&self) -> SystemTime {
        self.authority.not_after
    }
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SignError> {
    x509::parse(leaf).map_err(|error| SignError::SelfCheck(error.into()))
}

/// The certificate is for the key of the request.
fn check_key(
    leaf: &CertificateDer<'_>,
    public_key: &SubjectPublicKeyInfo,
) -> Result<(), SignError> {
    if parse(leaf)?.public_key().raw == public_key.subject_public_key_info() {
        Ok(())
    } else {
        Err(SignError::SelfCheckContent("public key"))
    }
}

/// The names are those of the template and no others; the subject, which is nobody's identity, is empty.
fn check_names(leaf: &X509Certificate<'_>, template: &SvidTemplate) -> Result<(), SignError> {
    if leaf.subject().iter_rdn().next().is_some() {
        return Err(SignError::SelfCheckContent("subject"));
    }
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| SignError::SelfCheckContent("alternative names"))?
        .map(|names| names.value.general_names.as_slice());
    let id = std::iter::once(GeneralName::URI(template.id.as_str()));
    let dns_names = template.dns_names.iter();
    let expected = id.chain(dns_names.map(|name| GeneralName::DNSName(name)));
    if names.is_some_and(|names| names.iter().eq(expected.collect::<Vec<_>>().iter())) {
        Ok(())
    } else {
        Err(SignError::SelfCheckContent("alternative names"))
    }
}

fn leaf_params(template: &SvidTemplate) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    // An empty subject makes rcgen mark the alternative name critical, as X509-SVID section 3.1 demands.
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(issue::random_serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(template.id.as_str().try_into()?)];
    for name in &template.dns_names {
        let name = SanType::DnsName(name.as_str().try_into()?);
        params.subject_alt_names.push(name);
    }
    Ok(params)
}

/// A host name by RFC 1123 in lower case: labels of letters, digits and inner hyphens.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && bytes
                .iter()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

impl fmt::Debug for SigningAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningAuthority")
            .field("trust_domain", self.trust_domain())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
