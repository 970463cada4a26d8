//! Unmodified servers: a small API in Python's standard library, nginx, Redis, PostgreSQL.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::invocation::Invocation;
use crate::lan::Host;
use crate::mesh::{WORKLOAD_UID, Workload};
use crate::place::Place;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::PATIENCE;

const EXECUTION_API: &str = include_str!("../workloads/execution_api.py");
const API: &str = include_str!("../workloads/api.py");
const AIRFLOW: &str = include_str!("../workloads/airflow.py");

/// Where a server is to listen, and as whom it runs.
#[derive(Clone, Debug)]
pub struct Seat {
    place: Place,
    bind: std::net::Ipv4Addr,
    local: std::net::Ipv4Addr,
    uid: Option<u32>,
    name: String,
}

impl From<&Workload> for Seat {
    fn from(workload: &Workload) -> Self {
        let local = match workload.local(0) {
            SocketAddr::V4(address) => *address.ip(),
            SocketAddr::V6(_) => std::net::Ipv4Addr::LOCALHOST,
        };
        Self {
            place: workload.place.clone(),
            bind: workload.bind(),
            local,
            uid: workload.uid(),
            name: workload.name.clone(),
        }
    }
}

impl From<&Host> for Seat {
    /// A host of a network of our own.
    fn from(host: &Host) -> Self {
        Self {
            place: host.place.clone(),
            bind: std::net::Ipv4Addr::UNSPECIFIED,
            local: std::net::Ipv4Addr::LOCALHOST,
            uid: Some(WORKLOAD_UID),
            name: host.address.to_string(),
        }
    }
}

impl Seat {
    fn at(&self, port: u16) -> String {
        SocketAddr::from((self.bind, port)).to_string()
    }

    fn program(&self, program: &str) -> Invocation {
        self.place.program(program).user(self.uid)
    }

    #[track_caller]
    fn start(&self, server: Invocation, kind: &str, port: u16, scratch: &Scratch) -> Process {
        let mut process = server.start(&format!("{}-{kind}", self.name), scratch);
        let local = SocketAddr::from((self.local, port));
        process.wait_until(&format!("{kind} listens on {port}"), PATIENCE, || {
            self.place.is_open(local)
        });
        process
    }
}

/// The API of `tests/workloads/api.py`, HTTP/1.1 with keep-alive.
#[track_caller]
pub fn api(seat: impl Into<Seat>, port: u16, scratch: &Scratch) -> Process {
    slow_api(seat, port, Duration::ZERO, scratch)
}

/// The same, whose lists take longer.
#[track_caller]
pub fn slow_api(seat: impl Into<Seat>, port: u16, delay: Duration, scratch: &Scratch) -> Process {
    let seat = seat.into();
    let script = scratch.write("api.py", API);
    let server = seat
        .program(python())
        .arg("-u")
        .arg(script)
        .args([seat.bind.to_string(), port.to_string()])
        .arg(delay.as_millis().to_string());
    seat.start(server, "api", port, scratch)
}

/// The Execution API of `tests/workloads/execution_api.py`.
#[track_caller]
pub fn execution_api(seat: impl Into<Seat>, port: u16, scratch: &Scratch) -> Process {
    let seat = seat.into();
    let script = scratch.write("execution_api.py", EXECUTION_API);
    // The system's own, which every user may run.
    let server = seat
        .program("/usr/bin/python3")
        .arg("-u")
        .arg(script)
        .args([seat.bind.to_string(), port.to_string()]);
    seat.start(server, "execution-api", port, scratch)
}

/// What `tests/workloads/airflow.py` answers in place of Airflow's API server, under a name. While the file `sick` is there, it
/// says that its database is away.
#[track_caller]
pub fn airflow(
    seat: impl Into<Seat>,
    port: u16,
    name: &str,
    sick: &Path,
    scratch: &Scratch,
) -> Process {
    let seat = seat.into();
    let script = scratch.write("airflow.py", AIRFLOW);
    let server = seat.program(python()).arg("-u").arg(script);
    let server = server.args([seat.bind.to_string(), port.to_string(), name.to_owned()]);
    seat.start(server.arg(sick), "airflow", port, scratch)
}

