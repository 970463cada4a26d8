//! The resources of `--config DIR`: YAML documents in, a checked model out.
//!
//! - [`document`]: splits files into documents and reads each by its kind
//! - `authorization_policy`, `service_entry`, `gateway`, `tls_route`, `traffic_policy`, `registration`, `attestor_config`,
//!   [`federated_trust_domain`]: one kind each, from its text to the model; `route`: those that say where requests go
//! - [`template`], [`vocabulary`]: texts with placeholders, and the words that they and selectors have
//! - `across`: what documents say together
//! - [`watch`]: reads again on change; a bad new version never replaces a good running one
//!
//! Everything is checked here, whole, before anything of it is used.

mod across;
pub mod attestor_config;
mod authorization_policy;
pub mod document;
mod error;
pub mod federated_trust_domain;
mod gateway;
mod gateway_options;
mod registration;
mod route;
mod service_entry;
pub mod template;
mod tls_route;
mod traffic_policy;
mod tree;
pub mod vocabulary;
pub mod watch;

pub use attestor_config::AttestorConfigs;
pub use authorization_policy::AuthorizationPolicy;
pub use error::{ConfigError, ConfigErrors};
pub use federated_trust_domain::{Bootstrap, EndpointProfile, FederatedTrustDomain};
pub use registration::{Condition, RegistrationRule};
pub use service_entry::{Backend, EntryEndpoint, EntryPort, MeshEndpoint, ServiceEntry};
pub use traffic_policy::{EndpointRule, TrafficPolicy};

use crate::store::Registration;
use arc_swap::ArcSwap;
use attestor_config::{Airflow, AwsRegion, KubernetesCluster, OidcIssuer, X509Authority};
use error::Place;
use federated_trust_domain::PlacedTrustDomain;
use gateway::Gateway;
use route::{RouteDraft, Routes};
use sidewind_api::{ServiceName, v1};
use sidewind_identity::{SpiffeId, TrustDomain};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tls_route::TlsRoute;

/// Every resource, checked.
#[derive(Debug, Default)]
pub struct Config {
    policies: Vec<AuthorizationPolicy>,
    entries: Vec<Arc<ServiceEntry>>,
    by_host: HashMap<(String, u16), Arc<ServiceEntry>>,
    by_address: HashMap<(std::net::IpAddr, u16), Arc<ServiceEntry>>,
    /// Services that stand behind an entry.
    backends: HashSet<ServiceName>,
    routes: Routes,
    gateways: Vec<Gateway>,
    traffic: HashMap<traffic_policy::Target, Arc<TrafficPolicy>>,
    /// How many documents those are of.
    traffic_policies: usize,
    registrations: Vec<Arc<RegistrationRule>>,
    attestors: AttestorConfigs,
    federated: BTreeMap<TrustDomain, Arc<FederatedTrustDomain>>,
}

/// The resources in use, shared with whoever goes by them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Live(Arc<ArcSwap<Config>>);

impl Live {
    /// The resources in use now.
    #[must_use]
    pub fn load(&self) -> Arc<Config> {
        self.0.load_full()
    }

    /// Puts others in use.
    pub fn set(&self, config: Arc<Config>) {
        self.0.store(config);
    }
}

/// Says why a lifetime of certificates cannot be promised.
pub type LifetimeCheck = Arc<dyn Fn(Duration) -> Result<(), String> + Send + Sync>;

/// What resources are held against, where it is known.
#[derive(Clone, Default)]
pub struct Expectations {
    /// The trust domain that is signed for.
    pub trust_domain: Option<TrustDomain>,
    /// Whether the authority can honour a lifetime.
    pub lifetime: Option<LifetimeCheck>,
}

impl Expectations {
    fn check_lifetime(&self, ttl: Duration) -> Result<(), String> {
        self.lifetime.as_ref().map_or(Ok(()), |check| check(ttl))
    }
}

