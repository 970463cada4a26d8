//! The building blocks against real peers: scripted sockets, hyper and h2.

mod h1;
mod h1_server;
mod h2;
mod h2_pool;
mod interim;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{Body, BodyError};

/// Runs a test on the runtime that workers use, with time paused: a timer fires once nothing else can run.
pub(super) fn run<F: Future>(test: F) -> F::Output {
    run_for(Duration::from_secs(600), test)
}

/// The same, for what takes longer.
pub(super) fn run_for<F: Future>(limit: Duration, test: F) -> F::Output {
    runtime(true)
        .block_on(async { tokio::time::timeout(limit, test).await })
        .expect("test hangs")
}

/// The same with real time, for real sockets.
pub(super) fn run_with_sockets<F: Future>(test: F) -> F::Output {
    runtime(false)
        .block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await })
        .expect("test hangs")
}

fn runtime(paused: bool) -> tokio::runtime::LocalRuntime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(paused)
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("runtime")
}

/// The whole of a body and its trailers.
pub(super) async fn collect(body: Body) -> Result<(Bytes, Option<http::HeaderMap>), BodyError> {
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

/// Reads the head of one HTTP/1 message.
pub(super) async fn read_head(io: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("a whole head"));
    }
    String::from_utf8(head).expect("text")
}

/// Answers each text in turn with one of `answers`, then closes.
pub(super) async fn answer(mut io: DuplexStream, answers: &[&str]) -> DuplexStream {
    for answer in answers {
        read_head(&mut io).await;
        io.write_all(answer.as_bytes()).await.expect("open");
    }
    io
}
