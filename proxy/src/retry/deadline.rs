//! Until when a request makes sense, and when a server wants to be asked again.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
use tokio::time::Instant;

/// By how much an answer has to come before the client's own deadline, so that it arrives: a tenth of it, and at most
/// this much.
const MOST_MARGIN: Duration = Duration::from_millis(100);

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The end of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// How long before that the request began.
    pub(super) limit: Duration,
}

/// The earlier of the policy's end and what the client says that it waits for.
pub(super) fn deadline(
    headers: &HeaderMap,
    limit: Option<Duration>,
    now: Instant,
) -> Option<Deadline> {
    let client = grpc_timeout(headers).map(|limit| limit - (limit / 10).min(MOST_MARGIN));
    let limit = match (limit, client) {
        (Some(limit), Some(client)) => limit.min(client),
        (limit, client) => limit.or(client)?,
    };
    // One too far away to be computed is none.
    let at = now.checked_add(limit)?;
    Some(Deadline { at, limit })
}

/// `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Has `grpc-timeout` say what is left of a client's timeout, if it has one.
pub(super) fn set_grpc_timeout(headers: &mut HeaderMap, timeout: Option<Duration>, gone: Duration) {
    let Some(timeout) = timeout else {
        return;
    };
    let left = timeout
        .saturating_sub(gone)
        .as_millis()
        .clamp(1, 99_999_999);
    if let Ok(value) = HeaderValue::try_from(format!("{left}m")) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

/// When a server wants to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskAgain {
    After(Duration),
    Never,
}

/// What `retry-after` (RFC 9110, section 10.2.3) or gRPC's `grpc-retry-pushback-ms` (proposal A6) say.
pub(super) fn ask_again(headers: &HeaderMap) -> Option<AskAgain> {
    if let Some(pushback) = headers.get("grpc-retry-pushback-ms") {
        let milliseconds = pushback.to_str().ok().and_then(|text| text.parse().ok());
        return Some(match milliseconds {
            Some(milliseconds) => AskAgain::After(Duration::from_millis(milliseconds)),
            // A negative number, or none: not again.
            None => AskAgain::Never,
        });
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(AskAgain::After(Duration::from_secs(seconds)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // A date that has gone by is now.
    let wait = date.duration_since(SystemTime::now()).unwrap_or_default();
    Some(AskAgain::After(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_the_earlier_of_the_routes_and_just_before_the_clients() {
        let seconds = Duration::from_secs;
        let milliseconds = Duration::from_millis;
        for (timeout, limit, expected) in [
            ("10S", None, Some(milliseconds(9_900))),
            ("500m", None, Some(milliseconds(450))),
            ("1M", Some(seconds(10)), Some(seconds(10))),
            ("1H", None, Some(milliseconds(3_599_900))),
            ("100u", None, Some(Duration::from_micros(90))),
            ("", Some(seconds(1)), Some(seconds(1))),
            ("123456789S", None, None),
            ("S", None, None),
            ("-1S", None, None),
            ("1x", None, None),
            ("99999999H", Some(seconds(1)), Some(seconds(1))),
        ] {
            let found = deadline(&headers(GRPC_TIMEOUT, timeout), limit, Instant::now());
            assert_eq!(found.map(|found| found.limit), expected, "{timeout:?}");
        }
    }

    #[test]
    fn a_further_attempt_has_what_is_left_of_the_clients_time() {
        for (timeout, gone, expected) in [("2S", 500, "1500m"), ("1S", 5000, "1m"), ("x", 1, "x")] {
            let mut headers = headers(GRPC_TIMEOUT, timeout);
            let timeout = grpc_timeout(&headers);
            set_grpc_timeout(&mut headers, timeout, Duration::from_millis(gone));
            assert_eq!(headers[GRPC_TIMEOUT], expected);
        }
    }

    #[test]
    fn what_a_server_says_of_asking_again_is_read() {
        let after = |seconds| Some(AskAgain::After(Duration::from_secs(seconds)));
        for (name, value, expected) in [
            ("retry-after", "3", after(3)),
            ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", after(0)),
            ("retry-after", "18446744073709551615", after(u64::MAX)),
            ("retry-after", "18446744073709551616", None),
            ("retry-after", "soon", None),
            ("retry-after", "-1", None),
            ("grpc-retry-pushback-ms", "2000", after(2)),
            ("grpc-retry-pushback-ms", "-1", Some(AskAgain::Never)),
            ("grpc-retry-pushback-ms", "x", Some(AskAgain::Never)),
        ] {
            assert_eq!(
                ask_again(&headers(name, value)),
                expected,
                "{name}: {value}"
            );
        }
    }
}
