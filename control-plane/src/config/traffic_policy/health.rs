//! Which endpoints count as well: active checks, and the ejection of outliers.

use super::{DAY, MILLISECOND, Reader, milliseconds, number, present};
use serde::Deserialize;
use serde_saphyr::Spanned;
use sidewind_api::v1;
use std::collections::BTreeMap;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HealthCheck {
    #[serde(default, deserialize_with = "present")]
    http: Option<HttpCheck>,
    #[serde(default, deserialize_with = "present")]
    grpc: Option<GrpcCheck>,
    #[serde(default, deserialize_with = "present")]
    tcp: Option<TcpCheck>,
    #[serde(default, deserialize_with = "present")]
    interval: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    timeout: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    healthy_threshold: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    unhealthy_threshold: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    jitter_percent: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HttpCheck {
    path: Spanned<String>,
    #[serde(default, deserialize_with = "present")]
    host: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    statuses: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default, deserialize_with = "present")]
    body: Option<Spanned<Body>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    #[serde(default, deserialize_with = "present")]
    contains: Option<Spanned<String>>,
    /// By JSON pointer.
    #[serde(default, deserialize_with = "present")]
    json: Option<Spanned<BTreeMap<String, Spanned<Scalar>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Number(i64),
    Text(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GrpcCheck {
    #[serde(default, deserialize_with = "present")]
    service: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TcpCheck {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OutlierDetection {
    #[serde(default, deserialize_with = "present")]
    consecutive_failures: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    success_rate: Option<Spanned<SuccessRate>>,
    #[serde(default, deserialize_with = "present")]
    hold: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    max_hold: Option<Spanned<String>>,
    #[serde(default, deserialize_with = "present")]
    max_ejected_percent: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SuccessRate {
    min_percent: Spanned<u32>,
    #[serde(default, deserialize_with = "present")]
    min_requests: Option<Spanned<u32>>,
    #[serde(default, deserialize_with = "present")]
    interval: Option<Spanned<String>>,
}

pub(super) fn check(reader: &mut Reader<'_>, given: &Spanned<HealthCheck>) -> v1::HealthCheck {
    use v1::health_check::Check;
    let it = &given.value;
    let check = match (&it.http, &it.grpc, &it.tcp) {
        (Some(http), None, None) => Some(Check::Http(http.read(reader))),
        (None, Some(grpc), None) => Some(Check::Grpc(v1::GrpcCheck {
            service: grpc.service.as_ref().map_or_else(String::new, |name| {
                printable(reader, name, "a gRPC service's name")
            }),
        })),
        (None, None, Some(TcpCheck {})) => Some(Check::Tcp(v1::TcpCheck {})),
        _ => {
            reader.refuse(given, "must have one of `http`, `grpc` and `tcp`");
            None
        }
    };
    let fast = Duration::from_millis(100);
    let interval = milliseconds(
        reader,
        it.interval.as_ref(),
        fast..=DAY,
        Duration::from_secs(5),
    );
    let timeout = milliseconds(
        reader,
        it.timeout.as_ref(),
        MILLISECOND..=HOUR,
        Duration::from_secs(2),
    );
    v1::HealthCheck {
        check,
        interval_ms: interval,
        timeout_ms: timeout,
        healthy_threshold: number(reader, it.healthy_threshold.as_ref(), 1..=100, 2),
        unhealthy_threshold: number(reader, it.unhealthy_threshold.as_ref(), 1..=100, 3),
        jitter_percent: number(reader, it.jitter_percent.as_ref(), 0..=100, 10),
    }
}

impl HttpCheck {
    fn read(&self, reader: &mut Reader<'_>) -> v1::HttpCheck {
        let path = printable(reader, &self.path, "a path");
        if !path.starts_with('/') || path.contains(['#', ' ']) {
            reader.refuse(
                &self.path,
                "must be a path that begins with `/`, with no `#` and no blank",
            );
        }
        let host = self.host.as_ref();
        let host = host.map_or_else(String::new, |host| printable(reader, host, "a host"));
        let statuses = self.statuses.as_ref();
        if let Some(statuses) = statuses.filter(|statuses| statuses.value.is_empty()) {
            reader.refuse(statuses, "must not be empty; leave it out to mean 200-299");
        }
        let statuses = statuses.iter().flat_map(|statuses| &statuses.value);
        let mut ranges = Vec::new();
        for text in statuses {
            match status_range(&text.value) {
                Some(range) => ranges.push(range),
                None => reader.refuse(
                    text,
                    format!(
                        "{:?} is neither a status like 200 nor a range like 200-299",
                        text.value
                    ),
                ),
            }
        }
        v1::HttpCheck {
            path,
            host,
            statuses: ranges,
            body: self.body.as_ref().map(|body| body.value.read(reader, body)),
        }
    }
}

impl Body {
    fn read(&self, reader: &mut Reader<'_>, at: &Spanned<Self>) -> v1::BodyExpectation {
        let json = self.json.iter().flat_map(|json| &json.value);
        if self.contains.is_none() && json.clone().count() == 0 {
            reader.refuse(
                at,
                "must have `contains`, or `json` with a pointer at least",
            );
        }
        if let Some(text) = &self.contains
            && !(1..=MAX_EXPECTED_BYTES).contains(&text.value.len())
        {
            reader.refuse(text, format!("must be of 1 to {MAX_EXPECTED_BYTES} bytes"));
        }
        let mut expected = Vec::new();
        for (pointer, value) in json {
            if !is_pointer(pointer) {
                let message =
                    format!("{pointer:?} is no JSON pointer like /metadatabase/status (RFC 6901)");
                reader.refuse(value, message);
            }
            let text = match &value.value {
                Scalar::Bool(value) => value.to_string(),
                Scalar::Number(value) => value.to_string(),
                Scalar::Text(text) => text.clone(),
            };
            if text.len() > MAX_EXPECTED_BYTES {
                reader.refuse(
                    value,
                    format!("must be of {MAX_EXPECTED_BYTES} bytes at most"),
                );
            }
            expected.push(v1::JsonExpectation {
                pointer: pointer.clone(),
                value: text,
            });
        }
        if expected.len() > MAX_POINTERS {
            reader.refuse(
                at,
                format!("must have {MAX_POINTERS} JSON pointers at most"),
            );
        }
        v1::BodyExpectation {
            contains: self
                .contains
                .as_ref()
                .map(|text| text.value.clone())
                .unwrap_or_default(),
            json: expected,
        }
    }
}

/// Of what a body is expected to have.
const MAX_EXPECTED_BYTES: usize = 1024;
const MAX_POINTERS: usize = 16;

/// Empty for the whole value, or `/` before each step; a `~` begins `~0` or `~1`.
fn is_pointer(text: &str) -> bool {
    let escapes = |text: &str| {
        let mut rest = text.split('~').skip(1);
        rest.all(|after| after.starts_with(['0', '1']))
    };
    text.len() <= MAX_EXPECTED_BYTES && (text.is_empty() || text.starts_with('/')) && escapes(text)
}

fn status_range(text: &str) -> Option<v1::StatusRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.parse().ok().filter(|s| (200..=599).contains(s));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some(v1::StatusRange { first, last })
}

fn printable(reader: &mut Reader<'_>, text: &Spanned<String>, what: &str) -> String {
    let fits = text.value.bytes().all(|byte| byte.is_ascii_graphic());
    if !(1..=1024).contains(&text.value.len()) || !fits {
        let message = format!("must be {what} of 1 to 1024 printable ASCII characters");
        reader.refuse(text, message);
    }
    text.value.clone()
}

pub(super) fn outliers(
    reader: &mut Reader<'_>,
    given: &Spanned<OutlierDetection>,
) -> v1::OutlierDetection {
    let it = &given.value;
    let rate = it.success_rate.as_ref().map(|rate| &rate.value);
    let second = Duration::from_secs(1);
    let least = Duration::from_millis(100);
    let hold = milliseconds(reader, it.hold.as_ref(), least..=DAY, 10 * second);
    let max_hold = milliseconds(reader, it.max_hold.as_ref(), least..=DAY, 300 * second);
    if let Some(at) = it.max_hold.as_ref().filter(|_| max_hold < hold) {
        reader.refuse(at, "must not be shorter than `hold`");
    }
    v1::OutlierDetection {
        consecutive_failures: it
            .consecutive_failures
            .as_ref()
            .map(|given| number(reader, Some(given), 0..=1000, 0)),
        min_success_percent: rate.map_or(0, |rate| {
            number(reader, Some(&rate.min_percent), 1..=100, 0)
        }),
        min_requests: rate.map_or(0, |rate| {
            number(reader, rate.min_requests.as_ref(), 1..=1_000_000, 20)
        }),
        interval_ms: rate.map_or(0, |rate| {
            milliseconds(reader, rate.interval.as_ref(), least..=HOUR, 10 * second)
        }),
        hold_ms: hold,
        max_hold_ms: max_hold.max(hold),
        max_ejected_percent: it
            .max_ejected_percent
            .as_ref()
            .map(|given| number(reader, Some(given), 0..=100, 0)),
    }
}
