//! Which trust bundles each stream gets: the own trust domain's, and those of the foreign ones that its workload's
//! registration names, as far as they are configured.

use super::{Connected, Registry, State, WorkloadKey};
use crate::config::Config;
use crate::store::Registration;
use sidewind_api::v1;
use sidewind_identity::TrustDomain;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Bundles of foreign trust domains, in the API's form.
pub(super) type Federated = BTreeMap<TrustDomain, v1::TrustBundle>;

/// Foreign trust domains that a registration names and the configuration knows, in order, each once.
fn names<'a>(config: &'a Config, registration: &Registration) -> Vec<&'a TrustDomain> {
    let configured = config.federated();
    if configured.is_empty() {
        return Vec::new();
    }
    let names = config.federates_with(registration).iter();
    let known = names.filter_map(|name| configured.get_key_value(name));
    let mut known: Vec<&TrustDomain> = known.map(|(name, _)| name).collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// Sets of bundles under construction: streams with the same foreign trust domains share theirs.
struct Sets<'a> {
    own: &'a Arc<v1::TrustBundles>,
    federated: &'a Federated,
    config: &'a Config,
    made: HashMap<Vec<&'a TrustDomain>, Arc<v1::TrustBundles>>,
}

impl<'a> Sets<'a> {
    fn of(&mut self, registration: Option<&Registration>) -> Arc<v1::TrustBundles> {
        let names = registration.map_or_else(Vec::new, |it| names(self.config, it));
        if names.is_empty() {
            return Arc::clone(self.own);
        }
        let (own, federated) = (self.own, self.federated);
        let made = self.made.entry(names).or_insert_with_key(|names| {
            let foreign = names.iter().filter_map(|name| federated.get(*name));
            let bundles = own.bundles.iter().chain(foreign).cloned().collect();
            Arc::new(v1::TrustBundles { bundles })
        });
        Arc::clone(made)
    }
}

impl State {
    /// Sends streams their bundles where those have become others.
    pub(super) fn send_bundles(&mut self) {
        let mut sets = Sets {
            own: &self.bundles,
            federated: &self.federated,
            config: &self.config,
            made: HashMap::new(),
        };
        for stream in self.streams.values_mut() {
            let bundles = sets.of(stream.registration.as_deref());
            if !Arc::ptr_eq(&bundles, &stream.bundles) && bundles != stream.bundles {
                stream.bundles = Arc::clone(&bundles);
                stream.outbox.put_bundles(bundles);
            }
        }
    }
}

impl Registry {
    /// Sends new trust bundles of the own trust domain to every stream.
    pub fn set_bundles(&self, bundles: v1::TrustBundles) {
        let mut state = self.state();
        state.bundles = Arc::new(bundles);
        state.send_bundles();
    }

    /// Takes the bundles of foreign trust domains, all of them, and sends them to those streams that get them.
    pub fn set_federated(&self, federated: Federated) {
        let mut state = self.state();
        if state.federated != federated {
            state.federated = federated;
            state.send_bundles();
        }
    }

    /// The foreign bundles that the workload of a registration gets.
    #[must_use]
    pub fn federated_for(&self, registration: &Registration) -> Vec<v1::TrustBundle> {
        let state = self.state();
        let names = names(&state.config, registration).into_iter();
        let bundles = names.filter_map(|name| state.federated.get(name));
        bundles.cloned().collect()
    }

    /// How many workloads that are connected here get the bundle of a foreign trust domain.
    #[must_use]
    pub fn federated_workloads(&self, trust_domain: &TrustDomain) -> usize {
        let state = self.state();
        let registrations = state
            .streams
            .values()
            .filter_map(|it| it.registration.as_ref());
        let gets = |registration: &&Arc<Registration>| {
            names(&state.config, registration).contains(&trust_domain)
        };
        registrations.filter(gets).count()
    }

    /// Foreign trust domains that the registration of a connected workload names, each with the sequence of its bundle
    /// where there is one.
    #[must_use]
    pub fn federation_of(&self, key: &WorkloadKey) -> Vec<(TrustDomain, Option<u64>)> {
        let state = self.state();
        let stream = state.directory.stream_of(key);
        let stream = stream.and_then(|id| state.streams.get(&id));
        let Some(registration) = stream.and_then(|stream| stream.registration.as_ref()) else {
            return Vec::new();
        };
        let named = state.config.federates_with(registration).iter();
        let configured = state.config.federated();
        let sequence = |name: &TrustDomain| {
            let bundle = state.federated.get(name);
            let bundle = bundle.filter(|_| configured.contains_key(name));
            bundle.map(|bundle| bundle.sequence)
        };
        named.map(|name| (name.clone(), sequence(name))).collect()
    }
}

impl Connected {
    /// Notes what the workload is registered by, and with it which foreign bundles it gets.
    pub fn register(&self, registration: Arc<Registration>) {
        let mut state = self.registry.state();
        let state = &mut *state;
        let Some(stream) = state.streams.get_mut(&self.id) else {
            return;
        };
        let mut sets = Sets {
            own: &state.bundles,
            federated: &state.federated,
            config: &state.config,
            made: HashMap::new(),
        };
        let bundles = sets.of(Some(&registration));
        stream.registration = Some(registration);
        if bundles != stream.bundles {
            stream.bundles = Arc::clone(&bundles);
            stream.outbox.put_bundles(bundles);
        }
    }
}
