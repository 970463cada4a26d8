//! How requests are spread over endpoints.

use super::{DAY, Reader, header_name, milliseconds, number, present};
use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::v1;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

/// The cookie of stickiness at a destination (`SERVICE.NAMESPACE:PORT`), where nothing gives it a name. Behind one host
/// there may be several, and a browser keeps one cookie of a name.
pub(in crate::config) fn default_cookie(destination: &str) -> String {
    let hash = digest(&SHA256, destination.as_bytes());
    let mut name = "sidewind-endpoint-".to_owned();
    for byte in hash.as_ref().iter().take(4) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Highest weight: two of them are still far apart in sums of 64 bits.
const MAX_WEIGHT: u32 = 1_000_000;

/// What a policy says of single endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRule {
    zones: Vec<String>,
    workloads: Vec<String>,
    addresses: Vec<String>,
    /// Its share, where the rule says so.
    pub weight: Option<u32>,
    /// Its priority, where the rule says so.
    pub priority: Option<u32>,
}

impl EndpointRule {
    /// Whether the rule is about an endpoint: each list that it has names it.
    #[must_use]
    pub fn matches(&self, endpoint: &v1::Endpoint) -> bool {
        let named = |list: &[String], name: &str| list.is_empty() || list.iter().any(|n| n == name);
        named(&self.zones, &endpoint.zone)
            && named(&self.workloads, &endpoint.workload_name)
            && named(&self.addresses, &endpoint.address)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Balance {
    #[serde(default, deserialize_with = "present")]
    algorithm: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    hash: Option<Spanned<Hash>>,
    #[serde(default, deserialize_with = "present")]
    stickiness: Option<Stickiness>,
    #[serde(default, deserialize_with = "present")]
    prefer_zone: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    failover_percent: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    panic_percent: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    slow_start: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    endpoints: Option<Spanned<Vec<Spanned<Endpoint>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hash {
    #[serde(default, deserialize_with = "present")]
    header: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    cookie: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    source: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    load_percent: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stickiness {
    #[serde(default, deserialize_with = "present")]
    cookie: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    max_age: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    #[serde(default, deserialize_with = "present")]
    zones: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    workloads: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    addresses: Option<Vec<Spanned<String>>>,
    #[serde(default, deserialize_with = "present")]
    weight: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    priority: Option<Spanned<u32>>,
}

const ALGORITHMS: &[(&str, v1::BalanceAlgorithm)] = &[
    ("peakEwma", v1::BalanceAlgorithm::PeakEwma),
    ("leastRequest", v1::BalanceAlgorithm::LeastRequest),
    ("roundRobin", v1::BalanceAlgorithm::RoundRobin),
    ("consistentHash", v1::BalanceAlgorithm::ConsistentHash),
];

impl Balance {
    pub(super) fn read(&self, reader: &mut Reader<'_>) -> v1::Balance {
        let mut balance = v1::Balance::default();
        if let Some(name) = &self.algorithm {
            let known = ALGORITHMS.iter().find(|(known, _)| *known == name.value);
            match known {
                Some((_, algorithm)) => balance.set_algorithm(*algorithm),
                None => {
                    let known: Vec<&str> = ALGORITHMS.iter().map(|(name, _)| *name).collect();
                    let known = known.join(", ");
                    reader.refuse(name, format!("{:?} is not one of {known}", name.value));
                }
            }
            let hashes = balance.algorithm() == v1::BalanceAlgorithm::ConsistentHash;
            if hashes && self.hash.is_none() {
                reader.refuse(name, "needs `hash`, which says what of a request is hashed");
            }
        }
        if let Some(hash) = &self.hash {
            if balance.algorithm() != v1::BalanceAlgorithm::ConsistentHash {
                reader.refuse(hash, "is for `algorithm: consistentHash` alone");
            }
            balance.hash_key = hash_key(reader, hash);
            let percent = hash.value.load_percent.as_ref();
            // A bound breaks the hash: by default a key has one endpoint, however many ask for it at once.
            balance.hash_load_percent = match percent.map(|percent| percent.value) {
                Some(0) => 0,
                _ => number(reader, percent, 101..=10_000, 0),
            };
        }
        balance.stickiness = self.stickiness.as_ref().map(|it| it.read(reader));
        balance.prefer_zone = self.prefer_zone.unwrap_or_default();
        let percent = |reader: &mut Reader<'_>, given: Option<&Spanned<u32>>| {
            given.map(|given| number(reader, Some(given), 0..=100, 0))
        };
        balance.failover_percent = percent(reader, self.failover_percent.as_ref());
        balance.panic_percent = percent(reader, self.panic_percent.as_ref());
        let bounds = Duration::ZERO..=DAY;
        balance.slow_start_ms =
            milliseconds(reader, self.slow_start.as_ref(), bounds, Duration::ZERO);
        balance
    }

    pub(super) fn read_endpoints(&self, reader: &mut Reader<'_>) -> Vec<EndpointRule> {
        let Some(endpoints) = &self.endpoints else {
            return Vec::new();
        };
        let mut rules = Vec::new();
        for endpoint in &endpoints.value {
            let it = &endpoint.value;
            let lengths = [
                it.zones.as_ref().map(Vec::len),
                it.workloads.as_ref().map(Vec::len),
                it.addresses.as_ref().map(Vec::len),
            ];
            if lengths.iter().all(Option::is_none) || lengths.contains(&Some(0)) {
                let message =
                    "must say which endpoints: `zones`, `workloads` or `addresses`, none empty";
                reader.refuse(endpoint, message);
            }
            let mut addresses = Vec::new();
            for text in it.addresses.iter().flatten() {
                match text.value.parse::<IpAddr>() {
                    Ok(address) => addresses.push(address.to_canonical().to_string()),
                    Err(_) => {
                        reader.refuse(text, format!("{:?} is not an IP address", text.value));
                    }
                }
            }
            if it.weight.is_none() && it.priority.is_none() {
                reader.refuse(endpoint, "must have `weight` or `priority`");
            }
            let within = |reader: &mut Reader<'_>, given: Option<&Spanned<u32>>, bounds| {
                given.map(|given| number(reader, Some(given), bounds, 0))
            };
            rules.push(EndpointRule {
                zones: it.zones.clone().unwrap_or_default(),
                workloads: it.workloads.clone().unwrap_or_default(),
                addresses,
                weight: within(reader, it.weight.as_ref(), 1..=MAX_WEIGHT),
                priority: within(reader, it.priority.as_ref(), 0..=127),
            });
        }
        rules
    }
}

impl Stickiness {
    fn read(&self, reader: &mut Reader<'_>) -> v1::Stickiness {
        let cookie = self.cookie.as_ref();
        let seconds = Duration::from_secs(1)..=400 * DAY;
        let max_age = milliseconds(reader, self.max_age.as_ref(), seconds, Duration::ZERO);
        v1::Stickiness {
            // Without a name it gets that of each service.
            cookie: cookie.map_or_else(String::new, |it| header_name(reader, it)),
            max_age_seconds: max_age / 1000,
            header: String::new(),
        }
    }
}

fn hash_key(reader: &mut Reader<'_>, hash: &Spanned<Hash>) -> Option<v1::HashKey> {
    use v1::hash_key::Key;
    let Hash {
        header,
        cookie,
        source,
        ..
    } = &hash.value;
    let key = match (header, cookie, source) {
        (Some(header), None, None) => Key::Header(header_name(reader, header).to_ascii_lowercase()),
        (None, Some(cookie), None) => Key::Cookie(header_name(reader, cookie)),
        (None, None, Some(source)) => match source.value.as_str() {
            "identity" => Key::Source(v1::SourceKey::Identity.into()),
            "address" => Key::Source(v1::SourceKey::Address.into()),
            other => {
                reader.refuse(source, format!("{other:?} is not one of identity, address"));
                return None;
            }
        },
        _ => {
            reader.refuse(hash, "must have one of `header`, `cookie` and `source`");
            return None;
        }
    };
    Some(v1::HashKey { key: Some(key) })
}
