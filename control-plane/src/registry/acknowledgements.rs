//! What each live proxy has said that it has in use.

use super::outbox::EndReason;
use super::{Connected, Registry, StreamId, WorkloadKey, WorkloadRecord};
use sidewind_api::v1;
use sidewind_identity::{PeerIdentity, SpiffeId, TrustDomain};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Most trust domains of one acknowledgement that are noted.
const MAX_TRUST_DOMAINS: usize = 256;
/// A serial number has at most 20 bytes (RFC 5280 section 4.1.2.2), in hexadecimal.
const MAX_SERIAL_CHARACTERS: usize = 40;

/// What a proxy has in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The sequence of each trust domain's bundle.
    pub bundles: BTreeMap<TrustDomain, u64>,
    /// The version of the list of bans.
    pub bans_version: u64,
    /// Serial number, in hexadecimal, of the SVID that new connections use.
    pub svid_serial: String,
}

impl Acknowledged {
    /// Reads what a proxy said; what cannot be is left out.
    #[must_use]
    pub fn read(message: &v1::Acknowledge) -> Self {
        let bundles = message.bundles.iter().take(MAX_TRUST_DOMAINS);
        let bundles = bundles.filter_map(|bundle| {
            let trust_domain = TrustDomain::parse(&bundle.trust_domain).ok()?;
            Some((trust_domain, bundle.sequence))
        });
        let serial = message.svid_serial.as_str();
        let is_serial = serial.len() <= MAX_SERIAL_CHARACTERS
            && serial.bytes().all(|byte| byte.is_ascii_hexdigit());
        Self {
            bundles: bundles.collect(),
            bans_version: message.bans_version,
            svid_serial: if is_serial {
                serial.to_owned()
            } else {
                String::new()
            },
        }
    }
}

/// A live proxy that is behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Laggard {
    /// Its identity.
    pub spiffe_id: SpiffeId,
    /// Its workload's name for people.
    pub workload_name: String,
}

impl Laggard {
    pub(super) fn of(record: &WorkloadRecord) -> Self {
        Self {
            spiffe_id: record.key.spiffe_id.clone(),
            workload_name: record.workload_name.clone(),
        }
    }
}

impl fmt::Display for Laggard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.spiffe_id, self.workload_name)
    }
}

/// What every stream has said last.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    by_stream: HashMap<StreamId, Box<Record>>,
}

#[derive(Debug)]
struct Record {
    proxy: Laggard,
    /// Key identifier of the authority that signed the certificate which the stream was opened with.
    issuer_key_id: String,
    acknowledged: Acknowledged,
    /// Whether it was asked for its list of bans: one that has none to show is not asked for ever.
    asked_for_bans: bool,
}

impl Acknowledgements {
    /// A stream that has said nothing yet.
    pub(super) fn add(&mut self, stream: StreamId, proxy: Laggard) {
        let record = Record {
            proxy,
            issuer_key_id: String::new(),
            acknowledged: Acknowledged::default(),
            asked_for_bans: false,
        };
        self.by_stream.insert(stream, Box::new(record));
    }

    pub(super) fn remove(&mut self, stream: StreamId) {
        self.by_stream.remove(&stream);
    }

    /// Notes the certificate that a stream was opened with.
    pub(super) fn present(&mut self, stream: StreamId, identity: &PeerIdentity) {
        if let Some(record) = self.by_stream.get_mut(&stream) {
            record.issuer_key_id.clone_from(&identity.issuer_key_id);
            record
                .acknowledged
                .svid_serial
                .clone_from(&identity.serial_hex);
        }
    }

    /// Notes what a stream says.
    pub(super) fn acknowledge(&mut self, stream: StreamId, acknowledged: Acknowledged) {
        if let Some(record) = self.by_stream.get_mut(&stream) {
            record.acknowledged = acknowledged;
        }
    }

    /// What a stream has said.
    pub(super) fn of(&self, stream: StreamId) -> Option<&Acknowledged> {
        Some(&self.by_stream.get(&stream)?.acknowledged)
    }

    /// The key identifier of the authority that signed the certificate which a stream was opened with.
    pub(super) fn issuer_of(&self, stream: StreamId) -> Option<&str> {
        Some(&self.by_stream.get(&stream)?.issuer_key_id)
    }

    /// Those that have not said that they have a bundle of this sequence or a later one.
    pub(super) fn laggards(
        &self,
        trust_domain: &TrustDomain,
        sequence: u64,
    ) -> impl Iterator<Item = Laggard> {
        let is_behind = move |record: &&Record| {
            let has = record.acknowledged.bundles.get(trust_domain);
            has.is_none_or(|has| *has < sequence)
        };
        let records = self.by_stream.values().map(|record| &**record);
        let behind = records.filter(is_behind);
        behind.map(|record| record.proxy.clone())
    }

    /// Those that have not said that they have this version of the list of bans or a later one.
    pub(super) fn without_bans(&self, version: u64) -> impl Iterator<Item = Laggard> {
        let records = self.by_stream.values();
        let behind = records.filter(move |record| record.acknowledged.bans_version < version);
        behind.map(|record| record.proxy.clone())
    }

