//! Foreign trust domains (SPIFFE Federation): their bundles, fetched again and again, kept, and handed to those workloads
//! whose registrations name them.
//!
//! - [`document`]: bundles between the API's form and that of documents
//! - [`fetch`]: one document from its endpoint
//! - [`judge`]: whether a fetched document takes the place of the present one
//! - `relations`: what is known of each trust domain, and what follows from it
//! - `poll`: asks an endpoint for as long as its trust domain is configured
//!
//! Every replica asks every endpoint, and each document is judged in a transaction against the one in the store, so that
//! all come to the same one, however they hear of it. A bundle is never merged with another: each trust domain has its own.

pub mod document;
pub mod fetch;
pub mod judge;
mod poll;
mod relations;
pub use relations::Federation;
