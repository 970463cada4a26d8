//! Which of a service's servers a request goes to, by real draws of a workload's requests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

use crate::support::TASK_ID;

/// The address of the service, which no host has.
const VIRTUAL: &str = "10.96.0.10";

const ENTRY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders, namespace: data }
spec:
  addresses: [10.96.0.10]
  ports: [{ port: 80, protocol: http, targetPort: 8080 }]
  service: orders-api.data
";

/// Finds out within a second that a server says it is ill, and that it is well.
const CHECK: &str = "
  healthCheck:
    http: { path: /api/v2/monitor/health, body: { json: { /metadatabase/status: healthy } } }
    interval: 100ms
    unhealthyThreshold: 1
    healthyThreshold: 1";

fn policy(rest: &str) -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: orders-api, namespace: data }}
spec:
  targetRefs: [{{ kind: Service, name: orders-api }}]
{rest}
"
    )
}

struct Server {
    _workload: Workload,
    _process: Process,
    sick: PathBuf,
}

/// A task, and servers that say who they are. Fields are dropped in this order.
struct Fleet {
    task: Workload,
    servers: BTreeMap<String, Server>,
    mesh: Mesh,
}

type Draws = BTreeMap<String, usize>;

impl Fleet {
    /// Servers called `a`, `b` and so on, one in each of the zones that are named, and a task in the first of them.
    #[track_caller]
    fn start(rest: &str, zones: &[&str]) -> Self {
        let plan = Mesh::plan().config("entry.yaml", ENTRY);
        let mut mesh = plan.config("traffic.yaml", &policy(rest)).start();
        let task = mesh.workload("airflow", "task").flag("--zone", zones[0]);
        let mut fleet = Self {
            task: task.start(),
            servers: BTreeMap::new(),
            mesh,
        };
        for (name, zone) in ["a", "b", "c", "d"].into_iter().zip(zones) {
            fleet.add(name, zone);
        }
        fleet
    }

    #[track_caller]
    fn add(&mut self, name: &str, zone: &str) {
        let workload = self.mesh.workload("data", name).flag("--zone", zone);
        let workload = workload.serves("orders-api.data:80=8080/http").start();
        let scratch = &self.mesh.scratch;
        let sick = scratch.join(format!("{name}.sick"));
        let process = workloads::airflow(&workload, 8080, name, &sick, scratch);
        let server = Server {
            _workload: workload,
            _process: process,
            sick,
        };
        self.servers.insert(name.to_owned(), server);
    }

    fn change(&self, rest: &str) {
        let yaml = policy(rest);
        self.mesh.control_plane.write_config("traffic.yaml", &yaml);
    }

    fn is_ill(&self, name: &str, ill: bool) {
        let sick = &self.servers[name].sick;
        match ill {
            true => std::fs::write(sick, "").expect("the scratch directory"),
            false => std::fs::remove_file(sick).expect("the file is there"),
        }
    }

    /// Who answered so many requests of one connection, one after another.
    #[track_caller]
    fn order(&self, count: usize, arguments: &[&str]) -> Vec<String> {
        let url = format!("http://{VIRTUAL}/[1-{count}]");
        let printed = self.task.curl(arguments).arg(url).finish().success();
        let answers = serde_json::Deserializer::from_str(&printed).into_iter();
        answers
            .map(|answer: Result<serde_json::Value, _>| {
                let answer = answer.unwrap_or_else(|error| panic!("{error}: {printed}"));
                answer["server"].as_str().expect("a name").to_owned()
            })
            .collect()
    }

    #[track_caller]
    fn draws(&self, count: usize, arguments: &[&str]) -> Draws {
        let mut draws = Draws::new();
        for server in self.order(count, arguments) {
            *draws.entry(server).or_default() += 1;
        }
        draws
    }

