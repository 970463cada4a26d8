//! Where a request goes: the rules that `HTTPRoute` and `GRPCRoute` documents attach to a service or to a gateway's
//! listener.
//!
//! - [`table`]: the rules of one service or listener, indexed; which of them a request matches
//! - [`matching`]: what a rule asks of methods, header fields and query parameters
//! - [`filter`]: what a rule does to requests and responses; [`redirect`]: answers that send the client elsewhere;
//!   [`path`]: paths with a part of them replaced
//! - [`backend`]: one of several backends, by weight
//! - [`mirror`]: copies for a backend whose answer nobody gets
//!
//! Nothing here knows how a request is sent: that is `outbound::forward`, for sidecars and gateways alike.

mod backend;
mod filter;
mod matching;
mod mirror;
mod path;
mod redirect;
mod table;

use std::rc::Rc;

use sidewind_api::{ExpressionError, v1};

pub(crate) use backend::{Backend, Target};
pub(crate) use filter::Filters;
pub(crate) use mirror::{CopiedBody, Copies, Mirror};
pub(crate) use redirect::Front;
pub(crate) use table::{RouteTable, Selected};

use crate::{balance::Random, retry::RetryPolicy};
use backend::Backends;

/// What happens to the requests that match.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The document, and the rule's own name where it has one: `namespace/name` or `namespace/name/rule`.
    pub(crate) name: Rc<str>,
    /// Timeouts and retries.
    pub(crate) policy: Rc<RetryPolicy>,
    pub(crate) filters: Filters,
    backends: Backends,
    random: Random,
}

/// Why a rule cannot be used. The control plane has checked what it sends, so that this is about a newer one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuleError {
    #[error("expression {0:?} {1}")]
    Expression(String, ExpressionError),
    #[error("{0:?} is no name or value of a header field that a route may change")]
    Header(String),
    #[error("{0:?} is no method")]
    Method(String),
    #[error("{0:?} is no destination")]
    Destination(String),
    #[error("{0} is of a kind that this version does not know")]
    Unknown(&'static str),
    #[error("{0:?} is no path or host that requests can be sent to")]
    Location(String),
}

impl Rule {
    /// Reads a rule; `policy` fills in what the rule does not say of timeouts and retries.
    fn compile(
        rule: &v1::RouteRule,
        policy: &dyn Fn(Option<&v1::RoutePolicy>) -> RetryPolicy,
    ) -> Result<Self, RuleError> {
        let name = match rule.name.as_str() {
            "" => rule.route.as_str().into(),
            name => format!("{}/{name}", rule.route).into(),
        };
        Ok(Self {
            name,
            policy: Rc::new(policy(rule.policy.as_ref())),
            filters: Filters::compile(&rule.filters)?,
            backends: Backends::compile(&rule.backends)?,
            random: Random::new(rand::random()),
        })
    }

    /// Where one request goes. `None` when the rule names backends and all of them have weight 0.
    pub(crate) fn backend(&self) -> Option<&Backend> {
        self.backends.choose(&self.random)
    }

    /// The copies that one request is to be sent as.
    pub(crate) fn mirrors(&self) -> impl Iterator<Item = &Mirror> {
        let drawn = |mirror: &&Mirror| mirror.is_drawn(&self.random);
        self.filters.mirrors.iter().filter(drawn)
    }
}

#[cfg(test)]
mod tests;
