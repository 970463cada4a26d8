//! Chains built to order, good until a test spoils one thing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use sidewind_identity::{
    BundleError, SpiffeId, TrustBundle, TrustBundles, TrustDomain, Usage, VerifyError,
    VerifyOptions, verify_chain,
};
use time::OffsetDateTime;

pub(crate) const TRUST_DOMAIN: &str = "td";
pub(crate) const WORKLOAD: &str = "spiffe://td/ns/a/sa/w";
/// The moment at which every scenario is judged: 2026-01-01.
pub(crate) const NOW: u64 = 1_767_225_600;
pub(crate) const HOUR: i64 = 3600;

pub(crate) const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
pub(crate) const KEY_USAGE: &[u64] = &[2, 5, 29, 15];

/// Seconds before or after [`NOW`].
pub(crate) fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(NOW as i64 + seconds).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

pub(crate) fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

pub(crate) fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// A subjectAltName's content with these URI names, text or not.
pub(crate) fn uri_names_der(names: &[&[u8]]) -> Vec<u8> {
    let names: Vec<u8> = names
        .iter()
        .flat_map(|name| [&[0x86, name.len() as u8], *name].concat())
        .collect();
    [&[0x30, names.len() as u8], names.as_slice()].concat()
}

/// A root, intermediates and a leaf of one trust domain.
pub(crate) struct Scenario {
    pub(crate) root: CertificateParams,
    pub(crate) intermediates: Vec<CertificateParams>,
    pub(crate) leaf: CertificateParams,
    /// What goes into the leaf in place of a P-256 key.
    pub(crate) leaf_key: Option<Box<dyn PublicKeyData>>,
    /// Takes this many intermediates, from the top, out of what is presented.
    pub(crate) withheld: usize,
    /// Puts another root, with the same name and another key, into the bundle.
    pub(crate) impostor_root: bool,
    /// Presented in place of the chain that was built.
    pub(crate) spoil: fn(&mut Vec<CertificateDer<'static>>),
    pub(crate) now: SystemTime,
}

impl Scenario {
    /// Root → intermediate → leaf, as the authority of this crate makes them.
    pub(crate) fn new() -> Self {
        Self {
            root: ca("root"),
            intermediates: vec![ca("intermediate 1")],
            leaf: leaf(WORKLOAD),
            leaf_key: None,
            withheld: 0,
            impostor_root: false,
            spoil: |_| {},
            now: UNIX_EPOCH + Duration::from_secs(NOW),
        }
    }

    pub(crate) fn with_intermediates(&mut self, count: usize) {
        self.intermediates = (1..=count)
            .map(|n| ca(&format!("intermediate {n}")))
            .collect();
    }

    /// The chain as presented, and the root.
    pub(crate) fn build(&self) -> (Vec<CertificateDer<'static>>, CertificateDer<'static>) {
        let root_key = KeyPair::generate().unwrap();
        let root: CertificateDer<'static> = self.root.self_signed(&root_key).unwrap().into();
        let mut issuer = Issuer::new(self.root.clone(), root_key);
        let mut chain = Vec::new();
        for params in &self.intermediates {
            let key = KeyPair::generate().unwrap();
            chain.push(params.signed_by(&key, &issuer).unwrap().into());
            issuer = Issuer::new(params.clone(), key);
        }
        chain.drain(..self.withheld);
        let own_key: Box<dyn PublicKeyData> = Box::new(KeyPair::generate().unwrap());
        let key = self.leaf_key.as_ref().unwrap_or(&own_key);
        chain.push(self.leaf.signed_by(&key.as_ref(), &issuer).unwrap().into());
        chain.reverse();
        (self.spoil)(&mut chain);
        if self.impostor_root {
            let other = KeyPair::generate().unwrap();
            return (chain, self.root.self_signed(&other).unwrap().into());
        }
        (chain, root)
    }

    pub(crate) fn verify(&self, usage: Usage) -> Result<SpiffeId, VerifyError> {
        let (chain, root) = self.build();
        let bundles = bundle(TRUST_DOMAIN, &[root]).unwrap().into();
        verify_at(&chain, &bundles, usage, self.now)
    }
}

pub(crate) fn verify_at(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    usage: Usage,
    now: SystemTime,
) -> Result<SpiffeId, VerifyError> {
    verify_chain(chain, bundles, usage, now, &VerifyOptions::default())
}

pub(crate) fn bundle(
    trust_domain: &str,
    roots: &[CertificateDer<'_>],
) -> Result<TrustBundle, BundleError> {
    let trust_domain = TrustDomain::parse(trust_domain).unwrap();
    TrustBundle::from_der(
        trust_domain,
        1,
        roots.iter().map(|der| der.to_vec()).collect(),
    )
}

pub(crate) fn ca(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name);
    params.subject_alt_names = vec![uri("spiffe://td")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = at(-24 * HOUR);
    params.not_after = at(24 * HOUR);
    params
}

pub(crate) fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = at(-30);
    params.not_after = at(HOUR);
    params
}
