//! The disk of the control plane's state is full: what needs it says so, what does not goes on, and nothing is lost.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::Pair;

/// What takes up the last byte of a disk, until it is dropped.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(directory: &Path) -> Self {
        let path = directory.join("ballast");
        let mut file = std::fs::File::create(&path).expect("a file");
        let mut piece = vec![0; 1 << 20];
        // Large pieces first, and then each byte that is left.
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(written) if written > 0 => {}
                _ => piece.truncate(piece.len() / 2),
            }
        }
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn plan() -> Pair {
    Pair::with(Mesh::plan().flag("--svid-ttl", "60s").state_disk(24 << 20))
}

/// `sidewind` at the control plane.
fn run(pair: &Pair, arguments: &[&str]) -> sidewind_tests::invocation::Finished {
    let control_plane = &pair.mesh.control_plane;
    let command = control_plane.command().args(arguments).arg("--state-dir");
    command.arg(control_plane.state()).finish()
}

#[test]
fn a_full_disk_stops_first_certificates_with_a_reason_and_no_renewal_and_loses_nothing() {
    let mut pair = plan();
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    let expiry = pair.task.sidecar.certificate_expiry();
    let ballast = Ballast::fill(pair.mesh.control_plane.state());

    let refused = run(
        &pair,
        &[
            "token",
            "create",
            "--spiffe-id",
            "spiffe://sidewind.local/x",
        ],
    );
    assert!(refused.failure().contains("store"), "{}", refused.err());
    pair.task
        .sidecar
        .wait_for_rotation(expiry, Duration::from_secs(40));
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    assert!(pair.mesh.control_plane.is_ready());
    // The records of it could not be written yet, and that is said.
    eventually("it is said", PATIENCE, || {
        let failures = pair.mesh.control_plane.metrics();
        (failures.value("sidewind_store_failures_total")? > 0.0).then_some(())
    });
    let log = pair.mesh.control_plane.log();
    assert!(log.contains("database or disk is full"), "{log}");

    drop(ballast);
    eventually("tokens are made again", PATIENCE, || {
        let create = [
            "token",
            "create",
            "--spiffe-id",
            "spiffe://sidewind.local/x",
        ];
        run(&pair, &create).status.success().then_some(())
    });
    let late = pair.mesh.workload("airflow", "late").start();
    let orders = "http://orders-api.data:8080/orders";
    late.curl(&[orders]).finish().success();
    // The renewals of the time between are in the audit, and its chain holds.
    eventually("the audit has the renewals", PATIENCE, || {
        let listed = run(&pair, &["audit", "-o", "json"]).success();
        (listed.matches("\"renew\"").count() >= 2).then_some(())
    });
    run(&pair, &["audit", "--verify"]).success();
    let lost = pair.mesh.control_plane.metrics();
    assert_eq!(lost.value("sidewind_store_writes_lost_total"), Some(0.0));
}

#[test]
fn a_control_plane_that_starts_on_a_full_disk_says_so_and_its_root_stays() {
    let mut pair = plan();
    let root = pair.mesh.control_plane.trust_bundle();
    pair.mesh.control_plane.kill();
    let ballast = Ballast::fill(pair.mesh.control_plane.state());
    let state = pair.mesh.control_plane.state().to_owned();
    let serve = pair
        .mesh
        .control_plane
        .command()
        .arg("serve")
        .arg("--state-dir");
    let mut process = serve.arg(&state).start("full", &pair.mesh.scratch);
    let status = process.wait(PATIENCE);
    let said = process.errors();
    assert!(!status.success(), "{said}");
    assert!(
        said.contains("error: ") && (said.contains("full") || said.contains("space")),
        "{said}"
    );
    assert_eq!(pair.mesh.control_plane.trust_bundle(), root);

    drop(ballast);
    let scratch = &pair.mesh.scratch;
    pair.mesh.control_plane.start(scratch);
    assert_eq!(pair.mesh.control_plane.trust_bundle(), root);
    eventually("traffic goes on", PATIENCE, || {
        (pair.ask("/orders", &[]).status == 200).then_some(())
    });
}
