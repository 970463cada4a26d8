//! Sidewind's pair with all its features on: a policy that names the caller, metrics, and an access log to a file.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

use super::Pair;
use crate::Result;
use crate::lab::{CLIENT_ADDRESS, Lab, Namespace, SERVER_ADDRESS, check, set_mode};

const POLICY: &str = "apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: web, namespace: bench }
spec:
  selector: { spiffeIds: [\"spiffe://sidewind.local/ns/bench/sa/server\"] }
  rules:
    - from: [{ spiffeIds: [\"spiffe://sidewind.local/ns/bench/sa/client\"] }]
      to: [{ ports: [8080], methods: [GET], paths: [\"/\"] }]
";

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
    let inbound = proxy(
        lab,
        Side {
            namespace: &lab.server,
            role: "server",
            address: SERVER_ADDRESS,
            token_args: &["--service", "web.bench"],
            proxy_args: &["--serve", "web.bench:8080=8080/http"],
        },
    )
    .await?;
    let outbound = proxy(
        lab,
        Side {
            namespace: &lab.client,
            role: "client",
            address: CLIENT_ADDRESS,
            token_args: &[],
            proxy_args: &[],
        },
    )
    .await?;
    Ok(Pair {
        proxies: vec![outbound, inbound],
        others: vec![control_plane],
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
    token_args: &'a [&'a str],
    proxy_args: &'a [&'a str],
}

async fn proxy(lab: &Lab, side: Side<'_>) -> Result<Child> {
    let token = join_token(lab, &side).await?;
    let access_log = lab.path(&format!("access-{}.log", side.role));
    std::fs::write(&access_log, "")?;
    set_mode(&access_log, 0o666)?;
    let log_path = lab.path(&format!("proxy-{}.log", side.role));
    let log = std::fs::File::create(&log_path)?;
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
        .args(side.proxy_args)
        // In the environment, where only its own user and root see it.
        .env("SIDEWIND_JOIN_TOKEN", token)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    wait_until_ready(side.namespace, 15020, &log_path).await?;
    Ok(child)
}

async fn join_token(lab: &Lab, side: &Side<'_>) -> Result<String> {
    let id = format!("spiffe://sidewind.local/ns/bench/sa/{}", side.role);
    let output = lab
        .server
        .command(&lab.sidewind, ["token", "create", "--spiffe-id", &id])
        .args(side.token_args)
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
