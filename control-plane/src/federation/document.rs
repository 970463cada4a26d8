//! Bundles between the API's form and that of SPIFFE bundle documents.

use sidewind_api::v1;
use sidewind_identity::bundle::document::{BundleDocument, DocumentError};
use sidewind_identity::jwt::bundle::{JwtAuthority, JwtBundle};
use sidewind_identity::{SpiffeIdError, TrustBundle, TrustDomain};
use std::time::Duration;

/// Why a bundle of the API's form is no document.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// Its trust domain is none.
    #[error(transparent)]
    TrustDomain(#[from] SpiffeIdError),
    /// Its authorities are no bundle.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// The document of a bundle: what others fetch.
///
/// # Errors
/// When the bundle cannot be believed by those who would read it.
pub fn of_api(bundle: &v1::TrustBundle) -> Result<BundleDocument, ConversionError> {
    let trust_domain = TrustDomain::parse(&bundle.trust_domain)?;
    let roots = bundle.authorities.iter().map(|der| der.to_vec()).collect();
    let x509 = TrustBundle::from_der(trust_domain.clone(), bundle.sequence, roots);
    let keys = bundle.jwt_authorities.iter().map(|key| {
        // Documents do not say when a key ends: it is taken out of them.
        JwtAuthority::from_spki_der(&key.key_id, &key.public_key, None)
    });
    let keys = keys
        .collect::<Result<_, _>>()
        .map_err(DocumentError::from)?;
    let jwt = JwtBundle::new(trust_domain, keys).map_err(DocumentError::from)?;
    let hint = Duration::from_secs(bundle.refresh_hint_seconds.into());
    let x509 = x509.map_err(DocumentError::from)?;
    Ok(BundleDocument::new(x509, jwt, hint)?)
}

/// A document as proxies are sent it.
#[must_use]
pub fn to_api(document: &BundleDocument) -> v1::TrustBundle {
    let roots = document.x509().authorities().iter();
    let keys = document.jwt().authorities().iter();
    let key = |key: &JwtAuthority| v1::JwtAuthority {
        key_id: key.key_id.clone(),
        public_key: key.key.spki_der().to_vec(),
        expires_at_unix: 0,
    };
    let hint = document.refresh_hint().as_secs();
    v1::TrustBundle {
        trust_domain: document.trust_domain().to_string(),
        sequence: document.sequence(),
        authorities: roots.map(|root| root.certificate().to_vec()).collect(),
        jwt_authorities: keys.map(key).collect(),
        refresh_hint_seconds: u32::try_from(hint).unwrap_or(u32::MAX),
    }
}
