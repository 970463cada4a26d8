//! A PostgreSQL server of a test's own, on a Unix socket in a directory of its own.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends with the test, however that ends.
pub(crate) struct PostgresServer {
    directory: tempfile::TempDir,
    process: Child,
    tls_port: Option<u16>,
}

/// PostgreSQL does not run as root; this user is on every system.
const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(30);

impl PostgresServer {
    /// Makes an empty database and serves it.
    pub(crate) async fn start() -> Self {
        Self::start_as(None).await
    }

    /// The same, and on a TCP port of loopback as well, for TLS alone.
    #[allow(dead_code, reason = "not every suite that uses this file speaks TLS")]
    pub(crate) async fn start_with_tls(certificate: &str, key: &str) -> Self {
        Self::start_as(Some((certificate, key))).await
    }

    async fn start_as(tls: Option<(&str, &str)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = command("initdb")
            .args(["--no-sync", "--auth=trust", "--username=postgres"])
            .args(["--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let auto = data.join("postgresql.auto.conf");
        std::fs::write(auto, "listen_addresses = ''\n").unwrap();
        let tls_port = tls.map(|(certificate, key)| set_up_tls(&data, certificate, key));
        let process = serve(&data);
        let server = Self {
            directory,
            process,
            tls_port,
        };
        server.wait().await;
        server
    }

    /// Where it is reached.
    pub(crate) fn url(&self) -> String {
        let data = self.data();
        format!(
            "postgres://postgres@localhost:{}/postgres?host={}",
            self.port(),
            data.display()
        )
    }

    /// Its Unix socket.
    #[allow(dead_code, reason = "not every suite that uses this file needs it")]
    pub(crate) fn socket(&self) -> PathBuf {
        self.data().join(format!(".s.PGSQL.{}", self.port()))
    }

    /// Its TCP port, where it has one.
    #[allow(dead_code, reason = "not every suite that uses this file speaks TLS")]
    pub(crate) fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// Ends it, as a crash would.
    #[allow(
        dead_code,
        reason = "not every suite that uses this file stops its server"
    )]
    pub(crate) fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Serves the same data again.
    #[allow(
        dead_code,
        reason = "not every suite that uses this file stops its server"
    )]
    pub(crate) async fn start_again(&mut self) {
        self.process = serve(&self.data());
        self.wait().await;
    }

    fn port(&self) -> u16 {
        self.tls_port.unwrap_or(5432)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    async fn wait(&self) {
        let answers = async {
            use sqlx::Connection as _;
            loop {
                if let Ok(connection) = sqlx::PgConnection::connect(&self.url()).await {
                    return connection.close().await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answers).await;
        answered.expect("PostgreSQL does not start").unwrap();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // Its data is of no further use.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The socket alone, where nothing else is said.
fn set_up_tls(data: &Path, certificate: &str, key: &str) -> u16 {
    // The server keeps the number of its socket, which is that of its TCP port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port.local_addr().unwrap().port();
    for (name, content) in [("server.crt", certificate), ("server.key", key)] {
        let file = data.join(name);
        std::fs::write(&file, content).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&file, private).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let hba =
        "local all all trust\nhostssl all all 127.0.0.1/32 trust\nhostssl all all ::1/128 trust\n";
    std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
    let more = format!("ssl = on\nlisten_addresses = 'localhost'\nport = {port}\n");
    std::fs::write(data.join("postgresql.auto.conf"), more).unwrap();
    port
}

fn serve(data: &Path) -> Child {
    command("postgres")
        .arg("-D")
        .arg(data)
        .arg("-k")
        .arg(data)
        .args(["-c", "fsync=off"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A program of PostgreSQL, which ends when the test's process does.
fn command(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if rustix::process::geteuid().is_root() {
        let user = NOBODY.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    }
    command.arg(program(name)).current_dir("/");
    command
}

/// Debian keeps the server's programs out of PATH, one directory for each version.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let versions = versions.into_iter().flatten().flatten();
    let programs = versions.map(|version| version.path().join("bin").join(name));
    let found = programs.filter(|program| program.exists()).max();
    found.unwrap_or_else(|| name.into())
}
