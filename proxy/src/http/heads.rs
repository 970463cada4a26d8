//! Follows the requests in a client's bytes on their way to hyper, for what hyper takes without a word and two
//! servers could read differently.
//!
//! Of a request with both `content-length` and `transfer-encoding` hyper drops the length; it takes any coding before
//! `chunked`, and lines that end in LF alone. A server may refuse such requests (RFC 9112, sections 2.2, 6.1 and 6.3),
//! and a proxy had better: what came before it may have seen another request in the same bytes. Heads are parsed by the
//! parser that hyper uses, and bodies are counted by its rules, so that both see a head begin at the same byte. Heads
//! that hyper refuses are left to it.

use std::mem::MaybeUninit;

use super::MAX_HEADERS;
use super::headers::BadRequest;

/// Where in a client's requests the bytes are.
#[derive(Debug)]
pub(crate) struct Heads {
    state: State,
    max_header_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// In a head, of which this much came in earlier reads.
    Head(Vec<u8>),
    /// In a body with so many bytes left.
    Length(u64),
    Chunked(Chunks),
    /// In a head that hyper refuses, which begins after so many of the bytes that were read last.
    Unreadable(usize),
    /// Nothing that follows is a request, or hyper refuses it.
    Blind,
}

/// Something that must not go on, and how many of the bytes that were read last come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) good: usize,
    pub(crate) why: BadRequest,
}

impl Heads {
    /// At the beginning of a connection whose heads have `max_header_bytes` at most.
    pub(crate) fn new(max_header_bytes: usize) -> Self {
        Self {
            state: State::Head(Vec::new()),
            max_header_bytes,
        }
    }

    /// Said once, after the read in which it was: how many of its bytes come before a head that hyper refuses.
    pub(crate) fn take_unreadable(&mut self) -> Option<usize> {
        let State::Unreadable(good) = self.state else {
            return None;
        };
        self.stop();
        Some(good)
    }

    /// Whether the body of a request goes on with the next byte.
    pub(crate) fn is_within_body(&self) -> bool {
        matches!(self.state, State::Length(_) | State::Chunked(_))
    }

