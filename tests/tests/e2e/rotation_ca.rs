//! Authorities replaced under steady requests between three workloads: no request fails.

use std::time::Duration;

use sidewind_tests::invocation::Finished;
use sidewind_tests::load::{Load, RunningLoad};
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

/// Two clients of one API, each of the three beside a sidecar. Fields are dropped in this order.
struct Three {
    clients: [Workload; 2],
    api: Workload,
    _server: Process,
    mesh: Mesh,
}

impl Three {
    fn start() -> Self {
        let mut mesh = Mesh::plan().flag("--svid-ttl", "1h").start();
        let api = mesh
            .workload("data", "orders-api")
            .serves("orders-api.data=8080")
            .start();
        let server = workloads::api(&api, 8080, &mesh.scratch);
        let clients = ["task", "scheduler"].map(|name| mesh.workload("airflow", name).start());
        Self {
            clients,
            api,
            _server: server,
            mesh,
        }
    }

    fn load(&self, rate: u32) -> Vec<RunningLoad> {
        let start = |client: &Workload| {
            let load = Load::new(self.api.at(8080), "/orders")
                .rate(rate)
                .connections(8);
            load.start(&client.place)
        };
        self.clients.iter().map(start).collect()
    }

    /// `sidewind ca`, which may have to wait.
    fn try_ca(&self, arguments: &[&str]) -> Finished {
        let state = self.mesh.control_plane.state();
        let ca = self.mesh.control_plane.command().arg("ca").args(arguments);
        ca.arg("--state-dir").arg(state).finish()
    }

    /// `sidewind ca`.
    #[track_caller]
    fn ca(&self, arguments: &[&str]) -> String {
        self.try_ca(arguments).success()
    }

    /// Key ids of a role in a state.
    #[track_caller]
    fn key_ids(&self, role: &str, state: &str) -> Vec<String> {
        let shown = self.ca(&["show"]);
        let mut lines = shown.lines();
        let mut found = Vec::new();
        while let Some(line) = lines.next() {
            if line == format!("{role} certificate ({state})") {
                let id = lines
                    .next()
                    .and_then(|line| line.strip_prefix("  key id   "));
                found.push(id.expect("a key id follows").to_owned());
            }
        }
        found
    }

    fn all(&self) -> impl Iterator<Item = &Workload> {
        self.clients.iter().chain([&self.api])
    }

    /// SVIDs that have been issued to workloads.
    fn renewals(&self) -> f64 {
        let metrics = self.mesh.control_plane.metrics();
        metrics.sum("sidewind_svids_issued_total", &[("call", "renew")])
    }

    /// Taints an authority, and waits until every workload has another certificate for it.
    #[track_caller]
    fn taint(&self, key_id: &str) {
        let before = self.renewals();
        let expiries: Vec<f64> = self
            .all()
            .map(|it| it.sidecar.certificate_expiry())
            .collect();
        let said = self.ca(&["taint", key_id]);
        assert!(said.contains("3 connected proxies are to renew"), "{said}");
        for (workload, expiry) in self.all().zip(expiries) {
            workload
                .sidecar
                .wait_for_rotation(expiry, Duration::from_secs(15));
        }
        assert_eq!(self.renewals() - before, 3.0, "each renews once");
    }
}

/// Root, signing authority and both taints, one after the other.
fn authorities_rotate_under_load(rate: u32, rounds: usize) {
    let three = Three::start();
    let loads = three.load(rate);
    let flows = || {
        let before: Vec<u64> = loads.iter().map(RunningLoad::succeeded).collect();
        eventually("traffic flows", PATIENCE, || {
            let now = loads.iter().map(RunningLoad::succeeded);
            now.zip(&before)
                .all(|(now, before)| now > before + 50)
                .then_some(())
        });
        assert_eq!(loads.iter().map(RunningLoad::failed).sum::<u64>(), 0);
    };
    flows();
    for round in 0..rounds {
        three.ca(&["rotate", "--root"]);
        // Every sidecar says within moments that it has the new bundle.
        eventually("the new root is acknowledged", PATIENCE, || {
            let dry = three.try_ca(&["rotate", "--root", "--dry-run"]).out();
            dry.starts_with("would sign below root").then_some(())
        });
        let said = three.ca(&["rotate", "--root"]);
        assert!(!said.contains("not acknowledged"), "{said}");
        flows();
        let old_root = three.key_ids("root", "old").pop().expect("an old root");
        three.taint(&old_root);
        flows();

        for _ in 0..2 {
            three.ca(&["rotate"]);
        }
        flows();
        let old_signing = three.key_ids("signing", "old").pop().expect("an old one");
        three.taint(&old_signing);
        flows();
        three.ca(&["revoke", &old_root, "--force"]);
        flows();
        assert_eq!(three.key_ids("root", "revoked").len(), round + 1);
    }
    for load in loads {
        let report = load.stop();
        assert!(
            report.failures.is_empty(),
            "{:?} of {}",
            report.failures,
            report.requests
        );
    }
}

#[test]
fn root_and_signing_authority_rotate_and_are_tainted_under_load_and_no_request_fails() {
    authorities_rotate_under_load(100, 1);
}

mod soak {
    use super::*;

    #[test]
    fn authorities_rotate_five_times_under_500_requests_a_second() {
        authorities_rotate_under_load(250, 5);
    }
}
