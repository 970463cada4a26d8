//! What it takes to make one more attempt.

use bytes::Bytes;
use http::Request;

use super::{classify::Attempt, hold::Share, replay::ReplayBuffer};
use crate::http::Body;

/// What it takes to make one more attempt.
pub(super) struct Spare<A> {
    attempt: A,
    body: SpareBody,
}

enum SpareBody {
    Whole(Option<Bytes>),
    Kept(ReplayBuffer),
}

impl<A: Attempt> Spare<A> {
    /// Copies a call that is about to be made. A body that is not there as a whole is replaced by one that can be
    /// sent again, as far as `share` has room. `None` for a request that takes its connection along, which cannot be
    /// repeated.
    pub(super) fn of(
        attempt: &mut A,
        replay_bytes: usize,
        share: impl FnOnce() -> Option<Share>,
    ) -> Option<Spare<A>> {
        let request = attempt.request_mut();
        if request
            .extensions()
            .get::<hyper::upgrade::OnUpgrade>()
            .is_some()
        {
            return None;
        }
        let body = match std::mem::take(request.body_mut()) {
            Body::Empty => SpareBody::Whole(None),
            Body::Full(bytes) => {
                *request.body_mut() = Body::Full(bytes.clone());
                SpareBody::Whole(Some(bytes))
            }
            Body::Replay(body) => {
                let buffer = body.buffer();
                *request.body_mut() = Body::Replay(body);
                SpareBody::Kept(buffer)
            }
            body => {
                let buffer = ReplayBuffer::sharing(body, replay_bytes, share());
                *request.body_mut() = buffer.attempt();
                SpareBody::Kept(buffer)
            }
        };
        let head = copy_head(attempt.request());
        Some(Spare {
            attempt: attempt.with_request(head),
            body,
        })
    }

    pub(super) fn is_replayable(&self) -> bool {
        match &self.body {
            SpareBody::Whole(_) => true,
            SpareBody::Kept(buffer) => buffer.is_replayable(),
        }
    }

    /// There will be no further attempt.
    pub(super) fn give_up(self) {
        if let SpareBody::Kept(buffer) = &self.body {
            buffer.settle();
        }
    }

    /// Whether the attempt before has taken all of the body, so that another one does not take any of it away.
    pub(super) fn is_complete(&self) -> bool {
        match &self.body {
            SpareBody::Whole(_) => true,
            SpareBody::Kept(buffer) => buffer.is_complete(),
        }
    }

    /// Bytes that are kept of the request and not counted yet.
    pub(super) fn bytes(&self) -> u64 {
        let headers = self.attempt.request().headers().iter();
        let head: usize = headers
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        let body = match &self.body {
            SpareBody::Whole(bytes) => bytes.as_ref().map_or(0, Bytes::len),
            SpareBody::Kept(buffer) => buffer.unshared_bytes(),
        };
        (head + body) as u64
    }

    pub(super) fn into_attempt(self, number: u32) -> A {
        let mut attempt = self.attempt;
        *attempt.request_mut().body_mut() = match self.body {
            SpareBody::Whole(None) => Body::Empty,
            SpareBody::Whole(Some(bytes)) => Body::Full(bytes),
            SpareBody::Kept(buffer) => buffer.attempt(),
        };
        attempt.begin(number);
        attempt
    }
}

/// The same request without its body.
pub(crate) fn copy_head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
