//! Who is where, as the control plane tells it while things come and go.

use std::collections::BTreeMap;
use std::time::Duration;

use sidewind_tests::load::Load;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually, within};
use sidewind_tests::workloads;

use crate::support::Answer;

const VIRTUAL: &str = "10.96.0.10";

/// One service behind a virtual address with two workloads, and a task. Dropped in this order.
struct Story {
    task: Workload,
    servers: Vec<(Workload, Process)>,
    mesh: Mesh,
}

impl Story {
    fn begin() -> Self {
        let entry = format!(
            "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: {{ name: orders, namespace: data }}
spec:
  hosts: [orders.data]
  addresses: [{VIRTUAL}]
  ports: [{{ port: 80, protocol: http, targetPort: 8080 }}]
  service: orders-api.data
"
        );
        let mut mesh = Mesh::plan().config("orders.yaml", &entry).start();
        mesh.lan().name("orders.data", VIRTUAL.parse().unwrap());
        let mut servers = Vec::new();
        for name in ["orders-1", "orders-2"] {
            let server = mesh
                .workload("data", name)
                .serves("orders-api.data:80=8080/http")
                .start();
            let api = workloads::api(&server, 8080, &mesh.scratch);
            servers.push((server, api));
        }
        let task = mesh.workload("airflow", "task").start();
        Self {
            task,
            servers,
            mesh,
        }
    }

    fn ask(&self) -> Answer {
        Answer::parse(
            &self
                .task
                .curl(&["-i", "http://orders.data/orders"])
                .finish()
                .success(),
        )
    }

    fn load(&self, rate: u32) -> Load {
        Load::new(format!("{VIRTUAL}:80").parse().unwrap(), "/orders")
            .host("orders.data")
            .rate(rate)
    }

    fn listed(&self, workload: &Workload) -> bool {
        self.mesh
            .control_plane
            .workloads()
            .to_string()
            .contains(&workload.address.to_string())
    }
}

#[test]
fn a_virtual_address_is_balanced_over_the_workloads_behind_it() {
    let story = Story::begin();
    let mut seen = 0;
    // One that was slow to be connected to is thought to be slow for a while.
    eventually("both get their share", 2 * PATIENCE, || {
        let report = story
            .load(200)
            .duration(Duration::from_secs(2))
            .start(&story.task.place)
            .finish();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        story
            .task
            .sidecar
            .wait_for_access("the service's name", |record| {
                record.text("service") == "orders-api.data"
            });
        let log = story.task.sidecar.access_log();
        let mut shares: BTreeMap<String, u32> = BTreeMap::new();
        for record in log.iter().skip(seen) {
            *shares.entry(record.text("endpoint")).or_default() += 1;
        }
        seen = log.len();
        (shares.len() == 2 && shares.values().all(|share| *share > 40)).then_some(())
    });
}

#[test]
fn a_workload_that_goes_away_leaves_discovery_within_seconds_and_no_request_fails_after() {
    let mut story = Story::begin();
    assert_eq!(story.ask().status, 200);
    let (mut gone, _api) = story.servers.remove(0);
    assert!(story.listed(&gone));
    gone.sidecar.process().kill();
    eventually("it is out of discovery", Duration::from_secs(5), || {
        (!story.listed(&gone)).then_some(())
    });
    let report = story
        .load(100)
        .duration(Duration::from_secs(2))
        .start(&story.task.place)
        .finish();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

#[test]
fn a_workload_whose_network_died_leaves_discovery_too() {
    let mut story = Story::begin();
    let (gone, _api) = story.servers.remove(0);
    // Its connections do not end: nothing arrives any more.
    let host = sidewind_tests::lan::Host {
        place: gone.place.clone(),
        address: gone.address,
    };
    story.mesh.lan().set_link(&host, false);
    let left = within(Duration::from_secs(45), || {
        (!story.listed(&gone)).then_some(())
    });
    assert!(left.is_some(), "{}", story.mesh.control_plane.workloads());
    assert_eq!(story.ask().status, 200);
}

#[test]
fn a_workload_that_comes_is_found_without_a_restart() {
    let mut story = Story::begin();
    story.servers.clear();
    let none = eventually("the service has no endpoint", PATIENCE, || {
        Some(story.ask()).filter(|answer| answer.error == "no-endpoints")
    });
    assert_eq!(none.status, 503);
    assert!(
        none.body.contains("orders-api.data") && none.body.lines().count() == 1,
        "{none:?}"
    );

    let server = story
        .mesh
        .workload("data", "orders-3")
        .serves("orders-api.data:80=8080/http")
        .start();
    let api = workloads::api(&server, 8080, &story.mesh.scratch);
    story.servers.push((server, api));
    eventually("it is found", Duration::from_secs(10), || {
        (story.ask().status == 200).then_some(())
    });
}

#[test]
fn a_workload_offers_only_the_services_that_its_token_names() {
    let mut story = Story::begin();
    let plan = story
        .mesh
        .workload("data", "impostor")
        .serves("something-else.data=8080");
    // The flag without the token's leave.
    let impostor = plan.flag("--serve", "orders-api.data:80=9090/http").start();
    assert!(impostor.sidecar.is_ready());
    let listed = story.mesh.control_plane.workloads();
    let own = listed.to_string();
    assert!(own.contains(&impostor.address.to_string()), "{own}");
    for _ in 0..20 {
        assert_eq!(story.ask().status, 200);
    }
    let log = story.task.sidecar.access_log();
    assert!(log.iter().all(|record| {
        !record
            .text("endpoint")
            .starts_with(&impostor.address.to_string())
    }));
}
