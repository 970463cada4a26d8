//! Metrics of the certificate authorities.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What is counted and measured of the authorities.
#[derive(Debug, Default)]
pub struct AuthorityMetrics {
    expiry: Family<Labels<2>, Gauge<f64, AtomicU64>>,
    rotations: Family<Labels<2>, Counter>,
    given_reads: Family<Labels<1>, Counter>,
    /// Sequence of the own trust domain's bundle.
    pub bundle_sequence: Gauge,
    /// Live proxies that have not acknowledged a prepared root.
    pub laggards: Gauge,
    /// 1 when the certificate and key in use are those that are given now, 0 when what is given is refused.
    pub given_current: Gauge,
}

impl AuthorityMetrics {
    /// Adds them to a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "authority_expiry_timestamp_seconds",
            "When the first certificate authority of a role and state ends, in seconds since 1970",
            self.expiry.clone(),
        );
        registry.register(
            "authority_rotations",
            "Steps in the life of certificate authorities, by role and step",
            self.rotations.clone(),
        );
        registry.register(
            "authority_laggards",
            "Live proxies that have not acknowledged the trust bundle with a prepared root",
            self.laggards.clone(),
        );
        registry.register(
            "authority_given_reads",
            "Looks at the root or signing certificate that is given as files, by outcome",
            self.given_reads.clone(),
        );
        registry.register(
            "authority_given_current",
            "1 when the certificate and key in use are those that are given now, 0 when what is given is refused",
            self.given_current.clone(),
        );
        registry.register(
            "bundle_sequence",
            "Sequence of the own trust domain's bundle",
            self.bundle_sequence.clone(),
        );
    }

    /// Counts a step.
    pub fn count_step(&self, role: &'static str, step: &'static str) {
        self.rotations
            .get_or_create(&[("role", role), ("step", step)])
            .inc();
    }

    /// Counts a look at what is given.
    pub fn count_given(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "refused" };
        self.given_reads
            .get_or_create(&[("outcome", outcome)])
            .inc();
        self.given_current.set(i64::from(taken));
    }

    /// Notes the ends of every authority: role, state and end of each. What is not among them is not shown.
    pub fn set_expiries(
        &self,
        ends: impl Iterator<Item = (&'static str, &'static str, SystemTime)>,
    ) {
        self.expiry.clear();
        for (role, state, end) in ends {
            let end = end
                .duration_since(UNIX_EPOCH)
                .unwrap_or(Duration::ZERO)
                .as_secs_f64();
            let gauge = self
                .expiry
                .get_or_create(&[("role", role), ("state", state)]);
            let first = match gauge.get() {
                none if none <= 0.0 => end,
                other => other.min(end),
            };
            gauge.set(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn the_first_end_of_each_role_and_state_is_shown_and_what_is_gone_is_not() {
        let metrics = Metrics::new();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let ends = [
            ("root", "old", at(7)),
            ("root", "old", at(5)),
            ("root", "active", at(9)),
        ];
        metrics.authority.set_expiries(ends.into_iter());
        metrics.authority.set_expiries(ends.into_iter().take(2));
        metrics.authority.count_step("root", "prepared");
        metrics.authority.count_given(false);
        let text = metrics.encode();
        let expiry = "sidewind_authority_expiry_timestamp_seconds";
        for expected in [
            &format!("{expiry}{{role=\"root\",state=\"old\"}} 5.0"),
            "sidewind_authority_rotations_total{role=\"root\",step=\"prepared\"} 1",
            "sidewind_authority_given_reads_total{outcome=\"refused\"} 1",
            "sidewind_authority_given_current 0",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(!text.contains("state=\"active\""), "{text}");
    }
}
