//! One check of one endpoint, the way that requests go: through the mesh where it is in it, else in plaintext.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::uri::{Authority, Uri};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::sync::watch;

use super::settings::{CheckKind, CheckSettings, ExpectedBody};
use crate::balance::{EndpointDesc, MeshTarget};
use crate::capture::{self, Peer};
use crate::config::Config;
use crate::control::{Control, MeshIdentity};
use crate::copy::{self, Connection, Progress};
use crate::errors::{Chain, ErrorCode};
use crate::http::headers::{SIDEWIND_DESTINATION, SIDEWIND_ERROR, SIDEWIND_PROTOCOL};
use crate::http::{Body, H1Connection, h2_client, send_h2};
use crate::mesh::{Census, KeepaliveSettings, MeshPool, PoolSettings, Proofs, TunnelError, Wire};

/// Bytes between HTTP and the tunnel that it goes through.
const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;

/// The check as a whole has a limit.
const NEVER: Duration = Duration::from_secs(3600);

/// Most bytes that are read of an answer in gRPC.
const MAX_GRPC_BYTES: usize = 1024;

/// Most bytes that are read of another answer whose body matters.
const MAX_HTTP_BYTES: usize = 64 * 1024;

/// `SERVING` of grpc.health.v1.
const SERVING: u8 = 1;

const USER_AGENT: HeaderValue = HeaderValue::from_static("sidewind-health-check");

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Healthy,
    /// It answered, and not as it should.
    Unhealthy(String),
    /// It gave no answer.
    NoAnswer(String),
    /// The check was not let through, which says nothing about the endpoint.
    Refused(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("the health check passed"),
            Self::Unhealthy(what) => write!(f, "the health check failed: {what}"),
            Self::NoAnswer(what) => write!(f, "the health check got no answer: {what}"),
            Self::Refused(what) => write!(f, "the health check was refused: {what}"),
        }
    }
}

/// Makes checks.
#[derive(Debug)]
pub(super) struct Prober {
    mesh: MeshPool,
    identity: watch::Receiver<Option<Arc<MeshIdentity>>>,
}

impl Prober {
    pub(super) fn new(config: &Config, control: &Control) -> Self {
        let traffic = &config.traffic;
        let settings = PoolSettings {
            connect_timeout: traffic.connect_timeout,
            handshake_timeout: traffic.handshake_timeout,
            keepalive: KeepaliveSettings {
                idle_timeout: traffic.mesh_idle_timeout,
                ..KeepaliveSettings::default()
            },
            ..PoolSettings::default()
        };
        let census = Census::new(
            control.bans.clone(),
            control.identity.clone(),
            Proofs::default(),
        );
        Self {
            mesh: MeshPool::new(settings, Box::new(()), census),
            identity: control.identity.clone(),
        }
    }

    /// Lets go of connections made under certificates that were renewed.
    pub(super) async fn follow_identity(self: Rc<Self>) {
        let mut identity = self.identity.clone();
        while identity.changed().await.is_ok() {
            let renewed = identity.borrow_and_update().clone();
            if let Some(renewed) = renewed {
                self.mesh.retire_older(&renewed);
            }
        }
    }

    /// Checks an endpoint, for as long as it takes.
    pub(super) async fn check(&self, desc: &EndpointDesc, settings: &CheckSettings) -> Finding {
        match self.ask(desc, &settings.kind).await {
            Ok(finding) | Err(finding) => finding,
        }
    }

    async fn ask(&self, desc: &EndpointDesc, kind: &CheckKind) -> Result<Finding, Finding> {
        let address = desc.address;
        match (kind, &desc.mesh) {
            (CheckKind::Tcp, None) => {
                plain(address).await?;
                Ok(Finding::Healthy)
            }
            (CheckKind::Tcp, Some(mesh)) => {
                let identity = self.identity()?;
                let tunnel = self.mesh.tunnel(
                    &identity,
                    mesh.address,
                    &mesh.id,
                    address,
                    http::HeaderMap::new(),
                );
                tunnel.await.map_err(|error| tunnel_failed(&error))?;
                Ok(Finding::Healthy)
            }
            (
                CheckKind::Http {
                    path,
                    host,
                    statuses,
                    body,
                    http2,
                },
                mesh,
            ) => {
                let request = http_request(address, path, host)?;
                let response = self.send(address, mesh.as_ref(), request, *http2).await?;
                judge_http(response, statuses, body.as_ref()).await
            }
            (CheckKind::Grpc { service }, mesh) => {
                let request = grpc_request(address, service)?;
                let response = self.send(address, mesh.as_ref(), request, true).await?;
                judge_grpc(response).await
            }
        }
    }

