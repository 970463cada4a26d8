//! One request, bounded in time and size.

use super::HttpsUrl;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sidewind_identity::{SpiffeId, TrustBundles};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A request to be sent.
#[derive(Debug)]
pub struct HttpsRequest<'a> {
    /// GET or POST.
    pub method: Method,
    /// Where to.
    pub url: &'a HttpsUrl,
    /// Headers; `host` follows from the URL unless it is among them. Sensitive values are to be marked so.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, empty for none.
    pub body: Bytes,
    /// Certificate authorities in PEM to believe; none: those of the system.
    pub ca_file: Option<&'a Path>,
    /// Everything together may take this long.
    pub timeout: Duration,
    /// Most bytes of the answer's body.
    pub max_body_bytes: usize,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct HttpsResponse {
    /// Its status. Redirects are answers like others.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl HttpsResponse {
    /// The media type without parameters, in lower case; empty when there is none.
    #[must_use]
    pub fn media_type(&self) -> String {
        let value = self.headers.get(CONTENT_TYPE);
        let value = value.and_then(|value| value.to_str().ok()).unwrap_or("");
        let media_type = value.split(';').next().unwrap_or("");
        media_type.trim().to_ascii_lowercase()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// The authorities cannot be read.
    #[error("{} cannot be read as certificate authorities in PEM: {why}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system has no file of authorities where they are looked for.
    #[error("this system has no certificate authorities where they are looked for; name a file")]
    NoSystemAuthorities,
    /// The host cannot be in a certificate.
    #[error("{0:?} is not a host name that a certificate could be for")]
    Name(String),
    /// No connection, or none that can be believed.
    #[error("no connection to {authority}")]
    Connect {
        /// Host and port.
        authority: String,
        /// Why.
        source: io::Error,
    },
    /// HTTP failed.
    #[error("{authority} does not speak HTTP as it should")]
    Http {
        /// Host and port.
        authority: String,
        /// How.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("{authority} has not answered within {seconds} s")]
    Timeout {
        /// Host and port.
        authority: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The answer is larger than it may be.
    #[error("the answer of {authority} has more than {limit} bytes")]
    TooLarge {
        /// Host and port.
        authority: String,
        /// The bound.
        limit: usize,
    },
    /// The answer ended before its end.
    #[error("the answer of {authority} broke off")]
    Broken {
        /// Host and port.
        authority: String,
    },
    /// The server has another SPIFFE ID than the one that was expected.
    #[error("{authority} is {found}, and not {expected}")]
    OtherIdentity {
        /// Host and port.
        authority: String,
        /// Who answered.
        found: String,
        /// Who should have.
        expected: SpiffeId,
    },
    /// None of the host's addresses may be connected to.
    #[error("{authority} is at {address}, where nobody outside may send this control plane")]
    Forbidden {
        /// Host and port.
        authority: String,
        /// The first of its addresses.
        address: SocketAddr,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The request cannot be built.
    #[error("the request cannot be built")]
    Request(#[from] http::Error),
}

/// Most bytes of an answer's headers.
const MAX_HEADER_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;
/// Most bytes of a file of authorities: a system's has some hundred kilobytes.
const MAX_CA_BYTES: u64 = 2 << 20;

/// Whom to believe to be the server.
#[derive(Debug, Clone)]
pub enum Server {
    /// Who has a certificate for the URL's host, of the request's authorities.
    Web,
    /// Who has an X.509-SVID of this ID.
    Spiffe {
        /// The ID.
        expected: SpiffeId,
        /// What it is verified with.
        bundles: Arc<TrustBundles>,
    },
}

/// Says which addresses of a host may be connected to.
pub type AddressCheck<'a> = &'a (dyn Fn(SocketAddr) -> bool + Sync);

/// Sends a request on a connection of its own and reads the answer whole.
///
/// # Errors
/// When there is no answer within the bounds from a server that the authorities vouch for.
pub async fn send(request: HttpsRequest<'_>) -> Result<HttpsResponse, HttpsError> {
    let (response, _) = send_to(request, &Server::Web, &|_| true).await?;
    Ok(response)
}

/// As [`send`], to a server that proves itself so, at an address that passes the check. Gives back the address, too.
///
/// # Errors
/// As [`send`].
pub async fn send_to(
    request: HttpsRequest<'_>,
    server: &Server,
    may_connect: AddressCheck<'_>,
) -> Result<(HttpsResponse, SocketAddr), HttpsError> {
    let authority = request.url.authority();
    let limit = request.timeout;
    let exchange = Box::pin(exchange(request, server, may_connect));
    let exchanged = tokio::time::timeout(limit, exchange).await;
    exchanged.unwrap_or(Err(HttpsError::Timeout {
        authority,
        seconds: limit.as_secs(),
    }))
}

/// A connection to a server that has proved itself.
async fn connect(
    request: &HttpsRequest<'_>,
    server: &Server,
    may_connect: AddressCheck<'_>,
) -> Result<(TlsStream<TcpStream>, SocketAddr), HttpsError> {
    let url = request.url;
    let host = url.host().trim_start_matches('[').trim_end_matches(']');
    let (tls, name) = match server {
        Server::Web => {
            let name = ServerName::try_from(host.to_owned());
            let name = name.map_err(|_| HttpsError::Name(host.to_owned()))?;
            (client_config(request.ca_file).await?, name)
        }
        Server::Spiffe { bundles, .. } => {
            let tls = sidewind_identity::tls::anonymous_client_config(bundles, &[b"http/1.1"]);
            let tls = tls.map_err(|error| rustls::Error::General(error.to_string()))?;
            (tls, sidewind_identity::tls::server_name())
        }
    };
    let failed = |source| HttpsError::Connect {
        authority: url.authority(),
        source,
    };
    // The address that was checked is the one that is connected to, whatever the name means a moment later.
    let resolved = tokio::net::lookup_host((host, url.port()));
    let resolved: Vec<SocketAddr> = resolved.await.map_err(failed)?.collect();
    let permitted = resolved.iter().copied();
    let permitted: Vec<SocketAddr> = permitted.filter(|it| may_connect(*it)).collect();
    if let (Some(address), true) = (resolved.first(), permitted.is_empty()) {
        return Err(HttpsError::Forbidden {
            authority: url.authority(),
            address: *address,
        });
    }
    let connect = async {
        let stream = TcpStream::connect(permitted.as_slice()).await?;
        stream.set_nodelay(true)?;
        let address = stream.peer_addr()?;
        let stream = TlsConnector::from(tls).connect(name, stream).await;
        stream.map(|stream| (stream, address))
    };
    let (stream, address) = connect.await.map_err(|error| failed(readable(error)))?;
    if let Server::Spiffe { expected, .. } = server {
        let certificates = stream.get_ref().1.peer_certificates();
        let found = sidewind_identity::peer_identity(certificates);
        let found = found.map_or_else(|error| error.to_string(), |peer| peer.id.to_string());
        if found != expected.as_str() {
            return Err(HttpsError::OtherIdentity {
                authority: url.authority(),
                found,
                expected: expected.clone(),
            });
        }
    }
    Ok((stream, address))
}

/// rustls shows what a verifier of ours said in its debug form.
fn readable(error: io::Error) -> io::Error {
    let tls = error.get_ref();
    let tls = tls.and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => io::Error::new(error.kind(), sidewind_identity::tls::describe(tls)),
        None => error,
    }
}

async fn exchange(
    request: HttpsRequest<'_>,
    server: &Server,
    may_connect: AddressCheck<'_>,
) -> Result<(HttpsResponse, SocketAddr), HttpsError> {
    let (stream, address) = connect(&request, server, may_connect).await?;
    let url = request.url;
    let authority = url.authority();
    let http = |source| HttpsError::Http {
        authority: authority.clone(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let mut message = http::Request::builder()
        .method(request.method)
        .uri(url.path());
    if !request.headers.iter().any(|(name, _)| *name == HOST) {
        message = message.header(HOST, url.authority());
    }
    for (name, value) in request.headers {
        message = message.header(name, value);
    }
    let message = message.body(Full::new(request.body))?;
    let answered = async {
        let answer = sender.send_request(message).await.map_err(http)?;
        read(answer, request.max_body_bytes, &authority).await
    };
    // The connection is driven here and not by a task, so that it ends when this does.
    let mut connection = std::pin::pin!(connection);
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        answer = &mut answered => Ok((answer?, address)),
        ended = &mut connection => {
            ended.map_err(http)?;
            Ok((answered.await?, address))
        }
    }
}

async fn read(
    answer: http::Response<hyper::body::Incoming>,
    limit: usize,
    authority: &str,
) -> Result<HttpsResponse, HttpsError> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, limit).collect().await;
    let body = body.map_err(|error| {
        let authority = authority.to_owned();
        if error.is::<LengthLimitError>() {
            HttpsError::TooLarge { authority, limit }
        } else {
            HttpsError::Broken { authority }
        }
    })?;
    Ok(HttpsResponse {
        status: head.status,
        headers: head.headers,
        body: body.to_bytes(),
    })
}

/// Where systems keep the authorities that they believe.
const SYSTEM_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The file is read for each request: authorities change, and attestations are few.
async fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, HttpsError> {
    let path = match ca_file {
        Some(path) => path.to_owned(),
        None => system_file()?,
    };
    let unreadable = |why: String| HttpsError::Authorities {
        path: path.clone(),
        why,
    };
    let pem = read_bounded(&path, MAX_CA_BYTES)
        .await
        .map_err(|error| unreadable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        let added = roots.add(certificate);
        // A system's file may hold one that this verifier cannot take; a file that was named may not.
        if ca_file.is_some() {
            added.map_err(|error| unreadable(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(unreadable("it holds no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn system_file() -> Result<PathBuf, HttpsError> {
    let given = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = SYSTEM_FILES.iter().map(PathBuf::from);
    given
        .or_else(|| known.into_iter().find(|path| path.is_file()))
        .ok_or(HttpsError::NoSystemAuthorities)
}

/// Reads a file whole, unless it is larger than it may be.
///
/// # Errors
/// When it cannot be read, or is larger.
pub async fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let file = tokio::fs::File::open(path).await?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).await?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has more than {limit} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn get<'a>(url: &'a HttpsUrl, ca_file: &'a Path) -> HttpsRequest<'a> {
        HttpsRequest {
            method: Method::GET,
            url,
            headers: Vec::new(),
            body: Bytes::new(),
            ca_file: Some(ca_file),
            timeout: Duration::from_secs(5),
            max_body_bytes: 1024,
        }
    }

    fn authority() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
        std::fs::write(file.path(), made.cert.pem()).unwrap();
        file
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = HttpsUrl::from_host("127.0.0.1", port).unwrap();
        let authority = authority();
        let error = send(get(&url, authority.path())).await.unwrap_err();
        assert!(
            matches!(error, HttpsError::Timeout { seconds: 5, .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn nobody_there_and_no_authorities_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let url = HttpsUrl::from_host("127.0.0.1", port).unwrap();
        let authority = authority();
        let error = send(get(&url, authority.path())).await.unwrap_err();
        assert!(matches!(error, HttpsError::Connect { .. }), "{error}");
        for content in [
            "",
            "garbage",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(authority.path(), content).unwrap();
            let error = send(get(&url, authority.path())).await.unwrap_err();
            assert!(
                matches!(error, HttpsError::Authorities { .. }),
                "{content}: {error}"
            );
        }
        let error = send(get(&url, Path::new("/nonexistent")))
            .await
            .unwrap_err();
        assert!(matches!(error, HttpsError::Authorities { .. }), "{error}");
    }
}
