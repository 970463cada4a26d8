//! HTTP/2 as RFC 9113 and RFC 7541 demand it, held against every listener that speaks it by frames written by hand, and
//! HTTP/1 that two parsers could read differently.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use sidewind_tests::authority::TestAuthority;
use sidewind_tests::clients::Clients;
use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{MESH_PORT, Mesh, MeshPlan, Sidecar, Workload};
use sidewind_tests::place::Place;
use sidewind_tests::process::Process;
use sidewind_tests::wait::PATIENCE;

use crate::edge::{FRONT, Front};
use crate::support::TASK_ID;

/// With fewer cases than these, a suite was not run.
const SERVER_CASES: usize = 170;
const CLIENT_CASES: usize = 35;
const HOSTILE_CLIENTS: usize = 200;
const HOSTILE_SERVERS: usize = 70;

/// A task, and a workload whose server takes whatever it can for a request. Dropped in this order.
pub(crate) struct Story {
    pub(crate) task: Workload,
    pub(crate) api: Workload,
    _server: Process,
    pub(crate) outside: Host,
    pub(crate) clients: Clients,
    /// What an HTTP/1 server got.
    log: PathBuf,
    pub(crate) mesh: Mesh,
}

impl Story {
    /// With a server of HTTP/2.
    pub(crate) fn http2(plan: MeshPlan) -> Self {
        Self::with(plan, "http2/server.py")
    }

    /// With a server of HTTP/1, which writes down what it gets.
    fn http1(plan: MeshPlan) -> Self {
        Self::with(plan, "smuggling/recorder.py")
    }

    fn with(plan: MeshPlan, server: &str) -> Self {
        Self::serving(plan, "http", server)
    }

    /// The same with the protocol that is declared of the server, and with [`FRONT`] in its documents.
    fn serving(plan: MeshPlan, protocol: &str, server: &str) -> Self {
        let mut mesh = plan.config("gateway.yaml", FRONT).start();
        let clients = Clients::install(&mesh.scratch);
        let api = mesh.workload("data", "orders-api");
        let served = format!("orders-api.data=8080/{protocol}");
        let api = api.serves(&served).start();
        let log = mesh.scratch.write("recorded.log", "");
        let server = clients.script(&api.place, server).arg("0.0.0.0:8080");
        let mut server = server.arg(&log).start("credulous", &mesh.scratch);
        let local = api.local(8080);
        server.wait_until("the server listens", PATIENCE, || api.place.is_open(local));
        let task = mesh.workload("airflow", "task").start();
        let outside = mesh.outsider("outside");
        Self {
            task,
            api,
            _server: server,
            outside,
            clients,
            log,
            mesh,
        }
    }

    #[track_caller]
    fn http2_holds(
        &self,
        place: &Place,
        role: &str,
        address: SocketAddr,
        more: &[&str],
        cases: usize,
    ) {
        let suite = self.clients.script(place, "http2/conformance.py");
        let suite = suite.arg(role).arg(address.to_string()).args(more);
        self.clients.hold(suite, cases);
    }

    #[track_caller]
    fn nothing_is_smuggled(&self, place: &Place, role: &str, cases: usize) {
        self.nothing_is_smuggled_at(self.api.at(8080), &[], place, role, cases);
    }

    #[track_caller]
    fn nothing_is_smuggled_at(
        &self,
        address: SocketAddr,
        more: &[&str],
        place: &Place,
        role: &str,
        cases: usize,
    ) {
        let suite = self.clients.script(place, "smuggling/smuggling.py");
        let suite = suite.arg(role).arg(address.to_string());
        self.clients.hold(suite.arg(&self.log).args(more), cases);
    }

    /// What an HTTP/1 server got was well formed, and nothing of what was refused came out.
    #[track_caller]
    fn what_came_out_is_sound(&self, at_least: usize) {
        let recorded = std::fs::read_to_string(&self.log).expect("the server's log");
        let mut requests = 0;
        for line in recorded.lines() {
            let entry: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            let unfinished = |wrong: &serde_json::Value| {
                let text = wrong.as_str().unwrap_or_default();
                text.contains("without sending complete message body")
            };
            let wrong = entry["wrong"].as_array().expect("a list");
            assert!(wrong.iter().all(unfinished), "{entry}");
            assert!(!line.contains("smuggled"), "{entry}");
            requests += 1;
        }
        assert!(requests > at_least, "only {requests} came out");
    }
}

fn refused(sidecar: &Sidecar, direction: &str, code: &str) -> f64 {
    let labels = [("direction", direction), ("code", code)];
    sidecar.metrics().sum("sidewind_errors_total", &labels)
}

#[test]
fn http2_is_as_the_rfcs_demand_on_the_outbound_port() {
    let story = Story::http2(Mesh::plan());
    let (place, address) = (&story.task.place, story.api.at(8080));
    story.http2_holds(place, "server-role", address, &[], SERVER_CASES);
    assert!(refused(&story.task.sidecar, "outbound", "bad-request") > 20.0);
}

#[test]
fn http2_is_as_the_rfcs_demand_on_the_inbound_plaintext_port() {
    let story = Story::http2(Mesh::plan());
    let (place, address) = (&story.outside.place, story.api.at(8080));
    story.http2_holds(place, "server-role", address, &[], SERVER_CASES);
    assert!(refused(&story.api.sidecar, "inbound", "bad-request") > 20.0);
}

