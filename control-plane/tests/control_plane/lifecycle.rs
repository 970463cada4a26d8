//! Restarts, signals, bad flags and files, with the real program.

use crate::support::{Client, hello, http_get, port, svid_of, until, within};
use sidewind_api::Reason;
use sidewind_identity::PrivateKey;
use sidewind_identity::authority::generate_root;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidewind"));
    command.kill_on_drop(true);
    for (name, _) in std::env::vars() {
        if name.starts_with("SIDEWIND_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) async fn run(arguments: &[&str]) -> Output {
    within(program().args(arguments).output()).await.unwrap()
}

/// A running `sidewind serve`.
pub(crate) struct Process {
    child: Child,
    pub(crate) client: Client,
    pub(crate) admin: SocketAddr,
    /// Everything that it logs.
    log: tokio::sync::mpsc::Receiver<String>,
}

impl Process {
    pub(crate) async fn start(state: &Path, more: &[&str]) -> Self {
        let mut command = program();
        command
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .arg("--state-dir")
            .arg(state)
            .args(more)
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, mut log) = tokio::sync::mpsc::channel(1_000);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Whoever has stopped listening does not want it.
                let _ = sender.try_send(line);
            }
        });
        let serving = within(async {
            loop {
                let line = log.recv().await.expect("it ended instead of serving");
                if line.contains("the control plane is serving") {
                    break serde_json::from_str::<serde_json::Value>(&line).unwrap();
                }
            }
        })
        .await;
        let address = |name: &str| serving[name].as_str().unwrap().parse().unwrap();
        Self {
            client: Client::new(address("grpc"), state),
            admin: address("admin"),
            child,
            log,
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        let killed = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        assert!(killed.unwrap().success());
    }

    /// Ends it and gives its exit code and the rest of its log.
    pub(crate) async fn end(mut self, signal: &str) -> (Option<i32>, String) {
        self.signal(signal);
        let status = within(self.child.wait()).await.unwrap();
        let mut log = String::new();
        while let Some(line) = self.log.recv().await {
            log.push_str(&line);
            log.push('\n');
        }
        (status.code(), log)
    }
}

pub(crate) fn state() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    (directory, state)
}

#[tokio::test]
async fn killed_and_started_again_it_keeps_its_root_and_renewals_go_on() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    let svid = process.client.svid(ORDERS, &["orders.data"]).await;
    let registered = hello(vec![port(8080, "orders.data")]);
    let stream = process
        .client
        .stream(&svid, registered.clone())
        .await
        .unwrap();
    let bundle = std::fs::read(state.join("trust-bundle.pem")).unwrap();
    // What a kill may lose is what came in its last moments; this came before.
    until(async || workload_is_stored(&state).await).await;
    process.end("-KILL").await;
    drop(stream);

    let process = Process::start(&state, &[]).await;
    assert_eq!(
        std::fs::read(state.join("trust-bundle.pem")).unwrap(),
        bundle
    );
    let workloads = process.client.workloads().await;
    assert_eq!(workloads.len(), 1);
    assert!(!workloads[0].confirmed);
    let key = PrivateKey::generate().unwrap();
    let renewed = process
        .client
        .renew(&svid, key.csr_der().unwrap())
        .await
        .unwrap();
    let renewed = svid_of(renewed, key);
    assert_eq!(renewed.id().as_str(), ORDERS);
    let mut stream = process.client.stream(&renewed, registered).await.unwrap();
    stream.subscribe("orders.data:8080").await;
    assert_eq!(stream.endpoints().await, ["127.0.0.1:8080"]);
    assert!(process.client.workloads().await[0].confirmed);
}

async fn workload_is_stored(state: &Path) -> bool {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(state.join("sidewind.db"));
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM workloads");
    count.fetch_one(&pool).await.unwrap() == 1
}

#[tokio::test]
async fn sigterm_tells_the_streams_and_ends_with_zero() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    let mut stream = process.client.proxy(ORDERS, vec![]).await;
    stream.hello().await;
    let (code, log) = process.end("-TERM").await;
    assert_eq!(code, Some(0));
    let status = stream.end().await;
    assert_eq!(
        Reason::of(&status),
        Some(Reason::ShuttingDown),
        "{status:?}
{log}"
    );
    assert!(!state.join("admin.sock").exists());
    let process = Process::start(&state, &[]).await;
    assert_eq!(process.client.workloads().await.len(), 1);
}

