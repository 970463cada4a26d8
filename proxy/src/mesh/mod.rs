//! The wire between proxies: TLS 1.3 with both identities, HTTP/2 on it, many streams on few
//! connections.
//!
//! Bytes pass from `h2` through [`gather`] (many frames, one write) to TLS to [`read_ahead`] (one
//! read, many records) to the socket. One task drives each connection ([`client`], [`server`]);
//! streams are used by whoever opened them. [`pool`] holds the client side's connections, [`tunnel`]
//! carries TCP in CONNECT streams (HBONE).

mod buffers;
mod census;
mod client;
mod error;
mod gate;
mod gather;
mod keepalive;
mod pool;
mod read_ahead;
mod server;
mod slots;
mod socket;
mod tunnel;
mod vouching;

pub(crate) use self::buffers::{Scratch, give_growable, take_growable};
pub(crate) use self::census::{Census, Proofs};
pub(crate) use self::client::StreamLease;
pub(crate) use self::error::{AcceptError, ConnectError, DriverError, TunnelError};
pub(crate) use self::gate::HandshakeGate;
pub(crate) use self::keepalive::KeepaliveSettings;
pub(crate) use self::pool::{MeshPool, PoolEvents, PoolSettings};
pub(crate) use self::server::{MeshServerConnection, ServerSettings, accept};
pub(crate) use self::tunnel::TunnelStream;

/// What the two proxies agreed to speak (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    /// `sidewind/1`: HTTP/2 with CONNECT tunnels and ordinary requests.
    Sidewind,
    /// `h2`: HBONE, where everything is a CONNECT tunnel.
    Hbone,
}

impl Wire {
    /// What ALPN named, if it is ours.
    fn from_alpn(protocol: Option<&[u8]>) -> Option<Self> {
        match protocol {
            Some(b"sidewind/1") => Some(Self::Sidewind),
            Some(b"h2") => Some(Self::Hbone),
            _ => None,
        }
    }
}

/// Bytes that a peer may send on one stream before we have passed them on. Small, so that a
/// stalled reader holds little memory.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// The connection's window: the largest there is, so that it never binds and stalled streams hold
/// up no other (RFC 9113, section 6.9.1).
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Most payload in one frame.
const MAX_FRAME_BYTES: u32 = 16 * 1024;

/// Most bytes of headers that a peer may send, after decompression.
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;

/// Bytes that one stream may have waiting for the connection before its writer waits.
const MAX_SEND_BUFFER_BYTES: usize = 128 * 1024;

/// Streams that a peer may reset before we accepted them.
const MAX_RESET_STREAMS: usize = 100;

/// Errors of a peer in streams that a connection survives.
const MAX_STREAM_ERRORS: usize = 1024;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
