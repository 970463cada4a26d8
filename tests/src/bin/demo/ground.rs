//! What the demo stands on: processes in network namespaces, or on loopback addresses.

use std::net::SocketAddr;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::time::Duration;

use sidewind_tests::binaries::{Binaries, is_installed, reachable};
use sidewind_tests::collector::Collector;
use sidewind_tests::invocation::Invocation;
use sidewind_tests::lan::{Host, Namespace};
use sidewind_tests::load::Load;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::scratch::Scratch;
use sidewind_tests::wait::PATIENCE;
use sidewind_tests::wire::{Recording, Wire};
use sidewind_tests::workloads;

const POLICIES: &str = include_str!("../../../../examples/demo/policies.yaml");

/// The port where plaintext comes in under explicit capture.
const PLAINTEXT_PORT: u16 = 8088;

/// Everything that runs. Dropped in this order.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) task: Workload,
    pub(crate) reporting: Workload,
    pub(crate) api: Workload,
    pub(crate) collector: Collector,
    outside: Host,
    _servers: Vec<Process>,
    recording: Option<Recording>,
    own: PathBuf,
    pub(crate) mesh: Mesh,
}

/// A response, as it is printed by `curl -i`.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) error: String,
    pub(crate) body: String,
}

impl Answer {
    fn parse(printed: &str) -> Self {
        let (head, body) = printed.split_once("\r\n\r\n").unwrap_or((printed, ""));
        let error = head
            .lines()
            .find_map(|line| line.strip_prefix("sidewind-error: "));
        Self {
            status: head.split(' ').nth(1).unwrap_or_default().into(),
            error: error.unwrap_or_default().trim().into(),
            body: body.trim().into(),
        }
    }
}

/// Why there can be no network namespaces here; none if there can.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    for program in ["ip", "setpriv"] {
        if !is_installed(program) {
            return Some(format!("{program} is not installed"));
        }
    }
    if !is_installed("nft") && !is_installed("iptables") {
        return Some("neither nft nor iptables is installed".into());
    }
    let tried = catch_unwind(|| {
        let (namespace, scratch) = (Namespace::new(), Scratch::new());
        let proxy = Binaries::find(&scratch).proxy;
        namespace
            .place()
            .program(proxy)
            .arg("redirect")
            .finish()
            .success();
    });
    tried
        .is_err()
        .then(|| "this kernel or container allows no namespaces with redirection".into())
}

impl Ground {
    /// Starts everything.
    pub(crate) fn start(transparent: bool) -> Self {
        let plan = Mesh::plan().config("policies.yaml", POLICIES);
        let plan = plan
            .flag("--svid-ttl", "60s")
            .flag("--inbound-plaintext", "strict");
        let mut mesh = if transparent {
            plan.start()
        } else {
            plan.start_on_host_loopback()
        };
        let recording = transparent.then(|| Recording::start(&mesh.lan_router()));
        let own = reachable(
            &std::env::current_exe().expect("the path of this program"),
            &mesh.scratch,
        );
        let host = mesh.outsider("collector");
        let collector = Collector::start(&host.place, (host.address, 4317).into());

        let host = mesh.outsider("orders-api");
        let mut plan = mesh.workload("data", "orders-api");
        plan = plan
            .serves("orders-api.data:80=8080/http")
            .serves("redis.data:6379=6379/tcp");
        plan = plan
            .flag("--trace-endpoint", collector.endpoint())
            .flag("--trace-ratio", "0");
        if !transparent {
            let front = format!("{}:{PLAINTEXT_PORT}=8080", host.address);
            plan = plan.relayed().flag("--plaintext-listen", front);
        }
        let api = plan.start_at(host);
        let servers = start_servers(&api, &own, &mesh.scratch);

        let host = mesh.outsider("task");
        let mut plan = mesh.workload("airflow", "task");
        plan = plan
            .flag("--trace-endpoint", collector.endpoint())
            .flag("--trace-ratio", "0");
        if !transparent {
            plan = plan.flag("--listen", format!("{}:6379=redis.data:6379", host.address));
        }
        let task = plan.start_at(host);
        let reporting = mesh.workload("airflow", "reporting").start();
        let outside = mesh.outsider("outside");
        Self {
            task,
            reporting,
            api,
            collector,
            outside,
            _servers: servers,
            recording,
            own,
            mesh,
        }
    }

