//! The tests of the public interface, in one binary: linking one is quicker than linking many.

mod authority;
mod bounds;
mod bundle_documents;
mod bundles;
mod conformance;
mod handshake;
mod ids;
mod jws;
mod jwt_svids;
mod keys;
mod patterns;
mod requests;
mod scenario;
mod shared_secrets;
mod support;
mod tasks;
mod tokens;
