//! The mesh under an Airflow, or the same network without one.

use std::net::{Ipv4Addr, SocketAddr};

use super::settings::{API_PORT, API_SERVER};
use crate::lan::Host;
use crate::mesh::{JoinToken, Mesh, MeshPlan, Sidecar, WORKLOAD_UID, Workload};
use crate::place::Place;
use crate::wait::PATIENCE;

/// The address of the API servers' service, which no host has.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 8, 10);

/// The identity of a gateway is the name of its Gateway document.
const GATEWAY_ID: &str = "spiffe://sidewind.local/ns/airflow/sa/web";

const DOCUMENTS: &str = include_str!("../../../examples/airflow/mesh.yaml");

/// The plan of the mesh that stands under Airflow.
pub(super) fn plan() -> MeshPlan {
    Mesh::plan().config("airflow.yaml", DOCUMENTS)
}

/// What a machine is to be.
#[derive(Clone, Debug)]
pub(super) struct MachinePlan<'p> {
    pub(super) namespace: &'p str,
    pub(super) name: &'p str,
    /// The name in its SPIFFE ID.
    pub(super) identity: &'p str,
    /// `--serve`, each.
    pub(super) serves: &'p [&'p str],
    /// Further flags of the sidecar, with their values.
    pub(super) flags: Vec<(&'static str, String)>,
    /// Whether the sidecar may see whose sockets are whose.
    pub(super) looks: bool,
    pub(super) svid_ttl: Option<&'p str>,
    /// By which flags it proves itself; by a join token where there are none.
    pub(super) evidence: &'p [String],
}

/// A host that a component runs on, with its sidecar where there is a mesh.
#[derive(Debug)]
pub struct Machine {
    /// Its name, by which all others find it.
    pub name: String,
    /// Where its programs run.
    pub place: Place,
    /// Its address.
    pub address: Ipv4Addr,
    workload: Option<Workload>,
}

impl Machine {
    /// Starts it, with a sidecar or without.
    #[track_caller]
    pub(super) fn start(mesh: &mut Mesh, meshed: bool, plan: MachinePlan<'_>) -> Self {
        if !meshed {
            let host = mesh.outsider(plan.name);
            for service in plan.serves.iter().filter_map(|port| port.split_once('=')) {
                mesh.lan().name(service.0, host.address);
            }
            return Self {
                name: plan.name.to_owned(),
                place: host.place,
                address: host.address,
                workload: None,
            };
        }
        let mut workload = mesh
            .workload(plan.namespace, plan.name)
            .identity(plan.namespace, plan.identity)
            .with_default_drain();
        for port in plan.serves {
            workload = workload.serves(port);
        }
        for (flag, value) in plan.flags {
            workload = workload.flag(flag, value);
        }
        if plan.looks {
            workload = workload.capabilities(&["sys_ptrace", "dac_read_search"]);
        }
        if let Some(ttl) = plan.svid_ttl {
            workload = workload.svid_ttl(ttl);
        }
        if !plan.evidence.is_empty() {
            let evidence: Vec<&str> = plan.evidence.iter().map(String::as_str).collect();
            workload = workload.attested_by(&evidence);
        }
        let workload = workload.start();
        Self {
            name: plan.name.to_owned(),
            place: workload.place.clone(),
            address: workload.address,
            workload: Some(workload),
        }
    }

    /// Its sidecar.
    ///
    /// # Panics
    /// Where there is no mesh.
    #[track_caller]
    pub fn sidecar(&self) -> &Sidecar {
        &self.workload.as_ref().expect("a meshed machine").sidecar
    }

    /// Its sidecar, to be ended, say.
    ///
    /// # Panics
    /// Where there is no mesh.
    #[track_caller]
    pub fn sidecar_mut(&mut self) -> &mut Sidecar {
        &mut self.workload.as_mut().expect("a meshed machine").sidecar
    }

    /// Its SPIFFE ID; empty where there is no mesh.
    pub fn spiffe_id(&self) -> &str {
        self.workload
            .as_ref()
            .map_or("", |workload| workload.spiffe_id.as_str())
    }

    /// The user that its programs run as.
    pub(super) fn uid() -> u32 {
        WORKLOAD_UID
    }
}

/// Has all hosts find the API servers by their service's name, at an address of its own.
pub(super) fn name_api_servers(mesh: &mut Mesh) {
    mesh.lan().name(API_SERVER, API_SERVICE);
}

/// Has a machine without a sidecar reach the API servers at the address of their service: each connection goes to one
/// of them by chance, as kube-proxy has it.
#[track_caller]
pub(super) fn share_out(machine: &Machine, servers: &[Ipv4Addr]) {
    let servers = servers.iter().enumerate();
    let map: Vec<String> = servers
        .map(|(at, address)| format!("{at} : {address}"))
        .collect();
    let (count, map) = (map.len(), map.join(", "));
    let rules = format!(
        "table ip services {{ chain out {{ type nat hook output priority -100; \
         ip daddr {API_SERVICE} tcp dport {API_PORT} dnat to numgen random mod {count} map {{ {map} }}; }}; }}\n"
    );
    let nft = machine.place.program("nft").args(["-f", "-"]);
    nft.input(rules).finish().success();
}

/// The gateway in front of the API servers, for clients outside the mesh.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) sidecar: Sidecar,
    pub(super) host: Host,
}

impl Gateway {
    #[track_caller]
    pub(super) fn start(mesh: &mut Mesh) -> Self {
        let host = mesh.outsider("gateway");
        let token = mesh.control_plane.token(&JoinToken {
            spiffe_id: GATEWAY_ID.to_owned(),
            ..JoinToken::default()
        });
        let token = mesh.scratch.write_secret("gateway.token", token, None);
        let control_plane = format!("https://{}", mesh.control_plane.address());
        let proxy = host.place.program(&mesh.binaries().proxy);
        let proxy = proxy.args(["run", "--capture", "gateway"]);
        let proxy = proxy.args(["--control-plane", &control_plane]);
        let proxy = proxy.arg("--trust-bundle").arg(mesh.trust_bundle());
        let proxy = proxy.arg("--join-token-file").arg(token);
        let proxy = proxy.args(["--gateway-address", &host.address.to_string()]);
        let process = proxy.start("gateway", &mesh.scratch);
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 15020));
        let mut sidecar = Sidecar::new(host.place.clone(), admin, process);
        sidecar.wait_ready(PATIENCE);
        Self { sidecar, host }
    }

    pub(super) fn address(&self) -> SocketAddr {
        (self.host.address, API_PORT).into()
    }
}
