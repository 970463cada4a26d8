//! The Workload API socket, by programs that nobody of this project wrote: Python's `spiffe` and `spiffe-tls`, the crates
//! of the same names, and Envoy.

mod crates;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use sidewind_tests::clients::Clients;
use sidewind_tests::envoy;
use sidewind_tests::http::Request;
use sidewind_tests::mesh::{JoinToken, MESH_PORT, Mesh, MeshPlan, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::{API_ID, TASK_ID};

/// A task and an API on loopback addresses, each with a socket of its own. Fields are dropped in this order.
struct Story {
    task: Workload,
    task_socket: PathBuf,
    api: Workload,
    api_socket: PathBuf,
    clients: Clients,
    mesh: Mesh,
}

/// Where the task finds the API without a proxy in its configuration.
const MAPPED_PORT: u16 = 10_080;

/// Which of the two leaves its mesh port to others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ports {
    OfSidecars,
    ApiOfOthers,
}

impl Story {
    fn begin(plan: MeshPlan, ports: Ports) -> Self {
        Self::serving(plan, ports, "80=8080/tcp")
    }

    fn serving(plan: MeshPlan, ports: Ports, port: &str) -> Self {
        let mut mesh = plan.start_on_loopback();
        let clients = Clients::install(&mesh.scratch);
        let socket = |name: &str| mesh.scratch.join(format!("{name}.sock"));
        let (task_socket, api_socket) = (socket("task"), socket("api"));
        let plan = mesh
            .workload("data", "orders-api")
            .serves(&format!("orders-api.data:{port}"));
        let plan = match ports {
            Ports::OfSidecars => plan,
            Ports::ApiOfOthers => plan.leaving_mesh_port(),
        };
        let plan = plan.flag("--workload-api-socket", api_socket.to_string_lossy());
        let api = plan.start();
        let host = mesh.outsider("task");
        let mapped = format!("{}:{MAPPED_PORT}=orders-api.data:80", host.address);
        let plan = mesh.workload("airflow", "task").flag("--listen", mapped);
        let plan = plan.flag("--workload-api-socket", task_socket.to_string_lossy());
        let task = plan.start_at(host);
        Self {
            task,
            task_socket,
            api,
            api_socket,
            clients,
            mesh,
        }
    }

    fn server(&self) -> Process {
        workloads::api(&self.api, 8080, &self.mesh.scratch)
    }

    /// The task's call by way of its sidecar.
    fn call_by_sidecar(&self, path: &str) -> String {
        let proxy = format!("http://{}", self.task.at(15001));
        let url = format!("http://orders-api.data{path}");
        let curl = self.task.curl(&["-p", &url]).env("http_proxy", proxy);
        curl.finish().success()
    }
}

#[test]
fn python_gets_the_identity_and_follows_a_rotation() {
    let story = Story::begin(Mesh::plan().flag("--svid-ttl", "60s"), Ports::OfSidecars);
    let context = story.clients.ask("x509", &story.task_socket, &[]);
    assert_eq!(context["spiffe_id"], TASK_ID);
    assert_eq!(context["certificates"], 2);
    assert_eq!(context["roots"], json!({"sidewind.local": 1}));
    assert_eq!(context["bundles"], json!(["sidewind.local"]));

    let rotation = story.clients.ask("rotation", &story.task_socket, &[]);
    let [before, after] = rotation["seen"].as_array().unwrap().as_slice() else {
        panic!("{rotation}");
    };
    assert_eq!(rotation["errors"], json!([]));
    assert_eq!(after["spiffe_id"], TASK_ID);
    assert_ne!(before["serial"], after["serial"]);
}

#[test]
fn python_gets_tokens_and_they_verify_with_the_bundle() {
    let story = Story::begin(Mesh::plan(), Ports::OfSidecars);
    let token = story.clients.ask("jwt", &story.task_socket, &["billing"]);
    for by in ["spiffe_id", "validated", "by_library"] {
        assert_eq!(token[by], TASK_ID, "{token}");
    }
    assert_eq!(token["kept"], true, "{token}");
    assert!(token["keys"].as_u64().unwrap() >= 1, "{token}");
    let refused = token["refused"].as_str().unwrap();
    assert!(refused.contains("aud"), "{refused}");
    // One workload's token is another's to validate.
    let token = story.clients.ask("jwt", &story.api_socket, &["audit"]);
    assert_eq!(token["validated"], API_ID, "{token}");
}

