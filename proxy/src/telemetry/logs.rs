//! The proxy's own log: `tracing` events to standard error, as JSON or text, with a filter that may
//! be changed while running.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

pub(crate) use crate::errors::Chain;

/// Longest filter in bytes.
const MAX_FILTER_BYTES: usize = 4096;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Why a filter was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// It does not parse.
    #[error("`{filter}` is not a log filter; examples: `info`, `warn,sidewind_proxy::mesh=debug`")]
    Filter {
        /// The filter, without control characters.
        filter: String,
        /// What the parser says.
        source: tracing_subscriber::filter::ParseError,
    },
    /// It is too long.
    #[error("a log filter may have {MAX_FILTER_BYTES} bytes at most")]
    TooLong,
    /// A logger is installed already, or the installed one is gone.
    #[error("the logger could not be set up")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Changes the filter of the running process. Clones change the same.
#[derive(Clone, Debug)]
pub(crate) struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl LogHandle {
    /// Replaces the filter: a level (`info`) or directives (`warn,sidewind_proxy::mesh=debug`).
    ///
    /// # Errors
    /// Where it does not parse; the present filter stays.
    pub(crate) fn set(&self, filter: &str) -> Result<(), LogError> {
        let filter = parse(filter)?;
        self.filter
            .reload(filter)
            .map_err(|error| LogError::Setup(error.into()))
    }

    /// The present filter.
    pub(crate) fn get(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }

    /// A handle to a filter that filters nothing, and what keeps it alive.
    #[cfg(test)]
    pub(crate) fn detached(filter: &str) -> (Self, impl Sized + 'static) {
        let (layer, filter) = reload::Layer::new(parse(filter).unwrap());
        (Self { filter }, layer)
    }
}

/// Installs the logger of the process.
///
/// # Errors
/// Where the filter does not parse or a logger is installed already.
pub(crate) fn install(filter: &str, format: LogFormat) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    Registry::default()
        .with(filter)
        .with(output(
            format,
            std::io::stderr,
            std::io::stderr().is_terminal(),
        ))
        .with(filter_fn(is_not_of_h2))
        .try_init()
        .map_err(|error| LogError::Setup(error.into()))?;
    Ok(LogHandle { filter: handle })
}

/// h2 warns of each client that floods it, as often as there are any. What it then ends is counted, and logged once a
/// minute, like all that clients do wrong ([`crate::complaints`]).
fn is_not_of_h2(metadata: &tracing::Metadata<'_>) -> bool {
    *metadata.level() != tracing::Level::WARN || !metadata.target().starts_with("h2::")
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let filter = filter.trim();
    if filter.len() > MAX_FILTER_BYTES {
        return Err(LogError::TooLong);
    }
    // An empty filter would silence everything, errors too.
    let text = if filter.is_empty() { "info" } else { filter };
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| LogError::Filter {
            filter: text.chars().filter(|c| !c.is_control()).take(64).collect(),
            source,
        })
}

type Subscriber = tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>;

fn output<W>(
    format: LogFormat,
    writer: W,
    colours: bool,
) -> Box<dyn Layer<Subscriber> + Send + Sync>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(writer)
            .boxed(),
        LogFormat::Text => fmt::layer().with_ansi(colours).with_writer(writer).boxed(),
    }
}

/// Lets one of many equal events through each minute and counts the others.
///
/// ```ignore
/// static GARBAGE: Throttle = Throttle::new();
/// if let Some(unsaid) = GARBAGE.admit() {
///     tracing::warn!(%error, unsaid, "not TLS");
/// }
/// ```
#[derive(Debug)]
pub(crate) struct Throttle {
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
}

impl Throttle {
    const INTERVAL: Duration = Duration::from_secs(60);

    /// Lets the next event through.
    pub(crate) const fn new() -> Self {
        Self {
            last: Mutex::new(None),
            unsaid: AtomicU64::new(0),
        }
    }

    /// Whether to say the event: how many were not said since the last one that was, or none where
    /// this is not to be said either.
    #[expect(
        clippy::disallowed_methods,
        reason = "lines are logged outside of runtimes too; tests pass the time"
    )]
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| now.saturating_duration_since(last) < Self::INTERVAL) {
            self.unsaid.fetch_add(1, Relaxed);
            return None;
        }
        *last = Some(now);
        Some(self.unsaid.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Runs `body` with a logger at `filter` and gives back the lines that were logged.
    fn logged(filter: &str, format: LogFormat, body: impl FnOnce(&LogHandle)) -> Vec<String> {
        let written = Written::default();
        let (layer, filter) = reload::Layer::new(parse(filter).unwrap());
        let writer = written.clone();
        let subscriber =
            Registry::default()
                .with(layer)
                .with(output(format, move || writer.clone(), false));
        tracing::subscriber::with_default(subscriber, || body(&LogHandle { filter }));
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_json_line_has_the_fields_and_the_cause_chain_of_its_event() {
        let error =
            crate::errors::ProxyError::new(crate::errors::ErrorCode::UpstreamReset, "It broke.");
        let error = error.with_source(std::io::Error::other("a \"quoted\"\ncause"));
        let lines = logged("info", LogFormat::Json, |_| {
            tracing::warn!(error = %Chain(&error), peer = "10.0.0.1", "handshake failed");
        });
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(lines.len(), 1);
        assert_eq!(line["message"], "handshake failed");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["error"], "It broke.: a \"quoted\"\ncause");
        assert_eq!(line["peer"], "10.0.0.1");
    }

    #[test]
    fn the_filter_is_changed_while_running() {
        let lines = logged("warn", LogFormat::Text, |handle| {
            tracing::info!("before");
            handle.set("debug").unwrap();
            assert_eq!(handle.get(), "debug");
            tracing::debug!("after");
            assert!(handle.set("sidewind=nonsense").is_err());
            assert_eq!(handle.get(), "debug", "a bad filter changes nothing");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("after"));
    }

    #[test]
    fn a_filter_that_is_too_long_is_refused() {
        assert!(matches!(parse(&"a".repeat(5000)), Err(LogError::TooLong)));
        assert_eq!(parse("  ").unwrap().to_string(), "info");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the past is made of the present")]
    fn a_repeated_event_is_said_once_a_minute_with_a_count() {
        let throttle = Throttle::new();
        let start = Instant::now();
        assert_eq!(throttle.admit_at(start), Some(0));
        for second in 0..60 {
            assert_eq!(throttle.admit_at(start + Duration::from_secs(second)), None);
        }
        assert_eq!(throttle.admit_at(start + Duration::from_secs(60)), Some(60));
        assert_eq!(throttle.admit_at(start + Duration::from_secs(61)), None);
    }
}
