//! What happens to header fields on the way through a proxy.
//!
//! One pass over a message's field names finds everything that needs a look; for the usual message that is
//! nothing, and the rest is free.

mod convert;
mod examine;
mod forwarded_client_cert;
mod size;

pub(crate) use convert::{AuthorityCache, request_to_http1, request_to_http2};
pub(crate) use examine::{
    BadRequest, Upgrade, clean_trailers, examine_request, examine_response, switches_as_asked,
};
pub(crate) use forwarded_client_cert::{FORWARDED_CLIENT_CERT, forwarded_client_cert};
pub(crate) use size::header_list_bytes;

/// Where an HTTP request over the mesh goes: `ip:port` of the workload.
pub(crate) const SIDEWIND_DESTINATION: http::HeaderName =
    http::HeaderName::from_static("sidewind-destination");
/// `h2` when the workload must be spoken to in HTTP/2.
pub(crate) const SIDEWIND_PROTOCOL: http::HeaderName =
    http::HeaderName::from_static("sidewind-protocol");
/// Stable code of a failure, on responses that a proxy made itself.
pub(crate) const SIDEWIND_ERROR: http::HeaderName = http::HeaderName::from_static("sidewind-error");

#[cfg(test)]
mod tests;