#[tokio::test]
async fn a_second_process_on_the_same_state_is_refused_with_the_reason() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    let path = state.to_str().unwrap();
    let second = run(&["serve", "--state-dir", path, "--listen", "127.0.0.1:0"]).await;
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    let pid = process.child.id().unwrap();
    assert!(
        text.contains(&format!("another sidewind process (pid {pid})")),
        "{text}"
    );
    assert_eq!(http_get(process.admin, "/ready").await.0, "HTTP/1.1 200 OK");
}

fn write_root(directory: &Path, lifetime: Duration, mode: u32) -> (PathBuf, PathBuf) {
    let trust_domain = sidewind_identity::TrustDomain::parse("sidewind.local").unwrap();
    let root = generate_root(&trust_domain, lifetime, SystemTime::now()).unwrap();
    let (certificate, key) = (directory.join("root.pem"), directory.join("root.key"));
    std::fs::write(&certificate, root.certificate_pem()).unwrap();
    std::fs::write(&key, root.key().to_pkcs8_pem().as_bytes()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    (certificate, key)
}

#[tokio::test]
async fn a_given_root_is_used_and_its_key_is_not_kept() {
    let (directory, state) = state();
    let (certificate, key) = write_root(directory.path(), Duration::from_secs(90 * 86_400), 0o600);
    let flags = [
        "--root-cert",
        certificate.to_str().unwrap(),
        "--root-key",
        key.to_str().unwrap(),
    ];
    let process = Process::start(&state, &flags).await;
    let bundle = std::fs::read(state.join("trust-bundle.pem")).unwrap();
    assert_eq!(bundle, std::fs::read(&certificate).unwrap());
    process.client.svid(ORDERS, &[]).await;
    assert_eq!(process.end("-TERM").await.0, Some(0));
    let again = run(&["serve", "--state-dir", state.to_str().unwrap()]).await;
    assert_eq!(again.status.code(), Some(64));
    assert!(
        String::from_utf8(again.stderr)
            .unwrap()
            .contains("--root-key")
    );
}

/// Runs `serve`, which must be refused as a mistake before it listens; gives back what it says.
async fn refused(state: &Path, flags: &[&str]) -> String {
    let state = state.to_str().unwrap();
    // A port that is taken: a flag that were found wrong only after binding would say so instead.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let given = |flag| flags.contains(&flag);
    let mut arguments = vec!["serve", "--log-level", "error"];
    for (flag, value) in [("--state-dir", state), ("--listen", &listen)] {
        if !given(flag) {
            arguments.extend([flag, value]);
        }
    }
    arguments.extend(flags);
    let output = run(&arguments).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{flags:?}: {text}");
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    text
}

#[tokio::test]
async fn a_bad_flag_or_file_is_one_clear_error_before_any_port_is_bound() {
    let (directory, state) = state();
    let (certificate, key) = write_root(directory.path(), Duration::from_secs(86_400), 0o644);
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let config = directory.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("a.yaml"), "apiVersion: x\nkind: Nothing\n").unwrap();
    let config = config.to_str().unwrap();
    let table: &[(&[&str], &str)] = &[
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--listen", "15010"], "--listen"),
        (&["--svid-ttl", "30s"], "from 1 minute to 24 hours"),
        (&["--svid-ttl", "25h"], "from 1 minute to 24 hours"),
        (&["--svid-ttl", "soon"], "write it like"),
        (&["--trust-domain", "Example.org"], "--trust-domain"),
        (&["--inbound-plaintext", "maybe"], "permissive"),
        (&["--log-level", "lots=of=it"], "--log-level"),
        (&["--config", "/nonexistent"], "is not a directory"),
        (&["--config", config], "a.yaml:2:7: kind: "),
        (&["--root-cert", certificate], "--root-key"),
        (
            &["--root-cert", certificate, "--root-key", "/nonexistent"],
            "--root-key: cannot read",
        ),
        (
            &["--root-cert", certificate, "--root-key", key],
            "has mode 0644",
        ),
    ];
    for (flags, expected) in table {
        let text = refused(&state, flags).await;
        assert!(text.contains(expected), "{flags:?}: {text}");
    }
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let day = [
        "--root-cert",
        certificate,
        "--root-key",
        key,
        "--svid-ttl",
        "5h",
    ];
    let text = refused(&state, &day).await;
    assert!(
        text.contains("cannot be honoured") && text.contains("/ 6 ="),
        "{text}"
    );
}

