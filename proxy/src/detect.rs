//! What a client speaks, from its first bytes.
//!
//! [`classify`] is a pure function of the bytes; [`detect`] reads until it can say, the client
//! stays silent for too long, or the client ends. Whatever is not recognised is opaque: bytes are
//! passed through untouched, never dropped, so a wrong guess costs features and not connections.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::mesh::Scratch;

mod ports;
mod prefixed;
mod tls_hello;

use self::ports::Speaks;
pub(crate) use self::prefixed::Prefixed;

/// The HTTP/2 client connection preface (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A method longer than this is no method that anybody uses.
const MAX_METHOD_BYTES: usize = 32;

/// Most bytes that are read to decide.
const MAX_PREFIX_BYTES: usize = tls_hello::MAX_BYTES;

/// What a client speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Detected {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (h2c).
    Http2,
    /// TLS, with the server name that the client asked for if its hello tells.
    Tls {
        /// The name in lower case.
        server_name: Option<String>,
    },
    /// Anything else.
    Opaque,
}

/// What [`detect`] found.
#[derive(Debug)]
pub(crate) struct Detection {
    /// What the client speaks.
    pub(crate) protocol: Detected,
    /// What was read to find out; the caller passes it on first ([`Prefixed`]).
    pub(crate) prefix: BytesMut,
    /// The client said too little for too long, so that it was taken for opaque. Worth a line in
    /// the log: declaring the port's protocol spares every connection the wait.
    pub(crate) timed_out: bool,
}

/// Finds out what the client of `io`, which connected to `port`, speaks.
///
/// Where the port's server speaks first, nothing is read and nothing waited for. Where its clients do, in a protocol
/// that is not HTTP, the first bytes decide, however few they are. Elsewhere bytes are read until they decide. A
/// client that is silent for `limit` is opaque, with [`Detection::timed_out`] set where that is worth a word; one that
/// ends is opaque too, or what its bytes say.
///
/// # Errors
/// What reading gives.
pub(crate) async fn detect<T: AsyncRead + Unpin>(
    io: &mut T,
    port: u16,
    limit: Duration,
) -> io::Result<Detection> {
    let known = ports::well_known(port);
    let prefix = BytesMut::new();
    if known == Some(Speaks::Server) {
        return Ok(found(Detected::Opaque, prefix));
    }
    read_until_known(io, prefix, known, limit).await
}

/// The same where HTTP alone is expected. A client that is silent is idle then, as it may be between two requests, and is
/// waited for until `enough`; `limit` is for the rest of what it begins with. None where nothing came.
///
/// # Errors
/// What reading gives.
pub(crate) async fn detect_http<T: AsyncRead + Unpin>(
    io: &mut T,
    enough: impl Future<Output = ()>,
    limit: Duration,
) -> io::Result<Option<Detection>> {
    let mut prefix = BytesMut::new();
    let read = tokio::select! {
        biased;
        read = read_some(io, &mut prefix) => read?,
        () = enough => 0,
    };
    match read {
        0 => Ok(None),
        _ => read_until_known(io, prefix, None, limit).await.map(Some),
    }
}

async fn read_until_known<T: AsyncRead + Unpin>(
    io: &mut T,
    mut prefix: BytesMut,
    known: Option<Speaks>,
    limit: Duration,
) -> io::Result<Detection> {
    let deadline = Instant::now() + limit;
    loop {
        let verdict = classify(&prefix);
        if let Verdict::Is(protocol) = verdict {
            return Ok(found(protocol, prefix));
        }
        let so_far = verdict.if_nothing_more_comes();
        if known == Some(Speaks::Client) && !prefix.is_empty() {
            return Ok(found(so_far, prefix));
        }
        match timeout_at(deadline, read_some(io, &mut prefix)).await {
            Ok(read) => {
                if read? == 0 || prefix.len() >= MAX_PREFIX_BYTES {
                    let protocol = classify(&prefix).if_nothing_more_comes();
                    return Ok(found(protocol, prefix));
                }
            }
            Err(_) => {
                // Pools connect before they have anything to say.
                let timed_out = so_far == Detected::Opaque && known.is_none();
                return Ok(Detection {
                    timed_out,
                    ..found(so_far, prefix)
                });
            }
        }
    }
}