impl fmt::Debug for Expectations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expectations")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// How many resources of each kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Authorization policies.
    pub policies: usize,
    /// Service entries.
    pub entries: usize,
    /// Routes.
    pub routes: usize,
    /// Gateways.
    pub gateways: usize,
    /// Traffic policies.
    pub traffic_policies: usize,
    /// Registrations.
    pub registrations: usize,
    /// Clusters, issuers and authorities whose evidence is believed.
    pub attestors: usize,
    /// Foreign trust domains.
    pub federated: usize,
}

/// A registration with where it stands.
#[derive(Debug)]
struct PlacedRule {
    rule: RegistrationRule,
    selectors_at: Place,
    id_at: Place,
    federates_at: Option<Place>,
    /// Where it names the Airflow whose word tasks need.
    airflow_at: Option<Place>,
    shared_across_clusters: bool,
}

/// A model under construction, with where each resource stands.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    config: Config,
    routes: RouteDraft,
    expectations: Expectations,
    registrations: Vec<PlacedRule>,
    /// Where clusters are said to give default identities, and their names.
    default_identities: Vec<(Place, String)>,
    /// Foreign trust domains, and identities of theirs that entries name.
    federated: Vec<PlacedTrustDomain>,
    endpoint_identities: Vec<(Place, TrustDomain)>,
    tls_routes: Vec<TlsRoute>,
    gateway_policies: Vec<(traffic_policy::GatewayTarget, Arc<TrafficPolicy>)>,
    /// Routes that rate limits name.
    limited_routes: Vec<(Place, String)>,
    /// Names taken, and by which place: for messages about the second.
    taken: HashMap<String, String>,
}

impl Config {
    /// Reads every `*.yaml` and `*.yml` file of a directory.
    ///
    /// # Errors
    /// Everything that is wrong with any of them, each with file, line, column and field.
    pub fn load(directory: &Path) -> Result<Self, ConfigErrors> {
        Self::parse(&document::read_directory(directory)?)
    }

