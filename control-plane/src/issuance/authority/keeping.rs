//! Root and signing authority from the store, from files, or made.

use super::{AuthorityStartError, ROOT_LIFETIME, RootSource, SIGNING_LIFETIME};
use crate::store::{AuthorityRecord, AuthorityRole, Store, StoreError};
use sidewind_api::duration;
use sidewind_identity::authority::{
    AuthorityLoadError, RootAuthority, SigningAuthority, generate_root,
};
use sidewind_identity::{PrivateKey, TrustBundle, TrustDomain};
use std::time::{Duration, SystemTime};

/// The root, taken up, taken over or made.
pub(super) async fn open_root(
    store: &Store,
    trust_domain: &TrustDomain,
    source: RootSource,
    now: SystemTime,
) -> Result<RootAuthority, AuthorityStartError> {
    let load = |source| AuthorityStartError::Load {
        which: "root",
        source,
    };
    let stored = store.active_authority(AuthorityRole::Root).await?;
    match source {
        RootSource::Given {
            certificate_pem,
            key_pem,
        } => {
            let root = RootAuthority::from_pem(trust_domain.clone(), &certificate_pem, &key_pem)
                .map_err(load)?;
            let known =
                stored.is_some_and(|stored| stored.certificate == root.certificate().as_ref());
            if !known {
                keep_root(store, &root, false, now).await?;
            }
            Ok(root)
        }
        RootSource::Generated => match stored {
            None => {
                let root = generate_root(trust_domain, ROOT_LIFETIME, now).map_err(|source| {
                    AuthorityStartError::Make {
                        which: "root",
                        source,
                    }
                })?;
                keep_root(store, &root, true, now).await?;
                tracing::info!(trust_domain = %trust_domain, "made a new root certificate");
                Ok(root)
            }
            Some(AuthorityRecord {
                private_key: None, ..
            }) => Err(AuthorityStartError::RootKeyElsewhere),
            Some(AuthorityRecord {
                certificate,
                private_key: Some(key),
                ..
            }) => {
                let key = PrivateKey::from_pkcs8_der(&key).map_err(|source| {
                    AuthorityStartError::Key {
                        which: "root",
                        source,
                    }
                })?;
                RootAuthority::from_der(trust_domain.clone(), certificate.into(), key).map_err(load)
            }
        },
    }
}

async fn keep_root(
    store: &Store,
    root: &RootAuthority,
    with_key: bool,
    now: SystemTime,
) -> Result<(), StoreError> {
    let record = AuthorityRecord {
        certificate: root.certificate().to_vec(),
        private_key: with_key.then(|| root.key().to_pkcs8_der()),
        not_after: root.not_after(),
    };
    store
        .activate_authority(AuthorityRole::Root, &record, now)
        .await
}

/// The signing authority that is kept, if there is one.
pub(super) async fn stored_signing(
    store: &Store,
    trust_domain: &TrustDomain,
) -> Result<Option<SigningAuthority>, AuthorityStartError> {
    let which = "signing certificate";
    let Some(record) = store.active_authority(AuthorityRole::Signing).await? else {
        return Ok(None);
    };
    let Some(key) = record.private_key else {
        return Ok(None);
    };
    let key = PrivateKey::from_pkcs8_der(&key)
        .map_err(|source| AuthorityStartError::Key { which, source })?;
    let chain = vec![record.certificate.into()];
    SigningAuthority::from_der(trust_domain.clone(), chain, key)
        .map(Some)
        .map_err(|source| AuthorityStartError::Load { which, source })
}

/// A new signing authority, kept before it signs anything.
pub(super) async fn new_signing(
    store: &Store,
    root: &RootAuthority,
    now: SystemTime,
) -> Result<SigningAuthority, AuthorityStartError> {
    let which = "signing certificate";
    // Certificates count in whole seconds, so what is left of the root is rounded down.
    let left = root.not_after().duration_since(now).unwrap_or_default();
    let lifetime = SIGNING_LIFETIME.min(Duration::from_secs(left.as_secs()));
    let signing = root
        .issue_intermediate(lifetime, now)
        .map_err(|source| AuthorityStartError::Make { which, source })?;
    let Some(certificate) = signing.chain().first() else {
        let source = AuthorityLoadError::NoCertificate;
        return Err(AuthorityStartError::Load { which, source });
    };
    let record = AuthorityRecord {
        certificate: certificate.to_vec(),
        private_key: Some(signing.key().to_pkcs8_der()),
        not_after: signing.not_after(),
    };
    // Written before it signs anything: what is signed must be explainable after a restart.
    store
        .activate_authority(AuthorityRole::Signing, &record, now)
        .await?;
    tracing::info!(
        lifetime = duration::format(lifetime),
        "made a new signing certificate"
    );
    Ok(signing)
}

/// The trust bundle of every root that is kept and has not ended.
pub(super) async fn read_bundle(
    store: &Store,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<TrustBundle, AuthorityStartError> {
    let sequence = store.bundle_sequence().await?;
    let roots = store.trusted_roots(now).await?;
    Ok(TrustBundle::from_der(
        trust_domain.clone(),
        sequence,
        roots,
    )?)
}
