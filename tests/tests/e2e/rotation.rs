//! Certificates that live for a minute, under steady requests.

use std::time::Duration;

use sidewind_tests::load::Load;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::support::Pair;

/// Steady load over connections that stay, with certificates of 60 s.
fn rotates_under_load(duration: Duration, rate: u32, rotations: usize) {
    let pair = Pair::with(Mesh::plan().flag("--svid-ttl", "60s"));
    let load = Load::new(pair.api.at(8080), "/orders")
        .rate(rate)
        .connections(16)
        .duration(duration);
    let load = load.start(&pair.task.place);
    let mut expiries =
        [&pair.task, &pair.api].map(|workload| vec![workload.sidecar.certificate_expiry()]);
    let mut seen = || {
        for (expiries, workload) in expiries.iter_mut().zip([&pair.task, &pair.api]) {
            let expiry = workload.sidecar.certificate_expiry();
            if expiries.last() != Some(&expiry) {
                expiries.push(expiry);
            }
        }
        expiries.each_ref().map(|expiries| expiries.len() - 1)
    };
    let begun = tokio::time::Instant::now();
    eventually("the load is over", duration + PATIENCE, || {
        seen();
        assert_eq!(load.failed(), 0, "after {:?}", begun.elapsed());
        (begun.elapsed() >= duration).then_some(())
    });
    let seen = seen();
    let report = load.finish();
    assert!(
        report.failures.is_empty(),
        "{:?} of {}",
        report.failures,
        report.requests
    );
    assert!(
        seen.iter().all(|count| *count >= rotations),
        "{seen:?} rotations"
    );
    let wanted = duration.as_secs() * u64::from(rate);
    assert!(
        report.requests >= wanted * 95 / 100,
        "{} of {wanted} requests were sent",
        report.requests
    );
}

#[test]
fn certificates_rotate_under_load_and_no_request_fails() {
    rotates_under_load(Duration::from_secs(75), 200, 3);
}

#[test]
fn an_opaque_connection_outlives_the_certificate_that_it_began_with() {
    use std::io::{Read, Write};
    let mut mesh = Mesh::plan().flag("--svid-ttl", "60s").start();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data=6379/tcp")
        .start();
    let _redis = sidewind_tests::workloads::redis(&server, 6379, false, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let expiry = client.sidecar.certificate_expiry();
    let mut stream = client
        .place
        .connect(server.at(6379), Duration::from_secs(10))
        .unwrap();
    // Past the end of that certificate and the grace after it, not only past its renewal: the two have met again.
    eventually(
        "the certificate's end has passed",
        Duration::from_secs(100),
        || {
            stream.write_all(b"PING\r\n").unwrap();
            stream.read_exact(&mut [0; 7]).unwrap();
            let now = std::time::SystemTime::UNIX_EPOCH
                .elapsed()
                .unwrap()
                .as_secs_f64();
            (now > expiry + 13.0).then_some(())
        },
    );
    assert!(client.sidecar.certificate_expiry() > expiry);
    for workload in [&client, &server] {
        assert_eq!(cut_off(workload), 0.0);
    }
}

#[test]
fn a_connection_ends_when_nobody_renews_the_certificates_that_it_rests_on() {
    use std::io::{Read, Write};
    let mut mesh = Mesh::plan().flag("--svid-ttl", "60s").start();
    let server = mesh
        .workload("data", "redis")
        .serves("redis.data=6379/tcp")
        .start();
    let _redis = sidewind_tests::workloads::redis(&server, 6379, false, &mesh.scratch);
    let client = mesh.workload("airflow", "task").start();
    let mut stream = client
        .place
        .connect(server.at(6379), Duration::from_secs(10))
        .unwrap();
    let mut ping = || {
        let mut answer = [0; 7];
        stream
            .write_all(b"PING\r\n")
            .and_then(|()| stream.read_exact(&mut answer))
    };
    ping().expect("the certificates are good for a while");
    mesh.control_plane.kill();
    eventually(
        "the connection is cut off",
        Duration::from_secs(100),
        || ping().is_err().then_some(()),
    );
    eventually("the reason is counted", PATIENCE, || {
        (cut_off(&client) + cut_off(&server) > 0.0).then_some(())
    });
}

fn cut_off(workload: &Workload) -> f64 {
    let reason = [("reason", "certificate-ended")];
    let metrics = workload.sidecar.metrics();
    metrics.sum("sidewind_mesh_connections_cut_total", &reason)
}

mod soak {
    use super::*;

    #[test]
    fn five_minutes_of_500_requests_a_second_see_no_failure() {
        rotates_under_load(Duration::from_secs(300), 500, 13);
    }
}
