//! Follows the requests in a client's bytes on their way to hyper, for the one thing that hyper settles without a
//! word: of a request with both `content-length` and `transfer-encoding` it drops the length.
//!
//! Such a request is what one server reads as one and another as two. A server may refuse it (RFC 9112, section
//! 6.3), and a proxy had better. Heads are parsed by the parser that hyper uses, and bodies are counted by its
//! rules, so that both see a head begin at the same byte. Whatever hyper refuses is left to it.

use std::mem::MaybeUninit;

use super::MAX_HEADERS;

/// Where in a client's requests the bytes are.
#[derive(Debug)]
pub(super) struct Heads {
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
    /// Nothing that follows is a request, or hyper refuses it.
    Blind,
}

impl Heads {
    /// At the beginning of a connection whose heads have `max_header_bytes` at most.
    pub(super) fn new(max_header_bytes: usize) -> Self {
        Self {
            state: State::Head(Vec::new()),
            max_header_bytes,
        }
    }

    /// What follows is no HTTP any more.
    pub(super) fn stop(&mut self) {
        self.state = State::Blind;
    }

    /// Takes the next bytes. Gives back how many of them come before a request with two lengths, if there is one.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += match &mut self.state {
                State::Blind => return None,
                State::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= taken as u64;
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                    }
                    taken
                }
                State::Chunked(chunks) => match chunks.read(rest) {
                    Chunked::More => return None,
                    Chunked::End(taken) => {
                        self.state = State::Head(Vec::new());
                        taken
                    }
                    Chunked::Broken => {
                        self.stop();
                        return None;
                    }
                },
                State::Head(begun) => {
                    let before = begun.len();
                    match whole_head(begun, rest, self.max_header_bytes) {
                        Head::Partial => return None,
                        Head::Whole(_, Framing::Both) => {
                            self.stop();
                            return Some(at);
                        }
                        Head::Whole(length, framing) => {
                            self.state = framing.state();
                            length.saturating_sub(before)
                        }
                    }
                }
            };
        }
        None
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
    Both,
    /// hyper refuses it.
    Unknown,
}

impl Framing {
    fn state(self) -> State {
        match self {
            Self::Length(0) => State::Head(Vec::new()),
            Self::Length(length) => State::Length(length),
            Self::Chunked => State::Chunked(Chunks::default()),
            Self::Both | Self::Unknown => State::Blind,
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
        Ok(httparse::Status::Complete(length)) => Head::Whole(length, framing(request.headers)),
        Ok(httparse::Status::Partial) => Head::Partial,
        Err(_) => Head::Whole(bytes.len(), Framing::Unknown),
    }
}

fn framing(fields: &[httparse::Header<'_>]) -> Framing {
    let mut length = None;
    let mut encoded = false;
    for field in fields {
        // Both names are told from most others by their length.
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => length = Some(field.value),
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => encoded = true,
            _ => {}
        }
    }
    match (length, encoded) {
        (None, false) => Framing::Length(0),
        (None, true) => Framing::Chunked,
        (Some(_), true) => Framing::Both,
        (Some(digits), false) => {
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
    /// hyper refuses it.
    Broken,
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
                None => return Chunked::Broken,
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
