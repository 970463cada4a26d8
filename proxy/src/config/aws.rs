//! Where AWS credentials come from, by the variables that the AWS SDKs know.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use http::Uri;

use super::environment::WorkloadVariables;
use super::secret::Secret;

/// The endpoint of ECS that AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is relative to.
const ECS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 170, 2)), 80);
/// Link-local endpoints beside the loopback ones: of ECS, and of EKS Pod Identity.
const ENDPOINTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// A source of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AwsCredentialsSource {
    /// The variables hold them; they never change.
    Variables(AwsCredentials),
    /// An endpoint beside the workload gives them, and new ones before those end.
    Container(ContainerCredentials),
}

/// Credentials of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AwsCredentials {
    pub(crate) access_key_id: Secret,
    pub(crate) secret_access_key: Secret,
    /// None for credentials that do not end; a role's do.
    pub(crate) session_token: Option<Secret>,
}

/// An endpoint of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerCredentials {
    pub(crate) address: SocketAddr,
    /// With its query; of ECS it is as good as a password.
    pub(crate) path: Secret,
    pub(crate) authorization: ContainerAuthorization,
}

/// What the endpoint is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContainerAuthorization {
    Nothing,
    Token(Secret),
    /// Read at each use.
    File(PathBuf),
}

impl AwsCredentialsSource {
    /// The first source that the variables name, in the SDKs' order.
    ///
    /// # Errors
    /// A sentence that names the variable at fault.
    pub(super) fn from_variables(aws: &WorkloadVariables) -> Result<Self, String> {
        let access_key_id = aws.get("AWS_ACCESS_KEY_ID");
        match (access_key_id, aws.get("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                return Ok(Self::Variables(AwsCredentials {
                    access_key_id: Secret::new(id),
                    secret_access_key: Secret::new(secret),
                    session_token: aws.get("AWS_SESSION_TOKEN").map(Secret::new),
                }));
            }
            (None, None) => {}
            _ => {
                return Err(
                    "needs both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither".into(),
                );
            }
        }
        let (relative, full) = (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        );
        let (address, path) = match (aws.get(relative), aws.get(full)) {
            (Some(path), _) if is_path(path) => (ECS, path.to_owned()),
            (Some(_), _) => return Err(format!("needs a path that begins with / in {relative}")),
            (None, Some(uri)) => endpoint(uri).ok_or_else(|| {
                format!(
                    "needs http:// with a loopback address or the endpoint of ECS or EKS ({}) in {full}",
                    ENDPOINTS.join(", ")
                )
            })?,
            (None, None) => {
                return Err(format!(
                    "needs credentials: AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, {relative} (ECS sets it when \
                     the task has a role), or {full}"
                ));
            }
        };
        Ok(Self::Container(ContainerCredentials {
            address,
            path: Secret::new(path),
            authorization: authorization(aws),
        }))
    }
}

fn authorization(aws: &WorkloadVariables) -> ContainerAuthorization {
    if let Some(file) = aws.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        return ContainerAuthorization::File(file.into());
    }
    match aws.get("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
        Some(token) => ContainerAuthorization::Token(Secret::new(token)),
        None => ContainerAuthorization::Nothing,
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text
            .parse::<Uri>()
            .is_ok_and(|uri| uri.authority().is_none())
}

/// Credentials travel in the clear, so only to where no wire is.
fn endpoint(uri: &str) -> Option<(SocketAddr, String)> {
    let uri: Uri = uri.parse().ok()?;
    let authority = uri
        .authority()
        .filter(|authority| !authority.as_str().contains('@'))?;
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let address: IpAddr = host.parse().ok()?;
    let beside = address.is_loopback() || ENDPOINTS.contains(&host);
    if uri.scheme_str() != Some("http") || !beside {
        return None;
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let port = authority.port_u16().unwrap_or(80);
    Some((SocketAddr::new(address, port), path.to_owned()))
}