/// The system's, since a version manager's is often another user's.
fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() {
        "/usr/bin/python3"
    } else {
        "python3"
    }
}

/// nginx: HTTP/1.1 on `port`, HTTP/2 with prior knowledge on the next one. `/` is a short text.
#[track_caller]
pub fn nginx(seat: impl Into<Seat>, port: u16, scratch: &Scratch) -> Process {
    let seat = seat.into();
    let servers = format!(
        "server {{ listen {}; listen {} http2; location / {{ return 200 'hello from nginx\\n'; }} }}",
        seat.at(port),
        seat.at(port + 1),
    );
    nginx_of(seat, &servers, port, scratch)
}

/// nginx with these `server` blocks, one of which listens on `port`.
#[track_caller]
pub fn nginx_of(seat: impl Into<Seat>, servers: &str, port: u16, scratch: &Scratch) -> Process {
    let seat = seat.into();
    let directory = scratch.directory(&format!("{}-nginx", seat.name), seat.uid);
    let here = directory.display();
    let configuration = format!(
        "daemon off; worker_processes 1; pid {here}/pid; error_log stderr warn;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; keepalive_requests 1000000; default_type text/plain;
            client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi;
            uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
            {servers}
        }}"
    );
    let file = scratch.write(&format!("{}-nginx.conf", seat.name), configuration);
    let server = seat
        .program("nginx")
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(&directory)
        .arg("-c")
        .arg(file);
    seat.start(server, "nginx", port, scratch)
}

/// Redis without persistence. In protected mode it serves loopback clients alone.
#[track_caller]
pub fn redis(seat: impl Into<Seat>, port: u16, protected: bool, scratch: &Scratch) -> Process {
    let seat = seat.into();
    let server = seat.program("redis-server").args([
        "--port",
        &port.to_string(),
        "--bind",
        &seat.bind.to_string(),
    ]);
    let server = server.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    let server = server.args(["--protected-mode", if protected { "yes" } else { "no" }]);
    seat.start(server, "redis", port, scratch)
}

/// PostgreSQL with an empty database that trusts clients from the addresses in `trusted` (CIDR), and none from
/// loopback but the super-user's own.
#[track_caller]
pub fn postgres(seat: impl Into<Seat>, port: u16, trusted: &str, scratch: &Scratch) -> Process {
    let seat = seat.into();
    let uid = seat.uid.map(|_| user_number("postgres"));
    let home = scratch.directory(&format!("{}-postgres", seat.name), uid);
    let data = home.join("data");
    let initialise = seat
        .place
        .program(postgres_program("initdb"))
        .user(uid)
        .timeout(Duration::from_secs(90));
    let initialise = initialise
        .args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--pgdata",
        ])
        .arg(&data);
    initialise.finish().success();
    let rules = format!("local all all trust\nhost all all {trusted} trust\n");
    std::fs::write(data.join("pg_hba.conf"), rules).expect("the directory that initdb made");
    let server = seat
        .place
        .program(postgres_program("postgres"))
        .user(uid)
        .arg("-D")
        .arg(&data);
    let server = server.args(["-p", &port.to_string(), "-c", "fsync=off", "-c"]);
    let server = server
        .arg(format!("listen_addresses={}", seat.bind))
        .arg("-c");
    let server = server.arg(format!("unix_socket_directories={}", home.display()));
    seat.start(server, "postgres", port, scratch)
}

/// Debian keeps the server's programs out of PATH, in a directory for each version.
pub(crate) fn postgres_program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

pub(crate) fn user_number(name: &str) -> u32 {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line
        .and_then(|line| line.split(':').nth(1))
        .and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("there is no user {name}: install the package that makes it"))
}
