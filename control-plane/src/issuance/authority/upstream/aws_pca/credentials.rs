//! Credentials of AWS: variables, or the endpoint that ECS and EKS Pod Identity put beside a container.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use sidewind_api::sigv4;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// What `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` is relative to.
const ECS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)), 80);
/// Link-local endpoints beside the loopback ones: of ECS, and of EKS Pod Identity.
const ENDPOINTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no AWS credentials: {0}")]
pub struct CredentialsError(String);

/// Where credentials come from.
#[derive(Debug, Clone)]
pub enum CredentialsSource {
    /// They are given, and never change.
    Given(Credentials),
    /// An endpoint gives them, and new ones before those end.
    Endpoint(Endpoint),
}

/// Credentials.
#[derive(Clone)]
pub struct Credentials {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    pub(super) session_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    pub(super) fn as_signing(&self) -> sigv4::Credentials<'_> {
        sigv4::Credentials {
            access_key_id: &self.access_key_id,
            secret_access_key: &self.secret_access_key,
        }
    }
}

/// An endpoint of credentials.
#[derive(Clone)]
pub struct Endpoint {
    address: SocketAddr,
    /// With its query; of ECS it is as good as a password.
    path: String,
    token: Option<Zeroizing<String>>,
    token_file: Option<PathBuf>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl CredentialsSource {
    /// The first source that the variables name, in the order of AWS's own SDKs.
    ///
    /// # Errors
    /// Which variable is missing or wrong.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, CredentialsError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let error = |why: &str| Err(CredentialsError(why.to_owned()));
        match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
            (Some(access_key_id), Some(secret)) => {
                return Ok(Self::Given(Credentials {
                    access_key_id,
                    secret_access_key: Zeroizing::new(secret),
                    session_token: get("AWS_SESSION_TOKEN").map(Zeroizing::new),
                }));
            }
            (None, None) => {}
            _ => return error("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together"),
        }
        let relative = get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let full = get("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        let (address, path) = match (relative, full) {
            (Some(path), _) if path.starts_with('/') => (ECS, path),
            (Some(_), _) => {
                return error("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI must begin with /");
            }
            (None, Some(uri)) => match endpoint(&uri) {
                Some(found) => found,
                None => {
                    return error(
                        "AWS_CONTAINER_CREDENTIALS_FULL_URI must be http:// with a loopback address or the endpoint of ECS or EKS",
                    );
                }
            },
            (None, None) => {
                return error(
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the container a role (ECS, or EKS Pod Identity)",
                );
            }
        };
        Ok(Self::Endpoint(Endpoint {
            address,
            path,
            token: get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Zeroizing::new),
            token_file: get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(PathBuf::from),
        }))
    }

    /// The credentials as they are now.
    pub(super) async fn get(&self) -> Result<Credentials, CredentialsError> {
        let endpoint = match self {
            Self::Given(credentials) => return Ok(credentials.clone()),
            Self::Endpoint(endpoint) => endpoint,
        };
        let named = |why: String| CredentialsError(format!("{} {why}", endpoint.address));
        let asked = tokio::time::timeout(TIMEOUT, endpoint.ask()).await;
        let body = asked.map_err(|_| named("does not answer".to_owned()))?;
        read(&body.map_err(named)?).ok_or_else(|| named("gave none that could be used".to_owned()))
    }
}

impl Endpoint {
    async fn ask(&self) -> Result<Bytes, String> {
        let mut request = Request::get(&self.path)
            .header(HOST, self.address.to_string())
            .header(ACCEPT, "application/json");
        if let Some(token) = self.token().await? {
            let token = HeaderValue::from_str(&token);
            let mut token = token.map_err(|_| "wants a token that is no header".to_owned())?;
            token.set_sensitive(true);
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|_| "has a path that cannot be sent".to_owned())?;
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.map_err(|error| format!("cannot be reached: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("speaks no HTTP: {error}"))?;
        let answered = async {
            let answer = sender.send_request(request).await;
            let answer = answer.map_err(|error| format!("does not answer: {error}"))?;
            if answer.status() != StatusCode::OK {
                return Err(format!("answered {}", answer.status()));
            }
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
            let body = body
                .await
                .map_err(|_| "gave too much, or broke off".to_owned())?;
            Ok(body.to_bytes())
        };
        // The connection is driven here and not by a task, so that it ends when this does.
        let (mut connection, mut answered) = (std::pin::pin!(connection), std::pin::pin!(answered));
        tokio::select! {
            answer = &mut answered => answer,
            ended = &mut connection => {
                ended.map_err(|error| format!("broke off: {error}"))?;
                answered.await
            }
        }
    }

    async fn token(&self) -> Result<Option<Zeroizing<String>>, String> {
        let Some(path) = &self.token_file else {
            return Ok(self.token.clone());
        };
        let content = crate::https::read_bounded(path, MAX_TOKEN_BYTES).await;
        let content = content.map_err(|error| format!("needs {}: {error}", path.display()))?;
        let token = String::from_utf8(content);
        let token = token.map_err(|_| format!("needs a text in {}", path.display()))?;
        Ok(Some(Zeroizing::new(token.trim().to_owned())))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
}

fn read(body: &[u8]) -> Option<Credentials> {
    let Answer {
        access_key_id,
        secret_access_key,
        token,
    } = serde_json::from_slice(body).ok()?;
    let usable =
        |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if ![&access_key_id, &secret_access_key, &token]
        .into_iter()
        .all(usable)
    {
        return None;
    }
    Some(Credentials {
        access_key_id,
        secret_access_key: Zeroizing::new(secret_access_key),
        session_token: Some(Zeroizing::new(token)),
    })
}

/// Credentials travel in the clear, so only to where no wire is.
fn endpoint(uri: &str) -> Option<(SocketAddr, String)> {
    let uri: Uri = uri.parse().ok()?;
    let authority = uri.authority().filter(|it| !it.as_str().contains('@'))?;
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let address: IpAddr = host.parse().ok()?;
    if uri.scheme_str() != Some("http") || !(address.is_loopback() || ENDPOINTS.contains(&host)) {
        return None;
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let port = authority.port_u16().unwrap_or(80);
    Some((SocketAddr::new(address, port), path.to_owned()))
}
