//! Values of settings: what a person writes, and the type that it becomes.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::addresses::{is_host, strip_brackets};

/// A duration: one or more numbers with units, such as `500ms`, `30s`, `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is not a duration; write a number and a unit, such as 500ms, 30s, 5m or 1h"
        )
    };
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).ok_or_else(wrong)?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

/// The shortest text that [`duration`] reads as this duration.
pub(crate) fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds > 0 && milliseconds.is_multiple_of(size) {
            return format!("{}{unit}", milliseconds / size);
        }
    }
    format!("{milliseconds}ms")
}

/// A parser of durations within bounds, both inclusive.
pub(crate) fn duration_within(
    least: Duration,
    most: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let value = duration(text)?;
        if value < least || value > most {
            return Err(format!(
                "{text:?} is out of range; it must be from {} to {}",
                format_duration(least),
                format_duration(most)
            ));
        }
        Ok(value)
    }
}

/// A bound that may be absent, written `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OptionalDuration(pub Option<Duration>);

impl FromStr for OptionalDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        match duration(text) {
            Ok(Duration::ZERO) => Err("0 is no bound that works; write none for no bound".into()),
            Ok(value) => Ok(Self(Some(value))),
            Err(problem) => Err(format!("{problem}, or none")),
        }
    }
}

/// A size in bytes: `4096`, `64KiB`, `1MiB`.
fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is not a size; write bytes, such as 4096, 64KiB or 1MiB");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// A parser of sizes within bounds, both inclusive.
pub(crate) fn size_within(
    least: usize,
    most: usize,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| {
        let value = size(text)?;
        if value < least || value > most {
            return Err(format!(
                "{text:?} is out of range; it must be from {least} to {most} bytes"
            ));
        }
        Ok(value)
    }
}

/// A fraction from 0 to 1.
pub(crate) fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not a fraction from 0 to 1")),
    }
}

/// A status code that a retry may follow.
pub(crate) fn retry_code(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(value) if (400..=599).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is not an HTTP error status, 400 to 599")),
    }
}

/// Where access-log records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AccessLog {
    /// Standard output, one JSON object on each line.
    Stdout,
    /// Nowhere.
    Off,
    /// Appended to a file.
    File(PathBuf),
}

impl FromStr for AccessLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("is empty; write stdout, off or a path".into()),
            "stdout" => Ok(Self::Stdout),
            "off" => Ok(Self::Off),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// Longest path of a Unix socket, as the kernel's `sockaddr_un` holds it.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// What is appended to the path of a socket while it is made.
pub(crate) const SOCKET_DRAFT_SUFFIX: &str = ".draft";

/// An absolute path for a Unix socket, or its `unix://` URI, as clients of the Workload API write it.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err(format!(
            "{text:?} is not an absolute path; write one such as /run/sidewind/workload.sock"
        ));
    }
    let most = MAX_SOCKET_PATH_BYTES - SOCKET_DRAFT_SUFFIX.len();
    if path.len() > most {
        return Err(format!(
            "{text:?} is {} bytes long; the path of a socket has at most {most}",
            path.len()
        ));
    }
    Ok(path.into())
}

/// Access mode of a Unix socket: who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketMode(pub u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            // Connecting needs write access; reading alone or running is no use.
            Ok(mode) if digits && mode <= 0o666 && mode & 0o111 == 0 && mode & 0o600 == 0o600 => {
                Ok(Self(mode))
            }
            _ => Err(format!(
                "{text:?} is not the mode of a socket; write 600, 660 or 666"
            )),
        }
    }
}

/// An OTLP collector. TLS to it is the mesh's work, so the scheme is http alone.
pub(crate) fn trace_endpoint(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("{text:?} is not a collector ({why}); write http://HOST:4317");
    let uri: http::Uri = text.parse().map_err(|_| wrong("it is no URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(wrong("https is not spoken here: reach it through the mesh"));
        }
        _ => return Err(wrong("it must begin with http://")),
    }
    if uri.host().is_none_or(|host| !is_host(strip_brackets(host))) || uri.path() != "/" {
        return Err(wrong("it must be a host and a port"));
    }
    Ok(text.to_owned())
}

pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| {
            format!("{text:?} is not a log filter ({error}); write a level such as info, or info,sidewind_proxy::control=debug")
        })
}
