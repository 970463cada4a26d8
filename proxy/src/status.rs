//! Tells readiness and metrics what the control side is doing, and shows the configuration.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    admin::{Component, Readiness},
    config::Config,
    control::{Control, ControlStatus, IdentityState},
    telemetry::metrics::Metrics,
};

/// How often the state is looked at though nothing was said: certificates expire in silence.
const CHECK: Duration = Duration::from_secs(1);

/// Follows the control side for ever.
pub(crate) async fn follow(control: Control, readiness: Readiness, metrics: Arc<Metrics>) {
    let mut updates = control.status.clone();
    loop {
        let status = updates.borrow_and_update().clone();
        publish(&status, &readiness, &metrics);
        // An error means that the control side has ended; the process is about to end too.
        if let Ok(Err(_)) = tokio::time::timeout(CHECK, updates.changed()).await {
            return;
        }
    }
}

fn publish(status: &ControlStatus, readiness: &Readiness, metrics: &Metrics) {
    let now = SystemTime::now();
    let usable = matches!(status.identity_state(now), IdentityState::Valid { .. });
    let mut detail = status.identity.as_ref().map_or_else(
        || "no certificate yet".to_owned(),
        |identity| identity.id.to_string(),
    );
    if let Some(error) = &status.identity_error {
        detail = format!("{detail}: {error}");
    }
    readiness.set(Component::Identity, usable, detail);
    let policy = if status.policy_received {
        ""
    } else {
        "not received yet: inbound refuses"
    };
    readiness.set(Component::Policy, status.policy_received, policy);
    let clock_alarm = status.clock_alarm();
    let control_plane = [&status.control_plane, &status.stream_error]
        .into_iter()
        .flatten()
        .chain(&clock_alarm)
        .chain(&status.refused)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(": ");
    readiness.set(Component::ControlPlane, status.connected, control_plane);
    metrics.set_control_plane_connected(status.connected);
    metrics.control.set(status);
    if let Some(identity) = &status.identity {
        metrics.set_certificate_expiry(identity.not_after);
    }
}

/// The configuration in force, for `/config`. It has no secrets: the join token shows its source alone.
pub(crate) fn shown_config(config: &Config) -> Value {
    json!({
        "version": crate::control::VERSION,
        "control": format!("{:?}", config.control),
        "workload": format!("{:?}", config.workload),
        "listeners": format!("{:?}", config.listeners),
        "gateway": format!("{:?}", config.gateway),
        "workload_api": format!("{:?}", config.workload_api),
        "traffic": format!("{:?}", config.traffic),
        "limits": format!("{:?}", config.limits),
        "telemetry": format!("{:?}", config.telemetry),
        "command": format!("{:?}", config.command),
    })
}
