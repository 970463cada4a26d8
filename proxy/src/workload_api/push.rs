//! Streams of states: each message is the whole state, the first at once, and a further one at each change.

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tonic::Status;

use super::state::Present;

/// A stream as gRPC sends it.
pub(super) type Pushed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What one kind of stream is about: the part of the state that its messages are made from.
pub(super) trait View: PartialEq + Sized + Send + Sync + 'static {
    /// The message.
    type Message: Send + 'static;

    /// The part of the state that matters.
    ///
    /// # Errors
    /// The status that such a stream ends with.
    fn of(present: &Present) -> Result<Self, Status>;

    /// Made only when it is sent, since it may hold a private key.
    ///
    /// # Errors
    /// A status that says what cannot be expressed.
    fn message(&self) -> Result<Self::Message, Status>;
}

/// Streams a view of the state until it cannot be had any more, or the client goes.
///
/// A message is made when the client has taken the one before. A slow reader so costs one message, and reads the newest
/// state next, whatever it missed.
///
/// # Errors
/// The status that such a call is refused with just now.
pub(super) fn push<V: View>(
    mut present: watch::Receiver<Present>,
) -> Result<Pushed<V::Message>, Status> {
    let first = V::of(&present.borrow_and_update())?;
    let state = Some((present, first, true));
    let pushed = stream::unfold(state, |state| async move {
        let (mut present, mut view, is_first) = state?;
        if !is_first {
            match next(&mut present, &view).await {
                Ok(changed) => view = changed,
                Err(status) => return Some((Err(status), None)),
            }
        }
        match view.message() {
            Ok(message) => Some((Ok(message), Some((present, view, false)))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Box::pin(pushed))
}

/// The next view that differs.
async fn next<V: View>(present: &mut watch::Receiver<Present>, view: &V) -> Result<V, Status> {
    loop {
        present.changed().await.map_err(|_| stopping())?;
        let changed = V::of(&present.borrow_and_update())?;
        if changed != *view {
            return Ok(changed);
        }
    }
}

/// The end of the process; a client comes back when there is another.
pub(super) fn stopping() -> Status {
    Status::unavailable("the proxy is stopping")
}
