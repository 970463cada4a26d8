//! Which rule a request matches, in the order of precedence that the Gateway API prescribes.

use std::{borrow::Cow, collections::HashMap, rc::Rc};

use http::{HeaderMap, Request, header::HOST};
use sidewind_api::{Expression, v1};

use super::{Rule, RuleError, matching::Conditions};
use crate::{exchange::is_grpc, retry::RetryPolicy};

/// The rules of a service's port or of a listener. Finding one costs a hash of the path, and one for each length that
/// prefixes have; what a request needs not be asked is not asked.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    /// Those for the most particular hosts come first.
    hosts: Vec<HostRules>,
    names_hosts: bool,
}

/// The rule of a request.
#[derive(Clone, Debug)]
pub(crate) struct Selected {
    pub(crate) rule: Rc<Rule>,
    /// Bytes of the path that a prefix match took, with no slash at the end: what `ReplacePrefixMatch` replaces.
    pub(crate) prefix: usize,
}

#[derive(Debug)]
struct HostRules {
    host: Host,
    exact: HashMap<Box<str>, Vec<Entry>>,
    expressions: Vec<(Expression, Entry)>,
    prefixes: HashMap<Box<str>, Vec<Entry>>,
    /// The lengths of `prefixes`, the longest first.
    prefix_lengths: Vec<usize>,
    grpc: Vec<GrpcEntry>,
    /// With no path to match.
    any: Vec<Entry>,
}

/// Ordered by precedence: the most characters with no wildcard first, then the most characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Exact(std::cmp::Reverse<usize>, Box<str>),
    /// What follows the `*`, with its dot.
    Under(std::cmp::Reverse<usize>, Box<str>),
    Any,
}

#[derive(Clone, Debug)]
struct Entry {
    conditions: Rc<Conditions>,
    rule: Rc<Rule>,
    /// Bytes of the prefix, 0 for none.
    prefix: usize,
    /// Requests that are not gRPC do not match.
    grpc: bool,
    /// Where the document stands, after everything else.
    order: usize,
}

/// gRPC methods that are not one path: by method alone, or by expressions.
#[derive(Debug)]
struct GrpcEntry {
    service: Part,
    method: Part,
    entry: Entry,
}

#[derive(Debug)]
enum Part {
    Any,
    Exact(Box<str>),
    Expression(Expression, usize),
}

impl RouteTable {
    /// Reads a table; `policy` fills in what rules do not say of timeouts and retries.
    ///
    /// # Errors
    /// When a match, a filter or a backend cannot be read: without it requests would go where they must not.
    pub(crate) fn compile(
        table: &v1::RouteTable,
        policy: &dyn Fn(Option<&v1::RoutePolicy>) -> RetryPolicy,
    ) -> Result<Self, RuleError> {
        let mut hosts: HashMap<Host, HostRules> = HashMap::new();
        let mut order = 0;
        for source in &table.rules {
            let rule = Rc::new(Rule::compile(source, policy)?);
            let any = v1::RouteMatch::default();
            let matches = match source.matches.as_slice() {
                [] => std::slice::from_ref(&any),
                matches => matches,
            };
            let of_rule: Vec<Host> = match source.hostnames.as_slice() {
                [] => vec![Host::Any],
                names => names.iter().map(|name| Host::new(name)).collect(),
            };
            for matched in matches {
                let entry = Entry {
                    conditions: Rc::new(Conditions::compile(matched)?),
                    rule: Rc::clone(&rule),
                    prefix: 0,
                    grpc: false,
                    order,
                };
                order += 1;
                for host in &of_rule {
                    let rules = hosts.entry(host.clone());
                    let rules = rules.or_insert_with(|| HostRules::new(host.clone()));
                    rules.add(matched, entry.clone())?;
                }
            }
        }
        let mut hosts: Vec<HostRules> = hosts.into_values().collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        hosts.iter_mut().for_each(HostRules::sort);
        let names_hosts = hosts.iter().any(|rules| rules.host != Host::Any);
        Ok(Self { hosts, names_hosts })
    }

