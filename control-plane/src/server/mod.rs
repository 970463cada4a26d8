//! The running control plane.
//!
//! - [`settings`]: what the command line decided, checked
//! - `error`: why there is no control plane
//! - `start`: puts the rooms together, in the order in which they need one another
//! - `resources`: the documents of `--config`, from reading to use
//! - `keeping`: the store: opened, shared with other replicas, remembered
//! - `clock`: whether the wall clock can be believed
//! - `listener`: the gRPC port: TLS, bounds, who is calling
//! - `limits`, `turnstile`: how often somebody may ask; what a call must pass before its request is read
//! - `line`: attestations one after the other, and appointments for those who are too many
//! - `identity`, `mesh`, `session`: the two services for proxies
//! - `authorities`: the certificate authorities looked after, and every change of them told
//! - `admin_socket`, `admin_authority`, `admin_bans`, `admin_explain`, `admin_http`: the command line's socket; probes and metrics
//! - `bundle_endpoint`, `web_certificate`: the own trust bundle for other trust domains; `admin_federation`: theirs
//! - `health`: what readiness is found out by
//! - `measure`: how long calls take

mod admin_authority;
mod admin_bans;
mod admin_explain;
mod admin_federation;
mod admin_http;
mod admin_socket;
mod authorities;
mod bundle_endpoint;
mod clock;
mod error;
mod health;
mod identity;
mod keeping;
pub mod limits;
mod line;
mod listener;
mod measure;
mod mesh;
mod resources;
mod session;
pub mod settings;
mod start;
mod streams;
mod subjects;
mod turnstile;
mod web_certificate;

pub use clock::ClockError;
pub use error::StartError;
pub use limits::Limits;
pub use settings::{BundleEndpoints, Settings, WebEndpoint};
pub use start::Server;
pub use web_certificate::WebCertificateError;

use tokio::sync::watch;

/// Tells every part that the process is to end.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Ends the process gracefully when dropped or told to.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

/// A shutdown that has not happened, and what sets it off.
#[must_use]
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl ShutdownTrigger {
    /// Sets the shutdown off.
    pub fn trigger(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Waits for the shutdown.
    pub async fn wait(mut self) {
        // An error means that the trigger is gone, which is a shutdown too.
        let _triggered = self.0.wait_for(|triggered| *triggered).await;
    }

    /// Whether the shutdown has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}
