//! Lets clients in that gRPC's C library makes: Python's, Ruby's, C++'s.
//!
//! For a Unix socket that library (seen in 1.85) sends the socket's path as `:authority`, percent-encoded:
//! `run%2Fsidewind%2Fworkload.sock`. That is a valid reg-name by RFC 3986 section 3.2.2, and the `http` crate takes no
//! `%` there, so the `h2` crate resets the stream. The name is of no use to anybody: on the way in each `%` of a
//! `:authority` becomes `-`. Lengths stay as they are, and so does what both sides know of each other's header tables
//! (RFC 7541 section 4.1). Values in Huffman code are left alone, since that library writes none.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE_BYTES: u32 = 24;

const FRAME_HEADER_BYTES: u8 = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: u32 = 5;

const AUTHORITY: &[u8] = b":authority";
/// Of `:authority` in the static table (RFC 7541 appendix A).
const AUTHORITY_INDEX: u32 = 1;

/// A connection whose `:authority` fields the `http` crate takes.
#[derive(Debug)]
pub(super) struct WithAuthority<T> {
    io: T,
    scanner: Scanner,
}

impl<T> WithAuthority<T> {
    pub(super) fn new(io: T) -> Self {
        Self {
            io,
            scanner: Scanner::default(),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WithAuthority<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let read = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        self.scanner.scan(read);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WithAuthority<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Follows the frames of a client, byte by byte, however they arrive.
#[derive(Debug)]
struct Scanner {
    frame: Frame,
    block: Block,
}

/// Where in a frame the next byte is.
#[derive(Debug)]
enum Frame {
    /// So many bytes are of no interest, and a frame follows.
    Skip(u32),
    Header {
        seen: u8,
        length: u32,
        kind: u8,
        flags: u8,
    },
    /// The length of the padding, before a block with so much before and in it.
    PadLength { left: u32, flags: u8 },
    /// The priority, before a block.
    Priority { left: u8, block: u32, padding: u32 },
    /// Header fields, before padding.
    Block { left: u32, padding: u32 },
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            frame: Frame::Skip(PREFACE_BYTES),
            block: Block::Field,
        }
    }
}

impl Scanner {
    fn scan(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            // Most bytes are of no interest, and passed over at once.
            if let Frame::Skip(left) = &mut self.frame {
                let skipped = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= u32::try_from(skipped).unwrap_or(*left);
                if *left == 0 {
                    self.frame = Frame::next();
                }
                bytes = bytes.get_mut(skipped..).unwrap_or_default();
                continue;
            }
            let Some((byte, rest)) = bytes.split_first_mut() else {
                return;
            };
            self.step(byte);
            bytes = rest;
        }
    }

    fn step(&mut self, byte: &mut u8) {
        match &mut self.frame {
            Frame::Skip(_) => {}
            Frame::Header {
                seen,
                length,
                kind,
                flags,
            } => {
                match seen {
                    0..=2 => *length = (*length << 8) | u32::from(*byte),
                    3 => *kind = *byte,
                    4 => *flags = *byte,
                    _ => {}
                }
                *seen += 1;
                if *seen == FRAME_HEADER_BYTES {
                    let (length, kind, flags) = (*length, *kind, *flags);
                    self.frame = self.begin(length, kind, flags);
                }
            }
            Frame::PadLength { left, flags } => {
                let (left, flags) = (left.saturating_sub(1), *flags);
                self.frame = Frame::headers(left, flags, u32::from(*byte));
            }
            Frame::Priority {
                left,
                block,
                padding,
            } => {
                *left -= 1;
                if *left == 0 {
                    self.frame = Frame::block(*block, *padding);
                }
            }
            Frame::Block { left, padding } => {
                *left -= 1;
                self.block.step(byte);
                if *left == 0 {
                    self.frame = Frame::skip(*padding);
                }
            }
        }
    }

    fn begin(&mut self, length: u32, kind: u8, flags: u8) -> Frame {
        match kind {
            HEADERS => {
                self.block = Block::Field;
                if flags & PADDED != 0 && length > 0 {
                    return Frame::PadLength {
                        left: length,
                        flags,
                    };
                }
                Frame::headers(length, flags, 0)
            }
            CONTINUATION => Frame::block(length, 0),
            _ => Frame::skip(length),
        }
    }
}

impl Frame {
    const fn next() -> Self {
        Self::Header {
            seen: 0,
            length: 0,
            kind: 0,
            flags: 0,
        }
    }

    fn skip(bytes: u32) -> Self {
        if bytes == 0 {
            Self::next()
        } else {
            Self::Skip(bytes)
        }
    }

