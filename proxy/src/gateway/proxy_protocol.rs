//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): what a load balancer in front says of the
//! connection that it accepted.
//!
//! It is read from peers alone that are configured as such load balancers, and from those it must come: a peer whose
//! header could be left out could be impersonated by its own clients.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of version 1, its end included (section 2.1).
const MAX_V1_BYTES: usize = 107;

/// Bytes of version 2 before what its length counts.
const V2_FIXED_BYTES: usize = 16;

/// Longest header of version 2 that is read: addresses and extensions, certificates' names among them.
const MAX_V2_BYTES: usize = V2_FIXED_BYTES + 2048;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The connection was made by `source` to `destination`.
    Proxied {
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// The load balancer made it for itself, to check health; or it does not know.
    Own,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it begins with neither version's signature")]
    Signature,
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    #[error("its line is not as version 1 has it")]
    Line,
    #[error("its version or command is none that there is")]
    Version,
    #[error("it is of a protocol other than TCP")]
    Protocol,
    #[error("its length and its content do not agree")]
    Length,
}

/// Why no header was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the PROXY header is not valid")]
    Header(#[from] HeaderError),
    #[error("no PROXY header came within {0:?}")]
    Timeout(Duration),
    #[error("the connection ended within the PROXY header")]
    Ended,
    #[error("the connection failed within the PROXY header")]
    Io(#[from] io::Error),
}

/// Reads a header from the beginning of a connection, and gives it with what was read beyond it.
///
/// # Errors
/// [`ReadError`]: then the connection is to be closed with no answer, as the specification demands.
pub(crate) async fn read<T: AsyncRead + Unpin>(
    io: &mut T,
    timeout: Duration,
) -> Result<(Said, BytesMut), ReadError> {
    tokio::time::timeout(timeout, read_header(io))
        .await
        .map_err(|_| ReadError::Timeout(timeout))?
}

async fn read_header<T: AsyncRead + Unpin>(io: &mut T) -> Result<(Said, BytesMut), ReadError> {
    let mut bytes = BytesMut::new();
    loop {
        if let Some((said, length)) = parse(&bytes)? {
            let rest = bytes.split_off(length);
            return Ok((said, rest));
        }
        let read = std::future::poll_fn(|cx| {
            // Small, since the header is and what follows is read elsewhere.
            let mut room = [0; 536];
            let mut buffer = ReadBuf::new(&mut room);
            let result = Pin::new(&mut *io).poll_read(cx, &mut buffer);
            let read = buffer.filled().len();
            bytes.extend_from_slice(buffer.filled());
            result.map_ok(|()| read)
        })
        .await?;
        if read == 0 {
            return Err(ReadError::Ended);
        }
    }
}

/// Reads the header that `bytes` begin with: what it says and how long it is, or none while it is not whole. Bytes
/// that follow never change the answer.
///
/// # Errors
/// As soon as no further byte could make it a header.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Said, usize)>, HeaderError> {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted);
    if begins(b"PROXY ") {
        parse_v1(bytes)
    } else if begins(SIGNATURE) {
        parse_v2(bytes)
    } else {
        Err(HeaderError::Signature)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Said, usize)>, HeaderError> {
    let window = bytes.get(..MAX_V1_BYTES).unwrap_or(bytes);
    let end = window.iter().position(|byte| *byte == b'\r');
    // All before the end is printable ASCII: a wrong byte is refused as soon as it is there.
    let line = window.get(..end.unwrap_or(window.len())).unwrap_or(window);
    if line.iter().any(|byte| !(b' '..=b'~').contains(byte)) {
        return Err(HeaderError::Line);
    }
    let Some(end) = end else {
        return match bytes.len() >= MAX_V1_BYTES {
            true => Err(HeaderError::TooLong(MAX_V1_BYTES)),
            false => Ok(None),
        };
    };
    match window.get(end + 1) {
        None if end + 1 >= MAX_V1_BYTES => return Err(HeaderError::TooLong(MAX_V1_BYTES)),
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(HeaderError::Line),
    }
    let line = window
        .get(..end)
        .and_then(|line| std::str::from_utf8(line).ok());
    let said = line.and_then(line_v1).ok_or(HeaderError::Line)?;
    Ok(Some((said, end + 2)))
}

fn line_v1(line: &str) -> Option<Said> {
    let rest = line.strip_prefix("PROXY ")?;
    // What follows UNKNOWN is to be ignored.
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return rest
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte))
            .then_some(Said::Own);
    }
    let mut words = rest.split(' ');
    let family = words.next()?;
    let mut address = || -> Option<IpAddr> {
        let text = words.next()?;
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (source, destination) = (address()?, address()?);
    let mut port = || -> Option<u16> {
        let text = words.next()?;
        let canonical = text == "0" || !text.starts_with(['0', '+']);
        text.parse().ok().filter(|_| canonical)
    };
    let (source_port, destination_port) = (port()?, port()?);
    words.next().is_none().then_some(Said::Proxied {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Said, usize)>, HeaderError> {
    // A wrong byte is refused as soon as it is there.
    let own = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(HeaderError::Version),
    };
    let Some(family) = bytes.get(13).copied() else {
        return Ok(None);
    };
    // A UNIX socket's address or a datagram's says nothing of a client that a server could use.
    let own = own || matches!(family, 0x12 | 0x22 | 0x31 | 0x32);
    if !own && !matches!(family, 0x00 | 0x11 | 0x21) {
        return Err(HeaderError::Protocol);
    }
    let Some([high, low]) = bytes.get(14..16) else {
        return Ok(None);
    };
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_V2_BYTES {
        return Err(HeaderError::TooLong(MAX_V2_BYTES));
    }
    let addresses = match family {
        0x11 => 12,
        0x21 => 36,
        _ => 0,
    };
    if !own && length < V2_FIXED_BYTES + addresses {
        return Err(HeaderError::Length);
    }
    let Some(content) = bytes.get(V2_FIXED_BYTES..length) else {
        return Ok(None);
    };
    if own || family == 0 {
        return Ok(Some((Said::Own, length)));
    }
    let (content, extensions) = content
        .split_at_checked(addresses)
        .ok_or(HeaderError::Length)?;
    let said = match family {
        0x11 => proxied::<4, Ipv4Addr>(content),
        _ => proxied::<16, Ipv6Addr>(content),
    };
    check_extensions(extensions)?;
    Ok(Some((said.ok_or(HeaderError::Length)?, length)))
}

/// Source and destination address, then their ports.
fn proxied<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(content: &[u8]) -> Option<Said> {
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        let bytes: [u8; N] = bytes.try_into().ok()?;
        Some(A::from(bytes).into())
    };
    let (source, rest) = content.split_at_checked(N)?;
    let (destination, ports) = rest.split_at_checked(N)?;
    let [s1, s2, d1, d2]: [u8; 4] = ports.try_into().ok()?;
    Some(Said::Proxied {
        source: SocketAddr::new(address(source)?, u16::from_be_bytes([s1, s2])),
        destination: SocketAddr::new(address(destination)?, u16::from_be_bytes([d1, d2])),
    })
}

/// Each is a type, a length of two bytes, and so many bytes. None of them is used here.
fn check_extensions(mut rest: &[u8]) -> Result<(), HeaderError> {
    while let [_, after @ ..] = rest {
        let [high, low, value @ ..] = after else {
            return Err(HeaderError::Length);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        rest = value.get(length..).ok_or(HeaderError::Length)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
