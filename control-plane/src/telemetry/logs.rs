//! Logs: one event per line on standard error, as JSON or as text.

use clap::ValueEnum;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object each, for collectors.
    Json,
    /// Text for people.
    Text,
}

/// Starts logging.
///
/// # Errors
/// When the filter is not one, with a sentence that says so.
pub fn init_logs(level: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::builder().parse(level).map_err(|error| {
        format!("--log-level {level:?} is not a filter like info or info,h2=warn: {error}")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
        LogFormat::Text => subscriber
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
    }
    .map_err(|error| format!("logging cannot start: {error}"))
}
