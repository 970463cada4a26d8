//! Requests that the control plane makes to others: API servers, issuers, token services.
//!
//! - [`url`]: where they go
//! - [`client`]: one request on a connection of its own: TLS 1.3 against named authorities or a SPIFFE ID, bounded
//!   in time and size, redirects never followed
//!
//! Where a request goes is for the configuration to say, never for what is being checked.

pub mod client;
pub mod url;

pub use client::{HttpsError, HttpsRequest, HttpsResponse, Server, read_bounded, send, send_to};
pub use url::{HttpsUrl, HttpsUrlError};
