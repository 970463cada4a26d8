//! A gateway in front of an API server of the mesh, and what such stories share.

use std::net::SocketAddr;
use std::path::Path;

use sidewind_tests::invocation::{Finished, Invocation};
use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{JoinToken, Mesh, MeshPlan, Sidecar, Workload};
use sidewind_tests::process::Process;
use sidewind_tests::wait::PATIENCE;
use sidewind_tests::workloads;

use crate::support::Answer;

pub(crate) const GATEWAY_ID: &str = "spiffe://sidewind.local/ns/airflow/sa/web";

/// HTTP that redirects, HTTPS for two hosts with TLS 1.3 alone at one of them, and TLS passed through.
pub(crate) const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: airflow, annotations: { sidewind.dev/https-redirect: \"true\" } }
spec:
  gatewayClassName: sidewind
  listeners:
    - { name: http, port: 8080, protocol: HTTP }
    - name: https
      port: 8443
      protocol: HTTPS
      hostname: airflow.example.com
      tls:
        certificateRefs: [{ name: airflow }]
        options: { sidewind.dev/hsts-max-age: 1h }
    - name: modern
      port: 8443
      protocol: HTTPS
      hostname: \"*.apps.example.com\"
      tls: { certificateRefs: [{ name: apps }], options: { sidewind.dev/tls-min-version: \"1.3\" } }
    - { name: through, port: 9443, protocol: TLS, tls: { mode: Passthrough } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: airflow }
spec:
  parentRefs: [{ name: web }]
  hostnames: [airflow.example.com, \"*.apps.example.com\"]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /nowhere } }]
      backendRefs: [{ name: missing, namespace: data, port: 80 }]
    - backendRefs: [{ name: api-server, namespace: airflow, port: 80 }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: { name: own-tls, namespace: airflow }
spec:
  parentRefs: [{ name: web, sectionName: through }]
  hostnames: [own.example.com]
  rules: [{ backendRefs: [{ name: api-server, port: 4433 }] }]
";

/// The gateway of [`Front`]: plain HTTP on 8081 and HTTPS on 8443, for any host.
pub(crate) const FRONT: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: airflow }
spec:
  gatewayClassName: sidewind
  listeners:
    - name: plain
      port: 8081
      protocol: HTTP
      allowedRoutes: { namespaces: { from: All } }
    - name: tls
      port: 8443
      protocol: HTTPS
      tls: { certificateRefs: [{ name: front }] }
      allowedRoutes: { namespaces: { from: All } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: steady, namespace: data }
spec:
  parentRefs: [{ name: web, namespace: airflow }]
  hostnames: [steady.data]
  rules: [{ backendRefs: [{ name: steady, port: 8070 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ name: web, namespace: airflow }]
  rules: [{ backendRefs: [{ name: orders-api, port: 8080 }] }]
";

/// A gateway on a host of its own in front of a mesh that has [`FRONT`] among its documents.
pub(crate) struct Front {
    pub(crate) gateway: Sidecar,
    pub(crate) host: Host,
}

impl Front {
    pub(crate) const PLAIN: u16 = 8081;
    pub(crate) const TLS: u16 = 8443;

    #[track_caller]
    pub(crate) fn of(mesh: &mut Mesh) -> Self {
        certificate(mesh, "front", "orders-api.data");
        let host = mesh.outsider("gateway");
        let mut gateway = start_gateway(mesh, &host, &[]);
        gateway.wait_ready(PATIENCE);
        Self { gateway, host }
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        (self.host.address, port).into()
    }
}

/// A mesh with an API server in it and a gateway in front. Fields are dropped in this order.
pub(crate) struct Edge {
    pub(crate) gateway: Sidecar,
    pub(crate) host: Host,
    pub(crate) server: Process,
    pub(crate) api: Workload,
    pub(crate) mesh: Mesh,
}

impl Edge {
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with(Mesh::plan().config("gateway.yaml", GATEWAY), &[])
    }

    #[track_caller]
    pub(crate) fn with(plan: MeshPlan, flags: &[&str]) -> Self {
        let mut mesh = plan.start_on_loopback();
        let workload = mesh.workload("airflow", "api-server");
        let workload = workload.serves("api-server.airflow:80=8080/http");
        let api = workload.serves("api-server.airflow=4433/tls").start();
        let server = workloads::api(&api, 8080, &mesh.scratch);
        for (name, host) in [
            ("airflow", "airflow.example.com"),
            ("apps", "*.apps.example.com"),
        ] {
            certificate(&mesh, name, host);
        }
        let host = mesh.outsider("gateway");
        let gateway = start_gateway(&mesh, &host, flags);
        let mut edge = Self {
            gateway,
            host,
            server,
            api,
            mesh,
        };
        edge.gateway.wait_ready(PATIENCE);
        edge
    }

    pub(crate) fn curl(&self, arguments: &[&str]) -> Invocation {
        let resolve = |name: &str| {
            ["8080", "8443", "9443"].map(|port| format!("{name}:{port}:{}", self.host.address))
        };
        let mut curl = self
            .host
            .place
            .program("curl")
            .args(["-sS", "--max-time", "30"]);
        for name in [
            "airflow.example.com",
            "a.apps.example.com",
            "own.example.com",
        ] {
            for entry in resolve(name) {
                curl = curl.args(["--resolve", &entry]);
            }
        }
        curl.args(["--cacert"])
            .arg(self.mesh.scratch.join("certificates/all.pem"))
            .args(arguments)
    }

    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> Answer {
        Answer::parse(&self.curl(&["-i"]).args(arguments).finish().success())
    }

    /// What the API was asked, by its own word.
    #[track_caller]
    pub(crate) fn echo(&self, arguments: &[&str]) -> Vec<(String, String)> {
        let url = "https://airflow.example.com:8443/echo";
        let printed = self.curl(arguments).arg(url).finish().success();
        headers(&printed)
    }

    pub(crate) fn s_client(&self, arguments: &[&str]) -> Finished {
        let at = format!("{}:8443", self.host.address);
        let client = self
            .host
            .place
            .program("openssl")
            .args(["s_client", "-connect", &at]);
        client.args(arguments).finish()
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.gateway.metrics().value(name).unwrap_or_default()
    }
}

pub(crate) fn start_gateway(mesh: &Mesh, host: &Host, flags: &[&str]) -> Sidecar {
    start_gateway_as(GATEWAY_ID, mesh, host, flags)
}

pub(crate) fn start_gateway_as(id: &str, mesh: &Mesh, host: &Host, flags: &[&str]) -> Sidecar {
    let token = mesh.control_plane.token(&JoinToken {
        spiffe_id: id.to_owned(),
        ..JoinToken::default()
    });
    let token = mesh.scratch.write_secret("gateway.token", token, None);
    let address = host.address.to_string();
    // What it tells of itself it tells to loopback alone.
    let admin = SocketAddr::new(mesh.local_address(host), 15020);
    let control_plane = format!("https://{}", mesh.control_plane.address());
    let proxy = host.place.program(&mesh.binaries().proxy);
    let proxy = proxy.args([
        "run",
        "--capture",
        "gateway",
        "--control-plane",
        &control_plane,
    ]);
    let proxy = proxy.arg("--trust-bundle").arg(mesh.trust_bundle());
    let proxy = proxy.arg("--join-token-file").arg(token);
    let proxy = proxy.args([
        "--gateway-address",
        &address,
        "--admin-listen",
        &admin.to_string(),
    ]);
    let proxy = proxy.args(["--drain-quiet", "500ms", "--workload-name", "gateway"]);
    let certificates = mesh.scratch.join("certificates");
    let proxy = proxy
        .arg("--gateway-certificates")
        .arg(certificates)
        .args(flags);
    let process = proxy.start("gateway", &mesh.scratch);
    Sidecar::new(host.place.clone(), admin, process)
}

/// Puts a certificate of its own making for `host` where the gateway looks for `name`, and among those that clients
/// believe.
pub(crate) fn certificate(mesh: &Mesh, name: &str, host: &str) {
    let directory = mesh.scratch.join("certificates");
    std::fs::create_dir_all(directory.join(name)).unwrap();
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).unwrap();
    // As a Secret that is mounted: the new pair is there at once.
    replace(
        &directory.join(name),
        "tls.key",
        &made.signing_key.serialize_pem(),
    );
    replace(&directory.join(name), "tls.crt", &made.cert.pem());
    let all = directory.join("all.pem");
    let known = std::fs::read_to_string(&all).unwrap_or_default();
    std::fs::write(all, known + &made.cert.pem()).unwrap();
}

pub(crate) fn replace(directory: &Path, file: &str, text: &str) {
    let draft = directory.join("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, directory.join(file)).unwrap();
}

pub(crate) fn headers(echoed: &str) -> Vec<(String, String)> {
    let document: serde_json::Value =
        serde_json::from_str(echoed).unwrap_or_else(|_| panic!("{echoed}"));
    let pairs = document["headers"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    pairs
        .map(|pair| (text(&pair[0]).to_lowercase(), text(&pair[1])))
        .collect()
}

pub(crate) fn all<'h>(headers: &'h [(String, String)], name: &str) -> Vec<&'h str> {
    let of_name = headers.iter().filter(|(header, _)| header == name);
    of_name.map(|(_, value)| value.as_str()).collect()
}
