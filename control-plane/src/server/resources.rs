//! The resources of `--config`: held against the authority, and handed to those who go by them.

use super::Settings;
use crate::config::watch::Watcher;
use crate::config::{Config, ConfigErrors, Expectations, Live};
use crate::issuance::authority::CertificateAuthority;
use crate::issuance::issuer::check_lifetime;
use crate::registry::Registry;
use std::sync::Arc;

/// Resources that were read, and what reads them again.
pub(super) type Watched = Option<(Watcher, Config)>;

/// Reads the resources, where there are any.
pub(super) fn open(settings: &Settings) -> Result<Watched, ConfigErrors> {
    let expectations = Expectations {
        trust_domain: Some(settings.trust_domain.clone()),
        lifetime: None,
    };
    let open = |directory| Watcher::open(directory, expectations);
    settings.config.as_deref().map(open).transpose()
}

/// Holds their lifetimes against an authority, from now on.
pub(super) fn hold_against(
    watched: &mut Watched,
    authority: &Arc<CertificateAuthority>,
) -> Result<(), ConfigErrors> {
    let Some((watcher, _)) = watched else {
        return Ok(());
    };
    let authority = Arc::clone(authority);
    let honours = move |ttl| check_lifetime(&authority, ttl).map_err(|no| no.message);
    watcher.expect_lifetimes(Arc::new(honours))
}

/// Puts resources in use.
pub(super) fn put_in_use(config: Config, live: &Live, registry: &Registry) {
    let config = Arc::new(config);
    live.set(Arc::clone(&config));
    registry.set_config(config);
}
