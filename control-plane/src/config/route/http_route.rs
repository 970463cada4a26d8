//! `HTTPRoute` of Gateway API.

use super::super::Draft;
use super::super::document::{Reader, Resource, present};
use super::filters::{self, FilterSpec, Level};
use super::parts::{
    BackendReference, MAX_ATTEMPTS, MAX_MATCHES, NamedMatch, ParentReference, Timeouts, at_most,
    backends, expression, extension, hostnames, identity, milliseconds, named_matches, one_of,
    parents, rule_name, rule_specs, timeouts,
};
use super::session::{SessionPersistence, stickiness};
use super::{Parent, Route, Rule};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::v1;
use std::collections::HashSet;

const METHODS: [(&str, ()); 9] = [
    ("GET", ()),
    ("HEAD", ()),
    ("POST", ()),
    ("PUT", ()),
    ("DELETE", ()),
    ("CONNECT", ()),
    ("OPTIONS", ()),
    ("TRACE", ()),
    ("PATCH", ()),
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    parent_refs: Spanned<Vec<Spanned<ParentReference>>>,
    #[serde(default, deserialize_with = "present")]
    hostnames: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    rules: Option<Spanned<Vec<Spanned<RuleSpec>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    #[serde(default, deserialize_with = "present")]
    name: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    matches: Option<Spanned<Vec<Spanned<MatchSpec>>>>,
    #[serde(default, deserialize_with = "present")]
    filters: Option<Spanned<Vec<Spanned<FilterSpec>>>>,
    #[serde(default)]
    timeouts: Option<Timeouts>,
    #[serde(default)]
    retry: Option<Retry>,
    #[serde(default, deserialize_with = "present")]
    session_persistence: Option<Spanned<SessionPersistence>>,
    #[serde(default, deserialize_with = "present")]
    backend_refs: Option<Spanned<Vec<Spanned<BackendReference>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MatchSpec {
    #[serde(default, deserialize_with = "present")]
    path: Option<PathMatch>,
    #[serde(default, deserialize_with = "present")]
    headers: Option<Spanned<Vec<Spanned<NamedMatch>>>>,
    #[serde(default, deserialize_with = "present")]
    query_params: Option<Spanned<Vec<Spanned<NamedMatch>>>>,
    #[serde(default, deserialize_with = "present")]
    method: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PathMatch {
    #[serde(default, deserialize_with = "present", rename = "type")]
    kind: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Retry {
    #[serde(default, deserialize_with = "present")]
    attempts: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    codes: Option<Vec<Spanned<u16>>>,
    #[serde(default, deserialize_with = "present")]
    backoff: Option<Spanned<String>>,
}

/// Reads a route into the draft.
pub(crate) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spec>>() else {
        return;
    };
    let (namespace, name, created) = identity(&resource.metadata, "HTTPRoute", reader, draft);
    let spec = &resource.spec;
    let parents = parents(reader, &spec.parent_refs, &namespace);
    let hostnames = hostnames(reader, spec.hostnames.as_ref());
    let of_all = RuleSpec::default();
    let specs = rule_specs(reader, spec.rules.as_ref(), &of_all);
    let mut names = HashSet::new();
    let mut rules = Vec::new();
    for spec in specs {
        let mut rule = rule(reader, spec, &parents, &namespace);
        rule.api.name = rule_name(reader, spec.name.as_ref(), &mut names);
        rule.api.route = format!("{namespace}/{name}");
        rule.api.hostnames.clone_from(&hostnames);
        rules.push(rule);
    }
    if reader.is_sound() {
        draft.routes.add(Route {
            kind: "HTTPRoute",
            namespace,
            created,
            name,
            parents,
            rules,
        });
    }
}

fn rule(reader: &mut Reader<'_>, spec: &RuleSpec, parents: &[Parent], namespace: &str) -> Rule {
    let mut matches = Vec::new();
    if let Some(list) = &spec.matches {
        at_most(reader, list, MAX_MATCHES);
        for matched in &list.value {
            matches.push(read_match(reader, &matched.value));
        }
    }
    let is_prefix = |matched: &v1::RouteMatch| {
        matches!(matched.path, None | Some(v1::route_match::Path::Prefix(_)))
    };
    let prefixes = matches.iter().all(is_prefix);
    let level = Level::Http { prefixes };
    let read = filters::read(reader, spec.filters.as_ref(), level, parents, namespace);
    let backends = backends(reader, spec.backend_refs.as_ref(), parents, namespace);
    if read.redirects
        && let Some(references) = &spec.backend_refs
    {
        reader.refuse(
            references,
            "must not be there beside RequestRedirect, which answers by itself",
        );
    }
    let mut policy = v1::RoutePolicy::default();
    timeouts(reader, spec.timeouts.as_ref(), &mut policy);
    if let Some(retry) = &spec.retry {
        read_retry(reader, retry, &mut policy);
    }
    policy.stickiness = stickiness(reader, spec.session_persistence.as_ref(), &backends);
    let extension = extension(reader, read.extension.as_ref());
    Rule {
        api: v1::RouteRule {
            matches,
            policy: Some(policy),
            filters: read.filters,
            backends,
            ..Default::default()
        },
        extension,
    }
}

fn read_match(reader: &mut Reader<'_>, spec: &MatchSpec) -> v1::RouteMatch {
    if let Some(method) = &spec.method {
        one_of(reader, method, &METHODS);
    }
    v1::RouteMatch {
        path: spec.path.as_ref().and_then(|path| read_path(reader, path)),
        method: spec
            .method
            .as_ref()
            .map_or(String::new(), |method| method.value.clone()),
        headers: named_matches(reader, spec.headers.as_ref(), true),
        query_params: named_matches(reader, spec.query_params.as_ref(), false),
        grpc: None,
    }
}

#[derive(Debug, Clone, Copy)]
enum PathKind {
    Exact,
    Prefix,
    Expression,
}

fn read_path(reader: &mut Reader<'_>, spec: &PathMatch) -> Option<v1::route_match::Path> {
    use v1::route_match::Path;
    let kinds = [
        ("Exact", PathKind::Exact),
        ("PathPrefix", PathKind::Prefix),
        ("RegularExpression", PathKind::Expression),
    ];
    let kind = match &spec.kind {
        Some(kind) => one_of(reader, kind, &kinds)?,
        None => PathKind::Prefix,
    };
    let Some(value) = &spec.value else {
        return match kind {
            PathKind::Prefix => Some(Path::Prefix("/".to_owned())),
            PathKind::Exact => Some(Path::Exact("/".to_owned())),
            PathKind::Expression => Some(Path::Regex("/".to_owned())),
        };
    };
    match kind {
        PathKind::Exact => {
            check_path(reader, value);
            Some(Path::Exact(value.value.clone()))
        }
        PathKind::Prefix => {
            check_path(reader, value);
            Some(Path::Prefix(value.value.clone()))
        }
        PathKind::Expression => {
            expression(reader, value);
            Some(Path::Regex(value.value.clone()))
        }
    }
}

/// What the Gateway API's schema asks of paths: none that servers read differently.
fn check_path(reader: &mut Reader<'_>, path: &Spanned<String>) {
    let text = path.value.as_str();
    let inside = ["//", "/./", "/../", "%2f", "%2F", "#", "?"];
    let wrong = inside.iter().find(|part| text.contains(**part));
    if !text.starts_with('/')
        || text.len() > 1024
        || !text.bytes().all(|b| (b'!'..=b'~').contains(&b))
    {
        reader.refuse(
            path,
            "must be a path of at most 1024 characters that begins with `/`",
        );
    } else if let Some(wrong) = wrong {
        reader.refuse(path, format!("must not contain `{wrong}`"));
    } else if text.ends_with("/..") || text.ends_with("/.") {
        reader.refuse(path, "must not end in a dot segment");
    }
}

fn read_retry(reader: &mut Reader<'_>, retry: &Retry, policy: &mut v1::RoutePolicy) {
    policy.retry_attempts = retry.attempts.as_ref().map(|attempts| attempts.value);
    if let Some(attempts) = retry.attempts.as_ref().filter(|a| a.value > MAX_ATTEMPTS) {
        reader.refuse(attempts, format!("must be at most {MAX_ATTEMPTS}"));
    }
    for code in retry.codes.iter().flatten() {
        if !(400..=599).contains(&code.value) {
            reader.refuse(code, "must be a status code from 400 to 599");
        }
        policy.retry_codes.push(code.value.into());
    }
    policy.retry_backoff_ms = milliseconds(reader, retry.backoff.as_ref());
}
