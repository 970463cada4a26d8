//! Timestamps of RFC 3339 in UTC with milliseconds, at the price of three digits each.

use std::time::{SystemTime, UNIX_EPOCH};

/// Length of `2026-11-21T06:13:00.123Z` in bytes.
const LENGTH: usize = 24;

/// Writes timestamps; what is above the second is kept from one to the next.
#[derive(Debug)]
pub(super) struct Timestamps {
    second: u64,
    text: [u8; LENGTH],
}

impl Timestamps {
    /// Starts in 1970.
    pub(super) fn new() -> Self {
        Self {
            second: 0,
            text: *b"1970-01-01T00:00:00.000Z",
        }
    }

    /// The text of a time. Times before 1970 and after 9999 become 1970.
    pub(super) fn format(&mut self, time: SystemTime) -> &[u8; LENGTH] {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut milliseconds = since.subsec_millis();
        if since.as_secs() != self.second {
            match seconds_text(since.as_secs()) {
                Some(text) => {
                    self.text[..19].copy_from_slice(&text);
                    self.second = since.as_secs();
                }
                None => {
                    *self = Self::new();
                    milliseconds = 0;
                }
            }
        }
        for place in [22, 21, 20] {
            self.text[place] = b'0' + (milliseconds % 10) as u8;
            milliseconds /= 10;
        }
        &self.text
    }
}

/// `2026-11-21T06:13:00`.
fn seconds_text(seconds: u64) -> Option<[u8; 19]> {
    let timestamp = jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    let text = timestamp.to_string();
    text.as_bytes().get(..19)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn at(milliseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn known_times_are_written_in_utc_with_milliseconds() {
        let mut timestamps = Timestamps::new();
        for (milliseconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_241_580_007, "2026-11-21T06:13:00.007Z"),
            (1_795_241_580_123, "2026-11-21T06:13:00.123Z"),
            (951_782_400_999, "2000-02-29T00:00:00.999Z"),
        ] {
            assert_eq!(timestamps.format(at(milliseconds)), expected.as_bytes());
        }
    }

    #[test]
    fn times_out_of_range_become_1970() {
        let mut timestamps = Timestamps::new();
        timestamps.format(at(1_795_241_580_123));
        let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(timestamps.format(far), b"1970-01-01T00:00:00.000Z");
        let before = UNIX_EPOCH - Duration::from_millis(1);
        assert_eq!(timestamps.format(before), b"1970-01-01T00:00:00.000Z");
        assert_eq!(timestamps.format(at(1_500)), b"1970-01-01T00:00:01.500Z");
    }

    proptest! {
        // jiff's own calendar ends a few hours before the year 9999 does.
        #[test]
        fn any_sequence_of_times_is_read_back_by_jiff(times in proptest::collection::vec(0_u64..253_402_207_200_000, 1..20)) {
            let mut timestamps = Timestamps::new();
            for milliseconds in times {
                let text = std::str::from_utf8(timestamps.format(at(milliseconds))).unwrap().to_owned();
                let read: jiff::Timestamp = text.parse().unwrap();
                prop_assert_eq!(read.as_millisecond(), i64::try_from(milliseconds).unwrap());
            }
        }
    }
}
