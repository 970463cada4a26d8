//! How a request goes over an HTTP/2 connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Response, StatusCode};

use super::body::Body;
use super::expect::{Waiting, expects_continue};
use super::interim;
use super::send_body::{SendBodyError, send_body};
use super::{
    CONNECTION_WINDOW_BYTES, DATA_FRAME_BUDGET_BYTES, MAX_HEADER_BYTES, REMEMBERED_FOR,
    REMEMBERED_STREAMS, STREAM_WINDOW_BYTES,
};

/// A request over HTTP/2 that failed before its response's head was there.
#[derive(Debug, thiserror::Error)]
#[error("HTTP/2 request failed")]
pub(crate) struct H2SendError {
    /// True when the server surely did nothing with the request: it refused the stream, or its GOAWAY left it out,
    /// or the request was never sent.
    pub(crate) unprocessed: bool,
    /// True when it is no request that HTTP/2 could carry, to whichever server.
    pub(crate) unsendable: bool,
    /// Why the request's body could not be sent, where that came first.
    pub(crate) body: Option<SendBodyError>,
    #[source]
    source: h2::Error,
}

impl H2SendError {
    fn unsent(source: h2::Error) -> H2SendError {
        H2SendError {
            unprocessed: true,
            unsendable: false,
            body: None,
            source,
        }
    }

    fn refused_here(source: h2::Error) -> H2SendError {
        H2SendError {
            // Neither the server nor the connection said so.
            unsendable: source.reason().is_none() && !source.is_io(),
            ..Self::unsent(source)
        }
    }
}

/// Sends a request on an HTTP/2 connection and waits for the head of its response. What is left of the request's
/// body by then goes on being sent in a task of its own. The server may take nothing of it for `reader_timeout`.
///
/// # Errors
/// [`H2SendError`] says whether the server can have seen the request.
pub(crate) async fn send_h2(
    sender: SendRequest<Bytes>,
    request: Request<Body>,
    reader_timeout: Duration,
) -> Result<Response<Body>, H2SendError> {
    let mut sender = sender.ready().await.map_err(H2SendError::unsent)?;
    let (head, body) = request.into_parts();
    let ends = body.is_empty();
    let waiting = (!ends && expects_continue(&head.headers)).then(Waiting::new);
    let (response, mut stream) = sender
        .send_request(Request::from_parts(head, ()), ends)
        .map_err(H2SendError::refused_here)?;
    let result = match body {
        _ if ends => respond(response).await.map_err(|error| (error, None)),
        Body::Full(bytes) if waiting.is_none() => {
            // A failure here is the stream's, and reaches the response too.
            let _ = stream.send_data(bytes, true);
            respond(response).await.map_err(|error| (error, None))
        }
        body => {
            let pump = Box::pin(async move { send_body(body, &mut stream, reader_timeout).await });
            respond_while_sending(response, pump, waiting).await
        }
    };
    match result {
        Ok(response) => {
            let (head, stream) = response.into_parts();
            let body = Body::from_h2(stream, &head.headers);
            Ok(Response::from_parts(head, body))
        }
        Err((source, body)) => Err(H2SendError {
            unprocessed: source.is_remote()
                && (source.is_go_away() || source.reason() == Some(h2::Reason::REFUSED_STREAM)),
            unsendable: false,
            body,
            source,
        }),
    }
}

type Pump = Pin<Box<dyn Future<Output = Result<u64, SendBodyError>>>>;

/// The final response; those before it are on their way.
async fn respond(mut response: ResponseFuture) -> Result<Response<h2::RecvStream>, h2::Error> {
    poll_fn(|cx| poll_response(&mut response, cx).1).await
}

/// Passes interim responses on, and says beside the final one whether the server has asked for the request's body.
///
/// A stream that ends with an interim response is malformed, which is found out by what follows: nothing of it passes.
fn poll_response(
    response: &mut ResponseFuture,
    cx: &mut Context<'_>,
) -> (bool, Poll<Result<Response<h2::RecvStream>, h2::Error>>) {
    let mut interim = Vec::new();
    while let Poll::Ready(Some(Ok(response))) = response.poll_informational(cx) {
        if interim.len() < interim::MOST {
            interim.push(response);
        }
    }
    let result = Pin::new(response).poll(cx);
    let mut continued = false;
    if !matches!(result, Poll::Ready(Err(_))) {
        for response in interim {
            let (head, ()) = response.into_parts();
            continued |= head.status == StatusCode::CONTINUE;
            interim::came(head.status, head.headers);
        }
    }
    (continued, result)
}

/// Sends the body while the response is waited for, once `waiting` is over: the server has asked for it, or says nothing.
/// Where it answers first, it wants none.
async fn respond_while_sending(
    mut response: ResponseFuture,
    pump: Pump,
    mut waiting: Option<Waiting>,
) -> Result<Response<h2::RecvStream>, (h2::Error, Option<SendBodyError>)> {
    let mut pump = Some(pump);
    let mut failure = None;
    let result = poll_fn(|cx| {
        loop {
            let (continued, result) = poll_response(&mut response, cx);
            if result.is_ready() {
                return result;
            }
            if let Some(left) = &mut waiting
                && (continued || left.poll(cx).is_ready())
            {
                waiting = None;
            }
            let sending = pump.as_mut().filter(|_| waiting.is_none());
            let Some(Poll::Ready(sent)) = sending.map(|sending| sending.as_mut().poll(cx)) else {
                return Poll::Pending;
            };
            // What ended the body may have ended the stream.
            failure = sent.err();
            pump = None;
        }
    })
    .await;
    match result {
        Ok(response) => {
            if let Some(pump) = pump.filter(|_| waiting.is_none()) {
                tokio::task::spawn_local(pump);
            }
            Ok(response)
        }
        Err(error) => Err((error, failure)),
    }
}

/// How this worker speaks HTTP/2 to a server.
pub(crate) fn client_builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_send_buffer_size(STREAM_WINDOW_BYTES as usize)
        .data_frame_budget(DATA_FRAME_BUDGET_BYTES)
        .max_concurrent_reset_streams(REMEMBERED_STREAMS)
        .reset_stream_duration(REMEMBERED_FOR);
    builder
}
