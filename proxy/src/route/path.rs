//! Paths with a part of them replaced (Gateway API, `HTTPPathModifier`).

use http::uri::PathAndQuery;
use sidewind_api::v1;

use super::RuleError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathChange {
    /// The whole path; the query stays.
    Full(Box<str>),
    /// The prefix that the rule matched.
    Prefix(Box<str>),
}

impl PathChange {
    pub(super) fn compile(modifier: &v1::PathModifier) -> Result<Self, RuleError> {
        use v1::path_modifier::Modifier;
        let (change, text) = match &modifier.modifier {
            Some(Modifier::Full(path)) => (Self::Full(path.as_str().into()), path),
            Some(Modifier::Prefix(prefix)) => (Self::Prefix(prefix.as_str().into()), prefix),
            None => return Err(RuleError::Unknown("a path modifier")),
        };
        let plain = text.is_empty() || text.starts_with('/');
        let readable = PathAndQuery::try_from(format!("{text}/"));
        match readable {
            Ok(path) if plain && path.query().is_none() && !text.contains('#') => Ok(change),
            _ => Err(RuleError::Location(text.clone())),
        }
    }

    /// The path in place of `path`, of which `prefix` bytes were matched by a prefix with no slash at its end.
    ///
    /// As the Gateway API's table has it, slashes at the end of the prefix and of its replacement mean nothing, what
    /// follows the prefix keeps its own, and what would be empty is `/`.
    pub(super) fn apply(&self, path: &str, prefix: usize) -> String {
        match self {
            Self::Full(full) if full.is_empty() => "/".to_owned(),
            Self::Full(full) => full.to_string(),
            Self::Prefix(replacement) => {
                let rest = path.get(prefix..).unwrap_or_default();
                let replacement = replacement.strip_suffix('/').unwrap_or(replacement);
                match (replacement, rest) {
                    ("", "") => "/".to_owned(),
                    (replacement, rest) => format!("{replacement}{rest}"),
                }
            }
        }
    }

    /// The same with the query that the request has. The target of `OPTIONS *` is no path, and stays.
    pub(super) fn apply_with_query(&self, target: &http::Uri, prefix: usize) -> String {
        if target.path() == "*" {
            return "*".to_owned();
        }
        let mut path = self.apply(target.path(), prefix);
        if let Some(query) = target.query() {
            path.push('?');
            path.push_str(query);
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of `HTTPPathModifier.replacePrefixMatch`.
    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_prescribes() {
        for (path, prefix, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/a/b", "/", "/xyz", "/xyz/a/b"),
        ] {
            let change = PathChange::Prefix(replacement.into());
            let length = prefix.strip_suffix('/').unwrap_or(prefix).len();
            assert_eq!(
                change.apply(path, length),
                expected,
                "{path} {prefix} {replacement}"
            );
        }
    }

    #[test]
    fn what_is_no_path_stays() {
        for change in [
            PathChange::Prefix("/xyz".into()),
            PathChange::Full("/xyz".into()),
        ] {
            let target = http::Uri::from_static("*");
            assert_eq!(change.apply_with_query(&target, 0), "*");
        }
    }

    #[test]
    fn only_what_can_be_a_path_is_taken() {
        let full = |path: &str| {
            PathChange::compile(&v1::PathModifier {
                modifier: Some(v1::path_modifier::Modifier::Full(path.to_owned())),
            })
        };
        assert!(full("/a/b").is_ok());
        for path in ["a", "/a?b", "/a#b", "/a b", "/a\r\nb"] {
            assert!(full(path).is_err(), "{path:?}");
        }
    }
}
