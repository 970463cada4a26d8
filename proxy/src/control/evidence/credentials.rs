//! The credentials of this workload's AWS role, from the endpoint that ECS and EKS put beside it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::config::{
    AwsCredentials, AwsCredentialsSource, ContainerAuthorization, ContainerCredentials, Secret,
};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 * 1024;
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The credentials as they are now.
///
/// # Errors
/// A sentence that says where they were looked for, with nothing of what was found.
pub(super) async fn get(source: &AwsCredentialsSource) -> Result<AwsCredentials, String> {
    let container = match source {
        AwsCredentialsSource::Variables(credentials) => return Ok(credentials.clone()),
        AwsCredentialsSource::Container(container) => container,
    };
    let address = container.address;
    let named = |problem: &str| format!("the AWS credentials endpoint at {address} {problem}");
    let asked = tokio::time::timeout(TIMEOUT, ask(container)).await;
    let body = asked
        .map_err(|_| named("does not answer"))?
        .map_err(|problem| named(&problem))?;
    read(&body).map_err(named)
}

async fn ask(container: &ContainerCredentials) -> Result<Bytes, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let stream = TcpStream::connect(container.address).await;
    let stream = stream.map_err(|error| failed("cannot be reached", &error))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed("speaks no HTTP", &error))?;
    let request = request(container)?;
    let answered = async {
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| failed("does not answer", &error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("answered {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        Ok(body
            .map_err(|error| failed("broke its answer off", &error))?
            .to_bytes())
    };
    // The connection is driven here and not by a task, so that it ends when this does.
    let (mut connection, mut answered) = (std::pin::pin!(connection), std::pin::pin!(answered));
    tokio::select! {
        answer = &mut answered => answer,
        ended = &mut connection => {
            ended.map_err(|error| failed("broke the connection off", &error))?;
            answered.await
        }
    }
}

fn request(container: &ContainerCredentials) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(container.path.expose())
        .header(HOST, container.address.to_string())
        .header(ACCEPT, "application/json");
    let token = match &container.authorization {
        ContainerAuthorization::Nothing => None,
        ContainerAuthorization::Token(token) => Some(token.clone()),
        ContainerAuthorization::File(path) => {
            let token = Secret::read_token(path);
            Some(token.map_err(|problem| format!("is not asked: {problem}"))?)
        }
    };
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(token.expose())
            .map_err(|_| "is not asked: its token cannot be a header".to_owned())?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Empty::new());
    request.map_err(|_| "is not asked: its path cannot be sent".to_owned())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: String,
}

fn read(body: &[u8]) -> Result<AwsCredentials, &'static str> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| "gave no credentials")?;
    let Answer {
        access_key_id,
        secret_access_key,
        token,
    } = answer;
    let usable =
        |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if ![&access_key_id, &secret_access_key, &token]
        .into_iter()
        .all(usable)
    {
        return Err("gave credentials that cannot be used");
    }
    Ok(AwsCredentials {
        access_key_id: Secret::new(access_key_id),
        secret_access_key: Secret::new(secret_access_key),
        session_token: Some(Secret::new(token)),
    })
}

#[cfg(test)]
mod tests;
