//! The rate limits of a service.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use http::Request;
use sidewind_api::v1;

use super::bucket::{Bucket, Rate, Table};
use super::paths;
use crate::errors::{ErrorCode, ProxyError};
use crate::http::Body;
use crate::telemetry::Direction;

/// What tells clients apart by address that come to a proxy in a direction. Outside the mesh an IPv6 client is its /64,
/// whose addresses it chooses at will; within it the pods of a node share one.
pub(crate) fn client_of(direction: Direction, address: IpAddr) -> IpAddr {
    match (direction, address.to_canonical()) {
        (Direction::Gateway, IpAddr::V6(address)) => {
            Ipv6Addr::from_bits(address.to_bits() >> u64::BITS << u64::BITS).into()
        }
        (_, address) => address,
    }
}

/// Who asks, and by which route.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asker<'a> {
    pub(crate) identity: Option<&'a str>,
    /// As [`client_of`] has it.
    pub(crate) address: Option<IpAddr>,
    /// "namespace/name" of the route, where one matched, and "/rule" where its rule has a name.
    pub(crate) route: Option<&'a str>,
}

impl Asker<'_> {
    /// Whether it is one of these routes that matched, or a rule of one.
    fn is_of(&self, routes: &[String]) -> bool {
        let Some(name) = self.route else {
            return false;
        };
        routes.iter().any(|route| {
            let rest = name.strip_prefix(route.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// A token bucket with what it counts.
#[derive(Debug)]
pub(super) struct RateLimit {
    given: v1::RateLimit,
    key: v1::RateLimitKey,
    rate: Rate,
    buckets: Buckets,
    random: RandomState,
}

#[derive(Debug)]
enum Buckets {
    One(Bucket),
    Each(Table),
}

impl RateLimit {
    pub(super) fn new(given: &v1::RateLimit) -> Self {
        let burst = match given.burst {
            0 => given.requests,
            burst => burst,
        };
        let buckets = match given.key() {
            v1::RateLimitKey::Unspecified | v1::RateLimitKey::Service => {
                Buckets::One(Bucket::default())
            }
            _ => Buckets::Each(Table::default()),
        };
        Self {
            rate: Rate::new(given.requests, Duration::from_millis(given.per_ms), burst),
            key: given.key(),
            given: given.clone(),
            buckets,
            random: RandomState::new(),
        }
    }

    pub(super) fn is_of(&self, given: &v1::RateLimit) -> bool {
        self.given == *given
    }

    pub(super) fn name(&self) -> &str {
        &self.given.name
    }

    /// Counts a request.
    pub(super) fn check(
        &self,
        request: &Request<Body>,
        asker: &Asker<'_>,
        now: Duration,
    ) -> Result<(), ProxyError> {
        if !self.counts(request, asker) {
            return Ok(());
        }
        let taken = match &self.buckets {
            Buckets::One(bucket) => bucket.take(self.rate, now),
            Buckets::Each(table) => table.take(self.hash(asker), self.rate, now),
        };
        taken.map_err(|wait| {
            ProxyError::new(
                ErrorCode::RateLimited,
                format_args!("The rate limit {} is used up.", self.given.name),
            )
            .with_retry_after(wait)
        })
    }

    fn counts(&self, request: &Request<Body>, asker: &Asker<'_>) -> bool {
        let given = &self.given;
        let method = request.method().as_str();
        (given.methods.is_empty() || given.methods.iter().any(|it| it == method))
            && (given.routes.is_empty() || asker.is_of(&given.routes))
            && paths::any_matches(&given.path_patterns, request.uri().path())
    }

    fn hash(&self, asker: &Asker<'_>) -> u64 {
        match self.key {
            v1::RateLimitKey::Route => self.random.hash_one(asker.route),
            // Whoever has no identity is told apart by address.
            v1::RateLimitKey::SourceIdentity => match asker.identity {
                Some(identity) => self.random.hash_one(identity),
                None => self.random.hash_one(asker.address),
            },
            _ => self.random.hash_one(asker.address),
        }
    }
}
