use super::*;
use crate::attest::Selector;
use crate::config::document::SourceFile;
use crate::store::TaskTerms;

const CLUSTER: &str = r"
apiVersion: sidewind.dev/v1alpha1
kind: AttestorConfig
metadata: { name: clusters }
spec: { kubernetes: [{ cluster: prod, inCluster: true }] }
";

const PARTNER: &str = "---
apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: { name: other }
spec: { trustDomain: other.org, url: 'https://bundle.other.org', profile: https_web }
";

const ACCOUNTS: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: AttestorConfig
metadata: { name: aws }
spec: { awsIam: [{ regions: [eu-west-1], accounts: ["123456789012"] }] }
"#;

fn document(name: &str, selectors: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: sidewind.dev/v1alpha1\nkind: Registration\nmetadata: {{ name: {name}, namespace: data }}\nspec:\n  selectors: {selectors}\n  {rest}\n"
    )
}

fn config(documents: &[String]) -> Arc<Config> {
    let text = documents.concat();
    let name = "mesh.yaml".to_owned();
    Arc::new(Config::parse(&[SourceFile { name, text }]).unwrap_or_else(|e| panic!("{e}")))
}

fn admission(documents: &[String]) -> (Admission, Live) {
    let live = Live::default();
    live.set(config(documents));
    let domain = TrustDomain::parse("example.org").unwrap();
    let hour = Duration::from_secs(3600);
    (Admission::new(live.clone(), domain, hour), live)
}

fn facts(labels: &[(&str, &str)]) -> Facts {
    let mut selectors: Selectors = [
        ("kubernetes:cluster", "prod"),
        ("kubernetes:namespace", "data"),
        ("kubernetes:service-account", "orders"),
    ]
    .into_iter()
    .collect();
    for (name, value) in labels {
        selectors.add(format!("kubernetes:pod-label:{name}"), *value);
    }
    Facts {
        attestor: "kubernetes",
        selectors,
        pins: Vec::new(),
    }
}

const TEMPLATE: &str =
    "spiffeId: \"spiffe://example.org/ns/{kubernetes.namespace}/sa/{kubernetes.serviceAccount}\"";

#[test]
fn the_registration_with_the_most_conditions_decides() {
    let (admission, _) = admission(&[
        CLUSTER.to_owned(),
        document("all", "{kubernetes: {}}", TEMPLATE),
        document(
            "orders",
            "{kubernetes: {namespace: data, serviceAccount: [orders, other]}}",
            "spiffeId: spiffe://example.org/orders\n  svidTtl: 10m\n  jwtTtl: 2m\n  taskIdentities: true\n  federatesWith: [other.org]\n  services: [\"{kubernetes.serviceAccount}.{kubernetes.namespace}\"]\n  dnsNames: [orders.example.org]",
        ),
        PARTNER.to_owned(),
    ]);
    let registration = admission.admit(&facts(&[])).unwrap().registration;
    assert_eq!(
        registration.spiffe_id.as_str(),
        "spiffe://example.org/orders"
    );
    assert_eq!(registration.document.as_deref(), Some("data/orders"));
    assert_eq!(registration.svid_ttl, Duration::from_secs(600));
    assert_eq!(registration.jwt_ttl, Some(Duration::from_secs(120)));
    assert_eq!(registration.task_identities, Some(TaskTerms::default()));
    assert_eq!(registration.services[0].as_str(), "orders.data");
    assert_eq!(registration.dns_names, ["orders.example.org"]);
    assert_eq!(registration.federates_with[0].as_str(), "other.org");

    let mut other = facts(&[]);
    other.selectors = [
        ("kubernetes:cluster", "prod"),
        ("kubernetes:namespace", "etl"),
        ("kubernetes:service-account", "orders"),
    ]
    .into_iter()
    .collect();
    let registration = admission.admit(&other).unwrap().registration;
    let expected = "spiffe://example.org/ns/etl/sa/orders";
    assert_eq!(registration.spiffe_id.as_str(), expected);
    assert_eq!(registration.svid_ttl, Duration::from_secs(3600));
}

#[test]
fn a_tie_between_two_identities_is_refused_and_names_both() {
    let (admission, _) = admission(&[
        CLUSTER.to_owned(),
        document(
            "by-namespace",
            "{kubernetes: {namespace: data}}",
            "spiffeId: spiffe://example.org/a",
        ),
        document(
            "by-account",
            "{kubernetes: {serviceAccount: orders}}",
            "spiffeId: spiffe://example.org/b",
        ),
        document("all", "{kubernetes: {}}", TEMPLATE),
    ]);
    let refusal = admission.admit(&facts(&[])).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoRegistrationMatches);
    for part in [
        "data/by-namespace",
        "data/by-account",
        "example.org/a",
        "example.org/b",
    ] {
        assert!(refusal.message.contains(part), "{}", refusal.message);
    }
}

#[test]
fn two_that_give_the_same_identity_are_no_tie() {
    let (admission, _) = admission(&[
        CLUSTER.to_owned(),
        document(
            "b",
            "{kubernetes: {namespace: data}}",
            "spiffeId: spiffe://example.org/a",
        ),
        document(
            "a",
            "{kubernetes: {serviceAccount: orders}}",
            "spiffeId: spiffe://example.org/a",
        ),
    ]);
    let registration = admission.admit(&facts(&[])).unwrap().registration;
    assert_eq!(registration.document.as_deref(), Some("data/a"));
}