#[test]
fn calls_that_are_not_as_they_should_be_get_the_codes_of_the_standard() {
    let story = Story::begin(Mesh::plan(), Ports::OfSidecars);
    let codes = story.clients.ask("negatives", &story.task_socket, &[]);
    let expected = json!({
        "as it should be": "OK",
        "no header": "INVALID_ARGUMENT",
        "True": "INVALID_ARGUMENT",
        "header twice": "INVALID_ARGUMENT",
        "no audience": "INVALID_ARGUMENT",
        "empty audience": "INVALID_ARGUMENT",
        "somebody else's ID": "PERMISSION_DENIED",
        "no ID": "INVALID_ARGUMENT",
        "validation for nobody": "INVALID_ARGUMENT",
        "validation of nothing": "INVALID_ARGUMENT",
        "validation of nonsense": "INVALID_ARGUMENT",
        "WIT-SVID": "UNIMPLEMENTED",
        "WIT bundles": "UNIMPLEMENTED",
        "WIT-SVID without header": "INVALID_ARGUMENT",
        "unknown method": "UNIMPLEMENTED",
        "DeltaSecrets": "UNIMPLEMENTED",
    });
    assert_eq!(codes, expected);
    let metrics = story.task.sidecar.metrics();
    let calls = "sidewind_workload_api_calls_total";
    let labels = [("method", "FetchX509SVID"), ("code", "invalid-argument")];
    assert_eq!(metrics.sum(calls, &labels), 3.0);

    // What a program can be talked into requesting: HTTP/1.1, and HTTP/2 without metadata.
    let socket = story.task_socket.to_string_lossy();
    let path = "http://localhost/SpiffeWorkloadAPI/FetchX509SVID";
    let curl = |arguments: &[&str]| {
        let always = ["-i", "-X", "POST", "--unix-socket", &socket, path];
        story.task.curl(&always).args(arguments).finish()
    };
    let http1 = curl(&[]);
    assert!(!http1.out().contains("sidewind.local"), "{}", http1.out());
    assert!(!http1.status.success());
    let http2 = curl(&["--http2-prior-knowledge"]).success();
    assert!(http2.starts_with("HTTP/2 415"), "{http2}");
}

#[test]
fn while_the_control_plane_is_away_at_the_start_clients_are_told_to_come_again() {
    let mut mesh = Mesh::plan().start_on_loopback();
    let clients = Clients::install(&mesh.scratch);
    let socket = mesh.scratch.join("task.sock");
    let token = mesh.control_plane.token(&JoinToken {
        spiffe_id: TASK_ID.into(),
        ..JoinToken::default()
    });
    let token = mesh.scratch.write_secret("task.token", token, None);
    let host = mesh.outsider("task");
    mesh.control_plane.kill();
    let proxy = mesh.proxy(&host).arg("--join-token-file").arg(token);
    let proxy = proxy.arg("--workload-api-socket").arg(&socket);
    let mut proxy = proxy.start("task-sidecar", &mesh.scratch);
    proxy.wait_until("the socket is there", PATIENCE, || socket.exists());
    let refused = clients.ask("refused", &socket, &[]);
    assert_eq!(refused["code"], "UNAVAILABLE", "{refused}");
    // The same process serves as soon as there is something to serve.
    mesh.control_plane.start(&mesh.scratch);
    eventually("there is an identity", PATIENCE, || {
        (clients.ask("refused", &socket, &[])["code"] == "OK").then_some(())
    });
    assert!(proxy.is_running());
}

