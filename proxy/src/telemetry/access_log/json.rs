//! JSON objects written straight into a byte buffer.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What is put where a value was cut.
const CUT: &[u8] = "…".as_bytes();

/// The key of a member as it is written, quotes and colon included: one copy in place of four.
macro_rules! key {
    ($name:literal) => {
        $crate::telemetry::access_log::json::Key(concat!("\"", $name, "\":"))
    };
}
pub(super) use key;

/// Made by [`key!`]. Keys are constants of the program and need no escaping.
#[derive(Clone, Copy)]
pub(super) struct Key(pub(super) &'static str);

/// A JSON object that is being written.
pub(super) struct Object<'a>(&'a mut Vec<u8>);

impl<'a> Object<'a> {
    /// Opens an object.
    pub(super) fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self(out)
    }

    /// Closes it. Each member has written a comma behind itself, of which the last is taken back.
    pub(super) fn close(self) {
        if self.0.ends_with(b",") {
            self.0.pop();
        }
        self.0.push(b'}');
    }

    fn key(&mut self, key: Key) {
        self.0.extend_from_slice(key.0.as_bytes());
    }

    /// A member that is an object, written by `write`.
    pub(super) fn object(&mut self, key: Key, write: impl FnOnce(&mut Object<'_>)) {
        self.key(key);
        let mut object = Object::open(self.0);
        write(&mut object);
        object.close();
        self.0.push(b',');
    }

    /// A member that is a list of objects, each written by `write`.
    pub(super) fn list<T>(&mut self, key: Key, items: &[T], write: impl Fn(&mut Object<'_>, &T)) {
        self.key(key);
        self.0.push(b'[');
        for item in items {
            let mut object = Object::open(self.0);
            write(&mut object, item);
            object.close();
            self.0.push(b',');
        }
        if self.0.ends_with(b",") {
            self.0.pop();
        }
        self.0.extend_from_slice(b"],");
    }

    /// A string that needs no escaping: a constant, or digits.
    pub(super) fn plain(&mut self, key: Key, value: &[u8]) {
        self.quoted(key, |out| out.extend_from_slice(value));
    }

    /// A string of which at most `max_bytes` are written, and a mark where more was cut.
    pub(super) fn string(&mut self, key: Key, value: &str, max_bytes: usize) {
        self.quoted(key, |out| {
            if value.len() <= max_bytes {
                escape(out, value);
            } else {
                let (kept, _) = value.split_at(value.floor_char_boundary(max_bytes));
                escape(out, kept);
                out.extend_from_slice(CUT);
            }
        });
    }

    /// Bytes that should be UTF-8; what is not becomes U+FFFD.
    pub(super) fn bytes(&mut self, key: Key, value: &[u8], max_bytes: usize) {
        match std::str::from_utf8(value) {
            Ok(text) => self.string(key, text, max_bytes),
            Err(_) => self.string(key, &String::from_utf8_lossy(value), max_bytes),
        }
    }

    /// Bytes in lower-case hex.
    pub(super) fn hex<const N: usize>(&mut self, key: Key, value: &[u8; N]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let pairs = value.map(|byte| {
            [
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]
        });
        self.quoted(key, |out| out.extend_from_slice(pairs.as_flattened()));
    }

    /// A whole number.
    pub(super) fn number(&mut self, key: Key, value: u64) {
        self.bare(key, |out| decimal(out, value));
    }

    /// A whole number that may be negative.
    pub(super) fn signed(&mut self, key: Key, value: i64) {
        self.bare(key, |out| {
            if value < 0 {
                out.push(b'-');
            }
            decimal(out, value.unsigned_abs());
        });
    }

    /// Milliseconds with three decimals.
    pub(super) fn milliseconds(&mut self, key: Key, value: Duration) {
        let microseconds = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let rest = microseconds % 1000;
        let decimals = [rest / 100, rest / 10 % 10, rest % 10].map(|digit| b'0' + digit as u8);
        self.bare(key, |out| {
            decimal(out, microseconds / 1000);
            out.push(b'.');
            out.extend_from_slice(&decimals);
        });
    }

    /// True or false.
    pub(super) fn boolean(&mut self, key: Key, value: bool) {
        self.bare(key, |out| {
            out.extend_from_slice(if value { b"true" } else { b"false" })
        });
    }

    /// `ip:port`.
    pub(super) fn address(&mut self, key: Key, value: SocketAddr) {
        self.quoted(key, |out| match value.ip() {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                decimal(out, a.into());
                for octet in [b, c, d] {
                    out.push(b'.');
                    decimal(out, octet.into());
                }
                out.push(b':');
                decimal(out, value.port().into());
            }
            // Writing into a vector cannot fail.
            IpAddr::V6(_) => drop(write!(out, "{value}")),
        });
    }

    fn bare(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        write(self.0);
        self.0.push(b',');
    }

    fn quoted(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.0.push(b'"');
        write(self.0);
        self.0.extend_from_slice(b"\",");
    }
}