    fn url(&self, path: &str) -> String {
        let port = if self.mesh.is_transparent() {
            ":8080"
        } else {
            ""
        };
        format!("http://orders-api.data{port}{path}")
    }

    /// A workload calls the API: by curl where there is one.
    pub(crate) fn call(&self, from: &Workload, path: &str, headers: &[&str]) -> Answer {
        let mut call = self.client(
            from.program("curl"),
            from.program(&self.own.to_string_lossy()),
            headers,
        );
        if !self.mesh.is_transparent() {
            call = call.env("http_proxy", format!("http://{}", from.at(15001)));
        }
        Answer::parse(&call.arg(self.url(path)).finish().success())
    }

    /// Somebody outside the mesh calls the API in plaintext.
    pub(crate) fn call_from_outside(&self, path: &str) -> Answer {
        let place = &self.outside.place;
        let call = self.client(place.program("curl"), place.program(&self.own), &[]);
        let url = if self.mesh.is_transparent() {
            self.url(path)
        } else {
            format!("http://{}{path}", self.api.at(PLAINTEXT_PORT))
        };
        Answer::parse(&call.arg(url).finish().success())
    }

    fn client(&self, curl: Invocation, own: Invocation, headers: &[&str]) -> Invocation {
        let client = if is_installed("curl") {
            curl.args(["-sS", "-i", "--max-time", "20"])
        } else {
            own.arg("call")
        };
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        client.args(headers).timeout(Duration::from_secs(25))
    }

    /// The task gives one command to Redis: by redis-cli where there is one.
    pub(crate) fn redis(&self, words: &[&str]) -> String {
        let host = if self.mesh.is_transparent() {
            "redis.data".into()
        } else {
            self.task.address.to_string()
        };
        let call = if has_redis() {
            self.task.program("redis-cli").args(["-h", &host])
        } else {
            self.task
                .program(&self.own.to_string_lossy())
                .args(["redis-call", &format!("{host}:6379")])
        };
        call.args(words).finish().success().trim().to_owned()
    }

    /// Steady requests of the task's.
    pub(crate) fn load(&self) -> Load {
        let load = if self.mesh.is_transparent() {
            Load::new(self.api.at(8080), "/orders").host("orders-api.data:8080")
        } else {
            Load::new(self.task.at(15001), "http://orders-api.data/orders").host("orders-api.data")
        };
        load.rate(100).connections(4)
    }

    /// What a listener between the two has seen so far.
    pub(crate) fn wire(&mut self) -> Wire {
        let relayed = self.api.relay.as_ref().map(|relay| relay.wire());
        let recorded = self.recording.take().map(Recording::stop);
        let recorded = recorded.map(|wire| wire.between(self.task.address, self.api.address));
        recorded.or(relayed).unwrap_or_default()
    }
}

fn has_redis() -> bool {
    is_installed("redis-server") && is_installed("redis-cli")
}

fn start_servers(api: &Workload, own: &std::path::Path, scratch: &Scratch) -> Vec<Process> {
    let start = |kind: &str, port: u16| {
        let listen = SocketAddr::from((api.bind(), port)).to_string();
        let mut process = api
            .program(&own.to_string_lossy())
            .args([kind, &listen])
            .start(kind, scratch);
        process.wait_until("it listens", PATIENCE, || {
            api.place.is_open(api.local(port))
        });
        process
    };
    let redis = if has_redis() {
        workloads::redis(api, 6379, false, scratch)
    } else {
        start("redis", 6379)
    };
    vec![start("api", 8080), redis]
}