/// Holds the mesh port, with each protocol that it takes.
fn mesh_port_holds(story: &Story, authority: &TestAuthority, protocol: &[&str]) {
    let scratch = &story.mesh.scratch;
    let identity = authority.svid_pem(scratch, "task", TASK_ID, SystemTime::now());
    let identity = identity.to_string_lossy();
    let destination = format!("sidewind-destination={}", story.api.at(8080));
    let address = story.api.at(MESH_PORT);
    for alpn in ["sidewind/1", "h2"] {
        let known = [
            "--alpn",
            alpn,
            "--identity",
            &identity,
            "--field",
            &destination,
        ];
        let more = [&known[..], protocol].concat();
        let place = &story.outside.place;
        story.http2_holds(place, "server-role", address, &more, SERVER_CASES);
    }
    assert!(refused(&story.api.sidecar, "inbound", "bad-request") > 20.0);
}

#[test]
fn http2_is_as_the_rfcs_demand_on_the_mesh_port() {
    let authority = TestAuthority::new();
    let story = Story::http2(Mesh::plan().root(&authority));
    mesh_port_holds(&story, &authority, &["--field", "sidewind-protocol=h2"]);
}

#[test]
fn http2_that_goes_on_as_http1_is_as_the_rfcs_demand() {
    let authority = TestAuthority::new();
    let story = Story::http1(Mesh::plan().root(&authority));
    mesh_port_holds(&story, &authority, &[]);
    story.what_came_out_is_sound(SERVER_CASES);
}

#[test]
fn a_server_that_breaks_http2_is_answered_for_and_others_are_served() {
    let story = Story::http2(Mesh::plan());
    let (place, address) = (&story.outside.place, story.api.at(8080));
    story.http2_holds(place, "client-role", address, &[], CLIENT_CASES);
    assert!(refused(&story.api.sidecar, "inbound", "upstream-protocol") > 0.0);
}

#[test]
fn no_client_smuggles_a_request_past_the_outbound_port() {
    let story = Story::http1(Mesh::plan());
    story.nothing_is_smuggled(&story.task.place, "requests", HOSTILE_CLIENTS);
    assert!(refused(&story.task.sidecar, "outbound", "bad-request") > 50.0);
}

#[test]
fn no_client_smuggles_a_request_past_the_inbound_port() {
    let story = Story::http1(Mesh::plan());
    story.nothing_is_smuggled(&story.outside.place, "requests", HOSTILE_CLIENTS);
    assert!(refused(&story.api.sidecar, "inbound", "bad-request") > 50.0);
}

#[test]
fn no_server_passes_its_response_off_as_somebody_elses() {
    let story = Story::http1(Mesh::plan());
    // Through both sidecars, and through its own alone.
    for place in [&story.task.place, &story.outside.place] {
        story.nothing_is_smuggled(place, "responses", HOSTILE_SERVERS);
    }
    assert!(refused(&story.api.sidecar, "inbound", "upstream-protocol") > 0.0);
}

/// Each of a gateway's listeners: its port, and how a client is told to speak TLS.
fn listeners<'a>(front: &Front, tls: &'a [&'a str]) -> [(SocketAddr, &'a [&'a str]); 2] {
    [(front.at(Front::PLAIN), &[]), (front.at(Front::TLS), tls)]
}

#[test]
fn http2_is_as_the_rfcs_demand_on_a_gateways_listeners() {
    let mut story = Story::serving(Mesh::plan(), "http2", "http2/server.py");
    let front = Front::of(&mut story.mesh);
    for (address, more) in listeners(&front, &["--alpn", "h2"]) {
        let place = &story.outside.place;
        story.http2_holds(place, "server-role", address, more, SERVER_CASES);
    }
    assert!(refused(&front.gateway, "gateway", "bad-request") > 40.0);
}

#[test]
fn http2_of_a_gateways_clients_that_goes_on_as_http1_is_as_the_rfcs_demand() {
    let mut story = Story::http1(Mesh::plan());
    let front = Front::of(&mut story.mesh);
    for (address, more) in listeners(&front, &["--alpn", "h2"]) {
        let place = &story.outside.place;
        story.http2_holds(place, "server-role", address, more, SERVER_CASES);
    }
    // At each of both listeners, but for what is refused.
    story.what_came_out_is_sound(SERVER_CASES);
}

#[test]
fn a_server_that_breaks_http2_is_answered_for_by_a_gateway() {
    let mut story = Story::serving(Mesh::plan(), "http2", "http2/server.py");
    let front = Front::of(&mut story.mesh);
    let (place, address) = (&story.outside.place, front.at(Front::PLAIN));
    story.http2_holds(place, "client-role", address, &[], CLIENT_CASES);
}

#[test]
fn no_client_smuggles_a_request_past_a_gateways_listeners() {
    let mut story = Story::http1(Mesh::plan());
    let front = Front::of(&mut story.mesh);
    for (address, more) in listeners(&front, &["--tls", "orders-api.data"]) {
        let place = &story.outside.place;
        story.nothing_is_smuggled_at(address, more, place, "requests", HOSTILE_CLIENTS);
    }
    assert!(refused(&front.gateway, "gateway", "bad-request") > 100.0);
}

#[test]
fn no_server_passes_its_response_off_as_somebody_elses_through_a_gateway() {
    let mut story = Story::http1(Mesh::plan());
    let front = Front::of(&mut story.mesh);
    let (place, address) = (&story.outside.place, front.at(Front::TLS));
    let tls = ["--tls", "orders-api.data"];
    story.nothing_is_smuggled_at(address, &tls, place, "responses", HOSTILE_SERVERS);
}
