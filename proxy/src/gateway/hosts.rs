//! Which of several listeners or routes a host is for, by Gateway API's rules: an exact name before a wildcard, a
//! longer wildcard before a shorter one, and what names no host for all others.

use std::cmp::Reverse;

/// The hosts that something is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostPattern {
    Exact(Box<str>),
    /// All names that end in this, which begins with a dot: `*.example.com` is not for `example.com` itself.
    Below(Box<str>),
    Any,
}

impl HostPattern {
    /// The pattern of a name, of `*.` and a name, or of nothing.
    pub(super) fn new(text: &str) -> Self {
        match text.strip_prefix('*') {
            _ if text.is_empty() => Self::Any,
            Some(below) => Self::Below(below.into()),
            None => Self::Exact(text.into()),
        }
    }

    /// Whether the pattern means a host, which is in lower case.
    pub(super) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Below(end) => host.len() > end.len() && host.ends_with(&**end),
            Self::Any => true,
        }
    }

    /// Orders patterns by how much they leave open, the narrowest first.
    fn openness(&self) -> (u8, Reverse<usize>) {
        match self {
            Self::Exact(_) => (0, Reverse(0)),
            Self::Below(end) => (1, Reverse(end.len())),
            Self::Any => (2, Reverse(0)),
        }
    }
}

/// The candidate whose pattern is the narrowest that matches; the first of equals.
pub(super) fn narrowest<'a, T>(
    candidates: impl Iterator<Item = (&'a HostPattern, T)>,
    host: &str,
) -> Option<T> {
    candidates
        .filter(|(pattern, _)| pattern.matches(host))
        .min_by_key(|(pattern, _)| pattern.openness())
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_pattern_that_matches_is_chosen() {
        let patterns: Vec<_> = [
            "",
            "*.example.com",
            "api.example.com",
            "*.eu.example.com",
            "*.com",
        ]
        .into_iter()
        .map(|text| (HostPattern::new(text), text))
        .collect();
        for (host, expected) in [
            ("api.example.com", "api.example.com"),
            ("www.example.com", "*.example.com"),
            ("a.b.example.com", "*.example.com"),
            ("x.eu.example.com", "*.eu.example.com"),
            ("eu.example.com", "*.example.com"),
            ("example.com", "*.com"),
            (".example.com", "*.com"),
            ("example.org", ""),
            ("", ""),
        ] {
            let candidates = patterns.iter().map(|(pattern, text)| (pattern, *text));
            assert_eq!(narrowest(candidates, host), Some(expected), "{host}");
        }
        let none = [(HostPattern::new("*.example.com"), ())];
        let candidates = none.iter().map(|(pattern, ())| (pattern, ()));
        assert_eq!(narrowest(candidates, "badexample.com"), None);
    }
}
