//! How many requests there may be, how many at once, and how large.
//!
//! - [`bucket`]: token buckets, one or one for each of a bounded number of keys
//! - [`rate`]: the rate limits of a service
//! - [`layer`]: what keeps them for requests
//! - [`bounds`]: places for requests and connections, with a bounded queue before them
//! - [`overload`]: what is refused when this proxy itself is too busy
//!
//! Buckets and places are shared by all workers, in atomics; what a policy leaves out costs nothing.

mod bounds;
mod bucket;
mod layer;
mod overload;
mod paths;
mod rate;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::{Request, header};
use sidewind_api::v1;
use tokio::time::Instant;

pub(crate) use bounds::{Bounds, Permit};
pub(crate) use layer::LimitLayer;
pub(crate) use overload::{Admitted, Overload};
pub(crate) use rate::{Asker, client_of};

use crate::errors::{ErrorCode, ProxyError};
use crate::http::Body;
use crate::retry::RetryBudget;
use crate::telemetry::metrics::Metrics;
use rate::RateLimit;

/// What all workers share of limits. Clones see the same.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    rates: Mutex<HashMap<String, Weak<RateLimit>>>,
    bounds: Mutex<HashMap<String, Weak<Bounds>>>,
    budgets: Mutex<HashMap<String, Weak<RetryBudget>>>,
    metrics: Option<Arc<Metrics>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Limits {
    /// No limits yet. What they refuse is counted in `metrics`.
    pub(crate) fn new(metrics: Option<Arc<Metrics>>) -> Self {
        Self {
            shared: Arc::new(Shared {
                began: Instant::now(),
                rates: Mutex::default(),
                bounds: Mutex::default(),
                budgets: Mutex::default(),
                metrics,
            }),
        }
    }

    /// How many retries a service may get, whatever names it is called by and whichever worker calls.
    pub(crate) fn budget(&self, service: &str) -> Arc<RetryBudget> {
        let budgets = &self.shared.budgets;
        shared(budgets, service.to_owned(), |_| true, RetryBudget::default)
    }

    /// What a policy says for a service; none where it limits nothing. The same policy gives the same buckets and
    /// places in every worker, and keeps them when it comes again. `place` tells them apart: who keeps them, and for
    /// what.
    pub(crate) fn of(
        &self,
        place: &str,
        service: &str,
        bounds: Option<&v1::Bounds>,
        rates: &[v1::RateLimit],
    ) -> Option<Rc<ServiceLimits>> {
        let default = v1::Bounds::default();
        let bounds = bounds.unwrap_or(&default);
        if *bounds == default && rates.is_empty() {
            return None;
        }
        let rates = rates.iter().map(|rate| {
            let key = format!("{place} {}", rate.name);
            shared(
                &self.shared.rates,
                key,
                |old| old.is_of(rate),
                || RateLimit::new(rate),
            )
        });
        Some(Rc::new(ServiceLimits {
            service: service.into(),
            rates: rates.collect(),
            bounds: shared(
                &self.shared.bounds,
                place.to_owned(),
                |old| old.is_of(bounds),
                || Bounds::new(bounds),
            ),
            shared: Arc::clone(&self.shared),
        }))
    }
}

/// What is kept under a key, as long as it is still the same.
fn shared<T>(
    all: &Mutex<HashMap<String, Weak<T>>>,
    key: String,
    is_same: impl Fn(&T) -> bool,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all
        .get(&key)
        .and_then(Weak::upgrade)
        .filter(|old| is_same(old))
    {
        return known;
    }
    all.retain(|_, it| it.strong_count() > 0);
    let made = Arc::new(make());
    all.insert(key, Arc::downgrade(&made));
    made
}

/// The limits of one service, as a worker keeps them.
#[derive(Debug)]
pub(crate) struct ServiceLimits {
    service: Arc<str>,
    rates: Vec<Arc<RateLimit>>,
    bounds: Arc<Bounds>,
    shared: Arc<Shared>,
}

impl ServiceLimits {
    /// Lets a request through, or says why not. It waits where there is a queue; what is given back keeps its place.
    ///
    /// # Errors
    /// 429, 413, 431 or 503.
    pub(crate) async fn admit(
        &self,
        request: &Request<Body>,
        header_bytes: usize,
        asker: &Asker<'_>,
    ) -> Result<Option<Permit>, ProxyError> {
        self.check_size(request, header_bytes)?;
        let now = self.shared.began.elapsed();
        for rate in &self.rates {
            rate.check(request, asker, now)
                .inspect_err(|_| self.count(rate.name()))?;
        }
        self.bounds
            .enter()
            .await
            .inspect_err(|_| self.count("max-requests"))
    }

    /// The same for an opaque connection.
    ///
    /// # Errors
    /// When there are as many as may be.
    pub(crate) fn admit_connection(&self) -> Result<Option<Permit>, ProxyError> {
        self.bounds
            .connect()
            .inspect_err(|_| self.count("max-connections"))
    }

    /// Most bytes of a request's body; 0 for no bound.
    pub(crate) fn max_body_bytes(&self) -> u64 {
        self.bounds.max_body_bytes()
    }

    /// Says that a request's body is too large.
    pub(crate) fn body_too_large(&self) -> ProxyError {
        self.count("max-body-bytes");
        ProxyError::new(
            ErrorCode::BodyTooLarge,
            format_args!(
                "The request's body has more than {} bytes, which is all that {} takes.",
                self.max_body_bytes(),
                self.service
            ),
        )
    }

    fn check_size(&self, request: &Request<Body>, header_bytes: usize) -> Result<(), ProxyError> {
        let max_header_bytes = self.bounds.max_header_bytes();
        if max_header_bytes != 0 && header_bytes > max_header_bytes {
            self.count("max-header-bytes");
            return Err(ProxyError::new(
                ErrorCode::HeaderTooLarge,
                format_args!(
                    "The request's header has {header_bytes} bytes, and {} takes {max_header_bytes}.",
                    self.service
                ),
            ));
        }
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|it| it.to_str().ok()?.parse().ok());
        if self.max_body_bytes() != 0 && length.is_some_and(|it| it > self.max_body_bytes()) {
            return Err(self.body_too_large());
        }
        Ok(())
    }

    fn count(&self, limit: &str) {
        if let Some(metrics) = &self.shared.metrics {
            metrics.limited(&self.service, limit);
        }
    }
}
