//! Paths that every server reads the same way, and patterns over them.

/// A request's path that means to every server what it says: it begins with `/`, and has no dot segment, no empty
/// segment but the last, no backslash, and none of these in percent-encoding, however often it is encoded.
///
/// Servers disagree on all of those: a rule that allows `/public/*` must not let `/public/..%2fadmin` through to one
/// that decodes first. Other escapes cannot lead out of a subtree, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlainPath<'a>(&'a str);

impl<'a> PlainPath<'a> {
    /// The path of a request's target, without its query. `None` when servers may read it differently.
    pub(super) fn read(path: &'a str) -> Option<PlainPath<'a>> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let rest = path.strip_prefix('/')?;
        let mut segments = rest.split('/').peekable();
        while let Some(segment) = segments.next() {
            let is_last = segments.peek().is_none();
            if (segment.is_empty() && !is_last) || !is_plain_segment(segment) {
                return None;
            }
        }
        Some(PlainPath(path))
    }
}

fn is_plain_segment(segment: &str) -> bool {
    // Some servers cut parameters off: `..;x` is `..` to them.
    let name = segment.split(';').next().unwrap_or_default();
    if name == "." || name == ".." {
        return false;
    }
    segment.bytes().enumerate().all(|(place, byte)| match byte {
        b'\\' | b'#' | 0..=b' ' | 0x7f => false,
        b'%' => {
            let rest = segment.as_bytes().get(place + 1..).unwrap_or_default();
            is_harmless_escape(rest)
        }
        _ => true,
    })
}

/// Judges what follows a `%`.
fn is_harmless_escape(mut rest: &[u8]) -> bool {
    // `%252e` is `%2e` to a server that decodes twice.
    while let Some(inner) = rest.strip_prefix(b"25") {
        match inner {
            [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest = inner,
            _ => return true,
        }
    }
    match rest {
        [high, low, ..] => match (hex(*high), hex(*low)) {
            (Some(high), Some(low)) => !matches!(
                high << 4 | low,
                b'/' | b'\\' | b'.' | b';' | 0..=0x1f | 0x7f
            ),
            _ => false,
        },
        _ => false,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// A path, or a path with all below it: `/orders` means itself alone, `/orders/*` everything below `/orders/` and
/// `/orders/` itself, but not `/orders` or `/orders2`. `/*` means every path. Segments are compared as they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern {
    /// Up to and with the last slash when it means a subtree.
    text: Box<str>,
    subtree: bool,
}

impl PathPattern {
    /// Reads a pattern; `None` when it is no plain path, or has a `*` that is not its last segment.
    pub(super) fn parse(text: &str) -> Option<PathPattern> {
        let (path, subtree) = match text.strip_suffix('*') {
            Some(parent) if parent.ends_with('/') => (parent, true),
            _ => (text, false),
        };
        if path.contains(['*', '?']) {
            return None;
        }
        PlainPath::read(path)?;
        Some(PathPattern {
            text: path.into(),
            subtree,
        })
    }

    /// Whether the pattern means this path.
    pub(super) fn matches(&self, PlainPath(path): PlainPath<'_>) -> bool {
        if self.subtree {
            // The text ends with a slash, so that this compares whole segments.
            path.starts_with(&*self.text)
        } else {
            path == &*self.text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_segment_by_segment() {
        let cases = [
            ("/orders", "/orders", true),
            ("/orders", "/orders/", false),
            ("/orders", "/orders?all=1", true),
            ("/orders", "/orders2", false),
            ("/orders", "/Orders", false),
            ("/orders/*", "/orders", false),
            ("/orders/*", "/orders/", true),
            ("/orders/*", "/orders/1", true),
            ("/orders/*", "/orders/1/items/2", true),
            ("/orders/*", "/orders/a%20b", true),
            ("/orders/*", "/orders/v1.2/..x", true),
            ("/orders/*", "/orders2/1", false),
            ("/orders/*", "/x/orders/1", false),
            ("/*", "/", true),
            ("/*", "/a/b", true),
            ("/", "/", true),
            ("/", "/a", false),
        ];
        for (pattern, path, expected) in cases {
            let pattern = PathPattern::parse(pattern).unwrap();
            let matches = PlainPath::read(path).is_some_and(|path| pattern.matches(path));
            assert_eq!(matches, expected, "{pattern:?} {path}");
        }
    }

    #[test]
    fn paths_that_servers_read_differently_are_not_plain() {
        for path in [
            "",
            "*",
            "orders",
            "//",
            "//orders",
            "/orders//1",
            "/orders/../admin",
            "/orders/..",
            "/orders/.",
            "/./orders",
            "/orders/..;/admin",
            "/orders/..;x=1/admin",
            "/orders/%2e%2e/admin",
            "/orders/%2E./admin",
            "/orders/..%2fadmin",
            "/orders%2Fadmin",
            "/orders/%5c..%5cadmin",
            "/orders\\..\\admin",
            "/orders/%252e%252e%252fadmin",
            "/orders/%25252fadmin",
            "/orders/%00",
            "/orders/%",
            "/orders/%2",
            "/orders/%zz",
            "/orders/%3b",
            "/orders/#x",
            "/orders/a b",
        ] {
            assert_eq!(PlainPath::read(path), None, "{path}");
        }
        for path in [
            "/",
            "/orders/",
            "/orders/100%25",
            "/a%20b",
            "/%c3%a9",
            "/.well-known/x",
            "/a;v=1/b",
            "/...",
            "/a?x=/../%2f",
        ] {
            assert!(PlainPath::read(path).is_some(), "{path}");
        }
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for pattern in [
            "",
            "*",
            "orders",
            "/or*",
            "/*/orders",
            "/orders/**",
            "/a/../b",
            "/a%2fb",
            "/a?x",
            "//",
        ] {
            assert_eq!(PathPattern::parse(pattern), None, "{pattern}");
        }
    }
}