/// Appends a number, without the machinery of `fmt`.
fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends a string with the escapes of RFC 8259 section 7. DEL and the C1 controls, which JSON
/// lets through and terminals obey, are escaped too.
fn escape(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    // Almost every string is plain, and this loop, unlike the next, becomes vector instructions.
    let plain = |byte: &u8| (b' '..0x7f).contains(byte) & (*byte != b'"') & (*byte != b'\\');
    if bytes.iter().fold(true, |all, byte| all & plain(byte)) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if !NEEDS_A_LOOK[usize::from(byte)] {
            at += 1;
            continue;
        }
        let next = bytes.get(at + 1).copied().unwrap_or_default();
        // 0xC2 begins the two bytes of U+0080 to U+00BF, of which the first half are controls.
        let (code, length) = match byte {
            0xc2 if next < 0xa0 => (next, 2),
            0xc2 => {
                at += 2;
                continue;
            }
            other => (other, 1),
        };
        out.extend_from_slice(&bytes[copied..at]);
        match code {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            // Writing into a vector cannot fail.
            control => drop(write!(out, "\\u{control:04x}")),
        }
        at += length;
        copied = at;
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// Bytes that `escape` cannot just copy.
static NEEDS_A_LOOK: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[0x7f] = true;
    table[0xc2] = true;
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Object<'_>)) -> String {
        let mut out = Vec::new();
        let mut object = Object::open(&mut out);
        write(&mut object);
        object.close();
        String::from_utf8(out).unwrap()
    }

    fn member(write: impl FnOnce(&mut Object<'_>)) -> serde_json::Value {
        let text = written(write);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["k"].take()
    }

    #[test]
    fn members_are_separated_and_objects_nest() {
        let text = written(|object| {
            object.boolean(key!("a"), true);
            object.object(key!("b"), |inner| {
                inner.plain(key!("c"), b"d");
                inner.number(key!("e"), 0);
            });
            object.object(key!("f"), |_| {});
            object.signed(key!("g"), i64::MIN);
        });
        assert_eq!(
            text,
            r#"{"a":true,"b":{"c":"d","e":0},"f":{},"g":-9223372036854775808}"#
        );
    }

    #[test]
    fn durations_are_milliseconds_with_three_decimals() {
        let micros = |n| written(|object| object.milliseconds(key!("d"), Duration::from_micros(n)));
        assert_eq!(micros(0), r#"{"d":0.000}"#);
        assert_eq!(micros(1_042), r#"{"d":1.042}"#);
        assert_eq!(micros(60_000_000), r#"{"d":60000.000}"#);
    }

    #[test]
    fn terminal_controls_are_escaped() {
        let text = written(|object| object.string(key!("k"), "\u{1b}[31m\u{7f}\u{9b}é\u{a0}", 100));
        assert_eq!(text, "{\"k\":\"\\u001b[31m\\u007f\\u009bé\u{a0}\"}");
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let value = member(|object| object.string(key!("k"), "aé".repeat(10).as_str(), 5));
        assert_eq!(value, "aéa…");
    }

    proptest! {
        #[test]
        fn any_string_is_read_back_by_serde(text in any::<String>()) {
            let value = member(|object| object.string(key!("k"), &text, usize::MAX));
            prop_assert_eq!(value.as_str(), Some(text.as_str()));
        }

        #[test]
        fn any_bytes_are_read_back_lossily(bytes in any::<Vec<u8>>()) {
            let value = member(|object| object.bytes(key!("k"), &bytes, usize::MAX));
            prop_assert_eq!(value.as_str().unwrap(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_cut_string_is_valid(text in any::<String>(), max in 0_usize..20) {
            let value = member(|object| object.string(key!("k"), &text, max));
            prop_assert!(value.as_str().unwrap().len() <= max + CUT.len());
        }

        #[test]
        fn any_number_and_address_is_written_as_display_does(n in any::<u64>(), ip in any::<IpAddr>(), port in any::<u16>()) {
            let address = SocketAddr::new(ip, port);
            prop_assert_eq!(member(|object| object.number(key!("k"), n)).as_u64(), Some(n));
            let value = member(|object| object.address(key!("k"), address));
            prop_assert_eq!(value.as_str().unwrap(), address.to_string());
        }
    }
}
