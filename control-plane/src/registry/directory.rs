//! The workloads, by address and by service.

use super::workload::{WorkloadKey, WorkloadRecord};
use super::{StreamId, Topic};
use sidewind_api::ServiceName;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How long the address of a workload that left stays one of the mesh. Its clients get no endpoint in
/// that time, and never plaintext to whatever stands there: a proxy whose stream broke is still there.
const ADDRESS_HOLD: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Directory {
    /// In boxes: a table has room for half as many again as it holds.
    workloads: HashMap<WorkloadKey, Box<Entry>>,
    /// Most addresses are of one workload, and a set has room for eleven.
    by_address: HashMap<IpAddr, Vec<WorkloadKey>>,
    by_service: HashMap<ServiceName, BTreeSet<WorkloadKey>>,
    known_services: HashSet<ServiceName>,
    held: HashMap<IpAddr, Held>,
    registered: u64,
    unconfirmed: usize,
}

#[derive(Debug)]
struct Entry {
    record: WorkloadRecord,
    stream: Option<StreamId>,
    /// Counts registrations; of two workloads that claim the same, the newer has it.
    order: u64,
}

#[derive(Debug)]
struct Held {
    until: Instant,
    ports: HashSet<u16>,
}

impl Directory {
    /// The directory as it was before a restart, nothing of it confirmed.
    pub(super) fn restore(known: Vec<WorkloadRecord>) -> Self {
        let mut directory = Self::default();
        for mut record in known {
            record.confirmed = false;
            let _topics = directory.insert(record, None);
        }
        directory
    }

    /// Adds a workload or replaces it, and gives back what that touches.
    pub(super) fn insert(
        &mut self,
        record: WorkloadRecord,
        stream: Option<StreamId>,
    ) -> Vec<Topic> {
        let key = record.key.clone();
        let mut topics = self.unlink(&key);
        topics.extend(topics_of(&record));
        self.unconfirmed += usize::from(!record.confirmed);
        if !record.gateway {
            self.held.remove(&record.address);
            self.by_address
                .entry(record.address)
                .or_insert_with(|| Vec::with_capacity(1))
                .push(key.clone());
        }
        for service in record.services() {
            self.known_services.insert(service.clone());
            self.by_service
                .entry(service.clone())
                .or_default()
                .insert(key.clone());
        }
        self.registered += 1;
        let entry = Entry {
            record,
            stream,
            order: self.registered,
        };
        self.workloads.insert(key, Box::new(entry));
        topics
    }

    /// Notes whether a workload is known to be there. Its clients need not hear of it.
    pub(super) fn set_confirmed(&mut self, key: &WorkloadKey, confirmed: bool) {
        let Some(entry) = self.workloads.get_mut(key) else {
            return;
        };
        self.unconfirmed -= usize::from(!entry.record.confirmed);
        self.unconfirmed += usize::from(!confirmed);
        entry.record.confirmed = confirmed;
    }

    /// Takes a workload out, and gives back what that touches.
    pub(super) fn remove(&mut self, key: &WorkloadKey, now: Instant) -> Vec<Topic> {
        let Some(entry) = self.workloads.get(key) else {
            return Vec::new();
        };
        let (address, ports) = (entry.record.address, &entry.record.ports);
        let ports: HashSet<u16> = ports.iter().map(|port| port.target).collect();
        let gateway = entry.record.gateway;
        let topics = self.unlink(key);
        self.workloads.remove(key);
        if gateway {
            return topics;
        }
        let held = self.held.entry(address).or_insert_with(|| Held {
            until: now,
            ports: HashSet::new(),
        });
        held.until = now + ADDRESS_HOLD;
        held.ports.extend(ports);
        topics
    }

    /// Takes a workload out of the indexes.
    fn unlink(&mut self, key: &WorkloadKey) -> Vec<Topic> {
        let Some(entry) = self.workloads.get(key) else {
            return Vec::new();
        };
        let topics = topics_of(&entry.record);
        self.unconfirmed -= usize::from(!entry.record.confirmed);
        for topic in &topics {
            match topic {
                Topic::Address(address) => self.unlink_address(address, key),
                Topic::Service(service) => self.unlink_service(service, key),
            }
        }
        topics
    }

