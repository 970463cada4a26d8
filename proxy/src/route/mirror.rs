//! Copies of requests for a backend whose answer nobody gets. They never hurt the request: its body is copied as it
//! goes by, a copy that would be too large or one too many is let go, and nothing waits for one.

use std::{
    cell::{Cell, RefCell},
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use sidewind_api::v1;

use super::{Backend, RuleError};
use crate::{
    balance::Random,
    http::{Body, BodyError},
};

/// Most bytes of a body that are copied; a request with more is not mirrored.
pub(crate) const MAX_COPY_BYTES: usize = 64 * 1024;

/// Most copies of one worker that are being gathered or on their way.
const MAX_COPIES: usize = 128;

/// A backend that gets copies.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) backend: Backend,
    numerator: u64,
    denominator: u64,
}

impl Mirror {
    pub(super) fn compile(mirror: &v1::RequestMirror) -> Result<Self, RuleError> {
        let backend = mirror.backend.as_ref();
        let backend = backend.ok_or(RuleError::Unknown("a mirror without a backend"))?;
        let (numerator, denominator) = match (mirror.numerator, mirror.denominator) {
            (Some(numerator), denominator) if denominator > 0 => (numerator, denominator),
            (None, _) => (1, 1),
            _ => return Err(RuleError::Unknown("a mirror's share")),
        };
        Ok(Self {
            backend: Backend::compile(backend)?,
            numerator: numerator.into(),
            denominator: denominator.into(),
        })
    }

    pub(super) fn is_drawn(&self, random: &Random) -> bool {
        random.below_u64(self.denominator) < self.numerator
    }
}

/// How many copies a worker has under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies(Rc<Cell<usize>>);

/// Counts a copy until it is dropped.
#[derive(Debug)]
pub(crate) struct CopyPlace(Copies);

impl Copies {
    /// A place for one more; `None` when there are as many as may be.
    pub(crate) fn begin(&self) -> Option<CopyPlace> {
        let count = self.0.get();
        (count < MAX_COPIES).then(|| {
            self.0.set(count + 1);
            CopyPlace(self.clone())
        })
    }
}

impl Drop for CopyPlace {
    fn drop(&mut self) {
        let count = &self.0.0;
        count.set(count.get().saturating_sub(1));
    }
}

/// What is done with a copied body: called once, with it when it is whole, without when it cannot be.
type OnCopy = Box<dyn FnOnce(Option<Bytes>)>;

/// A body that is copied as it is read.
pub(crate) struct CopiedBody {
    body: Body,
    copy: RefCell<Option<(BytesMut, OnCopy)>>,
}

impl fmt::Debug for CopiedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopiedBody")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl CopiedBody {
    /// Reads `body`, and gives `on_copy` what was read once that is all of it.
    pub(crate) fn new(body: Body, on_copy: impl FnOnce(Option<Bytes>) + 'static) -> Self {
        Self {
            body,
            copy: RefCell::new(Some((BytesMut::new(), Box::new(on_copy)))),
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref() {
                Some(data) => self.keep(data),
                // Trailers are the last frame.
                None => self.end(true),
            },
            Poll::Ready(Some(Err(_))) => self.end(false),
            Poll::Ready(None) => self.end(true),
        }
        frame
    }

    fn keep(&mut self, data: &Bytes) {
        let mut fits = true;
        if let Some((copy, _)) = self.copy.get_mut() {
            fits = copy.len() + data.len() <= MAX_COPY_BYTES;
            if fits {
                copy.extend_from_slice(data);
            }
        }
        // A body of known length is not asked again after its last byte.
        if !fits || self.body.is_end_stream() {
            self.end(fits);
        }
    }

    fn end(&self, whole: bool) {
        if let Some((copy, on_copy)) = self.copy.take() {
            on_copy(whole.then(|| copy.freeze()));
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for CopiedBody {
    fn drop(&mut self) {
        // One that was read whole has ended before.
        self.end(false);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn copied(body: Body, read: bool) -> Option<Option<Bytes>> {
        let seen = Rc::new(RefCell::new(None));
        let told = Rc::clone(&seen);
        let copied = CopiedBody::new(body, move |copy| *told.borrow_mut() = Some(copy));
        let body = Body::Copied(Box::new(copied));
        if read {
            body.collect().await.unwrap();
        } else {
            drop(body);
        }
        seen.take()
    }

    #[tokio::test]
    async fn a_body_that_was_read_whole_is_copied_and_a_larger_or_broken_one_is_not() {
        let large = Bytes::from(vec![0; MAX_COPY_BYTES + 1]);
        assert_eq!(
            copied(Body::from("hello"), true).await,
            Some(Some("hello".into()))
        );
        assert_eq!(copied(Body::from(large), true).await, Some(None));
        assert_eq!(copied(Body::from("hello"), false).await, Some(None));
    }

    #[test]
    fn a_worker_has_a_bounded_number_of_copies_under_way() {
        let copies = Copies::default();
        let places: Vec<_> = std::iter::from_fn(|| copies.begin()).collect();
        assert_eq!(places.len(), MAX_COPIES);
        drop(places);
        assert!(copies.begin().is_some());
    }
}