    /// Makes the model of files that have been read.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn parse(files: &[document::SourceFile]) -> Result<Self, ConfigErrors> {
        Self::parse_for(files, &Expectations::default())
    }

    /// As [`Config::parse`], held against what is known of the control plane that is to use it.
    ///
    /// # Errors
    /// Everything that is wrong with any of them.
    pub fn parse_for(
        files: &[document::SourceFile],
        expectations: &Expectations,
    ) -> Result<Self, ConfigErrors> {
        let mut draft = Draft {
            expectations: expectations.clone(),
            ..Draft::default()
        };
        let mut errors = Vec::new();
        for file in files {
            for document in file.documents() {
                if let Err(more) = document.read_into(&mut draft) {
                    errors.extend(more);
                }
            }
        }
        if errors.is_empty() {
            errors = across::check(&draft);
            errors.extend(draft.routes.complete());
            errors.extend(draft.attach_routes());
        }
        if errors.is_empty() {
            Ok(draft.finish())
        } else {
            Err(ConfigErrors(errors))
        }
    }

    /// Number of resources of each kind.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            policies: self.policies.len(),
            entries: self.entries.len(),
            routes: self.routes.len(),
            gateways: self.gateways.len(),
            traffic_policies: self.traffic_policies,
            registrations: self.registrations.len(),
            attestors: self.attestors.count(),
            federated: self.federated.len(),
        }
    }

    /// Registrations, those with the most conditions first, and by name among equals.
    #[must_use]
    pub fn registrations(&self) -> &[Arc<RegistrationRule>] {
        &self.registrations
    }

    /// Who is believed when it says which Airflow task a request comes from.
    #[must_use]
    pub fn tellers_of_tasks(&self) -> Vec<String> {
        let tellers = self.registrations.iter().filter(|rule| rule.task_context);
        let mut ids: Vec<_> = tellers
            .map(|rule| rule.spiffe_id.template().to_string())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Foreign trust domains whose bundles are fetched.
    #[must_use]
    pub fn federated(&self) -> &BTreeMap<TrustDomain, Arc<FederatedTrustDomain>> {
        &self.federated
    }

    /// Foreign trust domains whose bundles a registration's workload gets by the documents of now. Those that a document
    /// of the same name gives are meant; what came of a join token says for itself.
    #[must_use]
    pub fn federates_with<'a>(&'a self, registration: &'a Registration) -> &'a [TrustDomain] {
        let Some(document) = &registration.document else {
            return &registration.federates_with;
        };
        let rule = self
            .registrations
            .iter()
            .find(|rule| rule.name == *document);
        rule.map_or(&[], |rule| rule.federates_with.as_slice())
    }

    /// Whose evidence is believed.
    #[must_use]
    pub fn attestors(&self) -> &AttestorConfigs {
        &self.attestors
    }

    /// Who may call a workload: whether any policy selects it, and the rules of those that do.
    #[must_use]
    pub fn inbound_rules(&self, workload: &SpiffeId) -> (bool, Vec<v1::AllowRule>) {
        let selecting = self
            .policies
            .iter()
            .filter(|policy| policy.selects(workload));
        let mut selected = false;
        let mut rules = Vec::new();
        for policy in selecting {
            selected = true;
            rules.extend(policy.rules.iter().cloned());
        }
        (selected, rules)
    }

    /// The entry of a host and port.
    #[must_use]
    pub fn entry_of_host(&self, host: &str, port: u16) -> Option<&Arc<ServiceEntry>> {
        self.by_host.get(&(host.to_owned(), port))
    }

    /// The entry of an address and port.
    #[must_use]
    pub fn entry_of_address(
        &self,
        address: std::net::IpAddr,
        port: u16,
    ) -> Option<&Arc<ServiceEntry>> {
        self.by_address.get(&(address, port))
    }

    /// Where requests to a service's port go: the policy of those that no rule treats in its own way, for proxies that
    /// know nothing else, and the table where there is more to it.
    #[must_use]
    pub fn routes(
        &self,
        service: &ServiceName,
        port: u16,
    ) -> (Option<v1::RoutePolicy>, Option<v1::RouteTable>) {
        self.routes.of_service(service, port)
    }

    /// What a proxy of this identity listens on as a gateway.
    #[must_use]
    pub fn gateway_listeners(&self, id: &SpiffeId) -> Vec<v1::GatewayListener> {
        let mut serving: Vec<&Gateway> = self.gateways.iter().collect();
        serving.retain(|gateway| gateway.is_served_by(id));
        serving.sort_by_key(|gateway| (&gateway.namespace, &gateway.name));
        let listeners = serving.iter().flat_map(|gateway| &gateway.listeners);
        listeners.map(|listener| listener.api.clone()).collect()
    }

    /// The traffic policy of a service's port: that of the port, else of the service, else of its namespace.
    #[must_use]
    pub fn traffic(&self, service: &ServiceName, port: u16) -> Option<&Arc<TrafficPolicy>> {
        use traffic_policy::Target;
        if self.traffic.is_empty() {
            return None;
        }
        let of_port = Target::Service(service.clone(), Some(port));
        let of_service = Target::Service(service.clone(), None);
        let find = |target: Target| self.traffic.get(&target);
        find(of_port)
            .or_else(|| find(of_service))
            .or_else(|| find(Target::Namespace(service.namespace().to_owned())))
    }

    /// What a proxy keeps for the ports of its workload, each given with the service's name and port.
    pub fn port_limits<'p>(
        &self,
        ports: impl Iterator<Item = (u16, &'p (ServiceName, u16))>,
    ) -> Vec<v1::PortLimits> {
        let limits = ports.filter_map(|(port, (service, service_port))| {
            let policy = self.traffic(service, *service_port)?;
            let (bounds, rate_limits) = policy.beside.clone()?;
            Some(v1::PortLimits {
                port: port.into(),
                service: service.to_string(),
                name: policy.caller.name.clone(),
                bounds: Some(bounds),
                rate_limits,
            })
        });
        limits.collect()
    }

    /// Whether a service is named by an entry as its backend.
    #[must_use]
    pub fn names_service(&self, service: &ServiceName) -> bool {
        self.backends.contains(service)
    }
}