#[test]
fn the_socket_lets_in_whom_its_mode_does_and_is_gone_after_the_end() {
    let mut mesh = Mesh::plan().start();
    let directory = mesh
        .scratch
        .directory("run", Some(sidewind_tests::mesh::SIDECAR_UID));
    let socket = directory.join("workload.sock");
    let start = |mesh: &mut Mesh, name: &str, mode: &str| {
        let plan = mesh.workload("airflow", name);
        plan.flag("--workload-api-socket", socket.to_string_lossy())
            .flag("--workload-api-mode", mode)
            .start()
    };
    for (name, mode, admitted) in [("closed", "660", false), ("open", "666", true)] {
        let mut task = start(&mut mesh, name, mode);
        let found = socket.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(format!("{found:o}"), mode);
        let path = socket.to_string_lossy();
        let asked = task.curl(&[
            "--http2-prior-knowledge",
            "--unix-socket",
            &path,
            "http://localhost/",
        ]);
        assert_eq!(asked.finish().status.success(), admitted, "{mode}");
        task.sidecar.terminate();
        task.sidecar.process().wait(PATIENCE);
        assert!(!socket.exists(), "it is removed");
    }
    // One that died left its socket behind, which the next one takes over; one that lives keeps it.
    let mut killed = start(&mut mesh, "killed", "666");
    killed.sidecar.process().kill();
    assert!(socket.exists());
    let _next = start(&mut mesh, "next", "666");
    let plan = mesh.workload("airflow", "late").without_waiting();
    let mut late = plan
        .flag("--workload-api-socket", socket.to_string_lossy())
        .start();
    late.sidecar.process().wait(PATIENCE);
    assert!(
        late.sidecar.log().contains("another process answers"),
        "{}",
        late.sidecar.log()
    );
}

#[test]
fn python_speaks_mutual_tls_with_a_sidecar_both_ways() {
    let story = Story::begin(Mesh::plan(), Ports::OfSidecars);
    let _server = story.server();
    let dial = story
        .clients
        .peer(&story.task.place, "dial", &story.task_socket);
    let destination = story.api.at(8080).to_string();
    let mesh_port = story.api.at(MESH_PORT).to_string();
    let dial = dial.args([&mesh_port, API_ID, &destination, "/orders"]);
    let answer = dial.finish().success();
    assert!(answer.contains("anemometer"), "{answer}");
    let record = story
        .api
        .sidecar
        .wait_for_access("the call", |record| record.tls());
    assert_eq!(record.source_id(), TASK_ID, "{record}");
    drop(story);

    let story = Story::begin(Mesh::plan(), Ports::ApiOfOthers);
    let listen = story
        .clients
        .peer(&story.api.place, "listen", &story.api_socket);
    let mesh_port = story.api.at(MESH_PORT);
    let listen = listen.args([mesh_port.to_string(), TASK_ID.to_owned()]);
    let mut peer = listen.start("peer", &story.mesh.scratch);
    let place = story.api.place.clone();
    peer.wait_until("the peer listens", PATIENCE, || place.is_open(mesh_port));
    assert_eq!(story.call_by_sidecar("/orders"), "hello from spiffe-tls\n");
    let record = story
        .task
        .sidecar
        .wait_for_access("the call", |record| record.tls());
    assert_eq!(record.destination_id(), API_ID, "{record}");
}

#[test]
fn envoy_with_certificates_of_the_socket_calls_a_sidecar_and_follows_a_rotation() {
    let story = Story::begin(Mesh::plan().flag("--svid-ttl", "60s"), Ports::OfSidecars);
    let _server = story.server();
    // The SPIFFE validator of Envoy, and its own with the roots of one trust domain.
    for (port, roots) in [(10_000, "ALL"), (10_001, "spiffe://sidewind.local")] {
        let listen = story.task.at(port);
        let configuration = envoy::client(
            &story.task_socket,
            listen,
            story.api.at(MESH_PORT),
            story.api.at(8080),
            roots,
            API_ID,
        );
        let mut envoy = start_envoy(&story, &story.task, roots, &configuration);
        let url = format!("http://{listen}/orders");
        let called = || {
            story
                .task
                .curl(&["--retry", "5", "--retry-all-errors", &url])
        };
        envoy.wait_until("Envoy carries a call", PATIENCE, || {
            called().finish().out().contains("anemometer")
        });
        let record = story
            .api
            .sidecar
            .wait_for_access("the call", |record| record.source_id() == TASK_ID);
        assert!(record.tls(), "{record}");
        if roots == "ALL" {
            eventually("Envoy is given the next certificate", PATIENCE * 2, || {
                (updates(&story.task, "default") >= 2).then_some(())
            });
            assert!(called().finish().success().contains("anemometer"));
        }
    }
    // It believes nobody else.
    let listen = story.task.at(10_002);
    let configuration = envoy::client(
        &story.task_socket,
        listen,
        story.api.at(MESH_PORT),
        story.api.at(8080),
        "ALL",
        TASK_ID,
    );
    let mut envoy = start_envoy(&story, &story.task, "other", &configuration);
    let place = story.task.place.clone();
    envoy.wait_until("Envoy listens", PATIENCE, || place.is_open(listen));
    let refused = story.task.curl(&[&format!("http://{listen}/orders")]);
    assert!(!refused.finish().status.success());
}

