use http::Request;

use crate::http::headers::{AuthorityCache, Upgrade, examine_request, request_to_http2};

/// What happens to a request's head between an HTTP/1.1 client and the mesh wire.
#[derive(Debug, Default)]
pub struct HeaderRewriting(AuthorityCache);

impl HeaderRewriting {
    /// Examines a request, removes what concerned only the connection that it came by, and makes it one in HTTP/2.
    /// Gives back how many fields are left, or nothing for a request that is refused.
    pub fn to_wire(&mut self, mut request: Request<()>) -> Option<usize> {
        let examined = examine_request(&request).ok()?;
        let headers = request.headers_mut();
        examined.strip_reserved(headers);
        examined.strip_hop_by_hop(headers, Upgrade::Strip);
        let (mut head, ()) = request.into_parts();
        let authority = self.0.authority(&head.uri, &head.headers).ok()??;
        request_to_http2(&mut head, authority).ok()?;
        Some(head.headers.len())
    }
}
