use std::sync::Arc;

use http::Method;
use sidewind_api::v1;
use sidewind_identity::SpiffeId;

use crate::policy::{CallerPolicy, Decision, InboundPolicy};

/// What holds for one caller on one port, where the rules look at method and path.
#[derive(Debug)]
pub struct Authorization(CallerPolicy);

impl Default for Authorization {
    /// A policy of ten rules, of which two are for the caller.
    ///
    /// # Panics
    /// When the rules here are wrong.
    fn default() -> Self {
        let rule = |caller: &str, path: &str| v1::AllowRule {
            policy: "api-server".into(),
            sources: vec![format!("spiffe://sidewind.local/ns/airflow/sa/{caller}")],
            ports: vec![8080],
            methods: vec!["GET".into(), "POST".into()],
            path_patterns: vec![path.into()],
        };
        let others = (0..8).map(|number| rule(&format!("other-{number}"), "/"));
        let own = [rule("worker", "/execution/*"), rule("worker", "/api/v2/*")];
        let policy = v1::InboundPolicy {
            plaintext: v1::PlaintextMode::Strict.into(),
            default_deny: true,
            rules: others.chain(own).collect(),
            ..v1::InboundPolicy::default()
        };
        let policy = Arc::new(InboundPolicy::compile(&policy).expect("good rules"));
        let worker = SpiffeId::parse("spiffe://sidewind.local/ns/airflow/sa/worker");
        Self(policy.for_caller(Some(&worker.expect("an ID")), 8080))
    }
}

impl Authorization {
    /// Whether the caller may do this.
    pub fn allows(&self, method: &Method, path: &str) -> bool {
        matches!(
            self.0.authorize_request(method, path),
            Decision::Allow { .. }
        )
    }
}
