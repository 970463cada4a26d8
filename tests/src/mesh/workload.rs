//! A workload: a host, and a sidecar beside whatever a test runs there.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{JoinToken, Mesh, Neighbour, Sidecar, TRUST_DOMAIN};
use crate::invocation::Invocation;
use crate::lan::Host;
use crate::place::Place;
use crate::process::Process;
use crate::relay::Relay;
use crate::wait::PATIENCE;

/// A workload to be.
#[derive(Debug)]
#[must_use]
pub struct WorkloadPlan<'m> {
    mesh: &'m mut Mesh,
    name: String,
    token: JoinToken,
    serves: Vec<String>,
    flags: Vec<String>,
    /// In place of a join token.
    evidence: Option<Vec<String>>,
    variables: Vec<(String, String)>,
    capabilities: Vec<&'static str>,
    waits: bool,
    default_drain: bool,
    front: Front,
    /// A program that runs the sidecar, and one that the sidecar runs.
    by: Vec<String>,
    command: Vec<String>,
    neighbour: Option<&'m Neighbour>,
}

/// What listens where peers dial a workload's mesh port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    /// Its sidecar.
    Sidecar,
    /// A relay to its sidecar.
    Relay,
    /// Whatever the test starts there.
    Other,
}

impl<'m> WorkloadPlan<'m> {
    pub(super) fn new(mesh: &'m mut Mesh, namespace: &str, name: &str) -> Self {
        let spiffe_id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}");
        let token = JoinToken {
            spiffe_id,
            ..JoinToken::default()
        };
        Self {
            mesh,
            name: name.into(),
            token,
            serves: Vec::new(),
            flags: Vec::new(),
            evidence: None,
            variables: Vec::new(),
            capabilities: Vec::new(),
            waits: true,
            default_drain: false,
            front: Front::Sidecar,
            by: Vec::new(),
            command: Vec::new(),
            neighbour: None,
        }
    }

    /// Has it offer a port, in the form of `--serve`: `[SERVICE[:PORT]=]TARGETPORT[/PROTOCOL]`. The token allows the
    /// service, and under transparent capture all hosts know its name.
    pub fn serves(mut self, port: &str) -> Self {
        if let Some((service, _)) = port.split_once('=') {
            let service = service.split(':').next().unwrap_or_default().to_owned();
            if !self.token.services.contains(&service) {
                self.token.services.push(service);
            }
        }
        self.serves.push(port.into());
        self
    }

    /// Gives it the identity of another name than its own, as replicas have that of their service.
    pub fn identity(mut self, namespace: &str, name: &str) -> Self {
        self.token.spiffe_id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}");
        self
    }

    /// Makes it a workload of another trust domain.
    pub fn of(mut self, neighbour: &'m Neighbour) -> Self {
        let own = format!("spiffe://{TRUST_DOMAIN}/");
        let theirs = format!("spiffe://{}/", neighbour.trust_domain);
        self.token.spiffe_id = self.token.spiffe_id.replace(&own, &theirs);
        self.neighbour = Some(neighbour);
        self
    }

    /// Has it get the bundle of another trust domain.
    pub fn federates_with(mut self, trust_domain: &str) -> Self {
        self.token.federates_with.push(trust_domain.to_owned());
        self
    }

    /// Adds a flag of the sidecar.
    pub fn flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.flags.extend([flag.into(), value.into()]);
        self
    }

    /// Has it prove itself by what these flags of the sidecar say, and not by a join token.
    pub fn attested_by(mut self, flags: &[&str]) -> Self {
        self.evidence = Some(flags.iter().map(|flag| (*flag).to_owned()).collect());
        self
    }

    /// Sets an environment variable of the sidecar.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives the sidecar capabilities, named as `setpriv` does.
    pub fn capabilities(mut self, names: &[&'static str]) -> Self {
        self.capabilities = names.to_vec();
        self
    }

    /// Has its SVIDs live this long.
    pub fn svid_ttl(mut self, ttl: &str) -> Self {
        self.token.svid_ttl = Some(ttl.into());
        self
    }

    /// Does not wait until the sidecar is ready.
    pub fn without_waiting(mut self) -> Self {
        self.waits = false;
        self
    }

    /// Drains as sidecars do where nothing is said, and not in half a second.
    pub fn with_default_drain(mut self) -> Self {
        self.default_drain = true;
        self
    }

    /// Has the sidecar run a command (`run -- COMMAND`), and does not wait.
    pub fn running(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| (*word).to_owned()).collect();
        self.without_waiting()
    }

    /// Has the sidecar run by another program.
    pub fn by(mut self, words: &[&str]) -> Self {
        self.by = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Has a listener in the middle stand before its mesh port; with explicit capture alone.
    pub fn relayed(mut self) -> Self {
        self.front = Front::Relay;
        self
    }

    /// Leaves its mesh port, as peers dial it, to what the test starts there; with explicit capture alone.
    pub fn leaving_mesh_port(mut self) -> Self {
        self.front = Front::Other;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When a step fails, or the sidecar does not become ready.
    #[track_caller]
    pub fn start(self) -> Workload {
        let host = self.mesh.ground.host(&self.name);
        self.start_at(host)
    }

    /// Starts it on a host that is there already.
    ///
    /// # Panics
    /// As [`WorkloadPlan::start`].
    #[track_caller]
    pub fn start_at(self, host: Host) -> Workload {
        let transparent = self.mesh.is_transparent();
        if transparent {
            for service in &self.token.services {
                self.mesh.lan().name(service, host.address);
            }
            self.mesh.redirect(&host);
        }
        let (mesh_address, relay) = match self.front {
            Front::Sidecar => (host.address, None),
            Front::Relay => (behind(&host), Some(start_relay(&host))),
            Front::Other => (behind(&host), None),
        };
        let process = self.start_sidecar(&host, mesh_address);
        let local = if transparent {
            Ipv4Addr::LOCALHOST
        } else {
            host.address
        };
        let mut sidecar = Sidecar::new(host.place.clone(), (local, 15020).into(), process);
        if self.waits {
            sidecar.wait_ready(PATIENCE);
        }
        Workload {
            name: self.name,
            spiffe_id: self.token.spiffe_id,
            place: host.place,
            address: host.address,
            transparent,
            relay,
            sidecar,
        }
    }

    fn start_sidecar(&self, host: &Host, mesh_address: Ipv4Addr) -> Process {
        let Mesh {
            scratch,
            control_plane,
            ..
        } = &*self.mesh;
        let uid = self.mesh.is_transparent().then_some(super::SIDECAR_UID);
        let mut proxy = self.mesh.proxy_behind(host, mesh_address);
        let control_plane = self.neighbour.map_or(control_plane, |it| &it.control_plane);
        if let Some(neighbour) = self.neighbour {
            proxy = self.mesh.proxy_of(neighbour, host, mesh_address);
        }
        if !self.default_drain {
            proxy = proxy.args(super::SHORT_DRAIN);
        }
        proxy = proxy.args(["--workload-name", &self.name]);
        proxy = if let Some(evidence) = &self.evidence {
            proxy.args(evidence)
        } else {
            let token = format!("{}-{}.token", self.name, host.address);
            let token = scratch.write_secret(&token, control_plane.token(&self.token), uid);
            proxy.arg("--join-token-file").arg(token)
        };
        proxy = proxy.capabilities(&self.capabilities);
        for (name, value) in &self.variables {
            proxy = proxy.env(name, value);
        }
        for port in &self.serves {
            proxy = proxy.args(["--serve", port]);
        }
        proxy = proxy.args(&self.flags);
        if !self.command.is_empty() {
            proxy = proxy.arg("--").args(&self.command);
        }
        if !self.by.is_empty() {
            let words: Vec<&str> = self.by.iter().map(String::as_str).collect();
            proxy = proxy.by(&words);
        }
        proxy.start(&format!("{}-sidecar", self.name), scratch)
    }
}

/// Where a sidecar listens that does not listen where peers dial.
fn behind(host: &Host) -> Ipv4Addr {
    let [first, second, third, last] = host.address.octets();
    Ipv4Addr::new(first, second + 1, third, last)
}

/// A relay at the address that peers dial.
fn start_relay(host: &Host) -> Relay {
    let target = (behind(host), super::MESH_PORT).into();
    let relay = Relay::start(&host.place, (host.address, super::MESH_PORT).into(), target);
    relay.unwrap_or_else(|error| panic!("no relay at {}: {error}", host.address))
}

/// A workload's host with its sidecar.
#[derive(Debug)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// Where its programs run.
    pub place: Place,
    /// Its address.
    pub address: Ipv4Addr,
    transparent: bool,
    /// The listener in the middle, if it was asked for.
    pub relay: Option<Relay>,
    /// Its sidecar.
    pub sidecar: Sidecar,
}

impl Workload {
    /// Its host, for another sidecar there.
    pub fn host(&self) -> Host {
        Host {
            place: self.place.clone(),
            address: self.address,
        }
    }

    /// `address:port`, as others see it.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// Where its own programs reach that port.
    pub fn local(&self, port: u16) -> SocketAddr {
        (
            if self.transparent {
                Ipv4Addr::LOCALHOST
            } else {
                self.address
            },
            port,
        )
            .into()
    }

    /// Where its programs should listen.
    pub fn bind(&self) -> Ipv4Addr {
        if self.transparent {
            Ipv4Addr::UNSPECIFIED
        } else {
            self.address
        }
    }

    /// The user that its programs run as, where that matters.
    pub fn uid(&self) -> Option<u32> {
        self.transparent.then_some(super::WORKLOAD_UID)
    }

    /// A program of the workload, as the user of workloads.
    pub fn program(&self, program: &str) -> Invocation {
        self.place.program(program).user(self.uid())
    }

    /// `curl` with the arguments, quiet but for errors, with a deadline.
    pub fn curl(&self, arguments: &[&str]) -> Invocation {
        self.program("curl")
            .args(["-sS", "--max-time", "30"])
            .args(arguments)
            .timeout(Duration::from_secs(40))
    }
}
