//! How many requests and connections there may be, and how large they may be.

use super::{DAY, MILLISECOND, Reader, TrafficPolicy, milliseconds, number, present};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::{pattern, v1};
use std::time::Duration;

/// Most of anything: what a proxy can count of it without a thought of overflow.
const MAX: u32 = 1_000_000_000;

/// Most rate limits of one policy: each is looked at for each request.
const MAX_RATE_LIMITS: usize = 32;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(default, deserialize_with = "present")]
    caller: Option<Spanned<Bounds>>,
    #[serde(default, deserialize_with = "present")]
    server: Option<Spanned<Bounds>>,
    #[serde(default, deserialize_with = "present")]
    listener: Option<Spanned<Bounds>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bounds {
    #[serde(default, deserialize_with = "present")]
    max_requests: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    max_pending: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    pending_timeout: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    max_connections: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    max_header_bytes: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    max_body_bytes: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RateLimit {
    name: Spanned<String>,
    requests: Spanned<u32>,
    per: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    burst: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    key: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    at: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    routes: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    methods: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    paths: Option<Spanned<Vec<Spanned<String>>>>,
}

const KEYS: &[(&str, v1::RateLimitKey)] = &[
    ("service", v1::RateLimitKey::Service),
    ("route", v1::RateLimitKey::Route),
    ("sourceIdentity", v1::RateLimitKey::SourceIdentity),
    ("sourceAddress", v1::RateLimitKey::SourceAddress),
];

/// Reads limits into a policy, each where it is kept.
pub(super) fn read(
    reader: &mut Reader<'_>,
    limits: Option<&Limits>,
    rates: Option<&Spanned<Vec<Spanned<RateLimit>>>>,
    of_gateway: bool,
    policy: &mut TrafficPolicy,
) {
    let caller = limits.and_then(|limits| limits.caller.as_ref());
    let server = limits.and_then(|limits| limits.server.as_ref());
    let listener = limits.and_then(|limits| limits.listener.as_ref());
    let (refused, message) = match of_gateway {
        true => (
            [caller, server],
            "is for services; a gateway has `listener`",
        ),
        false => (
            [listener, None],
            "is for gateways; a service has `caller` and `server`",
        ),
    };
    for at in refused.into_iter().flatten() {
        reader.refuse(at, message);
    }
    policy.caller.bounds = caller.map(|bounds| bounds.value.read(reader));
    let beside_bounds = if of_gateway { listener } else { server };
    let server = beside_bounds.map(|bounds| bounds.value.read(reader));
    let mut beside = Vec::new();
    if let Some(rates) = rates {
        if rates.value.len() > MAX_RATE_LIMITS {
            reader.refuse(rates, format!("must be at most {MAX_RATE_LIMITS}"));
        }
        let mut names = std::collections::HashSet::new();
        for rate in &rates.value {
            if !names.insert(rate.value.name.value.as_str()) {
                reader.refuse(&rate.value.name, "is given twice");
            }
            if of_gateway && let Some(at) = &rate.value.at {
                reader.refuse(at, "is for services; a gateway's are kept by the gateway");
            }
            let (read, at_server) = rate.value.read(reader, of_gateway);
            if at_server {
                beside.push(read);
            } else {
                policy.caller.rate_limits.push(read);
            }
        }
    }
    if server.is_some() || !beside.is_empty() {
        policy.beside = Some((server.unwrap_or_default(), beside));
    }
}

/// The routes that limits name, each at its place.
pub(super) fn named_routes(
    rates: Option<&Spanned<Vec<Spanned<RateLimit>>>>,
) -> impl Iterator<Item = &Spanned<String>> {
    let rates = rates.into_iter().flat_map(|rates| &rates.value);
    let routes = rates.filter_map(|rate| rate.value.routes.as_ref());
    routes.flat_map(|routes| &routes.value)
}

impl Bounds {
    fn read(&self, reader: &mut Reader<'_>) -> v1::Bounds {
        let mut count = |given: &Option<Spanned<u32>>| number(reader, given.as_ref(), 1..=MAX, 0);
        let (max_requests, max_connections) =
            (count(&self.max_requests), count(&self.max_connections));
        let max_pending = count(&self.max_pending);
        if max_requests == 0 {
            let message = "is for requests above `maxRequests`, which is missing";
            self.max_pending
                .as_ref()
                .inspect(|at| reader.refuse(at, message));
            self.pending_timeout
                .as_ref()
                .inspect(|at| reader.refuse(at, message));
        }
        let wait = MILLISECOND..=Duration::from_secs(3600);
        let second = Duration::from_secs(1);
        let body = self.max_body_bytes.as_ref();
        if let Some(body) = body.filter(|body| body.value == 0) {
            reader.refuse(body, "must be at least 1; leave it out for no bound");
        }
        v1::Bounds {
            max_requests,
            max_pending,
            pending_timeout_ms: milliseconds(reader, self.pending_timeout.as_ref(), wait, second),
            max_connections,
            max_header_bytes: number(reader, self.max_header_bytes.as_ref(), 1024..=(1 << 20), 0),
            max_body_bytes: body.map_or(0, |body| body.value),
        }
    }
}

impl RateLimit {
    /// The limit, and whether it is kept beside the service.
    fn read(&self, reader: &mut Reader<'_>, of_gateway: bool) -> (v1::RateLimit, bool) {
        if !sidewind_api::service::is_label(&self.name.value) {
            reader.refuse(&self.name, "must be of lower-case letters, digits and `-`");
        }
        let mut limit = v1::RateLimit {
            name: self.name.value.clone(),
            requests: number(reader, Some(&self.requests), 1..=MAX, 1),
            per_ms: milliseconds(reader, Some(&self.per), MILLISECOND..=DAY, DAY),
            burst: number(reader, self.burst.as_ref(), 1..=MAX, 0),
            ..v1::RateLimit::default()
        };
        limit.set_key(one_of(
            reader,
            self.key.as_ref(),
            KEYS,
            v1::RateLimitKey::Service,
        ));
        let places = [("server", true), ("caller", false)];
        let at_server = one_of(reader, self.at.as_ref(), &places, true);
        let by_route = limit.key() == v1::RateLimitKey::Route || self.routes.is_some();
        if at_server && by_route {
            let message = match of_gateway {
                true => {
                    "is counted before a route is known; limit the route's service, `at: caller`"
                }
                false => "routes are known to callers' proxies alone: say `at: caller`",
            };
            match (&self.key, &self.routes) {
                (_, Some(routes)) => reader.refuse(routes, message),
                (Some(key), None) => reader.refuse(key, message),
                (None, None) => {}
            }
        }
        if let Some(routes) = &self.routes {
            not_empty(reader, routes, "every route");
            let names = routes.value.iter().map(|route| route.value.clone());
            limit.routes = names.collect();
        }
        if let Some(methods) = &self.methods {
            not_empty(reader, methods, "every method");
            for method in &methods.value {
                if let Err(error) = pattern::check_method(&method.value) {
                    reader.refuse(method, error);
                }
                limit.methods.push(method.value.clone());
            }
        }
        if let Some(paths) = &self.paths {
            not_empty(reader, paths, "every path");
            for path in &paths.value {
                if let Err(error) = pattern::check_path_pattern(&path.value) {
                    reader.refuse(path, error);
                }
                limit.path_patterns.push(path.value.clone());
            }
        }
        (limit, at_server)
    }
}

fn not_empty<T>(reader: &mut Reader<'_>, list: &Spanned<Vec<T>>, absent_means: &str) {
    if list.value.is_empty() {
        let message = format!("must not be empty; leave it out to mean {absent_means}");
        reader.refuse(list, message);
    }
}

fn one_of<T: Copy>(
    reader: &mut Reader<'_>,
    given: Option<&Spanned<String>>,
    known: &[(&str, T)],
    absent: T,
) -> T {
    let Some(given) = given else { return absent };
    let found = known.iter().find(|(name, _)| *name == given.value);
    found.map_or_else(
        || {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            reader.refuse(given, format!("{:?} is not one of {names}", given.value));
            absent
        },
        |(_, value)| *value,
    )
}
