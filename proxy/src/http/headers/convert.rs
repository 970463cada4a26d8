//! Between HTTP/1 and HTTP/2.

use bytes::Bytes;
use http::header::{CONNECTION, COOKIE, HOST, HeaderValue, TE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Version, request};

use super::examine::BadRequest;

/// Remembers the last host of a client connection as an authority: clients mostly ask for the same host again, and
/// reading it costs an allocation.
///
/// It holds a copy. A field as hyper read it is a part of the buffer that the whole head was read into, and would keep
/// that for as long as the connection is idle.
#[derive(Debug, Default)]
pub(crate) struct AuthorityCache {
    last: Option<Authority>,
}

impl AuthorityCache {
    /// The authority that a request names: its target's where it has one, else its `host`; `None` for an
    /// HTTP/1.0 request without.
    ///
    /// # Errors
    /// [`BadRequest::InvalidHost`] when `host` is no authority.
    pub(crate) fn authority(
        &mut self,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Option<Authority>, BadRequest> {
        if let Some(authority) = uri.authority() {
            return Ok(Some(authority.clone()));
        }
        let Some(host) = headers.get(HOST) else {
            return Ok(None);
        };
        if let Some(last) = &self.last
            && last.as_str().as_bytes() == host.as_bytes()
        {
            return Ok(Some(last.clone()));
        }
        let authority = Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes()))
            .map_err(|_| BadRequest::InvalidHost)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(BadRequest::InvalidHost);
        }
        self.last = Some(authority.clone());
        Ok(Some(authority))
    }
}

/// Makes an HTTP/2 request's head of one whose hop-by-hop fields are gone: `host` becomes `:authority`.
///
/// # Errors
/// [`BadRequest::InvalidTarget`] when the target and the authority make no URI.
pub(crate) fn request_to_http2(
    head: &mut request::Parts,
    authority: Authority,
) -> Result<(), BadRequest> {
    head.headers.remove(HOST);
    head.version = Version::HTTP_2;
    let mut target = std::mem::take(&mut head.uri).into_parts();
    target.scheme = Some(Scheme::HTTP);
    target.authority = Some(authority);
    if target.path_and_query.is_none() {
        target.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    head.uri = Uri::from_parts(target).map_err(|_| BadRequest::InvalidTarget)?;
    Ok(())
}

/// Makes an HTTP/1.1 request's head of one whose hop-by-hop fields are gone: the target becomes origin-form,
/// `:authority` becomes `host`, and the cookies that HTTP/2 may spread over several fields become one (RFC 9113,
/// section 8.2.3).
///
/// # Errors
/// [`BadRequest::MissingHost`] when the head names no host and there is no `default` one.
pub(crate) fn request_to_http1(
    head: &mut request::Parts,
    default: Option<&Authority>,
) -> Result<(), BadRequest> {
    head.version = Version::HTTP_11;
    let target = std::mem::take(&mut head.uri).into_parts();
    if let Some(authority) = &target.authority {
        let host =
            HeaderValue::from_maybe_shared(Bytes::copy_from_slice(authority.as_str().as_bytes()))
                .map_err(|_| BadRequest::InvalidHost)?;
        head.headers.insert(HOST, host);
    } else if !head.headers.contains_key(HOST) {
        let default = default.ok_or(BadRequest::MissingHost)?;
        let host = HeaderValue::from_str(default.as_str()).map_err(|_| BadRequest::InvalidHost)?;
        head.headers.insert(HOST, host);
    }
    head.uri = match target.path_and_query {
        Some(path) => Uri::from(path),
        None => Uri::from(PathAndQuery::from_static("/")),
    };
    if head.headers.contains_key(COOKIE) {
        join_cookies(&mut head.headers);
    }
    if head.headers.contains_key(TE) {
        append_option(&mut head.headers, "te");
    }
    Ok(())
}

fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(cookie) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(COOKIE, cookie);
    }
}

/// A sender of `te` names it in `connection` (RFC 9110, section 10.1.4).
fn append_option(headers: &mut HeaderMap, option: &'static str) {
    headers.append(CONNECTION, HeaderValue::from_static(option));
}
