//! The root: kept, and used only to sign intermediates.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;

use super::issue::{self, Authority};
use super::{AuthorityLoadError, BACKDATE, SignError, SigningAuthority};
use crate::bundle::TrustBundles;
use crate::key::{PrivateKey, Signer};
use crate::pem;
use crate::spiffe_id::TrustDomain;

/// A root may be followed by one intermediate, an intermediate by none.
const ROOT_PATH_LENGTH: u8 = 1;
const INTERMEDIATE_PATH_LENGTH: u8 = 0;

/// The root CA of a trust domain, with its key.
pub struct RootAuthority {
    authority: Authority,
    /// The root as the only authority, to check what its intermediates sign.
    own_bundle: TrustBundles,
}

/// Makes a new root for a trust domain, valid from now on (and 30 s back) for a time.
///
/// # Errors
/// [`SignError`] when the time cannot be written into a certificate, or the cryptographic library fails.
pub fn generate_root(
    trust_domain: &TrustDomain,
    validity: Duration,
    now: SystemTime,
) -> Result<RootAuthority, SignError> {
    let key = PrivateKey::generate()?;
    let mut params = issue::ca_params(trust_domain, "Sidewind root CA", ROOT_PATH_LENGTH)?;
    params.not_before = issue::date_time(now.checked_sub(BACKDATE).unwrap_or(UNIX_EPOCH))?;
    params.not_after = issue::date_time(now.checked_add(validity).ok_or(SignError::Time)?)?;
    let certificate: CertificateDer<'static> = params.self_signed(&Signer(key.clone()))?.into();
    issue::check_signed_by(&certificate, &certificate)?;
    Ok(RootAuthority::from_der(
        trust_domain.clone(),
        certificate,
        key,
    )?)
}

impl RootAuthority {
    /// Takes a root that was made before, here or elsewhere.
    ///
    /// # Errors
    /// [`AuthorityLoadError`] when the certificate may not sign for the trust domain, or the key is not its.
    pub fn from_der(
        trust_domain: TrustDomain,
        certificate: CertificateDer<'static>,
        key: PrivateKey,
    ) -> Result<Self, AuthorityLoadError> {
        Ok(Self {
            own_bundle: issue::own_bundle(&trust_domain, &certificate)?,
            authority: Authority::load(trust_domain, certificate, key)?,
        })
    }

    /// As [`RootAuthority::from_der`], from the first certificate and key of PEM texts.
    ///
    /// # Errors
    /// As [`RootAuthority::from_der`], and for texts that hold no certificate or key.
    pub fn from_pem(
        trust_domain: TrustDomain,
        certificate_pem: &str,
        key_pem: &str,
    ) -> Result<Self, AuthorityLoadError> {
        let mut certificates = issue::certificates_of_pem(certificate_pem)?;
        let key = PrivateKey::from_pem(key_pem)?;
        Self::from_der(trust_domain, certificates.swap_remove(0), key)
    }

    /// Makes an intermediate with a new key, valid for a time that ends within the root's. What it signs has been
    /// verified once before it is given back.
    ///
    /// # Errors
    /// [`SignError::OutlivesIssuer`] with the arithmetic, [`SignError::SelfCheck`] when the root's limits leave no
    /// room for an intermediate, or when the cryptographic library fails.
    pub fn issue_intermediate(
        &self,
        validity: Duration,
        now: SystemTime,
    ) -> Result<SigningAuthority, SignError> {
        let key = PrivateKey::generate()?;
        let mut params = issue::ca_params(
            &self.authority.trust_domain,
            "Sidewind signing CA",
            INTERMEDIATE_PATH_LENGTH,
        )?;
        (params.not_before, params.not_after) = self.authority.validity(validity, now)?;
        params.use_authority_key_identifier_extension = true;
        let certificate: CertificateDer<'static> = params
            .signed_by(&Signer(key.clone()), &self.authority.issuer)?
            .into();
        issue::check_signed_by(&certificate, &self.authority.certificate)?;
        let trust_domain = self.authority.trust_domain.clone();
        let signing = SigningAuthority::from_der(trust_domain, vec![certificate], key)?;
        signing.check(&self.own_bundle, now)?;
        Ok(signing)
    }

    /// The trust domain that the root signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.authority.trust_domain
    }

    /// The root's certificate, which belongs in the trust bundle.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.authority.certificate
    }

    /// The root's certificate as PEM text.
    pub fn certificate_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.authority.certificate)
    }

    /// The root's private key.
    pub fn key(&self) -> &PrivateKey {
        &self.authority.key
    }

    /// The key identifier of the root in lower-case hexadecimal: what its certificates name their issuer by.
    pub fn key_id(&self) -> &str {
        &self.authority.key_id
    }

    /// From when on the root is valid.
    pub fn not_before(&self) -> SystemTime {
        self.authority.not_before
    }

    /// Until when the root is valid.
    pub fn not_after(&self) -> SystemTime {
        self.authority.not_after
    }
}

impl fmt::Debug for RootAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootAuthority")
            .field("trust_domain", self.trust_domain())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}
