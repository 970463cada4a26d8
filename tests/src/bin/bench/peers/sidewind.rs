//! Sidewind's pair with all its features on: a policy that names the caller, metrics, and an access log to a file.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

use super::{Pair, started};
use crate::Result;
use crate::lab::{CLIENT_ADDRESS, Lab, Namespace, SERVER_ADDRESS, check, set_mode};
use crate::service::Service;

const POLICY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: web, namespace: bench }
spec:
  selector: { spiffeIds: [\"spiffe://sidewind.local/ns/bench/sa/server\"] }
  rules:
    - from: [{ spiffeIds: [\"spiffe://sidewind.local/ns/bench/sa/client\"] }]
      to:
        - { ports: [8080], methods: [GET], paths: [\"/\", \"/large\"] }
        - { ports: [8081, 8082], methods: [GET, POST], paths: [\"/\", \"/bench.Echo/Say\"] }
        - { ports: [6379, 9000] }
";

/// The inbound proxy's services, as discovery names them.
const SERVICES: [(&str, Service, &str); 5] = [
    ("web.bench", Service::Http, "http"),
    ("web2.bench", Service::Http2, "http2"),
    ("grpc.bench", Service::Grpc, "grpc"),
    ("redis.bench", Service::Redis, "tcp"),
    ("bytes.bench", Service::Bytes, "tcp"),
];

/// Where each proxy sends its spans.
pub(crate) const COLLECTOR: &str = "127.0.0.1:4317";

const READY_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn start(lab: &Lab) -> Result<Pair> {
    let state = lab.path("sidewind-state");
    // A state of its own for each turn.
    if state.exists() {
        std::fs::remove_dir_all(&state)?;
    }
    let control_plane = control_plane(lab, &state)?;
    wait_until_ready(&lab.server, 15014, &lab.path("sidewind.log")).await?;
    std::fs::copy(state.join("trust-bundle.pem"), lab.path("trust-bundle.pem"))?;
    set_mode(&lab.path("trust-bundle.pem"), 0o644)?;
    let (mut token_args, mut proxy_args) = (Vec::new(), Vec::new());
    for (name, service, protocol) in SERVICES {
        let port = service.port();
        token_args.push(format!("--service={name}"));
        proxy_args.push(format!("--serve={name}:{port}={port}/{protocol}"));
    }
    let side = Side {
        namespace: &lab.server,
        role: "server",
        address: SERVER_ADDRESS,
        token_args,
        proxy_args,
    };
    let (inbound, _) = proxy(lab, side).await?;
    let side = Side {
        namespace: &lab.client,
        role: "client",
        address: CLIENT_ADDRESS,
        token_args: Vec::new(),
        proxy_args: Vec::new(),
    };
    let (outbound, start) = proxy(lab, side).await?;
    Ok(Pair {
        proxies: vec![outbound, inbound],
        others: vec![control_plane],
        start,
    })
}

fn control_plane(lab: &Lab, state: &Path) -> Result<Child> {
    std::fs::create_dir_all(lab.path("policies"))?;
    lab.write("policies/web.yaml", POLICY)?;
    let log = std::fs::File::create(lab.path("sidewind.log"))?;
    Ok(lab
        .server
        .command(
            &lab.sidewind,
            [
                "serve".as_ref(),
                "--state-dir".as_ref(),
                state.as_os_str(),
                "--config".as_ref(),
                lab.path("policies").as_os_str(),
                "--listen".as_ref(),
                format!("{SERVER_ADDRESS}:15010").as_ref(),
                "--admin-listen".as_ref(),
                "127.0.0.1:15014".as_ref(),
                "--root-cert".as_ref(),
                lab.path("ca.pem").as_os_str(),
                "--root-key".as_ref(),
                lab.path("ca.key").as_os_str(),
            ],
        )
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?)
}

/// What tells the two proxies apart.
struct Side<'a> {
    namespace: &'a Namespace,
    role: &'a str,
    address: &'a str,
    token_args: Vec<String>,
    proxy_args: Vec<String>,
}

/// Starts a proxy; says how long it took until it was ready, its certificate from the control plane included.
async fn proxy(lab: &Lab, side: Side<'_>) -> Result<(Child, Duration)> {
    let token = join_token(lab, &side).await?;
    let access_log = lab.path(&format!("access-{}.log", side.role));
    std::fs::write(&access_log, "")?;
    set_mode(&access_log, 0o666)?;
    let log_path = lab.path(&format!("proxy-{}.log", side.role));
    let log = std::fs::File::create(&log_path)?;
    let ready = started(side.namespace, answers_ready);
    let begun = Instant::now();
    let child = side
        .namespace
        .command_as_proxy(&lab.sidewind_proxy, ["run"])
        .args([
            "--control-plane",
            &format!("https://{SERVER_ADDRESS}:15010"),
        ])
        .arg("--trust-bundle")
        .arg(lab.path("trust-bundle.pem"))
        .arg("--access-log")
        .arg(&access_log)
        .args(["--capture", "transparent"])
        .args(["--address", side.address, "--workload-name", side.role])
        .args(["--max-connections", "20000"])
        // There is no workload to wait for at its end.
        .args(["--drain-quiet", "100ms"])
        .args(["--trace-ratio", "0.01"])
        .args(["--trace-endpoint", &format!("http://{COLLECTOR}")])
        .args(side.proxy_args)
        // In the environment, where only its own user and root see it.
        .env("SIDEWIND_JOIN_TOKEN", token)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let Ok(ready) = ready.await else {
        let log = std::fs::read_to_string(&log_path).unwrap_or_default();
        return Err(format!("the proxy did not get ready; its log:\n{log}").into());
    };
    Ok((child, ready.saturating_duration_since(begun)))
}

/// Whether the admin port of the namespace says that the proxy is ready.
fn answers_ready() -> bool {
    let admin = (Ipv4Addr::LOCALHOST, 15020).into();
    let connected = std::net::TcpStream::connect_timeout(&admin, READY_TIMEOUT);
    let asked = connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(READY_TIMEOUT))?;
        stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status == *b"HTTP/1.1 200")
    });
    asked.unwrap_or(false)
}

async fn join_token(lab: &Lab, side: &Side<'_>) -> Result<String> {
    let id = format!("spiffe://sidewind.local/ns/bench/sa/{}", side.role);
    let output = lab
        .server
        .command(&lab.sidewind, ["token", "create", "--spiffe-id", &id])
        .args(&side.token_args)
        .arg("--state-dir")
        .arg(lab.path("sidewind-state"))
        .stderr(Stdio::inherit())
        .output()
        .await?;
    check("sidewind token create", output.status)?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn wait_until_ready(namespace: &Namespace, admin_port: u16, log: &Path) -> Result<()> {
    let url = format!("http://127.0.0.1:{admin_port}/ready");
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let output = namespace
            .command("curl", ["--silent", "--fail", "--max-time", "5", &url])
            .output()
            .await?;
        if output.status.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().rev().take(5).collect::<Vec<_>>().join("\n");
            let seconds = READY_TIMEOUT.as_secs();
            return Err(
                format!("{url} is not ready after {seconds} s; last of its log:\n{last}").into(),
            );
        }
        tokio::time::sleep(POLL).await;
    }
}