#[tokio::test]
async fn a_variable_means_the_same_as_its_flag() {
    let (_directory, state) = state();
    let mut command = program();
    let command = command.args(["serve", "--state-dir"]).arg(&state);
    let output = within(command.env("SIDEWIND_SVID_TTL", "1s").output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
}

#[tokio::test]
async fn a_state_directory_of_another_trust_domain_is_refused() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    process.end("-TERM").await;
    let text = refused(&state, &["--trust-domain", "other.example"]).await;
    assert!(text.contains("--trust-domain sidewind.local"), "{text}");
}

#[tokio::test]
async fn a_database_that_others_may_read_is_refused() {
    let (_directory, state) = state();
    Process::start(&state, &[]).await.end("-TERM").await;
    let database = state.join("sidewind.db");
    std::fs::set_permissions(database, std::fs::Permissions::from_mode(0o640)).unwrap();
    let text = refused(&state, &[]).await;
    assert!(
        text.contains("mode 0640") && text.contains("chmod 600"),
        "{text}"
    );
}

#[tokio::test]
async fn no_log_line_and_no_file_holds_a_token() {
    let (_directory, state) = state();
    let process = Process::start(&state, &["--log-level", "trace"]).await;
    let path = state.to_str().unwrap();
    let created = run(&[
        "token",
        "create",
        "--state-dir",
        path,
        "--spiffe-id",
        ORDERS,
    ])
    .await;
    let token = String::from_utf8(created.stdout).unwrap();
    let token = token.strip_suffix('\n').unwrap();
    assert!(
        token.starts_with("swj_") && created.stderr.is_empty(),
        "{token}"
    );
    let csr = || PrivateKey::generate().unwrap().csr_der().unwrap();
    process.client.attest(token, csr()).await.unwrap();
    process.client.attest(token, csr()).await.unwrap_err();
    let (_, log) = process.end("-TERM").await;
    assert!(log.contains("join-token-used"), "{log}");
    assert!(!log.contains(token));
    for entry in std::fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        let found = content
            .windows(token.len())
            .any(|window| window == token.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

#[tokio::test]
async fn the_commands_show_the_authority_and_the_workloads() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    let _stream = process
        .client
        .proxy(ORDERS, vec![port(8080, "orders.data")])
        .await;
    let path = state.to_str().unwrap();
    let output = async |arguments: &[&str]| {
        let output = run(&[arguments, &["--state-dir", path]].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let pem = output(&["ca", "show", "--pem"]).await;
    assert_eq!(
        pem,
        std::fs::read_to_string(state.join("trust-bundle.pem")).unwrap()
    );
    let shown = output(&["ca", "show"]).await;
    assert!(
        shown.contains("root certificate") && shown.contains("signing certificate"),
        "{shown}"
    );
    let table = output(&["workloads"]).await;
    assert!(
        table.contains(ORDERS) && table.contains("orders.data:8080/http"),
        "{table}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&output(&["workloads", "-o", "json"]).await).unwrap();
    assert_eq!(json[0]["spiffeId"], ORDERS);
    assert_eq!(json[0]["ports"][0]["service"], "orders.data");
    assert_eq!(json[0]["confirmed"], true);
}

#[tokio::test]
async fn a_command_without_a_server_says_where_it_looked_and_what_to_do() {
    let (_directory, state) = state();
    let path = state.to_str().unwrap();
    for command in [
        &["workloads"][..],
        &["ca", "show"],
        &["token", "create", "--spiffe-id", ORDERS],
    ] {
        let output = run(&[command, &["--state-dir", path]].concat()).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("state/admin.sock") && text.contains("sidewind serve"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn config_check_tells_right_from_wrong_without_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let checked = run(&["config", "check", path]).await;
    assert!(checked.status.success(), "{checked:?}");
    std::fs::write(directory.path().join("a.yaml"), "a: 1\n---\nb: 2\n").unwrap();
    let checked = run(&["config", "check", path]).await;
    assert_eq!(checked.status.code(), Some(64));
    let text = String::from_utf8(checked.stderr).unwrap();
    assert!(text.contains("2 things are wrong"), "{text}");
    assert!(
        text.contains("a.yaml:1:1: apiVersion: is missing")
            && text.contains("a.yaml:2:1: apiVersion: is missing"),
        "{text}"
    );
}

#[tokio::test]
async fn help_and_version_are_no_failures() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["serve", "--help"],
        &["token", "create", "--help"],
    ] {
        let output = run(arguments).await;
        assert!(output.status.success(), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
    assert_eq!(run(&[]).await.status.code(), Some(64));
}
