//! How long a head in HTTP/2 may be on its way: HEADERS and the CONTINUATION frames after it, which nothing may come
//! between (RFC 9113, section 6.10). h2 waits for the end of them for ever.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::frames::{FLAG_END_HEADERS, Frames, TYPE_CONTINUATION, TYPE_HEADERS};
use super::opening::PREFACE_BYTES;

/// A client took too long over a head.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the head of a request in HTTP/2 took longer than {0:?} to arrive")]
pub(super) struct SlowHead(Duration);

/// True when an HTTP/2 connection was ended since its client took too long over a head.
pub(crate) fn slow_over_a_head(error: &h2::Error) -> bool {
    // h2 keeps the text of an error and not its type; one of the kernel's own has no text.
    let ours = |io: &io::Error| io.kind() == io::ErrorKind::TimedOut && io.get_ref().is_some();
    error.get_io().is_some_and(ours)
}

/// The heads that a client sends, one after another.
#[derive(Debug)]
pub(super) struct Heads {
    limit: Duration,
    frames: Frames,
    /// Of the head that is under way: whether its last frame has begun.
    ending: Option<bool>,
    /// When the head that is under way is late, from when it was first seen to be unfinished.
    late: Option<Pin<Box<Sleep>>>,
}

impl Heads {
    /// Those of a connection that has not begun.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            frames: Frames::after(PREFACE_BYTES),
            ending: None,
            late: None,
        }
    }

    /// Takes the next bytes.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let (ending, late) = (&mut self.ending, &mut self.late);
        self.frames.follow(bytes, |frame| {
            *ending = match frame.kind {
                TYPE_HEADERS | TYPE_CONTINUATION => Some(frame.flags & FLAG_END_HEADERS != 0),
                _ => None,
            };
            if frame.kind != TYPE_CONTINUATION {
                *late = None;
            }
        });
        if self.ending == Some(true) && self.frames.is_whole() {
            self.ending = None;
            self.late = None;
        }
    }

    /// Fails once a head that is under way is late, and wakes the task then.
    ///
    /// # Errors
    /// `TimedOut` with [`SlowHead`].
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ending.is_none() {
            return Ok(());
        }
        let limit = self.limit;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(limit)));
        match late.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                SlowHead(self.limit),
            )),
            Poll::Pending => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u8, kind: u8, flags: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        // What looks like the head of a HEADERS frame without end.
        let lookalike = [0, 0, 0, TYPE_HEADERS, 0, 0, 0, 0, 1];
        frame.extend(lookalike.iter().cycle().take(length.into()));
        frame
    }

    #[test]
    fn a_head_is_under_way_from_its_first_frame_to_the_last_byte_of_its_last() {
        let (data, settings) = (0, 4);
        let cases = [
            (vec![frame(6, settings, 0)], false),
            (vec![frame(20, TYPE_HEADERS, FLAG_END_HEADERS)], false),
            (vec![frame(20, TYPE_HEADERS, 0)], true),
            (vec![frame(0, TYPE_HEADERS, 0)], true),
            (
                vec![frame(9, TYPE_HEADERS, 0), frame(9, TYPE_CONTINUATION, 0)],
                true,
            ),
            (
                vec![
                    frame(9, TYPE_HEADERS, 0),
                    frame(9, TYPE_CONTINUATION, FLAG_END_HEADERS),
                ],
                false,
            ),
            (
                vec![
                    frame(20, TYPE_HEADERS, FLAG_END_HEADERS),
                    frame(30, data, 0),
                ],
                false,
            ),
            // Of each the last byte is wanting.
            (
                vec![
                    frame(6, settings, 0),
                    vec![0, 0, 5, TYPE_HEADERS, 0, 0, 0, 0],
                ],
                false,
            ),
            (
                vec![vec![0, 0, 2, TYPE_HEADERS, FLAG_END_HEADERS, 0, 0, 0, 1, 0]],
                true,
            ),
            (
                vec![
                    frame(9, TYPE_HEADERS, 0),
                    vec![0, 0, 2, TYPE_CONTINUATION, FLAG_END_HEADERS, 0, 0, 0, 1, 0],
                ],
                true,
            ),
        ];
        for (frames, under_way) in cases {
            let wire = [vec![0; PREFACE_BYTES], frames.concat()].concat();
            for size in 1..=wire.len() {
                let mut heads = Heads::new(Duration::ZERO);
                wire.chunks(size).for_each(|piece| heads.read(piece));
                assert_eq!(
                    heads.ending.is_some(),
                    under_way,
                    "{frames:?} in pieces of {size}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_head_has_its_own_time_and_continuations_give_it_no_more() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut heads = Heads::new(10 * SECOND);
        heads.read(&[0; PREFACE_BYTES]);
        let check = |heads: &mut Heads| std::future::ready(heads.check(&mut noop()).is_ok());
        for _ in 0..3 {
            heads.read(&frame(9, TYPE_HEADERS, 0));
            assert!(check(&mut heads).await);
            tokio::time::sleep(9 * SECOND).await;
            assert!(check(&mut heads).await);
            heads.read(&frame(9, TYPE_CONTINUATION, FLAG_END_HEADERS));
        }
        tokio::time::sleep(60 * SECOND).await;
        assert!(check(&mut heads).await, "none is under way");
        heads.read(&frame(9, TYPE_HEADERS, 0));
        for _ in 0..9 {
            assert!(check(&mut heads).await);
            tokio::time::sleep(SECOND).await;
            heads.read(&frame(1, TYPE_CONTINUATION, 0));
        }
        tokio::time::sleep(SECOND).await;
        let error = heads.check(&mut noop()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    fn noop() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }
}