    /// Waits until draws are as they must be.
    #[track_caller]
    fn wait_for(&self, what: &str, arguments: &[&str], is_right: impl Fn(&Draws) -> bool) -> Draws {
        let mut last = Draws::new();
        let found = sidewind_tests::wait::within(PATIENCE, || {
            last = self.draws(60, arguments);
            is_right(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("not so: {what}; last {last:?}"))
    }

    #[track_caller]
    fn wait_for_only(&self, what: &str, servers: &[&str]) {
        let wanted: BTreeSet<&str> = servers.iter().copied().collect();
        self.wait_for(what, &[], |draws| {
            draws.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted
        });
    }

    /// Which server each of these keys belongs to.
    #[track_caller]
    fn owners(&self, keys: &[String], argument: impl Fn(&str) -> [String; 2]) -> Vec<String> {
        let owner = |key: &String| {
            let argument = argument(key);
            let arguments: Vec<&str> = argument.iter().map(String::as_str).collect();
            let draws = self.draws(3, &arguments);
            assert_eq!(draws.len(), 1, "{key} has one server: {draws:?}");
            draws.into_keys().next().expect("one")
        };
        keys.iter().map(owner).collect()
    }
}

#[test]
fn round_robin_gives_each_its_turn_and_weights_are_shares_of_a_round() {
    let round = "  balance: { algorithm: roundRobin }";
    let fleet = Fleet::start(round, &["x", "x", "x"]);
    fleet.wait_for_only("all servers are known", &["a", "b", "c"]);
    let order = fleet.order(30, &[]);
    for (one, next) in order.iter().zip(&order[3..]) {
        assert_eq!(one, next, "the same order in each round: {order:?}");
    }
    assert_eq!(
        fleet.draws(300, &[]).values().copied().collect::<Vec<_>>(),
        [100; 3]
    );
    fleet
        .change("  balance: { algorithm: roundRobin, endpoints: [{ workloads: [b], weight: 3 }] }");
    let heavy = |draws: &Draws| draws["b"] == 3 * draws["a"] && draws["a"] == draws["c"];
    fleet.wait_for("b has three turns of five", &[], heavy);
}

#[test]
fn weights_are_shares_of_random_draws_too() {
    let weights =
        "  balance: { algorithm: leastRequest, endpoints: [{ workloads: [a], weight: 8 }] }";
    let fleet = Fleet::start(weights, &["x", "x", "x"]);
    fleet.wait_for_only("all servers are known", &["a", "b", "c"]);
    let draws = fleet.draws(500, &[]);
    // 400 are to be expected, and 9 of them the standard deviation.
    assert!((340..460).contains(&draws["a"]), "{draws:?}");
}

#[test]
fn a_server_that_has_streams_in_hand_gets_fewer_requests() {
    let least = "  balance: { algorithm: leastRequest }";
    let mut fleet = Fleet::start(least, &["x"]);
    fleet.wait_for_only("the server is known", &["a"]);
    let scratch = &fleet.mesh.scratch;
    let streams: Vec<Process> = (0..6)
        .map(|number| {
            let name = format!("stream-{number}");
            let curl = fleet
                .task
                .curl(&["-N"])
                .arg(format!("http://{VIRTUAL}/stream"));
            let stream = curl.start(&name, scratch);
            let seen = || std::fs::read_to_string(scratch.join(format!("{name}.out"))).ok();
            eventually("the response has begun", PATIENCE, || {
                seen().filter(|out| out.contains("first"))
            });
            stream
        })
        .collect();
    fleet.add("b", "x");
    fleet.wait_for_only("requests go to the server that has none", &["b"]);
    drop(streams);
    let both = |draws: &Draws| draws.len() == 2 && draws.values().all(|count| *count > 15);
    fleet.wait_for("the streams have ended", &[], both);
}

#[test]
fn a_hashed_key_keeps_its_server_when_others_come_and_go() {
    let by_header =
        "  balance: { algorithm: consistentHash, hash: { header: x-user, loadPercent: 0 } }";
    let mut fleet = Fleet::start(by_header, &["x", "x", "x"]);
    fleet.wait_for_only("all servers are known", &["a", "b", "c"]);
    let keys: Vec<String> = (0..24).map(|number| format!("user-{number}")).collect();
    let header = |key: &str| ["-H".to_owned(), format!("x-user: {key}")];
    let before = fleet.owners(&keys, header);
    assert!(
        before.iter().collect::<BTreeSet<_>>().len() > 1,
        "{before:?}"
    );
    fleet.add("d", "x");
    fleet.wait_for_only("the new server is known", &["a", "b", "c", "d"]);
    let with_d = fleet.owners(&keys, header);
    for (was, is) in before.iter().zip(&with_d) {
        assert!(is == was || is == "d", "{before:?} then {with_d:?}");
    }
    fleet.servers.remove("a");
    fleet.wait_for_only("one has left", &["b", "c", "d"]);
    let without_a = fleet.owners(&keys, header);
    for (was, is) in with_d.iter().zip(&without_a) {
        assert!(is == was || was == "a", "{with_d:?} then {without_a:?}");
    }
    // By a cookie the same; by who or where the caller is, all of its requests are of one server.
    fleet.change(
        "  balance: { algorithm: consistentHash, hash: { cookie: session, loadPercent: 0 } }",
    );
    let one = |draws: &Draws| draws.len() == 1;
    fleet.wait_for(
        "a cookie has its server",
        &["-b", "other=1; session=tom"],
        one,
    );
    let cookie = |key: &str| ["-b".to_owned(), format!("session={key}")];
    let owners = fleet.owners(&keys, cookie);
    assert!(
        owners.iter().collect::<BTreeSet<_>>().len() > 1,
        "{owners:?}"
    );
    for source in ["identity", "address"] {
        // Spread first, so that it is this policy and not the last that keeps them together.
        fleet.change("  balance: { algorithm: roundRobin }");
        fleet.wait_for_only("requests are spread", &["b", "c", "d"]);
        let hash = format!(
            "  balance: {{ algorithm: consistentHash, hash: {{ source: {source}, loadPercent: 0 }} }}"
        );
        fleet.change(&hash);
        fleet.wait_for(&format!("{TASK_ID} has one server by {source}"), &[], one);
    }
}

#[test]
fn a_cookie_keeps_its_server_when_others_come_and_go() {
    let sticky = "  balance: { algorithm: roundRobin, stickiness: { cookie: stay } }";
    let mut fleet = Fleet::start(sticky, &["x", "x", "x"]);
    fleet.wait_for_only("all servers are known", &["a", "b", "c"]);
    let jar = fleet.mesh.scratch.directory("cookies", fleet.task.uid());
    let jar = jar.join("jar").to_string_lossy().into_owned();
    let browser = ["-b", jar.as_str(), "-c", jar.as_str()];
    let mine = fleet.order(1, &browser)[0].clone();
    assert_eq!(fleet.draws(20, &browser), [(mine.clone(), 20)].into());
    fleet.add("d", "x");
    fleet.wait_for_only("the new server is known", &["a", "b", "c", "d"]);
    let other = ["a", "b", "c"].into_iter().find(|name| *name != mine);
    fleet.servers.remove(other.expect("two others"));
    fleet.wait_for("one has left", &[], |draws| draws.len() == 3);
    assert_eq!(fleet.draws(20, &browser), [(mine.clone(), 20)].into());
    // Whose server leaves gets another, and stays there.
    fleet.servers.remove(&mine);
    fleet.wait_for("it has left", &[], |draws| draws.len() == 2);
    let next = fleet.order(1, &browser)[0].clone();
    assert_eq!(fleet.draws(20, &browser), [(next, 20)].into());
}

#[test]
fn the_own_zone_comes_first_is_left_when_it_is_ill_and_taken_up_when_it_is_healed() {
    let zone = format!("  balance: {{ preferZone: true }}{CHECK}");
    let fleet = Fleet::start(&zone, &["near", "far", "far"]);
    fleet.wait_for_only("the own zone alone", &["a"]);
    fleet.is_ill("a", true);
    fleet.wait_for_only("the others while it is ill", &["b", "c"]);
    fleet.is_ill("a", false);
    fleet.wait_for_only("the own zone again", &["a"]);
}

#[test]
fn a_priority_is_left_at_its_threshold_and_taken_up_when_it_is_healed() {
    let rules = "[{ workloads: [c], priority: 1 }]";
    let of = |percent: u32| {
        format!("  balance: {{ failoverPercent: {percent}, endpoints: {rules} }}{CHECK}")
    };
    let fleet = Fleet::start(&of(50), &["x", "x", "x"]);
    fleet.wait_for_only("the first priority alone", &["a", "b"]);
    fleet.is_ill("a", true);
    fleet.wait_for_only("half of it is enough", &["b"]);
    fleet.change(&of(60));
    fleet.wait_for_only("half of it is too little", &["c"]);
    fleet.is_ill("a", false);
    fleet.wait_for_only("it is healed", &["a", "b"]);
    for name in ["a", "b"] {
        fleet.is_ill(name, true);
    }
    fleet.wait_for_only("nothing of it is well", &["c"]);
    fleet.is_ill("c", true);
    fleet.wait_for("with none well health says nothing", &[], |draws| {
        draws.len() > 1
    });
}

#[test]
fn a_new_server_begins_slowly() {
    let slow = "  balance: { algorithm: leastRequest, slowStart: 1h }";
    let mut fleet = Fleet::start(slow, &["x", "x"]);
    // Both came one after the other, so that the second may begin slowly as well.
    fleet.change("  balance: { algorithm: leastRequest }");
    let even = |draws: &Draws| draws.len() == 2 && draws.values().all(|count| *count > 15);
    fleet.wait_for("both servers are used alike", &[], even);
    fleet.change(slow);
    fleet.add("c", "x");
    fleet.wait_for("the new server is known", &[], |draws| {
        draws.contains_key("c")
    });
    let draws = fleet.draws(600, &[]);
    assert!(draws["c"] < 130, "an even share were 200: {draws:?}");
    fleet.change("  balance: { algorithm: leastRequest }");
    fleet.wait_for("without it the share is even", &[], |draws| {
        draws.get("c") > Some(&12)
    });
}
