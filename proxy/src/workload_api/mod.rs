//! The Workload API: a Unix socket from which programs of the workload get its identity, for connections that they
//! make themselves. It speaks the SPIFFE Workload API (X.509 and JWT profiles) and Envoy's SDS v3.
//!
//! ```text
//! socket ─ connections (bounds, slow readers) ─ gate (who may ask, counted) ─┬ service ─ x509, jwt (tokens)
//!                                                                            ├ sds ─ secrets
//!                                                                            └ reflection
//! control::credentials, status ─ state ───── push: each stream gets the newest state, whole
//! ```
//!
//! Whoever reaches the socket is the workload: there is one identity, and the socket's place and mode are the boundary
//! (SPIFFE Workload Endpoint, section 5). Private keys leave the process here by design, and nowhere else. It has a
//! thread of its own, so that its clients starve neither certificates nor probes nor traffic.

mod authority;
mod call;
mod connections;
mod gate;
mod jwt;
pub(crate) mod proto;
mod push;
mod sds;
mod secrets;
mod service;
mod socket;
mod state;
#[cfg(test)]
mod tests;
mod tokens;
mod x509;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::WorkloadApiConfig;
use crate::control::{Clock, Control};
use crate::telemetry::metrics::Metrics;

use connections::Endpoint;
use gate::Gate;
pub(crate) use socket::{Socket, SocketError};
use state::Sources;
use tokens::{Mint, Tokens};

/// The descriptors of everything that is served, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload_api.bin"));

/// Why there is no Workload API.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the Workload API could not be started")]
    Thread(#[source] std::io::Error),
    #[error("the Workload API's descriptors cannot be read")]
    Descriptors(#[source] tonic_reflection::server::Error),
}

/// The socket with its thread.
#[derive(Debug)]
pub(crate) struct WorkloadApi {
    socket: Socket,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Opens the socket and serves it on a thread of its own, until [`WorkloadApi::stop`].
///
/// # Errors
/// [`StartError`], which says what to change where it is the socket's path.
pub(crate) fn start(
    config: &WorkloadApiConfig,
    control: &Control,
    metrics: &Arc<Metrics>,
) -> Result<WorkloadApi, StartError> {
    let (socket, listener) = Socket::bind(&config.socket, config.mode)?;
    let sources = Sources {
        credentials: control.credentials.clone(),
        status: control.status.clone(),
        bans: control.bans.clone(),
        clock: Clock::default(),
    };
    let minter: Arc<dyn Mint> = Arc::new(control.minter.clone());
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    let (stop, stopped) = watch::channel(false);
    let (present, following) = state::follow(sources);
    let routes = routes(&present, minter)?;
    let gate = Gate::new(routes, Arc::clone(metrics));
    let serving = async move {
        let following = tokio::spawn(following);
        Endpoint::new(gate, stopped).accept(listener).await;
        following.abort();
    };
    let thread = std::thread::Builder::new()
        .name("workload-api".to_owned())
        .spawn(move || runtime.block_on(serving))
        .map_err(StartError::Thread)?;
    tracing::info!(socket = %config.socket.display(), "the Workload API listens");
    Ok(WorkloadApi {
        socket,
        stop,
        thread,
    })
}

impl WorkloadApi {
    /// Where clients reach it.
    pub(crate) fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Ends all connections and removes the socket.
    pub(crate) fn stop(self) {
        tracing::debug!(socket = %self.path().display(), "the Workload API ends");
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the Workload API's thread panicked");
        }
    }
}

fn routes(
    present: &watch::Receiver<state::Present>,
    minter: Arc<dyn Mint>,
) -> Result<Routes, StartError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(StartError::Descriptors)?;
    let mut routes = Routes::builder();
    routes
        .add_service(service::server(present.clone(), Tokens::new(minter)))
        .add_service(sds::server(present.clone()))
        .add_service(reflection.max_decoding_message_size(gate::MAX_MESSAGE_BYTES));
    Ok(routes.routes().prepare())
}
