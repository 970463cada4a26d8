//! What clients call, and the ports by which each proxy tells one service from another.

use std::net::{Ipv4Addr, SocketAddr};

use crate::lab::SERVER_ADDRESS;

/// A server that stands behind the inbound proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// nginx: 1 KiB at `/`, 100 MiB at `/large`.
    Http,
    /// nginx in HTTP/2 without TLS: 1 KiB at `/`.
    Http2,
    /// A unary gRPC method of our own.
    Grpc,
    Redis,
    /// Bytes: see [`crate::clients::server`].
    Bytes,
}

impl Service {
    pub(crate) const ALL: [Self; 5] = [
        Self::Http,
        Self::Http2,
        Self::Grpc,
        Self::Redis,
        Self::Bytes,
    ];

    /// Where the server listens, and what clients dial.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Http => 8080,
            Self::Http2 => 8081,
            Self::Grpc => 8082,
            Self::Redis => 6379,
            Self::Bytes => 9000,
        }
    }

    /// `ip:port` of the server.
    pub(crate) fn address(self) -> String {
        format!("{SERVER_ADDRESS}:{}", self.port())
    }

    /// Where an outbound proxy that does not ask for a connection's destination takes those for this service.
    pub(crate) fn outbound_port(self) -> u16 {
        15001 + self.offset()
    }

    /// The same of an inbound proxy, which takes them by TLS.
    pub(crate) fn mesh_port(self) -> u16 {
        15008 + self.offset()
    }

    fn offset(self) -> u16 {
        match self {
            Self::Http => 0,
            Self::Http2 => 100,
            Self::Grpc => 200,
            Self::Redis => 300,
            Self::Bytes => 400,
        }
    }

    /// `127.0.0.1:PORT` of an outbound proxy.
    pub(crate) fn outbound_listen(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.outbound_port()).into()
    }

    /// `ip:port` of an inbound proxy.
    pub(crate) fn mesh_address(self) -> String {
        format!("{SERVER_ADDRESS}:{}", self.mesh_port())
    }

    /// Bytes that no proxy looks into.
    pub(crate) fn is_opaque(self) -> bool {
        matches!(self, Self::Redis | Self::Bytes)
    }

    /// HTTP/2 from the client and to the server.
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}
