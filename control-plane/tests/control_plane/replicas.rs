//! Several control planes on one PostgreSQL database.

use crate::postgres::PostgresServer;
use crate::support::{Client, ControlPlane, hello, port, refusal, svid_of, until, within};
use sidewind_api::Reason;
use sidewind_control_plane::store::{Location, StoreKey};
use sidewind_identity::PrivateKey;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use tokio::task::JoinSet;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";

async fn replica(server: &PostgresServer) -> ControlPlane {
    let store = Location::parse(&server.url()).unwrap();
    let directory = Arc::new(tempfile::tempdir().unwrap());
    ControlPlane::start_in(directory, |settings| settings.store = store).await
}

async fn query(server: &PostgresServer, statement: &'static str) -> Vec<String> {
    let pool = sqlx::PgPool::connect(&server.url()).await.unwrap();
    sqlx::query_scalar(statement)
        .fetch_all(&pool)
        .await
        .unwrap()
}

fn csr(key: &PrivateKey) -> Vec<u8> {
    key.csr_der().unwrap()
}

#[tokio::test]
async fn replicas_that_start_at_once_have_one_root() {
    let server = PostgresServer::start().await;
    let (one, two) = tokio::join!(replica(&server), replica(&server));
    let roots = |client: &Client| {
        let bundles = &client.bundles;
        let domain = sidewind_identity::TrustDomain::parse("sidewind.local").unwrap();
        bundles.get(&domain).unwrap().to_pem()
    };
    assert_eq!(roots(&one.client), roots(&two.client));
}

#[tokio::test]
async fn of_a_hundred_uses_of_a_token_over_two_replicas_one_gets_the_certificate() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let token = one.client.token(ORDERS, &["orders.data"]).await;
    let mut attests = JoinSet::new();
    for number in 0..100 {
        let client = if number % 2 == 0 { &one } else { &two }.client.clone();
        let token = token.clone();
        attests.spawn(async move {
            let key = PrivateKey::generate().unwrap();
            client.attest(&token, csr(&key)).await
        });
    }
    let (granted, refused): (Vec<_>, Vec<_>) = within(attests.join_all())
        .await
        .into_iter()
        .partition(Result::is_ok);
    assert_eq!((granted.len(), refused.len()), (1, 99));
    for result in refused {
        let (reason, message) = refusal(result);
        let allowed = [Reason::JoinTokenUsed, Reason::Overloaded];
        assert!(allowed.contains(&reason), "{reason:?}: {message}");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_by_a_replica_that_did_not_issue_it() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let first = one.client.svid(ORDERS, &["orders.data"]).await;
    let mut svid = first.clone();
    let mut serials = BTreeSet::from([first.serial_hex().to_owned()]);
    for number in 0..20 {
        let client = if number % 2 == 0 { &two } else { &one }.client.clone();
        let key = PrivateKey::generate().unwrap();
        let response = client.renew(&svid, csr(&key)).await.unwrap();
        svid = svid_of(response, key);
        assert!(serials.insert(svid.serial_hex().to_owned()));
    }
    // What it is registered for goes with it.
    let mut proxy = two
        .client
        .stream(&svid, hello(vec![port(8080, "orders.data")]))
        .await
        .unwrap();
    assert!(proxy.hello().await.refused.is_empty());
}

#[tokio::test]
async fn a_service_that_is_registered_at_one_replica_belongs_to_the_mesh_at_all() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    assert!(worker.destination().await.service.is_none());
    one.client.svid(ORDERS, &["orders.data"]).await;
    let known = worker.destination().await.service.unwrap();
    assert!(known.endpoints.is_empty());
}

#[tokio::test]
async fn a_workload_of_one_replica_is_in_discovery_at_the_other_until_it_leaves() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let orders = one
        .client
        .proxy(ORDERS, vec![port(8080, "orders.data")])
        .await;
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    while worker.endpoints().await != ["127.0.0.1:8080"] {}
    drop(orders);
    while !worker.endpoints().await.is_empty() {}
}

