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
async fn workloads_of_a_silent_replica_stay_until_their_proxies_would_have_come_to_another() {
    let mesh = mesh().await;
    let client = mesh.client();
    let [own, one, two] = replicas();
    let mut short = record("short", "10.0.0.1", &[(8080, "orders.data")]);
    let mut long = record("long", "10.0.0.2", &[(8080, "orders.data")]);
    let mut lively = record("lively", "10.0.0.3", &[(8080, "orders.data")]);
    let now = SystemTime::now();
    for (record, life) in [
        (&mut short, HOUR),
        (&mut long, 2 * HOUR),
        (&mut lively, HOUR),
    ] {
        record.connected_since = now;
        record.svid_not_after = now + life;
    }
    let forget = |at: SystemTime, silent: Option<&ReplicaId>| {
        let is_silent = |replica: &ReplicaId| silent == Some(replica);
        mesh.registry.forget_missing_remote(at, &is_silent);
        mesh.registry.flush();
    };
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
    // Long after the last live proxy has renewed.
    forget(now + HOUR / 2 - Duration::from_secs(2), Some(&one));
    assert!(client.take().is_empty(), "nothing has changed for clients");
    let unconfirmed = || mesh.registry.metrics.unconfirmed_workloads.get();
    assert_eq!(unconfirmed(), 2);
    // Of a replica that is silent they go in the middle of their certificates' life, of one that is not they do not.
    forget(now + HOUR / 2 + Duration::from_secs(2), Some(&one));
    assert_eq!(
        sorted(client.update()),
        ["lively@10.0.0.3:8080", "long@10.0.0.2:8080"]
    );
    mesh.registry.note_replica(&one, true);
    forget(now + 9 * HOUR, None);
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
