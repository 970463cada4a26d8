//! Texts with placeholders for what was attested: `spiffe://example.org/ns/{kubernetes.namespace}`.

use super::vocabulary::Section;
use crate::attest::Selectors;
use sidewind_api::ServiceName;
use sidewind_identity::{SpiffeId, TrustDomain};
use std::fmt;

/// A text with placeholders, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// A placeholder: how it is written, and the selector's key.
    Value {
        word: String,
        key: String,
    },
}

/// What a value may be made of where a template puts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A part of one segment of a SPIFFE ID's path (SPIFFE-ID.md, 2.2): it can neither add a segment nor
    /// be changed into one that is allowed, which could make two workloads one.
    PathSegment,
    /// A part of one label of a host name: it cannot add a label.
    Label,
}

impl Place {
    fn allows(self, value: &str) -> bool {
        let legal = |c: char| match self {
            Self::PathSegment => c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'),
            Self::Label => c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-',
        };
        !value.is_empty() && value.chars().all(legal)
    }

    const fn legal(self) -> &'static str {
        match self {
            Self::PathSegment => "letters, digits, `.`, `-` and `_`",
            Self::Label => "lower-case letters, digits and `-`",
        }
    }
}

/// Why a template gives nothing for a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A fact is missing, or has several values.
    #[error("{{{word}}} has {number} values for this workload, and must have one")]
    Values {
        /// The placeholder.
        word: String,
        /// How many.
        number: usize,
    },
    /// A value has what must not be there.
    #[error("{{{word}}} is {value:?}, which cannot be a part of {text}: only {legal} can")]
    Illegal {
        /// The placeholder.
        word: String,
        /// Its value.
        value: String,
        /// The template.
        text: String,
        /// What is legal.
        legal: &'static str,
    },
    /// The result is not what it should be.
    #[error("{text} gives {result:?} for this workload: {why}")]
    Result {
        /// The template.
        text: String,
        /// What came of it.
        result: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Template {
    /// Reads a template whose placeholders are of a section.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(text: &str, section: &Section) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, after)) = rest.split_once('{') {
            if literal.contains('}') {
                return Err(format!("{text:?} has a `}}` with no `{{` before it"));
            }
            let (word, after) = after
                .split_once('}')
                .ok_or_else(|| format!("{text:?} has a `{{` with no `}}` after it"))?;
            let key = key_of(word, section)?;
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            let word = word.to_owned();
            parts.push(Part::Value { word, key });
            rest = after;
        }
        if rest.contains('}') {
            return Err(format!("{text:?} has a `}}` with no `{{` before it"));
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let text = text.to_owned();
        Ok(Self { text, parts })
    }

    /// Whether it has no placeholder.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        let literal = |part: &Part| matches!(part, Part::Literal(_));
        self.parts.iter().all(literal)
    }

    /// Whether a selector's key is among its placeholders.
    #[must_use]
    pub fn uses(&self, key: &str) -> bool {
        let is = |part: &Part| matches!(part, Part::Value { key: known, .. } if known == key);
        self.parts.iter().any(is)
    }

    /// The text with a sample in place of each value, to see whether the rest can be right.
    fn sample(&self) -> String {
        let text = |part: &Part| match part {
            Part::Literal(literal) => literal.clone(),
            Part::Value { .. } => "x".to_owned(),
        };
        self.parts.iter().map(text).collect()
    }

    /// The text for a workload.
    fn expand(&self, selectors: &Selectors, place: Place) -> Result<String, TemplateError> {
        let mut result = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => result.push_str(literal),
                Part::Value { word, key } => {
                    let value = selectors.only(key).ok_or_else(|| TemplateError::Values {
                        word: word.clone(),
                        number: selectors.values(key).count(),
                    })?;
                    if !place.allows(value) {
                        return Err(TemplateError::Illegal {
                            word: word.clone(),
                            value: value.to_owned(),
                            text: self.text.clone(),
                            legal: place.legal(),
                        });
                    }
                    result.push_str(value);
                }
            }
        }
        Ok(result)
    }

    fn wrong(&self, result: String, why: impl fmt::Display) -> TemplateError {
        TemplateError::Result {
            text: self.text.clone(),
            result,
            why: why.to_string(),
        }
    }

    /// The host name for a workload.
    ///
    /// # Errors
    /// When a value is missing or cannot be a part of a label, or the result is no host name.
    pub fn dns_name(&self, selectors: &Selectors) -> Result<String, TemplateError> {
        let name = self.expand(selectors, Place::Label)?;
        if sidewind_api::service::is_host(&name) {
            Ok(name)
        } else {
            Err(self.wrong(name, "that is no host name"))
        }
    }

    /// The service for a workload.
    ///
    /// # Errors
    /// As [`Template::dns_name`].
    pub fn service(&self, selectors: &Selectors) -> Result<ServiceName, TemplateError> {
        let name = self.expand(selectors, Place::Label)?;
        name.parse().map_err(|error| self.wrong(name, error))
    }

    /// Checks what can be known before there is a workload: for a host name.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check_dns_name(&self) -> Result<(), String> {
        if sidewind_api::service::is_host(&self.sample()) {
            Ok(())
        } else {
            Err(format!("{:?} is no host name in lower case", self.text))
        }
    }

    /// As [`Template::check_dns_name`], for a service.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check_service(&self) -> Result<(), String> {
        let parsed = self.sample().parse::<ServiceName>();
        parsed.map(drop).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The first segment of the control plane's own identities.
