//! One of several backends, by weight.

use sidewind_api::{Destination, v1};

use super::{Filters, RuleError};
use crate::{balance::Random, outbound};

/// Where a request may go.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) target: Target,
    /// What happens to requests that go here, after what the rule does.
    pub(crate) filters: Filters,
    weight: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The service that the table is of.
    Own,
    /// Another, to be resolved.
    Destination(outbound::Target),
    /// None, and why.
    Invalid(Box<str>),
}

impl Backend {
    pub(super) fn compile(backend: &v1::RouteBackend) -> Result<Self, RuleError> {
        use v1::route_backend::Target as Kind;
        let target = match &backend.target {
            Some(Kind::Own(_)) => Target::Own,
            Some(Kind::Destination(text)) => {
                let refused = |_| RuleError::Destination(text.clone());
                let destination: Destination = text.parse().map_err(refused)?;
                Target::Destination(destination.into())
            }
            Some(Kind::Invalid(reason)) => Target::Invalid(reason.as_str().into()),
            None => return Err(RuleError::Unknown("a backend")),
        };
        Ok(Self {
            target,
            filters: Filters::compile(&backend.filters)?,
            weight: backend.weight.into(),
        })
    }
}

#[derive(Debug)]
pub(super) struct Backends {
    list: Vec<Backend>,
    total: u64,
}

impl Backends {
    /// A rule that names none means the service that it is attached to.
    pub(super) fn compile(backends: &[v1::RouteBackend]) -> Result<Self, RuleError> {
        let mut list: Vec<Backend> = backends
            .iter()
            .map(Backend::compile)
            .collect::<Result<_, _>>()?;
        if list.is_empty() {
            list.push(Backend {
                target: Target::Own,
                filters: Filters::default(),
                weight: 1,
            });
        }
        let total = list.iter().map(|backend| backend.weight).sum();
        Ok(Self { list, total })
    }

    /// One of them, each as often as its weight says; `None` when no weight is above 0.
    pub(super) fn choose(&self, random: &Random) -> Option<&Backend> {
        if let [only] = self.list.as_slice() {
            return (only.weight > 0).then_some(only);
        }
        if self.total == 0 {
            return None;
        }
        let mut point = random.below_u64(self.total);
        self.list.iter().find(|backend| {
            let found = point < backend.weight;
            point = point.saturating_sub(backend.weight);
            found
        })
    }
}
