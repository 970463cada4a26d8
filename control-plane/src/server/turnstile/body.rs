//! The first bytes of a gRPC message, read before the rest; and a bound on how long the rest may take.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame};
use sidewind_api::Reason;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

/// gRPC's prefix of a message: one byte of flags, four of length.
const PREFIX: usize = 5;
/// The prefix, the tag of a first field and its length.
const OPENING: usize = PREFIX + 1 + 5;
/// The tag of field 1 where it is bytes: the signing request of both calls.
const FIRST_FIELD: u8 = 0x0a;

/// What the first bytes of a message say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Opening {
    /// Bytes of the message, if there is one.
    pub(super) message_bytes: Option<usize>,
    /// Bytes of its first field, if that is field 1.
    pub(super) first_field_bytes: Option<usize>,
}

/// Reads the first bytes of a body, and gives it back whole. Its message must have come after `time`.
pub(super) async fn guard(mut body: Body, time: Duration) -> (Opening, Body) {
    let mut deadline = Box::pin(tokio::time::sleep(time));
    let mut first = BytesMut::new();
    let mut failed = None;
    while first.len() < OPENING {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut deadline => break,
        };
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => first.extend_from_slice(&data),
                // Trailers: there is no message any more.
                Err(_) => break,
            },
            Some(Err(status)) => {
                failed = Some(status);
                break;
            }
            None => break,
        }
    }
    let opening = read_opening(&first);
    let guarded = Guarded {
        first: Some(first.freeze()).filter(|first| !first.is_empty()),
        failed,
        rest: body,
        deadline,
    };
    (opening, Body::new(guarded))
}

fn read_opening(mut bytes: &[u8]) -> Opening {
    let mut opening = Opening::default();
    if bytes.len() < PREFIX {
        return opening;
    }
    bytes.advance(1);
    opening.message_bytes = usize::try_from(bytes.get_u32()).ok();
    if let [FIRST_FIELD, length @ ..] = bytes {
        opening.first_field_bytes = varint(length);
    }
    opening
}

/// A number in protobuf's form.
fn varint(bytes: &[u8]) -> Option<usize> {
    let mut value = 0_u64;
    for (byte, shift) in bytes.iter().zip((0..63).step_by(7)) {
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(value).ok();
        }
    }
    None
}

/// A body whose first bytes were read.
struct Guarded {
    first: Option<Bytes>,
    failed: Option<Status>,
    rest: Body,
    deadline: Pin<Box<Sleep>>,
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if let Some(status) = self.failed.take() {
            return Poll::Ready(Some(Err(status)));
        }
        if self.deadline.as_mut().poll(context).is_ready() {
            let late = Reason::InvalidMessage.status("the request did not arrive in time");
            return Poll::Ready(Some(Err(late)));
        }
        Pin::new(&mut self.rest).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.failed.is_none() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::{Empty, StreamBody};
    use proptest::prelude::*;

    fn body(chunks: Vec<Vec<u8>>) -> Body {
        let frames = chunks
            .into_iter()
            .map(|chunk| Ok::<_, Status>(Frame::data(Bytes::from(chunk))));
        Body::new(StreamBody::new(stream::iter(frames)))
    }

    fn message(csr: &[u8]) -> Vec<u8> {
        let request = sidewind_api::v1::RenewRequest {
            csr: csr.to_vec(),
            version: "1".to_owned(),
        };
        let encoded = prost::Message::encode_to_vec(&request);
        let length = u32::try_from(encoded.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &encoded].concat()
    }

    async fn read(body: Body) -> Result<Vec<u8>, Status> {
        Ok(body.collect().await?.to_bytes().to_vec())
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn the_sizes_are_read_however_the_message_is_cut(
            size in 0_usize..40_000, pieces in prop::collection::vec(1_usize..20, 0..20),
        ) {
            let whole = message(&vec![7; size]);
            let mut rest = &whole[..];
            let mut chunks = Vec::new();
            for piece in pieces {
                let (chunk, left) = rest.split_at(piece.min(rest.len()));
                chunks.push(chunk.to_vec());
                rest = left;
            }
            chunks.push(rest.to_vec());
            let (opening, given_back) = block_on(async {
                let (opening, body) = guard(body(chunks), Duration::from_secs(5)).await;
                (opening, read(body).await.unwrap())
            });
            prop_assert_eq!(opening.message_bytes, Some(whole.len() - PREFIX));
            prop_assert_eq!(opening.first_field_bytes, (size > 0).then_some(size));
            prop_assert_eq!(given_back, whole);
        }

        #[test]
        fn garbage_is_given_back_as_it_came(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let given_back = block_on(async {
                let (_, body) = guard(body(vec![bytes.clone()]), Duration::from_secs(5)).await;
                read(body).await.unwrap()
            });
            prop_assert_eq!(given_back, bytes);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_given_up() {
        for begin in [vec![], message(&[7; 100])[..20].to_vec()] {
            let frames = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(begin)))]);
            let frames = futures_util::StreamExt::chain(frames, stream::pending());
            let slow = Body::new(StreamBody::new(frames));
            let (_, body) = guard(slow, Duration::from_secs(5)).await;
            let status = read(body).await.unwrap_err();
            assert_eq!(Reason::of(&status), Some(Reason::InvalidMessage));
        }
    }

    #[tokio::test]
    async fn a_body_without_a_message_stays_so() {
        let empty = Body::new(Empty::<Bytes>::new());
        let (opening, body) = guard(empty, Duration::from_secs(5)).await;
        assert_eq!(opening, Opening::default());
        assert!(read(body).await.unwrap().is_empty());
    }
}
