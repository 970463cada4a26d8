//! Servers of our own.
//!
//! The one for bytes does what the first byte says: `E` is sent back, and the connection kept; `D` and a length asks
//! for so many bytes; `U` and a length announces so many, which one byte acknowledges. The one for gRPC answers
//! every call with a message of 100 bytes.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::within;
use crate::Result;
use crate::lab::Namespace;

const CHUNK_BYTES: usize = 256 * 1024;

/// Serves both in `namespace` for as long as the process lives; returns once they listen.
pub(crate) async fn start(
    namespace: &Namespace,
    bytes: SocketAddr,
    grpc: SocketAddr,
) -> Result<()> {
    let (started, start) = tokio::sync::oneshot::channel();
    let place = namespace.place();
    tokio::spawn(async move {
        let served = within(&place, move || async move {
            let listening = listen(bytes).await;
            let calls = listen(grpc).await;
            let (bytes, grpc) = match (listening, calls) {
                (Ok(bytes), Ok(grpc)) => (bytes, grpc),
                (Err(error), _) | (_, Err(error)) => {
                    let _ = started.send(Err(error.to_string()));
                    return Ok(());
                }
            };
            let _ = started.send(Ok(()));
            tokio::task::spawn_local(serve_grpc(grpc));
            serve_bytes(bytes).await;
            Ok(())
        });
        if let Err(error) = served.await {
            eprintln!("bench: a server ended: {error}");
        }
    });
    Ok(start.await??)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(4096)?)
}

async fn serve_bytes(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        // A client that goes away is none of the server's business.
        tokio::task::spawn_local(async move { drop(answer(stream).await) });
    }
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut command = [0];
        if stream.read(&mut command).await? == 0 {
            return Ok(());
        }
        match &command {
            b"D" => {
                let mut left = stream.read_u64().await?;
                let chunk = vec![0; CHUNK_BYTES];
                while left > 0 {
                    let count = chunk
                        .len()
                        .min(usize::try_from(left).unwrap_or(chunk.len()));
                    stream
                        .write_all(chunk.get(..count).unwrap_or_default())
                        .await?;
                    left -= count as u64;
                }
            }
            b"U" => {
                let mut left = stream.read_u64().await?;
                let mut chunk = vec![0; CHUNK_BYTES];
                while left > 0 {
                    let count = stream.read(&mut chunk).await?;
                    if count == 0 {
                        return Ok(());
                    }
                    left = left.saturating_sub(count as u64);
                }
                stream.write_all(b"K").await?;
            }
            other => stream.write_all(other).await?,
        }
    }
}

async fn serve_grpc(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(async move { drop(calls(stream).await) });
    }
}

async fn calls(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, mut respond) = call?;
        tokio::task::spawn_local(async move {
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            drop(reply(&mut respond));
        });
    }
    Ok(())
}

fn reply(respond: &mut h2::server::SendResponse<Bytes>) -> Result<()> {
    // Five bytes of gRPC's own before each message: not compressed, 100 bytes.
    static MESSAGE: [u8; 105] = {
        let mut message = [b'x'; 105];
        (message[0], message[1], message[2], message[3], message[4]) = (0, 0, 0, 0, 100);
        message
    };
    let response = http::Response::builder()
        .header("content-type", "application/grpc")
        .body(())?;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(&MESSAGE), false)?;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}