    fn unlink_address(&mut self, address: &IpAddr, key: &WorkloadKey) {
        if let Some(keys) = self.by_address.get_mut(address) {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.by_address.remove(address);
            }
        }
    }

    fn unlink_service(&mut self, service: &ServiceName, key: &WorkloadKey) {
        if let Some(keys) = self.by_service.get_mut(service) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_service.remove(service);
            }
        }
    }

    /// Ends the hold on addresses whose time is over, and gives back what that touches.
    pub(super) fn release_addresses(&mut self, now: Instant) -> Vec<Topic> {
        let mut topics = Vec::new();
        self.held.retain(|address, held| {
            let over = held.until <= now;
            if over {
                topics.push(Topic::Address(*address));
            }
            !over
        });
        topics
    }

    /// Notes that a service belongs to the mesh; `true` when it was not known.
    pub(super) fn learn_service(&mut self, service: &ServiceName) -> bool {
        self.known_services.insert(service.clone())
    }

    /// Whether a service belongs to the mesh, with or without workloads at present.
    pub(super) fn knows_service(&self, service: &ServiceName) -> bool {
        self.known_services.contains(service)
    }

    /// Whether an address and port belonged to a workload a moment ago.
    pub(super) fn holds(&self, address: IpAddr, port: u16) -> bool {
        self.held
            .get(&address)
            .is_some_and(|held| !address.is_loopback() || held.ports.contains(&port))
    }

    /// The workload that an address and port belong to.
    ///
    /// Several can share an address: on loopback, and when an address was given to another while the old
    /// one's stream is not yet known to be dead. The newest that declares the port has it. A port that
    /// nobody declares is the newest's, but on loopback nobody's: there, other programs listen too.
    pub(super) fn at(&self, address: IpAddr, port: u16) -> Option<&WorkloadRecord> {
        let entries = || {
            let keys = self.by_address.get(&address).into_iter().flatten();
            keys.filter_map(|key| self.workloads.get(key).map(|entry| &**entry))
        };
        let declares = |entry: &&Entry| entry.record.ports.iter().any(|p| p.target == port);
        let newest = |entry: &&Entry| entry.order;
        let declared = entries().filter(declares).max_by_key(newest);
        let any = || {
            entries()
                .filter(|_| !address.is_loopback())
                .max_by_key(newest)
        };
        declared.or_else(any).map(|entry| &entry.record)
    }

    /// The workloads of a service, the newest first.
    pub(super) fn of_service(&self, service: &ServiceName) -> Vec<&WorkloadRecord> {
        let keys = self.by_service.get(service).into_iter().flatten();
        let mut entries: Vec<_> = keys.filter_map(|key| self.workloads.get(key)).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.order));
        entries.into_iter().map(|entry| &entry.record).collect()
    }

    /// The stream that a workload registered by, if it is open.
    pub(super) fn stream_of(&self, key: &WorkloadKey) -> Option<StreamId> {
        self.workloads.get(key)?.stream
    }

    /// What is known of a workload.
    pub(super) fn record(&self, key: &WorkloadKey) -> Option<&WorkloadRecord> {
        Some(&self.workloads.get(key)?.record)
    }

    /// Workloads from before a restart that are not back.
    pub(super) fn unconfirmed(&self) -> Vec<WorkloadKey> {
        if self.unconfirmed == 0 {
            return Vec::new();
        }
        let unconfirmed = self.records().filter(|record| !record.confirmed);
        unconfirmed.map(|record| record.key.clone()).collect()
    }

    /// Every workload.
    pub(super) fn records(&self) -> impl Iterator<Item = &WorkloadRecord> {
        self.workloads.values().map(|entry| &entry.record)
    }

    /// Number of all workloads, and of those not confirmed.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.workloads.len(), self.unconfirmed)
    }
}

fn topics_of(record: &WorkloadRecord) -> Vec<Topic> {
    if record.gateway {
        return Vec::new();
    }
    let services: BTreeSet<_> = record.services().cloned().collect();
    let services = services.into_iter().map(Topic::Service);
    services.chain([Topic::Address(record.address)]).collect()
}
