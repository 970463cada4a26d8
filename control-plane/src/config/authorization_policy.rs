//! `AuthorizationPolicy`: who may call the workloads that it selects.

use super::Draft;
use super::document::{Reader, Resource, present};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::{pattern, v1};
use sidewind_identity::{SpiffeId, SpiffeIdPattern};

/// A checked policy.
#[derive(Debug)]
pub struct AuthorizationPolicy {
    selector: Vec<SpiffeIdPattern>,
    /// What it allows, each rule named after it.
    pub(super) rules: Vec<v1::AllowRule>,
}

impl AuthorizationPolicy {
    /// Whether the policy governs a workload's inbound.
    #[must_use]
    pub fn selects(&self, workload: &SpiffeId) -> bool {
        self.selector
            .iter()
            .any(|pattern| pattern.matches(workload))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    selector: Peers,
    rules: Vec<Spanned<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Peers {
    spiffe_ids: Spanned<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default, deserialize_with = "present")]
    from: Option<Spanned<Vec<Peers>>>,
    #[serde(default, deserialize_with = "present")]
    to: Option<Spanned<Vec<Spanned<Operation>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Operation {
    #[serde(default, deserialize_with = "present")]
    ports: Option<Spanned<Vec<Spanned<u16>>>>,
    #[serde(default, deserialize_with = "present")]
    methods: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    paths: Option<Spanned<Vec<Spanned<String>>>>,
}

/// Reads a policy into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(resource) = reader.typed::<Resource<Spec>>() else {
        return;
    };
    let (namespace, name) = resource
        .metadata
        .check("AuthorizationPolicy", reader, draft);
    let selector = patterns(reader, &resource.spec.selector);
    let mut rules = Vec::new();
    for rule in &resource.spec.rules {
        read_rule(reader, &format!("{namespace}/{name}"), rule, &mut rules);
    }
    if reader.is_sound() {
        draft.add_policy(AuthorizationPolicy { selector, rules });
    }
}

/// One rule becomes one rule of the API for each `to`.
fn read_rule(
    reader: &mut Reader<'_>,
    policy: &str,
    rule: &Spanned<Rule>,
    rules: &mut Vec<v1::AllowRule>,
) {
    let Rule { from, to } = &rule.value;
    if from.is_none() && to.is_none() {
        reader.refuse(
            rule,
            "a rule without `from` and `to` would allow everything; say what it allows",
        );
    }
    let mut sources = Vec::new();
    if let Some(from) = from {
        not_empty(reader, from, "any caller");
        for peers in &from.value {
            let patterns = patterns(reader, peers);
            sources.extend(patterns.iter().map(|pattern| pattern.as_str().to_owned()));
        }
    }
    let base = v1::AllowRule {
        policy: policy.to_owned(),
        sources,
        ..Default::default()
    };
    match to {
        None => rules.push(base),
        Some(to) => {
            not_empty(reader, to, "every port and request");
            for operation in &to.value {
                let rule = read_operation(reader, operation, base.clone());
                rules.push(rule);
            }
        }
    }
}

fn read_operation(
    reader: &mut Reader<'_>,
    operation: &Spanned<Operation>,
    mut rule: v1::AllowRule,
) -> v1::AllowRule {
    let Operation {
        ports,
        methods,
        paths,
    } = &operation.value;
    if ports.is_none() && methods.is_none() && paths.is_none() {
        reader.refuse(
            operation,
            "must have ports, methods or paths; leave `to` out to allow them all",
        );
    }
    if let Some(ports) = ports {
        not_empty(reader, ports, "every port");
        for port in &ports.value {
            if port.value == 0 {
                reader.refuse(port, "must be a port from 1 to 65535");
            }
            rule.ports.push(port.value.into());
        }
    }
    if let Some(methods) = methods {
        not_empty(reader, methods, "every method");
        for method in &methods.value {
            if let Err(error) = pattern::check_method(&method.value) {
                reader.refuse(method, error);
            }
            rule.methods.push(method.value.clone());
        }
    }
    if let Some(paths) = paths {
        not_empty(reader, paths, "every path");
        for path in &paths.value {
            if let Err(error) = pattern::check_path_pattern(&path.value) {
                reader.refuse(path, error);
            }
            rule.path_patterns.push(path.value.clone());
        }
    }
    rule
}

/// An empty list would mean "all" on the wire, and "none" to the one who wrote it.
fn not_empty<T>(reader: &mut Reader<'_>, list: &Spanned<Vec<T>>, absent_means: &str) {
    if list.value.is_empty() {
        reader.refuse(
            list,
            format!("must not be empty; leave it out to allow {absent_means}"),
        );
    }
}

fn patterns(reader: &mut Reader<'_>, peers: &Peers) -> Vec<SpiffeIdPattern> {
    if peers.spiffe_ids.value.is_empty() {
        reader.refuse(
            &peers.spiffe_ids,
            "must name at least one SPIFFE ID or pattern",
        );
    }
    let mut patterns = Vec::new();
    for text in &peers.spiffe_ids.value {
        match SpiffeIdPattern::parse(&text.value) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => reader.refuse(
                text,
                format!("{:?} is not a SPIFFE ID pattern: {error}", text.value),
            ),
        }
    }
    patterns
}
