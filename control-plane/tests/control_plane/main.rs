//! The control plane over its real ports: TLS, gRPC, Unix socket, files, processes.
//!
//! - `support`: a control plane in this process or one of its own, and a proxy's side of the API
//! - `issuance`, `tokens`: what certificates are given for, and what is refused
//! - `discovery`, `policy`: what streams are sent
//! - `bounds`: what strangers can cost
//! - `lifecycle`: restarts, signals, bad flags and files, with the real program

mod bans;
mod bounds;
mod discovery;
mod issuance;
mod lifecycle;
mod policy;
mod support;
mod tokens;
