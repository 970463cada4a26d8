//! The control plane that is measured: a process of the real program.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sidewind_api::v1;
use sidewind_identity::{TrustBundle, TrustBundles, TrustDomain};
use sidewind_tests::http::Request;
use sidewind_tests::measure::{self, Resident};
use sidewind_tests::metrics::Metrics;
use sidewind_tests::place::Place;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::Result;
use crate::grpc::{Connection, Failure};

/// The trust domain, which is also the program's default.
pub(crate) const TRUST_DOMAIN: &str = "sidewind.local";
const START_TIME: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);

/// `sidewind serve`, running or not.
#[derive(Debug)]
pub(crate) struct Server {
    program: PathBuf,
    directory: PathBuf,
    arguments: Vec<String>,
    listen: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
    started: u32,
}

impl Server {
    /// A control plane that keeps its state in a directory, not started yet.
    pub(crate) fn new(program: PathBuf, directory: &Path, arguments: &[String]) -> Result<Self> {
        Ok(Self {
            program,
            directory: directory.to_owned(),
            arguments: arguments.to_vec(),
            listen: free_port()?,
            admin: free_port()?,
            child: None,
            started: 0,
        })
    }

    /// Where proxies find it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Starts it, also again after its end, and gives back how long it took until it answered.
    pub(crate) async fn start(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.started += 1;
        let log = std::fs::File::create(self.log())?;
        let child = Command::new(&self.program)
            .arg("serve")
            .arg("--state-dir")
            .arg(self.state())
            .args(["--trust-domain", TRUST_DOMAIN])
            .args(["--listen", &self.listen.to_string()])
            .args(["--admin-listen", &self.admin.to_string()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        let mut ended = None;
        while began.elapsed() < START_TIME && ended.is_none() {
            if self.bundle_is_there() && tokio::net::TcpStream::connect(self.admin).await.is_ok() {
                return Ok(began.elapsed());
            }
            let child = self.child.as_mut().ok_or("the process is gone")?;
            ended = child.try_wait()?;
            tokio::time::sleep(POLL).await;
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        Err(format!("the control plane did not start ({ended:?}): {log}").into())
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// The bundle that it wrote beside its state.
    pub(crate) fn bundles(&self) -> Result<std::sync::Arc<TrustBundles>> {
        let pem = std::fs::read_to_string(self.bundle_path())?;
        let domain = TrustDomain::parse(TRUST_DOMAIN)?;
        Ok(std::sync::Arc::new(TrustBundles::from(
            TrustBundle::from_pem(domain, &pem)?,
        )))
    }

    /// A connection to its admin socket.
    pub(crate) async fn admin(&self) -> Result<Admin> {
        let socket = UnixStream::connect(self.state().join("admin.sock")).await?;
        let (connection, _) = Connection::open(socket).await.map_err(said("admin.sock"))?;
        Ok(Admin(connection))
    }

    /// Processor time that it has used since it was started.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        Ok(measure::cpu_time(self.process()?)?)
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> Result<Resident> {
        Ok(measure::resident(self.process()?)?)
    }

    /// Its metrics.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        let admin = self.admin;
        let page = tokio::task::spawn_blocking(move || {
            Request::get(admin, "/metrics").try_send(&Place::Host)
        });
        Ok(Metrics::parse(&page.await??.text()))
    }

    fn process(&self) -> Result<u32> {
        let child = self.child.as_ref().and_then(Child::id);
        child.ok_or_else(|| "the control plane has ended".into())
    }

    fn bundle_is_there(&self) -> bool {
        self.bundle_path().exists()
    }

    fn bundle_path(&self) -> PathBuf {
        self.state().join("trust-bundle.pem")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn log(&self) -> PathBuf {
        self.directory
            .join(format!("control-plane-{}.err", self.started))
    }
}

/// What the command line would ask.
#[derive(Debug, Clone)]
pub(crate) struct Admin(Connection);

impl Admin {
    /// A join token for an identity.
    pub(crate) async fn token(&self, spiffe_id: &str) -> Result<String> {
        let request = v1::CreateJoinTokenRequest {
            spiffe_id: spiffe_id.to_owned(),
            expires_in_seconds: 24 * 3600,
            ..v1::CreateJoinTokenRequest::default()
        };
        let method = "AdminService/CreateJoinToken";
        let answer: v1::CreateJoinTokenResponse =
            self.0.call(method, &request).await.map_err(said(method))?;
        Ok(answer.token)
    }

    /// Bans an identity; gives back the version of the list that it is in.
    pub(crate) async fn ban(&self, spiffe_id: &str) -> Result<u64> {
        let ban = v1::Ban {
            subject: Some(v1::ban::Subject::SpiffeId(spiffe_id.to_owned())),
            reason: "a benchmark".to_owned(),
            since_unix: 0,
        };
        let request = v1::SetBanRequest {
            ban: Some(ban),
            lift: false,
        };
        let method = "AdminService/SetBan";
        let answer: v1::SetBanResponse =
            self.0.call(method, &request).await.map_err(said(method))?;
        Ok(answer.version)
    }

    /// Prepares another root, which puts it into the bundle; `None` where it is not served.
    pub(crate) async fn prepare_root(&self) -> Option<u64> {
        let request = v1::RotateAuthorityRequest {
            kind: v1::AuthorityKind::Root.into(),
            ..v1::RotateAuthorityRequest::default()
        };
        let method = "AdminService/RotateAuthority";
        let answer = self.0.call::<v1::RotateAuthorityResponse>(method, &request);
        answer.await.ok()?;
        let method = "AdminService/GetAuthority";
        let request = v1::GetAuthorityRequest {};
        let answer: v1::GetAuthorityResponse = self.0.call(method, &request).await.ok()?;
        Some(answer.bundle_sequence)
    }
}

fn said(what: &'static str) -> impl Fn(Failure) -> Box<dyn std::error::Error + Send + Sync> {
    move |failure| format!("{what}: {}", failure.reason).into()
}

/// A port that nobody listens on.
fn free_port() -> Result<SocketAddr> {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(socket.local_addr()?)
}
