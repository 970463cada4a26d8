//! One connection that carries a lot.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;
use crate::Result;
use crate::lab::Lab;

/// How much a client writes or reads at a time.
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// From the server.
    Down,
    /// To the server.
    Up,
}

/// Sends `bytes` one way, and returns when the last has arrived.
pub(crate) async fn stream(lab: &Lab, address: SocketAddr, way: Way, bytes: u64) -> Result<()> {
    within(&lab.client.place(), move || async move {
        let mut stream = TcpStream::connect(address).await?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut left = bytes;
        match way {
            Way::Down => {
                stream.write_all(b"D").await?;
                stream.write_u64(bytes).await?;
                while left > 0 {
                    let count = stream.read(&mut chunk).await?;
                    if count == 0 {
                        return Err("a stream ended early".into());
                    }
                    left = left.saturating_sub(count as u64);
                }
            }
            Way::Up => {
                stream.write_all(b"U").await?;
                stream.write_u64(bytes).await?;
                while left > 0 {
                    let count = chunk
                        .len()
                        .min(usize::try_from(left).unwrap_or(chunk.len()));
                    stream
                        .write_all(chunk.get(..count).unwrap_or_default())
                        .await?;
                    left -= count as u64;
                }
                stream.read_u8().await?;
            }
        }
        Ok(())
    })
    .await
}
