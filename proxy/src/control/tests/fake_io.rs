//! A connection to the fake control plane, with who is at its other end.

use std::pin::Pin;
use std::task::{Context, Poll};

use sidewind_identity::{PeerIdentity, peer_identity};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// A connection after its handshake.
pub(super) struct TlsIo {
    stream: TlsStream<DuplexStream>,
    caller: Caller,
}

/// Who is at the other end.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) peer: Option<PeerIdentity>,
    /// Counted from one.
    pub(super) connection: usize,
}

impl TlsIo {
    pub(super) fn new(stream: TlsStream<DuplexStream>, connection: usize) -> Self {
        let peer = peer_identity(stream.get_ref().1.peer_certificates()).ok();
        let caller = Caller { peer, connection };
        Self { stream, caller }
    }
}

impl Connected for TlsIo {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.caller.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