#[test]
fn an_unmatched_workload_is_told_what_it_had() {
    let (admission, _) = admission(&[
        CLUSTER.to_owned(),
        document(
            "x",
            "{kubernetes: {namespace: etl}}",
            "spiffeId: spiffe://example.org/a",
        ),
    ]);
    let refusal = admission.admit(&facts(&[("app", "api")])).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoRegistrationMatches);
    assert_eq!(
        refusal.message,
        "no registration matches. Attested were: kubernetes:cluster=prod, kubernetes:namespace=data, kubernetes:pod-label:app=api, kubernetes:service-account=orders"
    );
}

#[test]
fn a_registration_of_one_attestor_says_nothing_of_anothers_workloads() {
    let (admission, _) = admission(&[
        CLUSTER.to_owned(),
        document("all", "{kubernetes: {}}", TEMPLATE),
    ]);
    let mut other = facts(&[]);
    other.attestor = "oidc";
    admission.admit(&other).unwrap_err();
}

#[test]
fn a_label_that_cannot_be_named_does_not_fall_back_to_less() {
    let (admission, _) = admission(&[
        CLUSTER.to_owned(),
        document("all", "{kubernetes: {}}", TEMPLATE),
        document(
            "team",
            "{kubernetes: {namespace: data}}",
            "spiffeId: \"spiffe://example.org/team/{kubernetes.podLabels.team}\"",
        ),
    ]);
    let good = admission.admit(&facts(&[("team", "blue")])).unwrap();
    let id = good.registration.spiffe_id;
    assert_eq!(id.as_str(), "spiffe://example.org/team/blue");
    for bad in ["a/b", "..", "sidewind/x"] {
        let refusal = admission.admit(&facts(&[("team", bad)])).unwrap_err();
        assert!(
            refusal.message.contains("data/team matches, but"),
            "{refusal}"
        );
    }
    admission.admit(&facts(&[])).unwrap_err();
}

#[test]
fn default_identities_are_given_where_the_cluster_says_so_and_nothing_matches() {
    let with_defaults = CLUSTER.replace(
        "inCluster: true",
        "inCluster: true, defaultIdentities: true",
    );
    let special = document(
        "special",
        "{kubernetes: {podLabels: {app: special}}}",
        "spiffeId: spiffe://example.org/special",
    );
    let (admission, live) = admission(&[with_defaults, special]);
    let admitted = admission.admit(&facts(&[])).unwrap();
    let id = admitted.registration.spiffe_id.clone();
    assert_eq!(id.as_str(), "spiffe://example.org/ns/data/sa/orders");
    assert!(admitted.registration.services.is_empty());
    let admitted_special = admission.admit(&facts(&[("app", "special")])).unwrap();
    let id = admitted_special.registration.spiffe_id;
    assert_eq!(id.as_str(), "spiffe://example.org/special");

    let registration = Arc::new(admitted.registration);
    assert!(Arc::ptr_eq(
        &registration,
        &admission.again(&registration).unwrap()
    ));
    live.set(config(&[CLUSTER.to_owned()]));
    let refusal = admission.again(&registration).unwrap_err();
    assert_eq!(refusal.reason, Reason::NotRegistered);
}

#[test]
fn a_renewal_follows_its_document() {
    let orders = |rest: &str| {
        let text = format!("spiffeId: spiffe://example.org/orders\n  {rest}");
        [
            CLUSTER.to_owned(),
            document("orders", "{kubernetes: {namespace: data}}", &text),
        ]
    };
    let (admission, live) = admission(&orders("svidTtl: 10m"));
    let first = Arc::new(admission.admit(&facts(&[])).unwrap().registration);
    assert!(Arc::ptr_eq(&first, &admission.again(&first).unwrap()));

    live.set(config(&orders("svidTtl: 20m\n  services: [orders.data]")));
    let second = admission.again(&first).unwrap();
    assert_eq!(second.id, first.id);
    assert_eq!(second.svid_ttl, Duration::from_secs(1200));
    assert_eq!(second.services.len(), 1);

    let [cluster, moved] = orders("svidTtl: 20m");
    let moved = moved.replace("example.org/orders", "example.org/moved");
    live.set(config(&[cluster, moved]));
    let refusal = admission.again(&second).unwrap_err();
    assert_eq!(refusal.reason, Reason::NotRegistered);
    assert!(
        refusal.message.contains("spiffe://example.org/moved"),
        "{refusal}"
    );

    live.set(config(&[]));
    let refusal = admission.again(&second).unwrap_err();
    assert_eq!(refusal.reason, Reason::NotRegistered);
}

#[test]
fn what_came_of_a_join_token_needs_no_document() {
    let (admission, _) = admission(&[]);
    let id = SpiffeId::parse("spiffe://example.org/x").unwrap();
    let registration = Arc::new(Registration::new(id, "join-token"));
    admission.again(&registration).unwrap();
}

#[test]
fn a_pin_is_replaced_by_a_registration_that_names_it() {
    let role = r#"{awsIam: {roleArn: "arn:aws:iam::123456789012:role/r"}}"#;
    let named = r#"{awsIam: {roleArn: "arn:aws:iam::123456789012:role/r", roleId: AROA2}}"#;
    for (selectors, expected) in [(role, false), (named, true)] {
        let registration = document("r", selectors, "spiffeId: spiffe://example.org/r");
        let (admission, _) = admission(&[ACCOUNTS.to_owned(), registration]);
        let arn = Selector::new("aws-iam:role-arn", "arn:aws:iam::123456789012:role/r");
        let id = Selector::new("aws-iam:role-id", "AROA2");
        let facts = Facts {
            attestor: "aws-iam",
            selectors: [&arn, &id]
                .map(|s| (s.key(), s.value()))
                .into_iter()
                .collect(),
            pins: vec![Pin {
                subject: arn,
                fact: id,
            }],
        };
        let pins = admission.admit(&facts).unwrap().pins;
        assert_eq!(pins[0].named, expected);
        assert_eq!(pins[0].value, "AROA2");
    }
}
