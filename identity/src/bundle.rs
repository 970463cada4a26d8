//! Trust bundles: whose certificates are believed, for each trust domain by itself.
//!
//! [`document`] is their form as JSON, with the keys of JWT-SVIDs; [`map`] is several of those in one.

pub mod document;
pub mod map;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::spiffe_id::TrustDomain;
use crate::x509::{self, MalformedCertificate, UriName};

/// The most authorities that one bundle may hold. Each authority of the same name costs one signature check
/// per handshake, and rustls-webpki gives up past 100.
pub const MAX_AUTHORITIES: usize = 16;
const MAX_AUTHORITY_BYTES: usize = 16 * 1024;

/// Why a bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The text holds no certificate.
    #[error("no certificate in PEM form found")]
    NoCertificate,
    /// The text is not PEM.
    #[error("malformed PEM: {0}")]
    Pem(String),
    /// There are more than [`MAX_AUTHORITIES`].
    #[error(
        "{0} authorities; at most {MAX_AUTHORITIES} are allowed, remove those that no longer sign"
    )]
    TooManyAuthorities(usize),
    /// One authority is refused; counted from 1.
    #[error("authority {position}: {reason}")]
    Authority {
        /// The authority's place in the bundle, from 1.
        position: usize,
        /// What is wrong with it.
        reason: AuthorityError,
    },
}

/// Why a certificate cannot be an authority of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate is larger than 16 KiB.
    #[error("the certificate is {0} bytes long; at most {MAX_AUTHORITY_BYTES} are allowed")]
    TooLarge(usize),
    /// The certificate cannot be read.
    #[error(transparent)]
    Malformed(#[from] MalformedCertificate),
    /// Its basic constraints do not say that it is a CA.
    #[error("not a CA certificate: basicConstraints must say CA:TRUE")]
    NotCa,
    /// Its key usage is missing or lacks keyCertSign.
    #[error("not a signing certificate: keyUsage must contain keyCertSign")]
    NotSigning,
    /// It holds URI names other than the one ID of its trust domain.
    #[error("its URI name must be {expected} alone, or absent")]
    OtherId {
        /// The ID of the bundle's trust domain.
        expected: String,
    },
}

/// A certificate that may sign for one trust domain, with what path validation by rustls-webpki drops.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    subject: String,
    not_before: SystemTime,
    not_after: SystemTime,
    path_length: Option<u32>,
}

