//! gRPC on one HTTP/2 connection, with as little as a client can do: thousands of them fit into one process.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use sidewind_api::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;

/// What a client of the control plane has as a stream's window; its messages are small.
const WINDOW: u32 = 64 * 1024;

/// Why a call failed, in a word: the control plane's reason, or what became of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    /// When the control plane asks to come again.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) const fn of(reason: &'static str) -> Self {
        Self {
            reason,
            retry_after: None,
        }
    }

    fn refused(status: &Status) -> Self {
        Self {
            reason: Reason::of(status).map_or("refused", Reason::as_str),
            retry_after: Reason::retry_after(status),
        }
    }
}

impl From<h2::Error> for Failure {
    fn from(_: h2::Error) -> Self {
        Self::of("connection-lost")
    }
}

/// A connection; it ends when this and every stream on it is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Connection(SendRequest<Bytes>);

/// An open stream of messages in both directions.
#[derive(Debug)]
pub(crate) struct Stream {
    _outgoing: SendStream<Bytes>,
    incoming: RecvStream,
    received: BytesMut,
    pings: PingPong,
}

impl Connection {
    /// Begins to speak HTTP/2 on what is connected already. Gives back what pings the other side, too.
    pub(crate) async fn open<I>(io: I) -> Result<(Self, PingPong), Failure>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(io)
            .await?;
        let pings = connection.ping_pong().ok_or(Failure::of("no-pings"))?;
        tokio::spawn(connection);
        Ok((Self(sender), pings))
    }

    /// One call with one answer.
    pub(crate) async fn call<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, Failure> {
        let mut sender = self.0.clone().ready().await?;
        let (response, mut outgoing) = sender.send_request(head(method), false)?;
        outgoing.send_data(frame(request), true)?;
        let (head, mut body) = response.await?.into_parts();
        check(&head.headers)?;
        let mut received = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            received.extend_from_slice(&data);
        }
        check(&body.trailers().await?.unwrap_or_default())?;
        take(&mut received)?.ok_or(Failure::of("no-answer"))
    }

    /// Begins a stream with a first message.
    pub(crate) async fn stream(
        &self,
        method: &str,
        first: &impl Message,
        pings: PingPong,
    ) -> Result<Stream, Failure> {
        let mut sender = self.0.clone().ready().await?;
        let (response, mut outgoing) = sender.send_request(head(method), false)?;
        outgoing.send_data(frame(first), false)?;
        let (head, incoming) = response.await?.into_parts();
        check(&head.headers)?;
        Ok(Stream {
            _outgoing: outgoing,
            incoming,
            received: BytesMut::new(),
            pings,
        })
    }
}

impl Stream {
    /// The next message. Nothing is lost when the future is dropped before its end.
    pub(crate) async fn next<A: Message + Default>(&mut self) -> Result<A, Failure> {
        loop {
            if let Some(message) = take(&mut self.received)? {
                if self.received.is_empty() {
                    // What an idle stream keeps, ten thousand of them keep.
                    self.received = BytesMut::new();
                }
                return Ok(message);
            }
            let Some(data) = self.incoming.data().await else {
                let trailers = self.incoming.trailers().await?.unwrap_or_default();
                check(&trailers)?;
                return Err(Failure::of("ended"));
            };
            let data = data?;
            self.incoming.flow_control().release_capacity(data.len())?;
            self.received.extend_from_slice(&data);
        }
    }

    /// Asks the other side whether it is there, as a proxy does, and waits for the answer.
    pub(crate) async fn ping(&mut self) -> Result<(), Failure> {
        self.pings.ping(Ping::opaque()).await?;
        Ok(())
    }
}

fn head(method: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    let uri = format!("https://control-plane/sidewind.v1.{method}");
    *request.uri_mut() = uri.parse().expect("the name of a method");
    let headers = request.headers_mut();
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    request
}

/// A message with gRPC's prefix: not compressed, and its length.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("a small message"));
    message.encode(&mut bytes).expect("room for the message");
    bytes.freeze()
}

/// Takes a whole message out of what was received, if there is one.
fn take<A: Message + Default>(received: &mut BytesMut) -> Result<Option<A>, Failure> {
    let Some(prefix) = received.first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if received.len() < 5 + length {
        return Ok(None);
    }
    received.advance(5);
    let message = A::decode(received.split_to(length));
    message.map(Some).map_err(|_| Failure::of("unreadable"))
}

/// The status of a call, which stands in its headers or its trailers.
fn check(headers: &HeaderMap) -> Result<(), Failure> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => Err(Failure::refused(&status)),
        _ => Ok(()),
    }
}
