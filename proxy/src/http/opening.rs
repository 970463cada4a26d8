//! How a client must begin to speak HTTP/2: its preface, and then its settings (RFC 9113, section 3.4). h2 checks the
//! preface and takes whatever frame follows.

use std::io;

/// What [`Opening`] is over after: the preface, and of the first frame's header its length, type and flags.
const OPENING_BYTES: usize = PREFACE_BYTES + 5;
pub(super) const PREFACE_BYTES: usize = 24;
const TYPE_SETTINGS: u8 = 4;
const FLAG_ACK: u8 = 1;

/// A client's first frame is none with settings of its own.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the HTTP/2 preface is not followed by SETTINGS")]
pub(crate) struct NoSettings;

/// How much of a client's beginning has been read.
#[derive(Debug, Default)]
pub(super) struct Opening {
    bytes: usize,
}

impl Opening {
    pub(super) fn is_over(&self) -> bool {
        self.bytes >= OPENING_BYTES
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// `InvalidData` with [`NoSettings`]: the connection is to be closed, and GOAWAY may be left out for who does not
    /// speak HTTP/2.
    pub(super) fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes.iter().take(OPENING_BYTES - self.bytes) {
            let right = match self.bytes.checked_sub(PREFACE_BYTES) {
                Some(3) => *byte == TYPE_SETTINGS,
                Some(4) => byte & FLAG_ACK == 0,
                _ => true,
            };
            if !right {
                return Err(io::Error::new(io::ErrorKind::InvalidData, NoSettings));
            }
            self.bytes += 1;
        }
        Ok(())
    }
}

/// True when an HTTP/2 connection ended by what the client sent, and not by its going away.
pub(crate) fn broken_by_client(error: &h2::Error) -> bool {
    match error.get_io() {
        Some(io) => io.kind() == io::ErrorKind::InvalidData,
        None => !error.is_remote(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[test]
    fn only_settings_may_follow_the_preface_wherever_the_bytes_are_cut() {
        let cases: [(&[u8], bool); 5] = [
            (&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1], true),
            (&[0, 0, 6, 4, 0xfe, 0, 0, 0, 0], true),
            (&[0, 0, 0, 4, 1, 0, 0, 0, 0], false),
            (&[0, 0, 8, 6, 0, 0, 0, 0, 0], false),
            (&[0, 0, 9, 1, 5, 0, 0, 0, 1], false),
        ];
        for (frame, right) in cases {
            let wire = [PREFACE, frame].concat();
            for size in 1..=wire.len() {
                let mut opening = Opening::default();
                let read = wire.chunks(size).try_for_each(|piece| opening.read(piece));
                assert_eq!(read.is_ok(), right, "{frame:?} in pieces of {size}");
            }
        }
    }
}
