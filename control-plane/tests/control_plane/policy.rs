//! Resources that change while streams are open.

use crate::support::ControlPlane;

const CALLEE: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn policy(caller: &str) -> String {
    format!(
        r#"
apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: orders, namespace: data }}
spec:
  selector: {{ spiffeIds: ["{CALLEE}"] }}
  rules: [{{ from: [{{ spiffeIds: ["spiffe://sidewind.local/ns/airflow/sa/{caller}"] }}] }}]
"#
    )
}

#[tokio::test]
async fn a_changed_file_is_pushed_and_a_bad_one_leaves_the_old_in_force() {
    let control_plane = ControlPlane::start_with(&policy("worker")).await;
    let mut proxy = control_plane.client.proxy(CALLEE, vec![]).await;
    let first = proxy.policy().await;
    assert!(first.default_deny);
    assert!(
        first.rules[0].sources[0].ends_with("/sa/worker"),
        "{first:?}"
    );
    assert_eq!(first.rules[0].policy, "data/orders");

    std::fs::write(control_plane.config(), policy("scheduler")).unwrap();
    let second = proxy.policy().await;
    assert!(
        second.rules[0].sources[0].ends_with("/sa/scheduler"),
        "{second:?}"
    );
    assert!(second.version > first.version);
    control_plane
        .metric("sidewind_config_reloads_total{outcome=\"taken\"} 1")
        .await;

    std::fs::write(
        control_plane.config(),
        policy("triggerer").replace("rules", "rulez"),
    )
    .unwrap();
    control_plane
        .metric("sidewind_config_reloads_total{outcome=\"refused\"} 1")
        .await;
    control_plane.metric("sidewind_config_current 0").await;
    // Who comes now gets the old one, too.
    let mut late = control_plane.client.proxy(CALLEE, vec![]).await;
    assert_eq!(late.policy().await, second);

    std::fs::write(control_plane.config(), policy("triggerer")).unwrap();
    let third = proxy.policy().await;
    assert!(
        third.rules[0].sources[0].ends_with("/sa/triggerer"),
        "{third:?}"
    );
    control_plane.metric("sidewind_config_current 1").await;
}

#[tokio::test]
async fn a_policy_survives_a_restart_on_a_higher_version() {
    let control_plane = ControlPlane::start_with(&policy("worker")).await;
    let config = control_plane.config().parent().unwrap().to_owned();
    let mut proxy = control_plane.client.proxy(CALLEE, vec![]).await;
    let (before, svid) = (proxy.policy().await, proxy.svid.clone());
    let directory = control_plane.stop().await;
    let change = |settings: &mut sidewind_control_plane::server::Settings| {
        settings.config = Some(config);
    };
    let control_plane = ControlPlane::start_in(directory, change).await;
    let hello = crate::support::hello(vec![]);
    let mut proxy = control_plane.client.stream(&svid, hello).await.unwrap();
    let after = proxy.policy().await;
    assert!(after.version > before.version);
    assert_eq!(after.rules, before.rules);
}
