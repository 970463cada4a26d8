//! Secrets: what no log, debug output or error shows, and what is wiped when it goes.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Longest token that is read; those of Kubernetes and of issuers have one or two thousand bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Those that the control plane makes are far shorter.
const MAX_JOIN_TOKEN_BYTES: usize = 4096;

/// A text that is nobody else's business. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Zeroizing<String>);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one message that carries it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Reads a token from a file, without the white space around it.
    ///
    /// # Errors
    /// A sentence that names the file, without what is in it.
    pub(crate) fn read_token(path: &Path) -> Result<Self, String> {
        let named = |problem: &str| format!("the file {} {problem}", path.display());
        let text = read_bounded(path, MAX_TOKEN_BYTES)?;
        let token = text.trim();
        if token.is_empty() {
            return Err(named("holds no token"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(named("holds more than a token"));
        }
        Ok(Self::new(token))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A one-use token. `Debug` hides it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinToken(Secret);

impl JoinToken {
    /// Reads a token from text, without the white space around it.
    ///
    /// # Errors
    /// A sentence, without the token, when the text cannot be a token.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("holds no token; `sidewind token create` prints one".into());
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("holds more than a token; `sidewind token create` prints one line".into());
        }
        Ok(Self(Secret::new(text)))
    }

    /// The token itself, for the one message that carries it.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// Where the join token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JoinTokenSource {
    /// Given as a variable; a restart alone brings another.
    Variable(JoinToken),
    /// Read from this file for each try.
    File(PathBuf),
}

impl JoinTokenSource {
    /// The token as it is now.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub(crate) fn read(&self) -> Result<JoinToken, String> {
        match self {
            Self::Variable(token) => Ok(token.clone()),
            Self::File(path) => JoinToken::parse(&read_bounded(path, MAX_JOIN_TOKEN_BYTES)?)
                .map_err(|problem| format!("the file {} {problem}", path.display())),
        }
    }
}

/// Reads a file of text, unless it is longer than it may be.
///
/// # Errors
/// A sentence that names the file.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> Result<Zeroizing<String>, String> {
    use std::io::Read;

    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_string(&mut text))
        .map_err(|error| format!("the file {} cannot be read: {error}", path.display()))?;
    if text.len() > limit {
        return Err(format!(
            "the file {} is longer than {limit} bytes: it is not what it should be",
            path.display()
        ));
    }
    Ok(text)
}
