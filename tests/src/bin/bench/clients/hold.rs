//! Connections that are opened, have had one exchange, and then stay as they are.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::within;
use crate::Result;
use crate::lab::Lab;

/// Proxies give back buffers a moment after a connection falls idle; the figure is the settled one.
const SETTLE: Duration = Duration::from_secs(3);
/// How many are opened at once.
const CONCURRENCY: usize = 16;

/// What a client says on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One request, read to the end of its answer.
    Http,
    /// One byte, and the same one back.
    Bytes,
    /// A request for 100 MiB of which only the beginning is read.
    Stalled,
}

impl Kind {
    pub(super) async fn exchange(self, stream: &mut TcpStream) -> Result<()> {
        match self {
            Self::Bytes => {
                stream.write_all(b"E").await?;
                let mut byte = [0];
                stream.read_exact(&mut byte).await?;
                Ok(())
            }
            Self::Http => {
                request(stream, "/").await?;
                read_answer(stream).await
            }
            Self::Stalled => {
                request(stream, "/large").await?;
                let mut beginning = [0; 1024];
                stream.read_exact(&mut beginning).await?;
                if beginning.starts_with(b"HTTP/1.1 200 ") {
                    Ok(())
                } else {
                    let text = String::from_utf8_lossy(&beginning);
                    Err(format!("a large body was answered with: {text}").into())
                }
            }
        }
    }
}

async fn request(stream: &mut TcpStream, path: &str) -> Result<()> {
    let host = stream.peer_addr()?;
    let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    Ok(stream.write_all(text.as_bytes()).await?)
}

/// Open connections, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    _release: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<std::result::Result<(), String>>,
}

impl Held {
    /// Returns once each of `count` connections has had its exchange and the proxies have settled.
    pub(crate) async fn start(
        lab: &Lab,
        address: SocketAddr,
        kind: Kind,
        count: usize,
    ) -> Result<Self> {
        let (release, released) = oneshot::channel::<()>();
        let (opened, open) = oneshot::channel();
        let place = lab.client.place();
        let done = tokio::spawn(async move {
            within(&place, move || async move {
                let connections = open_all(address, kind, count).await;
                let (connections, told) = match connections {
                    Ok(connections) => (connections, Ok(())),
                    Err(error) => (Vec::new(), Err(error.to_string())),
                };
                let _ = opened.send(told);
                let _ = released.await;
                drop(connections);
                Ok(())
            })
            .await
            .map_err(|error| error.to_string())
        });
        open.await??;
        tokio::time::sleep(SETTLE).await;
        Ok(Self {
            _release: release,
            done,
        })
    }

    /// Closes them.
    pub(crate) async fn release(self) -> Result<()> {
        drop(self._release);
        Ok(self.done.await??)
    }
}

async fn open_all(address: SocketAddr, kind: Kind, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::with_capacity(count);
    while connections.len() < count {
        let batch = (0..CONCURRENCY.min(count - connections.len())).map(|_| async move {
            let mut stream = TcpStream::connect(address).await?;
            kind.exchange(&mut stream).await?;
            Result::Ok(stream)
        });
        connections.extend(futures_util::future::try_join_all(batch).await?);
    }
    Ok(connections)
}

/// Reads up to the end of the body, by its content-length.
async fn read_answer(stream: &mut TcpStream) -> Result<()> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Err("a connection was closed before its answer".into());
        }
        answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if is_whole(&answer)? {
            return Ok(());
        }
    }
}

/// Whether a whole answer is there, which must be a good one.
pub(super) fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(false);
    };
    let (head, body) = answer.split_at(end + 4);
    let head = String::from_utf8_lossy(head);
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("a request was answered with: {head}").into());
    }
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("an answer without content-length")?
        .1
        .trim()
        .parse()?;
    Ok(body.len() >= length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n").unwrap());
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab").unwrap());
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap());
        assert!(is_whole(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}
