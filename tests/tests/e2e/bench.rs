//! The benchmark of the control plane in small: it must go on working, whatever it measures.

use std::time::Duration;

use sidewind_tests::binaries::{Binaries, directory};
use sidewind_tests::place::Place;
use sidewind_tests::scratch::Scratch;

#[test]
fn two_hundred_simulated_proxies_come_renew_hear_of_bans_and_come_back_after_a_kill() {
    let scratch = Scratch::new();
    let own = scratch.directory("bench", None);
    let shown = Place::Host
        .program(directory().join("bench_control_plane"))
        .env("TMPDIR", &own)
        .arg("--program")
        .arg(&Binaries::find(&scratch).sidewind)
        .args([
            "--proxies",
            "200",
            "--seconds",
            "1",
            "--idle",
            "1",
            "--away",
            "0",
        ])
        .timeout(Duration::from_secs(110))
        .finish()
        .success();
    for row in [
        "| proxies | 200 |",
        "| renewed, 64 at once, on the streams' connections |",
        "| writes to the store lost | 0 |",
        "| a ban known to all |",
        "| killed: all reconnected |",
        "| killed: all attested anew |",
    ] {
        assert!(shown.contains(row), "no {row:?} in {shown}");
    }
    let left = std::fs::read_dir(&own).expect("a directory").count();
    assert_eq!(left, 0, "something was left behind");
}
