//! The control plane's metrics. Every label has a fixed set of values.

use super::{AuthorityMetrics, FederationMetrics};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms = Family<Labels<2>, Histogram, fn() -> Histogram>;

/// Every metric of the control plane.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    issued: Family<Labels<1>, Counter>,
    refused: Family<Labels<2>, Counter>,
    rpc_duration: Histograms,
    certificate_expiry: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    config_reloads: Family<Labels<1>, Counter>,
    connections_refused: Family<Labels<1>, Counter>,
    admin_connections_refused: Family<Labels<2>, Counter>,
    clock_ahead: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    calls_refused: Family<Labels<2>, Counter>,
    streams_ended: Family<Labels<1>, Counter>,
    healthy: Family<Labels<1>, Gauge>,
    messages_sent: Family<Labels<1>, Counter>,
    /// Times that the wall clock jumped.
    pub clock_jumps: Counter,
    /// Connections open on the gRPC port, with those still in their handshake.
    pub connections: Gauge,
    /// Streams of proxies.
    pub connected_proxies: Gauge,
    /// Workloads in discovery, with those not yet back after a restart.
    pub workloads: Gauge,
    /// Workloads known from before a restart and not yet back.
    pub unconfirmed_workloads: Gauge,
    /// Registrations with a living certificate.
    pub registrations: Gauge,
    /// Destinations that at least one proxy is subscribed to.
    pub subscribed_destinations: Gauge,
    /// 1 when the resources in use are those on disk, 0 when a newer version of them was refused.
    pub config_current: Gauge,
    /// 1 when the last use of the store worked, 0 when it failed.
    pub store_up: Gauge,
    /// Replicas that live, this one included.
    pub replicas: Gauge,
    /// Replicas that have not shown for ten seconds that they live.
    pub silent_replicas: Gauge,
    /// Times that the store was found to be an older copy of itself.
    pub store_restored: Counter,
    /// Failed attempts to write to the store.
    pub store_failures: Counter,
    /// Writes that were given up: audit, certificates, workloads.
    pub store_writes_lost: Counter,
    /// Records of refusals that were only counted, because a flood of them came.
    pub audit_suppressed: Counter,
    /// Certificate authorities.
    pub authority: AuthorityMetrics,
    /// Foreign trust domains.
    pub federation: FederationMetrics,
}

