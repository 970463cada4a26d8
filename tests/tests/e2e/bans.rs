//! Who is banned is cut off everywhere, and let in again once the ban is lifted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::wait::{PATIENCE, eventually};

/// A mesh with a Redis that two clients use.
struct Story {
    mesh: Mesh,
    redis: Workload,
    thief: Workload,
    honest: Workload,
    _server: sidewind_tests::process::Process,
}

impl Story {
    fn begin() -> Self {
        let mut mesh = Mesh::plan().start();
        let redis = mesh
            .workload("data", "redis")
            .serves("redis.data=6379/tcp")
            .start();
        let server = sidewind_tests::workloads::redis(&redis, 6379, false, &mesh.scratch);
        let thief = mesh.workload("airflow", "thief").start();
        let honest = mesh.workload("airflow", "task").start();
        Self {
            redis,
            thief,
            honest,
            _server: server,
            mesh,
        }
    }

    fn connect(&self, client: &Workload) -> TcpStream {
        let stream = client
            .place
            .connect(self.redis.at(6379), Duration::from_secs(10))
            .expect("the sidecar accepts");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a socket");
        stream
    }

    /// `sidewind` at the control plane.
    fn run(&self, arguments: &[&str]) -> String {
        let state = self.mesh.control_plane.state();
        let command = self.mesh.control_plane.command().args(arguments);
        command.arg("--state-dir").arg(state).finish().success()
    }
}

fn works(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 7];
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok()
}

#[test]
fn a_ban_ends_living_connections_refuses_new_ones_and_disturbs_nobody_else() {
    let story = Story::begin();
    let (mut stolen, mut good) = (story.connect(&story.thief), story.connect(&story.honest));
    assert!(works(&mut stolen) && works(&mut good));

    let id = story.thief.spiffe_id.as_str();
    story.run(&["ban", id, "--reason", "its node was stolen"]);
    eventually("the living connection is cut off", PATIENCE, || {
        (!works(&mut stolen)).then_some(())
    });
    assert!(!works(&mut story.connect(&story.thief)));
    assert!(works(&mut good), "somebody else's connection lives on");
    assert!(story.run(&["bans"]).contains("its node was stolen"));
    let cut = story.redis.sidecar.metrics().sum(
        "sidewind_mesh_connections_cut_total",
        &[("reason", "banned")],
    );
    assert_eq!(cut, 1.0);
    let audited = story.mesh.control_plane.log();
    assert!(audited.contains("its node was stolen"), "{audited}");

    story.run(&["unban", id]);
    eventually("the identity is let in again", PATIENCE, || {
        works(&mut story.connect(&story.thief)).then_some(())
    });
    assert!(works(&mut good));
}

#[test]
fn a_banned_server_is_called_by_nobody() {
    let story = Story::begin();
    let mut living = story.connect(&story.honest);
    assert!(works(&mut living));
    story.run(&["ban", story.redis.spiffe_id.as_str()]);
    eventually("the living connection is cut off", PATIENCE, || {
        (!works(&mut living)).then_some(())
    });
    assert!(!works(&mut story.connect(&story.honest)));
}

#[test]
fn a_ban_of_a_certificate_ends_its_living_connections_and_nobody_elses() {
    let story = Story::begin();
    let (mut stolen, mut good) = (story.connect(&story.thief), story.connect(&story.honest));
    assert!(works(&mut stolen) && works(&mut good));

    let explained = story.run(&["explain", story.thief.spiffe_id.as_str()]);
    let serial = explained.lines().find_map(|line| {
        let (serial, _) = line.trim().strip_prefix("certificate")?.split_once(',')?;
        Some(serial.trim())
    });
    let serial = serial.expect("the serial number of its certificate");
    story.run(&["ban", serial, "--reason", "its key was stolen"]);
    eventually("the living connection is cut off", PATIENCE, || {
        (!works(&mut stolen)).then_some(())
    });
    assert!(works(&mut good), "somebody else's connection lives on");
    let cut = story.redis.sidecar.metrics().sum(
        "sidewind_mesh_connections_cut_total",
        &[("reason", "banned")],
    );
    assert_eq!(cut, 1.0);
}

#[test]
fn what_cannot_be_banned_is_a_usage_error_that_says_what_can() {
    let story = Mesh::plan().start();
    for subject in ["worker", "spiffe://sidewind.local/sidewind/control-plane"] {
        let state = story.control_plane.state();
        let ban = story.control_plane.command().args(["ban", subject]);
        let finished = ban.arg("--state-dir").arg(state).finish();
        assert_eq!(finished.code(), Some(64), "{}", finished.err());
        assert!(finished.err().contains("spiffe://"), "{}", finished.err());
    }
}
