//! One TLS connection for each connection, and bytes both ways.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Route, client_config, inbound_name, server_config};
use crate::Result;

/// A TLS record's worth.
const BUFFER_BYTES: usize = 16 * 1024;

pub(super) async fn outbound(route: Route, directory: PathBuf) {
    let served = async {
        let connector = TlsConnector::from(Arc::new(client_config(&directory, "outbound", None)?));
        let listener = TcpListener::bind(route.listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            let connector = connector.clone();
            tokio::task::spawn_local(async move {
                client.set_nodelay(true)?;
                let server = TcpStream::connect(route.target).await?;
                server.set_nodelay(true)?;
                splice(client, connector.connect(inbound_name()?, server).await?).await
            });
        }
    };
    report(served.await);
}

pub(super) async fn inbound(route: Route, directory: PathBuf) {
    let served = async {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&directory, None)?));
        let listener = TcpListener::bind(route.listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                client.set_nodelay(true)?;
                let client = acceptor.accept(client).await?;
                let server = TcpStream::connect(route.target).await?;
                server.set_nodelay(true)?;
                splice(client, server).await
            });
        }
    };
    report(served.await);
}

async fn splice(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<()> {
    copy_bidirectional_with_sizes(&mut one, &mut other, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

pub(super) fn report(ended: Result<()>) {
    if let Err(error) = ended {
        eprintln!("floor: {error}");
    }
}
