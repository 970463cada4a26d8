//! A mesh made of real processes: a control plane, and workloads with a sidecar each.
//!
//! It stands either on a [`Lan`] with redirection (transparent capture, which needs root), or on loopback addresses
//! (explicit capture, which needs nothing).

mod control_plane;
mod sidecar;
mod workload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use control_plane::{ControlPlane, JoinToken};
pub use sidecar::Sidecar;
pub use workload::{Workload, WorkloadPlan};

use crate::authority::TestAuthority;
use crate::binaries::Binaries;
use crate::cleanup::{Held, Ticket, hold};
use crate::invocation::Invocation;
use crate::lan::{Host, Lan, Namespace};
use crate::place::Place;
use crate::scratch::Scratch;

/// The trust domain that is used where nothing else is said.
pub const TRUST_DOMAIN: &str = "sidewind.local";

/// The user that sidecars run as under transparent capture.
pub const SIDECAR_UID: u32 = 1337;

/// The user that workloads run as under transparent capture: `nobody`.
pub const WORKLOAD_UID: u32 = 65534;

/// Workloads of tests make no pauses between their calls that last longer.
const SHORT_DRAIN: [&str; 2] = ["--drain-quiet", "500ms"];

/// The port of the mesh listener.
pub const MESH_PORT: u16 = 15008;

/// What a mesh stands on.
#[derive(Debug)]
enum Ground {
    Lan(Lan),
    Loopback {
        place: Place,
        _namespace: Option<Namespace>,
        third_octet: u8,
        hosts: u8,
    },
}

impl Ground {
    fn host(&mut self, name: &str) -> Host {
        match self {
            Self::Lan(lan) => lan.host(name),
            Self::Loopback {
                place,
                third_octet,
                hosts,
                ..
            } => {
                *hosts += 1;
                let address = Ipv4Addr::new(127, 77, *third_octet, *hosts);
                Host {
                    place: place.clone(),
                    address,
                }
            }
        }
    }
}

/// How a mesh is to be.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MeshPlan {
    policies: Vec<(String, String)>,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    root: Option<(String, String)>,
    state_disk: Option<u32>,
}

impl MeshPlan {
    /// Adds a file to the control plane's configuration.
    pub fn config(mut self, file: &str, yaml: &str) -> Self {
        self.policies.push((file.into(), yaml.into()));
        self
    }

    /// Adds a flag to `sidewind serve`.
    pub fn flag(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.flags.extend([flag.into(), value.into()]);
        self
    }

    /// Adds a variable of the environment of `sidewind serve`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Has the control plane use this root instead of making its own.
    pub fn root(mut self, authority: &TestAuthority) -> Self {
        self.root = Some((authority.root_pem(), authority.root_key_pem()));
        self
    }

    /// Puts the control plane's state on a disk of its own, of so many bytes. Needs root.
    pub fn state_disk(mut self, bytes: u32) -> Self {
        self.state_disk = Some(bytes);
        self
    }

    /// Starts it in network namespaces, for transparent capture.
    ///
    /// # Panics
    /// Without root, without binaries, or when the control plane does not become ready.
    #[track_caller]
    pub fn start(self) -> Mesh {
        self.start_on(Ground::Lan(Lan::new()))
    }

    /// Starts it on loopback addresses within one network namespace, for explicit capture.
    ///
    /// # Panics
    /// Without root, without binaries, or when the control plane does not become ready.
    #[track_caller]
    pub fn start_on_loopback(self) -> Mesh {
        let namespace = Namespace::new();
        let place = namespace.place();
        self.start_on(Ground::Loopback {
            place,
            _namespace: Some(namespace),
            third_octet: 0,
            hosts: 0,
        })
    }

    /// Starts it on loopback addresses of this machine, for explicit capture and without root.
    ///
    /// # Panics
    /// Without binaries, or when the control plane does not become ready.
    #[track_caller]
    pub fn start_on_host_loopback(self) -> Mesh {
        // Different processes use different addresses, as far as one octet can tell them apart.
        let third_octet = (std::process::id() % 250) as u8 + 1;
        self.start_on(Ground::Loopback {
            place: Place::Host,
            _namespace: None,
            third_octet,
            hosts: 0,
        })
    }

