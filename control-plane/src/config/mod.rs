//! The resources of `--config DIR`: YAML documents in, a checked model out.
//!
//! - [`document`]: splits files into documents and reads each by its kind
//! - `authorization_policy`, `service_entry`, `http_route`: one kind each, from its text to the model
//! - [`watch`]: reads again on change; a bad new version never replaces a good running one
//!
//! Everything is checked here, whole, before anything of it is used.

mod authorization_policy;
pub mod document;
mod error;
mod http_route;
mod service_entry;
mod tree;
pub mod watch;

pub use authorization_policy::AuthorizationPolicy;
pub use error::{ConfigError, ConfigErrors};
pub use service_entry::{Backend, EntryEndpoint, EntryPort, ServiceEntry};

use sidewind_api::{ServiceName, v1};
use sidewind_identity::SpiffeId;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Every resource, checked.
#[derive(Debug, Default)]
pub struct Config {
    policies: Vec<AuthorizationPolicy>,
    entries: Vec<Arc<ServiceEntry>>,
    by_host: HashMap<(String, u16), Arc<ServiceEntry>>,
    by_address: HashMap<(std::net::IpAddr, u16), Arc<ServiceEntry>>,
    /// Services that stand behind an entry.
    backends: HashSet<ServiceName>,
    routes: HashMap<(ServiceName, Option<u16>), v1::RoutePolicy>,
}

/// A model under construction, with where each resource stands.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    config: Config,
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
        let mut draft = Draft::default();
        let mut errors = Vec::new();
        for file in files {
            for document in file.documents() {
                if let Err(more) = document.read_into(&mut draft) {
                    errors.extend(more);
                }
            }
        }
        if errors.is_empty() {
            Ok(draft.config)
        } else {
            Err(ConfigErrors(errors))
        }
    }

    /// Number of resources of each kind, for logs: policies, entries, routes.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.policies.len(), self.entries.len(), self.routes.len())
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

    /// Timeouts and retries of a service's port: those of the port, else those of the service.
    #[must_use]
    pub fn route(&self, service: &ServiceName, port: u16) -> Option<&v1::RoutePolicy> {
        let of = |port| self.routes.get(&(service.clone(), port));
        of(Some(port)).or_else(|| of(None))
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

    fn add_policy(&mut self, policy: AuthorizationPolicy) {
        self.config.policies.push(policy);
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

    fn add_route(&mut self, service: ServiceName, port: Option<u16>, route: v1::RoutePolicy) {
        self.config.routes.insert((service, port), route);
    }
}

#[cfg(test)]
mod tests;
