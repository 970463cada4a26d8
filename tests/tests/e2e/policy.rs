//! Who may call whom, and who is believed about who they are.

use std::time::Duration;

use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually, throughout};

use crate::support::{API, API_ID, Answer, Pair, TASK_ID, allow, names_the_api};

const EVERY_TASK: &str = "spiffe://sidewind.local/ns/airflow/sa/*";

#[test]
fn a_caller_with_the_wrong_identity_is_refused_and_told_why() {
    let policy = allow(API_ID, &[TASK_ID], "");
    let mut pair = Pair::with(Mesh::plan().config("policy.yaml", &policy));
    assert_eq!(pair.ask("/orders", &[]).status, 200);

    let other = pair.mesh.workload("airflow", "other").start();
    let refused = Answer::parse(
        &other
            .curl(&["-i", &format!("{API}/orders")])
            .finish()
            .success(),
    );
    assert_eq!(
        (refused.status, refused.error.as_str()),
        (403, "policy-denied")
    );
    names_the_api(&pair, &refused.body);
    assert!(
        !refused.body.contains(TASK_ID),
        "the rules are nobody's business: {}",
        refused.body
    );

    let inbound = pair
        .api
        .sidecar
        .wait_for_access("the refusal", |record| record.error() == "policy-denied");
    assert_eq!(
        (inbound.source_id(), inbound.status(), inbound.path()),
        (other.spiffe_id.clone(), 403, "/orders".into())
    );
    other
        .sidecar
        .wait_for_access("the refusal", |record| record.status() == 403);
    let denied = [("direction", "inbound"), ("code", "policy-denied")];
    assert_eq!(
        pair.api
            .sidecar
            .metrics()
            .sum("sidewind_errors_total", &denied),
        1.0
    );
}

#[test]
fn methods_and_paths_of_a_rule_are_held_to() {
    let to = "{ ports: [8080], methods: [GET], paths: [\"/orders\", \"/bytes/*\"] }";
    let pair = Pair::with(Mesh::plan().config("policy.yaml", &allow(API_ID, &[EVERY_TASK], to)));
    for (path, arguments, status) in [
        ("/orders", &[][..], 200),
        ("/orders?page=2", &[], 200),
        ("/bytes/7", &[], 200),
        ("/orders", &["-X", "POST"], 403),
        ("/echo", &[], 403),
        ("/orders/", &[], 403),
        ("/orders/../echo", &["--path-as-is"], 403),
        ("/bytes/../echo", &["--path-as-is"], 403),
        ("/bytes/%2e%2e/echo", &["--path-as-is"], 403),
    ] {
        let answer = pair.ask(path, arguments);
        assert!(
            answer.status == status || (status == 403 && answer.status == 400),
            "{path} {arguments:?}: {answer:?}"
        );
    }
}

#[test]
fn a_rule_about_paths_opens_no_opaque_connection() {
    let to = "{ paths: [\"/orders\"] }";
    let pair = Pair::with(Mesh::plan().config("policy.yaml", &allow(API_ID, &[EVERY_TASK], to)));
    // Not HTTP, so that no path could be held against the rule.
    let spoken = pair
        .task
        .program("redis-cli")
        .args(["-h", "orders-api.data", "-p", "8080", "PING"])
        .finish();
    assert!(
        !spoken.out().contains("Bad request"),
        "the API answered: {spoken:?}"
    );
    let record = pair
        .api
        .sidecar
        .wait_for_access("the refusal", |record| record.error() == "policy-denied");
    assert!(
        !record.is_request() && record.source_id() == TASK_ID,
        "{record}"
    );
}

#[test]
fn a_new_policy_holds_within_seconds_and_a_bad_one_never_replaces_it() {
    let pair = Pair::start();
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    let nobody = allow(
        API_ID,
        &["spiffe://sidewind.local/ns/airflow/sa/nobody"],
        "",
    );
    pair.mesh.control_plane.write_config("policy.yaml", &nobody);
    eventually("the policy refuses", PATIENCE, || {
        (pair.ask("/orders", &[]).status == 403).then_some(())
    });

    let bad = nobody.replace("rules:", "ruels:");
    pair.mesh.control_plane.write_config("policy.yaml", &bad);
    eventually("the control plane says what is wrong", PATIENCE, || {
        let log = pair.mesh.control_plane.log();
        log.lines()
            .find(|line| line.contains("policy.yaml") && line.contains("ruels"))
            .map(str::to_owned)
    });
    throughout("the good policy stays", Duration::from_secs(2), || {
        pair.ask("/orders", &[]).status == 403
    });

    pair.mesh
        .control_plane
        .write_config("policy.yaml", &allow(API_ID, &[TASK_ID], ""));
    eventually("the policy allows", PATIENCE, || {
        (pair.ask("/orders", &[]).status == 200).then_some(())
    });
}

