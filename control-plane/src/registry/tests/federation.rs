//! Which streams get the bundles of foreign trust domains.

use super::*;
use sidewind_identity::TrustDomain;
use std::collections::BTreeMap;

const PARTNER: &str = "
apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: { name: partner }
spec: { trustDomain: partner.example, url: 'https://partner.example', profile: https_web }
";

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn bundle(name: &str, sequence: u64) -> v1::TrustBundle {
    v1::TrustBundle {
        trust_domain: name.to_owned(),
        sequence,
        ..v1::TrustBundle::default()
    }
}

fn own(sequence: u64) -> v1::TrustBundles {
    v1::TrustBundles {
        bundles: vec![bundle("example.org", sequence)],
    }
}

fn federated(bundles: &[(&str, u64)]) -> BTreeMap<TrustDomain, v1::TrustBundle> {
    let bundle = |(name, sequence): &(&str, u64)| (domain(name), bundle(name, *sequence));
    bundles.iter().map(bundle).collect()
}

impl Member {
    fn federates_with(&self, names: &[&str]) {
        let registration = Registration {
            federates_with: names.iter().map(|name| domain(name)).collect(),
            ..Registration::new(self.id.clone(), "join-token")
        };
        self.connected.register(Arc::new(registration));
    }

    /// Name and sequence of each bundle that was put into the outbox last; nothing where none was.
    fn bundles(&self) -> Vec<(String, u64)> {
        let bundles = self
            .take()
            .into_iter()
            .filter_map(|outgoing| match outgoing {
                Outgoing::Bundles(bundles) => Some(bundles),
                _ => None,
            });
        let last = bundles.last().map(|bundles| bundles.bundles.clone());
        let last = last.unwrap_or_default().into_iter();
        last.map(|it| (it.trust_domain, it.sequence)).collect()
    }
}

fn expected(bundles: &[(&str, u64)]) -> Vec<(String, u64)> {
    let owned = bundles
        .iter()
        .map(|(name, sequence)| ((*name).to_owned(), *sequence));
    owned.collect()
}

#[tokio::test]
async fn foreign_bundles_go_to_those_who_federate_and_are_withdrawn_with_the_relation() {
    let mesh = mesh().await;
    mesh.configure(PARTNER);
    mesh.registry.set_bundles(own(1));
    let (friend, stranger) = (
        mesh.join(record("friend", "10.0.0.1", &[])),
        mesh.join(record("stranger", "10.0.0.2", &[])),
    );
    friend.federates_with(&["partner.example", "other.example"]);
    stranger.federates_with(&[]);
    assert_eq!(friend.bundles(), expected(&[("example.org", 1)]));
    assert_eq!(stranger.bundles(), expected(&[("example.org", 1)]));

    let fetched = [("other.example", 3), ("partner.example", 7)];
    mesh.registry.set_federated(federated(&fetched));
    let both = expected(&[("example.org", 1), ("partner.example", 7)]);
    assert_eq!(friend.bundles(), both, "what is not configured is not sent");
    assert_eq!(stranger.bundles(), []);
    assert_eq!(
        mesh.registry
            .federated_workloads(&domain("partner.example")),
        1
    );
    assert_eq!(
        mesh.registry.federated_workloads(&domain("other.example")),
        0
    );

    // The same again is no news.
    mesh.registry.set_federated(federated(&fetched));
    mesh.registry.set_bundles(own(1));
    assert_eq!(friend.bundles(), []);
    // Rotating the own roots takes the foreign ones along.
    mesh.registry.set_bundles(own(2));
    let both = expected(&[("example.org", 2), ("partner.example", 7)]);
    assert_eq!(friend.bundles(), both);
    assert_eq!(stranger.bundles(), expected(&[("example.org", 2)]));

    mesh.configure("");
    assert_eq!(friend.bundles(), expected(&[("example.org", 2)]));
    assert_eq!(stranger.bundles(), []);
}

#[tokio::test]
async fn the_document_of_now_says_which_bundles_a_workload_gets() {
    let mesh = mesh().await;
    let document = |federates: &str| {
        format!(
            "{PARTNER}---
apiVersion: sidewind.dev/v1alpha1
kind: AttestorConfig
metadata: {{ name: here }}
spec: {{ kubernetes: [{{ cluster: here, inCluster: true }}] }}
---
apiVersion: sidewind.dev/v1alpha1
kind: Registration
metadata: {{ name: orders, namespace: data }}
spec:
  selectors: {{ kubernetes: {{ namespace: data }} }}
  spiffeId: spiffe://example.org/ns/data/sa/orders
{federates}"
        )
    };
    mesh.registry.set_bundles(own(1));
    mesh.registry
        .set_federated(federated(&[("partner.example", 7)]));
    let orders = mesh.join(record("orders", "10.0.0.1", &[]));
    // As it was attested, before the document was changed.
    let registration = Registration {
        document: Some("data/orders".to_owned()),
        ..Registration::new(orders.id.clone(), "kubernetes")
    };
    orders.connected.register(Arc::new(registration.clone()));
    orders.take();
    mesh.configure(&document("  federatesWith: [partner.example]\n"));
    let both = expected(&[("example.org", 1), ("partner.example", 7)]);
    assert_eq!(orders.bundles(), both);
    let given = mesh.registry.federated_for(&registration);
    assert_eq!(given.len(), 1, "what its next certificate comes with");
    mesh.configure(&document(""));
    assert_eq!(orders.bundles(), expected(&[("example.org", 1)]));
    assert!(mesh.registry.federated_for(&registration).is_empty());
}

#[tokio::test]
async fn an_endpoint_of_another_mesh_is_called_as_the_entry_says() {
    let mesh = mesh().await;
    mesh.configure(
        "
apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: prices }
spec:
  hosts: [prices.partner.example]
  ports: [{ port: 80, targetPort: 8080 }]
  endpoints:
    - { address: 10.0.0.9, spiffeId: 'spiffe://partner.example/prices', meshPort: 15009 }
    - { address: 10.0.0.10, port: 81, spiffeId: 'spiffe://partner.example/prices' }
    - { address: 10.0.0.11 }
",
    );
    let client = mesh.client();
    let service = client.ask("prices.partner.example:80").unwrap();
    let endpoints: Vec<_> = service
        .endpoints
        .iter()
        .map(|it| {
            (
                it.address.as_str(),
                it.port,
                it.mesh_port,
                it.spiffe_id.as_str(),
            )
        })
        .collect();
    let prices = "spiffe://partner.example/prices";
    assert_eq!(
        endpoints,
        [
            ("10.0.0.9", 8080, 15009, prices),
            ("10.0.0.10", 81, 15008, prices),
            ("10.0.0.11", 8080, 0, "")
        ]
    );
}
