//! The two network namespaces, the certificates, the backend, and how processes are started in them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::clients::server;
use crate::service::Service;
use crate::{Result, RunArgs, load};
use sidewind_tests::measure::Pss;
use sidewind_tests::place::Place;

pub(crate) const CLIENT_ADDRESS: &str = "10.81.0.1";
pub(crate) const SERVER_ADDRESS: &str = "10.81.0.2";
/// The proxies run as this user, whose connections are not redirected.
pub(crate) const PROXY_USER: u32 = 1337;
const BODY_BYTES: usize = 1024;
/// What stalled readers ask for.
const LARGE_BODY_BYTES: u64 = 100 << 20;
/// The client of Sidewind's policy.
pub(crate) const CLIENT_ID: &str = "spiffe://sidewind.local/ns/bench/sa/client";
/// The workload beside the inbound proxy.
pub(crate) const SERVER_ID: &str = "spiffe://sidewind.local/ns/bench/sa/server";

/// Everything that all peers share. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) client: Namespace,
    pub(crate) server: Namespace,
    pub(crate) sidewind: PathBuf,
    pub(crate) sidewind_proxy: PathBuf,
    pub(crate) envoy: PathBuf,
    /// Most connections that every proxy can hold.
    pub(crate) most_idle: usize,
    _backends: Vec<Child>,
    // Last, so that the files outlive the processes.
    directory: tempfile::TempDir,
}

/// A network namespace of our own.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Lab {
    pub(crate) async fn new(args: &RunArgs, most_idle: usize) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("sidewind-bench-")
            .tempdir()?;
        set_mode(directory.path(), 0o755)?;
        write_certificates(directory.path())?;
        let server = Namespace::new("server").await?;
        let client = Namespace::new("client").await?;
        join(&client, &server).await?;
        let backends = start_backends(&server, directory.path()).await?;
        // The proxies' user may not reach the build directory, so they run from copies.
        let copy = |from: PathBuf| -> Result<PathBuf> {
            let Some(name) = from.file_name() else {
                return Ok(from);
            };
            let to = directory.path().join(name);
            if from.is_file() {
                std::fs::copy(&from, &to)?;
            }
            Ok(to)
        };
        let lab = Self {
            sidewind: copy(args.binaries.join("sidewind"))?,
            sidewind_proxy: copy(args.binaries.join("sidewind-proxy"))?,
            envoy: copy(args.envoy.clone())?,
            most_idle,
            client,
            server,
            _backends: backends,
            directory,
        };
        load::wait_until_served(&lab).await?;
        Ok(lab)
    }

    /// A file of the shared directory, which every user may enter.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of the shared directory that every user may read.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::write(&path, content)?;
        set_mode(&path, 0o644)?;
        Ok(path)
    }

    /// Sends the client's connections to the outbound proxy, by the same rule for every peer.
    ///
    /// `port` says where the connections for a service are taken.
    pub(crate) async fn redirect(&self, port: impl Fn(Service) -> u16) -> Result<()> {
        let rules: String = Service::ALL
            .into_iter()
            .map(|service| {
                let (from, to) = (service.port(), port(service));
                format!("ip daddr {SERVER_ADDRESS} tcp dport {from} redirect to :{to}\n")
            })
            .collect();
        let rules = format!(
            "table ip bench {{ chain output {{ type nat hook output priority -100;
             meta skuid {PROXY_USER} return
             {rules}}}\n}}\n"
        );
        self.stop_redirecting().await?;
        self.nft(&rules).await
    }

    pub(crate) async fn stop_redirecting(&self) -> Result<()> {
        self.nft("table ip bench {}\ndelete table ip bench\n").await
    }

    async fn nft(&self, rules: &str) -> Result<()> {
        let mut child = self
            .client
            .command("nft", ["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes()).await?;
        }
        check("nft", child.wait().await?)
    }

    /// First lines of what each program says of its version.
    pub(crate) async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        for (name, program, flag) in [
            ("haproxy", Path::new("haproxy"), "-v"),
            ("nginx", Path::new("nginx"), "-v"),
            ("envoy", self.envoy.as_path(), "--version"),
            ("sidewind-proxy", self.sidewind_proxy.as_path(), "--version"),
            ("redis-server", Path::new("redis-server"), "--version"),
            ("wrk", Path::new("wrk"), "-v"),
            ("h2load", Path::new("h2load"), "--version"),
        ] {
            let Ok(output) = Command::new(program).arg(flag).output().await else {
                continue;
            };
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            if let Some(line) = text.lines().find(|line| !line.trim().is_empty()) {
                // Envoy begins with the path that it was started by.
                let line = line
                    .trim()
                    .trim_start_matches(&program.display().to_string());
                versions.insert(name.to_owned(), line.trim().to_owned());
            }
        }
        versions
    }
}

impl Namespace {
    async fn new(role: &str) -> Result<Self> {
        let name = format!("sidewind-bench-{}-{role}", std::process::id());
        ip(&["netns", "add", &name]).await?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]).await?;
        // Tens of thousands of connections to one address, from no port that a proxy listens on.
        for setting in [
            "net.ipv4.ip_local_port_range=20000 65535",
            "net.ipv4.tcp_tw_reuse=1",
            "net.core.somaxconn=8192",
        ] {
            let set = namespace
                .command("sysctl", ["-qw", setting])
                .status()
                .await?;
            check("sysctl", set)?;
        }
        Ok(namespace)
    }

    /// For threads of this process.
    pub(crate) fn place(&self) -> Place {
        Place::Namespace(self.name.as_str().into())
    }

    /// A command inside the namespace. `ip` and `setpriv` replace themselves, so that the child's process id is
    /// the program's own; it dies with us, however we end.
    pub(crate) fn command<I, S>(&self, program: impl AsRef<OsStr>, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command_as(None, program, args)
    }

    /// The same as the user of the proxies.
    pub(crate) fn command_as_proxy<I, S>(&self, program: impl AsRef<OsStr>, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command_as(Some(PROXY_USER), program, args)
    }

    fn command_as<I, S>(&self, user: Option<u32>, program: impl AsRef<OsStr>, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig=KILL"]);
        if let Some(user) = user {
            command.args([
                format!("--reuid={user}"),
                format!("--regid={user}"),
                "--clear-groups".to_owned(),
            ]);
        }
        command
            .arg("--")
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], args].concat()).await
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = std::process::Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("bench: the network namespace {} stays behind", self.name);
        }
    }
}

