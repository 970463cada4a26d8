//! From a session to its transport: a few messages, and who hears of what.
//!
//! There are as many of these as proxies, and nearly always empty: a channel of the library, made for many senders and any
//! number of messages, takes a kilobyte for each.

use futures_util::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Messages on their way; what waits longer waits in the outbox, where it stays new.
const MESSAGES_UNDER_WAY: usize = 4;

#[derive(Debug)]
struct Shared<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    messages: VecDeque<T>,
    /// The session, which alone sends.
    sends: Option<Waker>,
    takes: Option<Waker>,
    /// One of the two ends is gone.
    is_over: bool,
}

/// The session's end. One task has it.
#[derive(Debug)]
pub(in crate::server) struct Sends<T>(Arc<Shared<T>>);

/// The transport's end.
#[derive(Debug)]
pub(in crate::server) struct Takes<T>(Arc<Shared<T>>);

/// A pipe with nothing in it.
pub(in crate::server) fn pipe<T>() -> (Sends<T>, Takes<T>) {
    let state = State {
        messages: VecDeque::new(),
        sends: None,
        takes: None,
        is_over: false,
    };
    let shared = Arc::new(Shared(Mutex::new(state)));
    (Sends(Arc::clone(&shared)), Takes(shared))
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sends<T> {
    /// Waits for room. `false` when nobody takes anything any more.
    pub(in crate::server) async fn room(&self) -> bool {
        let has_room = |state: &State<T>| state.messages.len() < MESSAGES_UNDER_WAY;
        self.wait(has_room).await;
        !self.0.state().is_over
    }

    /// Waits until nobody takes anything any more.
    pub(in crate::server) async fn closed(&self) {
        self.wait(|_| false).await;
    }

    /// Sends a message, for which there was room.
    pub(in crate::server) fn send(&self, message: T) {
        let mut state = self.0.state();
        if !state.is_over {
            state.messages.push_back(message);
            wake(state.takes.take());
        }
    }

    /// Waits until something is so, or all is over.
    async fn wait(&self, is_so: impl Fn(&State<T>) -> bool) {
        std::future::poll_fn(|context| {
            let mut state = self.0.state();
            if state.is_over || is_so(&state) {
                return Poll::Ready(());
            }
            state.sends = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl<T> Stream for Takes<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.state();
        if let Some(message) = state.messages.pop_front() {
            wake(state.sends.take());
            return Poll::Ready(Some(message));
        }
        if state.is_over {
            return Poll::Ready(None);
        }
        state.takes = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Sends<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        wake(state.takes.take());
    }
}

impl<T> Drop for Takes<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        state.messages.clear();
        wake(state.sends.take());
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, StreamExt as _};

    #[tokio::test]
    async fn messages_come_in_their_order_and_only_so_many_are_under_way() {
        let (sends, mut takes) = pipe();
        let sending = tokio::spawn(async move {
            for number in 0..1000 {
                assert!(sends.room().await);
                sends.send(number);
                assert!(sends.0.state().messages.len() <= MESSAGES_UNDER_WAY);
            }
        });
        for number in 0..1000 {
            assert_eq!(takes.next().await, Some(number));
            if number % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // What was sent before its end arrives, and then that.
        assert_eq!(takes.next().await, None);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_hears_when_nobody_takes_anything_any_more() {
        let (sends, takes) = pipe();
        while sends.room().now_or_never().is_some() {
            sends.send(());
        }
        assert_eq!(sends.closed().now_or_never(), None);
        let waiting = tokio::spawn(async move {
            tokio::select! {
                () = sends.closed() => {}
                is_open = sends.room() => assert!(!is_open),
            }
            // It goes nowhere, and nothing waits for it.
            sends.send(());
            assert!(!sends.room().await);
        });
        tokio::task::yield_now().await;
        drop(takes);
        waiting.await.unwrap();
    }
}