    /// What follows the padding's length. Lengths that cannot be are for the `h2` crate to refuse.
    fn headers(left: u32, flags: u8, padding: u32) -> Self {
        let padding = padding.min(left);
        let left = left - padding;
        if flags & PRIORITY == 0 {
            return Self::block(left, padding);
        }
        match left.checked_sub(PRIORITY_BYTES) {
            Some(block) => Self::Priority {
                left: PRIORITY_BYTES as u8,
                block,
                padding,
            },
            None => Self::skip(left + padding),
        }
    }

    fn block(left: u32, padding: u32) -> Self {
        if left == 0 {
            Self::skip(padding)
        } else {
            Self::Block { left, padding }
        }
    }
}

/// Where in a header block the next byte is (RFC 7541 section 6).
#[derive(Debug)]
enum Block {
    /// A field's first byte.
    Field,
    /// The rest of a number.
    Number { value: u32, shift: u8, then: Then },
    /// The first byte of a name's length.
    NameLength,
    /// A name, and whether it has been `:authority` so far.
    Name { left: u32, seen: usize, same: bool },
    /// The first byte of a value's length.
    ValueLength { authority: bool },
    /// A value.
    Value { left: u32, rewritten: bool },
    /// Not to be followed any further; the `h2` crate refuses it.
    Lost,
}

/// What a number is.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// An indexed field, or a table size.
    Nothing,
    /// A name's index, 0 for a name that follows.
    NameIndex,
    /// A name's length, and whether it is in Huffman code.
    NameLength {
        huffman: bool,
    },
    ValueLength {
        rewritten: bool,
    },
}

impl Block {
    fn step(&mut self, byte: &mut u8) {
        *self = match self {
            Self::Field => match *byte {
                first if first & 0x80 != 0 => Self::number(first, 7, Then::Nothing),
                first if first & 0x40 != 0 => Self::number(first, 6, Then::NameIndex),
                first if first & 0x20 != 0 => Self::number(first, 5, Then::Nothing),
                first => Self::number(first, 4, Then::NameIndex),
            },
            Self::Number { value, shift, then } => {
                let part = u32::from(*byte & 0x7f).checked_shl(u32::from(*shift));
                match part.and_then(|part| value.checked_add(part)) {
                    Some(value) if *byte & 0x80 == 0 => Self::after(value, *then),
                    Some(value) if *shift < 21 => Self::Number {
                        value,
                        shift: *shift + 7,
                        then: *then,
                    },
                    _ => Self::Lost,
                }
            }
            Self::NameLength => {
                let huffman = *byte & 0x80 != 0;
                Self::number(*byte, 7, Then::NameLength { huffman })
            }
            Self::Name { left, seen, same } => {
                let same = *same && AUTHORITY.get(*seen) == Some(byte);
                match *left - 1 {
                    0 => Self::ValueLength {
                        authority: same && *seen + 1 == AUTHORITY.len(),
                    },
                    left => Self::Name {
                        left,
                        seen: *seen + 1,
                        same,
                    },
                }
            }
            Self::ValueLength { authority } => {
                let rewritten = *authority && *byte & 0x80 == 0;
                Self::number(*byte, 7, Then::ValueLength { rewritten })
            }
            Self::Value { left, rewritten } => {
                if *rewritten && *byte == b'%' {
                    *byte = b'-';
                }
                Self::value(*left - 1, *rewritten)
            }
            Self::Lost => Self::Lost,
        };
    }

    /// A number that begins in the low bits of a byte (RFC 7541 section 5.1).
    fn number(byte: u8, bits: u8, then: Then) -> Self {
        let most = (1_u8 << bits) - 1;
        match byte & most {
            value if value == most => Self::Number {
                value: u32::from(most),
                shift: 0,
                then,
            },
            value => Self::after(u32::from(value), then),
        }
    }

    fn after(value: u32, then: Then) -> Self {
        match then {
            Then::Nothing => Self::Field,
            Then::NameIndex if value == 0 => Self::NameLength,
            Then::NameIndex => Self::ValueLength {
                authority: value == AUTHORITY_INDEX,
            },
            Then::NameLength { .. } if value == 0 => Self::ValueLength { authority: false },
            Then::NameLength { huffman } => Self::Name {
                left: value,
                seen: 0,
                same: !huffman,
            },
            Then::ValueLength { rewritten } => Self::value(value, rewritten),
        }
    }

    fn value(left: u32, rewritten: bool) -> Self {
        if left == 0 {
            Self::Field
        } else {
            Self::Value { left, rewritten }
        }
    }
}

#[cfg(test)]
mod tests;
