//! One verified connection to a control plane, and gRPC on it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use sidewind_identity::{SpiffeId, TrustDomain, peer_identity, tls};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::error::ControlError;
use super::network::{Io, Network};
use crate::config::ControlPlaneAddress;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// ALPN of every connection to the control plane.
pub(super) const ALPN: &[&[u8]] = &[b"h2"];

/// A gRPC channel on exactly one connection, whose server has proved who it is. Clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct Dialled {
    pub(super) channel: Channel,
    /// The address that this machine reaches the control plane from.
    pub(super) local: IpAddr,
}

/// Makes connections to servers that prove to be the control plane.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    expected: SpiffeId,
    network: Network,
}

impl Dialler {
    pub(super) fn new(trust_domain: &TrustDomain, network: Network) -> Result<Self, ControlError> {
        let expected = SpiffeId::from_parts(trust_domain, "/sidewind/control-plane");
        let expected = expected.map_err(|error| ControlError::Local {
            what: "name the control plane",
            problem: error.to_string(),
        })?;
        Ok(Self { expected, network })
    }

    /// Connects, and compares the server's SPIFFE ID before any byte of a request is sent.
    pub(super) async fn dial(
        &self,
        address: &ControlPlaneAddress,
        tls: &Arc<ClientConfig>,
    ) -> Result<Dialled, ControlError> {
        let (stream, local) = self.network.connect(address).await?;
        let stream = handshake(address, stream, tls).await?;
        verify(address, &self.expected, &stream)?;
        let channel = channel(address, stream).await?;
        Ok(Dialled { channel, local })
    }
}

async fn handshake(
    address: &ControlPlaneAddress,
    stream: Box<dyn Io>,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<Box<dyn Io>>, ControlError> {
    let connecting = TlsConnector::from(tls.clone()).connect(tls::server_name(), stream);
    tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| timed_out(address, HANDSHAKE_TIMEOUT))?
        .map_err(|source| ControlError::Tls {
            address: address.to_string(),
            source,
        })
}

fn verify(
    address: &ControlPlaneAddress,
    expected: &SpiffeId,
    stream: &TlsStream<Box<dyn Io>>,
) -> Result<(), ControlError> {
    let found = match peer_identity(stream.get_ref().1.peer_certificates()) {
        Ok(peer) if peer.id == *expected => return Ok(()),
        Ok(peer) => peer.id.to_string(),
        Err(error) => error.to_string(),
    };
    Err(ControlError::WrongPeer {
        address: address.to_string(),
        found,
        expected: expected.clone(),
    })
}

async fn channel(
    address: &ControlPlaneAddress,
    stream: TlsStream<Box<dyn Io>>,
) -> Result<Channel, ControlError> {
    let transport_error = |source| ControlError::Transport {
        address: address.to_string(),
        source,
    };
    let endpoint = Endpoint::from_shared(address.to_string())
        .map_err(transport_error)?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    // The channel gets this one connection, which has been verified; it can make no other.
    let mut verified = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = verified.take();
        async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(transport_error)
}

pub(super) fn timed_out(address: &ControlPlaneAddress, bound: Duration) -> ControlError {
    ControlError::TimedOut {
        address: address.to_string(),
        seconds: bound.as_secs(),
    }
}
