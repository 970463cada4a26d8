//! Which frames of HTTP/2 pass by, from the 9 bytes before each (RFC 9113, section 4.1); what is in them is skipped.

const HEADER_BYTES: usize = 9;

pub(super) const TYPE_HEADERS: u8 = 1;
pub(super) const TYPE_CONTINUATION: u8 = 9;
pub(super) const FLAG_END_STREAM: u8 = 1;
pub(super) const FLAG_END_HEADERS: u8 = 4;

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

/// Where in its frames a sequence of bytes is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What of the present frame's header has passed.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// What of the present frame is still to pass after its header.
    payload_left: usize,
}

impl Frames {
    /// Frames that begin after so many bytes of something else.
    pub(super) fn after(bytes: usize) -> Self {
        Self {
            payload_left: bytes,
            ..Self::default()
        }
    }

    /// Takes the next bytes, and calls `begun` for each frame whose header is whole with them.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut begun: impl FnMut(FrameHead)) {
        loop {
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            let room = self.header.get_mut(self.header_bytes..).unwrap_or_default();
            let taken = room.len().min(bytes.len());
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
            self.header_bytes += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.header_bytes == HEADER_BYTES {
                self.header_bytes = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.header;
                self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
                begun(FrameHead {
                    kind,
                    flags,
                    stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
                });
            }
        }
    }

    /// Whether the last frame whose header was whole has passed by whole.
    pub(super) fn is_whole(&self) -> bool {
        self.payload_left == 0
    }
}
