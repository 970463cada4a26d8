//! What the policy of a service says of balancing.

use std::sync::Arc;

use sidewind_api::v1;

/// A priority, or the own zone, is left when less than this share of it is well.
const FAILOVER_PERCENT: u32 = 50;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Algorithm {
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    ConsistentHash,
}

/// What of a request is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashSource {
    Header(http::HeaderName),
    Cookie(Arc<str>),
    Identity,
    Address,
}

/// What keeps a client with its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StickySettings {
    pub(crate) cookie: Arc<str>,
    /// 0: as long as the browser's session.
    pub(crate) max_age_seconds: u64,
    /// A header field in the place of the cookie.
    pub(crate) header: Option<http::HeaderName>,
}

impl From<&v1::Stickiness> for StickySettings {
    fn from(sticky: &v1::Stickiness) -> Self {
        Self {
            cookie: sticky.cookie.as_str().into(),
            max_age_seconds: sticky.max_age_seconds,
            header: sticky.header.parse().ok(),
        }
    }
}

/// How requests are spread over endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BalanceSettings {
    pub(crate) algorithm: Algorithm,
    pub(crate) hash: Option<HashSource>,
    /// 0: no bound.
    pub(crate) hash_load_percent: u32,
    pub(crate) sticky: Option<Arc<StickySettings>>,
    /// The zone whose endpoints come first.
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) failover_percent: u32,
    pub(crate) panic_percent: u32,
    /// In milliseconds; 0: none.
    pub(crate) slow_start: u64,
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            hash: None,
            hash_load_percent: 0,
            sticky: None,
            zone: None,
            failover_percent: FAILOVER_PERCENT,
            panic_percent: 0,
            slow_start: 0,
        }
    }
}

impl BalanceSettings {
    /// What a policy says, for a proxy in a zone.
    pub(crate) fn of(policy: Option<&v1::TrafficPolicy>, zone: &str) -> Self {
        let Some(balance) = policy.and_then(|policy| policy.balance.as_ref()) else {
            return Self::default();
        };
        let default = Self::default();
        Self {
            algorithm: match balance.algorithm() {
                v1::BalanceAlgorithm::Unspecified | v1::BalanceAlgorithm::PeakEwma => {
                    Algorithm::PeakEwma
                }
                v1::BalanceAlgorithm::LeastRequest => Algorithm::LeastRequest,
                v1::BalanceAlgorithm::RoundRobin => Algorithm::RoundRobin,
                v1::BalanceAlgorithm::ConsistentHash => Algorithm::ConsistentHash,
            },
            hash: balance.hash_key.as_ref().and_then(hash_source),
            hash_load_percent: balance.hash_load_percent,
            sticky: (balance.stickiness.as_ref()).map(|sticky| Arc::new(sticky.into())),
            zone: (balance.prefer_zone && !zone.is_empty()).then(|| zone.into()),
            failover_percent: balance
                .failover_percent
                .unwrap_or(default.failover_percent)
                .min(100),
            panic_percent: balance.panic_percent.unwrap_or_default().min(100),
            slow_start: balance.slow_start_ms,
        }
    }

    /// How much lower the second load must be to count. Requests in flight are no measurement, so that any difference
    /// does.
    pub(super) fn noticeable(&self) -> f64 {
        match self.algorithm {
            Algorithm::LeastRequest => 1.0,
            _ => super::NOTICEABLE,
        }
    }
}

fn hash_source(key: &v1::HashKey) -> Option<HashSource> {
    use v1::hash_key::Key;
    Some(match key.key.as_ref()? {
        Key::Header(name) => HashSource::Header(name.parse().ok()?),
        Key::Cookie(name) => HashSource::Cookie(name.as_str().into()),
        Key::Source(source) => match v1::SourceKey::try_from(*source).ok()? {
            v1::SourceKey::Unspecified => return None,
            v1::SourceKey::Identity => HashSource::Identity,
            v1::SourceKey::Address => HashSource::Address,
        },
    })
}
