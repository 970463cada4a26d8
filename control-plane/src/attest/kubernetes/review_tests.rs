use super::*;
use serde_json::{Value, json};

/// From a real API server.
const AUTHENTICATED: &str = include_str!("../../../tests/data/kubernetes/authenticated.json");
const WRONG_AUDIENCE: &str = include_str!("../../../tests/data/kubernetes/wrong-audience.json");

fn status_of(recorded: &str, change: impl FnOnce(&mut Value)) -> ReviewStatus {
    let mut review: Value = serde_json::from_str(recorded).unwrap();
    change(&mut review["status"]);
    serde_json::from_value::<Review>(review).unwrap().status
}

fn workload() -> Workload {
    reviewed(&status_of(AUTHENTICATED, |_| {}), "sidewind").unwrap()
}

#[test]
fn a_real_review_says_whose_token_it_is() {
    assert_eq!(
        workload(),
        Workload {
            namespace: "airflow".to_owned(),
            service_account: "airflow-worker".to_owned(),
            pod_name: "airflow-worker-0".to_owned(),
            pod_uid: "2d45b03d-0c19-45de-a16f-d57bc78dd3bf".to_owned(),
            ..Workload::default()
        }
    );
}

#[test]
fn a_real_review_for_another_audience_is_refused() {
    let status = status_of(WRONG_AUDIENCE, |_| {});
    let refusal = reviewed(&status, "other").unwrap_err();
    assert!(
        refusal.message.contains("does not take this token"),
        "{refusal}"
    );
}

#[test]
fn everything_that_a_review_lacks_is_a_refusal() {
    type Change = fn(&mut Value);
    let extra = "authentication.kubernetes.io/pod-uid";
    assert!(AUTHENTICATED.contains(extra));
    let rows: &[(&str, Change)] = &[
        ("no audiences", |s| s["audiences"] = json!([])),
        ("audiences left out", |s| {
            drop(s.as_object_mut().unwrap().remove("audiences"))
        }),
        ("another audience", |s| {
            s["audiences"] = json!(["https://kubernetes.default.svc"])
        }),
        ("a longer audience", |s| {
            s["audiences"] = json!(["sidewind2"])
        }),
        ("not authenticated", |s| s["authenticated"] = json!(false)),
        ("authenticated left out", |s| {
            drop(s.as_object_mut().unwrap().remove("authenticated"))
        }),
        ("a user", |s| s["user"]["username"] = json!("alice")),
        ("a node", |s| {
            s["user"]["username"] = json!("system:node:worker-1")
        }),
        ("five parts", |s| {
            s["user"]["username"] = json!("system:serviceaccount:a:b:c")
        }),
        ("no extra", |s| s["user"]["extra"] = json!({})),
        ("no pod-uid", |s| {
            let extra = s["user"]["extra"].as_object_mut().unwrap();
            extra
                .remove("authentication.kubernetes.io/pod-uid")
                .unwrap();
        }),
        ("no pod-name", |s| {
            let extra = s["user"]["extra"].as_object_mut().unwrap();
            extra
                .remove("authentication.kubernetes.io/pod-name")
                .unwrap();
        }),
        ("two pod-uids", |s| {
            s["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!(["a", "b"]);
        }),
        ("an empty pod-uid", |s| {
            s["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!([""]);
        }),
        ("a pod name that is a path", |s| {
            s["user"]["extra"]["authentication.kubernetes.io/pod-name"] = json!(["../secrets/x"]);
        }),
        ("nothing", |s| *s = json!({})),
    ];
    for (name, change) in rows {
        let status = status_of(AUTHENTICATED, *change);
        let refusal = reviewed(&status, "sidewind").expect_err(name);
        assert_eq!(
            refusal.reason,
            sidewind_api::Reason::EvidenceRefused,
            "{name}"
        );
    }
}

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "kind": "Pod",
        "metadata": {
            "name": "airflow-worker-0",
            "uid": "2d45b03d-0c19-45de-a16f-d57bc78dd3bf",
            "labels": {"component": "worker"},
        },
        "spec": {"serviceAccountName": "airflow-worker", "nodeName": "node-1"},
        "status": {"phase": "Running"},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

#[test]
fn only_the_very_pod_that_runs_is_alive() {
    alive(&pod(|_| {}), &workload()).unwrap();
    alive(
        &pod(|pod| pod["status"]["phase"] = json!("Pending")),
        &workload(),
    )
    .unwrap();
    type Change = fn(&mut Value);
    let rows: &[(&str, Change)] = &[
        ("another one than", |pod| {
            pod["metadata"]["uid"] = json!("other")
        }),
        ("another one than", |pod| pod["metadata"] = json!({})),
        ("another service account", |pod| {
            pod["spec"]["serviceAccountName"] = json!("default")
        }),
        ("another service account", |pod| pod["spec"] = json!({})),
        ("has ended", |pod| {
            pod["status"]["phase"] = json!("Succeeded")
        }),
        ("has ended", |pod| pod["status"]["phase"] = json!("Failed")),
        ("not known to run", |pod| {
            pod["status"]["phase"] = json!("Unknown")
        }),
        ("not known to run", |pod| pod["status"] = json!({})),
        ("being deleted", |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-21T04:06:40Z");
        }),
    ];
    for (expected, change) in rows {
        let refusal = alive(&pod(*change), &workload()).expect_err(expected);
        assert!(refusal.message.contains(expected), "{refusal}");
    }
}

#[test]
fn what_cannot_be_read_is_told_by_its_place_alone() {
    let answer = HttpsResponse {
        status: StatusCode::OK,
        headers: http::HeaderMap::new(),
        body: Bytes::from_static(b"{\"status\":\n{\"authenticated\":\"canary\"}}"),
    };
    let error = parse::<Review>("the token review", &answer)
        .map(drop)
        .unwrap_err();
    let text = crate::telemetry::chain(&error);
    assert!(text.contains("line 2"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}