const RESERVED: &str = "sidewind";

/// A SPIFFE ID with placeholders in its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdTemplate {
    template: Template,
    trust_domain: TrustDomain,
}

impl IdTemplate {
    /// Reads a SPIFFE ID with placeholders of a section.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(text: &str, section: &Section) -> Result<Self, String> {
        let template = Template::parse(text, section)?;
        let rest = text.strip_prefix("spiffe://");
        let authority = rest.map(|rest| rest.split('/').next().unwrap_or(rest));
        if authority.is_some_and(|authority| authority.contains(['{', '}'])) {
            return Err("the trust domain cannot come from a placeholder".to_owned());
        }
        let id = SpiffeId::parse(&template.sample())
            .map_err(|error| format!("{text:?} is not a SPIFFE ID: {error}"))?;
        check_workload(&id)?;
        Ok(Self {
            template,
            trust_domain: id.trust_domain().clone(),
        })
    }

    /// Its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The text and its placeholders.
    #[must_use]
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The identity for a workload.
    ///
    /// # Errors
    /// When a value is missing or cannot be a part of a segment, or the result is no identity that a
    /// workload may have.
    pub fn expand(&self, selectors: &Selectors) -> Result<SpiffeId, TemplateError> {
        let text = self.template.expand(selectors, Place::PathSegment)?;
        let id = match SpiffeId::parse(&text) {
            Ok(id) => id,
            Err(error) => return Err(self.template.wrong(text, error)),
        };
        if let Err(why) = check_workload(&id) {
            return Err(self.template.wrong(text, why));
        }
        if id.trust_domain() != &self.trust_domain {
            return Err(self.template.wrong(text, "the trust domain is another"));
        }
        Ok(id)
    }
}

fn check_workload(id: &SpiffeId) -> Result<(), String> {
    if !id.is_workload() {
        return Err("it has no path, and so names no workload".to_owned());
    }
    if id.segments().next() == Some(RESERVED) {
        return Err(format!(
            "paths under /{RESERVED}/ are reserved for the control plane"
        ));
    }
    Ok(())
}

