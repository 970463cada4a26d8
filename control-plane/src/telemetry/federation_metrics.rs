//! Metrics of foreign trust domains. Their names are the operator's own, and few.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// What somebody should look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FederationAlarm {
    /// A document with a lower sequence than the present one was served.
    Rollback,
    /// A document had other keys under the same sequence.
    SameSequence,
    /// An element of a document was left out.
    Element,
    /// A document has a key of another trust domain.
    SharedKey,
}

impl FederationAlarm {
    /// Its name in metrics, logs and audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::SameSequence => "same-sequence",
            Self::Element => "element",
            Self::SharedKey => "shared-key",
        }
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

/// What is known of one trust domain at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct FederationState {
    /// Which.
    pub trust_domain: String,
    /// Sequence of its bundle, where there is one.
    pub sequence: Option<u64>,
    /// Since when its endpoint has not been heard.
    pub age: Duration,
    /// Whether that is longer than it should be.
    pub stale: bool,
}

/// What is counted and measured of foreign trust domains.
#[derive(Debug, Default)]
pub struct FederationMetrics {
    sequence: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    age: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    stale: Family<Labels<1>, Gauge>,
    fetches: Family<Labels<2>, Counter>,
    alarms: Family<Labels<2>, Counter>,
    served: Family<[(&'static str, &'static str); 2], Counter>,
}

impl FederationMetrics {
    /// Adds them to a registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "federation_bundle_sequence",
            "Sequence of the present bundle of a foreign trust domain",
            self.sequence.clone(),
        );
        registry.register(
            "federation_bundle_age_seconds",
            "How long ago the bundle endpoint of a foreign trust domain was last heard",
            self.age.clone(),
        );
        registry.register(
            "federation_bundle_stale",
            "1 while the bundle endpoint of a foreign trust domain has not been heard for three times as long as it should",
            self.stale.clone(),
        );
        registry.register(
            "federation_fetches",
            "Fetches of bundles of foreign trust domains, by outcome: taken, unchanged, refused, failed",
            self.fetches.clone(),
        );
        registry.register(
            "federation_alarms",
            "What somebody should look into in bundles of foreign trust domains, by kind",
            self.alarms.clone(),
        );
        registry.register(
            "bundle_endpoint_requests",
            "Requests to the own bundle endpoint, by profile and outcome",
            self.served.clone(),
        );
    }

    /// Shows these trust domains and no others.
    pub fn set(&self, states: &[FederationState]) {
        self.sequence.clear();
        self.age.clear();
        self.stale.clear();
        for state in states {
            let domain = [("trust_domain", state.trust_domain.clone())];
            if let Some(sequence) = state.sequence {
                self.sequence.get_or_create(&domain).set(sequence as f64);
            }
            self.age.get_or_create(&domain).set(state.age.as_secs_f64());
            self.stale
                .get_or_create(&domain)
                .set(i64::from(state.stale));
        }
    }

    /// Counts a fetch.
    pub fn count_fetch(&self, trust_domain: &str, outcome: &'static str) {
        let labels = [
            ("trust_domain", trust_domain.to_owned()),
            ("outcome", outcome.to_owned()),
        ];
        self.fetches.get_or_create(&labels).inc();
    }

    /// Counts an alarm.
    pub fn count_alarm(&self, trust_domain: &str, alarm: FederationAlarm) {
        let labels = [
            ("trust_domain", trust_domain.to_owned()),
            ("kind", alarm.as_str().to_owned()),
        ];
        self.alarms.get_or_create(&labels).inc();
    }

    /// Counts what became of a connection to the own bundle endpoint.
    pub fn count_served(&self, profile: &'static str, outcome: &'static str) {
        self.served
            .get_or_create(&[("profile", profile), ("outcome", outcome)])
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn what_is_known_of_trust_domains_is_shown_and_what_is_gone_is_not() {
        let metrics = Metrics::new();
        let state = |name: &str| FederationState {
            trust_domain: name.to_owned(),
            sequence: Some(7),
            age: Duration::from_secs(5),
            stale: true,
        };
        metrics
            .federation
            .set(&[state("a.example"), state("b.example")]);
        metrics.federation.set(&[state("a.example")]);
        metrics.federation.count_fetch("a.example", "taken");
        let rollback = FederationAlarm::Rollback;
        metrics.federation.count_alarm("a.example", rollback);
        metrics.federation.count_served("https_web", "served");
        let text = metrics.encode();
        let of = "trust_domain=\"a.example\"";
        for expected in [
            &format!("sidewind_federation_bundle_sequence{{{of}}} 7.0"),
            &format!("sidewind_federation_bundle_age_seconds{{{of}}} 5.0"),
            &format!("sidewind_federation_bundle_stale{{{of}}} 1"),
            &format!("sidewind_federation_fetches_total{{{of},outcome=\"taken\"}} 1"),
            &format!("sidewind_federation_alarms_total{{{of},kind=\"rollback\"}} 1"),
            "sidewind_bundle_endpoint_requests_total{profile=\"https_web\",outcome=\"served\"} 1",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(!text.contains("b.example"), "{text}");
    }
}
