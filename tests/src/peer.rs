//! A peer on the mesh port that is not Sidewind: OpenSSL speaks TLS, the `h2` crate HTTP/2 through it.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::AsyncReadExt;

use crate::authority::SvidFiles;
use crate::http::Reply;
use crate::invocation::{Finished, Invocation};
use crate::place::Place;

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A client of a mesh port.
#[derive(Clone, Debug)]
#[must_use]
pub struct Peer {
    place: Place,
    address: SocketAddr,
    arguments: Vec<String>,
}

impl Peer {
    /// A client that connects from `place` to a mesh port and offers one protocol by ALPN.
    pub fn new(place: &Place, address: SocketAddr, alpn: &str) -> Self {
        Self {
            place: place.clone(),
            address,
            arguments: vec!["-alpn".into(), alpn.into()],
        }
    }

    /// Presents a certificate.
    pub fn with(self, svid: &SvidFiles) -> Self {
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        self.argument("-cert", &path(&svid.certificate))
            .argument("-certform", "DER")
            .argument("-cert_chain", &path(&svid.chain))
            .argument("-key", &path(&svid.key))
    }

    /// Adds an option of `openssl s_client` with its value.
    pub fn argument(mut self, name: &str, value: &str) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// Adds an option of `openssl s_client` that has no value.
    pub fn option(mut self, name: &str) -> Self {
        self.arguments.push(name.into());
        self
    }

    /// Makes a handshake, says nothing and waits until the server closes.
    ///
    /// # Panics
    /// When the server does not close.
    #[track_caller]
    pub fn handshake(&self) -> Finished {
        self.s_client().arg("-ign_eof").timeout(TIMEOUT).finish()
    }

    /// One HTTP/2 request with a body, which ends with it, and the whole response.
    ///
    /// # Errors
    /// What went wrong, with what OpenSSL says.
    pub fn ask(&self, request: Request<()>, body: impl Into<Bytes>) -> Result<Reply, String> {
        let body = body.into();
        self.place.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let exchange = tokio::time::timeout(TIMEOUT, self.exchange(request, body));
                exchange
                    .await
                    .map_err(|_| format!("no response within {TIMEOUT:?}"))?
            })
        })
    }

    async fn exchange(&self, request: Request<()>, body: Bytes) -> Result<Reply, String> {
        // The thread is in the namespace already, and so is what it starts.
        let mut openssl = tokio::process::Command::new("openssl");
        openssl
            .args(["s_client", "-quiet", "-connect"])
            .arg(self.address.to_string())
            .args(&self.arguments);
        openssl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut openssl = openssl
            .spawn()
            .map_err(|error| format!("cannot start openssl: {error}"))?;
        let (Some(input), Some(output)) = (openssl.stdin.take(), openssl.stdout.take()) else {
            return Err("openssl has no pipes".into());
        };
        let answer = converse(tokio::io::join(output, input), request, body).await;
        let _ = openssl.start_kill();
        match answer {
            Ok(reply) => Ok(reply),
            Err(error) => {
                let mut said = String::new();
                if let Some(mut errors) = openssl.stderr.take() {
                    let _ = errors.read_to_string(&mut said).await;
                }
                Err(format!("{error}; openssl: {said}"))
            }
        }
    }

    fn s_client(&self) -> Invocation {
        let address = self.address.to_string();
        self.place
            .program("openssl")
            .args(["s_client", "-connect", &address])
            .args(&self.arguments)
    }
}

/// One request in HTTP/2 without TLS, with prior knowledge, and the whole response.
///
/// # Errors
/// What went wrong.
pub fn ask_h2c(
    place: &Place,
    address: SocketAddr,
    request: Request<()>,
    body: impl Into<Bytes>,
) -> Result<Reply, String> {
    let body = body.into();
    place.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let exchange = tokio::time::timeout(TIMEOUT, async {
                let stream = tokio::net::TcpStream::connect(address).await;
                converse(stream.map_err(|error| error.to_string())?, request, body).await
            });
            exchange
                .await
                .map_err(|_| format!("no response within {TIMEOUT:?}"))?
        })
    })
}

/// The size of a request's header list as RFC 9113, section 6.5.2 counts it.
pub fn header_list_bytes(request: &Request<()>) -> usize {
    let field = |name: usize, value: usize| name + value + 32;
    let uri = request.uri();
    let pseudo = [
        (":method", Some(request.method().as_str())),
        (":scheme", uri.scheme_str()),
        (
            ":authority",
            uri.authority().map(|authority| authority.as_str()),
        ),
        (":path", uri.path_and_query().map(|path| path.as_str())),
    ];
    let pseudo = pseudo
        .iter()
        .filter_map(|(name, value)| value.map(|value| field(name.len(), value.len())));
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| field(name.as_str().len(), value.len()));
    pseudo.chain(fields).sum()
}

/// One HTTP/2 request with a body, which ends with it, on a connection of its own, and the whole response.
///
/// # Errors
/// What went wrong.
pub async fn converse<T>(io: T, request: Request<()>, body: Bytes) -> Result<Reply, String>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut client, connection) = h2::client::handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    client = client.ready().await.map_err(|error| error.to_string())?;
    let (response, mut sending) = client
        .send_request(request, false)
        .map_err(|error| error.to_string())?;
    sending
        .send_data(body, true)
        .map_err(|error| error.to_string())?;
    let (head, mut receiving) = response
        .await
        .map_err(|error| error.to_string())?
        .into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = receiving.data().await {
        let chunk = chunk.map_err(|error| format!("{} and then: {error}", head.status))?;
        let _ = receiving.flow_control().release_capacity(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    Ok(Reply {
        status: head.status.as_u16(),
        headers,
        body: bytes.into(),
    })
}
