//! The control plane away, and back.

use std::time::{Duration, SystemTime};

use http::Request;
use sidewind_tests::authority::TestAuthority;
use sidewind_tests::load::Load;
use sidewind_tests::mesh::{MESH_PORT, Mesh, Sidecar};
use sidewind_tests::peer::Peer;
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::{API_ID, Pair, TASK_ID, allow};

/// Certificates of the shortest life: renewed after 15 to 20 s.
fn short_lived() -> Pair {
    Pair::with(
        Mesh::plan()
            .flag("--svid-ttl", "60s")
            .config("policy.yaml", &allow(API_ID, &[TASK_ID], "")),
    )
}

fn connected(pair: &Pair) -> Option<f64> {
    pair.task
        .sidecar
        .metrics()
        .value("sidewind_control_plane_connected")
}

/// Certificates that the control plane has issued since it started.
fn issued(pair: &Pair, call: &str) -> f64 {
    let metrics = pair.mesh.control_plane.metrics();
    metrics.sum("sidewind_svids_issued_total", &[("call", call)])
}

/// What holds for a sidecar whose control plane is away, also when the time of a renewal has passed.
#[track_caller]
fn goes_on_without(pair: &Pair, expiry: f64) {
    eventually("the sidecar notices", PATIENCE, || {
        (connected(pair) == Some(0.0)).then_some(())
    });
    // The time of a renewal passes with nobody to renew.
    eventually("renewals fail", Duration::from_secs(40), || {
        let remaining = pair
            .task
            .sidecar
            .metrics()
            .value("sidewind_certificate_remaining_seconds");
        remaining.filter(|seconds| *seconds < 35.0)
    });
    assert_eq!(pair.task.sidecar.certificate_expiry(), expiry);
    let ready = pair.task.sidecar.get("/ready");
    assert_eq!(ready.status, 200, "a sidecar that can serve is ready");
    assert!(
        ready.text().contains("control_plane"),
        "and says what is missing: {}",
        ready.text()
    );
    assert_eq!(pair.ask("/orders", &[]).status, 200);
}

#[test]
fn traffic_outlives_the_control_plane_and_renewals_resume_on_the_same_state() {
    let mut pair = short_lived();
    let load = Load::new(pair.api.at(8080), "/orders")
        .rate(100)
        .start(&pair.task.place);
    // What a sidecar has not been told of while the control plane was there, it cannot know.
    eventually("traffic flows", PATIENCE, || {
        (load.succeeded() > 20).then_some(())
    });
    let expiry = pair.task.sidecar.certificate_expiry();
    assert_eq!(issued(&pair, "attest"), 2.0);

    pair.mesh.control_plane.kill();
    goes_on_without(&pair, expiry);

    let scratch = &pair.mesh.scratch;
    pair.mesh.control_plane.start(scratch);
    let renewed = pair
        .task
        .sidecar
        .wait_for_rotation(expiry, Duration::from_secs(30));
    assert!(renewed > expiry);
    eventually("the API's certificate too", Duration::from_secs(30), || {
        (issued(&pair, "renew") >= 2.0).then_some(())
    });
    assert_eq!(issued(&pair, "attest"), 0.0, "nobody is enrolled again");
    eventually("the stream is back", PATIENCE, || {
        (connected(&pair) == Some(1.0)).then_some(())
    });
    let listed = pair.mesh.control_plane.workloads().to_string();
    assert!(
        listed.contains(API_ID) && listed.contains(TASK_ID),
        "{listed}"
    );

    let report = load.stop();
    assert!(
        report.failures.is_empty() && report.requests > 1000,
        "{:?} of {}",
        report.failures,
        report.requests
    );
}

