//! The Workload API's settings.

use super::tests::run_with;
use super::*;

#[test]
fn the_workload_api_is_off_until_a_path_is_named() {
    assert_eq!(run_with(&[], &[]).unwrap().workload_api, None);
    let given = WorkloadApiConfig {
        socket: "/run/sidewind/workload.sock".into(),
        mode: 0o660,
    };
    for path in [
        "/run/sidewind/workload.sock",
        "unix:///run/sidewind/workload.sock",
    ] {
        let config = run_with(&[], &[("SIDEWIND_WORKLOAD_API_SOCKET", path)]).unwrap();
        assert_eq!(config.workload_api.as_ref(), Some(&given));
    }
    let open = ["--workload-api-socket=/w", "--workload-api-mode=0666"];
    let config = run_with(&open, &[]).unwrap().workload_api.unwrap();
    assert_eq!(config.mode, 0o666);
    let long = format!("--workload-api-socket=/{}", "a".repeat(101));
    for wrong in [
        "--workload-api-mode=660",
        "--workload-api-socket=workload.sock",
        "--workload-api-socket=unix:workload.sock",
        "--workload-api-socket=/run/",
        &long,
    ] {
        assert!(run_with(&[wrong], &[]).is_err(), "{wrong}");
    }
    for mode in ["777", "060", "66", "u=rw", "+660", "1660", "06600"] {
        let mode = format!("--workload-api-mode={mode}");
        assert!(
            run_with(&["--workload-api-socket=/w", &mode], &[]).is_err(),
            "{mode}"
        );
    }
}
