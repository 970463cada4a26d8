//! `GRPCRoute` of Gateway API.

use super::super::Draft;
use super::super::document::{Reader, Resource, present};
use super::filters::{self, FilterSpec, Level};
use super::parts::{
    BackendReference, MAX_MATCHES, NamedMatch, ParentReference, at_most, backends, expression,
    extension, hostnames, identity, is_expression, named_matches, parents, rule_name, rule_specs,
};
use super::session::{SessionPersistence, stickiness};
use super::{Route, Rule};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::v1;
use std::collections::HashSet;

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
    #[serde(default, deserialize_with = "present")]
    session_persistence: Option<Spanned<SessionPersistence>>,
    #[serde(default, deserialize_with = "present")]
    backend_refs: Option<Spanned<Vec<Spanned<BackendReference>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MatchSpec {
    #[serde(default, deserialize_with = "present")]
    method: Option<Spanned<MethodMatch>>,
    #[serde(default, deserialize_with = "present")]
    headers: Option<Spanned<Vec<Spanned<NamedMatch>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MethodMatch {
    #[serde(default, deserialize_with = "present", rename = "type")]
    kind: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    service: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    method: Option<Spanned<String>>,
}

/// Reads a route into the draft.
pub(crate) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spec>>() else {
        return;
    };
    let (namespace, name, created) = identity(&resource.metadata, "GRPCRoute", reader, draft);
    let spec = &resource.spec;
    let parents = parents(reader, &spec.parent_refs, &namespace);
    let hostnames = hostnames(reader, spec.hostnames.as_ref());
    let of_all = RuleSpec::default();
    let specs = rule_specs(reader, spec.rules.as_ref(), &of_all);
    let mut names = HashSet::new();
    let mut rules = Vec::new();
    for spec in specs {
        let mut matches = Vec::new();
        if let Some(list) = &spec.matches {
            at_most(reader, list, MAX_MATCHES);
            for matched in &list.value {
                matches.push(read_match(reader, &matched.value));
            }
        }
        if matches.is_empty() {
            // Every call; a request that is no call is for nobody here.
            matches.push(v1::RouteMatch {
                grpc: Some(v1::GrpcMethodMatch::default()),
                ..Default::default()
            });
        }
        let read = filters::read(
            reader,
            spec.filters.as_ref(),
            Level::Grpc,
            &parents,
            &namespace,
        );
        let backends = backends(reader, spec.backend_refs.as_ref(), &parents, &namespace);
        let policy = v1::RoutePolicy {
            stickiness: stickiness(reader, spec.session_persistence.as_ref(), &backends),
            ..Default::default()
        };
        let extension = extension(reader, read.extension.as_ref());
        rules.push(Rule {
            api: v1::RouteRule {
                route: format!("{namespace}/{name}"),
                name: rule_name(reader, spec.name.as_ref(), &mut names),
                hostnames: hostnames.clone(),
                matches,
                policy: Some(policy),
                filters: read.filters,
                backends,
            },
            extension,
        });
    }
    if reader.is_sound() {
        draft.routes.add(Route {
            kind: "GRPCRoute",
            namespace,
            created,
            name,
            parents,
            rules,
        });
    }
}

fn read_match(reader: &mut Reader<'_>, spec: &MatchSpec) -> v1::RouteMatch {
    let grpc = match &spec.method {
        Some(method) => read_method(reader, method),
        None => v1::GrpcMethodMatch::default(),
    };
    v1::RouteMatch {
        headers: named_matches(reader, spec.headers.as_ref(), true),
        grpc: Some(grpc),
        ..Default::default()
    }
}

fn read_method(reader: &mut Reader<'_>, spec: &Spanned<MethodMatch>) -> v1::GrpcMethodMatch {
    let MethodMatch {
        kind,
        service,
        method,
    } = &spec.value;
    if service.is_none() && method.is_none() {
        reader.refuse(spec, "must have `service` or `method`");
    }
    let regex = is_expression(reader, kind.as_ref());
    for (part, dots) in [(service, true), (method, false)] {
        let Some(part) = part else { continue };
        if regex {
            expression(reader, part);
            continue;
        }
        let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || dots && byte == b'.';
        if part.value.is_empty() || !part.value.bytes().all(named) {
            reader.refuse(
                part,
                "must be a name of protobuf, like package.Service and Method",
            );
        }
    }
    let text = |part: &Option<Spanned<String>>| {
        part.as_ref()
            .map_or(String::new(), |part| part.value.clone())
    };
    v1::GrpcMethodMatch {
        service: text(service),
        method: text(method),
        regex,
    }
}
