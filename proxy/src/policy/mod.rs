//! Whether the inbound policy lets a caller through.
//!
//! The policy arrives from the control plane as a list of rules that allow. It is compiled once; for each pair of
//! caller and port the rules that can apply at all are picked once, and a request is checked against those alone.

mod path;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use http::Method;
use sidewind_api::v1;
use sidewind_identity::{SpiffeId, SpiffeIdError, SpiffeIdPattern};

use path::{PathPattern, PlainPath};

/// A policy that cannot be used as a whole. The one before it stays in force, or nothing is let in.
#[derive(Debug, thiserror::Error)]
#[error("policy {policy:?}: {problem}")]
pub(crate) struct InvalidPolicy {
    /// The AuthorizationPolicy.
    policy: String,
    #[source]
    problem: InvalidRule,
}

/// What is wrong with a rule.
#[derive(Debug, thiserror::Error)]
enum InvalidRule {
    #[error("{0:?} is not a SPIFFE ID pattern")]
    Source(String, #[source] SpiffeIdError),
    #[error("{0} is not a port")]
    Port(u32),
    #[error("{0:?} is not an HTTP method")]
    Method(String),
    #[error("{0:?} is not a path pattern")]
    Path(String),
}

/// Whether callers without mutual TLS are let in at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plaintext {
    /// They are, as far as the rules allow callers with no identity.
    Permissive,
    /// They are not.
    Strict,
}

/// What the policy says of a connection or request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It goes through, by the rule of this AuthorizationPolicy; `None` when no policy selects the workload.
    Allow { policy: Option<Arc<str>> },
    /// It does not.
    Deny(Denial),
}

/// Why something was refused, as closely as the rules tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// No rule names the caller, which has no identity.
    NoIdentity,
    /// No rule names the caller.
    Caller,
    /// Rules name the caller, but not for this port.
    Port,
    /// Rules name the caller for this port, but only for HTTP requests of some kinds.
    OnlyHttp,
    /// Rules name the caller for this port, but not for this method and path.
    Request,
    /// The same, and the path has escapes or dot segments with which servers read different paths out of it.
    AmbiguousPath,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Denial::NoIdentity => "no rule allows callers without an identity",
            Denial::Caller => "no rule allows this caller",
            Denial::Port => "no rule allows this caller on this port",
            Denial::OnlyHttp => "this caller is allowed HTTP requests alone on this port",
            Denial::Request => "no rule allows this caller this method and path",
            Denial::AmbiguousPath => {
                "a path with encoded slashes, dot segments or empty segments matches no path rule"
            }
        })
    }
}

impl Decision {
    /// True when it goes through.
    #[cfg(test)]
    pub(crate) fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow { .. })
    }
}

/// Who may call the workload, compiled.
#[derive(Debug)]
pub(crate) struct InboundPolicy {
    plaintext: Plaintext,
    default_deny: bool,
    rules: Vec<Rule>,
    /// Who is believed when it says which Airflow task a request comes from.
    tellers_of_tasks: HashSet<SpiffeId>,
}

#[derive(Debug)]
struct Rule {
    policy: Arc<str>,
    /// Empty: everyone, with an identity or without.
    sources: Vec<SpiffeIdPattern>,
    /// Sorted; empty: all.
    ports: Vec<u16>,
    /// Empty: all.
    methods: Vec<Method>,
    /// Empty: all.
    paths: Vec<PathPattern>,
}