    /// The stream with the latest list of bans after a version that was not asked for it yet, and the latest version
    /// that any stream has after that one.
    fn ask_for_bans(&mut self, version: u64) -> (Option<StreamId>, Option<u64>) {
        let later = |record: &&mut Box<Record>| record.acknowledged.bans_version > version;
        let latest = self.by_stream.values_mut().filter(later);
        let latest = latest.map(|record| record.acknowledged.bans_version).max();
        let streams = self.by_stream.iter_mut();
        let not_asked = streams.filter(|(_, record)| later(record) && !record.asked_for_bans);
        let next = not_asked.max_by_key(|(_, record)| record.acknowledged.bans_version);
        let next = next.map(|(stream, record)| {
            record.asked_for_bans = true;
            *stream
        });
        (next, latest)
    }

    /// Those whose certificate was signed by an authority with one of these key identifiers.
    pub(super) fn using(&self, key_ids: &[String]) -> impl Iterator<Item = Laggard> {
        let records = self.by_stream.values();
        let using = records.filter(|record| key_ids.contains(&record.issuer_key_id));
        using.map(|record| record.proxy.clone())
    }

    /// The streams that were opened with such a certificate.
    fn streams_using(&self, key_ids: &[String]) -> impl Iterator<Item = StreamId> {
        let records = self.by_stream.iter();
        let using = records.filter(|(_, record)| key_ids.contains(&record.issuer_key_id));
        using.map(|(stream, _)| *stream)
    }

    /// The latest sequence of a trust domain's bundle that any proxy has, of those up to one.
    pub(super) fn latest(&self, trust_domain: &TrustDomain, at_most: u64) -> Option<u64> {
        let records = self.by_stream.values();
        let sequences = records.filter_map(|it| it.acknowledged.bundles.get(trust_domain));
        sequences.copied().filter(|it| *it <= at_most).max()
    }
}

impl Registry {
    /// Live proxies that have not said that they have a bundle of this sequence or a later one, in order. Those
    /// whose stream is awaited after a restart are among them.
    #[must_use]
    pub fn laggards(&self, trust_domain: &TrustDomain, sequence: u64) -> Vec<Laggard> {
        let state = self.state();
        let behind = state.acknowledgements.laggards(trust_domain, sequence);
        let awaited = state.directory.records().filter(|record| !record.confirmed);
        sorted(behind.chain(awaited.map(Laggard::of)))
    }

    /// Live proxies that have not said that they have this version of the list of bans or a later one, in order.
    #[must_use]
    pub fn without_bans(&self, version: u64) -> Vec<Laggard> {
        sorted(self.state().acknowledgements.without_bans(version))
    }

    /// Asks the proxy with the latest list of bans for it, when that is later than a version. Gives back the latest that
    /// any connected proxy has, when it is.
    pub fn ask_for_bans(&self, version: u64) -> Option<u64> {
        let mut state = self.state();
        let (stream, latest) = state.acknowledgements.ask_for_bans(version);
        if let Some(stream) = stream.and_then(|id| state.streams.get(&id)) {
            stream.outbox.ask_for_bans();
        }
        latest
    }

    /// Connected proxies whose certificate was signed by an authority with one of these key identifiers, in order.
    #[must_use]
    pub fn using(&self, key_ids: &[String]) -> Vec<Laggard> {
        sorted(self.state().acknowledgements.using(key_ids))
    }

    /// Ends the streams that were opened with a certificate of an authority with one of these key identifiers.
    pub fn end_using(&self, key_ids: &[String]) {
        let state = self.state();
        for stream in state.acknowledgements.streams_using(key_ids) {
            if let Some(stream) = state.streams.get(&stream) {
                stream.outbox.end(EndReason::Distrusted);
            }
        }
    }

    /// The latest sequence of a trust domain's bundle that any connected proxy has, of those up to one.
    #[must_use]
    pub fn latest_acknowledged(&self, trust_domain: &TrustDomain, at_most: u64) -> Option<u64> {
        self.state().acknowledgements.latest(trust_domain, at_most)
    }

    /// What the proxy of a workload has said that it has in use; none while it has no stream here.
    #[must_use]
    pub fn acknowledged(&self, key: &WorkloadKey) -> Option<Acknowledged> {
        let state = self.state();
        let stream = state.directory.stream_of(key)?;
        state.acknowledgements.of(stream).cloned()
    }
}

impl Registry {
    /// The key identifier of the authority that signed the certificate which the proxy of a workload came with.
    #[must_use]
    pub fn issuer_of(&self, key: &WorkloadKey) -> Option<String> {
        let state = self.state();
        let stream = state.directory.stream_of(key)?;
        state.acknowledgements.issuer_of(stream).map(str::to_owned)
    }
}

impl Connected {
    /// Notes the certificate that the stream was opened with.
    pub fn present(&self, identity: &PeerIdentity) {
        self.registry
            .state()
            .acknowledgements
            .present(self.id, identity);
    }

    /// Notes what the proxy says that it has in use.
    pub fn acknowledge(&self, acknowledged: Acknowledged) {
        let mut state = self.registry.state();
        state.acknowledgements.acknowledge(self.id, acknowledged);
    }
}

fn sorted(proxies: impl Iterator<Item = Laggard>) -> Vec<Laggard> {
    let mut proxies: Vec<_> = proxies.collect();
    proxies.sort();
    proxies
}