fn rpc_histogram() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("sidewind"),
            issued: Family::default(),
            refused: Family::default(),
            rpc_duration: Family::new_with_constructor(rpc_histogram),
            certificate_expiry: Family::default(),
            config_reloads: Family::default(),
            connections_refused: Family::default(),
            admin_connections_refused: Family::default(),
            clock_ahead: Family::default(),
            clock_jumps: Counter::default(),
            calls_refused: Family::default(),
            streams_ended: Family::default(),
            healthy: Family::default(),
            messages_sent: Family::default(),
            connections: Gauge::default(),
            connected_proxies: Gauge::default(),
            workloads: Gauge::default(),
            unconfirmed_workloads: Gauge::default(),
            registrations: Gauge::default(),
            subscribed_destinations: Gauge::default(),
            config_current: Gauge::default(),
            store_up: Gauge::default(),
            replicas: Gauge::default(),
            silent_replicas: Gauge::default(),
            store_restored: Counter::default(),
            store_failures: Counter::default(),
            store_writes_lost: Counter::default(),
            audit_suppressed: Counter::default(),
            authority: AuthorityMetrics::default(),
            federation: FederationMetrics::default(),
        };
        metrics.authority.register(&mut metrics.registry);
        metrics.federation.register(&mut metrics.registry);
        metrics.register_identity();
        metrics.register_connections();
        metrics.register_discovery();
        metrics.register_store();
        metrics
    }

    fn register_identity(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "build",
            "The running version",
            Info::new([("version", sidewind_api::VERSION)]),
        );
        registry.register(
            "svids_issued",
            "Certificates and tokens issued, by call",
            self.issued.clone(),
        );
        registry.register(
            "svid_refusals",
            "Certificates and tokens refused, by call and reason",
            self.refused.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the control plane's own certificates and keys end, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "rpc_duration_seconds",
            "Time from a call's arrival to its answer, for a stream to its first",
            self.rpc_duration.clone(),
        );
        registry.register(
            "registrations",
            "Registrations with a living certificate",
            self.registrations.clone(),
        );
    }

    fn register_connections(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "connections",
            "Connections open on the gRPC port, with those still in their handshake",
            self.connections.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed before their first call, by reason",
            self.connections_refused.clone(),
        );
        registry.register(
            "admin_connections_refused",
            "Connections to the admin port and socket closed before their answer, by listener and reason",
            self.admin_connections_refused.clone(),
        );
        registry.register(
            "calls_refused",
            "Calls refused before their request was read, by call and reason",
            self.calls_refused.clone(),
        );
        registry.register(
            "streams_ended",
            "Streams of proxies that have ended, by reason",
            self.streams_ended.clone(),
        );
        registry.register(
            "healthy",
            "1 when the last health check found this part working, 0 when not",
            self.healthy.clone(),
        );
    }

    fn register_discovery(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "connected_proxies",
            "Proxies with an open stream",
            self.connected_proxies.clone(),
        );
        registry.register(
            "workloads",
            "Workloads in discovery",
            self.workloads.clone(),
        );
        registry.register(
            "unconfirmed_workloads",
            "Workloads known from before a restart and not yet back",
            self.unconfirmed_workloads.clone(),
        );
        registry.register(
            "subscribed_destinations",
            "Destinations that at least one proxy is subscribed to",
            self.subscribed_destinations.clone(),
        );
        registry.register(
            "messages_sent",
            "Messages sent to proxies, by kind",
            self.messages_sent.clone(),
        );
    }

    fn register_store(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "config_reloads",
            "Reads of changed resources, by outcome",
            self.config_reloads.clone(),
        );
        registry.register(
            "config_current",
            "1 when the resources in use are those on disk, 0 when newer ones were refused",
            self.config_current.clone(),
        );
        registry.register(
            "store_up",
            "1 when the last use of the store worked, 0 when it failed",
            self.store_up.clone(),
        );
        registry.register(
            "clock_jumps",
            "Times that the wall clock jumped by more than 30 s",
            self.clock_jumps.clone(),
        );
        registry.register(
            "clock_ahead_seconds",
            "How far this process's clock is ahead of another, negative when behind",
            self.clock_ahead.clone(),
        );
        registry.register(
            "replicas",
            "Replicas of the control plane that live, this one included",
            self.replicas.clone(),
        );
        registry.register(
            "silent_replicas",
            "Replicas that have died or alone lost the store, and whose workloads are still in discovery",
            self.silent_replicas.clone(),
        );
        registry.register(
            "store_restored",
            "Times that the store was found to be an older copy of itself",
            self.store_restored.clone(),
        );
        registry.register(
            "store_failures",
            "Failed attempts to write to the store",
            self.store_failures.clone(),
        );
        registry.register(
            "store_writes_lost",
            "Writes that were given up: audit, certificates, workloads",
            self.store_writes_lost.clone(),
        );
        registry.register(
            "audit_suppressed",
            "Refusals that were counted but not recorded one by one, because a flood of them came",
            self.audit_suppressed.clone(),
        );
    }

    /// Counts an issued certificate.
    pub fn count_issued(&self, call: &'static str) {
        self.issued.get_or_create(&[("call", call)]).inc();
    }

    /// Counts a refused certificate.
    pub fn count_refused(&self, call: &'static str, reason: &'static str) {
        let labels = [("call", call), ("reason", reason)];
        self.refused.get_or_create(&labels).inc();
    }

    /// Notes how long a call took.
    pub fn observe_rpc(&self, method: &'static str, code: &'static str, took: Duration) {
        let labels = [("method", method), ("code", code)];
        self.rpc_duration
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Notes how far the clock is ahead of another one: `store`, or that of the replica that differs most, `replica`.
    pub fn set_clock_ahead(&self, of: &'static str, seconds: f64) {
        self.clock_ahead.get_or_create(&[("of", of)]).set(seconds);
    }

    /// Notes the end of one of the control plane's own certificates: `root`, `signing` or `own`.
    pub fn set_certificate_expiry(&self, certificate: &'static str, not_after: SystemTime) {
        let since = not_after.duration_since(SystemTime::UNIX_EPOCH);
        let labels = [("certificate", certificate)];
        self.certificate_expiry
            .get_or_create(&labels)
            .set(since.unwrap_or_default().as_secs_f64());
    }

    /// Counts a read of changed resources.
    pub fn count_config_reload(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "refused" };
        self.config_reloads
            .get_or_create(&[("outcome", outcome)])
            .inc();
        self.config_current.set(i64::from(taken));
    }

    /// Counts a connection that was closed before its first call.
    pub fn count_connection_refused(&self, reason: &'static str) {
        self.connections_refused
            .get_or_create(&[("reason", reason)])
            .inc();
    }

    /// Counts a connection to the admin port (`http`) or socket (`socket`) that was closed before its answer.
    pub fn count_admin_connection_refused(&self, listener: &'static str, reason: &'static str) {
        self.admin_connections_refused
            .get_or_create(&[("listener", listener), ("reason", reason)])
            .inc();
    }

    /// Counts a call that was refused before its request was read.
    pub fn count_call_refused(&self, call: &'static str, reason: &'static str) {
        self.calls_refused
            .get_or_create(&[("call", call), ("reason", reason)])
            .inc();
    }

    /// Counts the end of a stream: `closed`, or why it was ended.
    pub fn count_stream_ended(&self, reason: &'static str) {
        self.streams_ended
            .get_or_create(&[("reason", reason)])
            .inc();
    }

    /// Notes what a health check found.
    pub fn set_healthy(&self, check: &'static str, healthy: bool) {
        self.healthy
            .get_or_create(&[("check", check)])
            .set(i64::from(healthy));
    }

    /// Counts a message to a proxy.
    pub fn count_message(&self, kind: &'static str) {
        self.messages_sent.get_or_create(&[("kind", kind)]).inc();
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _infallible = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, type and labels of every row of the control plane's table in the documentation.
    fn documented() -> Vec<(String, String)> {
        let page = include_str!("../../../docs/metrics.md");
        let (_, section) = page.split_once("## The control plane\n").unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let cells = rows.map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.replace('`', "")).collect();
            (cells[1].trim().to_owned(), cells[2].trim().to_owned())
        });
        cells.collect()
    }

    #[test]
    fn the_documentation_lists_every_metric_with_its_type() {
        // A family without a label's value is not in the text, so the registrations themselves are read.
        let (code, _) = include_str!("metrics.rs")
            .split_once("#[cfg(test)]")
            .unwrap();
        let code = [
            code,
            include_str!("authority_metrics.rs"),
            include_str!("federation_metrics.rs"),
        ]
        .concat();
        fn named(call: &str) -> Option<&str> {
            Some(call.trim_start().strip_prefix('"')?.split_once('"')?.0)
        }
        let mut registered: Vec<_> = code.split("registry.register(").filter_map(named).collect();
        let rows = documented();
        let mut listed: Vec<_> = rows
            .iter()
            .map(|(name, kind)| {
                let name = name.strip_prefix("sidewind_").unwrap();
                let suffix = if name == "build_info" {
                    "_info"
                } else {
                    "_total"
                };
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
                name.strip_suffix(suffix).unwrap_or(name)
            })
            .collect();
        registered.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, registered);
    }

    #[test]
    fn metrics_have_the_prefix_and_a_help_text() {
        let metrics = Metrics::new();
        metrics.count_issued("attest");
        metrics.count_refused("attest", "join-token-used");
        metrics.observe_rpc("Attest", "ok", Duration::from_millis(3));
        metrics.set_certificate_expiry("root", SystemTime::now());
        let text = metrics.encode();
        for expected in [
            "sidewind_build_info{version=\"",
            "sidewind_svids_issued_total{call=\"attest\"} 1",
            "sidewind_svid_refusals_total{call=\"attest\",reason=\"join-token-used\"} 1",
            "sidewind_rpc_duration_seconds_count{method=\"Attest\",code=\"ok\"} 1",
            "# HELP sidewind_connected_proxies ",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
