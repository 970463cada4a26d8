//! What attestors found out about a workload, in the form that registrations match.

use std::collections::BTreeSet;
use std::fmt;

/// Most selectors of one workload. What is beyond is left out, which can only make fewer registrations
/// match.
pub const MAX_SELECTORS: usize = 256;
/// Most bytes of a selector's key, and of its value. A longer one is left out.
pub const MAX_SELECTOR_BYTES: usize = 1024;

/// One checked fact: `kubernetes:namespace` is `data`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    key: String,
    value: String,
}

impl Selector {
    /// A fact of a key, like `aws-iam:role-arn`, and a value.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        Self { key, value }
    }

    /// What it is about: the attestor's kind, a colon, and a name.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What it says.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Selector {
    /// Values come from outside: what could break a log line or a terminal is escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (self.key.escape_debug(), self.value.escape_debug());
        write!(f, "{key}={value}")
    }
}

/// Everything that is known of a workload. One key may have several values (groups, for example).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selectors(BTreeSet<Selector>);

impl Selectors {
    /// Adds a fact, unless it is beyond the bounds.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let selector = Selector::new(key, value);
        let fits = selector.key.len() <= MAX_SELECTOR_BYTES
            && selector.value.len() <= MAX_SELECTOR_BYTES
            && self.0.len() < MAX_SELECTORS;
        if fits {
            self.0.insert(selector);
        }
    }

    /// Whether a fact is among them.
    #[must_use]
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.contains(selector)
    }

    /// As [`Selectors::contains`], with no selector made for it: each renewal asks many registrations.
    #[must_use]
    pub fn has(&self, key: &str, value: &str) -> bool {
        let is = |known: &Selector| known.value == value && known.key == key;
        self.0.iter().any(is)
    }

    /// The values of a key.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let of_key = self.0.iter().filter(move |selector| selector.key == key);
        of_key.map(Selector::value)
    }

    /// The value of a key that has exactly one.
    #[must_use]
    pub fn only<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        let mut values = self.values(key);
        let first = values.next()?;
        values.next().is_none().then_some(first)
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Selector> {
        self.0.iter()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Selectors {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(facts: I) -> Self {
        let mut selectors = Self::default();
        for (key, value) in facts {
            selectors.add(key, value);
        }
        selectors
    }
}

impl fmt::Display for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, selector) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{selector}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_two_values_has_no_only_one() {
        let selectors: Selectors = [("oidc:claim:g", "a"), ("oidc:claim:g", "b"), ("x", "y")]
            .into_iter()
            .collect();
        assert_eq!(selectors.only("oidc:claim:g"), None);
        assert_eq!(selectors.values("oidc:claim:g").count(), 2);
        assert_eq!(selectors.only("x"), Some("y"));
        assert_eq!(selectors.only("z"), None);
        assert_eq!(selectors.to_string(), "oidc:claim:g=a, oidc:claim:g=b, x=y");
    }

    #[test]
    fn what_is_beyond_the_bounds_is_left_out() {
        let mut selectors = Selectors::default();
        selectors.add("k", "v".repeat(MAX_SELECTOR_BYTES + 1));
        assert!(selectors.is_empty());
        for index in 0..MAX_SELECTORS + 5 {
            selectors.add("k", index.to_string());
        }
        assert_eq!(selectors.iter().count(), MAX_SELECTORS);
    }

    #[test]
    fn a_value_cannot_break_a_log_line() {
        let selector = Selector::new("k", "a\nb\u{1b}[31m");
        assert_eq!(selector.to_string(), "k=a\\nb\\u{1b}[31m");
    }
}