impl InboundPolicy {
    /// Compiles what the control plane sent.
    ///
    /// # Errors
    /// [`InvalidPolicy`] names the first rule that cannot be understood. Leaving such a rule out would be safe, as
    /// rules only allow, but would refuse callers with nobody knowing why.
    pub(crate) fn compile(policy: &v1::InboundPolicy) -> Result<InboundPolicy, InvalidPolicy> {
        let rules = policy
            .rules
            .iter()
            .map(|rule| {
                Rule::compile(rule).map_err(|problem| InvalidPolicy {
                    policy: rule.policy.clone(),
                    problem,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(InboundPolicy {
            plaintext: match policy.plaintext() {
                v1::PlaintextMode::Permissive => Plaintext::Permissive,
                v1::PlaintextMode::Strict | v1::PlaintextMode::Unspecified => Plaintext::Strict,
            },
            default_deny: policy.default_deny,
            rules,
            // One that cannot be read is nobody.
            tellers_of_tasks: policy
                .task_context_from
                .iter()
                .filter_map(|id| SpiffeId::parse(id).ok())
                .collect(),
        })
    }

    /// Whether the control plane has a peer believed when it says which Airflow task a request comes from.
    pub(crate) fn believes_tasks_of(&self, peer: &SpiffeId) -> bool {
        self.tellers_of_tasks.contains(peer)
    }

    /// Whether callers without mutual TLS are let in at all; the rules say the rest.
    pub(crate) fn plaintext(&self) -> Plaintext {
        self.plaintext
    }

    /// What holds for this caller on this port, to be kept for as long as both and the policy stay the same.
    pub(crate) fn for_caller(self: &Arc<Self>, peer: Option<&SpiffeId>, port: u16) -> CallerPolicy {
        let candidates: Vec<usize> = self
            .rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.matches_source(peer) && rule.matches_port(port))
            .map(|(index, _)| index)
            .collect();
        let unconditional = candidates
            .iter()
            .copied()
            .find(|index| self.rules.get(*index).is_some_and(Rule::is_unconditional));
        let verdict = if !self.default_deny {
            Verdict::Always(None)
        } else if let Some(rule) = unconditional.and_then(|index| self.rules.get(index)) {
            Verdict::Always(Some(rule.policy.clone()))
        } else if !candidates.is_empty() {
            Verdict::ByRequest(candidates)
        } else if self.rules.iter().any(|rule| rule.matches_source(peer)) {
            Verdict::Never(Denial::Port)
        } else if peer.is_none() {
            Verdict::Never(Denial::NoIdentity)
        } else {
            Verdict::Never(Denial::Caller)
        };
        CallerPolicy {
            policy: self.clone(),
            verdict,
        }
    }
}

/// The policy for one caller on one port.
#[derive(Clone, Debug)]
pub(crate) struct CallerPolicy {
    policy: Arc<InboundPolicy>,
    verdict: Verdict,
}

#[derive(Clone, Debug)]
enum Verdict {
    /// Everything goes through.
    Always(Option<Arc<str>>),
    /// Nothing does.
    Never(Denial),
    /// These rules look at the request.
    ByRequest(Vec<usize>),
}

impl CallerPolicy {
    /// True while this came of `policy`, so that it need not be made again.
    pub(crate) fn is_of(&self, policy: &Arc<InboundPolicy>) -> bool {
        Arc::ptr_eq(&self.policy, policy)
    }

    /// Whether an opaque connection goes through.
    pub(crate) fn authorize_connection(&self) -> Decision {
        match &self.verdict {
            Verdict::Always(policy) => Decision::Allow {
                policy: policy.clone(),
            },
            Verdict::Never(denial) => Decision::Deny(*denial),
            Verdict::ByRequest(_) => Decision::Deny(Denial::OnlyHttp),
        }
    }

    /// Whether there are HTTP requests that go through.
    pub(crate) fn authorize_any_request(&self) -> Decision {
        match &self.verdict {
            Verdict::Always(policy) => Decision::Allow {
                policy: policy.clone(),
            },
            Verdict::Never(denial) => Decision::Deny(*denial),
            Verdict::ByRequest(_) => Decision::Allow { policy: None },
        }
    }

    /// Whether an HTTP request goes through. `path` may have a query, which is left out.
    pub(crate) fn authorize_request(&self, method: &Method, path: &str) -> Decision {
        let candidates = match &self.verdict {
            Verdict::Always(policy) => {
                return Decision::Allow {
                    policy: policy.clone(),
                };
            }
            Verdict::Never(denial) => return Decision::Deny(*denial),
            Verdict::ByRequest(candidates) => candidates,
        };
        let path = PlainPath::read(path);
        let allowing = candidates
            .iter()
            .filter_map(|index| self.policy.rules.get(*index))
            .find(|rule| rule.matches_request(method, path));
        match allowing {
            Some(rule) => Decision::Allow {
                policy: Some(rule.policy.clone()),
            },
            None if path.is_none() => Decision::Deny(Denial::AmbiguousPath),
            None => Decision::Deny(Denial::Request),
        }
    }
}

impl Rule {
    fn compile(rule: &v1::AllowRule) -> Result<Rule, InvalidRule> {
        let sources = rule.sources.iter().map(|source| {
            SpiffeIdPattern::parse(source)
                .map_err(|error| InvalidRule::Source(source.clone(), error))
        });
        let ports = rule.ports.iter().map(|port| {
            u16::try_from(*port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or(InvalidRule::Port(*port))
        });
        let methods = rule.methods.iter().map(|method| {
            Method::from_bytes(method.as_bytes()).map_err(|_| InvalidRule::Method(method.clone()))
        });
        let paths = rule.path_patterns.iter().map(|pattern| {
            PathPattern::parse(pattern).ok_or_else(|| InvalidRule::Path(pattern.clone()))
        });
        let mut ports: Vec<u16> = ports.collect::<Result<_, _>>()?;
        ports.sort_unstable();
        Ok(Rule {
            policy: rule.policy.as_str().into(),
            sources: sources.collect::<Result<_, _>>()?,
            ports,
            methods: methods.collect::<Result<_, _>>()?,
            paths: paths.collect::<Result<_, _>>()?,
        })
    }

    fn matches_source(&self, peer: Option<&SpiffeId>) -> bool {
        self.sources.is_empty()
            || peer.is_some_and(|peer| self.sources.iter().any(|pattern| pattern.matches(peer)))
    }

    fn matches_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.binary_search(&port).is_ok()
    }

    fn is_unconditional(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty()
    }

    fn matches_request(&self, method: &Method, path: Option<PlainPath<'_>>) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty()
                || path.is_some_and(|path| self.paths.iter().any(|pattern| pattern.matches(path))))
    }
}

#[cfg(test)]
mod tests;