fn key_of(word: &str, section: &Section) -> Result<String, String> {
    let (name, rest) = word.split_once('.').unwrap_or((word, ""));
    if name != section.name {
        return Err(format!(
            "{{{word}}} is not of this registration's selectors; write {{{}.…}}, with one of {}",
            section.name,
            section.words()
        ));
    }
    section.key_of(rest).ok_or_else(|| {
        format!(
            "{{{word}}} is not known; {} has {} (labels and claims with a name after a dot)",
            section.name,
            section.words()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubernetes() -> &'static Section {
        Section::of_name("kubernetes").unwrap()
    }

    fn selectors(namespace: &str) -> Selectors {
        [
            ("kubernetes:namespace", namespace),
            ("kubernetes:service-account", "orders"),
            ("kubernetes:pod-label:app.kubernetes.io/name", "api"),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn placeholders_are_replaced_by_what_was_attested() {
        let text = "spiffe://example.org/ns/{kubernetes.namespace}/sa/{kubernetes.serviceAccount}/{kubernetes.podLabels.app.kubernetes.io/name}";
        let template = IdTemplate::parse(text, kubernetes()).unwrap();
        let id = template.expand(&selectors("data")).unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/ns/data/sa/orders/api");
    }

    #[test]
    fn a_value_never_adds_a_segment_nor_becomes_another() {
        let text = "spiffe://example.org/ns/{kubernetes.namespace}";
        let template = IdTemplate::parse(text, kubernetes()).unwrap();
        for bad in [
            "a/b", "..", ".", "", "a b", "a%2fb", "ä", "a\0", "a?b", "a#b", "a@b", "a+b", "a:b",
            "{x}", "a\nb", "a\\b",
        ] {
            assert!(template.expand(&selectors(bad)).is_err(), "{bad:?}");
        }
        assert!(template.expand(&selectors(&"a".repeat(3000))).is_err());
    }

    #[test]
    fn a_missing_value_is_named() {
        let text = "spiffe://example.org/{kubernetes.podLabels.app}";
        let template = IdTemplate::parse(text, kubernetes()).unwrap();
        let error = template.expand(&selectors("data")).unwrap_err().to_string();
        assert!(error.starts_with("{kubernetes.podLabels.app} has 0 values"));
    }

    #[test]
    fn the_reserved_prefix_is_refused_also_when_a_value_makes_it() {
        for text in [
            "spiffe://example.org/sidewind/x",
            "spiffe://example.org/sidewind",
            "spiffe://example.org/sidewind/{kubernetes.namespace}",
        ] {
            assert!(IdTemplate::parse(text, kubernetes()).is_err(), "{text}");
        }
        for (text, namespace) in [
            ("spiffe://example.org/{kubernetes.namespace}/x", "sidewind"),
            ("spiffe://example.org/side{kubernetes.namespace}", "wind"),
        ] {
            let template = IdTemplate::parse(text, kubernetes()).unwrap();
            let error = template.expand(&selectors(namespace)).unwrap_err();
            assert!(error.to_string().contains("reserved"), "{error}");
        }
    }

    #[test]
    fn bad_templates_are_refused_at_once() {
        for text in [
            "spiffe://example.org",
            "spiffe://{kubernetes.namespace}/x",
            "spiffe://a.{kubernetes.namespace}/x",
            "spiffe://example.org/{kubernetes.namespace",
            "spiffe://example.org/kubernetes.namespace}",
            "spiffe://example.org/{oidc.subject}",
            "spiffe://example.org/{kubernetes.nothing}",
            "spiffe://example.org/{kubernetes.podLabels}",
            "spiffe://example.org/{kubernetes.podLabels.}",
            "spiffe://example.org/{kubernetes.namespace.x}",
            "spiffe://example.org/{}",
            "spiffe://example.org/{kubernetes.namespace}/",
            "spiffe://example.org//{kubernetes.namespace}",
            "http://example.org/x",
            "{kubernetes.namespace}",
        ] {
            assert!(IdTemplate::parse(text, kubernetes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_adds_no_label_to_a_name() {
        let text = "{kubernetes.serviceAccount}.{kubernetes.namespace}";
        let template = Template::parse(text, kubernetes()).unwrap();
        let service = template.service(&selectors("data")).unwrap();
        assert_eq!(service.as_str(), "orders.data");
        assert!(template.service(&selectors("da.ta")).is_err());
        let template = Template::parse("x.{kubernetes.namespace}.svc", kubernetes()).unwrap();
        assert!(template.dns_name(&selectors("data")).is_ok());
        assert!(template.dns_name(&selectors("da.ta")).is_err());
        assert!(template.dns_name(&selectors("DATA")).is_err());
    }
}
