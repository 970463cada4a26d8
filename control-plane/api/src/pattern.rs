//! What an authorization rule may say about HTTP methods and paths.
//!
//! Only the form is checked here; the proxy matches.

/// Why a method or path pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a method token (RFC 9110 5.6.2) in upper case.
    #[error("{0:?} is not an HTTP method; write it in upper case, like GET")]
    Method(String),
    /// A path pattern does not begin with a slash.
    #[error("path pattern {0:?} must begin with `/`")]
    NotAbsolute(String),
    /// A star stands beside other characters of its segment.
    #[error(
        "in path pattern {0:?} a `*` must be a whole segment: `/orders/*` matches what is below /orders, `/orders/*/items` one segment between"
    )]
    PartialWildcard(String),
    /// An empty, `.` or `..` segment, which a normalised path never has.
    #[error("path pattern {0:?} has an empty, `.` or `..` segment and could never match")]
    Segment(String),
    /// A character that is not one of a path (RFC 3986 3.3), or a query or fragment.
    #[error("path pattern {0:?} has a character that a path cannot have ({1:?})")]
    Character(String, char),
    /// Longer than a pattern may be.
    #[error("a path pattern may have at most {MAX_PATH_PATTERN_BYTES} characters, this has {0}")]
    TooLong(usize),
}

/// Most bytes of a path pattern.
pub const MAX_PATH_PATTERN_BYTES: usize = 2048;

/// Checks an HTTP method of a rule.
///
/// # Errors
/// When it is not a token in upper case of at most 32 characters.
pub fn check_method(method: &str) -> Result<(), PatternError> {
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte == b'-' || byte == b'_';
    if (1..=32).contains(&method.len()) && method.bytes().all(fits) {
        Ok(())
    } else {
        Err(PatternError::Method(method.chars().take(64).collect()))
    }
}

/// Checks a path pattern of a rule: segments that are literal or `*`, after a leading slash. `/` alone is
/// the root; a final slash is part of the path, as it is for servers.
///
/// # Errors
/// When no path could match it, or when it reads as if it matched more than it does.
pub fn check_path_pattern(pattern: &str) -> Result<(), PatternError> {
    if pattern.len() > MAX_PATH_PATTERN_BYTES {
        return Err(PatternError::TooLong(pattern.len()));
    }
    let own = || pattern.to_owned();
    let Some(rest) = pattern.strip_prefix('/') else {
        return Err(PatternError::NotAbsolute(own()));
    };
    let path_character = |c: &char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%/".contains(*c);
    if let Some(bad) = pattern.chars().find(|c| !path_character(c)) {
        return Err(PatternError::Character(own(), bad));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() {
        return if pattern == "/" {
            Ok(())
        } else {
            Err(PatternError::Segment(own()))
        };
    }
    for segment in rest.split('/') {
        match segment {
            "" | "." | ".." => return Err(PatternError::Segment(own())),
            "*" => {}
            _ if segment.contains('*') => return Err(PatternError::PartialWildcard(own())),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_whole_segments_are_taken() {
        for good in [
            "/",
            "/*",
            "/orders",
            "/orders/*",
            "/orders/*/items",
            "/a/",
            "/a%20b",
            "/~x",
        ] {
            assert_eq!(check_path_pattern(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn patterns_that_mislead_or_never_match_are_refused() {
        type Make = fn(String) -> PatternError;
        let table: [(&str, Make); 10] = [
            ("", PatternError::NotAbsolute),
            ("orders", PatternError::NotAbsolute),
            ("*", PatternError::NotAbsolute),
            ("/orders*", PatternError::PartialWildcard),
            ("/**", PatternError::PartialWildcard),
            ("/a/*.json", PatternError::PartialWildcard),
            ("//", PatternError::Segment),
            ("/a//b", PatternError::Segment),
            ("/a/../b", PatternError::Segment),
            ("/.", PatternError::Segment),
        ];
        for (bad, error) in table {
            assert_eq!(check_path_pattern(bad), Err(error(bad.to_owned())));
        }
        for bad in ["/a?b=c", "/a#b", "/a b", "/é", "/a\n"] {
            assert!(
                matches!(check_path_pattern(bad), Err(PatternError::Character(..))),
                "{bad}"
            );
        }
        let long = format!("/{}", "a".repeat(MAX_PATH_PATTERN_BYTES));
        assert_eq!(check_path_pattern(&long), Err(PatternError::TooLong(2049)));
    }

    #[test]
    fn methods_are_upper_case_tokens() {
        for good in ["GET", "M-SEARCH", "VERSION-CONTROL"] {
            assert_eq!(check_method(good), Ok(()));
        }
        for bad in ["", "get", "GET ", "*", "G\u{e9}T"] {
            assert!(check_method(bad).is_err(), "{bad:?} was taken");
        }
    }
}
