//! The control plane over its real ports: TLS, gRPC, Unix socket, files, processes.
//!
//! - `support`: a control plane in this process or one of its own, and a proxy's side of the API
//! - `attestation`, `issuers`: Kubernetes and OIDC tokens, against a `stub` that answers as told
//! - `canary`: what is told to nobody
//! - `issuance`, `tokens`: what certificates are given for, and what is refused
//! - `tasks`: certificates of Airflow tasks
//! - `discovery`, `policy`: what streams are sent
//! - `bans`, `explain`, `authorities`: what the command line does and shows
//! - `forged`: certificates by keys of authorities that were stolen
//! - `replicas`: several control planes on one PostgreSQL database
//! - `restored`: a database that was put back to an older copy
//! - `bounds`, `turnstile`, `admin_port`: what strangers can cost, by connection and by call
//! - `floods`, `intruders`: clients that break the spirit of HTTP/2, or ask for what is not theirs
//! - `audit`: what was granted and refused, and that it stays as it was
//! - `logs`: what is logged, how often, and how that is changed
//! - `lifecycle`: restarts, signals, bad flags and files, with the real program

mod admin_port;
mod attestation;
mod audit;
mod authorities;
mod bans;
mod bounds;
mod canary;
mod discovery;
mod explain;
mod federation;
mod floods;
mod forged;
mod intruders;
mod issuance;
mod issuers;
mod jwt_svids;
mod lifecycle;
mod logs;
mod policy;
#[path = "../postgres/mod.rs"]
mod postgres;
mod replicas;
mod restored;
mod restored_under;
#[path = "../../src/attest/testing.rs"]
mod signer;
mod stub;
mod support;
mod tasks;
mod tokens;
mod turnstile;
