//! What is too much is refused at once, and with a word.

use sidewind_tests::mesh::Mesh;

use crate::support::Pair;

fn policy(rest: &str) -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: {{ name: orders-api, namespace: data }}
spec:
  targetRefs: [{{ kind: Service, name: orders-api }}]
{rest}
"
    )
}

fn with(rest: &str) -> Pair {
    let plan = Mesh::plan().config("traffic.yaml", &policy(rest));
    Pair::serving(plan, "orders-api.data=8080/http")
}

#[test]
fn a_rate_limit_beside_the_service_counts_what_it_names_however_it_is_written() {
    let pair = with(
        "  rateLimits: [{ name: echoes, requests: 3, per: 1h, key: sourceIdentity, paths: [/echo] }]",
    );
    for path in ["/echo", "/%65cho", "//echo"] {
        let answer = pair.ask(path, &["--path-as-is"]);
        assert_ne!(answer.status, 429, "{path}: {answer:?}");
    }
    let answer = pair.ask("/echo", &[]);
    assert_eq!(
        (answer.status, answer.error.as_str()),
        (429, "rate-limited")
    );
    assert!(answer.body.contains("echoes"), "{answer:?}");
    let head = pair.curl("/echo", &["-i"]).to_ascii_lowercase();
    assert!(head.contains("retry-after: "), "{head}");
    assert_eq!(
        pair.ask("/orders", &[]).status,
        200,
        "others are not counted"
    );
    let refused = [("service", "orders-api.data"), ("limit", "echoes")];
    let metrics = pair.api.sidecar.metrics();
    assert_eq!(
        metrics.sum("sidewind_limited_requests_total", &refused),
        2.0
    );
}

#[test]
fn a_rate_limit_at_the_caller_spares_the_service() {
    let pair = with("  rateLimits: [{ name: all, requests: 2, per: 1h, at: caller }]");
    let statuses: Vec<u16> = (0..4).map(|_| pair.ask("/orders", &[]).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429]);
    let inbound = [("direction", "inbound")];
    let metrics = pair.api.sidecar.metrics();
    assert_eq!(metrics.sum("sidewind_requests_total", &inbound), 2.0);
}

#[test]
fn requests_at_once_have_a_bound_and_the_rest_is_told_at_once() {
    let pair = with("  limits: { server: { maxRequests: 1 } }");
    let url = "http://orders-api.data:8080/slow?ms=3000";
    let slow = pair.task.curl(&["-o", "/dev/null"]).arg(url);
    let mut slow = slow.start("slow", &pair.mesh.scratch);
    pair.wait_for_work(1);
    let answer = pair.ask("/orders", &["-X", "POST", "-d", "x"]);
    assert_eq!((answer.status, answer.error.as_str()), (503, "overloaded"));
    slow.wait(sidewind_tests::wait::PATIENCE);
    assert_eq!(pair.ask("/orders", &[]).status, 200);
}

#[test]
fn a_body_that_is_too_large_is_refused_whether_its_length_is_said_or_not() {
    let pair = with("  limits: { server: { maxBodyBytes: 1000 } }");
    let large = "x".repeat(2000);
    for extra in [&[][..], &["-H", "transfer-encoding: chunked"]] {
        let arguments = [
            &["-X", "POST", "-H", "expect:", "-d", large.as_str()],
            extra,
        ]
        .concat();
        let answer = pair.ask("/echo", &arguments);
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (413, "body-too-large"),
            "{extra:?}"
        );
    }
    let small = pair.ask("/echo", &["-X", "POST", "-d", "small"]);
    assert_eq!((small.status, small.body.as_str()), (200, "small"));
}