    fn identity(&self) -> Result<Arc<MeshIdentity>, Finding> {
        let identity = self.identity.borrow().clone();
        identity.ok_or_else(|| Finding::Refused("this proxy has no certificate yet".to_owned()))
    }

    async fn send(
        &self,
        address: SocketAddr,
        mesh: Option<&MeshTarget>,
        request: Request<Body>,
        http2: bool,
    ) -> Result<Response<Body>, Finding> {
        let Some(mesh) = mesh else {
            return over(plain(address).await?, request, http2).await;
        };
        let identity = self.identity()?;
        let connection = self.mesh.connect(&identity, mesh.address, &mesh.id).await;
        let connection = connection.map_err(|error| no_answer(&error))?;
        let response = if connection.wire() == Wire::Hbone {
            drop(connection);
            let tunnel = self.mesh.tunnel(
                &identity,
                mesh.address,
                &mesh.id,
                address,
                http::HeaderMap::new(),
            );
            let tunnel = tunnel.await.map_err(|error| tunnel_failed(&error))?;
            let (near, far) = copy::pipe(TUNNEL_BUFFER_BYTES);
            tokio::task::spawn_local(async move {
                // Its failure is the check's, which reads from it.
                let _ = copy::copy_tunnel(far, tunnel, None, &Progress::default()).await;
            });
            over(near, request, http2).await?
        } else {
            let (sender, lease) = connection.into_parts();
            let response = send_h2(sender, to_mesh(request, address, http2), NEVER).await;
            let response = response.map_err(|error| no_answer(&error))?;
            drop(lease);
            response
        };
        match response.headers().get(SIDEWIND_ERROR) {
            None => Ok(response),
            Some(code) => Err(of_proxy(code)),
        }
    }
}

/// What the answer of the proxy beside an endpoint says about it.
fn of_proxy(code: &HeaderValue) -> Finding {
    let code = code.to_str().unwrap_or("unreadable");
    let what = format!("the proxy beside it answered {code}");
    match ErrorCode::from_name(code) {
        Some(
            ErrorCode::WorkloadUnavailable
            | ErrorCode::ConnectFailed
            | ErrorCode::ConnectTimeout
            | ErrorCode::UpstreamReset
            | ErrorCode::UpstreamStalled
            | ErrorCode::RequestTimeout,
        ) => Finding::NoAnswer(what),
        Some(ErrorCode::UpstreamProtocol) => Finding::Unhealthy(what),
        _ => Finding::Refused(what),
    }
}

fn no_answer(error: &(dyn std::error::Error + 'static)) -> Finding {
    Finding::NoAnswer(Chain(error).to_string())
}

fn tunnel_failed(error: &TunnelError) -> Finding {
    match error {
        TunnelError::Refused { code, .. } => {
            let value = code
                .as_deref()
                .and_then(|code| HeaderValue::from_str(code).ok());
            value.map_or_else(|| no_answer(error), |code| of_proxy(&code))
        }
        error => no_answer(error),
    }
}

async fn plain(address: SocketAddr) -> Result<tokio::net::TcpStream, Finding> {
    let connected = capture::connect(address, NEVER, None, Peer::Any).await;
    connected.map_err(|error| no_answer(&error))
}

/// Sends a request over a connection of its own.
async fn over<T>(io: T, request: Request<Body>, http2: bool) -> Result<Response<Body>, Finding>
where
    T: Connection + Send + 'static,
{
    if !http2 {
        let connection = H1Connection::new(io)
            .await
            .map_err(|error| no_answer(&error))?;
        return connection
            .send(request)
            .await
            .map_err(|error| no_answer(&error));
    }
    let request = to_http2(request);
    let made = h2_client::client_builder().handshake::<_, Bytes>(io).await;
    let (sender, connection) = made.map_err(|error| no_answer(&error))?;
    // Ends with its only stream, when the sender is gone.
    tokio::task::spawn_local(connection);
    send_h2(sender, request, NEVER)
        .await
        .map_err(|error| no_answer(&error))
}

fn authority(address: SocketAddr, host: &str) -> Result<Authority, Finding> {
    let text = if host.is_empty() {
        address.to_string()
    } else {
        host.to_owned()
    };
    Authority::try_from(text).map_err(|error| Finding::Refused(error.to_string()))
}

fn http_request(address: SocketAddr, path: &str, host: &str) -> Result<Request<Body>, Finding> {
    let authority = authority(address, host)?;
    let unfit = |error: &dyn fmt::Display| Finding::Refused(error.to_string());
    let mut request = Request::new(Body::Empty);
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| unfit(&error))?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| unfit(&error))?;
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
    Ok(request)
}

