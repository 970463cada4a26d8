//! What root and intermediate share: their certificate and key, validity, serial numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use super::{AuthorityLoadError, BACKDATE, SignError};
use crate::bundle::{AuthorityError, BundleError, TrustBundle, TrustBundles, check_authority};
use crate::key::{PrivateKey, Signer};
use crate::spiffe_id::TrustDomain;
use crate::x509::{self, KeyIds, MalformedCertificate};

/// `id-at-serialNumber` (X.520), which keeps the names of a trust domain's authorities apart.
const SERIAL_NUMBER_ATTRIBUTE: &[u64] = &[2, 5, 4, 5];

/// A CA certificate with its key, loaded and checked.
pub(super) struct Authority {
    pub(super) trust_domain: TrustDomain,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKey,
    /// In lower-case hexadecimal.
    pub(super) key_id: String,
    pub(super) issuer: Issuer<'static, Signer>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Authority {
    pub(super) fn load(
        trust_domain: TrustDomain,
        certificate: CertificateDer<'static>,
        key: PrivateKey,
    ) -> Result<Self, AuthorityLoadError> {
        let parsed = x509::parse(&certificate).map_err(AuthorityError::from)?;
        check_authority(&parsed, &trust_domain)?;
        if parsed.public_key().raw != key.public_key_der() {
            return Err(AuthorityLoadError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, Signer(key.clone()))
            .map_err(|_| AuthorityLoadError::Subject)?;
        Ok(Self {
            not_before: x509::system_time(parsed.validity().not_before),
            not_after: x509::system_time(parsed.validity().not_after),
            key_id: KeyIds::read(&parsed).subject,
            trust_domain,
            key,
            issuer,
            certificate,
        })
    }

    /// The validity of a certificate signed now: backdated, and inside this authority's own.
    pub(super) fn validity(
        &self,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(OffsetDateTime, OffsetDateTime), SignError> {
        if now < self.not_before {
            let wait = self.not_before.duration_since(now).unwrap_or_default();
            return Err(SignError::IssuerNotYetValid(wait.as_secs()));
        }
        let not_after = now.checked_add(ttl).ok_or(SignError::Time)?;
        if not_after > self.not_after {
            let left = self.not_after.duration_since(now).unwrap_or_default();
            return Err(SignError::OutlivesIssuer {
                ttl: ttl.as_secs(),
                left: left.as_secs(),
            });
        }
        let not_before = now.checked_sub(BACKDATE).unwrap_or(UNIX_EPOCH);
        Ok((
            date_time(not_before.max(self.not_before))?,
            date_time(not_after)?,
        ))
    }
}

/// The parameters of a CA certificate for a trust domain, with a name of its own.
pub(super) fn ca_params(
    trust_domain: &TrustDomain,
    common_name: &str,
    path_length: u8,
) -> Result<CertificateParams, SignError> {
    let serial = random_serial()?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Sidewind");
    name.push(DnType::CommonName, common_name);
    name.push(
        DnType::CustomDnType(SERIAL_NUMBER_ATTRIBUTE.to_vec()),
        DnValue::PrintableString(serial.to_string().replace(':', "").try_into()?),
    );
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.serial_number = Some(serial);
    params.subject_alt_names = vec![SanType::URI(trust_domain.id().as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// A request for the certificate of a signing authority, in PEM, for an upstream that signs requests: it has a name of
/// its own and the trust domain's ID. What it may do is for the upstream to say, and to be checked.
///
/// # Errors
/// When the cryptographic library fails.
pub fn signing_request(trust_domain: &TrustDomain, key: &PrivateKey) -> Result<String, SignError> {
    let named = ca_params(trust_domain, "Sidewind signing CA", 0)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named.distinguished_name;
    params.subject_alt_names = named.subject_alt_names;
    let request = params.serialize_request(&Signer(key.clone()))?;
    Ok(crate::pem::encode("CERTIFICATE REQUEST", request.der()))
}

/// 128 random bits: a serial number is unique without asking anybody (CA/Browser Forum asks for 64).
pub(super) fn random_serial() -> Result<SerialNumber, SignError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SignError::Random)?;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Whole seconds, which is what certificates count in.
pub(super) fn date_time(time: SystemTime) -> Result<OffsetDateTime, SignError> {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_err(|_| SignError::Time)?;
    i64::try_from(seconds.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(SignError::Time)
}

pub(super) fn certificates_of_pem(
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, AuthorityLoadError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| AuthorityLoadError::NoCertificate)?;
    if certificates.is_empty() {
        return Err(AuthorityLoadError::NoCertificate);
    }
    Ok(certificates)
}

/// A CA's certificate as the only authority of its trust domain.
pub(super) fn own_bundle(
    trust_domain: &TrustDomain,
    certificate: &CertificateDer<'_>,
) -> Result<TrustBundles, AuthorityLoadError> {
    let bundle = TrustBundle::from_der(trust_domain.clone(), 0, vec![certificate.to_vec()]);
    bundle.map(TrustBundles::from).map_err(|error| match error {
        BundleError::Authority { reason, .. } => AuthorityLoadError::Certificate(reason),
        _ => AuthorityLoadError::NoCertificate,
    })
}

/// Checks that a CA certificate just made is signed by its issuer and carries the issuer's name.
pub(super) fn check_signed_by(
    certificate: &CertificateDer<'_>,
    issuer: &CertificateDer<'_>,
) -> Result<(), SignError> {
    let malformed = |error: MalformedCertificate| SignError::SelfCheck(error.into());
    let certificate = x509::parse(certificate).map_err(malformed)?;
    let issuer = x509::parse(issuer).map_err(malformed)?;
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return Err(SignError::SelfCheckAuthority(AuthorityLoadError::Subject));
    }
    certificate
        .verify_signature(Some(issuer.public_key()))
        .map_err(|_| SignError::SelfCheckContent("signature"))
}
