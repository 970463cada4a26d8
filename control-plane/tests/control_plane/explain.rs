//! One command that explains a workload.

use crate::support::{ControlPlane, port, refusal, until, within};
use sidewind_api::{Reason, v1};

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";
const POLICY: &str = "
apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: orders, namespace: data }
spec:
  selector: { spiffeIds: [\"spiffe://sidewind.local/ns/data/sa/orders\"] }
  rules:
    - from: [{ spiffeIds: [\"spiffe://sidewind.local/ns/airflow/sa/*\"] }]
      to: [{ ports: [8080], methods: [GET] }]
";

async fn explain(
    control_plane: &ControlPlane,
    peer: &str,
    from: &str,
    port: u32,
) -> Result<v1::Explanation, tonic::Status> {
    let request = v1::ExplainRequest {
        peer: peer.to_owned(),
        from: from.to_owned(),
        port,
    };
    let mut admin = control_plane.client.admin_service().await;
    let answer = within(admin.explain(request)).await?.into_inner();
    Ok(answer.explanations[0].clone())
}

#[tokio::test]
async fn a_workload_is_explained_by_any_of_its_names_with_what_follows_for_a_caller() {
    let control_plane = ControlPlane::start_with(POLICY).await;
    let orders = control_plane
        .client
        .proxy(ORDERS, vec![port(8080, "orders.data")])
        .await;
    let serial = orders.svid.serial_hex();
    for peer in [ORDERS, "workload", "127.0.0.1", serial] {
        let explained = explain(&control_plane, peer, "", 0).await.unwrap();
        assert_eq!(explained.svid_serial, serial, "{peer}");
        assert!(!explained.issuer_key_id.is_empty() && !explained.issuer_subject.is_empty());
        assert_eq!(explained.current[0].sequence, 2);
        let says = |what: &str| explained.findings.iter().any(|it| it.contains(what));
        assert!(says("ends in 59m") || says("ends in 1h"), "{explained:?}");
        assert!(says("has not said which trust bundle"), "{explained:?}");
    }
    for (from, port, expected) in [
        (WORKER, 8080, "may call it by policy data/orders for GET"),
        (WORKER, 9090, "may not call it"),
        (
            "spiffe://sidewind.local/ns/web/sa/ui",
            8080,
            "may not call it",
        ),
    ] {
        let explained = explain(&control_plane, ORDERS, from, port).await.unwrap();
        let policy = explained.findings.last().unwrap();
        assert!(policy.contains(expected), "{policy}");
    }
    let nobody = refusal(explain(&control_plane, "nobody", "", 0).await);
    assert_eq!(nobody.0, Reason::InvalidMessage);
    assert!(nobody.1.contains("sidewind workloads"), "{}", nobody.1);
}

#[tokio::test]
async fn what_a_proxy_has_not_got_yet_is_a_finding() {
    let control_plane = ControlPlane::start().await;
    let orders = control_plane.client.proxy(ORDERS, vec![]).await;
    let ban = v1::Ban {
        subject: Some(v1::ban::Subject::Serial("0f".to_owned())),
        ..v1::Ban::default()
    };
    let request = v1::SetBanRequest {
        ban: Some(ban),
        lift: false,
    };
    let mut admin = control_plane.client.admin_service().await;
    let changed = within(admin.set_ban(request)).await.unwrap().into_inner();
    // This proxy acknowledges nothing.
    assert_eq!(changed.waiting_for, 1);
    let missing = format!(
        "has list 0 of the bans and not the present one, {}",
        changed.version
    );
    until(async || {
        let explained = explain(&control_plane, ORDERS, "", 0).await.unwrap();
        explained.findings.join("\n").contains(&missing)
    })
    .await;
    drop(orders);
}

#[tokio::test]
async fn a_task_is_explained_by_its_worker_and_what_means_only_one_of_the_two_is_said() {
    let policy = POLICY.replace("sa/*", "sa/worker/dag/payroll/task/*");
    let by_worker = POLICY.replace("sa/*", "sa/worker");
    let charge = format!("{WORKER}/dag/payroll/task/charge");
    for (policy, from, expected) in [
        (
            &policy,
            charge.as_str(),
            "may call it by policy data/orders",
        ),
        (&policy, WORKER, "one names Airflow tasks of it"),
        (&by_worker, WORKER, "may call it by policy data/orders"),
        (&by_worker, &charge, "which does not mean its Airflow tasks"),
    ] {
        let control_plane = ControlPlane::start_with(policy).await;
        let _orders = control_plane.client.proxy(ORDERS, vec![]).await;
        let worker = control_plane.client.proxy(WORKER, vec![]).await;
        let explained = explain(&control_plane, ORDERS, from, 8080).await.unwrap();
        let finding = explained.findings.last().unwrap();
        assert!(finding.contains(expected), "{finding}");
        let explained = explain(&control_plane, &charge, "", 0).await.unwrap();
        assert_eq!(explained.svid_serial, worker.svid.serial_hex());
    }
}