impl Authority {
    fn load(
        trust_domain: &TrustDomain,
        der: Vec<u8>,
    ) -> Result<(Self, TrustAnchor<'static>), AuthorityError> {
        if der.len() > MAX_AUTHORITY_BYTES {
            return Err(AuthorityError::TooLarge(der.len()));
        }
        let certificate = CertificateDer::from(der);
        let parsed = x509::parse(&certificate)?;
        let path_length = check_authority(&parsed, trust_domain)?;
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|_| MalformedCertificate::Der)?
            .to_owned();
        let authority = Self {
            subject: x509::readable(parsed.subject()),
            not_before: x509::system_time(parsed.validity().not_before),
            not_after: x509::system_time(parsed.validity().not_after),
            path_length,
            certificate: certificate.clone(),
        };
        Ok((authority, anchor))
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The subject's distinguished name, for people to read.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// From when on the certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Until when, inclusive, the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the certificate is valid at a moment.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// How many intermediates may follow, where the certificate limits it.
    pub(crate) fn path_length(&self) -> Option<u32> {
        self.path_length
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("subject", &self.subject)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Checks what the X509-SVID document demands of a signing certificate (sections 3.2, 4.1, 4.3) and gives
/// back its path length limit.
///
/// A critical key usage and an ID are demanded of SVIDs alone, and an authority need not be one: roots of an
/// organisation's own hierarchy are welcome.
pub(crate) fn check_authority(
    certificate: &x509_parser::certificate::X509Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<Option<u32>, AuthorityError> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| MalformedCertificate::Extension("basic constraints"))?
        .filter(|constraints| constraints.value.ca)
        .ok_or(AuthorityError::NotCa)?;
    certificate
        .key_usage()
        .map_err(|_| MalformedCertificate::Extension("key usage"))?
        .filter(|usage| usage.value.key_cert_sign())
        .ok_or(AuthorityError::NotSigning)?;
    let expected = trust_domain.id();
    match x509::uri_names(certificate)?.as_slice() {
        [] => {}
        [UriName::Text(uri)] if *uri == expected.as_str() => {}
        _ => {
            return Err(AuthorityError::OtherId {
                expected: expected.to_string(),
            });
        }
    }
    Ok(constraints.value.path_len_constraint)
}

/// The authorities of one trust domain.
///
/// One without authorities is allowed, and says that nobody of the trust domain is believed. An authority past its
/// end verifies nothing, and is no reason to refuse the bundle that holds it: its successor stands beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    authorities: Vec<Authority>,
    /// In the order of `authorities`: [`Self::authority_of`] relies on it.
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustBundle {
    /// Makes a bundle of DER certificates. Repetitions of a certificate are dropped.
    ///
    /// # Errors
    /// Says which certificate cannot be an authority, and why.
    pub fn from_der(
        trust_domain: TrustDomain,
        sequence: u64,
        certificates: Vec<Vec<u8>>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self {
            trust_domain,
            sequence,
            authorities: Vec::new(),
            anchors: Vec::new(),
        };
        let total = certificates.len();
        for (index, der) in certificates.into_iter().enumerate() {
            if bundle
                .authorities
                .iter()
                .any(|known| *known.certificate == der)
            {
                continue;
            }
            if bundle.authorities.len() == MAX_AUTHORITIES {
                return Err(BundleError::TooManyAuthorities(total));
            }
            let (authority, anchor) =
                Authority::load(&bundle.trust_domain, der).map_err(|reason| {
                    BundleError::Authority {
                        position: index + 1,
                        reason,
                    }
                })?;
            bundle.authorities.push(authority);
            bundle.anchors.push(anchor);
        }
        Ok(bundle)
    }

    /// Makes a bundle, with sequence 0, of the certificates in a PEM text. Other PEM sections are passed over.
    ///
    /// # Errors
    /// As [`TrustBundle::from_der`], and for a text without certificates.
    pub fn from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Self, BundleError> {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(|certificate| certificate.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| BundleError::Pem(error.to_string()))?;
        if certificates.is_empty() {
            return Err(BundleError::NoCertificate);
        }
        Self::from_der(trust_domain, 0, certificates)
    }

    /// The authorities as PEM text.
    pub fn to_pem(&self) -> String {
        let certificates = self.authorities.iter().map(Authority::certificate);
        certificates
            .map(|der| crate::pem::encode("CERTIFICATE", der))
            .collect()
    }

    /// The trust domain whose members these authorities sign.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The version of the bundle: grows with each change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The authorities.
    pub fn authorities(&self) -> &[Authority] {
        &self.authorities
    }

    /// Whether any authority is valid at a moment. A bundle without one verifies nothing.
    pub fn is_usable_at(&self, now: SystemTime) -> bool {
        self.authorities
            .iter()
            .any(|authority| authority.is_valid_at(now))
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The authority behind an anchor that came from [`Self::anchors`].
    ///
    /// By address: two certificates of one authority can have the same name and key and differ in validity.
    pub(crate) fn authority_of(&self, anchor: &TrustAnchor<'_>) -> Option<&Authority> {
        let index = self
            .anchors
            .iter()
            .position(|known| std::ptr::eq(known, anchor))?;
        self.authorities.get(index)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain)
            .field("sequence", &self.sequence)
            .field("authorities", &self.authorities)
            .finish_non_exhaustive()
    }
}

/// The bundles of all trust domains that are believed, kept apart: an authority signs for its own trust domain
/// and no other. Clones share the bundles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles {
    bundles: BTreeMap<TrustDomain, Arc<TrustBundle>>,
}

impl TrustBundles {
    /// No bundles: nobody is believed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a bundle in the place of its trust domain's earlier one, which is given back.
    ///
    /// Whether a lower sequence may replace a higher one is for the caller, who knows where it came from.
    pub fn insert(&mut self, bundle: TrustBundle) -> Option<Arc<TrustBundle>> {
        self.bundles
            .insert(bundle.trust_domain.clone(), Arc::new(bundle))
    }

    /// The bundle of a trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        self.bundles.get(trust_domain).map(Arc::as_ref)
    }

    /// Takes a trust domain's bundle out: its members are no longer believed.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> Option<Arc<TrustBundle>> {
        self.bundles.remove(trust_domain)
    }

    /// All bundles, in the order of their trust domains.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.bundles.values().map(Arc::as_ref)
    }

    /// How many trust domains have a bundle.
    pub fn len(&self) -> usize {
        self.bundles.len()
    }

    /// Whether there is no bundle at all.
    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }
}

impl From<TrustBundle> for TrustBundles {
    fn from(bundle: TrustBundle) -> Self {
        Self::from_iter([bundle])
    }
}

impl FromIterator<TrustBundle> for TrustBundles {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let mut all = Self::new();
        for bundle in bundles {
            all.insert(bundle);
        }
        all
    }
}
