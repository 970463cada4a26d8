//! What the proxy and the control plane share: the protobuf API `sidewind.v1` and the policy model.
//!
//! - [`v1`]: the generated messages, clients and servers
//! - [`reason`]: the machine-readable reasons of refused calls
//! - [`destination`]: how a proxy names what its workload connects to
//! - [`sigv4`]: requests to AWS, signed
//! - [`service`]: names of services, and names of protocols
//! - [`pattern`]: what an authorization rule may say about methods and paths
//! - [`expression`], [`header_field`]: what a route may say
//! - [`bans`]: identities and certificates that are refused although they are good
//! - [`evidence`]: what is signed when a workload attests
//! - [`clock`]: what each side says of its clock
//! - [`duration`]: durations as people write them in flags and resources
//! - [`codec`]: how messages become bytes
//!
//! Nothing here does input or output, and nothing here decides: rules are evaluated in the proxy and
//! made from resources in the control plane.

pub mod bans;
pub mod clock;
pub mod codec;
pub mod destination;
pub mod duration;
pub mod evidence;
pub mod expression;
pub mod header_field;
pub mod pattern;
pub mod reason;
pub mod service;
pub mod sigv4;

pub use bans::{BanList, Banned};
pub use destination::{Destination, DestinationError};
pub use expression::{Expression, ExpressionError};
pub use reason::Reason;
pub use service::{ServiceName, ServiceNameError};

/// The protobuf API, generated from `proto/sidewind/v1/mesh.proto`.
pub mod v1 {
    #![allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        rustdoc::invalid_html_tags
    )]
    tonic::include_proto!("sidewind.v1");
}

/// The version of this software, which each side names to the other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Most destinations that one proxy may be subscribed to at once.
pub const MAX_SUBSCRIPTIONS: usize = 4096;

/// Most ports that one workload may declare.
pub const MAX_SERVED_PORTS: usize = 256;

/// Most bytes of a certificate signing request.
pub const MAX_CSR_BYTES: usize = 8 * 1024;

/// Most bytes of one message from a proxy.
pub const MAX_PROXY_MESSAGE_BYTES: usize = 64 * 1024;

/// Most bytes of a name that a proxy gives: a version, an instance, a workload.
pub const MAX_NAME_BYTES: usize = 253;
