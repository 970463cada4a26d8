//! The `traceparent` header of W3C Trace Context, section 3.2.

/// What a valid `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(super) trace_id: [u8; 16],
    pub(super) parent_id: [u8; 8],
    pub(super) flags: u8,
}

impl Parent {
    /// Reads a `traceparent`; none for an invalid one.
    #[cfg(test)]
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        parse(value)
    }
}

/// Length of version 00 in bytes: `00-{32 hex}-{16 hex}-{2 hex}`.
const LENGTH: usize = 55;

/// Reads a `traceparent`. None where the standard says that the header is invalid and a new trace
/// is to be begun.
pub(super) fn parse(value: &[u8]) -> Option<Parent> {
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let (version, known) = field::<1>(known)?;
    let (trace_id, known) = field::<16>(known.strip_prefix(b"-")?)?;
    let (parent_id, known) = field::<8>(known.strip_prefix(b"-")?)?;
    let ([flags], _) = field::<1>(known.strip_prefix(b"-")?)?;
    let length_is_right = match version {
        [0xff] => false,
        [0x00] => rest.is_empty(),
        // A later version may add fields behind a dash.
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    let valid = length_is_right && trace_id != [0; 16] && parent_id != [0; 8];
    valid.then_some(Parent {
        trace_id,
        parent_id,
        flags,
    })
}

/// `N` bytes in lower-case hex, and what follows.
fn field<const N: usize>(text: &[u8]) -> Option<([u8; N], &[u8])> {
    let (digits, rest) = text.split_at_checked(2 * N)?;
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some((bytes, rest))
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

/// Writes a `traceparent` of version 00.
pub(super) fn format(trace_id: &[u8; 16], span_id: &[u8; 8], flags: u8) -> [u8; LENGTH] {
    let mut text = [b'-'; LENGTH];
    text[..2].copy_from_slice(b"00");
    write_hex(&mut text[3..35], trace_id);
    write_hex(&mut text[36..52], span_id);
    write_hex(&mut text[53..], &[flags]);
    text
}

/// Writes bytes as lower-case hex into a slice of twice their length.
fn write_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_standard_is_read() {
        let parent = parse(VALID.as_bytes()).unwrap();
        assert_eq!(
            u128::from_be_bytes(parent.trace_id),
            0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736
        );
        assert_eq!(u64::from_be_bytes(parent.parent_id), 0x00f0_67aa_0ba9_02b7);
        assert_eq!(parent.flags, 1);
    }

    #[test]
    fn a_later_version_may_be_longer_and_the_first_may_not() {
        let later = VALID.replacen("00", "cc", 1);
        for (value, valid) in [
            (later.clone(), true),
            (format!("{later}-what-the-future-brings"), true),
            (format!("{later}."), false),
            (format!("{VALID}-"), false),
            (format!("{VALID}-00"), false),
        ] {
            assert_eq!(parse(value.as_bytes()).is_some(), valid, "{value}");
        }
    }

    #[test]
    fn what_the_standard_calls_invalid_is_refused() {
        for value in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e47360-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert_eq!(parse(value.as_bytes()), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            trace_id in any::<[u8; 16]>(),
            parent_id in any::<[u8; 8]>(),
            flags in any::<u8>(),
        ) {
            let text = format(&trace_id, &parent_id, flags);
            let valid = trace_id != [0; 16] && parent_id != [0; 8];
            let expected = valid.then_some(Parent { trace_id, parent_id, flags });
            prop_assert_eq!(parse(&text), expected);
        }

        #[test]
        fn any_bytes_are_refused_or_written_back_as_they_were(bytes in any::<Vec<u8>>()) {
            if let Some(parent) = parse(&bytes) {
                let text = format(&parent.trace_id, &parent.parent_id, parent.flags);
                prop_assert_eq!(&bytes[2..LENGTH], &text[2..]);
            }
        }

        #[test]
        fn one_changed_byte_is_never_read_as_the_same(at in 0..LENGTH, byte in any::<u8>()) {
            let mut bytes = VALID.as_bytes().to_vec();
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            let same = parse(VALID.as_bytes());
            // The version's digits carry nothing that a later version may change.
            prop_assert!(at < 2 || parse(&bytes) != same);
        }
    }
}
