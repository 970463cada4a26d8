//! The Sidewind control plane: certificate authority, registry, discovery and policy.
//!
//! In the order in which a proxy meets them:
//!
//! - [`server`]: the ports, TLS, who is calling
//! - [`attest`]: evidence in, what its bearer may have out
//! - [`issuance`]: the authority, and the one place that certificates leave from
//! - [`registry`]: who is in the mesh and who wants to know; destinations into endpoints
//! - [`config`]: the resources of `--config`, checked: policies, service entries, routes,
//!   registrations, attestors
//! - [`federation`]: foreign trust domains and their bundles
//! - [`store`]: what survives a restart
//! - [`https`]: requests to others: API servers, issuers
//! - [`telemetry`]: metrics and logs
//! - [`cli`]: the command line, which makes settings of flags and asks a running server
//!
//! `server` knows all the others. `registry`, `issuance` and `config` do no input or output of their own
//! but through `store`.

pub mod attest;
pub mod cli;
pub mod config;
pub mod federation;
pub mod https;
pub mod issuance;
pub mod registry;
pub mod server;
pub mod store;
pub mod telemetry;