fn found(protocol: Detected, prefix: BytesMut) -> Detection {
    Detection {
        protocol,
        prefix,
        timed_out: false,
    }
}

/// Reads once, through a scratch buffer: a silent client holds no memory.
async fn read_some<T: AsyncRead + Unpin>(io: &mut T, into: &mut BytesMut) -> io::Result<usize> {
    std::future::poll_fn(|cx| {
        let mut scratch = Scratch::take();
        let mut buf = ReadBuf::new(&mut scratch);
        let result = Pin::new(&mut *io).poll_read(cx, &mut buf);
        let read = buf.filled().len();
        into.extend_from_slice(buf.filled());
        result.map_ok(|()| read)
    })
    .await
}

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is this, whatever follows.
    Is(Detected),
    /// It may still be several; more bytes are needed.
    Undecided,
    /// It is TLS, but the server name is yet to come.
    TlsWithoutName,
}

impl Verdict {
    fn if_nothing_more_comes(self) -> Detected {
        match self {
            Self::Is(protocol) => protocol,
            Self::Undecided => Detected::Opaque,
            Self::TlsWithoutName => Detected::Tls { server_name: None },
        }
    }
}

/// Judges a client by its first bytes. More bytes never change a verdict of [`Verdict::Is`].
pub(crate) fn classify(bytes: &[u8]) -> Verdict {
    match bytes.first() {
        None => Verdict::Undecided,
        Some(&tls_hello::HANDSHAKE_RECORD) => tls_hello::classify(bytes),
        Some(_) if HTTP2_PREFACE.starts_with(bytes) && bytes.len() < HTTP2_PREFACE.len() => {
            Verdict::Undecided
        }
        Some(_) if bytes.starts_with(HTTP2_PREFACE) => Verdict::Is(Detected::Http2),
        Some(_) => classify_http1(bytes),
    }
}

/// HTTP/1 is a method, a space, and the beginning of a target (RFC 9112, section 3), after at
/// most one empty line (section 2.2).
fn classify_http1(bytes: &[u8]) -> Verdict {
    let opaque = Verdict::Is(Detected::Opaque);
    let line = match bytes {
        [b'\r'] | [b'\r', b'\n'] => return Verdict::Undecided,
        [b'\r', b'\n', line @ ..] => line,
        line => line,
    };
    let method_bytes = line.iter().take_while(|b| is_token_byte(**b)).count();
    if method_bytes == 0 || method_bytes > MAX_METHOD_BYTES {
        return opaque;
    }
    let (method, rest) = line.split_at(method_bytes);
    match rest.split_first() {
        None => Verdict::Undecided,
        Some((b' ', target)) => classify_target(method, target),
        Some(_) => opaque,
    }
}

/// A target is a path, `*`, a URI with scheme http(s), or for CONNECT an authority. Line protocols
/// of words and arguments (Redis inline, memcached, SMTP) have none of these after a first word.
fn classify_target(method: &[u8], target: &[u8]) -> Verdict {
    let is = |yes: bool| {
        Verdict::Is(if yes {
            Detected::Http1
        } else {
            Detected::Opaque
        })
    };
    let Some(first) = target.first() else {
        return Verdict::Undecided;
    };
    if method.eq_ignore_ascii_case(b"CONNECT") {
        return is(first.is_ascii_alphanumeric() || *first == b'[');
    }
    match first {
        b'/' => is(true),
        b'*' => match target.get(1) {
            None => Verdict::Undecided,
            Some(next) => is(*next == b' '),
        },
        _ => {
            let begins = |scheme: &[u8]| {
                let n = scheme.len().min(target.len());
                let (scheme_start, target_start) = (scheme.get(..n), target.get(..n));
                scheme_start
                    .zip(target_start)
                    .is_some_and(|(s, t)| s.eq_ignore_ascii_case(t))
            };
            match [b"http://".as_slice(), b"https://".as_slice()]
                .into_iter()
                .find(|scheme| begins(scheme))
            {
                None => is(false),
                Some(scheme) if target.len() >= scheme.len() => is(true),
                Some(_) => Verdict::Undecided,
            }
        }
    }
}

/// `tchar` of RFC 9110, section 5.6.2.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
