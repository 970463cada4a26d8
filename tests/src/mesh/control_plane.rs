//! The control plane's process and its command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::binaries::Binaries;
use crate::http::Request;
use crate::invocation::{Finished, Invocation};
use crate::lan::Host;
use crate::metrics::Metrics;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::PATIENCE;

/// `sidewind serve`, running or not.
#[derive(Debug)]
pub struct ControlPlane {
    program: PathBuf,
    host: Host,
    state: PathBuf,
    config: PathBuf,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    process: Option<Process>,
}

/// What `sidewind token create` is asked for.
#[derive(Clone, Debug, Default)]
pub struct JoinToken {
    /// `--spiffe-id`.
    pub spiffe_id: String,
    /// `--service`, each.
    pub services: Vec<String>,
    /// `--expires`.
    pub expires: Option<String>,
    /// `--svid-ttl`.
    pub svid_ttl: Option<String>,
    /// `--federates-with`, each.
    pub federates_with: Vec<String>,
}

impl ControlPlane {
    pub(super) fn new(
        binaries: &Binaries,
        scratch: &Scratch,
        host: Host,
        flags: Vec<String>,
    ) -> Self {
        Self::replica(binaries, scratch, host, flags, "")
    }

    /// Another one, with files of its own.
    pub(super) fn replica(
        binaries: &Binaries,
        scratch: &Scratch,
        host: Host,
        flags: Vec<String>,
        suffix: &str,
    ) -> Self {
        let state = scratch.join(format!("state{suffix}"));
        let config = scratch.directory(&format!("config{suffix}"), None);
        Self {
            program: binaries.sidewind.clone(),
            host,
            state,
            config,
            flags,
            variables: Vec::new(),
            process: None,
        }
    }

    pub(super) fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.variables = variables;
    }

    /// Where proxies reach it.
    pub fn address(&self) -> SocketAddr {
        (self.host.address, 15010).into()
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Writes a file of its configuration, whole or not at all; it re-reads it by itself.
    pub fn write_config(&self, file: &str, yaml: &str) {
        let (path, draft) = (
            self.config.join(file),
            self.config.join(format!(".{file}.draft")),
        );
        std::fs::write(&draft, yaml)
            .and_then(|()| std::fs::rename(&draft, &path))
            .unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
    }

    /// Starts it, also again after its end: on the same state, at the same address.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start(&mut self, scratch: &Scratch) {
        let mut serve = self
            .command()
            .arg("serve")
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--config")
            .arg(&self.config);
        if self.host.address.is_loopback() {
            let at = |port: u16| SocketAddr::from((self.host.address, port)).to_string();
            serve = serve.args(["--listen", &at(15010), "--admin-listen", &at(15014)]);
        }
        for (name, value) in &self.variables {
            serve = serve.env(name, value);
        }
        let mut process = serve.args(&self.flags).start("control-plane", scratch);
        let bundle = self.state.join("trust-bundle.pem");
        // Somebody else's control plane may answer at the same port.
        process.wait_until("the control plane is ready", PATIENCE, || {
            bundle.exists() && self.is_ready()
        });
        self.process = Some(process);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its process.
    ///
    /// # Panics
    /// When it was killed and not started again.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the control plane runs")
    }

    /// Everything it logged since it was last started.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Whether `/ready` says so.
    pub fn is_ready(&self) -> bool {
        Request::get(self.admin(), "/ready")
            .try_send(&self.host.place)
            .is_ok_and(|reply| reply.status == 200)
    }

    /// Its metrics.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(
            &Request::get(self.admin(), "/metrics")
                .send(&self.host.place)
                .text(),
        )
    }

    /// The roots that it wrote beside its state.
    ///
    /// # Panics
    /// When the file is not there.
    #[track_caller]
    pub fn trust_bundle(&self) -> String {
        let path = self.state.join("trust-bundle.pem");
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
    }

    /// Any command of the `sidewind` program, at the control plane's host.
    pub fn command(&self) -> Invocation {
        self.host
            .place
            .program(&self.program)
            .timeout(Duration::from_secs(20))
    }

    /// `sidewind token create`.
    pub fn try_token(&self, wanted: &JoinToken) -> Finished {
        let mut create = self
            .command()
            .args(["token", "create", "--spiffe-id", &wanted.spiffe_id]);
        for service in &wanted.services {
            create = create.args(["--service", service]);
        }
        for trust_domain in &wanted.federates_with {
            create = create.args(["--federates-with", trust_domain]);
        }
        for (flag, value) in [
            ("--expires", &wanted.expires),
            ("--svid-ttl", &wanted.svid_ttl),
        ] {
            if let Some(value) = value {
                create = create.args([flag, value]);
            }
        }
        create.arg("--state-dir").arg(&self.state).finish()
    }

    /// A new join token.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn token(&self, wanted: &JoinToken) -> String {
        self.try_token(wanted).success().trim().to_owned()
    }

    /// `sidewind workloads -o json`.
    #[track_caller]
    pub fn workloads(&self) -> serde_json::Value {
        let listed = self
            .command()
            .args(["workloads", "-o", "json", "--state-dir"])
            .arg(&self.state)
            .finish();
        serde_json::from_str(&listed.success()).expect("`sidewind workloads -o json` prints JSON")
    }

    fn admin(&self) -> SocketAddr {
        let loopback = self.host.address.is_loopback();
        (
            if loopback {
                self.host.address
            } else {
                std::net::Ipv4Addr::LOCALHOST
            },
            15014,
        )
            .into()
    }
}
