//! A connection within the process, for what wants one: hyper, where the bytes go through a tunnel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::Connection;

/// One end of a pipe. Unlike tokio's it can break: the other end then reads what was written before, and an error.
#[derive(Debug)]
pub(crate) struct PipeEnd {
    io: DuplexStream,
    /// Whether one of the ends has been closed by a reset.
    broken: Arc<AtomicBool>,
}

/// Both ends of a pipe that holds so many bytes each way.
pub(crate) fn pipe(bytes: usize) -> (PipeEnd, PipeEnd) {
    let (near, far) = tokio::io::duplex(bytes);
    let broken = Arc::new(AtomicBool::new(false));
    let end = |io| PipeEnd {
        io,
        broken: Arc::clone(&broken),
    };
    (end(near), end(far))
}

impl Connection for PipeEnd {
    fn close_by_reset(&self) {
        self.broken.store(true, Relaxed);
    }
}

impl AsyncRead for PipeEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        if ended && self.broken.load(Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_end_that_is_dropped_ends_the_other_and_one_that_is_reset_breaks_it() {
        for broken in [false, true] {
            let (mut near, mut far) = pipe(64);
            near.write_all(b"last words").await.unwrap();
            if broken {
                near.close_by_reset();
            }
            drop(near);
            let mut read = Vec::new();
            let result = far.read_to_end(&mut read).await;
            assert_eq!(read, b"last words");
            let kind = result.err().map(|error| error.kind());
            assert_eq!(kind, broken.then_some(io::ErrorKind::ConnectionReset));
        }
    }
}
