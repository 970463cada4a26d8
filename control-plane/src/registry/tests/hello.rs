//! What is believed of what a proxy says.

use super::*;

#[test]
fn a_hello_is_checked_before_it_is_believed() {
    type Change = fn(&mut v1::ProxyHello);
    let table: [(Change, &str); 13] = [
        (
            |hello| hello.instance_id.clear(),
            "instance_id must be of 1 to 253",
        ),
        (
            |hello| hello.instance_id = "a\nb".to_owned(),
            "instance_id must be of 1 to 253",
        ),
        (
            |hello| hello.instance_id = "x".repeat(254),
            "instance_id must be of 1 to 253",
        ),
        (
            |hello| hello.version = "x".repeat(254),
            "version must be of 1 to 253",
        ),
        (
            |hello| hello.workload_name = "x".repeat(254),
            "workload_name must be of 1 to 253",
        ),
        (
            |hello| hello.version = "\u{e9}".to_owned(),
            "version must be of 1 to 253",
        ),
        (
            |hello| hello.mesh_port = 0,
            "mesh_port must be a port from 1 to 65535, not 0",
        ),
        (
            |hello| hello.mesh_port = 65_536,
            "mesh_port must be a port from 1 to 65535, not 65536",
        ),
        (
            |hello| hello.ports[0].target_port = 0,
            "target_port must be a port",
        ),
        (
            |hello| hello.ports[0].service_port = 70_000,
            "service_port must be a port",
        ),
        (
            |hello| hello.ports = vec![hello.ports[0].clone(); 2],
            "port 8080 is declared twice",
        ),
        (
            |hello| hello.ports = vec![hello.ports[0].clone(); 257],
            "at most 256 ports",
        ),
        (
            |hello| hello.address = "host".to_owned(),
            "address \"host\" is not the IP address",
        ),
    ];
    checked(&hello("a", &[(8080, "")]), "a", "10.0.0.1").unwrap();
    let longest = v1::ProxyHello {
        instance_id: "x".repeat(253),
        workload_name: "x".repeat(253),
        version: "x".repeat(253),
        ..hello("a", &(1..=256).map(|port| (port, "")).collect::<Vec<_>>())
    };
    checked(&longest, "a", "10.0.0.1").unwrap();
    for (change, expected) in table {
        let mut bad = hello("a", &[(8080, "")]);
        change(&mut bad);
        let error = checked(&bad, "a", "10.0.0.1").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_proxy_registers_the_address_that_it_connects_from_alone() {
    let mut hello = hello("a", &[]);
    let mut address = |given: &str, peer: &str| {
        hello.address = given.to_owned();
        checked(&hello, "a", peer).map(|(record, _)| record.address.to_string())
    };
    let taken = [
        ("", "10.0.0.1", "10.0.0.1"),
        ("", "::ffff:10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("127.0.0.9", "127.0.0.1", "127.0.0.9"),
        ("::1", "127.0.0.1", "::1"),
        ("fd00:0::1", "fd00::1", "fd00::1"),
    ];
    for (given, peer, registered) in taken {
        assert_eq!(address(given, peer).unwrap(), registered);
    }
    for (given, peer) in [
        ("10.0.0.2", "10.0.0.1"),
        ("127.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1"),
    ] {
        let error = address(given, peer).unwrap_err();
        assert_eq!(
            error.reason(),
            sidewind_api::Reason::AddressRefused,
            "{given} from {peer}"
        );
    }
    for given in ["0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
        let error = address(given, "10.0.0.1").unwrap_err();
        assert_eq!(error.reason(), sidewind_api::Reason::InvalidMessage);
    }
}

#[test]
fn a_service_that_is_not_listed_is_refused_and_the_rest_is_registered() {
    let hello = hello("a", &[(8080, "orders.data"), (9090, "billing.data")]);
    let (record, refused) = checked(&hello, "a", "10.0.0.1").unwrap();
    assert_eq!(record.ports.len(), 2);
    assert_eq!(record.services().count(), 1);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].contains("\"billing.data\"") && refused[0].contains("--service"));
}

#[test]
fn a_workload_is_stored_and_read_back_unconfirmed() {
    let mut record = record("a", "10.0.0.1", &[(8080, "orders.data"), (9090, "")]);
    // The store counts in seconds.
    record.connected_since = crate::store::from_unix_seconds(1_000_000);
    record.svid_not_after = crate::store::from_unix_seconds(2_000_000);
    record.gateway = true;
    let read = WorkloadRecord::from_api(&record.to_api()).unwrap();
    record.confirmed = false;
    assert_eq!(read, record);
}
