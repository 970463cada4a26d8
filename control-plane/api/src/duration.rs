//! Durations as people write them, in the form of Gateway API (GEP-2257): `90s`, `1h30m`, `250ms`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration; write it like 250ms, 90s, 10m, 1h or 1h30m")]
pub struct DurationError {
    text: String,
}

/// Reads a duration: one to four parts, each of one to five digits and a unit (`h`, `m`, `s`, `ms`).
///
/// # Errors
/// When the text has another form.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError {
        text: text.chars().take(64).collect(),
    };
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _part in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        if !(1..=5).contains(&digits) {
            return Err(error());
        }
        let number: u64 = number.parse().map_err(|_| error())?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(error()),
        };
        if after.is_empty() {
            return Ok(total);
        }
        rest = after;
    }
    Err(error())
}

/// Writes a duration in whole seconds for people: `1h30m`, `90s` as `1m30s`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let text: String = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect();
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_gateway_api_writes_them() {
        let table = [
            ("0s", 0),
            ("250ms", 250),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("1h1m1s1ms", 3_661_001),
            ("99999h", 359_996_400_000),
        ];
        for (text, milliseconds) in table {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for bad in [
            "",
            "1",
            "s",
            "1.5s",
            "-1s",
            "1d",
            "100000s",
            "1h1h1h1h1h",
            "1 s",
            "1sé",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn durations_are_written_for_people() {
        let table = [
            (0, "0s"),
            (59, "59s"),
            (90, "1m30s"),
            (5400, "1h30m"),
            (2_592_000, "30d"),
        ];
        for (seconds, text) in table {
            assert_eq!(format(Duration::from_secs(seconds)), text);
        }
    }
}
