//! The control side against a control plane in this process, in simulated time: minutes pass in milliseconds, and
//! timers fire in the order in which they would.

mod adversity;
mod clocks;
mod evidence;
mod fake;
mod fake_authority;
mod fake_io;
mod identity;
mod patience;
mod restart;
mod stream;
mod tasks;
mod workload_api;

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use sidewind_api::v1::control_message::Message;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::clock::Simulated;
use super::network::Memory;
use super::*;
use crate::config::{self, Invocation};
use fake::{Authority, CONTROL_PLANE, Fake, FakeNetwork, PATIENCE, Seen, WORKLOAD, send};

/// The time and the network of a test.
struct World {
    time: Simulated,
    /// None: TCP on loopback.
    memory: Option<Memory>,
}

impl World {
    fn new() -> Self {
        Self {
            time: Simulated::new(),
            memory: Some(Memory::default()),
        }
    }

    fn network(&self) -> Network {
        self.memory
            .as_ref()
            .map(Memory::network)
            .unwrap_or_default()
    }

    async fn control_plane(&self) -> Fake {
        self.control_plane_as(CONTROL_PLANE, Arc::new(Authority::new()))
            .await
    }

    async fn control_plane_as(&self, id: &str, authority: Arc<Authority>) -> Fake {
        let network = self
            .memory
            .clone()
            .map_or(FakeNetwork::Tcp, FakeNetwork::Memory);
        Fake::start_as(network, &self.time, id, authority).await
    }
}