#[test]
fn a_sidecar_calls_an_envoy_with_certificates_of_the_socket() {
    let story = Story::begin(Mesh::plan(), Ports::ApiOfOthers);
    let _server = story.server();
    let mesh_port = story.api.at(MESH_PORT);
    let configuration = envoy::server(
        &story.api_socket,
        mesh_port,
        story.api.at(8080),
        "ROOTCA",
        TASK_ID,
    );
    let mut envoy = start_envoy(&story, &story.api, "server", &configuration);
    envoy.wait_until("Envoy has its certificate", PATIENCE, || {
        updates(&story.api, "default") >= 1
    });
    assert!(story.call_by_sidecar("/orders").contains("anemometer"));
    let record = story
        .task
        .sidecar
        .wait_for_access("the call", |record| record.tls());
    assert_eq!(record.destination_id(), API_ID, "{record}");
}

#[test]
fn a_call_in_grpc_reaches_an_envoy_as_grpc() {
    let story = Story::serving(Mesh::plan(), Ports::ApiOfOthers, "80=50051/grpc");
    let application = story.api.at(50_051);
    let server = story.clients.script(&story.api.place, "calls.py");
    let server = server.args(["serve", &application.to_string()]);
    let mut server = server.start("calls", &story.mesh.scratch);
    let place = story.api.place.clone();
    server.wait_until("the server listens", PATIENCE, || {
        place.is_open(application)
    });
    let mesh_port = story.api.at(MESH_PORT);
    let configuration = envoy::server(&story.api_socket, mesh_port, application, "ROOTCA", TASK_ID);
    let mut envoy = start_envoy(&story, &story.api, "server", &configuration);
    envoy.wait_until("Envoy has its certificate", PATIENCE, || {
        updates(&story.api, "default") >= 1
    });
    let target = story.task.at(MAPPED_PORT).to_string();
    let call = story.clients.script(&story.task.place, "calls.py");
    let call = call.args(["call", &target, "Echo", "3", "30"]);
    assert_eq!(call.finish().success().trim(), "OK\nOK\nOK");
    let record = story
        .task
        .sidecar
        .wait_for_access("a call", |record| record.path() == "/calls.Calls/Echo");
    assert_eq!(record.destination_id(), API_ID, "{record}");
}

fn start_envoy(story: &Story, beside: &Workload, name: &str, configuration: &str) -> Process {
    let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let scratch = &story.mesh.scratch;
    let file = scratch.write(&format!("envoy-{name}.json"), configuration);
    let envoy = story.clients.envoy(&beside.place, &file);
    envoy.start(&format!("envoy-{name}"), scratch)
}

/// How often an Envoy took a secret.
fn updates(beside: &Workload, secret: &str) -> u64 {
    let admin = beside.at(envoy::ADMIN_PORT);
    let path = format!("/stats?format=json&filter=sds.{secret}.update_success");
    let Ok(reply) = Request::get(admin, &path).try_send(&beside.place) else {
        return 0;
    };
    let stats: Value = serde_json::from_str(&reply.text()).unwrap_or_default();
    let values = stats["stats"].as_array().into_iter().flatten();
    values.filter_map(|stat| stat["value"].as_u64()).sum()
}