    #[track_caller]
    fn start_on(self, mut ground: Ground) -> Mesh {
        let scratch = Scratch::new();
        let binaries = Binaries::find(&scratch);
        let host = ground.host("control-plane");
        let mut flags = self.flags;
        if let Some((certificate, key)) = self.root {
            let certificate = scratch.write("root.pem", certificate);
            let key = scratch.write_secret("root.key", key, None);
            for (flag, path) in [("--root-cert", certificate), ("--root-key", key)] {
                flags.extend([flag.into(), path.to_string_lossy().into_owned()]);
            }
        }
        let disk = self.state_disk.map(|bytes| disk(&scratch, "state", bytes));
        let mut control_plane = ControlPlane::new(&binaries, &scratch, host, flags.clone());
        control_plane.set_environment(self.variables);
        for (file, yaml) in &self.policies {
            control_plane.write_config(file, yaml);
        }
        control_plane.start(&scratch);
        let trust_bundle = scratch.write("trust-bundle.pem", control_plane.trust_bundle());
        Mesh {
            control_plane,
            replicas: Vec::new(),
            flags,
            trust_bundle,
            ground,
            binaries,
            _disk: disk,
            scratch,
        }
    }
}

/// Makes a directory that is a disk of its own, until the ticket is dropped.
#[track_caller]
fn disk(scratch: &Scratch, name: &str, bytes: u32) -> Ticket {
    let path = scratch.join(name);
    std::fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {path:?}: {error}"));
    let size = format!("size={bytes},mode=700");
    let mount = Place::Host
        .program("mount")
        .args(["-t", "tmpfs", "-o", &size, "tmpfs"]);
    mount.arg(&path).finish().success();
    hold(Held::Mount(path))
}

/// A control plane of another trust domain, on the network of a mesh.
#[derive(Debug)]
pub struct Neighbour {
    /// The control plane.
    pub control_plane: ControlPlane,
    /// Its trust domain.
    pub trust_domain: String,
    trust_bundle: PathBuf,
}

/// A running mesh. Taken down when dropped; drop its workloads first, which declaring them later does.
#[derive(Debug)]
pub struct Mesh {
    /// The control plane.
    pub control_plane: ControlPlane,
    /// Where proxies reach the others, which share its store.
    replicas: Vec<SocketAddr>,
    flags: Vec<String>,
    trust_bundle: PathBuf,
    ground: Ground,
    binaries: Binaries,
    _disk: Option<Ticket>,
    /// The directory of all logs and keys.
    pub scratch: Scratch,
}

impl Mesh {
    /// A mesh of defaults.
    pub fn plan() -> MeshPlan {
        MeshPlan::default()
    }

