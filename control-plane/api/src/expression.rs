//! Regular expressions in routes: what the control plane takes is what the proxy can match.

use regex::bytes::{Regex, RegexBuilder};
use std::fmt;

/// Most bytes of an expression.
pub const MAX_EXPRESSION_BYTES: usize = 1024;

/// Most bytes that a compiled expression takes, and the tables that matching builds.
const MAX_COMPILED_BYTES: usize = 256 * 1024;

/// A regular expression that must match a whole text: matched in time linear in the text, within bounded memory, and
/// over bytes, so that `\d` and `\w` mean ASCII.
#[derive(Clone)]
pub struct Expression(Regex);

/// Why a text is no [`Expression`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is too long.
    #[error("is longer than {MAX_EXPRESSION_BYTES} bytes")]
    TooLong,
    /// It needs too much memory.
    #[error("needs more memory than an expression may; repeat less in it")]
    TooLarge,
    /// It is malformed, or uses what takes more than linear time.
    #[error("is not a regular expression in RE2's syntax: {0}")]
    Syntax(String),
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// When it is malformed, too long, or needs too much memory.
    pub fn new(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(ExpressionError::TooLong);
        }
        // By itself first: `a)|(?:b` is none, although it is one between the brackets.
        compile(text)?;
        compile(&format!(r"\A(?:{text})\z")).map(Self)
    }

    /// Whether the whole text matches.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn compile(text: &str) -> Result<Regex, ExpressionError> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => ExpressionError::TooLarge,
            // The last line says what is wrong; those before it draw where.
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                ExpressionError::Syntax(last.trim_start_matches("error: ").to_owned())
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_whole_texts() {
        for (expression, text, expected) in [
            ("/v[12]", "/v1", true),
            ("/v[12]", "/v1/", false),
            ("/v[12]", "a/v1", false),
            ("a|b", "ab", false),
            ("a|b", "b", true),
            (r"\d+", "12", true),
            ("(?i)yes", "YES", true),
            ("", "", true),
            (".*", "a\nb", false),
        ] {
            let compiled = Expression::new(expression).unwrap();
            let found = compiled.matches(text.as_bytes());
            assert_eq!(found, expected, "{expression} on {text:?}");
        }
    }

    #[test]
    fn what_is_malformed_or_costly_is_refused_with_the_reason() {
        let long = "a".repeat(MAX_EXPRESSION_BYTES + 1);
        assert_eq!(
            Expression::new(&long).unwrap_err(),
            ExpressionError::TooLong
        );
        let large = "(a{100}){100}{100}";
        assert_eq!(
            Expression::new(large).unwrap_err(),
            ExpressionError::TooLarge
        );
        for text in ["a)|(?:b", "(", "(?x)a # b", r"(a)\1", "(?=a)", "["] {
            if text.starts_with("(?x)") {
                // The comment would take the closing bracket along.
                assert!(Expression::new(text).is_err(), "{text}");
                continue;
            }
            let error = Expression::new(text).unwrap_err();
            assert!(
                matches!(error, ExpressionError::Syntax(_)),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn what_makes_backtracking_engines_hang_is_matched_at_once() {
        let expression = Expression::new("(a+)+b").unwrap();
        assert!(!expression.matches("a".repeat(64 * 1024).as_bytes()));
    }
}
