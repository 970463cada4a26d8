//! How large a request's header is.

use http::{HeaderName, Request};

use super::{SIDEWIND_DESTINATION, SIDEWIND_PROTOCOL};

/// What RFC 9113, section 6.5.2 adds for each field.
const FIELD_OVERHEAD_BYTES: usize = 32;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The size of a request's header list as HTTP/2 counts it (RFC 9113, section 6.5.2): names and values before
/// compression, pseudo-header fields among them, and 32 bytes for each field.
///
/// What a proxy adds on the way does not count: a request that the first one takes would be too large for the next.
pub(crate) fn header_list_bytes<B>(request: &Request<B>) -> usize {
    let field = |name: &str, value: usize| name.len() + value + FIELD_OVERHEAD_BYTES;
    let uri = request.uri();
    let mut bytes = field(":method", request.method().as_str().len());
    if let Some(scheme) = uri.scheme_str() {
        bytes += field(":scheme", scheme.len());
    }
    if let Some(authority) = uri.authority() {
        bytes += field(":authority", authority.as_str().len());
    }
    if let Some(path) = uri.path_and_query() {
        bytes += field(":path", path.as_str().len());
    }
    let headers = request.headers().iter();
    let added = [&SIDEWIND_DESTINATION, &SIDEWIND_PROTOCOL, &TRACEPARENT];
    bytes
        + headers
            .filter(|(name, _)| !added.contains(name))
            .map(|(name, value)| field(name.as_str(), value.len()))
            .sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts_with_its_overhead() {
        let request = Request::get("http://a.b/c?d")
            .header("x", "yz")
            .header("x", "")
            .header("traceparent", "00-1-1-00")
            .header("sidewind-destination", "10.0.0.1:80")
            .body(())
            .unwrap();
        // RFC 7541, appendix C.3.1 counts the pseudo-header fields likewise.
        let pseudo = (7 + 3) + (7 + 4) + (10 + 3) + (5 + 4) + 4 * 32;
        assert_eq!(
            header_list_bytes(&request),
            pseudo + (1 + 2 + 32) + (1 + 32)
        );
        let connect = Request::connect("a.b:80").body(()).unwrap();
        assert_eq!(header_list_bytes(&connect), (7 + 7) + (10 + 6) + 2 * 32);
    }
}
