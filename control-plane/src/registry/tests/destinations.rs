//! Which service and endpoints a destination stands for.

use super::*;

#[tokio::test]
async fn the_address_of_a_workload_is_a_mesh_endpoint_on_every_port() {
    let mesh = mesh().await;
    let client = mesh.client();
    let _one = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    let declared = client.ask("10.0.0.1:8080").unwrap();
    assert_eq!(
        (declared.name.as_str(), declared.protocol()),
        ("orders.data", v1::Protocol::Http)
    );
    let other = client.ask("10.0.0.1:9999").unwrap();
    assert_eq!((other.name.as_str(), other.port), ("10.0.0.1", 9999));
    assert_eq!(endpoints(Some(&other)), ["one@10.0.0.1:9999"]);
    assert_eq!(other.endpoints[0].mesh_port, 15008);
    assert_eq!(client.ask("10.0.0.2:8080"), None);
}

#[tokio::test]
async fn on_loopback_only_declared_ports_are_mesh_endpoints() {
    let mesh = mesh().await;
    let client = mesh.client();
    let _one = mesh.join(record("one", "127.0.0.1", &[(8080, "orders.data")]));
    let _two = mesh.join(record("two", "127.0.0.1", &[(8081, "")]));
    assert_eq!(
        endpoints(client.ask("127.0.0.1:8080").as_ref()),
        ["one@127.0.0.1:8080"]
    );
    assert_eq!(
        endpoints(client.ask("127.0.0.1:8081").as_ref()),
        ["two@127.0.0.1:8081"]
    );
    assert_eq!(client.ask("127.0.0.1:5432"), None);
}

#[tokio::test]
async fn an_address_that_was_given_to_another_is_the_newer_ones() {
    let mesh = mesh().await;
    let client = mesh.client();
    let _stale = mesh.join(record("stale", "10.0.0.1", &[(8080, "orders.data")]));
    let _fresh = mesh.join(record("fresh", "10.0.0.1", &[(8080, "orders.data")]));
    assert_eq!(
        endpoints(client.ask("10.0.0.1:8080").as_ref()),
        ["fresh@10.0.0.1:8080"]
    );
    assert_eq!(
        endpoints(client.ask("orders.data:8080").as_ref()),
        ["fresh@10.0.0.1:8080"]
    );
}

#[tokio::test]
async fn the_address_of_a_gateway_is_outside_the_mesh_and_takes_none_from_a_workload() {
    let gateway = |name: &str, address: &str| WorkloadRecord {
        gateway: true,
        ..record(name, address, &[(8080, "orders.data")])
    };
    let mesh = mesh().await;
    tokio::time::pause();
    let client = mesh.client();
    let web = mesh.join(gateway("web", "10.0.0.1"));
    assert_eq!(client.ask("10.0.0.1:8443"), None);
    assert_eq!(client.ask("orders.data:8080"), None);
    let _beside = mesh.join(record("beside", "10.0.0.2", &[(8080, "orders.data")]));
    let _also = mesh.join(gateway("also", "10.0.0.2"));
    client.take();
    assert_eq!(
        endpoints(client.ask("10.0.0.2:8080").as_ref()),
        ["beside@10.0.0.2:8080"]
    );
    client.take();
    // Nor is it held for a while after the gateway has left, as a workload's is.
    mesh.leave(web);
    mesh.registry.flush();
    assert!(client.take().is_empty());
    assert_eq!(client.ask("10.0.0.1:9443"), None);
}

#[tokio::test]
async fn the_address_of_a_workload_that_left_stays_one_of_the_mesh_for_a_minute() {
    let mesh = mesh().await;
    // Not before: a paused clock runs ahead while the store is opened.
    tokio::time::pause();
    let client = mesh.client();
    let one = mesh.join(record("one", "10.0.0.1", &[(8080, "")]));
    client.ask("10.0.0.1:8080");
    mesh.leave(one);
    assert_eq!(client.update(), [""; 0]);
    tokio::time::advance(Duration::from_secs(59)).await;
    mesh.registry.sweep();
    mesh.registry.flush();
    assert!(client.take().is_empty());
    tokio::time::advance(Duration::from_secs(2)).await;
    mesh.registry.sweep();
    mesh.registry.flush();
    assert_eq!(client.answers(), [None]);
}

