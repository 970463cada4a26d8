use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Waker;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A session that sends as many bytes at a time as its script says; 0 stands for "not now".
#[derive(Default)]
struct Scripted {
    script: VecDeque<usize>,
    limit: usize,
    held: Vec<u8>,
    records: Vec<usize>,
    sent: Vec<u8>,
    sends: usize,
    shut_down: bool,
}

impl Session for Scripted {
    fn encrypt(&mut self, plaintext: &[IoSlice<'_>]) -> io::Result<usize> {
        // As rustls counts: what is held with its overhead, what comes without.
        let held = self.held.len() + self.held.len().div_ceil(RECORD_BYTES) * RECORD_OVERHEAD_BYTES;
        let room = self.limit.saturating_sub(held);
        let all: Vec<u8> = plaintext
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        let taken = &all[..all.len().min(room)];
        self.records
            .extend(taken.chunks(RECORD_BYTES).map(<[u8]>::len));
        self.held.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("bytes go through the session");
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.held.is_empty() {
            let allowed = this.script.pop_front();
            if allowed == Some(0) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let n = this.held.len().min(allowed.unwrap_or(usize::MAX));
            this.sent.extend(this.held.drain(..n));
            this.sends += 1;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().shut_down = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = buf.remaining();
        buf.initialize_unfilled_to(n).fill(1);
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

fn scripted(script: impl Into<VecDeque<usize>>) -> Gather<Scripted> {
    Gather::new(Scripted {
        script: script.into(),
        ..Scripted::default()
    })
}

/// What a writer does between two flushes.
#[derive(Debug, Clone)]
enum Step {
    Write(usize),
    WriteVectored(Vec<usize>),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![
        0..40_usize,
        200..300_usize,
        16_000..17_000_usize,
        60_000..140_000_usize
    ];
    vec(
        prop_oneof![
            4 => size.clone().prop_map(Step::Write),
            2 => vec(size, 0..4).prop_map(Step::WriteVectored),
            1 => Just(Step::Flush),
        ],
        0..40,
    )
}

/// Bytes that tell their place.
fn numbered(from: usize, bytes: usize) -> Vec<u8> {
    (from..from + bytes).map(|n| (n % 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_the_chunks_the_same_bytes_come_out(
        steps in steps(),
        script in vec(prop_oneof![Just(0_usize), 1..100_usize, 10_000..70_000_usize], 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let io = scripted(script);
        let mut writer = io.clone();
        let mut total = 0;
        runtime.block_on(async {
            for step in steps {
                match step {
                    Step::Write(bytes) => {
                        writer.write_all(&numbered(total, bytes)).await.unwrap();
                        total += bytes;
                    }
                    Step::WriteVectored(sizes) => {
                        let bytes = numbered(total, sizes.iter().sum());
                        let mut rest = &bytes[..];
                        let mut slices = Vec::new();
                        for size in sizes {
                            let (slice, after) = rest.split_at(size);
                            slices.push(IoSlice::new(slice));
                            rest = after;
                        }
                        let mut left = &mut slices[..];
                        while left.iter().any(|slice| !slice.is_empty()) {
                            let n = writer.write_vectored(left).await.unwrap();
                            assert!(n > 0);
                            IoSlice::advance_slices(&mut left, n);
                        }
                        total += bytes.len();
                    }
                    Step::Flush => {
                        poll_fn(|cx| io.poll_flush_gathered(cx)).await.unwrap();
                        let inner = io.inner.borrow();
                        assert_eq!(inner.io.sent.len(), total);
                        assert!(inner.buffer.is_none(), "nothing is kept while there is nothing");
                    }
                }
            }
            writer.shutdown().await.unwrap();
        });
        let inner = io.inner.borrow();
        prop_assert!(inner.io.shut_down);
        prop_assert_eq!(&inner.io.sent, &numbered(0, total));
        prop_assert_eq!(inner.io.sent.len(), total);
        prop_assert!(inner.buffer.is_none());
    }
}

#[tokio::test(flavor = "local")]
async fn many_small_writes_and_flushes_become_one_write() {
    let io = scripted([]);
    let mut writer = io.clone();
    for n in 0..100 {
        writer.write_all(&numbered(n * 300, 300)).await.unwrap();
        writer.flush().await.unwrap();
    }
    assert_eq!(io.inner.borrow().io.sends, 0);
    poll_fn(|cx| io.poll_flush_gathered(cx)).await.unwrap();
    let inner = io.inner.borrow();
    assert_eq!((inner.io.sends, inner.io.sent.len()), (1, 30_000));
    assert_eq!(inner.io.records, [RECORD_BYTES, 30_000 - RECORD_BYTES]);
}

#[tokio::test(flavor = "local")]
async fn frames_of_any_size_leave_in_full_records() {
    let io = scripted([]);
    let mut writer = io.clone();
    for n in 0..20 {
        let header = numbered(n * 16_393, 9);
        let payload = numbered(n * 16_393 + 9, 16_384);
        let mut left = [IoSlice::new(&header), IoSlice::new(&payload)];
        let mut left = &mut left[..];
        while left.iter().any(|slice| !slice.is_empty()) {
            let n = writer.write_vectored(left).await.unwrap();
            IoSlice::advance_slices(&mut left, n);
        }
    }
    let held = io.inner.borrow().gathered().len();
    assert_eq!(held, 20 * 16_393 - 20 * RECORD_BYTES);
    assert!(
        io.inner
            .borrow()
            .io
            .records
            .iter()
            .all(|record| *record == RECORD_BYTES)
    );
    poll_fn(|cx| io.poll_flush_gathered(cx)).await.unwrap();
    assert_eq!(io.inner.borrow().io.sent, numbered(0, 20 * 16_393));
}

#[test]
fn a_writer_that_was_refused_is_woken_by_the_flush_that_makes_room() {
    let io = scripted([0]);
    let mut writer = io.clone();
    let mut cx = Context::from_waker(Waker::noop());
    let bytes = numbered(0, 1 << 20);
    let written = Pin::new(&mut writer).poll_write(&mut cx, &bytes);
    assert!(matches!(written, Poll::Ready(Ok(n)) if n >= 8 * RECORD_BYTES));
    assert!(
        Pin::new(&mut writer)
            .poll_write(&mut cx, &bytes)
            .is_pending()
    );

    let woken = std::sync::Arc::new(Woken::default());
    let waker = Waker::from(std::sync::Arc::clone(&woken));
    assert!(
        io.poll_flush_gathered(&mut Context::from_waker(&waker))
            .is_ready()
    );
    assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
    assert!(Pin::new(&mut writer).poll_write(&mut cx, &bytes).is_ready());
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_peer_that_sends_without_pause_is_read_in_turns() {
    let mut io = scripted([]);
    let mut cx = Context::from_waker(Waker::noop());
    let mut read = 0;
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let mut buf = ReadBuf::new(&mut buffer);
        match Pin::new(&mut io).poll_read(&mut cx, &mut buf) {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => break,
        }
        read += buf.filled().len();
    }
    assert_eq!(read, READ_BYTES_PER_TURN);
    io.begin_turn();
    let mut buf = ReadBuf::new(&mut buffer);
    assert!(Pin::new(&mut io).poll_read(&mut cx, &mut buf).is_ready());
    assert_eq!(
        io.received_bytes(),
        (READ_BYTES_PER_TURN + buffer.len()) as u64
    );
}

#[tokio::test(flavor = "local")]
async fn reading_ahead_gives_the_same_bytes() {
    let (mut far, near) = tokio::io::duplex(200_000);
    let mut near = crate::mesh::read_ahead::ReadAhead::new(near);
    let bytes = numbered(0, 300_000);
    let sent = bytes.clone();
    tokio::task::spawn_local(async move { far.write_all(&sent).await.unwrap() });
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = near.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        received.extend_from_slice(&buffer[..n]);
    }
    assert_eq!(received, bytes);
}
