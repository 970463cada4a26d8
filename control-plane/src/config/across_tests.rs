//! What documents say together, right and wrong.

use super::registration_tests::{ATTESTORS, parse};

fn cluster(name: &str, more: &str) -> String {
    format!(
        "---\napiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: {name} }}\nspec: {{ kubernetes: [{{ cluster: {name}, inCluster: true{more} }}] }}\n"
    )
}

fn rule(name: &str, selectors: &str, id: &str, more: &str) -> String {
    format!(
        "---\napiVersion: sidewind.dev/v1alpha1\nkind: Registration\nmetadata: {{ name: {name} }}\nspec:\n  selectors: {selectors}\n  spiffeId: \"spiffe://sidewind.local/{id}\"\n{more}"
    )
}

#[test]
fn two_clusters_never_become_one_unless_that_is_said() {
    let both = cluster("a", "") + &cluster("b", "");
    let template = "ns/{kubernetes.namespace}";
    let rows = [
        (
            "{kubernetes: {}}",
            template,
            "",
            Some("put {kubernetes.cluster} into it"),
        ),
        (
            "{kubernetes: {cluster: a}}",
            template,
            "",
            Some("put {kubernetes.cluster} into it"),
        ),
        (
            "{kubernetes: {}}",
            "{kubernetes.cluster}/{kubernetes.namespace}",
            "",
            None,
        ),
        (
            "{kubernetes: {}}",
            template,
            "  sharedAcrossClusters: true\n",
            None,
        ),
        (
            "{kubernetes: {namespace: x}}",
            "x",
            "",
            Some("name the cluster under `selectors`"),
        ),
        (
            "{kubernetes: {cluster: [a, b], namespace: x}}",
            "x",
            "",
            Some("name the cluster"),
        ),
        ("{kubernetes: {cluster: a, namespace: x}}", "x", "", None),
        (
            "{kubernetes: {namespace: x}}",
            "x",
            "  sharedAcrossClusters: true\n",
            None,
        ),
    ];
    for (selectors, id, more, expected) in rows {
        let rule = rule("r", selectors, id, more);
        parse(&(cluster("a", "") + &rule))
            .map(drop)
            .or_else(|errors| {
                // Where there is one cluster the other cannot be named.
                errors
                    .to_string()
                    .contains("\"b\"")
                    .then_some(())
                    .ok_or(errors)
            })
            .unwrap();
        match (parse(&(both.clone() + &rule)), expected) {
            (Ok(_), None) => {}
            (Err(errors), Some(expected)) => {
                assert!(
                    errors.to_string().contains(expected),
                    "{selectors} {id}: {errors}"
                );
            }
            (result, _) => panic!("{selectors} {id}: {:?}", result.map(drop)),
        }
    }
    let defaults = ", defaultIdentities: true";
    parse(&(cluster("a", defaults) + &cluster("b", ""))).unwrap();
    let errors = parse(&(cluster("a", defaults) + &cluster("b", defaults))).unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("only one cluster can give default identities")
    );
}

#[test]
fn a_tie_that_can_be_seen_is_an_error_that_names_the_other() {
    let rows = [
        (
            "{kubernetes: {namespace: x}}",
            "{kubernetes: {namespace: x}}",
            true,
        ),
        (
            "{kubernetes: {namespace: [x, y]}}",
            "{kubernetes: {namespace: [y, z]}}",
            true,
        ),
        (
            "{kubernetes: {namespace: [x, x]}}",
            "{kubernetes: {namespace: y}}",
            false,
        ),
        (
            "{kubernetes: {namespace: x, podLabels: {a: b}}}",
            "{kubernetes: {podLabels: {a: b}, namespace: x}}",
            true,
        ),
        (
            "{kubernetes: {namespace: x, podLabels: {a: b}}}",
            "{kubernetes: {namespace: x, podLabels: {a: c}}}",
            false,
        ),
        (
            "{kubernetes: {namespace: x}}",
            "{kubernetes: {namespace: x, node: n}}",
            false,
        ),
        // Only a workload shows whether these meet; then it is refused, and both are named.
        (
            "{kubernetes: {namespace: x}}",
            "{kubernetes: {serviceAccount: y}}",
            false,
        ),
    ];
    for (first, second, tie) in rows {
        let text =
            cluster("a", "") + &rule("one", first, "one", "") + &rule("two", second, "two", "");
        match parse(&text) {
            Ok(_) => assert!(!tie, "{first} {second}"),
            Err(errors) => {
                assert!(tie, "{errors}");
                let expected =
                    "select the same workloads as Registration default/one at mesh.yaml:";
                assert!(errors.to_string().contains(expected), "{errors}");
                assert_eq!(errors.0.len(), 1);
            }
        }
    }
    let many: Vec<String> = (0..1100).map(|index| format!("n{index}")).collect();
    let selectors = format!("{{kubernetes: {{namespace: [{}]}}}}", many.join(", "));
    let errors = parse(&(cluster("a", "") + &rule("many", &selectors, "x", ""))).unwrap_err();
    assert!(
        errors.to_string().contains("more than 1024 combinations"),
        "{errors}"
    );
}

#[test]
fn a_registration_of_what_is_not_configured_is_an_error() {
    let rows = [
        (
            rule("r", "{kubernetes: {namespace: x}}", "x", ""),
            "no AttestorConfig configures",
        ),
        (
            rule("r", "{oidc: {issuer: \"https://x\"}}", "x", ""),
            "no AttestorConfig configures",
        ),
        (
            cluster("a", "") + &rule("r", "{kubernetes: {cluster: b}}", "x", ""),
            "cluster \"b\", which no AttestorConfig configures; there are a",
        ),
        (
            format!("{ATTESTORS}{}", rule("r", "{oidc: {subject: x}}", "x", "")),
            "must name `issuer`",
        ),
        (
            cluster("a", "") + &rule("r", "{kubernetes: {}}", "x", ""),
            "would make them all one",
        ),
    ];
    for (text, expected) in rows {
        let errors = parse(&text).expect_err(expected).to_string();
        assert!(errors.contains(expected), "{errors}");
    }
    let errors = parse(&(cluster("a", "") + &cluster("a", "").replace("name: a", "name: z")));
    let errors = errors.unwrap_err().to_string();
    assert!(
        errors.contains("Kubernetes cluster a is already given"),
        "{errors}"
    );
}