async fn ip(args: &[&str]) -> Result<()> {
    check("ip", Command::new("ip").args(args).status().await?)
}

pub(crate) fn check(what: &str, status: std::process::ExitStatus) -> Result<()> {
    if status.success() {
        Ok(())
    } else {
        Err(format!("{what} failed: {status}").into())
    }
}

async fn join(client: &Namespace, server: &Namespace) -> Result<()> {
    ip(&[
        "link",
        "add",
        "bench",
        "netns",
        &client.name,
        "type",
        "veth",
        "peer",
        "name",
        "bench",
        "netns",
        &server.name,
    ])
    .await?;
    for (namespace, address) in [(client, CLIENT_ADDRESS), (server, SERVER_ADDRESS)] {
        let address = format!("{address}/24");
        namespace
            .ip(&["address", "add", &address, "dev", "bench"])
            .await?;
        namespace.ip(&["link", "set", "bench", "up"]).await?;
    }
    Ok(())
}

/// nginx for HTTP, Redis, and what this process serves itself.
async fn start_backends(server: &Namespace, directory: &Path) -> Result<Vec<Child>> {
    let body = "x".repeat(BODY_BYTES);
    std::fs::File::create(directory.join("large"))?.set_len(LARGE_BODY_BYTES)?;
    set_mode(&directory.join("large"), 0o644)?;
    let config = directory.join("backend.conf");
    std::fs::write(
        &config,
        format!(
            "{preamble}
http {{
  {temporary}
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  default_type text/plain;
  server {{
    listen {http} backlog=8192;
    location / {{ return 200 \"{body}\"; }}
    location = /large {{ root {directory}; }}
  }}
  server {{ listen {http2} http2 backlog=8192; location / {{ return 200 \"{body}\"; }} }}
}}
",
            preamble = nginx_preamble(directory, "backend"),
            temporary = nginx_temporary(directory),
            http = Service::Http.address(),
            http2 = Service::Http2.address(),
            directory = directory.display(),
        ),
    )?;
    let redis = server
        .command(
            "redis-server",
            ["--save", "", "--appendonly", "no", "--protected-mode", "no"],
        )
        .args([
            "--bind",
            SERVER_ADDRESS,
            "--port",
            &Service::Redis.port().to_string(),
        ])
        .args(["--dir".as_ref(), directory.as_os_str()])
        .stdout(Stdio::null())
        .spawn()?;
    let address = |service: Service| service.address().parse();
    server::start(server, address(Service::Bytes)?, address(Service::Grpc)?).await?;
    Ok(vec![nginx(server, &config)?, redis])
}

/// What every nginx here begins with: one process, so that its process id is the worker's.
pub(crate) fn nginx_preamble(directory: &Path, name: &str) -> String {
    format!(
        "daemon off; master_process off; worker_processes 1;
error_log stderr warn; pid {}/{name}.pid;
events {{ worker_connections 19500; }}",
        directory.display()
    )
}

pub(crate) fn nginx_temporary(directory: &Path) -> String {
    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/nginx-{kind};", directory.display()))
        .join(" ")
}

pub(crate) fn nginx(namespace: &Namespace, config: &Path) -> Result<Child> {
    let config = config.display().to_string();
    Ok(namespace
        .command("nginx", ["-e", "stderr", "-c", &config])
        .spawn()?)
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// A CA and one P-256 certificate for each side, as `ca.pem`, `SIDE.pem`, `SIDE.key` and both in `SIDE.both.pem`.
fn write_certificates(directory: &Path) -> Result<()> {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyPair, KeyUsagePurpose, SanType,
    };
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "bench CA");
    let authority = params.self_signed(&key)?;
    std::fs::write(directory.join("ca.pem"), authority.pem())?;
    // Sidewind's control plane signs by the same authority, and takes no key that others may read.
    std::fs::write(directory.join("ca.key"), key.serialize_pem())?;
    set_mode(&directory.join("ca.key"), 0o600)?;
    let issuer = Issuer::new(params, key);
    for (side, id) in [("outbound", CLIENT_ID), ("inbound", SERVER_ID)] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![format!("{side}.bench")])?;
        params.distinguished_name.push(DnType::CommonName, side);
        params.subject_alt_names.push(SanType::URI(id.try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = std::time::SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(86_400)).into();
        let certificate = params.signed_by(&key, &issuer)?;
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        std::fs::write(directory.join(format!("{side}.pem")), &certificate)?;
        std::fs::write(directory.join(format!("{side}.key")), &key)?;
        std::fs::write(
            directory.join(format!("{side}.both.pem")),
            format!("{certificate}{key}"),
        )?;
    }
    Ok(())
}

/// The body that every answer must have.
pub(crate) fn expected_answer() -> String {
    format!("200 {BODY_BYTES}")
}

/// Memory of one process.
pub(crate) fn memory_of(child: &Child) -> Result<Pss> {
    Ok(sidewind_tests::measure::pss(process_id(child)?)?)
}

pub(crate) fn process_id(child: &Child) -> Result<u32> {
    child.id().ok_or_else(|| "the process has ended".into())
}
