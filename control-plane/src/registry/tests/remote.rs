//! Workloads whose streams are at other replicas: how long they stay in discovery.

use super::*;
use crate::store::{ReplicaId, SharedWorkload};

const HOUR: Duration = Duration::from_secs(3600);

fn at(replica: &ReplicaId, record: &WorkloadRecord) -> SharedWorkload {
    SharedWorkload {
        spiffe_id: record.key.spiffe_id.to_string(),
        instance_id: record.key.instance_id.to_string(),
        replica: replica.clone(),
        change: 1,
        workload: Some(record.to_api()),
    }
}

fn replicas() -> [ReplicaId; 3] {
    ["own", "one", "two"].map(ReplicaId::named)
}

impl Mesh {
    fn hear(&self, own: &ReplicaId, changes: &[SharedWorkload]) {
        self.registry.take_remote(own, changes, &|_| true);
        self.registry.flush();
    }
}

#[tokio::test]
async fn workloads_of_a_silent_replica_stay_until_their_certificates_end() {
    let mesh = mesh().await;
    let client = mesh.client();
    let [own, one, two] = replicas();
    let mut short = record("short", "10.0.0.1", &[(8080, "orders.data")]);
    let mut long = record("long", "10.0.0.2", &[(8080, "orders.data")]);
    let mut lively = record("lively", "10.0.0.3", &[(8080, "orders.data")]);
    let now = SystemTime::now();
    short.svid_not_after = now + HOUR;
    long.svid_not_after = now + 2 * HOUR;
    lively.svid_not_after = now + HOUR;
    mesh.hear(
        &own,
        &[at(&one, &short), at(&one, &long), at(&two, &lively)],
    );
    let all = [
        "long@10.0.0.2:8080",
        "lively@10.0.0.3:8080",
        "short@10.0.0.1:8080",
    ];
    let sorted = |mut endpoints: Vec<String>| {
        endpoints.sort();
        endpoints
    };
    let expected = sorted(all.map(str::to_owned).to_vec());
    let found = client.ask("orders.data:8080");
    assert_eq!(sorted(endpoints(found.as_ref())), expected);

    mesh.registry.note_replica(&one, false);
    mesh.registry
        .forget_ended_remote(now + HOUR - Duration::from_secs(2));
    mesh.registry.flush();
    assert!(client.take().is_empty(), "nothing has changed for clients");
    let unconfirmed = || mesh.registry.metrics.unconfirmed_workloads.get();
    assert_eq!(unconfirmed(), 2);
    // Of a replica that is silent they go with their certificates, of one that is not they do not.
    mesh.registry
        .forget_ended_remote(now + HOUR + Duration::from_secs(1));
    mesh.registry.flush();
    assert_eq!(
        sorted(client.update()),
        ["lively@10.0.0.3:8080", "long@10.0.0.2:8080"]
    );
    mesh.registry.note_replica(&one, true);
    mesh.registry.forget_ended_remote(now + 9 * HOUR);
    mesh.registry.flush();
    assert!(client.take().is_empty());
    assert_eq!(unconfirmed(), 0);
}

#[tokio::test]
async fn a_workload_that_came_from_a_silent_replica_outlives_that_one() {
    let mesh = mesh().await;
    let client = mesh.client();
    let [own, one, two] = replicas();
    let orders = record("orders", "10.0.0.1", &[(8080, "orders.data")]);
    let other = record("other", "10.0.0.2", &[(8080, "orders.data")]);
    mesh.hear(&own, &[at(&one, &orders), at(&one, &other)]);
    client.ask("orders.data:8080");
    mesh.registry.note_replica(&one, false);
    mesh.hear(&own, &[at(&two, &orders)]);
    assert_eq!(mesh.registry.remote_replicas().len(), 2);
    mesh.registry.forget_replica(&one);
    mesh.registry.flush();
    assert_eq!(client.update(), ["orders@10.0.0.1:8080"]);
    assert_eq!(mesh.registry.remote_replicas(), HashSet::from([two]));
}
