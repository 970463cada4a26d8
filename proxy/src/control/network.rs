//! How bytes reach a control plane: TCP, or in tests memory, so that simulated time never runs ahead of a kernel.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::error::ControlError;
use crate::capture::{self, Peer};
use crate::config::ControlPlaneAddress;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection in both directions.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects to control planes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    #[cfg(test)]
    memory: Option<Memory>,
}

impl Network {
    /// A connection, and the address that this machine has on it.
    pub(super) async fn connect(
        &self,
        address: &ControlPlaneAddress,
    ) -> Result<(Box<dyn Io>, IpAddr), ControlError> {
        #[cfg(test)]
        if let Some(memory) = &self.memory {
            return memory.connect(address);
        }
        let stream = connect_tcp(address).await?;
        let local = stream.local_addr().map_err(connect_error(address))?;
        Ok((Box::new(stream), local.ip()))
    }
}

/// Tries each address that the host resolves to.
async fn connect_tcp(address: &ControlPlaneAddress) -> Result<TcpStream, ControlError> {
    let lookup = tokio::net::lookup_host((address.host.as_str(), address.port));
    let resolved = match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(resolved) => resolved,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let resolved: Vec<SocketAddr> = resolved
        .map_err(|source| ControlError::Resolve {
            host: address.host.clone(),
            source,
        })?
        .collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for socket_address in resolved {
        match capture::connect(socket_address, CONNECT_TIMEOUT, None, Peer::Any).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(connect_error(address)(last))
}

fn connect_error(address: &ControlPlaneAddress) -> impl Fn(io::Error) -> ControlError {
    move |source| ControlError::Connect {
        address: address.to_string(),
        source,
    }
}

#[cfg(test)]
pub(crate) use memory::Memory;

#[cfg(test)]
mod memory {
    use std::collections::HashMap;
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;

    use super::*;

    type Listener = mpsc::UnboundedSender<Box<dyn Io>>;

    /// Control planes in this process, by their address.
    #[derive(Clone, Default)]
    pub(crate) struct Memory(Arc<Mutex<HashMap<String, Listener>>>);

    impl Memory {
        pub(crate) fn network(&self) -> Network {
            Network {
                memory: Some(self.clone()),
            }
        }

        /// Connections to an address from now on. Dropping the receiver closes the port.
        #[expect(clippy::disallowed_methods, reason = "bounded by what the test sends")]
        pub(crate) fn listen(&self, url: &str) -> mpsc::UnboundedReceiver<Box<dyn Io>> {
            let (listener, connections) = mpsc::unbounded_channel();
            self.0.lock().unwrap().insert(url.to_owned(), listener);
            connections
        }

        pub(super) fn connect(
            &self,
            address: &ControlPlaneAddress,
        ) -> Result<(Box<dyn Io>, IpAddr), ControlError> {
            let (near, far) = tokio::io::duplex(64 << 10);
            let listeners = self.0.lock().unwrap();
            let listener = listeners.get(&address.to_string());
            match listener.map(|listener| listener.send(Box::new(far))) {
                Some(Ok(())) => Ok((Box::new(near), "127.0.0.1".parse().unwrap())),
                _ => Err(connect_error(address)(
                    io::ErrorKind::ConnectionRefused.into(),
                )),
            }
        }
    }

    impl fmt::Debug for Memory {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Memory")
        }
    }
}