impl Draft {
    /// Takes a name that only one resource may have; says where the other is when it is taken.
    fn take(&mut self, what: String, place: String) -> Result<(), String> {
        match self.taken.entry(what) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(place);
                Ok(())
            }
            std::collections::hash_map::Entry::Occupied(other) => Err(format!(
                "{} is already given at {}; one of the two must go",
                other.key(),
                other.get()
            )),
        }
    }

    fn add_registration(&mut self, placed: PlacedRule) {
        self.registrations.push(placed);
    }

    fn add_cluster(&mut self, cluster: KubernetesCluster, default_at: Option<Place>) {
        let name = cluster.cluster.clone();
        self.default_identities
            .extend(default_at.map(|at| (at, name)));
        self.config.attestors.kubernetes.push(Arc::new(cluster));
    }

    fn add_issuer(&mut self, issuer: OidcIssuer) {
        self.config.attestors.oidc.push(Arc::new(issuer));
    }

    fn add_aws_region(&mut self, region: AwsRegion) {
        self.config.attestors.aws_iam.push(Arc::new(region));
    }

    fn add_airflow(&mut self, airflow: Airflow) {
        self.config.attestors.airflow.push(Arc::new(airflow));
    }

    fn add_x509_authority(&mut self, authority: X509Authority) {
        self.config.attestors.x509.push(Arc::new(authority));
    }

    fn add_federated(&mut self, placed: PlacedTrustDomain) {
        self.federated.push(placed);
    }

    fn finish(mut self) -> Config {
        let federated = self.federated.into_iter().map(|placed| placed.domain);
        self.config.federated = federated
            .map(|domain| (domain.trust_domain.clone(), Arc::new(domain)))
            .collect();
        let rules = self.registrations.into_iter().map(|placed| placed.rule);
        let mut rules: Vec<_> = rules.map(Arc::new).collect();
        rules.sort_by(|a, b| {
            let specific = b.conditions.len().cmp(&a.conditions.len());
            specific.then_with(|| a.name.cmp(&b.name))
        });
        self.config.registrations = rules;
        self.config.routes = self.routes.finish();
        self.config
    }

    fn add_gateway(&mut self, gateway: Gateway) {
        self.config.gateways.push(gateway);
    }

    fn add_tls_route(&mut self, route: TlsRoute) {
        self.tls_routes.push(route);
    }

    /// Attaches routes and policies to the listeners of gateways; says which cannot be.
    fn attach_routes(&mut self) -> Vec<ConfigError> {
        let mut errors = self.routes.attach_all(&mut self.config.gateways);
        errors.extend(tls_route::attach_all(
            &self.tls_routes,
            &mut self.config.gateways,
        ));
        errors.extend(traffic_policy::apply_to_gateways(
            &self.gateway_policies,
            &mut self.config.gateways,
        ));
        errors
    }

    fn add_policy(&mut self, policy: AuthorizationPolicy) {
        self.config.policies.push(policy);
    }

    fn add_traffic_policy(
        &mut self,
        targets: Vec<traffic_policy::Target>,
        gateways: Vec<traffic_policy::GatewayTarget>,
        policy: TrafficPolicy,
    ) {
        self.config.traffic_policies += 1;
        let policy = Arc::new(policy);
        let gateways = gateways.into_iter();
        self.gateway_policies
            .extend(gateways.map(|target| (target, Arc::clone(&policy))));
        let targets = targets.into_iter();
        self.config
            .traffic
            .extend(targets.map(|target| (target, Arc::clone(&policy))));
    }

    fn add_entry(&mut self, entry: ServiceEntry) {
        let entry = Arc::new(entry);
        if let Backend::Service(service) = &entry.backend {
            self.config.backends.insert(service.clone());
        }
        for port in &entry.ports {
            for host in &entry.hosts {
                let key = (host.clone(), port.port);
                self.config.by_host.insert(key, Arc::clone(&entry));
            }
            for address in &entry.addresses {
                let key = (*address, port.port);
                self.config.by_address.insert(key, Arc::clone(&entry));
            }
        }
        self.config.entries.push(entry);
    }
}

#[cfg(test)]
mod across_tests;
#[cfg(test)]
mod registration_tests;
#[cfg(test)]
mod tests;
