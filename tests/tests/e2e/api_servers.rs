//! A gateway in front of several of Airflow's API servers, as examples/gateway/airflow.yaml has it.

use std::path::PathBuf;

use sidewind_tests::invocation::Invocation;
use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{Mesh, Sidecar, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::edge::{certificate, start_gateway_as};
use crate::support::Answer;

const EXAMPLE: &str = include_str!("../../../examples/gateway/airflow.yaml");
const GATEWAY_ID: &str = "spiffe://sidewind.local/ns/airflow/sa/airflow-gateway";
const HOST: &str = "airflow.example.com";
const LOGIN: [&str; 2] = ["-d", r#"{"username": "admin", "password": "guess"}"#];

struct ApiServer {
    workload: Workload,
    _process: Process,
    sick: PathBuf,
}

/// Fields are dropped in this order.
struct Airflow {
    gateway: Sidecar,
    at: Host,
    servers: [ApiServer; 2],
    mesh: Mesh,
}

impl Airflow {
    #[track_caller]
    fn start() -> Self {
        let mut mesh = Mesh::plan().config("airflow.yaml", EXAMPLE).start();
        let at = mesh.outsider("gateway");
        Self::with(mesh, at, &[])
    }

    #[track_caller]
    fn with(mut mesh: Mesh, at: Host, flags: &[&str]) -> Self {
        certificate(&mesh, "airflow-tls", HOST);
        let servers = [1, 2].map(|number| {
            let name = format!("api-server-{number}");
            let workload = mesh.workload("airflow", &name);
            let workload = workload.identity("airflow", "api-server");
            let workload = workload.serves("api-server.airflow:80=8080/http").start();
            let sick = mesh.scratch.join(format!("{name}.sick"));
            let process = workloads::airflow(&workload, 8080, &name, &sick, &mesh.scratch);
            ApiServer {
                workload,
                _process: process,
                sick,
            }
        });
        let mut gateway = start_gateway_as(GATEWAY_ID, &mesh, &at, flags);
        gateway.wait_ready(PATIENCE);
        Self {
            gateway,
            at,
            servers,
            mesh,
        }
    }

    /// `curl` at a host of its own, which finds Airflow at `address`.
    fn curl(&self, from: &Host, address: &Host, arguments: &[&str]) -> Invocation {
        let resolve = format!("{HOST}:443:{}", address.address);
        let curl = from.place.program("curl").args(["-sS", "--max-time", "30"]);
        let curl = curl.args(["--resolve", &resolve, "--cacert"]);
        let curl = curl.arg(self.mesh.scratch.join("certificates/all.pem"));
        curl.args(arguments)
    }

    #[track_caller]
    fn ask(&self, from: &Host, path: &str, arguments: &[&str]) -> Answer {
        let url = format!("https://{HOST}{path}");
        let curl = self.curl(from, &self.at, &["-i", "--path-as-is"]);
        Answer::parse(&curl.args(arguments).arg(url).finish().success())
    }

    /// Which server answers a browser with these cookies.
    #[track_caller]
    fn server(&self, from: &Host, cookies: Option<&PathBuf>) -> String {
        let jar = cookies.map(|file| file.to_string_lossy().into_owned());
        let jar = jar.iter().flat_map(|file| ["-b", file, "-c", file]);
        let answer = self.ask(from, "/", &jar.collect::<Vec<_>>());
        assert_eq!(answer.status, 200, "{answer:?}");
        let page: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        page["server"].as_str().expect("a name").to_owned()
    }

    /// State and reason of a server's endpoint, as the gateway has them.
    fn state(&self, server: &ApiServer) -> (String, String) {
        let shown = self.gateway.get("/endpoints").text();
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let address = server.workload.at(8080).to_string();
        let services = shown["services"].as_array().cloned().unwrap_or_default();
        let endpoints = services
            .iter()
            .flat_map(|service| service["endpoints"].as_array().cloned().unwrap_or_default());
        let mut endpoints = endpoints.filter(|endpoint| endpoint["address"] == address.as_str());
        let endpoint = endpoints.next().unwrap_or_default();
        let text = |name: &str| endpoint[name].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    #[track_caller]
    fn wait_for(&self, server: &ApiServer, state: &str) -> String {
        let name = &server.workload.name;
        eventually(&format!("{name} is {state}"), PATIENCE, || {
            let (now, reason) = self.state(server);
            (now == state).then_some(reason)
        })
    }

    fn limited(&self) -> f64 {
        let labels = [
            ("service", "airflow/airflow-gateway/https"),
            ("limit", "logins"),
        ];
        let metrics = self.gateway.metrics();
        metrics.sum("sidewind_limited_requests_total", &labels)
    }
}

#[test]
fn browsers_stay_with_an_api_server_until_it_says_that_its_database_is_away() {
    let mut airflow = Airflow::start();
    let browser = airflow.mesh.outsider("browser");
    let script = airflow.mesh.outsider("script");
    let cookies = airflow.mesh.scratch.join("cookies");
    // The gateway checks what it sends requests to.
    let first = airflow.server(&browser, Some(&cookies));
    for server in &airflow.servers {
        airflow.wait_for(server, "healthy");
    }
    for _ in 0..10 {
        assert_eq!(airflow.server(&browser, Some(&cookies)), first);
    }
    let both = |what: &str| {
        let mut seen = std::collections::BTreeSet::new();
        eventually(what, PATIENCE, || {
            seen.insert(airflow.server(&script, None));
            (seen.len() == 2).then_some(())
        });
    };
    both("who has no cookie gets to both servers");
    let (ill, well) = match airflow.servers[0].workload.name == first {
        true => (&airflow.servers[0], &airflow.servers[1]),
        false => (&airflow.servers[1], &airflow.servers[0]),
    };
    std::fs::write(&ill.sick, "").expect("the scratch directory");
    let reason = airflow.wait_for(ill, "unhealthy");
    let told = r#"/metadatabase/status is "unhealthy", not "healthy""#;
    assert!(reason.contains(told), "{reason}");
    let other = airflow.server(&browser, Some(&cookies));
    assert_eq!(other, well.workload.name);
    for from in [None, Some(&cookies)].repeat(10) {
        assert_eq!(airflow.server(&script, from), other);
    }
    std::fs::remove_file(&ill.sick).expect("the file is there");
    airflow.wait_for(ill, "healthy");
    both("the server that is well again is used again");
    let now = airflow.server(&browser, Some(&cookies));
    assert_eq!(now, other, "whoever moved stays where they are");
}

#[test]
fn guessing_passwords_is_slow_for_who_guesses_and_for_nobody_else() {
    let mut airflow = Airflow::start();
    let [guesser, user] = ["guesser", "user"].map(|name| airflow.mesh.outsider(name));
    let statuses = (0..13).map(|_| airflow.ask(&guesser, "/auth/token", &LOGIN).status);
    let statuses: Vec<u16> = statuses.collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[11..], [429; 2], "within the time of one more");
    // However it is written, and whatever is claimed.
    let forged = [
        "-H",
        "x-forwarded-for: 192.0.2.77",
        "-H",
        "forwarded: for=192.0.2.77",
    ];
    for (path, more) in [
        ("/auth/%74oken", &[][..]),
        ("//auth/./token", &[]),
        ("/login/", &[]),
        ("/auth/login", &forged),
    ] {
        let answer = airflow.ask(&guesser, path, &[&LOGIN[..], more].concat());
        let seen = (answer.status, answer.error.as_str());
        assert_eq!(seen, (429, "rate-limited"), "{path}: {answer:?}");
    }
    let refused = airflow.curl(&guesser, &airflow.at, &["-D", "-", "-o", "/dev/null"]);
    let refused = refused.args(LOGIN).arg(format!("https://{HOST}/login"));
    let head = refused.finish().success().to_ascii_lowercase();
    assert!(head.contains("retry-after: "), "{head}");
    assert!(airflow.limited() >= 6.0, "{}", airflow.limited());
    // Others, and whatever is no login.
    assert_eq!(airflow.ask(&user, "/auth/token", &LOGIN).status, 401);
    assert_eq!(airflow.ask(&guesser, "/auth/token", &[]).status, 200);
    assert_eq!(airflow.ask(&guesser, "/", &[]).status, 200);
}

/// Guesses until it is limited, which must be soon.
#[track_caller]
fn exhaust(ask: impl Fn() -> u16) {
    let statuses: Vec<u16> = (0..13).map(|_| ask()).collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[12], 429);
}

#[test]
fn behind_load_balancers_clients_are_told_apart_by_what_trusted_ones_say() {
    let mut mesh = Mesh::plan().config("airflow.yaml", EXAMPLE).start();
    let [tcp, http, at] = ["tcp", "http", "gateway"].map(|name| mesh.outsider(name));
    let (by_tcp, by_http) = (tcp.address.to_string(), http.address.to_string());
    let flags = [
        "--gateway-proxy-protocol-from",
        &by_tcp,
        "--gateway-trusted-proxies",
        &by_http,
    ];
    let mut airflow = Airflow::with(mesh, at, &flags);
    let clients = ["one", "two", "three"].map(|name| airflow.mesh.outsider(name));
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         listen web\n bind :443\n server gateway {}:443 send-proxy-v2\n",
        airflow.at.address
    );
    let file = airflow.mesh.scratch.write("haproxy.cfg", configuration);
    let haproxy = tcp.place.program("haproxy").args(["-db", "-f"]).arg(file);
    let mut haproxy = haproxy.start("haproxy", &airflow.mesh.scratch);
    let place = tcp.place.clone();
    haproxy.wait_until("it listens", PATIENCE, || {
        place.is_open(([127, 0, 0, 1], 443).into())
    });
    let by_haproxy = |client: &Host| {
        let url = format!("https://{HOST}/auth/token");
        let curl = airflow.curl(client, &tcp, &["-i"]).args(LOGIN).arg(url);
        Answer::parse(&curl.finish().success()).status
    };
    exhaust(|| by_haproxy(&clients[0]));
    assert_eq!(by_haproxy(&clients[1]), 401, "behind the same balancer");
    let said = |from: &Host, client: &str| {
        let said = format!("x-forwarded-for: {client}");
        let arguments = [&LOGIN[..], &["-H", &said]].concat();
        airflow.ask(from, "/login", &arguments).status
    };
    exhaust(|| said(&http, "192.0.2.1"));
    assert_eq!(said(&http, "192.0.2.2"), 401, "behind the same proxy");
    // Who is no such proxy gains nothing by another claim each time.
    let number = std::cell::Cell::new(0);
    exhaust(|| {
        number.set(number.get() + 1);
        said(&clients[2], &format!("198.51.100.{}", number.get()))
    });
}

#[test]
fn a_workload_of_the_mesh_reaches_a_gateway_by_its_address() {
    let mut airflow = Airflow::start();
    let task = airflow.mesh.workload("airflow", "task").start();
    let host = Host {
        place: task.place.clone(),
        address: task.address,
    };
    let answer = airflow.ask(&host, "/", &["-i"]);
    assert_eq!(answer.status, 200, "{answer:?}");
    let client = format!("\"client\": \"{}\"", task.address);
    assert!(answer.body.contains(&client), "{answer:?}");
    let redirected = task.curl(&["-o", "/dev/null", "-w", "%{http_code}"]);
    let url = format!("http://{}/", airflow.at.address);
    let redirected = redirected.args(["-H", &format!("host: {HOST}")]).arg(url);
    assert_eq!(redirected.finish().success(), "308");
    assert!(airflow.limited() < 1.0);
}
