//! The certificate authority: a root signs an intermediate, the intermediate signs SVIDs.
//!
//! Everything in an SVID comes from its template. Of a certificate signing request only the public key is
//! used, once the request has proved that its sender holds the private one.

mod csr;
mod error;
mod issue;
mod root;
mod signing;

use std::time::Duration;

pub use csr::MAX_CSR_BYTES;
pub use error::{AuthorityLoadError, SignError};
pub use issue::signing_request;
pub use root::{RootAuthority, generate_root};
pub use signing::{SigningAuthority, SvidTemplate};

/// How far certificates begin before they are signed, for peers whose clocks lag.
pub const BACKDATE: Duration = Duration::from_secs(30);
/// The shortest life of an SVID.
pub const MIN_SVID_TTL: Duration = Duration::from_secs(60);
/// The longest life of an SVID.
pub const MAX_SVID_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The most DNS names in one SVID.
pub const MAX_DNS_NAMES: usize = 16;
