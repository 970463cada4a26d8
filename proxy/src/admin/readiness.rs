//! Whether the proxy may be sent traffic, and why not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

/// A part of the proxy that readiness depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    /// It holds a certificate that has not expired.
    Identity,
    /// It has received the policy of its workload.
    Policy,
    /// Its listeners are bound.
    Listeners,
    /// The processes of Airflow's tasks can be seen. Told in the detail alone, where tasks are looked for.
    TaskLookup,
    /// The control plane answers. Told in the detail alone: a proxy that has identity and policy
    /// goes on without it.
    ControlPlane,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Part {
    ready: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

#[derive(Debug, Default, Serialize)]
struct Parts {
    identity: Part,
    policy: Part,
    listeners: Part,
    control_plane: Part,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_lookup: Option<Part>,
}

#[derive(Debug, Default)]
struct State {
    parts: Parts,
    draining: bool,
}

/// What `/ready` says. Clones are the same; at first nothing is ready.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readiness(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

/// The document of `/ready`.
#[derive(Serialize)]
struct Document<'a> {
    ready: bool,
    draining: bool,
    components: &'a Parts,
}

impl Readiness {
    /// Sets a component's state and what there is to say about it, such as the reason why it is
    /// not ready. The detail is public.
    pub(crate) fn set(&self, component: Component, ready: bool, detail: impl Into<String>) {
        let mut state = self.state();
        let part = match component {
            Component::Identity => &mut state.parts.identity,
            Component::Policy => &mut state.parts.policy,
            Component::Listeners => &mut state.parts.listeners,
            Component::ControlPlane => &mut state.parts.control_plane,
            Component::TaskLookup => state.parts.task_lookup.get_or_insert_default(),
        };
        *part = Part {
            ready,
            detail: detail.into(),
        };
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// From now on the proxy is not ready, whatever its parts say.
    pub(crate) fn set_draining(&self) {
        self.state().draining = true;
    }

    /// Waits until the proxy may be sent traffic.
    pub(crate) async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    /// Whether the proxy may be sent traffic.
    pub(crate) fn is_ready(&self) -> bool {
        self.state().is_ready()
    }

    /// Whether it is ready, and the JSON document that says why.
    pub(crate) fn document(&self) -> (bool, String) {
        let state = self.state();
        let ready = state.is_ready();
        let document = Document {
            ready,
            draining: state.draining,
            components: &state.parts,
        };
        (ready, serde_json::to_string(&document).unwrap_or_default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_ready(&self) -> bool {
        let Parts {
            identity,
            policy,
            listeners,
            control_plane: _,
            task_lookup: _,
        } = &self.parts;
        !self.draining && identity.ready && policy.ready && listeners.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_ready_when_identity_policy_and_listeners_are() {
        let readiness = Readiness::default();
        for component in [Component::Identity, Component::Policy, Component::Listeners] {
            assert!(!readiness.is_ready());
            readiness.set(component, true, "");
        }
        assert!(readiness.is_ready(), "the control plane is not needed");
        readiness.set(Component::Identity, false, "expired");
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_draining_proxy_is_not_ready_and_says_so() {
        let readiness = Readiness::default();
        for component in [Component::Identity, Component::Policy, Component::Listeners] {
            readiness.set(component, true, "");
        }
        readiness.set(Component::ControlPlane, false, "connection refused");
        readiness.set(Component::TaskLookup, false, "alone");
        readiness.set_draining();
        let (ready, document) = readiness.document();
        assert!(!ready);
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        let expected = serde_json::json!({
            "ready": false, "draining": true,
            "components": {
                "identity": {"ready": true}, "policy": {"ready": true},
                "listeners": {"ready": true},
                "control_plane": {"ready": false, "detail": "connection refused"},
                "task_lookup": {"ready": false, "detail": "alone"},
            },
        });
        assert_eq!(document, expected);
    }
}
