//! `Registration`: which identity a workload with these selectors has, and what goes with it.

use super::document::{Reader, Resource, present};
use super::error::Place;
use super::template::{IdTemplate, Template};
use super::tree::Node;
use super::vocabulary::{SECTIONS, Section};
use super::{Draft, PlacedRule};
use crate::attest::Selectors;
use crate::store::TaskTerms;
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::duration;
use sidewind_identity::TrustDomain;
use sidewind_identity::authority::{MAX_DNS_NAMES, MAX_SVID_TTL, MIN_SVID_TTL};
use std::time::Duration;

/// A checked registration document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationRule {
    /// `namespace/name`.
    pub name: String,
    /// The kind of the attestor whose workloads it is for.
    pub attestor: &'static str,
    /// What a workload must have, all of it, in the order of the keys.
    pub conditions: Vec<Condition>,
    /// Who it is.
    pub spiffe_id: IdTemplate,
    /// Lifetime of its certificates, where it is not the control plane's default.
    pub svid_ttl: Option<Duration>,
    /// Lifetime of its JWT-SVIDs, likewise.
    pub jwt_ttl: Option<Duration>,
    /// DNS names of its certificates.
    pub dns_names: Vec<Template>,
    /// Services that it may offer.
    pub services: Vec<Template>,
    /// Whether identities of tasks may be derived from its own, and how.
    pub task_identities: Option<TaskTerms>,
    /// Whether peers believe it when it says which Airflow task a request comes from.
    pub task_context: bool,
    /// Foreign trust domains whose bundles it gets.
    pub federates_with: Vec<TrustDomain>,
}

/// A fact that a workload must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The selector's key.
    pub key: String,
    /// Its value is one of these.
    pub any_of: Vec<String>,
}

impl RegistrationRule {
    /// Whether a workload of an attestor has what the registration asks for.
    #[must_use]
    pub fn matches(&self, attestor: &str, selectors: &Selectors) -> bool {
        let has = |condition: &Condition| {
            let mut any_of = condition.any_of.iter();
            any_of.any(|value| selectors.has(&condition.key, value))
        };
        self.attestor == attestor && self.conditions.iter().all(has)
    }

    /// Whether one of its conditions is about a key.
    #[must_use]
    pub fn names(&self, key: &str) -> bool {
        self.conditions.iter().any(|condition| condition.key == key)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    selectors: Spanned<Node>,
    spiffe_id: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    svid_ttl: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    jwt_ttl: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    dns_names: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    services: Option<Vec<Spanned<String>>>,
    #[serde(default, deserialize_with = "present")]
    task_identities: Option<Spanned<Node>>,
    #[serde(default, deserialize_with = "present")]
    task_context: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "present")]
    federates_with: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    shared_across_clusters: Option<bool>,
}

/// Lifetimes of SVIDs of tasks: each is asked for anew, so they are short.
const TASK_TTL: std::ops::RangeInclusive<Duration> = MIN_SVID_TTL..=Duration::from_secs(3600);

/// Lifetimes of JWT-SVIDs: they cannot be called back, so they are short.
const JWT_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(3600);