#[tokio::test]
async fn a_workload_that_changes_replicas_again_and_again_stays_in_discovery() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let svid = one.client.svid(ORDERS, &["orders.data"]).await;
    let ports = hello(vec![port(8080, "orders.data")]);
    let mut stream = one.client.stream(&svid, ports.clone()).await.unwrap();
    let (mut at_one, mut at_two) = tokio::join!(
        one.client.proxy(WORKER, vec![]),
        two.client.proxy(WORKER, vec![])
    );
    for worker in [&mut at_one, &mut at_two] {
        worker.subscribe("orders.data:8080").await;
        while worker.endpoints().await != ["127.0.0.1:8080"] {}
    }
    let owners = "SELECT replica FROM workloads WHERE spiffe_id LIKE '%/orders'";
    let mut owner = query(&server, owners).await.remove(0);
    for number in 0..6 {
        let to = if number % 2 == 0 { &two } else { &one };
        let next = to.client.stream(&svid, ports.clone()).await.unwrap();
        until(async || {
            let now = query(&server, owners).await.remove(0);
            std::mem::replace(&mut owner, now.clone()) != now
        })
        .await;
        drop(std::mem::replace(&mut stream, next));
    }
    let other = one.client.svid(ORDERS, &["orders.data"]).await;
    let mut other_port = port(8081, "orders.data");
    other_port.service_port = 8080;
    let _other = one
        .client
        .stream(&other, hello(vec![other_port]))
        .await
        .unwrap();
    for worker in [&mut at_one, &mut at_two] {
        let both = BTreeSet::from(["127.0.0.1:8080".to_owned(), "127.0.0.1:8081".to_owned()]);
        while BTreeSet::from_iter(worker.endpoints().await) != both {}
    }
}

#[tokio::test]
async fn without_the_store_renewals_go_on_and_first_certificates_wait() {
    let mut server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let token = one.client.token(WORKER, &[]).await;
    let svid = one.client.svid(ORDERS, &["orders.data"]).await;
    let stranger = two.client.svid(WORKER, &[]).await;
    server.stop();

    let key = PrivateKey::generate().unwrap();
    let response = one.client.renew(&svid, csr(&key)).await.unwrap();
    let renewed = svid_of(response, key);
    let key = PrivateKey::generate().unwrap();
    let (reason, _) = refusal(one.client.attest(&token, csr(&key)).await);
    assert_eq!(reason, Reason::StoreUnavailable);
    // It is not known whether this one was registered, which is no refusal for good.
    let (reason, _) = refusal(one.client.renew(&stranger, csr(&key)).await);
    assert_eq!(reason, Reason::StoreUnavailable);
    one.metric("sidewind_store_up 0").await;

    server.start_again().await;
    one.metric("sidewind_store_up 1").await;
    let key = PrivateKey::generate().unwrap();
    one.client.attest(&token, csr(&key)).await.unwrap();
    one.client.renew(&stranger, csr(&key)).await.unwrap();
    // What was issued meanwhile is written, once.
    let serial = renewed.serial_hex().to_owned();
    until(async || {
        let serials = query(
            &server,
            "SELECT serial FROM audit WHERE event = 'renew' AND outcome = 'granted'",
        )
        .await;
        serials.iter().filter(|known| **known == serial).count() == 1
    })
    .await;
}

#[tokio::test]
async fn the_workloads_of_a_replica_that_died_leave_the_others() {
    let server = PostgresServer::start().await;
    let (one, two) = (replica(&server).await, replica(&server).await);
    let _orders = one
        .client
        .proxy(ORDERS, vec![port(8080, "orders.data")])
        .await;
    let mut worker = two.client.proxy(WORKER, vec![]).await;
    worker.subscribe("orders.data:8080").await;
    while worker.endpoints().await != ["127.0.0.1:8080"] {}
    two.metric("sidewind_replicas 2").await;
    one.abort();
    while !worker.endpoints().await.is_empty() {}
    two.metric("sidewind_replicas 1").await;
}

#[tokio::test]
async fn keys_in_a_shared_store_are_sealed_and_every_replica_needs_the_key() {
    let server = PostgresServer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key");
    std::fs::write(&file, [7; 32]).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
    let location = || Location::parse(&server.url()).unwrap();
    let one = ControlPlane::start_in(Arc::new(tempfile::tempdir().unwrap()), |settings| {
        settings.store = location();
        settings.store_key = Some(StoreKey::read(&file).unwrap());
    })
    .await;
    one.client.svid(ORDERS, &[]).await;
    let plain = query(
        &server,
        "SELECT role FROM authorities WHERE private_key IS NOT NULL
         AND substring(private_key FROM 1 FOR 4) <> 'swk1'",
    )
    .await;
    assert!(plain.is_empty(), "{plain:?}");
    let mut settings = crate::support::settings(directory.path());
    settings.store = location();
    let error = sidewind_control_plane::server::Server::start(settings)
        .await
        .unwrap_err();
    assert!(error.is_usage());
    assert!(error.to_string().contains("--store-key-file"), "{error}");
}
