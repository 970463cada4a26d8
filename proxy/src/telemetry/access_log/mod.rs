//! The access log: exactly one JSON line for each request and for each TCP connection.
//!
//! A worker formats lines into a buffer of its own ([`LineBuffer`]) and hands it to the writer
//! thread ([`writer`]) when it is large or old enough. Workers never wait for the log: where the
//! destination is too slow, lines are dropped and counted.

mod json;
mod line;
mod timestamp;
mod writer;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::sync::Notify;

pub(crate) use writer::{AccessLog, Destination};

use super::record::{ConnectionRecord, RequestRecord};
use timestamp::Timestamps;

/// A buffer of this size is handed over at once. Each hand-over wakes the writer's thread: at 16 KiB that was one
/// wake-up for every 25 requests.
const BATCH_BYTES: usize = 64 * 1024;

/// How long a line waits for others to be written with.
const BATCH_DELAY: Duration = Duration::from_millis(100);

/// A worker's part of the access log. Not shared between threads.
#[derive(Debug)]
pub(super) struct LineBuffer {
    log: AccessLog,
    state: RefCell<Lines>,
    lines: Cell<u64>,
    began: Notify,
}

impl LineBuffer {
    /// An empty buffer.
    pub(super) fn new(log: AccessLog) -> Self {
        Self {
            log,
            state: RefCell::default(),
            lines: Cell::new(0),
            began: Notify::new(),
        }
    }

    /// Adds the line of a request.
    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        let with_query = self.log.with_query();
        self.add(|state| {
            line::request(&mut state.bytes, &mut state.timestamps, record, with_query);
        });
    }

    /// Adds the line of a connection.
    pub(super) fn connection(&self, record: &ConnectionRecord<'_>) {
        self.add(|state| line::connection(&mut state.bytes, &mut state.timestamps, record));
    }

    fn add(&self, write: impl FnOnce(&mut Lines)) {
        if self.log.is_off() {
            return;
        }
        let mut state = self.state.borrow_mut();
        if state.bytes.is_empty() {
            // Room for the batch and the line that completes it. Given away with the batch, so an
            // idle worker holds none.
            state.bytes.reserve(BATCH_BYTES + 1024);
            self.began.notify_one();
        }
        write(&mut state);
        self.lines.set(self.lines.get() + 1);
        if state.bytes.len() >= BATCH_BYTES {
            drop(state);
            self.flush();
        }
    }

    /// Hands over what there is.
    pub(super) fn flush(&self) {
        let bytes = std::mem::take(&mut self.state.borrow_mut().bytes);
        if !bytes.is_empty() {
            self.log.write(bytes, self.lines.take());
        }
    }

    /// Hands over lines that have waited long enough, for ever. Sleeps while there are none.
    pub(super) async fn keep_flushing(&self) {
        loop {
            self.began.notified().await;
            tokio::time::sleep(BATCH_DELAY).await;
            self.flush();
        }
    }
}

/// Lines that have not been handed over yet.
#[derive(Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    timestamps: Timestamps,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            timestamps: Timestamps::new(),
        }
    }
}

impl Lines {
    /// The line of a request alone, in place of all lines before it.
    pub(crate) fn of_request(&mut self, record: &RequestRecord<'_>) -> &[u8] {
        self.bytes.clear();
        line::request(&mut self.bytes, &mut self.timestamps, record, false);
        &self.bytes
    }
}

impl Drop for LineBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