#[test]
fn plaintext_from_outside_is_refused_in_strict_mode() {
    let mut pair = Pair::with(Mesh::plan().flag("--inbound-plaintext", "strict"));
    let outside = pair.mesh.outsider("outside");
    let curl = outside.place.program("curl").args([
        "-sS",
        "-i",
        "--max-time",
        "20",
        &format!("{API}/orders"),
    ]);
    let refused = Answer::parse(&curl.finish().success());
    assert_eq!(
        (refused.status, refused.error.as_str()),
        (403, "plaintext-refused")
    );
    names_the_api(&pair, &refused.body);
    let record = pair.api.sidecar.wait_for_access("the refusal", |record| {
        record.error() == "plaintext-refused"
    });
    assert!(record.source_id().is_empty() && !record.tls(), "{record}");
    // The mesh is not affected.
    assert_eq!(pair.ask("/orders", &[]).status, 200);
    // What is not HTTP is closed without an answer of the workload.
    let redis = outside
        .place
        .program("redis-cli")
        .args(["-h", "orders-api.data", "-p", "8080", "PING"])
        .finish();
    assert!(!redis.out().contains("HTTP"), "{redis:?}");
}

#[test]
fn plaintext_from_outside_is_served_in_permissive_mode_and_held_to_policy() {
    let mut pair = Pair::start();
    let outside = pair.mesh.outsider("outside");
    let ask = || {
        let curl = outside.place.program("curl").args([
            "-sS",
            "-i",
            "--max-time",
            "20",
            &format!("{API}/orders"),
        ]);
        Answer::parse(&curl.finish().success())
    };
    assert_eq!(ask().status, 200);
    let record = pair
        .api
        .sidecar
        .wait_for_access("the call", |record| record.path() == "/orders");
    assert!(record.source_id().is_empty() && !record.tls(), "{record}");
    assert_eq!(record.direction(), "inbound");

    // Once a policy selects the workload, only whom it names may call, and a stranger has no name.
    pair.mesh
        .control_plane
        .write_config("policy.yaml", &allow(API_ID, &[TASK_ID], ""));
    eventually("the policy refuses strangers", PATIENCE, || {
        (ask().status == 403).then_some(())
    });
    assert_eq!(ask().error, "policy-denied");
    assert_eq!(pair.ask("/orders", &[]).status, 200);
}

#[test]
fn the_strict_mode_of_a_sidecar_wins_over_a_permissive_control_plane() {
    let mut mesh = Mesh::plan().start();
    let plan = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080");
    let api = plan.flag("--inbound-plaintext", "strict").start();
    let _server = sidewind_tests::workloads::api(&api, 8080, &mesh.scratch);
    let outside = mesh.outsider("outside");
    let curl = outside.place.program("curl").args([
        "-sS",
        "-i",
        "--max-time",
        "20",
        &format!("{API}/orders"),
    ]);
    assert_eq!(
        Answer::parse(&curl.finish().success()).error,
        "plaintext-refused"
    );
}

#[test]
fn identity_headers_are_set_by_the_sidecar_and_never_believed_from_outside() {
    let mut pair = Pair::start();
    let outside = pair.mesh.outsider("outside");
    let forged = "x-forwarded-client-cert: By=spiffe://sidewind.local/ns/data/sa/orders-api;Hash=00;URI=spiffe://sidewind.local/ns/airflow/sa/admin";
    let forgeries = [
        "-H",
        forged,
        "-H",
        "sidewind-destination: 127.0.0.1:22",
        "-H",
        "sidewind-protocol: h2",
    ];
    let header = |echoed: &str, name: &str| {
        let document: serde_json::Value = serde_json::from_str(echoed).unwrap();
        let headers = document["headers"].as_array().unwrap().iter();
        let named = headers.filter(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
        named
            .map(|header| header[1].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };

    let from_mesh = pair.curl("/echo", &forgeries);
    let certificates = header(&from_mesh, "x-forwarded-client-cert");
    assert_eq!(certificates.len(), 1, "{from_mesh}");
    let fields: Vec<&str> = certificates[0].split(';').collect();
    assert!(
        fields.contains(&format!("By={API_ID}").as_str()),
        "{certificates:?}"
    );
    assert!(
        fields.contains(&format!("URI={TASK_ID}").as_str()),
        "{certificates:?}"
    );
    let hash = fields
        .iter()
        .find_map(|field| field.strip_prefix("Hash="))
        .expect("a hash");
    assert!(
        hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "{hash}"
    );
    assert!(!from_mesh.contains("admin"), "{from_mesh}");

    let url = format!("{API}/echo");
    let from_outside = outside
        .place
        .program("curl")
        .args(["-sS", "--max-time", "20"])
        .args(forgeries)
        .arg(url)
        .finish()
        .success();
    assert_eq!(
        header(&from_outside, "x-forwarded-client-cert"),
        [""; 0],
        "{from_outside}"
    );
    for echoed in [from_mesh, from_outside] {
        assert_eq!(header(&echoed, "sidewind-destination"), [""; 0], "{echoed}");
        assert_eq!(header(&echoed, "sidewind-protocol"), [""; 0], "{echoed}");
    }
}