#[tokio::test]
async fn after_a_restart_workloads_are_served_until_it_is_clear_that_they_are_gone() {
    let ports = &[(8080, "orders.data")];
    let known = ["back", "gone"].map(|name| record(name, "10.0.0.1", ports));
    let [back, mut gone] = known;
    gone.address = "10.0.0.2".parse().unwrap();
    let stored = |record: &WorkloadRecord| WorkloadRecord::from_api(&record.to_api()).unwrap();
    let mesh = mesh_after_restart(vec![stored(&back), stored(&gone)]).await;
    tokio::time::pause();
    let client = mesh.client();
    let both = ["back@10.0.0.1:8080", "gone@10.0.0.2:8080"];
    assert_eq!(endpoints(client.ask("orders.data:8080").as_ref()), both);
    let _back = mesh.join(back);
    assert!(client.take().is_empty());
    tokio::time::advance(CONFIRMATION_TIME + Duration::from_secs(1)).await;
    mesh.registry.sweep();
    mesh.registry.flush();
    assert_eq!(client.update(), ["back@10.0.0.1:8080"]);
}

#[tokio::test]
async fn a_host_of_one_label_is_a_service_of_the_callers_own_namespace() {
    let mesh = mesh().await;
    let client = mesh.client();
    let _one = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    for host in [
        "orders",
        "orders.data",
        "orders.data.svc",
        "orders.data.svc.cluster.local",
    ] {
        let answer = client.ask(&format!("{host}:8080"));
        assert_eq!(endpoints(answer.as_ref()), ["one@10.0.0.1:8080"], "{host}");
    }
    assert_eq!(client.ask("orders.other:8080"), None);
    // The service is known, this port of it is not.
    assert_eq!(endpoints(client.ask("orders.data:9090").as_ref()), [""; 0]);
}

const ENTRIES: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders }
spec:
  hosts: [shop.example]
  addresses: [10.96.0.10]
  ports: [{port: 80, protocol: grpc, targetPort: 8080}]
  service: orders.data
---
apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: db }
spec:
  hosts: [db.example]
  ports: [{port: 5432, protocol: tcp}]
  endpoints: [{address: 10.0.0.1, port: 5433}, {address: 192.0.2.1}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ group: "", kind: Service, name: orders }]
  rules: [{ timeouts: { request: 3s } }]
"#;

#[tokio::test]
async fn an_entry_names_a_service_of_the_mesh_by_host_and_address() {
    let mesh = mesh().await;
    let client = mesh.client();
    assert_eq!(client.ask("shop.example:80"), None);
    mesh.configure(ENTRIES);
    assert_eq!(client.update(), [""; 0]);
    let _one = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    assert_eq!(client.update(), ["one@10.0.0.1:8080"]);
    let by_address = client.ask("10.96.0.10:80").unwrap();
    assert_eq!(
        (by_address.name.as_str(), by_address.protocol()),
        ("orders.data", v1::Protocol::Grpc)
    );
    let route = by_address.route.as_ref().unwrap();
    assert_eq!(route.request_timeout_ms, Some(3000));
    assert_eq!(client.ask("shop.example:81"), None);
}

#[tokio::test]
async fn a_fixed_endpoint_is_in_the_mesh_while_a_workload_stands_there() {
    let mesh = mesh().await;
    mesh.configure(ENTRIES);
    let client = mesh.client();
    let answer = client.ask("db.example:5432").unwrap();
    assert_eq!(answer.name, "db.example");
    assert_eq!(
        endpoints(Some(&answer)),
        ["10.0.0.1:5433", "192.0.2.1:5432"]
    );
    let one = mesh.join(record("one", "10.0.0.1", &[(5433, "")]));
    assert_eq!(client.update(), ["one@10.0.0.1:5433", "192.0.2.1:5432"]);
    mesh.leave(one);
    assert_eq!(client.update(), ["192.0.2.1:5432"]);
}

#[tokio::test]
async fn a_fixed_endpoint_has_the_same_name_in_cookies_at_every_replica() {
    let names = async |root: &[u8]| {
        let mesh = mesh().await;
        mesh.registry.set_bundles(v1::TrustBundles {
            bundles: vec![v1::TrustBundle {
                authorities: vec![root.to_vec(), b"the next one".to_vec()],
                ..v1::TrustBundle::default()
            }],
        });
        mesh.configure(ENTRIES);
        let answer = mesh.client().ask("db.example:5432").unwrap();
        let names = answer.endpoints.iter().map(|it| it.affinity.clone());
        names.collect::<Vec<_>>()
    };
    let first = names(b"a root").await;
    assert!(first.iter().all(|name| name.len() == 16), "{first:?}");
    assert_ne!(first[0], first[1]);
    assert_eq!(names(b"a root").await, first);
    assert_ne!(names(b"another").await[0], first[0]);
}
