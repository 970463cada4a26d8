//! The server name in a TLS ClientHello (RFC 8446, section 4.1.2; RFC 6066, section 3).

use std::borrow::Cow;

use super::{Detected, Verdict};

/// The record type that a TLS client begins with.
pub(super) const HANDSHAKE_RECORD: u8 = 0x16;

const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// Most payload of a plaintext record (RFC 8446, section 5.1).
const MAX_RECORD_BYTES: u16 = 1 << 14;

const RECORD_HEADER_BYTES: usize = 5;

/// Most bytes of a ClientHello whose name is read. One with a post-quantum key share has about 1.8 KiB.
const MAX_HELLO_BYTES: usize = 1 << 14;

/// Most records that such a ClientHello may be spread over, where each is as small as that makes it.
const MAX_RECORDS: usize = 64;

/// Most bytes that are read for a name.
pub(super) const MAX_BYTES: usize = MAX_HELLO_BYTES + MAX_RECORDS * RECORD_HEADER_BYTES;

/// Longest name in DNS.
const MAX_NAME_BYTES: usize = 253;

/// Judges bytes that begin with [`HANDSHAKE_RECORD`].
pub(super) fn classify(bytes: &[u8]) -> Verdict {
    let opaque = Verdict::Is(Detected::Opaque);
    // Type, version, length, then the handshake message's type.
    if bytes.get(1).is_some_and(|major| *major != 3)
        || bytes.get(2).is_some_and(|minor| *minor > 4)
        || bytes.get(5).is_some_and(|message| *message != CLIENT_HELLO)
    {
        return opaque;
    }
    let Some([high, low]) = bytes.get(3..RECORD_HEADER_BYTES) else {
        return Verdict::Undecided;
    };
    if !(1..=MAX_RECORD_BYTES).contains(&u16::from_be_bytes([*high, *low])) {
        return opaque;
    }
    if bytes.len() <= RECORD_HEADER_BYTES {
        return Verdict::Undecided;
    }
    match client_hello(bytes) {
        Hello::Whole(message) => Verdict::Is(Detected::Tls {
            server_name: server_name(&message),
        }),
        Hello::None => Verdict::Is(Detected::Tls { server_name: None }),
        Hello::NotYet => Verdict::TlsWithoutName,
    }
}

enum Hello<'a> {
    Whole(Cow<'a, [u8]>),
    /// Something that no client begins with, or that is too long to be looked into.
    None,
    NotYet,
}

/// The handshake message that records carry: a client may spread it over several (RFC 8446, section 5.1).
fn client_hello(mut bytes: &[u8]) -> Hello<'_> {
    let mut message = Cow::Borrowed(&[][..]);
    loop {
        let Some((header, rest)) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            return match bytes.first() {
                Some(&kind) if kind != HANDSHAKE_RECORD => Hello::None,
                _ => Hello::NotYet,
            };
        };
        let [kind, _, _, high, low] = *header;
        let length = u16::from_be_bytes([high, low]);
        if kind != HANDSHAKE_RECORD || !(1..=MAX_RECORD_BYTES).contains(&length) {
            return Hello::None;
        }
        let Some((fragment, rest)) = rest.split_at_checked(usize::from(length)) else {
            return Hello::NotYet;
        };
        bytes = rest;
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        let mut head = Reader(&message);
        let length = head.skip(1).and_then(|()| head.length(3));
        match length.map(|length| length + 4) {
            Some(length) if length > MAX_HELLO_BYTES => return Hello::None,
            Some(length) if message.len() >= length => return Hello::Whole(message),
            _ => {}
        }
    }
}

/// The host name in a handshake message; None if there is none, or the message is not whole.
fn server_name(message: &[u8]) -> Option<String> {
    let mut hello = Reader(message);
    hello.skip(1)?;
    let length = hello.length(3)?;
    let mut hello = Reader(hello.take(length)?);
    // legacy_version, random
    hello.skip(2 + 32)?;
    let session_id = hello.length(1)?;
    hello.skip(session_id)?;
    let cipher_suites = hello.length(2)?;
    hello.skip(cipher_suites)?;
    let compression_methods = hello.length(1)?;
    hello.skip(compression_methods)?;
    let length = hello.length(2)?;
    let mut extensions = Reader(hello.take(length)?);
    loop {
        let kind = extensions.length(2)?;
        let length = extensions.length(2)?;
        let body = extensions.take(length)?;
        if kind == usize::from(SERVER_NAME) {
            return host_name(body);
        }
    }
}

fn host_name(extension: &[u8]) -> Option<String> {
    let mut extension = Reader(extension);
    let length = extension.length(2)?;
    let mut names = Reader(extension.take(length)?);
    loop {
        let kind = names.length(1)?;
        let length = names.length(2)?;
        let name = names.take(length)?;
        if kind == usize::from(HOST_NAME) {
            return is_plausible(name).then(|| String::from_utf8_lossy(name).to_ascii_lowercase());
        }
    }
}

/// A name ends in logs and look-ups; anything but letters, digits, `-`, `_` and `.` has no place there.
fn is_plausible(name: &[u8]) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes).map(drop)
    }

    /// A big-endian number of `bytes` bytes.
    fn length(&mut self, bytes: usize) -> Option<usize> {
        Some(
            self.take(bytes)?
                .iter()
                .fold(0, |value, byte| value << 8 | usize::from(*byte)),
        )
    }
}
