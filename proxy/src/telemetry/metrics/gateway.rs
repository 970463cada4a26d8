//! What is counted about a gateway's ports and certificates.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::registry::Registry;

use super::cell::{Counter, Gauge};
use super::{Computed, single, unix_seconds};

/// The families of a gateway.
#[derive(Debug)]
pub(crate) struct GatewayFamilies {
    open_ports: Arc<Gauge>,
    kept_listeners: Arc<Gauge>,
    loaded: Arc<Counter>,
    refused: Arc<Counter>,
    first_end: Arc<Gauge>,
}

impl GatewayFamilies {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let first_end = Arc::new(Gauge::default());
        let ends = Arc::clone(&first_end);
        registry.register(
            "sidewind_gateway_certificate_expiry_timestamp_seconds",
            "When the first of the gateway's certificates expires, in seconds since 1970",
            Computed(move || Some(ends.get()).filter(|at| *at != 0).map(|at| at as f64)),
        );
        Self {
            first_end,
            open_ports: single(
                registry,
                "sidewind_gateway_open_ports",
                "Ports that the gateway listens on",
            ),
            kept_listeners: single(
                registry,
                "sidewind_gateway_kept_listeners",
                "Listeners that go on as an earlier document had them, since they cannot be served as the present one says",
            ),
            loaded: single(
                registry,
                "sidewind_gateway_certificates_loaded",
                "Certificates that were read from their files and are served, new ones and changed ones",
            ),
            refused: single(
                registry,
                "sidewind_gateway_certificates_refused",
                "Certificates whose files cannot be used; the one before stays",
            ),
        }
    }

    /// Says how many ports are open.
    pub(crate) fn set_open_ports(&self, ports: usize) {
        self.open_ports
            .set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    /// Says how many listeners go on as they were before their document changed.
    pub(crate) fn set_kept_listeners(&self, listeners: usize) {
        self.kept_listeners
            .set(i64::try_from(listeners).unwrap_or(i64::MAX));
    }

    /// Counts what a look at the files found, and says when the first certificate ends.
    pub(crate) fn certificates_looked(
        &self,
        loaded: u64,
        refused: u64,
        first_end: Option<SystemTime>,
    ) {
        self.loaded.add(loaded);
        self.refused.add(refused);
        self.first_end.set(first_end.map_or(0, unix_seconds));
    }
}