/// Reads a registration into the draft.
pub(super) fn read(reader: &mut Reader<'_>, draft: &mut Draft) {
    let Some(Resource { metadata, spec, .. }) = reader.typed::<Resource<Spec>>() else {
        return;
    };
    let (namespace, name) = metadata.check("Registration", reader, draft);
    let Some((section, conditions)) = read_selectors(reader, &spec.selectors) else {
        return;
    };
    let Some(spiffe_id) = read_id(reader, draft, &spec.spiffe_id, section) else {
        return;
    };
    if conditions.is_empty() && spiffe_id.template().is_literal() {
        reader.refuse(
            &spec.selectors,
            "select every workload of this attestor, and `spiffeId` would make them all one; name what tells this workload from others, or use a placeholder",
        );
    }
    let svid_ttl = read_ttl(
        reader,
        spec.svid_ttl.as_ref(),
        &(MIN_SVID_TTL..=MAX_SVID_TTL),
    );
    if let (Some(ttl), Some(at)) = (svid_ttl, &spec.svid_ttl)
        && let Err(message) = draft.expectations.check_lifetime(ttl)
    {
        reader.refuse(at, message);
    }
    let task_context = spec.task_context.as_ref().filter(|it| it.value);
    if let Some(at) = task_context.filter(|_| !spiffe_id.template().is_literal()) {
        // Peers are told the identity, and a pattern would mean those of other registrations, too.
        reader.refuse(at, "needs a `spiffeId` without placeholders");
    }
    let (task_identities, airflow_at) = read_task_identities(reader, spec.task_identities.as_ref());
    let rule = RegistrationRule {
        name: format!("{namespace}/{name}"),
        attestor: section.attestor,
        conditions,
        svid_ttl,
        jwt_ttl: read_ttl(reader, spec.jwt_ttl.as_ref(), &JWT_TTL),
        dns_names: read_dns_names(reader, spec.dns_names.as_ref(), section),
        services: read_services(reader, spec.services.as_deref(), section),
        task_identities,
        task_context: task_context.is_some(),
        federates_with: read_domains(
            reader,
            spec.federates_with.as_ref().map(|it| it.value.as_slice()),
            &spiffe_id,
        ),
        spiffe_id,
    };
    if reader.is_sound() {
        draft.add_registration(PlacedRule {
            selectors_at: reader.place(&spec.selectors),
            id_at: reader.place(&spec.spiffe_id),
            federates_at: spec.federates_with.as_ref().map(|it| reader.place(it)),
            airflow_at,
            shared_across_clusters: spec.shared_across_clusters.unwrap_or(false),
            rule,
        });
    }
}

fn read_id(
    reader: &mut Reader<'_>,
    draft: &Draft,
    text: &Spanned<String>,
    section: &Section,
) -> Option<IdTemplate> {
    let template = match IdTemplate::parse(&text.value, section) {
        Ok(template) => template,
        Err(message) => {
            reader.refuse(text, message);
            return None;
        }
    };
    let expected = draft.expectations.trust_domain.as_ref();
    if let Some(expected) = expected.filter(|expected| *expected != template.trust_domain()) {
        let message = format!(
            "{:?} is of trust domain {}, but this control plane signs for {expected}",
            text.value,
            template.trust_domain()
        );
        reader.refuse(text, message);
        return None;
    }
    Some(template)
}

/// What the workload must have, and of which attestor it is.
fn read_selectors(
    reader: &mut Reader<'_>,
    selectors: &Spanned<Node>,
) -> Option<(&'static Section, Vec<Condition>)> {
    let Node::Map(sections) = &selectors.value else {
        reader.refuse(
            selectors,
            "must hold fields, like {kubernetes: {namespace: data}}",
        );
        return None;
    };
    let [(name, fields)] = sections.as_slice() else {
        reader.refuse(
            selectors,
            "must be of one attestor: a workload is attested by one",
        );
        return None;
    };
    let Some(section) = Section::of_name(&name.value) else {
        let known: Vec<&str> = SECTIONS.iter().map(|section| section.name).collect();
        reader.refuse(
            name,
            format!("is not an attestor; there are {}", known.join(", ")),
        );
        return None;
    };
    let Node::Map(fields) = &fields.value else {
        reader.refuse(fields, "must hold fields; write {} for no condition");
        return None;
    };
    let mut conditions = Vec::new();
    for (word, value) in fields {
        read_condition(reader, section, word, value, &mut conditions);
    }
    conditions.sort_by(|a, b| a.key.cmp(&b.key));
    Some((section, conditions))
}

fn read_condition(
    reader: &mut Reader<'_>,
    section: &'static Section,
    word: &Spanned<String>,
    value: &Spanned<Node>,
    conditions: &mut Vec<Condition>,
) {
    let Some(field) = section.field(&word.value) else {
        let message = format!("is not known; {} has {}", section.name, section.words());
        reader.refuse(word, message);
        return;
    };
    match &value.value {
        Node::Map(named) if field.named => {
            for (name, value) in named {
                let key = format!("{}{}", field.key, name.value);
                conditions.extend(values(reader, value).map(|any_of| Condition { key, any_of }));
            }
        }
        _ if field.named => reader.refuse(value, "must hold fields, like {name: value}"),
        _ => {
            let key = field.key.to_owned();
            conditions.extend(values(reader, value).map(|any_of| Condition { key, any_of }));
        }
    }
}