#[test]
fn the_state_keeps_its_root_across_restarts_and_holds_no_readable_secret() {
    use std::os::unix::fs::PermissionsExt;
    let mut pair = Pair::start();
    let root = pair.mesh.control_plane.trust_bundle();
    let mode = |name: &str| {
        let path = pair.mesh.control_plane.state().join(name);
        std::fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777)
    };
    assert_eq!(mode("sidewind.db").unwrap(), 0o600);
    assert_eq!(mode("admin.sock").unwrap(), 0o600);
    assert_eq!(mode("trust-bundle.pem").unwrap(), 0o644);
    pair.mesh.control_plane.kill();
    let scratch = &pair.mesh.scratch;
    pair.mesh.control_plane.start(scratch);
    assert_eq!(pair.mesh.control_plane.trust_bundle(), root);
    eventually("the sidecar is back", PATIENCE, || {
        (connected(&pair) == Some(1.0)).then_some(())
    });
    // A new workload joins by the same root.
    let late = pair.mesh.workload("airflow", "late").start();
    assert!(
        late.curl(&["http://orders-api.data:8080/orders"])
            .finish()
            .success()
            .contains("anemometer")
    );
}

/// Waits until a sidecar's certificate is over.
#[track_caller]
fn wait_for_expiry(sidecar: &Sidecar) {
    eventually("the certificate expires", Duration::from_secs(75), || {
        let remaining = sidecar
            .metrics()
            .value("sidewind_certificate_remaining_seconds");
        remaining.filter(|seconds| *seconds < 0.0)
    });
}

#[test]
fn a_sidecar_whose_certificate_has_expired_refuses_and_never_falls_back_to_plaintext() {
    let authority = TestAuthority::new();
    let mut pair = Pair::with(
        Mesh::plan()
            .root(&authority)
            .flag("--svid-ttl", "60s")
            .config("policy.yaml", &allow(API_ID, &[TASK_ID], "")),
    );
    // A peer of the API whose own certificate lives on: what refuses it is the API's sidecar.
    let outside = pair.mesh.outsider("outside");
    let svid = authority.svid_files(&pair.mesh.scratch, "task", TASK_ID, SystemTime::now());
    let peer = Peer::new(&outside.place, pair.api.at(MESH_PORT), "sidewind/1").with(&svid);
    let request = |path: &str| {
        let request = Request::get(format!("http://orders-api.data:8080{path}"));
        let destination = pair.api.at(8080).to_string();
        request
            .header("sidewind-destination", destination)
            .body(())
            .unwrap()
    };
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    assert_eq!(peer.ask(request("/orders"), "").unwrap().status, 200);
    pair.mesh.control_plane.kill();
    let recording = sidewind_tests::wire::Recording::start(&pair.mesh.lan_router());
    wait_for_expiry(&pair.task.sidecar);
    wait_for_expiry(&pair.api.sidecar);

    // Outbound: the task's sidecar sends nothing.
    let answer = eventually("calls are refused", PATIENCE, || {
        Some(pair.ask("/orders?not-for-the-wire", &[])).filter(|answer| answer.status == 503)
    });
    assert_eq!(answer.error, "identity-expired", "{answer:?}");
    // Inbound: the API's sidecar makes no handshake, and lets nothing in without one.
    let refused = peer.ask(request("/orders?not-for-the-api"), "");
    assert!(refused.is_err(), "{refused:?}");
    let expired = [("direction", "inbound"), ("code", "identity-expired")];
    let errors = pair.api.sidecar.metrics();
    assert!(errors.sum("sidewind_errors_total", &expired) >= 1.0);
    let plain = sidewind_tests::http::Request::get(pair.api.at(8080), "/orders?not-for-the-api")
        .send(&outside.place);
    assert_eq!(plain.status, 403, "{}", plain.text());
    for sidecar in [&pair.task.sidecar, &pair.api.sidecar] {
        let ready = sidecar.get("/ready");
        assert_eq!(ready.status, 503, "{}", ready.text());
    }
    let wire = recording
        .stop()
        .between(pair.task.address, pair.api.address);
    assert!(!wire.shows(b"not-for-the-wire"));

    // And it heals by itself as soon as it can.
    let scratch = &pair.mesh.scratch;
    pair.mesh.control_plane.start(scratch);
    assert!(pair.mesh.control_plane.is_ready());
}
