//! Logs: one event per line on standard error, as JSON or as text, with a filter that may be changed while
//! running.

use clap::ValueEnum;
use std::io::IsTerminal as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Longest filter in bytes.
const MAX_FILTER_BYTES: usize = 4096;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object each, for collectors.
    Json,
    /// Text for people.
    Text,
}

/// Why the logs are not as they were asked to be.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("{filter:?} is not a filter like info or info,h2=warn: {problem}")]
    Filter {
        /// The filter, without control characters and cut.
        filter: String,
        /// What the parser says.
        problem: String,
    },
    /// The filter is too long.
    #[error("a filter of logs may have {MAX_FILTER_BYTES} bytes at most")]
    TooLong,
    /// There is a logger already, or the one there was is gone.
    #[error("logging cannot start: {0}")]
    Setup(String),
}

/// Changes what the running process logs. Clones change the same.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Replaces the filter: a level (`info`) or directives (`info,h2=debug`).
    ///
    /// # Errors
    /// When it is not one; the present filter stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.filter
            .reload(parse(filter)?)
            .map_err(|error| LogError::Setup(error.to_string()))
    }

    /// The present filter.
    #[must_use]
    pub fn get(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }
}

/// Starts logging.
///
/// # Errors
/// When the filter is not one, or something logs already.
pub fn init_logs(level: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    Registry::default()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| LogError::Setup(error.to_string()))?;
    Ok(LogHandle { filter: handle })
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let filter = filter.trim();
    if filter.len() > MAX_FILTER_BYTES {
        return Err(LogError::TooLong);
    }
    let refused = |problem: String| LogError::Filter {
        filter: filter
            .chars()
            .filter(|c| !c.is_control())
            .take(64)
            .collect(),
        problem,
    };
    if filter.is_empty() {
        return Err(refused("it is empty".to_owned()));
    }
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_filter_is_changed_while_running_and_a_bad_one_changes_nothing() {
        let written = Written::default();
        let (layer, filter) = reload::Layer::new(parse("warn").unwrap());
        let writer = written.clone();
        let lines = fmt::layer().with_writer(move || writer.clone());
        let subscriber = Registry::default().with(layer).with(lines);
        let handle = LogHandle { filter };
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            handle.set("debug").unwrap();
            tracing::debug!("after");
            for bad in ["lots=of=it", "", " ", &"a".repeat(5000)] {
                assert!(handle.set(bad).is_err(), "{bad:?}");
            }
            assert_eq!(handle.get(), "debug");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("after") && !text.contains("before"), "{text}");
    }
}
