//! The registry as its streams see it.

mod acknowledgements;
mod destinations;
mod federation;
mod hello;
mod remote;
mod streams;

use super::*;
use crate::config::document::SourceFile;
use crate::store::tests::empty_store;
use crate::store::writer::writer;
use futures_util::FutureExt as _;
use sidewind_api::Destination;
use sidewind_identity::PeerIdentity;
use std::net::IpAddr;

struct Mesh {
    registry: Arc<Registry>,
    _directory: tempfile::TempDir,
}

struct Member {
    outbox: Arc<Outbox>,
    connected: Connected,
    id: SpiffeId,
}

async fn mesh() -> Mesh {
    mesh_after_restart(Vec::new()).await
}

async fn mesh_after_restart(known: Vec<WorkloadRecord>) -> Mesh {
    let (directory, store) = empty_store().await;
    let (writer, task) = writer(store, Arc::default());
    tokio::spawn(task.run());
    let (plaintext, bundles) = (v1::PlaintextMode::Permissive, v1::TrustBundles::default());
    let registry = Registry::new(plaintext, bundles, known, writer, Arc::default());
    Mesh {
        registry: Arc::new(registry),
        _directory: directory,
    }
}

fn registration(name: &str, services: &[&str]) -> Registration {
    let id = SpiffeId::parse(&format!("spiffe://example.org/ns/data/sa/{name}")).unwrap();
    Registration {
        services: services.iter().map(|name| name.parse().unwrap()).collect(),
        ..Registration::new(id, "join-token")
    }
}

fn hello(name: &str, ports: &[(u16, &str)]) -> v1::ProxyHello {
    let port = |(port, service): &(u16, &str)| v1::ServedPort {
        target_port: (*port).into(),
        protocol: v1::Protocol::Http.into(),
        service: (*service).to_owned(),
        service_port: 0,
    };
    v1::ProxyHello {
        version: "1.0.0".to_owned(),
        instance_id: format!("{name}-process"),
        address: String::new(),
        mesh_port: 15008,
        ports: ports.iter().map(port).collect(),
        workload_name: format!("{name}-1"),
        zone: String::new(),
        gateway: false,
    }
}

fn record(name: &str, address: &str, ports: &[(u16, &str)]) -> WorkloadRecord {
    checked(&hello(name, ports), name, address).unwrap().0
}

fn checked(
    hello: &v1::ProxyHello,
    name: &str,
    peer: &str,
) -> Result<(WorkloadRecord, Vec<String>), RegistrationError> {
    let registration = registration(name, &["orders.data"]);
    let identity = PeerIdentity {
        id: registration.spiffe_id.clone(),
        not_after: SystemTime::now() + Duration::from_secs(3600),
        serial_hex: "01".to_owned(),
        issuer_key_id: String::new(),
        certificate_sha256: [0; 32],
        subject: String::new(),
    };
    let peer: IpAddr = peer.parse().unwrap();
    WorkloadRecord::check(hello, &identity, &registration, peer, SystemTime::now())
}

impl Mesh {
    fn join(&self, record: WorkloadRecord) -> Member {
        let outbox = Arc::new(Outbox::default());
        let id = record.key.spiffe_id.clone();
        let connected = self.registry.connect(record, "01", Arc::clone(&outbox));
        let member = Member {
            outbox,
            connected,
            id,
        };
        self.registry.flush();
        member
    }

    /// A workload that serves nothing.
    fn client(&self) -> Member {
        let client = self.join(record("client", "10.0.0.100", &[]));
        client.take();
        client
    }

    fn leave(&self, member: Member) {
        drop(member);
        self.registry.flush();
    }

    fn configure(&self, text: &str) {
        let (name, text) = ("mesh.yaml".to_owned(), text.to_owned());
        let config = Config::parse(&[SourceFile { name, text }]).unwrap();
        self.registry.set_config(Arc::new(config));
    }
}

impl Member {
    fn query(&self, destination: &str) -> Query {
        Query::new(destination.parse::<Destination>().unwrap(), &self.id)
    }

    /// Subscribes and gives the answer.
    fn ask(&self, destination: &str) -> Option<Arc<v1::Service>> {
        self.connected.subscribe(&self.query(destination));
        let answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.into_iter().next().unwrap()
    }

    /// Everything in the outbox; nothing comes after an end.
    fn take(&self) -> Vec<Outgoing> {
        let mut taken = Vec::new();
        while let Some(outgoing) = self.outbox.next().now_or_never() {
            let end = matches!(outgoing, Outgoing::End(_));
            taken.push(outgoing);
            if end {
                break;
            }
        }
        taken
    }

    /// The answers in the outbox.
    fn answers(&self) -> Vec<Option<Arc<v1::Service>>> {
        let destination = |outgoing| match outgoing {
            Outgoing::Destination(_, service) => Some(service),
            _ => None,
        };
        self.take().into_iter().filter_map(destination).collect()
    }

    /// The endpoints of the one new answer.
    fn update(&self) -> Vec<String> {
        let answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        endpoints(answers[0].as_ref())
    }
}

fn endpoints(service: Option<&Arc<v1::Service>>) -> Vec<String> {
    let service = service.expect("the destination is outside the mesh");
    let endpoint = |endpoint: &v1::Endpoint| match endpoint.spiffe_id.rsplit('/').next() {
        Some(name) if !name.is_empty() => format!("{name}@{}:{}", endpoint.address, endpoint.port),
        _ => format!("{}:{}", endpoint.address, endpoint.port),
    };
    service.endpoints.iter().map(endpoint).collect()
}