/// A proxy's control side at work.
struct Proxy {
    control: Control,
    files: tempfile::TempDir,
    work: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Proxy {
    /// With the token `token`, and the fake's root as trust bundle.
    fn start(world: &World, authority: &Authority, urls: &[String]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let bundle = authority.root.certificate_pem();
        std::fs::write(files.path().join("roots.pem"), bundle).unwrap();
        std::fs::write(files.path().join("token"), "token").unwrap();
        Self::start_with(world, files, urls)
    }

    fn start_with(world: &World, files: tempfile::TempDir, urls: &[String]) -> Self {
        let token = format!("--join-token-file={}", files.path().join("token").display());
        Self::start_proving(world, files, urls, &[token], &[])
    }

    /// With other evidence than a token.
    fn start_proving(
        world: &World,
        files: tempfile::TempDir,
        urls: &[String],
        evidence: &[String],
        variables: &[(&str, &str)],
    ) -> Self {
        let path = |name: &str| files.path().join(name).display().to_string();
        let mut arguments = vec![
            "sidewind-proxy".to_owned(),
            format!("--control-plane={}", urls.join(",")),
            format!("--trust-bundle={}", path("roots.pem")),
            "--serve=orders.data:80=8080/http".to_owned(),
            "--workload-name=orders-1".to_owned(),
        ];
        arguments.extend_from_slice(evidence);
        let variables = variables.iter();
        let variables =
            variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let parsed = config::parse(arguments.into_iter().map(OsString::from), variables);
        let Invocation::Run(config) = parsed.unwrap() else {
            panic!("not a run");
        };
        let (control, work) = within(&config, world.time.clock(), world.network()).unwrap();
        Self {
            control,
            files,
            work: tokio::spawn(work),
        }
    }

    async fn identity(&mut self, generation: u64) -> Arc<MeshIdentity> {
        let identity = self.control.identity.wait_for(|identity| {
            identity
                .as_ref()
                .is_some_and(|identity| identity.generation >= generation)
        });
        let identity = tokio::time::timeout(PATIENCE, identity).await;
        identity
            .expect("no such identity")
            .unwrap()
            .clone()
            .unwrap()
    }

    async fn status(&mut self, wanted: impl FnMut(&ControlStatus) -> bool) -> ControlStatus {
        let status = tokio::time::timeout(PATIENCE, self.control.status.wait_for(wanted)).await;
        status.expect("no such status").unwrap().clone()
    }
}

fn service(name: &str) -> v1::DestinationUpdate {
    v1::DestinationUpdate {
        destination: format!("{name}:80"),
        service: Some(v1::Service {
            name: name.to_owned(),
            port: 80,
            ..Default::default()
        }),
    }
}

fn policy(version: u64, source: &str) -> Message {
    Message::InboundPolicy(v1::InboundPolicy {
        version,
        rules: vec![v1::AllowRule {
            sources: vec![source.to_owned()],
            ..Default::default()
        }],
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_join_token_brings_an_svid_and_a_stream() {
    let world = World::new();
    let mut fake = world.control_plane().await;
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let identity = proxy.identity(1).await;
    assert_eq!(identity.id.as_str(), WORKLOAD);
    assert_eq!(
        identity.client_tls.alpn_protocols,
        [&b"sidewind/1"[..], b"h2"]
    );
    let (hello, serial, answers) = fake.next_stream().await;
    assert_eq!(serial, identity.serial_hex);
    assert_eq!(hello.workload_name, "orders-1");
    assert_eq!(hello.mesh_port, 15008);
    assert_eq!(hello.ports[0].service, "orders.data");
    assert_eq!(hello.address, "");
    assert_eq!(hello.instance_id, proxy.control.instance_id());

    let status = proxy.status(|status| status.connected).await;
    assert_eq!(status.control_plane_version.as_deref(), Some("9.9.9"));
    assert_eq!(status.refused, ["port 1 is not yours"]);
    assert_eq!(status.local_address, Some("127.0.0.1".parse().unwrap()));
    assert!(!status.policy_received);
    send(&answers, policy(1, "spiffe://sidewind.local/ns/*/sa/*")).await;
    let status = proxy.status(|status| status.policy_received).await;
    assert!(matches!(
        status.identity_state(world.time.now()),
        IdentityState::Valid { .. }
    ));
    assert_eq!(
        proxy
            .control
            .inbound_policy
            .borrow()
            .as_ref()
            .unwrap()
            .version,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn the_next_control_plane_answers_when_one_does_not() {
    let world = World::new();
    let authority = Arc::new(Authority::new());
    let mut first = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    let mut second = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    first.kill().await;
    let urls = [first.url(), second.url()];
    let mut proxy = Proxy::start(&world, &authority, &urls);
    proxy.identity(1).await;
    second.next_stream().await;
    let status = proxy.status(|status| status.connected).await;
    assert_eq!(status.control_plane, Some(second.url()));
    first.restart().await;
    second.kill().await;
    first.next_stream().await;
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_has_lost_its_store_is_left_for_one_that_has_not() {
    let world = World::new();
    let authority = Arc::new(Authority::new());
    let mut first = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    let mut second = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    for fake in [&first, &second] {
        fake.behave(|behaviour| behaviour.store_away = true);
    }
    let mut proxy = Proxy::start(&world, &authority, &[first.url(), second.url()]);
    proxy.identity(1).await;
    // Each is asked; where none has its store, one of them is as good as another.
    let (.., at_first) = first.next_stream().await;
    let (.., at_second) = second.next_stream().await;
    let (_, serial, at_first_again) = first.next_stream().await;
    at_second.closed().await;
    at_first.closed().await;
    assert!(!at_first_again.is_closed());
    second.behave(|behaviour| behaviour.store_away = false);
    // Once the certificate is renewed it is looked for again.
    let (_, renewed, _answers) = first.next_stream().await;
    assert_ne!(renewed, serial);
    let (.., at_second) = second.next_stream().await;
    at_first_again.closed().await;
    assert!(!at_second.is_closed());
    proxy
        .status(|status| status.control_plane == Some(second.url()))
        .await;
}

#[tokio::test]
async fn all_of_it_works_over_tcp_in_real_time() {
    let world = World {
        time: Simulated::new(),
        memory: None,
    };
    let mut fake = world.control_plane().await;
    fake.behave(|behaviour| behaviour.svid_ttl = Duration::from_secs(3));
    let mut proxy = Proxy::start(&world, &fake.authority, &[fake.url()]);
    let mut orders = proxy.control.discovery.subscribe("orders:80");
    let (.., first_serial, _answers) = fake.next_stream().await;
    let (.., second_serial, _answers) = fake.next_stream().await;
    assert_ne!(first_serial, second_serial);
    fake.kill().await;
    proxy.status(|status| !status.connected).await;
    fake.restart().await;
    let (.., answers) = fake.next_stream().await;
    send(&answers, Message::Destination(service("orders"))).await;
    orders.wait_for(Option::is_some).await.unwrap();
    assert!(proxy.identity(2).await.not_after > SystemTime::now());
}
