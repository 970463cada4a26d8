//! The demo itself: what it claims must hold, and it must leave nothing behind.

use std::time::Duration;

use sidewind_tests::binaries::{directory, reachable};
use sidewind_tests::invocation::Finished;
use sidewind_tests::lan::Namespace;
use sidewind_tests::mesh::WORKLOAD_UID;
use sidewind_tests::place::Place;
use sidewind_tests::scratch::Scratch;

/// Runs it to its end, with a directory of its own for what it makes.
fn run(place: &Place, uid: Option<u32>, scratch: &Scratch) -> Finished {
    let own = scratch.directory("demo", uid);
    let demo = reachable(&directory().join("demo"), scratch);
    let binaries = sidewind_tests::binaries::Binaries::find(scratch);
    let demo = place
        .program(demo)
        .user(uid)
        .env("TMPDIR", &own)
        .env(
            "SIDEWIND_BIN_DIR",
            binaries.proxy.parent().expect("a directory"),
        )
        .timeout(Duration::from_secs(60));
    let finished = demo.finish();
    let left: Vec<_> = std::fs::read_dir(&own)
        .expect("a directory")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?} was left behind");
    finished
}

#[test]
fn the_demo_holds_in_network_namespaces_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let shown = run(&Place::Host, None, &scratch).success();
    assert!(shown.contains("in network namespaces"), "{shown}");
    assert!(
        shown.contains("all 14 claims held") && !shown.contains('✗'),
        "{shown}"
    );
    // Not a terminal: no colours.
    assert!(!shown.contains('\x1b'));
}

#[test]
fn the_demo_holds_without_root_on_loopback_addresses() {
    let (namespace, scratch) = (Namespace::new(), Scratch::new());
    let shown = run(&namespace.place(), Some(WORKLOAD_UID), &scratch).success();
    assert!(
        shown.contains("on loopback addresses") && shown.contains("not root"),
        "{shown}"
    );
    assert!(
        shown.contains("all 14 claims held") && !shown.contains('✗'),
        "{shown}"
    );
}

#[test]
fn a_demo_whose_claims_do_not_hold_says_so_and_fails() {
    let scratch = Scratch::new();
    let demo = reachable(&directory().join("demo"), &scratch);
    // No program of the mesh is there.
    let nothing = scratch.directory("nothing", None);
    let shown = Place::Host
        .program(demo)
        .arg("--loopback")
        .env("SIDEWIND_BIN_DIR", nothing)
        .finish();
    assert_eq!(shown.code(), Some(1));
    assert!(
        shown.out().contains('✗') && shown.out().contains("cargo build"),
        "{}",
        shown.out()
    );
}