    /// The rule of a request; `None` when no rule matches it.
    pub(crate) fn select<B>(&self, request: &Request<B>) -> Option<Selected> {
        let host = match self.names_hosts {
            true => host(request),
            false => Cow::Borrowed(""),
        };
        self.hosts
            .iter()
            .filter(|rules| rules.host.matches(&host))
            .find_map(|rules| rules.select(request))
    }
}

impl HostRules {
    fn new(host: Host) -> Self {
        Self {
            host,
            exact: HashMap::new(),
            expressions: Vec::new(),
            prefixes: HashMap::new(),
            prefix_lengths: Vec::new(),
            grpc: Vec::new(),
            any: Vec::new(),
        }
    }

    fn add(&mut self, matched: &v1::RouteMatch, entry: Entry) -> Result<(), RuleError> {
        use v1::route_match::Path;
        if let Some(grpc) = &matched.grpc {
            return self.add_grpc(
                grpc,
                Entry {
                    grpc: true,
                    ..entry
                },
            );
        }
        match &matched.path {
            None => self.any.push(entry),
            Some(Path::Exact(path)) => self
                .exact
                .entry(path.as_str().into())
                .or_default()
                .push(entry),
            Some(Path::Prefix(prefix)) => self.add_prefix(prefix, entry),
            Some(Path::Regex(text)) => {
                let expression = expression(text)?;
                // The longest first: which of two expressions is the more particular nobody can say.
                let place = self
                    .expressions
                    .partition_point(|(_, other)| other.prefix >= text.len());
                let entry = Entry {
                    prefix: text.len(),
                    ..entry
                };
                self.expressions.insert(place, (expression, entry));
            }
        }
        Ok(())
    }

    /// A slash at a prefix's end means nothing: prefixes are compared by elements.
    fn add_prefix(&mut self, prefix: &str, entry: Entry) {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.is_empty() {
            return self.any.push(entry);
        }
        let entry = Entry {
            prefix: prefix.len(),
            ..entry
        };
        self.prefixes.entry(prefix.into()).or_default().push(entry);
    }

