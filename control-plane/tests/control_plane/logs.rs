//! What is logged, how often, and how that is changed while running.

use crate::lifecycle::{Process, run, state};
use crate::support::{attest_request, http_get, until, within};
use std::path::Path;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn shows(process: &Process, line: &str) {
    until(async || http_get(process.admin, "/metrics").await.1.contains(line)).await;
}

fn lines<'a>(log: &'a str, word: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(word)).collect()
}

#[tokio::test]
async fn what_strangers_repeat_is_one_line_of_the_log_and_counted_in_full() {
    let (_directory, state) = state();
    let process = Process::start(&state, &[]).await;
    for _ in 0..30 {
        for address in [process.client.address, process.admin] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(b"garbage\r\n\r\n").await;
            let _ = within(stream.read_to_end(&mut Vec::new())).await;
        }
    }
    shows(&process, "refused_total{reason=\"not-tls\"} 30\n").await;
    shows(&process, "{listener=\"http\",reason=\"not-http\"} 30\n").await;
    let mut service = process.client.identity_service().await;
    for _ in 0..30 {
        let refused = service.attest(attest_request("made-up", vec![])).await;
        assert!(refused.is_err());
    }
    shows(&process, "reason=\"join-token-unknown\"} 30\n").await;
    let (_, log) = process.end("-TERM").await;
    for cause in ["\"not-tls\"", "\"not-http\"", "\"join-token-unknown\""] {
        let said = lines(&log, cause);
        assert_eq!(said.len(), 1, "{cause}: {said:?}");
    }
}

async fn log_level(state: &Path, filter: Option<&str>) -> (Option<i32>, String, String) {
    let mut arguments = vec!["log-level", "--state-dir", state.to_str().unwrap()];
    arguments.extend(filter);
    let output = run(&arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn the_log_level_is_changed_while_running_and_a_bad_one_is_a_clear_mistake() {
    let (_directory, state) = state();
    let process = Process::start(&state, &["--log-level", "info,h2=error"]).await;
    let (code, shown, _) = log_level(&state, None).await;
    assert_eq!(code, Some(0));
    assert!(
        shown.contains("info") && shown.contains("h2=error"),
        "{shown}"
    );
    let filter = "warn,sidewind_control_plane=debug";
    let (code, shown, _) = log_level(&state, Some(filter)).await;
    assert_eq!(code, Some(0));
    assert!(shown.contains("sidewind_control_plane=debug"), "{shown}");
    for bad in ["lots=of=it", ""] {
        let (code, out, said) = log_level(&state, Some(bad)).await;
        assert_eq!((code, out.as_str()), (Some(64), ""), "{said}");
        assert!(
            said.starts_with("error: ") && said.contains("is not a filter"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(log_level(&state, None).await.1, shown);
    assert_eq!(log_level(&state, Some("warn")).await.0, Some(0));
    let (_, log) = process.end("-TERM").await;
    assert_eq!(lines(&log, "the log filter was changed").len(), 2, "{log}");
    assert!(!log.contains("stopping"), "info is off: {log}");
}
