//! Who has what by now.

use super::*;
use crate::registry::acknowledgements::Acknowledged;
use sidewind_identity::TrustDomain;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn acknowledge(member: &Member, sequence: u64, bans_version: u64) {
    let message = v1::Acknowledge {
        bundles: vec![v1::BundleSequence {
            trust_domain: "example.org".to_owned(),
            sequence,
        }],
        bans_version,
        svid_serial: "0a".to_owned(),
    };
    member.connected.acknowledge(Acknowledged::read(&message));
}

impl Mesh {
    /// Workload names of those that are behind.
    fn laggards(&self, sequence: u64) -> Vec<String> {
        let laggards = self.registry.laggards(&trust_domain(), sequence);
        laggards.into_iter().map(|it| it.workload_name).collect()
    }
}

#[tokio::test]
async fn a_live_proxy_is_behind_until_it_says_otherwise_and_one_that_left_is_not() {
    let mesh = mesh().await;
    let one = mesh.join(record("one", "10.0.0.1", &[]));
    let two = mesh.join(record("two", "10.0.0.2", &[]));
    assert_eq!(mesh.laggards(1), ["one-1", "two-1"]);
    acknowledge(&one, 2, 0);
    assert_eq!(mesh.laggards(2), ["two-1"]);
    assert_eq!(mesh.laggards(3), ["one-1", "two-1"]);
    mesh.leave(two);
    assert_eq!(mesh.laggards(2), [""; 0]);
    // A new stream has said nothing yet.
    let _again = mesh.join(record("one", "10.0.0.1", &[]));
    assert_eq!(mesh.laggards(2), ["one-1"]);
    drop(one);
    assert_eq!(
        mesh.laggards(2),
        ["one-1"],
        "the replaced stream's end is not the new one's"
    );
    assert_eq!(mesh.registry.latest_acknowledged(&trust_domain(), 9), None);
}

#[tokio::test]
async fn a_workload_that_is_awaited_after_a_restart_is_behind() {
    let mesh = mesh_after_restart(vec![record("one", "10.0.0.1", &[])]).await;
    assert_eq!(mesh.laggards(1), ["one-1"]);
    let one = mesh.join(record("one", "10.0.0.1", &[]));
    acknowledge(&one, 1, 0);
    assert_eq!(mesh.laggards(1), [""; 0]);
    assert_eq!(
        mesh.registry.latest_acknowledged(&trust_domain(), 9),
        Some(1)
    );
}

#[tokio::test]
async fn what_a_proxy_said_is_kept_by_workload_and_by_the_issuer_of_its_certificate() {
    let mesh = mesh().await;
    let record = record("one", "10.0.0.1", &[]);
    let key = record.key.clone();
    let one = mesh.join(record);
    let identity = PeerIdentity {
        id: key.spiffe_id.clone(),
        not_after: SystemTime::now(),
        serial_hex: "0b".to_owned(),
        issuer_key_id: "aa".to_owned(),
        certificate_sha256: [0; 32],
        subject: String::new(),
    };
    one.connected.present(&identity);
    let said = || mesh.registry.acknowledged(&key).unwrap();
    assert_eq!(said().svid_serial, "0b");
    acknowledge(&one, 7, 3);
    assert_eq!(
        (said().svid_serial.as_str(), said().bans_version),
        ("0a", 3)
    );
    assert_eq!(said().bundles[&trust_domain()], 7);
    let using = |ids: &[&str]| {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        mesh.registry.using(&ids).len()
    };
    assert_eq!(
        (using(&["aa", "bb"]), using(&["bb"]), using(&[])),
        (1, 0, 0)
    );
    let without = |version| mesh.registry.without_bans(version).len();
    assert_eq!((without(3), without(4)), (0, 1));
}

#[test]
fn what_cannot_be_read_of_an_acknowledgement_is_left_out() {
    let bundle = |trust_domain: &str| v1::BundleSequence {
        trust_domain: trust_domain.to_owned(),
        sequence: 1,
    };
    let mut bundles = vec![bundle("Not A Name"), bundle("example.org")];
    bundles.extend((0..1000).map(|number| bundle(&format!("td-{number}"))));
    let read = Acknowledged::read(&v1::Acknowledge {
        bundles,
        bans_version: 0,
        svid_serial: "no serial\n".to_owned(),
    });
    assert_eq!(read.bundles.len(), 255);
    assert_eq!(read.svid_serial, "");
}

#[tokio::test]
async fn tainted_authorities_reach_every_stream_and_those_that_come_later() {
    let mesh = mesh().await;
    let before = mesh.client();
    let tainted = v1::TaintedAuthorities {
        subject_key_ids: vec!["aa".to_owned()],
    };
    mesh.registry.set_tainted(tainted.clone());
    mesh.registry.set_tainted(tainted.clone());
    let expected = Outgoing::Tainted(Arc::new(tainted));
    assert_eq!(before.take(), std::slice::from_ref(&expected));
    let after = mesh.join(record("after", "10.0.0.2", &[]));
    assert!(after.take().contains(&expected));
    mesh.registry.set_tainted(v1::TaintedAuthorities::default());
    assert_eq!(after.take(), [Outgoing::Tainted(Arc::default())]);
}
