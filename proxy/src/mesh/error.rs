//! What can go wrong between two proxies, and whether the request was sent when it did.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use sidewind_identity::SpiffeId;

/// Why no mesh connection to an endpoint could be made. Nothing of a request was sent.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The pool holds as many connections as it may and all are in use.
    #[error("all {limit} mesh connections are in use, none is left for {endpoint}")]
    PoolFull { endpoint: SocketAddr, limit: usize },
    /// TCP did not connect.
    #[error("could not connect to {endpoint}")]
    Tcp {
        endpoint: SocketAddr,
        source: Arc<io::Error>,
    },
    /// TCP did not connect in time.
    #[error("{endpoint} did not accept a connection within {after:?}")]
    ConnectTimeout {
        endpoint: SocketAddr,
        after: Duration,
    },
    /// The TLS handshake failed; the source says whether the peer refused us or we the peer.
    #[error("TLS handshake with {endpoint} failed")]
    Handshake {
        endpoint: SocketAddr,
        source: Arc<io::Error>,
    },
    /// TLS handshake and HTTP/2 settings did not end in time.
    #[error("{endpoint} did not complete the handshake within {after:?}")]
    HandshakeTimeout {
        endpoint: SocketAddr,
        after: Duration,
    },
    /// The peer speaks no protocol of ours.
    #[error("{endpoint} picked none of our protocols (ALPN sidewind/1, h2)")]
    Alpn { endpoint: SocketAddr },
    /// The peer's certificate carries no usable SPIFFE identity.
    #[error("{endpoint} has no usable identity: {reason}")]
    NoIdentity {
        endpoint: SocketAddr,
        reason: Arc<str>,
    },
    /// The peer is another than discovery said.
    #[error("{endpoint} is {got}, not {expected}")]
    WrongIdentity {
        endpoint: SocketAddr,
        expected: SpiffeId,
        got: SpiffeId,
    },
    /// The peer is banned.
    #[error("{peer} at {endpoint} is banned")]
    Banned {
        endpoint: SocketAddr,
        peer: SpiffeId,
    },
    /// HTTP/2 did not come up.
    #[error("HTTP/2 with {endpoint} failed")]
    Http2 {
        endpoint: SocketAddr,
        source: Arc<h2::Error>,
    },
    /// The worker is shutting down.
    #[error("the attempt to connect to {endpoint} was given up")]
    GivenUp { endpoint: SocketAddr },
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// There is no connection to open it on.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The authority cannot be written in a request.
    #[error("{authority} is no authority")]
    BadAuthority { authority: SocketAddr },
    /// The CONNECT surely did not reach the peer's handler; another connection may be tried.
    #[error("the mesh connection closed before the CONNECT for {authority} was sent")]
    NotSent {
        authority: SocketAddr,
        source: Arc<h2::Error>,
    },
    /// The stream ended without an answer.
    #[error("the CONNECT for {authority} was not answered")]
    Stream {
        authority: SocketAddr,
        source: Arc<h2::Error>,
    },
    /// No answer came in time.
    #[error("the CONNECT for {authority} was not answered within {after:?}")]
    Timeout {
        authority: SocketAddr,
        after: Duration,
    },
    /// The peer answered with something other than 200.
    #[error("the CONNECT for {authority} was refused with {status}{}", code.as_deref().map(|c| format!(" ({c})")).unwrap_or_default())]
    Refused {
        authority: SocketAddr,
        status: StatusCode,
        /// The peer's `sidewind-error` header.
        code: Option<String>,
        /// The peer's explanation, cut to one line of bounded length.
        message: Option<String>,
    },
}

/// Whether the peer surely did not process the stream that ended in this error, so that the
/// request may be sent again whatever its method (RFC 9113, sections 6.8 and 8.7).
///
/// Holds for a stream above the last one named in a GOAWAY and for REFUSED_STREAM.
pub(crate) fn is_surely_unprocessed(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away()
            || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
}

/// Why an established connection ended other than by agreement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The peer, or what came from it, ended the connection.
    #[error("HTTP/2 connection ended")]
    Http2(#[source] h2::Error),
    /// Writing failed.
    #[error("could not write to the peer")]
    Io(#[source] io::Error),
    /// The peer answered no PING.
    #[error("the peer stopped answering")]
    PeerGone,
    /// The peer was banned.
    #[error("the peer is banned")]
    Banned,
    /// Nobody who is believed vouches for the peer any more.
    #[error("nobody who is believed vouches for the peer any more")]
    Distrusted,
    /// The peer's certificate has ended, and it has not come with another.
    #[error("the peer's certificate has ended")]
    CertificateEnded,
}

/// Why an inbound connection did not become a mesh connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    /// Too many handshakes are under way, in all or from that address.
    #[error("too many TLS handshakes are under way")]
    TooManyHandshakes,
    /// The handshake did not end in time.
    #[error("the handshake was not complete within {after:?}")]
    HandshakeTimeout { after: Duration },
    /// The TLS handshake failed, on this side or the other.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The client offered no protocol of ours.
    #[error("the client offered none of our protocols (ALPN sidewind/1, h2)")]
    Alpn,
    /// The client's certificate carries no usable SPIFFE identity.
    #[error("the client has no usable identity: {0}")]
    NoIdentity(String),
    /// The client is banned.
    #[error("{0} is banned")]
    Banned(SpiffeId),
    /// HTTP/2 did not come up.
    #[error("HTTP/2 failed")]
    Http2(#[source] h2::Error),
}

impl AcceptError {
    /// The cause as a metric label value.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::TooManyHandshakes => "too-many-handshakes",
            Self::HandshakeTimeout { .. } => "timeout",
            Self::Handshake(_) => "tls",
            Self::Alpn => "alpn",
            Self::NoIdentity(_) => "identity",
            Self::Banned(_) => "banned",
            Self::Http2(_) => "http2",
        }
    }
}
