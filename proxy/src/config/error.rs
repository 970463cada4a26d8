//! What is wrong with a command line, in one line that says where and what would be right.

use std::ffi::OsStr;
use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Exit code for a bad flag, variable or file (`EX_USAGE` of sysexits.h).
pub(crate) const EXIT_USAGE: u8 = 64;

/// A setting that cannot be used. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub(crate) struct ConfigError {
    place: Place,
    problem: String,
}

impl ConfigError {
    /// `problem` is a sentence without its subject's name: what is wrong and what would be right.
    pub(crate) fn new(place: Place, problem: impl fmt::Display) -> Self {
        // One line whatever the value or the cause had in it.
        let problem = problem
            .to_string()
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self { place, problem }
    }
}

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A flag, by its long name without dashes.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// A setting that was given nowhere: its flag and its variable.
    Missing { flag: String, variable: String },
    /// The command line as a whole.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(variable) => f.write_str(variable),
            Self::Missing { flag, variable } => write!(f, "--{flag} (or {variable})"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// Turns clap's error of several lines into one line that names the variable when the value came from one.
pub(crate) fn from_clap(error: &clap::Error, place_of: &dyn Fn(&str) -> Place) -> ConfigError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(" or ")),
        Some(ContextValue::StyledStr(text)) => Some(text.to_string()),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    // "--workers <N>" → "workers"
    let flag = argument
        .split([' ', '='])
        .next()
        .unwrap_or_default()
        .trim_start_matches('-')
        .to_owned();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation => {
            let cause = std::error::Error::source(error).map_or_else(
                || format!("{value:?} is not a value that it takes"),
                ToString::to_string,
            );
            ConfigError::new(place_of(&flag), cause)
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            ConfigError::new(place_of(&flag), "needs a value")
        }
        ErrorKind::InvalidValue => {
            let valid = text(ContextKind::ValidValue).unwrap_or_default();
            ConfigError::new(place_of(&flag), format!("{value:?} is none of {valid}"))
        }
        ErrorKind::ArgumentConflict => ConfigError::new(place_of(&flag), "is given more than once"),
        ErrorKind::UnknownArgument => {
            let hint = match text(ContextKind::SuggestedArg) {
                Some(similar) => format!("; did you mean {similar}?"),
                None => "; --help lists what there is".to_owned(),
            };
            ConfigError::new(
                Place::CommandLine,
                format!("{argument:?} is not known{hint}"),
            )
        }
        ErrorKind::InvalidUtf8 => ConfigError::new(Place::CommandLine, "a value is not UTF-8"),
        _ => {
            let rendered = error.to_string();
            let first = rendered.lines().next().unwrap_or_default();
            ConfigError::new(
                Place::CommandLine,
                first.strip_prefix("error: ").unwrap_or(first),
            )
        }
    }
}

/// Whether the command line holds the flag.
pub(crate) fn gives_flag(arguments: &[impl AsRef<OsStr>], flag: &str) -> bool {
    arguments.iter().any(|argument| {
        argument
            .as_ref()
            .to_str()
            .and_then(|text| text.strip_prefix("--"))
            .is_some_and(|text| text.split('=').next() == Some(flag))
    })
}