/// One value, or a list of which any will do.
fn values(reader: &mut Reader<'_>, node: &Spanned<Node>) -> Option<Vec<String>> {
    let mut values = Vec::new();
    let items = match &node.value {
        Node::Scalar(_) => std::slice::from_ref(node),
        Node::List(items) => items.as_slice(),
        Node::Map(_) => &[],
    };
    for item in items {
        match &item.value {
            Node::Scalar(text) if !text.is_empty() => values.push(text.clone()),
            _ => reader.refuse(item, "must be a text that is not empty"),
        }
    }
    if items.is_empty() {
        reader.refuse(
            node,
            "must be a text, or a list of texts of which any will do",
        );
    }
    values.sort();
    values.dedup();
    (!values.is_empty()).then_some(values)
}

fn read_ttl(
    reader: &mut Reader<'_>,
    text: Option<&Spanned<String>>,
    range: &std::ops::RangeInclusive<Duration>,
) -> Option<Duration> {
    let text = text?;
    match duration::parse(&text.value) {
        Ok(ttl) if range.contains(&ttl) => return Some(ttl),
        Ok(ttl) => {
            let (from, to) = (
                duration::format(*range.start()),
                duration::format(*range.end()),
            );
            let message = format!("must be from {from} to {to}, not {}", duration::format(ttl));
            reader.refuse(text, message);
        }
        Err(error) => reader.refuse(text, error),
    }
    None
}

fn read_dns_names(
    reader: &mut Reader<'_>,
    names: Option<&Spanned<Vec<Spanned<String>>>>,
    section: &Section,
) -> Vec<Template> {
    let Some(names) = names else {
        return Vec::new();
    };
    if names.value.len() > MAX_DNS_NAMES {
        reader.refuse(names, format!("may be {MAX_DNS_NAMES} at most"));
    }
    templates(reader, &names.value, section, Template::check_dns_name)
}

fn read_services(
    reader: &mut Reader<'_>,
    names: Option<&[Spanned<String>]>,
    section: &Section,
) -> Vec<Template> {
    let names = names.unwrap_or_default();
    templates(reader, names, section, Template::check_service)
}

fn templates(
    reader: &mut Reader<'_>,
    texts: &[Spanned<String>],
    section: &Section,
    check: fn(&Template) -> Result<(), String>,
) -> Vec<Template> {
    let mut templates = Vec::new();
    for text in texts {
        let parsed = Template::parse(&text.value, section);
        match parsed.and_then(|template| check(&template).map(|()| template)) {
            Ok(template) => templates.push(template),
            Err(message) => reader.refuse(text, message),
        }
    }
    templates
}

/// `true` or `false`, or the terms; and where an Airflow is named.
fn read_task_identities(
    reader: &mut Reader<'_>,
    given: Option<&Spanned<Node>>,
) -> (Option<TaskTerms>, Option<Place>) {
    let Some(given) = given else {
        return (None, None);
    };
    let mut terms = TaskTerms::default();
    let mut airflow_at = None;
    let fields = match &given.value {
        Node::Scalar(text) if text == "true" => return (Some(terms), None),
        Node::Scalar(text) if text == "false" => return (None, None),
        Node::Map(fields) => fields,
        _ => {
            reader.refuse(given, "must be true, false, or hold `svidTtl` or `airflow`");
            return (None, None);
        }
    };
    for (word, value) in fields {
        let Node::Scalar(text) = &value.value else {
            reader.refuse(value, "must be a text");
            continue;
        };
        match word.value.as_str() {
            "svidTtl" => {
                let text = Spanned::new(text.clone(), value.referenced, value.defined);
                let ttl = read_ttl(reader, Some(&text), &TASK_TTL);
                terms.svid_ttl = ttl.unwrap_or(terms.svid_ttl);
            }
            "airflow" => {
                terms.airflow = Some(text.clone());
                airflow_at = Some(reader.place(value));
            }
            _ => reader.refuse(word, "is not known; there are svidTtl and airflow"),
        }
    }
    (Some(terms), airflow_at)
}

fn read_domains(
    reader: &mut Reader<'_>,
    names: Option<&[Spanned<String>]>,
    own: &IdTemplate,
) -> Vec<TrustDomain> {
    let mut domains = Vec::new();
    for name in names.unwrap_or_default() {
        match TrustDomain::parse(&name.value) {
            Ok(domain) if domain == *own.trust_domain() => {
                reader.refuse(name, "is the workload's own trust domain");
            }
            Ok(domain) => domains.push(domain),
            Err(error) => reader.refuse(name, error),
        }
    }
    domains
}
