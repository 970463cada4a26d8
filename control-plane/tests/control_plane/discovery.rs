//! What streams are told of one another.

use crate::support::{
    Client, ControlPlane, PATIENCE, Proxy, from_proxy, hello, port, refusal, until, within,
};
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_api::{MAX_SUBSCRIPTIONS, Reason, v1};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const CLIENT: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";

async fn orders(client: &Client) -> Proxy {
    client.proxy(ORDERS, vec![port(8080, "orders.data")]).await
}

#[tokio::test]
async fn a_stream_begins_with_a_hello_and_the_bundles_and_the_policy() {
    let control_plane = ControlPlane::start().await;
    let mut proxy = orders(&control_plane.client).await;
    assert_eq!(proxy.hello().await.refused, [""; 0]);
    let bundles = proxy
        .next_of(|message| match message {
            sidewind_api::v1::control_message::Message::TrustBundles(bundles) => Some(bundles),
            _ => None,
        })
        .await;
    assert_eq!(bundles.bundles[0].trust_domain, "sidewind.local");
    let policy = proxy.policy().await;
    assert_eq!(policy.plaintext(), v1::PlaintextMode::Permissive);
    assert!(!policy.default_deny);
    let workloads = control_plane.client.workloads().await;
    assert_eq!(workloads.len(), 1);
    let workload = &workloads[0];
    assert_eq!(
        (workload.spiffe_id.as_str(), workload.address.as_str()),
        (ORDERS, "127.0.0.1")
    );
    assert!(workload.confirmed && workload.version == "1.2.3");
}

#[tokio::test]
async fn a_workload_is_discovered_when_it_connects_and_gone_when_its_stream_ends() {
    let control_plane = ControlPlane::start().await;
    let mut client = control_plane.client.proxy(CLIENT, vec![]).await;
    client.subscribe("orders.data:8080").await;
    assert_eq!(client.destination().await.service, None);
    let server = orders(&control_plane.client).await;
    // First the service is known, then its workload is there; both may come in one.
    let update = async |client: &mut Proxy| loop {
        let endpoints = client.endpoints().await;
        if !endpoints.is_empty() {
            break endpoints;
        }
    };
    assert_eq!(within(update(&mut client)).await, ["127.0.0.1:8080"]);
    let begin = Instant::now();
    drop(server);
    assert_eq!(client.endpoints().await, [""; 0]);
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(control_plane.client.workloads().await.len(), 1);
}

#[tokio::test]
async fn answers_name_the_destination_as_it_was_asked_for() {
    let control_plane = ControlPlane::start().await;
    let _server = orders(&control_plane.client).await;
    let mut client = control_plane.client.proxy(CLIENT, vec![]).await;
    for destination in [
        "Orders.Data:8080",
        "orders.data.svc:8080",
        "127.0.0.1:8080",
        "example.org:443",
    ] {
        client.subscribe(destination).await;
        assert_eq!(client.destination().await.destination, destination);
    }
}

#[tokio::test]
async fn a_host_that_freezes_leaves_discovery_within_seconds() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let (relay, freeze) = relay(client.address).await;
    let svid = client.svid(ORDERS, &["orders.data"]).await;
    let ports = vec![port(8080, "orders.data")];
    let _server = client.stream_to(relay, &svid, hello(ports)).await.unwrap();
    assert_eq!(client.workloads().await.len(), 1);
    let begin = Instant::now();
    freeze.send(()).unwrap();
    until(async || client.workloads().await.is_empty()).await;
    assert!(
        begin.elapsed() < Duration::from_secs(12),
        "{:?}",
        begin.elapsed()
    );
}

/// A relay of one connection that can stop moving bytes while it keeps the connection open.
async fn relay(to: SocketAddr) -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (freeze, frozen) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => {}
            _ = frozen => {}
        }
        tokio::time::sleep(PATIENCE).await;
    });
    (address, freeze)
}

#[tokio::test]
async fn a_second_stream_of_a_process_takes_over_from_the_first() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &["orders.data"]).await;
    let hello = hello(vec![port(8080, "orders.data")]);
    let mut first = client.stream(&svid, hello.clone()).await.unwrap();
    let mut second = client.stream(&svid, hello).await.unwrap();
    assert_eq!(Reason::of(&first.end().await), Some(Reason::Replaced));
    second.subscribe("orders.data:8080").await;
    assert_eq!(second.endpoints().await, ["127.0.0.1:8080"]);
    assert_eq!(client.workloads().await.len(), 1);
}

