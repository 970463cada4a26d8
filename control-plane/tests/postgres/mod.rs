//! A PostgreSQL server of a test's own, on a Unix socket in a directory of its own.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ends with the test, however that ends.
pub(crate) struct PostgresServer {
    directory: tempfile::TempDir,
    process: Child,
}

/// PostgreSQL does not run as root; this user is on every system.
const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(30);

impl PostgresServer {
    /// Makes an empty database and serves it.
    pub(crate) async fn start() -> Self {
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
        let process = serve(&data);
        let server = Self { directory, process };
        server.wait().await;
        server
    }

    /// Where it is reached.
    pub(crate) fn url(&self) -> String {
        let data = self.data();
        format!(
            "postgres://postgres@localhost/postgres?host={}",
            data.display()
        )
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

fn serve(data: &Path) -> Child {
    command("postgres")
        .arg("-D")
        .arg(data)
        .arg("-k")
        .arg(data)
        .args(["-c", "listen_addresses=", "-c", "fsync=off"])
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
