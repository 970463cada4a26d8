//! Answers that send the client elsewhere (Gateway API, `HTTPRequestRedirectFilter`).

use http::{HeaderValue, Request, Response, StatusCode, header::LOCATION};
use sidewind_api::v1;

use super::{RuleError, path::PathChange, table::host};
use crate::http::{Body, headers::BadRequest};

/// Where clients come in: what a redirect keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    /// Whether clients speak TLS.
    pub(crate) tls: bool,
    /// The port that clients call.
    pub(crate) port: u16,
}

#[derive(Debug)]
pub(crate) struct Redirect {
    tls: Option<bool>,
    host: Option<Box<str>>,
    path: Option<PathChange>,
    port: Option<u16>,
    status: StatusCode,
}

impl Redirect {
    pub(super) fn compile(redirect: &v1::RequestRedirect) -> Result<Self, RuleError> {
        let tls = match redirect.scheme.as_str() {
            "" => None,
            "http" => Some(false),
            "https" => Some(true),
            _ => return Err(RuleError::Unknown("a redirect's scheme")),
        };
        let status = match redirect.status {
            0 => StatusCode::FOUND,
            status => u16::try_from(status)
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok())
                .filter(StatusCode::is_redirection)
                .ok_or(RuleError::Unknown("a redirect's status"))?,
        };
        let port = u16::try_from(redirect.port)
            .map_err(|_| RuleError::Location(redirect.port.to_string()))?;
        Ok(Self {
            tls,
            host: (!redirect.hostname.is_empty()).then(|| redirect.hostname.as_str().into()),
            path: redirect
                .path
                .as_ref()
                .map(PathChange::compile)
                .transpose()?,
            port: (port > 0).then_some(port),
            status,
        })
    }

    /// The answer to a request that came in by `front`; `prefix` bytes of its path were matched by a prefix.
    pub(crate) fn answer(
        &self,
        request: &Request<Body>,
        front: Front,
        prefix: usize,
    ) -> Result<Response<Body>, BadRequest> {
        let location = HeaderValue::try_from(self.location(request, front, prefix)?)
            .map_err(|_| BadRequest::InvalidTarget)?;
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = self.status;
        response.headers_mut().insert(LOCATION, location);
        Ok(response)
    }

    fn location(
        &self,
        request: &Request<Body>,
        front: Front,
        prefix: usize,
    ) -> Result<String, BadRequest> {
        let tls = self.tls.unwrap_or(front.tls);
        let (scheme, known_port) = if tls { ("https", 443) } else { ("http", 80) };
        // With a scheme the port is that scheme's; without one it is where the client came in.
        let port = self.port.unwrap_or(match self.tls {
            Some(_) => known_port,
            None => front.port,
        });
        let of_request = host(request);
        let host = self.host.as_deref().unwrap_or(&of_request);
        if host.is_empty() {
            return Err(BadRequest::MissingHost);
        }
        let target = request.uri();
        let path = match &self.path {
            Some(path) => path.apply_with_query(target, prefix),
            None => target
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
        };
        // The server as a whole, in a URI: no path (RFC 9112, section 3.2.4).
        let path = path.strip_prefix('*').unwrap_or(&path);
        Ok(match port == known_port {
            true => format!("{scheme}://{host}{path}"),
            false => format!("{scheme}://{host}:{port}{path}"),
        })
    }
}
