//! Who is told what, when workloads, resources and bundles change.

use super::*;

#[tokio::test]
async fn a_stream_begins_with_bans_and_bundles_and_policy() {
    let mesh = mesh().await;
    let member = mesh.join(record("a", "10.0.0.1", &[]));
    let first = member.take();
    assert!(
        matches!(
            first[..],
            [Outgoing::Bans(_), Outgoing::Bundles(_), Outgoing::Policy(_)]
        ),
        "{first:?}"
    );
}

#[tokio::test]
async fn workloads_that_come_and_go_reach_those_who_asked_for_their_service() {
    let mesh = mesh().await;
    let client = mesh.client();
    assert_eq!(client.ask("orders.data:8080"), None);
    let one = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    assert_eq!(client.update(), ["one@10.0.0.1:8080"]);
    let two = mesh.join(record("two", "10.0.0.2", &[(8080, "orders.data")]));
    assert_eq!(client.update(), ["one@10.0.0.1:8080", "two@10.0.0.2:8080"]);
    mesh.leave(one);
    assert_eq!(client.update(), ["two@10.0.0.2:8080"]);
    mesh.leave(two);
    // Nobody is there, and it is a service of the mesh all the same: no plaintext to whoever answers.
    assert_eq!(client.update(), [""; 0]);
}

#[tokio::test]
async fn a_service_that_a_registration_lists_is_known_before_its_workloads_come() {
    let mesh = mesh().await;
    let client = mesh.client();
    assert_eq!(client.ask("orders.data:8080"), None);
    mesh.registry
        .learn_services(&registration("orders", &["orders.data"]));
    mesh.registry.flush();
    assert_eq!(client.update(), [""; 0]);
}

#[tokio::test]
async fn a_change_reaches_only_those_who_asked_for_what_it_touches() {
    let mesh = mesh().await;
    let (client, other) = (mesh.client(), mesh.join(record("other", "10.0.0.101", &[])));
    other.take();
    client.ask("orders.data:8080");
    other.ask("10.0.0.7:80");
    let _one = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    assert_eq!(client.answers().len(), 1);
    assert!(other.take().is_empty());
    client
        .connected
        .unsubscribe(&client.query("orders.data:8080"));
    let _two = mesh.join(record("two", "10.0.0.2", &[(8080, "orders.data")]));
    assert!(client.take().is_empty());
}

#[tokio::test]
async fn a_stream_that_reads_slowly_gets_the_newest_state_once() {
    let mesh = mesh().await;
    let client = mesh.client();
    client.ask("orders.data:8080");
    for number in 1..=50 {
        let name = format!("w{number}");
        let address = format!("10.0.1.{number}");
        let member = mesh.join(record(&name, &address, &[(8080, "orders.data")]));
        mesh.leave(member);
    }
    let _last = mesh.join(record("last", "10.0.0.1", &[(8080, "orders.data")]));
    assert_eq!(client.update(), ["last@10.0.0.1:8080"]);
}

#[tokio::test]
async fn a_stream_of_the_same_process_replaces_the_old_one_without_a_gap() {
    let mesh = mesh().await;
    let client = mesh.client();
    let old = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    client.ask("orders.data:8080");
    old.take();
    let _new = mesh.join(record("one", "10.0.0.1", &[(8080, "orders.data")]));
    assert_eq!(
        old.take().first(),
        Some(&Outgoing::End(EndReason::Replaced))
    );
    mesh.leave(old);
    assert!(client.take().is_empty());
    assert_eq!(mesh.registry.workloads().len(), 2);
}

#[tokio::test]
async fn nobody_replaces_another_by_taking_the_name_of_its_process() {
    let mesh = mesh().await;
    let victim = mesh.join(record("victim", "10.0.0.1", &[(8080, "orders.data")]));
    victim.take();
    let mut same = hello("victim", &[]);
    same.workload_name = "thief".to_owned();
    let _thief = mesh.join(checked(&same, "thief", "10.0.0.2").unwrap().0);
    assert!(victim.take().is_empty());
    assert_eq!(mesh.registry.workloads().len(), 2);
}

const POLICY: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: a, namespace: data }
spec:
  selector: { spiffeIds: ["spiffe://example.org/ns/data/sa/a"] }
  rules: [{ from: [{ spiffeIds: ["spiffe://example.org/ns/data/sa/b"] }] }]
"#;

#[tokio::test]
async fn a_changed_policy_goes_to_those_whom_it_changes() {
    let mesh = mesh().await;
    let (a, b) = (
        mesh.join(record("a", "10.0.0.1", &[])),
        mesh.join(record("b", "10.0.0.2", &[])),
    );
    let policy = |outgoing: &[Outgoing]| match outgoing {
        [.., Outgoing::Policy(policy)] => Arc::clone(policy),
        other => panic!("{other:?} ends with no policy"),
    };
    let (before, _) = (policy(&a.take()), policy(&b.take()));
    assert!(!before.default_deny);
    mesh.configure(POLICY);
    let after = policy(&a.take());
    assert!(after.default_deny && after.version > before.version);
    assert_eq!(after.rules.len(), 1);
    assert!(b.take().is_empty());
    mesh.configure("");
    assert!(!policy(&a.take()).default_deny);
}

#[tokio::test]
async fn new_bundles_go_to_every_stream() {
    let mesh = mesh().await;
    let member = mesh.client();
    let bundles = vec![v1::TrustBundle::default()];
    mesh.registry.set_bundles(v1::TrustBundles { bundles });
    assert!(matches!(member.take()[..], [Outgoing::Bundles(_)]));
}

#[tokio::test]
async fn closing_ends_every_stream_and_forgets_no_workload() {
    let mesh = mesh().await;
    let member = mesh.client();
    mesh.registry.close();
    assert_eq!(member.take(), [Outgoing::End(EndReason::ShuttingDown)]);
    drop(member);
    assert_eq!(mesh.registry.workloads().len(), 1);
}
