//! The join token: a secret that no log, debug output or error shows.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longest token that is read; those that the control plane makes are far shorter.
const MAX_TOKEN_BYTES: u64 = 4096;

/// A one-use token. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct JoinToken(String);

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
        Ok(Self(text.to_owned()))
    }

    /// The token itself, for the one message that carries it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
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
            Self::File(path) => read_file(path)
                .and_then(|text| JoinToken::parse(&text))
                .map_err(|problem| format!("the file {} {problem}", path.display())),
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    use std::io::Read;

    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > MAX_TOKEN_BYTES {
        return Err(format!(
            "is longer than {MAX_TOKEN_BYTES} bytes: it is no token"
        ));
    }
    Ok(text)
}
