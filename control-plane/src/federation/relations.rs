//! What is known of each foreign trust domain, and what follows from it: whom its endpoint is verified with, which bundles
//! proxies get, and what is shown.

use super::document::to_api;
use super::fetch::FetchError;
use super::poll;
use crate::config::{Config, FederatedTrustDomain, Live};
use crate::issuance::authority::CertificateAuthority;
use crate::registry::Registry;
use crate::store::{FederatedBundle, Store, StoreError, Topic, unix_seconds};
use crate::telemetry::{FederationState, Metrics, Throttle, lasting_fault};
use sidewind_api::v1;
use sidewind_identity::TrustDomain;
use sidewind_identity::bundle::document::{
    BundleDocument, DEFAULT_REFRESH_HINT, DocumentError, Succession,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What a bundle's own hint is taken for at least and at most. Who wants another says so in the configuration.
const SHORTEST_HINT: Duration = Duration::from_secs(10);
const LONGEST_HINT: Duration = Duration::from_secs(86_400);
/// After so many intervals without a word from an endpoint its bundle is stale: keys are published three intervals before
/// they are used (SPIFFE Federation, section 4.1), so from then on there may be some that are not known here.
const STALE_AFTER: u32 = 3;
/// How often ages are measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Why a trust domain has no new bundle.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefreshError {
    /// The endpoint cannot be asked yet.
    #[error("{0}")]
    Endpoint(String),
    /// It did not give a document.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What it gave is none.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The document is not taken.
    #[error("the bundle is not taken: {0}")]
    Refused(String),
    /// The store does not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The foreign trust domains of a control plane.
#[derive(Debug)]
pub struct Federation {
    pub(super) store: Store,
    pub(super) config: Live,
    pub(super) authority: Arc<CertificateAuthority>,
    registry: Arc<Registry>,
    pub(super) metrics: Arc<Metrics>,
    relations: Mutex<BTreeMap<TrustDomain, Relation>>,
    config_changed: Notify,
}

/// What is known of one trust domain.
#[derive(Debug)]
struct Relation {
    present: Option<Present>,
    last_error: Option<String>,
    /// Since when its endpoint is asked.
    since: SystemTime,
    poller: Option<Poller>,
}

/// The bundle that is in use.
#[derive(Debug, Clone)]
pub(super) struct Present {
    pub(super) document: Arc<BundleDocument>,
    pub(super) taken_at: SystemTime,
    pub(super) confirmed_at: SystemTime,
}

#[derive(Debug)]
struct Poller {
    of: Arc<FederatedTrustDomain>,
    task: AbortHandle,
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Federation {
    /// The trust domains of a configuration, with the bundles that the store has of them, which proxies get from now on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open(
        store: Store,
        config: Live,
        authority: Arc<CertificateAuthority>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let federation = Self {
            store,
            config,
            authority,
            registry,
            metrics,
            relations: Mutex::default(),
            config_changed: Notify::new(),
        };
        federation.read().await?;
        federation.publish();
        Ok(federation)
    }

    /// Tells that the configuration is another.
    pub fn config_changed(&self) {
        self.config_changed.notify_one();
    }

    /// Fetches, hears of what other replicas have fetched, and follows the configuration. Runs until dropped.
    pub async fn run(self: Arc<Self>) {
        let mut news = self.store.watch(Topic::Federation);
        let mut interval = tokio::time::interval(MEASURE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.follow_config();
        loop {
            tokio::select! {
                // An error means that the store is gone, and the process with it.
                Ok(()) = news.changed() => {
                    if let Err(error) = self.read().await {
                        lasting_fault("the bundles of foreign trust domains cannot be read; those known stay in use", &error);
                    }
                    self.publish();
                }
                () = self.config_changed.notified() => {
                    self.follow_config();
                    self.publish();
                }
                _ = interval.tick() => {}
            }
            self.measure(SystemTime::now());
        }
    }

    /// Reads what the store has.
    async fn read(&self) -> Result<(), StoreError> {
        let stored = self.store.federated_bundles().await?;
        let now = SystemTime::now();
        let mut relations = self.relations();
        let gone = relations
            .iter_mut()
            .filter(|(domain, _)| !stored.iter().any(|bundle| bundle.trust_domain == **domain));
        gone.for_each(|(_, relation)| relation.present = None);
        for bundle in stored {
            match present(&bundle, now) {
                Ok(present) => {
                    let relation = relations.entry(bundle.trust_domain);
                    relation.or_insert_with(|| Relation::new(now)).present = Some(present);
                }
                // It was one when it was taken.
                Err(error) => lasting_fault("a stored bundle cannot be read", &error),
            }
        }
        Ok(())
    }

    /// Asks the endpoints of the configuration and no others.
    fn follow_config(self: &Arc<Self>) {
        let config = self.config.load();
        let now = SystemTime::now();
        let mut relations = self.relations();
        for (domain, relation) in relations.iter_mut() {
            let wanted = config.federated().get(domain);
            if relation.poller.as_ref().map(|poller| &poller.of) != wanted {
                relation.poller = None;
                relation.last_error = None;
            }
        }
        for (domain, wanted) in config.federated() {
            let relation = relations.entry(domain.clone());
            let relation = relation.or_insert_with(|| Relation::new(now));
            if relation.poller.is_none() {
                tracing::info!(
                    trust_domain = %domain,
                    url = %wanted.url,
                    profile = wanted.profile.name(),
                    "a foreign trust domain's bundle is fetched from now on"
                );
                relation.since = now;
                let polling = poll::run(Arc::downgrade(self), Arc::clone(wanted));
                relation.poller = Some(Poller {
                    of: Arc::clone(wanted),
                    task: tokio::spawn(polling).abort_handle(),
                });
            }
        }
        relations.retain(|_, relation| relation.poller.is_some() || relation.present.is_some());
    }

    /// Hands the bundles to the registry, which passes them on to those proxies that get them.
    fn publish(&self) {
        let relations = self.relations();
        let bundles = relations.iter().filter_map(|(domain, relation)| {
            let document = &relation.present.as_ref()?.document;
            Some((domain.clone(), to_api(document)))
        });
        let bundles: BTreeMap<_, _> = bundles.collect();
        drop(relations);
        self.registry.set_federated(bundles);
    }

    fn measure(&self, now: SystemTime) {
        static STALE: Throttle = Throttle::new();
        let config = self.config.load();
        let relations = self.relations();
        let mut states = Vec::new();
        for domain in config.federated().keys() {
            let Some(relation) = relations.get(domain) else {
                continue;
            };
            let state = relation.state(domain, &config, now);
            if state.stale
                && let Some(unsaid) = STALE.admit("stale")
            {
                tracing::error!(
                    trust_domain = %domain,
                    age_seconds = state.age.as_secs(),
                    error = relation.last_error,
                    unsaid,
                    "the bundle endpoint of a foreign trust domain is not heard; the last bundle stays in use, and keys \
                     that were published or taken out since are not known"
                );
            }
            states.push(state);
        }
        drop(relations);
        self.metrics.federation.set(&states);
    }

    /// What is in use of a trust domain.
    pub(super) fn present(&self, trust_domain: &TrustDomain) -> Option<Present> {
        self.relations().get(trust_domain)?.present.clone()
    }

    /// Every foreign document that is in use.
    pub(super) fn documents(&self) -> Vec<Arc<BundleDocument>> {
        let relations = self.relations();
        let present = relations
            .values()
            .filter_map(|relation| relation.present.as_ref());
        present
            .map(|present| Arc::clone(&present.document))
            .collect()
    }

    /// Notes what came of a try.
    pub(super) fn note(&self, trust_domain: &TrustDomain, outcome: &Result<Present, RefreshError>) {
        let mut relations = self.relations();
        let Some(relation) = relations.get_mut(trust_domain) else {
            return;
        };
        match outcome {
            Ok(present) => {
                // Another replica may have taken a later one meanwhile.
                let is_older = relation.present.as_ref().is_some_and(|known| {
                    present.document.succeeds(&known.document) == Succession::Rollback
                });
                if !is_older {
                    relation.present = Some(present.clone());
                }
                relation.last_error = None;
            }
            Err(error) => relation.last_error = Some(crate::telemetry::chain(error)),
        }
        drop(relations);
        if outcome.is_ok() {
            self.publish();
        }
    }

    /// Every trust domain of the configuration or the store, for people.
    #[must_use]
    pub fn list(&self) -> Vec<v1::FederationRelation> {
        let (config, now) = (self.config.load(), SystemTime::now());
        let relations = self.relations();
        let described = relations.iter().map(|(domain, relation)| {
            let configured = config.federated().get(domain).map(Arc::as_ref);
            let mut described = relation.describe(domain, configured);
            described.stale = configured.is_some() && relation.state(domain, &config, now).stale;
            described
        });
        let mut described: Vec<_> = described.collect();
        drop(relations);
        for relation in &mut described {
            if let Ok(domain) = TrustDomain::parse(&relation.trust_domain) {
                relation.workloads = self.registry.federated_workloads(&domain) as u64;
            }
        }
        described
    }

    /// Reads the store again, after something was taken out of it here.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forgotten(&self) -> Result<(), StoreError> {
        self.read().await?;
        let mut relations = self.relations();
        relations.retain(|_, relation| relation.poller.is_some() || relation.present.is_some());
        drop(relations);
        self.publish();
        Ok(())
    }

    fn relations(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, Relation>> {
        self.relations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relation {
    fn new(since: SystemTime) -> Self {
        Self {
            present: None,
            last_error: None,
            since,
            poller: None,
        }
    }

    fn state(&self, domain: &TrustDomain, config: &Config, now: SystemTime) -> FederationState {
        let present = self.present.as_ref();
        let heard = present.map_or(self.since, |present| present.confirmed_at);
        let age = now.duration_since(heard).unwrap_or_default();
        let configured = config.federated().get(domain).map(Arc::as_ref);
        FederationState {
            trust_domain: domain.to_string(),
            sequence: present.map(|present| present.document.sequence()),
            age,
            stale: age > interval(configured, present) * STALE_AFTER,
        }
    }

    fn describe(
        &self,
        domain: &TrustDomain,
        configured: Option<&FederatedTrustDomain>,
    ) -> v1::FederationRelation {
        use crate::config::EndpointProfile;
        let present = self.present.as_ref();
        let document = present.map(|present| present.document.as_ref());
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let at = |time: Option<SystemTime>| time.map_or(0, unix_seconds);
        let refresh = interval(configured, present).as_secs();
        v1::FederationRelation {
            trust_domain: domain.to_string(),
            url: configured.map(|it| it.url.to_string()).unwrap_or_default(),
            profile: configured
                .map(|it| it.profile.name().to_owned())
                .unwrap_or_default(),
            endpoint_spiffe_id: match configured.map(|it| &it.profile) {
                Some(EndpointProfile::Spiffe { endpoint, .. }) => endpoint.to_string(),
                _ => String::new(),
            },
            sequence: document.map(BundleDocument::sequence),
            x509_authorities: document.map_or(0, |it| number(it.x509().authorities().len())),
            jwt_authorities: document.map_or(0, |it| number(it.jwt().authorities().len())),
            refresh_seconds: u32::try_from(refresh).unwrap_or(u32::MAX),
            taken_at_unix: at(present.map(|it| it.taken_at)),
            confirmed_at_unix: at(present.map(|it| it.confirmed_at)),
            last_error: self.last_error.clone().unwrap_or_default(),
            stale: false,
            workloads: 0,
        }
    }
}

/// How often a trust domain's bundle is fetched.
pub(super) fn interval(
    configured: Option<&FederatedTrustDomain>,
    present: Option<&Present>,
) -> Duration {
    let given = configured.and_then(|it| it.refresh_interval);
    given.unwrap_or_else(|| {
        let hint = present.map_or(DEFAULT_REFRESH_HINT, |it| it.document.refresh_hint());
        hint.clamp(SHORTEST_HINT, LONGEST_HINT)
    })
}

fn present(bundle: &FederatedBundle, now: SystemTime) -> Result<Present, DocumentError> {
    let document = BundleDocument::parse(bundle.trust_domain.clone(), &bundle.document, now)?;
    Ok(Present {
        document: Arc::new(document),
        taken_at: bundle.taken_at,
        confirmed_at: bundle.confirmed_at,
    })
}
