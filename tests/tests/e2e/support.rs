//! What several stories begin with.

use std::net::SocketAddr;

use sidewind_tests::mesh::{Mesh, MeshPlan, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

pub(crate) const API_ID: &str = "spiffe://sidewind.local/ns/data/sa/orders-api";
pub(crate) const TASK_ID: &str = "spiffe://sidewind.local/ns/airflow/sa/task";

/// Where the client finds the API.
pub(crate) const API: &str = "http://orders-api.data:8080";

/// A task that calls an API, each beside a sidecar, transparently. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) task: Workload,
    pub(crate) api: Workload,
    pub(crate) server: Process,
    pub(crate) mesh: Mesh,
}

impl Pair {
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with(Mesh::plan())
    }

    #[track_caller]
    pub(crate) fn with(plan: MeshPlan) -> Self {
        Self::serving(plan, "orders-api.data=8080")
    }

    /// The same with the API's port declared so.
    #[track_caller]
    pub(crate) fn serving(plan: MeshPlan, port: &str) -> Self {
        let mut mesh = plan.start();
        let api = mesh.workload("data", "orders-api").serves(port).start();
        let server = workloads::api(&api, 8080, &mesh.scratch);
        let task = mesh.workload("airflow", "task").start();
        Self {
            task,
            api,
            server,
            mesh,
        }
    }

    /// Waits until the API works on that many requests: each holds one of its threads.
    #[track_caller]
    pub(crate) fn wait_for_work(&self, requests: usize) {
        working_on(&self.server, requests);
    }

    /// `curl` from the task, with the URL's path and further arguments.
    pub(crate) fn curl(&self, path: &str, arguments: &[&str]) -> String {
        self.task
            .curl(arguments)
            .arg(format!("{API}{path}"))
            .finish()
            .success()
    }

    /// As [`Pair::curl`], and gives status, the `sidewind-error` header and body.
    pub(crate) fn ask(&self, path: &str, arguments: &[&str]) -> Answer {
        Answer::parse(&self.curl(path, &[arguments, &["-i"]].concat()))
    }
}

/// Waits until an API works on that many requests: each holds one of its threads.
#[track_caller]
pub(crate) fn working_on(api: &Process, requests: usize) {
    let threads = format!("/proc/{}/task", api.id());
    eventually("the API works on the requests", PATIENCE, || {
        let threads = std::fs::read_dir(&threads).map_or(0, Iterator::count);
        (threads > requests).then_some(())
    });
}

/// Checks that a sentence of the proxy's is one, and says where the failure was.
#[track_caller]
pub(crate) fn names_the_api(pair: &Pair, body: &str) {
    // Once nobody serves it any more it is known by the address that the client called.
    let named = [
        "orders-api.data".to_owned(),
        pair.api.at(8080).ip().to_string(),
    ];
    assert!(
        named.iter().any(|name| body.contains(name)),
        "which service? {body}"
    );
    assert_eq!(body.trim_end().lines().count(), 1, "{body}");
}

/// A response as `curl -i` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) error: String,
    pub(crate) body: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn parse(printed: &str) -> Self {
        let (mut head, mut body) = split(printed);
        // What curl prints of a proxy's answer to CONNECT, and of interim responses.
        while body.starts_with("HTTP/") {
            (head, body) = split(body);
        }
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let error = head
            .lines()
            .find_map(|line| line.strip_prefix("sidewind-error: "));
        Self {
            status: status.unwrap_or_else(|| panic!("no status in {printed:?}")),
            error: error.unwrap_or_default().trim().into(),
            body: body.into(),
        }
    }
}

fn split(printed: &str) -> (&str, &str) {
    printed.split_once("\r\n\r\n").unwrap_or((printed, ""))
}

/// A policy that lets `sources` call `selected` with what `to` says (YAML of one list item, may be empty).
pub(crate) fn allow(selected: &str, sources: &[&str], to: &str) -> String {
    let to = if to.is_empty() {
        String::new()
    } else {
        format!("\n      to: [{to}]")
    };
    format!(
        "apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: callers, namespace: data }}
spec:
  selector: {{ spiffeIds: [\"{selected}\"] }}
  rules:
    - from: [{{ spiffeIds: {sources:?} }}]{to}
"
    )
}

/// The states of endpoints of a service, as a caller's sidecar has them; empty for one that it does not know.
pub(crate) fn endpoint_states(
    caller: &Workload,
    service: &str,
    endpoints: &[SocketAddr],
) -> Vec<String> {
    let shown: serde_json::Value =
        serde_json::from_str(&caller.sidecar.get("/endpoints").text()).expect("JSON");
    let services = shown["services"].as_array().cloned().unwrap_or_default();
    let known: Vec<_> = services
        .iter()
        .filter(|known| known["service"] == service)
        .flat_map(|known| known["endpoints"].as_array().cloned().unwrap_or_default())
        .collect();
    let state = |endpoint: &SocketAddr| {
        let found = known
            .iter()
            .find(|it| it["address"] == endpoint.to_string().as_str());
        found.map_or_else(String::new, |it| {
            it["state"].as_str().unwrap_or_default().into()
        })
    };
    endpoints.iter().map(state).collect()
}