/// `grpc.health.v1.Health/Check`, whose message has the service's name as its only field.
fn grpc_request(address: SocketAddr, service: &str) -> Result<Request<Body>, Finding> {
    let authority = authority(address, "")?;
    let mut message = BytesMut::new();
    if !service.is_empty() {
        prost::encoding::string::encode(1, &service.to_owned(), &mut message);
    }
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    body.put(message);
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build();
    let mut request = Request::new(Body::Full(body.freeze()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.map_err(|error| Finding::Refused(error.to_string()))?;
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, USER_AGENT);
    Ok(request)
}

/// Makes of a request what goes over the mesh wire.
fn to_mesh(request: Request<Body>, address: SocketAddr, http2: bool) -> Request<Body> {
    let mut request = to_http2(request);
    // An IP address and a port are always a valid header value.
    if let Ok(address) = HeaderValue::try_from(address.to_string()) {
        request.headers_mut().insert(SIDEWIND_DESTINATION, address);
    }
    if http2 {
        let value = HeaderValue::from_static("h2");
        request.headers_mut().insert(SIDEWIND_PROTOCOL, value);
    }
    request
}

/// Has a request say in its URL, as HTTP/2 does, what HTTP/1.1 says in `host`.
fn to_http2(mut request: Request<Body>) -> Request<Body> {
    let host = request.headers_mut().remove(header::HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = host {
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query(request.uri().path_and_query().map_or("/", |it| it.as_str()))
            .build();
        if let Ok(uri) = uri {
            *request.uri_mut() = uri;
        }
    }
    *request.version_mut() = http::Version::HTTP_2;
    request
}

async fn judge_http(
    response: Response<Body>,
    statuses: &[(u16, u16)],
    body: Option<&ExpectedBody>,
) -> Result<Finding, Finding> {
    let status = response.status().as_u16();
    let mut ranges = statuses.iter();
    if !ranges.any(|(first, last)| (*first..=*last).contains(&status)) {
        return Err(Finding::Unhealthy(format!("it answered {status}")));
    }
    if let Some(body) = body {
        let bytes = read_body(response.into_body(), MAX_HTTP_BYTES).await?;
        super::expectation::check(body, &bytes).map_err(Finding::Unhealthy)?;
    }
    Ok(Finding::Healthy)
}

/// A body as a whole, with what is wrong with it where it is no body.
async fn read_body(mut body: Body, limit: usize) -> Result<BytesMut, Finding> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| no_answer(&error))?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        if bytes.len() + data.len() > limit {
            return Err(Finding::Unhealthy(format!(
                "its answer has more than {limit} bytes"
            )));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

async fn judge_grpc(response: Response<Body>) -> Result<Finding, Finding> {
    let grpc_status = |headers: &http::HeaderMap| {
        let status = headers.get("grpc-status")?.to_str().ok()?;
        (status != "0").then(|| Finding::Unhealthy(format!("it answered grpc-status {status}")))
    };
    if response.status() != StatusCode::OK {
        return Ok(Finding::Unhealthy(format!(
            "it answered {}",
            response.status()
        )));
    }
    if let Some(failed) = grpc_status(response.headers()) {
        return Ok(failed);
    }
    let mut body = response.into_body();
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| no_answer(&error))?;
        if let Some(data) = frame.data_ref() {
            if message.len() + data.len() > MAX_GRPC_BYTES {
                return Ok(Finding::Unhealthy("its answer is too long".to_owned()));
            }
            message.extend_from_slice(data);
        } else if let Some(failed) = frame.trailers_ref().and_then(grpc_status) {
            return Ok(failed);
        }
    }
    // The frame's head of five bytes, then field 1 as a varint (HealthCheckResponse.status).
    Ok(match message.get(5..) {
        Some([0x08, SERVING, ..]) => Finding::Healthy,
        Some(_) => Finding::Unhealthy("it is not serving".to_owned()),
        None => Finding::Unhealthy("it answered with no message".to_owned()),
    })
}

#[cfg(test)]
mod tests;