    fn add_grpc(&mut self, grpc: &v1::GrpcMethodMatch, entry: Entry) -> Result<(), RuleError> {
        match (grpc.service.as_str(), grpc.method.as_str(), grpc.regex) {
            ("", "", _) => self.any.push(entry),
            (service, "", false) => {
                let path = format!("/{service}");
                self.prefixes.entry(path.into()).or_default().push(entry);
            }
            (service, method, false) if !service.is_empty() => {
                let path = format!("/{service}/{method}");
                self.exact.entry(path.into()).or_default().push(entry);
            }
            (service, method, regex) => {
                let service = Part::new(service, regex)?;
                let method = Part::new(method, regex)?;
                self.grpc.push(GrpcEntry {
                    service,
                    method,
                    entry,
                });
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        let sort = |entries: &mut Vec<Entry>| entries.sort_by_key(Entry::rank);
        self.exact.values_mut().for_each(sort);
        self.prefixes.values_mut().for_each(sort);
        sort(&mut self.any);
        // Already by length, and a stable sort keeps that.
        self.expressions
            .sort_by_key(|(_, entry)| (std::cmp::Reverse(entry.prefix), entry.rank()));
        self.grpc.sort_by_key(|grpc| {
            let characters = (grpc.service.characters(), grpc.method.characters());
            (std::cmp::Reverse(characters), grpc.entry.rank())
        });
        self.prefix_lengths = self.prefixes.keys().map(|prefix| prefix.len()).collect();
        self.prefix_lengths.sort_unstable_by(|a, b| b.cmp(a));
        self.prefix_lengths.dedup();
    }

    fn select<B>(&self, request: &Request<B>) -> Option<Selected> {
        let path = request.uri().path();
        if !self.exact.is_empty()
            && let Some(found) = first(self.exact.get(path), request)
        {
            return Some(found);
        }
        let expression = |(expression, entry): &(Expression, Entry)| {
            let matches = expression.matches(path.as_bytes()) && entry.matches(request);
            matches.then(|| Selected {
                rule: Rc::clone(&entry.rule),
                prefix: 0,
            })
        };
        self.expressions
            .iter()
            .find_map(expression)
            .or_else(|| self.by_prefix(path, request))
            .or_else(|| self.by_grpc_method(path, request))
            .or_else(|| first(Some(&self.any), request))
    }

    fn by_prefix<B>(&self, path: &str, request: &Request<B>) -> Option<Selected> {
        self.prefix_lengths.iter().find_map(|length| {
            // Whole elements: the next byte begins one, or there is none.
            if !matches!(path.as_bytes().get(*length), None | Some(b'/')) {
                return None;
            }
            first(self.prefixes.get(path.get(..*length)?), request)
        })
    }

    fn by_grpc_method<B>(&self, path: &str, request: &Request<B>) -> Option<Selected> {
        if self.grpc.is_empty() {
            return None;
        }
        let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
        let found = self.grpc.iter().find(|grpc| {
            grpc.service.matches(service)
                && grpc.method.matches(method)
                && grpc.entry.matches(request)
        })?;
        Some(found.entry.selected())
    }
}

fn first<B>(entries: Option<&Vec<Entry>>, request: &Request<B>) -> Option<Selected> {
    let found = entries?.iter().find(|entry| entry.matches(request))?;
    Some(found.selected())
}

impl Entry {
    /// What the Gateway API orders by where paths are equal: a method, the number of header matches, the number of
    /// query matches, and the age and name of the document, which the table's order stands for.
    fn rank(&self) -> impl Ord + use<> {
        (self.conditions.rank(), self.order)
    }

    fn matches<B>(&self, request: &Request<B>) -> bool {
        self.conditions.match_all(request) && (!self.grpc || is_grpc(request.headers()))
    }

    fn selected(&self) -> Selected {
        Selected {
            rule: Rc::clone(&self.rule),
            prefix: self.prefix,
        }
    }
}

impl Part {
    fn new(text: &str, regex: bool) -> Result<Self, RuleError> {
        Ok(match (text, regex) {
            ("", _) => Self::Any,
            (text, false) => Self::Exact(text.into()),
            (text, true) => Self::Expression(expression(text)?, text.len()),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => &**exact == text,
            Self::Expression(expression, _) => expression.matches(text.as_bytes()),
        }
    }

    fn characters(&self) -> usize {
        match self {
            Self::Any => 0,
            Self::Exact(text) => text.len(),
            Self::Expression(_, length) => *length,
        }
    }
}

impl Host {
    fn new(name: &str) -> Self {
        let length = std::cmp::Reverse(name.len());
        match name.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Under(length, suffix.into()),
            None => Self::Exact(length, name.into()),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(_, name) => &**name == host,
            Self::Under(_, suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }
}

impl std::hash::Hash for Host {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            Self::Any => 0_u8.hash(state),
            Self::Exact(_, name) => (1_u8, name).hash(state),
            Self::Under(_, name) => (2_u8, name).hash(state),
        }
    }
}

pub(super) fn expression(text: &str) -> Result<Expression, RuleError> {
    Expression::new(text).map_err(|error| RuleError::Expression(text.to_owned(), error))
}

/// The host that a request names, in lower case and without its port and the dot at its end, which is that of the whole
/// name space; empty when it names none.
pub(super) fn host<B>(request: &Request<B>) -> Cow<'_, str> {
    let host = match request.uri().host() {
        Some(host) => host,
        None => without_port(host_header(request.headers())),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}

fn host_header(headers: &HeaderMap) -> &str {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    host.unwrap_or_default()
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // The colons of an IPv6 address are within brackets.
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}
