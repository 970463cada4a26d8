//! What becomes of connections that get no answer: a count, and a line a minute for each cause.

use std::{error::Error, net::SocketAddr, time::Duration};

use super::Worker;
use crate::{
    capture::CaptureError,
    complaints::complain,
    errors::{Chain, ErrorCode, ProxyError},
    mesh::AcceptError,
    telemetry::{Direction, logs::Throttle},
};

impl Worker {
    /// Counts what a client did wrong outside of any request that was read, and logs it once a minute for each
    /// cause. A client that went away is no news.
    pub(crate) fn not_http(
        &self,
        direction: Direction,
        code: ErrorCode,
        error: &(dyn Error + 'static),
    ) {
        if complain(direction, code, error) {
            self.telemetry.metrics().error(direction, code);
        } else {
            tracing::debug!(error = %Chain(error), "an HTTP connection ended");
        }
    }

    /// Counts and, once a minute, logs a connection that was refused before it could be told why.
    pub(crate) fn refused(&self, client: SocketAddr, error: &ProxyError) {
        self.refused_by(Direction::Inbound, client, error);
    }

    /// The same, whichever way it was to go.
    pub(crate) fn refused_by(&self, direction: Direction, client: SocketAddr, error: &ProxyError) {
        static REFUSED: Throttle = Throttle::new();
        self.telemetry.metrics().error(direction, error.code());
        if let Some(suppressed) = REFUSED.admit() {
            tracing::warn!(%client, code = %error.code(), error = %error.chain(), suppressed, "a connection was refused");
        }
    }

    /// The same for a failed handshake on the mesh port.
    pub(crate) fn handshake_failed(&self, client: SocketAddr, error: &AcceptError) {
        static FAILED: Throttle = Throttle::new();
        if let Some(suppressed) = FAILED.admit() {
            tracing::warn!(%client, cause = error.cause(), error = %Chain(error), suppressed, "a mesh handshake failed");
        }
    }

    /// The same for a connection of which nobody knows what it was for.
    pub(crate) fn not_captured(
        &self,
        direction: Direction,
        client: SocketAddr,
        error: &CaptureError,
    ) {
        static LOST: Throttle = Throttle::new();
        self.telemetry
            .metrics()
            .error(direction, ErrorCode::LoopDetected);
        if let Some(suppressed) = LOST.admit() {
            tracing::warn!(%client, error = %Chain(error), suppressed, "a connection was closed: its destination is not known");
        }
    }

    /// Counts a connection that found the listener full.
    pub(crate) fn overloaded(&self, direction: Direction) {
        self.telemetry
            .metrics()
            .error(direction, ErrorCode::Overloaded);
    }

    /// Names the remedy for a client that said nothing while its protocol was to be detected.
    pub(crate) fn silent_client(&self, destination: &dyn std::fmt::Display, waited: Duration) {
        static SILENT: Throttle = Throttle::new();
        if let Some(suppressed) = SILENT.admit() {
            tracing::warn!(%destination, ?waited, suppressed, "a client said nothing, so its connection counts as opaque TCP; declare the port's protocol as tcp to spare its connections the wait");
        }
    }
}
