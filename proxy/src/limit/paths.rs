//! Path patterns of rate limits.
//!
//! A limit must count what servers take for the path, however it is written: escapes are decoded, and empty and dot
//! segments and parameters left out. To count too much is harmless, unlike allowing too much.

use std::borrow::Cow;

/// Whether a path is one of the patterns; of no patterns, every path is.
pub(super) fn any_matches(patterns: &[String], path: &str) -> bool {
    if patterns.is_empty() {
        return true;
    }
    let path = plain(path);
    patterns.iter().any(|pattern| matches(pattern, &path))
}

/// Segment by segment: `*` is one, and at the end one or more.
fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let mut pattern = pattern
        .split('/')
        .filter(|segment| !segment.is_empty())
        .peekable();
    while let Some(expected) = pattern.next() {
        let Some(segment) = segments.next() else {
            return false;
        };
        match expected {
            "*" if pattern.peek().is_none() => return true,
            "*" => {}
            expected if expected == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

/// The path as a server may take it.
fn plain(path: &str) -> Cow<'_, str> {
    let suspicious =
        path.bytes().any(|byte| matches!(byte, b'%' | b';' | b'\\')) || path.contains("/.");
    if !suspicious {
        return Cow::Borrowed(path);
    }
    let decoded = decode(path);
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    Cow::Owned(format!("/{}", segments.join("/")))
}

/// Decodes escapes until none is left that could be decoded again.
fn decode(path: &str) -> String {
    let mut text = path.to_owned();
    for _ in 0..4 {
        let mut decoded = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            let escape = match (first, tail) {
                (b'%', [high, low, after @ ..]) => {
                    let digit = |byte: &u8| char::from(*byte).to_digit(16);
                    let value = digit(high)
                        .zip(digit(low))
                        .map(|(high, low)| high * 16 + low);
                    value.and_then(|it| Some((u8::try_from(it).ok()?, after)))
                }
                _ => None,
            };
            match escape {
                Some((byte, after)) => {
                    decoded.push(byte);
                    rest = after;
                }
                None => {
                    decoded.push(*first);
                    rest = tail;
                }
            }
        }
        let decoded = String::from_utf8_lossy(&decoded).into_owned();
        if decoded == text {
            break;
        }
        text = decoded;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_counted_however_it_is_written() {
        let patterns = [
            "/login".to_owned(),
            "/api/*/runs".to_owned(),
            "/auth/*".to_owned(),
        ];
        let counted = [
            "/login",
            "/login/",
            "//login",
            "/%6Cogin",
            "/%256cogin",
            "/x/../login",
            "/./login",
            "/login;jsessionid=1",
            "/x/%2e%2e/login",
            "/api/a/runs",
            "/auth/token",
            "/auth/token/x",
        ];
        for path in counted {
            assert!(any_matches(&patterns, path), "{path}");
        }
        for path in [
            "/",
            "/logins",
            "/x/login",
            "/api/runs",
            "/api/a/b/runs",
            "/auth",
            "*",
            "/%zz",
        ] {
            assert!(!any_matches(&patterns, path), "{path}");
        }
        assert!(any_matches(&[], "/anything"));
    }
}