#[tokio::test]
async fn an_address_that_is_not_the_callers_is_refused() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    for address in ["10.0.0.1", "192.0.2.1", "fd00::1"] {
        let mut spoof = hello(vec![]);
        spoof.address = address.to_owned();
        let (reason, message) = refusal(client.stream(&svid, spoof).await);
        assert_eq!(reason, Reason::AddressRefused);
        assert!(
            message.contains(address) && message.contains("127.0.0.1"),
            "{message}"
        );
    }
    let mut other_loopback = hello(vec![]);
    other_loopback.address = "127.0.0.42".to_owned();
    let _proxy = client.stream(&svid, other_loopback).await.unwrap();
    assert_eq!(client.workloads().await[0].address, "127.0.0.42");
}

#[tokio::test]
async fn a_service_that_the_token_does_not_list_is_refused_and_the_rest_is_registered() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &["orders.data"]).await;
    let ports = vec![port(8080, "orders.data"), port(9090, "billing.data")];
    let mut proxy = client.stream(&svid, hello(ports)).await.unwrap();
    let refused = proxy.hello().await.refused;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].contains("billing.data"), "{refused:?}");
    proxy.subscribe("billing.data:9090").await;
    assert_eq!(proxy.destination().await.service, None);
    proxy.subscribe("orders.data:8080").await;
    assert_eq!(proxy.endpoints().await, ["127.0.0.1:8080"]);
}

#[tokio::test]
async fn what_a_stream_may_not_say_ends_it_with_the_reason() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let subscribe = |destination: &str| {
        let destination = destination.to_owned();
        from_proxy(FromProxy::Subscribe(v1::Subscribe { destination }))
    };
    let table = [
        (
            from_proxy(FromProxy::Hello(hello(vec![]))),
            Reason::InvalidMessage,
        ),
        (subscribe(""), Reason::InvalidMessage),
        (subscribe("orders.data"), Reason::InvalidMessage),
        (subscribe("orders.data:0"), Reason::InvalidMessage),
        (subscribe(&"x".repeat(60_000)), Reason::InvalidMessage),
    ];
    let svid = client.svid(CLIENT, &[]).await;
    for (message, expected) in table {
        let mut proxy = client.stream(&svid, hello(vec![])).await.unwrap();
        proxy.sender.send(message).await.unwrap();
        assert_eq!(Reason::of(&proxy.end().await), Some(expected));
    }
    until(async || client.workloads().await.is_empty()).await;
}

#[tokio::test]
async fn what_a_newer_proxy_says_is_passed_over() {
    let control_plane = ControlPlane::start().await;
    let mut proxy = control_plane.client.proxy(CLIENT, vec![]).await;
    let unknown = v1::ProxyMessage { message: None };
    proxy.sender.send(unknown).await.unwrap();
    proxy.subscribe("example.org:443").await;
    assert_eq!(proxy.destination().await.service, None);
}

#[tokio::test]
async fn one_subscription_beyond_the_limit_ends_the_stream() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut proxy = client.proxy(CLIENT, vec![]).await;
    let sender = proxy.sender.clone();
    let asking = tokio::spawn(async move {
        for number in 0..=MAX_SUBSCRIPTIONS {
            let destination = format!("host{number}.example.org:80");
            let message = FromProxy::Subscribe(v1::Subscribe { destination });
            if sender.send(from_proxy(message)).await.is_err() {
                break;
            }
        }
    });
    let status = proxy.end().await;
    assert_eq!(
        Reason::of(&status),
        Some(Reason::LimitExceeded),
        "{status:?}"
    );
    drop(proxy);
    within(asking).await.unwrap();
    control_plane
        .metric("sidewind_subscribed_destinations 0")
        .await;
}

#[tokio::test]
async fn a_stream_without_a_certificate_is_refused() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let channel = client.channel(client.anonymous_tls()).await.unwrap();
    let mut service = sidewind_api::v1::mesh_service_client::MeshServiceClient::new(channel);
    let message = from_proxy(FromProxy::Hello(hello(vec![])));
    let (reason, _) = refusal(service.stream(tokio_stream::iter([message])).await);
    assert_eq!(reason, Reason::CertificateRequired);
}

#[tokio::test]
async fn a_stream_must_begin_with_a_hello() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(CLIENT, &[]).await;
    let channel = client.channel(client.tls(&svid)).await.unwrap();
    let mut service = sidewind_api::v1::mesh_service_client::MeshServiceClient::new(channel);
    let (reason, _) = refusal(service.stream(tokio_stream::empty()).await);
    assert_eq!(reason, Reason::InvalidMessage);
}