    /// Plans a workload with a sidecar, on a host of its own, with the SPIFFE ID
    /// `spiffe://sidewind.local/ns/<namespace>/sa/<name>`.
    pub fn workload(&mut self, namespace: &str, name: &str) -> WorkloadPlan<'_> {
        WorkloadPlan::new(self, namespace, name)
    }

    /// Starts another replica of the control plane, with the same flags. Sidecars that are started from now on know
    /// of it.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn replica(&mut self) -> ControlPlane {
        let number = self.replicas.len() + 2;
        let host = self.ground.host(&format!("control-plane-{number}"));
        let flags = self.flags.clone();
        let suffix = format!("-{number}");
        let mut replica =
            ControlPlane::replica(&self.binaries, &self.scratch, host, flags, &suffix);
        replica.start(&self.scratch);
        self.replicas.push(replica.address());
        replica
    }

    /// Starts the control plane of another trust domain on the same network, with flags of its own.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn neighbour(&mut self, trust_domain: &str, flags: &[&str]) -> Neighbour {
        let host = self
            .ground
            .host(&format!("control-plane-of-{trust_domain}"));
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        flags.extend(["--trust-domain".to_owned(), trust_domain.to_owned()]);
        let suffix = format!("-of-{trust_domain}");
        let mut control_plane =
            ControlPlane::replica(&self.binaries, &self.scratch, host, flags, &suffix);
        control_plane.start(&self.scratch);
        let file = format!("trust-bundle-of-{trust_domain}.pem");
        Neighbour {
            trust_bundle: self.scratch.write(&file, control_plane.trust_bundle()),
            control_plane,
            trust_domain: trust_domain.to_owned(),
        }
    }

    /// Adds a host without a sidecar, outside the mesh.
    pub fn outsider(&mut self, name: &str) -> Host {
        self.ground.host(name)
    }

    /// Whether it stands on network namespaces with redirection.
    pub fn is_transparent(&self) -> bool {
        matches!(self.ground, Ground::Lan(_))
    }

    /// The network under it.
    ///
    /// # Panics
    /// On loopback, where there is none.
    pub fn lan(&mut self) -> &mut Lan {
        match &mut self.ground {
            Ground::Lan(lan) => lan,
            Ground::Loopback { .. } => panic!("this mesh stands on loopback addresses"),
        }
    }

    /// Where all packets between its hosts pass.
    ///
    /// # Panics
    /// On loopback, where there is no such place.
    pub fn lan_router(&self) -> Place {
        match &self.ground {
            Ground::Lan(lan) => lan.router(),
            Ground::Loopback { .. } => panic!("this mesh stands on loopback addresses"),
        }
    }

    /// The programs under test.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The file of roots that sidecars are given.
    pub fn trust_bundle(&self) -> &PathBuf {
        &self.trust_bundle
    }

    /// `sidewind-proxy run` at `host` with what each sidecar is told, as the user of sidecars.
    pub fn proxy(&self, host: &Host) -> Invocation {
        self.proxy_behind(host, host.address).args(SHORT_DRAIN)
    }

    /// As [`Mesh::proxy`], with the mesh port of explicit capture at another address than peers dial, and with
    /// `--drain-quiet` as it is where nothing is said.
    fn proxy_behind(&self, host: &Host, mesh_address: Ipv4Addr) -> Invocation {
        let addresses = std::iter::once(self.control_plane.address());
        let addresses = addresses.chain(self.replicas.iter().copied());
        let urls: Vec<String> = addresses
            .map(|address| format!("https://{address}"))
            .collect();
        self.proxy_for(&urls.join(","), &self.trust_bundle, host, mesh_address)
    }

    /// As [`Mesh::proxy_behind`], of another trust domain.
    fn proxy_of(&self, of: &Neighbour, host: &Host, mesh_address: Ipv4Addr) -> Invocation {
        let url = format!("https://{}", of.control_plane.address());
        self.proxy_for(&url, &of.trust_bundle, host, mesh_address)
            .args(["--trust-domain", &of.trust_domain])
    }

    fn proxy_for(
        &self,
        urls: &str,
        trust_bundle: &Path,
        host: &Host,
        mesh_address: Ipv4Addr,
    ) -> Invocation {
        let user = self.is_transparent().then_some(SIDECAR_UID);
        let mut proxy = host.place.program(&self.binaries.proxy).user(user);
        proxy = proxy.args(["run", "--control-plane", urls, "--trust-bundle"]);
        proxy = proxy.arg(trust_bundle);
        if !self.is_transparent() {
            let at = |port: u16| format!("{}:{port}", host.address);
            proxy = proxy.args([
                "--capture",
                "explicit",
                "--address",
                &host.address.to_string(),
            ]);
            proxy = proxy.args([
                "--outbound-listen",
                &at(15001),
                "--mesh-listen",
                &format!("{mesh_address}:{MESH_PORT}"),
            ]);
            proxy = proxy.args([
                "--admin-listen",
                &at(15020),
                "--forward-address",
                &host.address.to_string(),
            ]);
        }
        proxy
    }

    /// Sets up redirection at `host`.
    #[track_caller]
    pub fn redirect(&self, host: &Host) {
        let redirect = host.place.program(&self.binaries.proxy).args([
            "redirect",
            "--uid",
            &SIDECAR_UID.to_string(),
        ]);
        redirect.finish().success();
    }

    /// Where programs on that host reach its own ports.
    pub fn local_address(&self, host: &Host) -> IpAddr {
        if self.is_transparent() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            host.address.into()
        }
    }

    /// Where programs on that host should listen.
    pub fn bind_address(&self, host: &Host) -> IpAddr {
        if self.is_transparent() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            host.address.into()
        }
    }
}
