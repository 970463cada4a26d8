//! HTTP building blocks: one body type, client connections that their user drives, server connections, and what
//! happens to headers on the way through a proxy.

use std::time::Duration;

pub(crate) mod body;
mod break_off;
mod expect;
mod frames;
mod gathering;
pub(crate) mod h1_client;
pub(crate) mod h1_pool;
pub(crate) mod h1_server;
pub(crate) mod h2_client;
mod h2_pool;
pub(crate) mod h2_server;
pub(crate) mod headers;
pub(crate) mod heads;
mod idle;
mod idle_io;
pub(crate) mod interim;
mod opening;
mod refusals;
mod relay;
pub(crate) mod send_body;
mod slow_head;
mod stall;
pub(crate) mod watched_body;

pub(crate) use body::{Body, BodyError};
pub(crate) use break_off::BreakOff;
pub(crate) use h1_client::{H1ClientSettings, H1Connection, SendError};
pub(crate) use h1_pool::{H1Pool, PoolKey, PoolLimits};
pub(crate) use h1_server::{H1ServerError, H1ServerSettings, serve_h1, take_back};
pub(crate) use h2_client::{H2SendError, send_h2};
pub(crate) use h2_pool::{H2Place, H2Pool, H2PoolError, H2PoolLimits};
pub(crate) use h2_server::{H2ServerError, H2ServerSettings, serve_h2, serve_stream};
pub(crate) use idle::Idle;
pub(crate) use opening::broken_by_client;
pub(crate) use refusals::{FarTooLarge, Refusals, WatchedIo, hard_header_bound};
pub(crate) use send_body::SendBodyError;
pub(crate) use slow_head::slow_over_a_head;
pub(crate) use stall::{Bound, LEAST_BYTES};
pub(crate) use watched_body::{BodyEnd, BodyWatcher};

/// How much of one HTTP/2 stream may be on its way to us: what bounds the memory that a stalled reader holds.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The window of a whole HTTP/2 connection, which never binds: a few stalled streams would hold up all others.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// How much framing overhead of small unread DATA frames an HTTP/2 connection may hold; h2's default follows the connection
/// window, which bounds nothing.
pub(crate) const DATA_FRAME_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// Streams of an HTTP/2 connection that we have reset and remember, as many as it can have, and for how long. What the peer
/// still had under way for them is passed over; for a stream that is forgotten it would be the peer's error, and a hundred
/// readers who give up together would end the connection for all others.
pub(crate) const REMEMBERED_STREAMS: usize = 1000;
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(30);
/// Most bytes of a message's head, in HTTP/1 and HTTP/2.
pub(crate) const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Most header fields of an HTTP/1 message: hyper's own default. For another one it makes two arrays on the heap, which it
/// fills field by field, for each head that it parses.
pub(crate) const MAX_HEADERS: usize = 100;
/// Most bytes of an HTTP/1 body that are read ahead of its reader.
pub(crate) const MAX_BUFFER_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests;
