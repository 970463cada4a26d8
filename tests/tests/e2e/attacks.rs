//! Clients that cost what they can are ended or held within bounds, and others notice nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use sidewind_tests::clients::Clients;
use sidewind_tests::lan::Host;
use sidewind_tests::load::Load;
use sidewind_tests::mesh::{Mesh, Sidecar, Workload};
use sidewind_tests::place::Place;
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::edge::{FRONT, Front};

/// Attacks whose connection must not last.
const ENDED: [&str; 8] = [
    "continuation",
    "empty continuation",
    "rapid reset",
    "made resets",
    "empty data",
    "bomb",
    "oversized header",
    "oversized trailers",
];
/// Attacks that cost no more than the bytes that they send, or what bounds allow: these may last.
const HELD: usize = 8;

/// What one connection may hold of what its streams do not read: windows and buffers of its streams, 512 at most.
const MOST_HELD_MIB: u64 = 200;
/// What stays with the connections between the sidecars, which go on.
const MOST_KEPT_MIB: u64 = 64;

struct Story {
    task: Workload,
    api: Workload,
    _servers: [Process; 2],
    outside: Host,
    clients: Clients,
    mesh: Mesh,
}

impl Story {
    fn begin() -> Self {
        Self::serving("http")
    }

    /// The same with the protocol that is declared of the server which is attacked.
    fn serving(protocol: &str) -> Self {
        let mut mesh = Mesh::plan().config("gateway.yaml", FRONT).start();
        let clients = Clients::install(&mesh.scratch);
        let api = mesh.workload("data", "orders-api");
        let api = api.serves(&format!("orders-api.data=8080/{protocol}"));
        let api = api.serves("steady.data=8070/http").start();
        let server = clients.script(&api.place, "http2/server.py");
        let server = server.arg("0.0.0.0:8080");
        let mut server = server.start("credulous", &mesh.scratch);
        let local = api.local(8080);
        server.wait_until("the server listens", PATIENCE, || api.place.is_open(local));
        let steady = workloads::api(&api, 8070, &mesh.scratch);
        let task = mesh.workload("airflow", "task").start();
        let outside = mesh.outsider("outside");
        Self {
            task,
            api,
            _servers: [server, steady],
            outside,
            clients,
            mesh,
        }
    }
}

/// Makes all attacks from `place`, while somebody else asks steadily.
#[track_caller]
fn attack(
    clients: &Clients,
    place: &Place,
    address: SocketAddr,
    more: &[&str],
    sidecar: &mut Sidecar,
    load: Load,
) {
    let before = sidecar.process().resident_bytes();
    let files = sidecar.process().open_files();
    let load = load.rate(20).connections(2).start(place);
    let attacks = clients.script(place, "http2/attacks.py");
    let attacks = attacks.arg(address.to_string()).args(more);
    let attacks = attacks.timeout(Duration::from_secs(200));
    let printed = attacks.finish().success();
    let grown = sidecar.process().resident_bytes().saturating_sub(before) >> 20;
    let report = load.stop();
    let came: BTreeMap<String, serde_json::Value> = printed
        .lines()
        .map(|line| {
            let came: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            (came["attack"].as_str().unwrap_or_default().to_owned(), came)
        })
        .collect();
    assert_eq!(came.len(), ENDED.len() + HELD, "{printed}");
    for name in ENDED {
        let ended = &came[name]["ended"];
        assert_eq!(ended, true, "{name} goes on:\n{printed}");
    }
    assert!(report.requests > 0, "nobody else asked");
    let failures = &report.failures;
    assert!(
        failures.is_empty(),
        "others noticed: {failures:?}\n{printed}"
    );
    assert!(grown < MOST_HELD_MIB, "{grown} MiB are held:\n{printed}");
    eventually("memory and files are given back", PATIENCE, || {
        let process = sidecar.process();
        let grown = process.resident_bytes().saturating_sub(before) >> 20;
        (grown < MOST_KEPT_MIB && process.open_files() <= files + 8).then_some(())
    });
}

fn counted(sidecar: &Sidecar, direction: &str, code: &str) -> f64 {
    let labels = [("direction", direction), ("code", code)];
    sidecar.metrics().sum("sidewind_errors_total", &labels)
}

#[test]
fn floods_and_bombs_on_the_inbound_port_are_ended_and_counted_and_harm_nobody() {
    let mut story = Story::begin();
    let load = Load::new(story.api.at(8070), "/orders").host("steady.data");
    let (place, address) = (&story.outside.place, story.api.at(8080));
    let proxy = &mut story.api.sidecar;
    attack(&story.clients, place, address, &[], proxy, load);
    assert!(counted(&story.api.sidecar, "inbound", "bad-request") >= 5.0);
}

#[test]
fn floods_and_bombs_on_the_outbound_port_are_ended_and_counted_and_harm_nobody() {
    let mut story = Story::begin();
    let load = Load::new(story.api.at(8070), "/orders").host("steady.data");
    let (place, address) = (&story.task.place, story.api.at(8080));
    let proxy = &mut story.task.sidecar;
    attack(&story.clients, place, address, &[], proxy, load);
    assert!(counted(&story.task.sidecar, "outbound", "bad-request") >= 5.0);
}

#[test]
fn floods_and_bombs_on_a_gateways_listeners_are_ended_and_counted_and_harm_nobody() {
    let mut story = Story::serving("http2");
    let mut front = Front::of(&mut story.mesh);
    let plain = front.at(Front::PLAIN);
    for (address, more) in [(plain, &[][..]), (front.at(Front::TLS), &["--alpn", "h2"])] {
        let load = Load::new(plain, "/orders").host("steady.data");
        let place = &story.outside.place;
        attack(
            &story.clients,
            place,
            address,
            more,
            &mut front.gateway,
            load,
        );
    }
    assert!(counted(&front.gateway, "gateway", "bad-request") >= 10.0);
}
