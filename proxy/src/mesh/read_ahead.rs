//! One read for many TLS records.
//!
//! `rustls` asks its transport for 4 KiB at a time; on a busy connection that is many system calls
//! for one turn's worth of records. [`ReadAhead`] reads what is there, up to a scratch buffer, and
//! deals it out. The buffer goes back to the worker as soon as it is empty.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffers::Scratch;

/// A transport that is read in large pieces; writes pass through.
#[derive(Debug)]
pub(crate) struct ReadAhead<T> {
    io: T,
    /// Bytes read and not yet dealt out: `buffer[start..end]`.
    buffer: Option<Scratch>,
    start: usize,
    end: usize,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            buffer: None,
            start: 0,
            end: 0,
        }
    }
}

impl<T: AsyncRead + Unpin> ReadAhead<T> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffer = Scratch::take();
        let mut into = ReadBuf::new(&mut buffer);
        let result = Pin::new(&mut self.io).poll_read(cx, &mut into);
        let filled = into.filled().len();
        if filled > 0 {
            self.buffer = Some(buffer);
            self.start = 0;
            self.end = filled;
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffer.is_none() {
            ready!(this.poll_fill(cx))?;
        }
        let Some(ahead) = this
            .buffer
            .as_deref()
            .and_then(|b| b.get(this.start..this.end))
        else {
            return Poll::Ready(Ok(()));
        };
        let dealt = ahead.len().min(buf.remaining());
        buf.put_slice(ahead.get(..dealt).unwrap_or_default());
        this.start += dealt;
        if this.start == this.end {
            this.buffer = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