    /// What follows is no HTTP any more.
    pub(crate) fn stop(&mut self) {
        self.state = State::Blind;
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Refused`] for the first request that must not go on; nothing that follows it is looked at.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += match &mut self.state {
                State::Blind | State::Unreadable(_) => return Ok(()),
                State::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                    }
                    taken
                }
                State::Chunked(chunks) => match chunks.read(rest) {
                    Chunked::More => return Ok(()),
                    Chunked::End(taken) => {
                        self.state = State::Head(Vec::new());
                        taken
                    }
                    Chunked::Broken(taken) => {
                        self.stop();
                        return Err(Refused {
                            good: at + taken,
                            why: BadRequest::InvalidChunk,
                        });
                    }
                },
                State::Head(begun) => {
                    let before = begun.len();
                    match whole_head(begun, rest, self.max_header_bytes) {
                        Head::Partial => return Ok(()),
                        Head::Whole(_, Framing::Refused(why)) => {
                            self.stop();
                            return Err(Refused { good: at, why });
                        }
                        Head::Whole(_, Framing::Unknown) => {
                            self.state = State::Unreadable(at);
                            return Ok(());
                        }
                        Head::Whole(length, framing) => {
                            self.state = framing.state();
                            length.saturating_sub(before)
                        }
                    }
                }
            };
        }
        Ok(())
    }
}

enum Head {
    /// More is to come.
    Partial,
    /// So many bytes, with what was there before.
    Whole(usize, Framing),
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    Refused(BadRequest),
    /// hyper refuses it.
    Unknown,
}

impl Framing {
    fn state(self) -> State {
        match self {
            Self::Length(0) => State::Head(Vec::new()),
            Self::Length(length) => State::Length(length),
            Self::Chunked => State::Chunked(Chunks::default()),
            Self::Refused(_) | Self::Unknown => State::Blind,
        }
    }
}

/// Looks for the end of a head in `begun` and `rest`; without one, `begun` takes `rest` in.
fn whole_head(begun: &mut Vec<u8>, rest: &[u8], max_header_bytes: usize) -> Head {
    let before = begun.len();
    let found = if before == 0 {
        // Nearly always the whole head is there, and nothing is copied.
        parse(rest)
    } else {
        begun.extend_from_slice(rest);
        // As hyper does: a head that comes in small pieces is not parsed anew for each.
        if may_end(begun, before) {
            parse(begun)
        } else {
            Head::Partial
        }
    };
    if let Head::Partial = found {
        if before == 0 {
            begun.extend_from_slice(rest);
        }
        if begun.len() >= max_header_bytes {
            return Head::Whole(begun.len(), Framing::Unknown);
        }
    }
    found
}

/// Whether an empty line ends at or after `from`, or shortly before.
fn may_end(bytes: &[u8], from: usize) -> bool {
    let recent = bytes.get(from.saturating_sub(3)..).unwrap_or_default();
    recent.windows(2).any(|pair| pair == b"\n\n")
        || recent.windows(3).any(|three| three == b"\n\r\n")
}

fn parse(bytes: &[u8]) -> Head {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => {
            let framing = if has_bare_lf(bytes.get(..length).unwrap_or_default()) {
                Framing::Refused(BadRequest::BareLineFeed)
            } else {
                framing(request.headers)
            };
            Head::Whole(length, framing)
        }
        Ok(httparse::Status::Partial) => Head::Partial,
        Err(_) => Head::Whole(bytes.len(), Framing::Unknown),
    }
}

/// Whether a line of a head ends without CR. Counted, and not searched for, since counting takes many bytes at once.
fn has_bare_lf(head: &[u8]) -> bool {
    let feeds = head.iter().filter(|byte| **byte == b'\n').count();
    let pairs = head.iter().zip(head.get(1..).unwrap_or_default());
    let ends = pairs.filter(|(first, second)| **first == b'\r' && **second == b'\n');
    feeds != ends.count()
}

fn framing(fields: &[httparse::Header<'_>]) -> Framing {
    let mut length = None;
    let mut encoding = None;
    let mut encodings = 0;
    for field in fields {
        // Both names are told from most others by their length.
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => length = Some(field.value),
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                encoding = Some(field.value);
                encodings += 1;
            }
            _ => {}
        }
    }
    match (length, encoding) {
        (None, None) => Framing::Length(0),
        (Some(_), Some(_)) => Framing::Refused(BadRequest::LengthAndEncoding),
        (None, Some(coding)) if encodings == 1 && coding.eq_ignore_ascii_case(b"chunked") => {
            Framing::Chunked
        }
        (None, Some(_)) => Framing::Refused(BadRequest::UnsupportedEncoding),
        (Some(digits), None) => {
            let number = std::str::from_utf8(digits).ok().filter(|digits| {
                !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
            });
            number
                .and_then(|digits| digits.parse().ok())
                .map_or(Framing::Unknown, Framing::Length)
        }
    }
}

/// Where in a chunked body (RFC 9112, section 7.1) the bytes are.
#[derive(Debug, Default)]
struct Chunks {
    at: Chunk,
    /// Of the present chunk.
    left: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Chunk {
    #[default]
    FirstDigit,
    Digits,
    Spaces,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

enum Chunked {
    More,
    /// After so many bytes.
    End(usize),
    /// After so many bytes.
    Broken(usize),
}

impl Chunks {
    fn read(&mut self, bytes: &[u8]) -> Chunked {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..)
            && let Some(byte) = rest.first()
        {
            if self.at == Chunk::Data {
                let taken = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(rest.len());
                self.left -= taken as u64;
                if self.left == 0 {
                    self.at = Chunk::DataCr;
                }
                at += taken;
                continue;
            }
            at += 1;
            if self.at == Chunk::EndLf && *byte == b'\n' {
                return Chunked::End(at);
            }
            match self.step(*byte) {
                Some(next) => self.at = next,
                None => return Chunked::Broken(at - 1),
            }
        }
        Chunked::More
    }

    /// Where a byte leads to; nowhere if it may not be there.
    fn step(&mut self, byte: u8) -> Option<Chunk> {
        Some(match (self.at, byte) {
            (Chunk::FirstDigit | Chunk::Digits, digit) if digit.is_ascii_hexdigit() => {
                let digit = char::from(digit).to_digit(16)?;
                self.left = self.left.checked_mul(16)?.checked_add(digit.into())?;
                Chunk::Digits
            }
            (Chunk::Digits | Chunk::Spaces, b' ' | b'\t') => Chunk::Spaces,
            (Chunk::Digits | Chunk::Spaces, b';') => Chunk::Extension,
            (Chunk::Digits | Chunk::Spaces | Chunk::Extension, b'\r') => Chunk::SizeLf,
            (Chunk::Extension, other) if other != b'\n' => Chunk::Extension,
            (Chunk::SizeLf, b'\n') if self.left == 0 => Chunk::TrailerStart,
            (Chunk::SizeLf, b'\n') => Chunk::Data,
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::FirstDigit,
            (Chunk::TrailerStart | Chunk::Trailer, b'\n') => return None,
            (Chunk::TrailerStart, b'\r') => Chunk::EndLf,
            (Chunk::Trailer, b'\r') => Chunk::TrailerLf,
            (Chunk::TrailerStart | Chunk::Trailer, _) => Chunk::Trailer,
            (Chunk::TrailerLf, b'\n') => Chunk::TrailerStart,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
