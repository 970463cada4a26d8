//! Registrations and attestor configurations, right and wrong.

use super::document::SourceFile;
use super::{Config, ConfigErrors, Expectations};
use std::sync::Arc;
use std::time::Duration;

fn parse_for(text: &str, expectations: &Expectations) -> Result<Config, ConfigErrors> {
    let name = "mesh.yaml".to_owned();
    let text = text.to_owned();
    Config::parse_for(&[SourceFile { name, text }], expectations)
}

pub(super) fn parse(text: &str) -> Result<Config, ConfigErrors> {
    parse_for(text, &Expectations::default())
}

const REGISTRATION: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: Registration
metadata: { name: workers, namespace: airflow }
spec:
  selectors: { kubernetes: { namespace: airflow, podLabels: { app: w } } }
  spiffeId: "spiffe://sidewind.local/ns/{kubernetes.namespace}"
  svidTtl: 10m
  jwtTtl: 5m
  dnsNames: [w.example.org]
  services: [w.airflow]
  federatesWith: [other.org]
"#;

/// The trust domain that the registration federates with.
const PARTNER: &str = "---
apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: { name: other }
spec: { trustDomain: other.org, url: 'https://bundle.other.org', profile: https_web }
";

pub(super) const ATTESTORS: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: AttestorConfig
metadata: { name: all }
spec:
  kubernetes:
    - { cluster: prod, apiServer: "https://10.0.0.1:6443", caFile: /ca, tokenFile: /token }
  oidc:
    - { issuer: "https://issuer.example", algorithms: [ES256], maxAge: 10m }
"#;

#[test]
fn terms_of_tasks_are_read() {
    use crate::store::TaskTerms;
    let airflow = "\n---\napiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: { name: airflow }\nspec:\n  airflow: [{ name: production, secretFile: /secret }]\n";
    let minute = Duration::from_secs(60);
    for (text, expected) in [
        ("false", None),
        ("true", Some(TaskTerms::default())),
        ("{}", Some(TaskTerms::default())),
        (
            "{ svidTtl: 1m, airflow: production }",
            Some(TaskTerms {
                svid_ttl: minute,
                airflow: Some("production".to_owned()),
            }),
        ),
    ] {
        let text =
            format!("{REGISTRATION}  taskIdentities: {text}\n{PARTNER}---{ATTESTORS}{airflow}");
        let config = parse(&text).unwrap();
        assert_eq!(config.registrations()[0].task_identities, expected);
    }
    for (text, says) in [
        ("maybe", "must be true, false"),
        ("[]", "must be true, false"),
        ("{ svidTtl: 30s }", "must be from 1m to 1h"),
        ("{ svidTtl: [] }", "must be a text"),
        ("{ ttl: 1m }", "is not known; there are svidTtl and airflow"),
        (
            "{ airflow: other }",
            "names Airflow \"other\", which no AttestorConfig configures",
        ),
    ] {
        let text = format!("{REGISTRATION}  taskIdentities: {text}\n---{ATTESTORS}{airflow}");
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
        assert!(error.contains("spec.taskIdentities"), "{error}");
    }
}

#[test]
fn whose_word_on_tasks_counts_is_one_identity_and_no_pattern() {
    let text = format!("{REGISTRATION}  taskContext: true\n{PARTNER}---{ATTESTORS}");
    let error = parse(&text).unwrap_err().to_string();
    let expected = "spec.taskContext: needs a `spiffeId` without placeholders";
    assert!(error.contains(expected), "{error}");
    let fixed = text.replace("{kubernetes.namespace}", "airflow");
    let teller = "spiffe://sidewind.local/ns/airflow";
    assert_eq!(parse(&fixed).unwrap().tellers_of_tasks(), [teller]);
    let silent = fixed.replace("taskContext: true", "taskContext: false");
    assert!(parse(&silent).unwrap().tellers_of_tasks().is_empty());
}

/// What is right, what of it to replace with what, and how the mistake is told.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "selectors: { kubernetes: {",
        "selectors: { nothing: {",
        "6:16: spec.selectors.nothing: is not an attestor; there are kubernetes, oidc, awsIam, x509",
    ),
    (
        "{ kubernetes: { namespace: airflow, podLabels: { app: w } } }",
        "{}",
        "6:14: spec.selectors: must be of one attestor",
    ),
    (
        "{ kubernetes: { namespace: airflow, podLabels: { app: w } } }",
        "x",
        "6:14: spec.selectors: must hold fields",
    ),
    (
        "{ kubernetes: { namespace: airflow, podLabels: { app: w } } }",
        "{ kubernetes: {}, oidc: {} }",
        "6:14: spec.selectors: must be of one attestor",
    ),
    (
        "namespace: airflow,",
        "namspace: airflow,",
        "6:30: spec.selectors.kubernetes.namspace: is not known; kubernetes has cluster",
    ),
    (
        "namespace: airflow,",
        "namespace: [],",
        "6:41: spec.selectors.kubernetes.namespace: must be a text, or a list",
    ),
    (
        "namespace: airflow,",
        "namespace: \"\",",
        "6:41: spec.selectors.kubernetes.namespace: must be a text that is not empty",
    ),
    (
        "namespace: airflow,",
        "namespace: {a: b},",
        "6:41: spec.selectors.kubernetes.namespace: must be a text, or a list",
    ),
    (
        "podLabels: { app: w }",
        "podLabels: w",
        "6:61: spec.selectors.kubernetes.podLabels: must hold fields",
    ),
    (
        "/ns/{kubernetes.namespace}",
        "/sidewind/x",
        "7:13: spec.spiffeId: paths under /sidewind/ are reserved",
    ),
    (
        "/ns/{kubernetes.namespace}",
        "/sidewind/{kubernetes.namespace}",
        "7:13: spec.spiffeId: paths under /sidewind/ are reserved",
    ),
    (
        "/ns/{kubernetes.namespace}",
        "",
        "7:13: spec.spiffeId: it has no path",
    ),
    (
        "/ns/{kubernetes.namespace}",
        "//x",
        "7:13: spec.spiffeId: \"spiffe://sidewind.local//x\" is not a SPIFFE ID",
    ),
    (
        "{kubernetes.namespace}",
        "{oidc.subject}",
        "7:13: spec.spiffeId: {oidc.subject} is not of this registration's selectors",
    ),
    (
        "{kubernetes.namespace}",
        "{kubernetes.name}",
        "7:13: spec.spiffeId: {kubernetes.name} is not known",
    ),
    (
        "svidTtl: 10m",
        "svidTtl: 10s",
        "8:12: spec.svidTtl: must be from 1m to 1d, not 10s",
    ),
    (
        "svidTtl: 10m",
        "svidTtl: soon",
        "8:12: spec.svidTtl: \"soon\" is not a duration",
    ),
    (
        "svidTtl: 10m",
        "svidTtl: 2h",
        "8:12: spec.svidTtl: 2h is too long",
    ),
    (
        "jwtTtl: 5m",
        "jwtTtl: 2h",
        "9:11: spec.jwtTtl: must be from 1m to 1h, not 2h",
    ),
    (
        "[w.example.org]",
        "[W.example.org]",
        "10:14: spec.dnsNames[0]: \"W.example.org\" is no host name",
    ),
    ("[w.airflow]", "[w]", "11:14: spec.services[0]:"),
    ("[other.org]", "[Other]", "12:19: spec.federatesWith[0]:"),
    (
        "[other.org]",
        "[other.com]",
        "12:18: spec.federatesWith: names other.com, which no FederatedTrustDomain configures",
    ),
    (
        "[other.org]",
        "[sidewind.local]",
        "12:19: spec.federatesWith[0]: is the workload's own trust domain",
    ),
    (
        "sidewind.local/ns",
        "other.local/ns",
        "7:13: spec.spiffeId: \"spiffe://other.local/ns/{kubernetes.namespace}\" is of trust domain other.local",
    ),
    ("  jwtTtl", "  colour: red\n  jwtTtl", "9:3: spec.colour:"),
];

fn expectations() -> Expectations {
    let honours = |ttl: Duration| {
        let hour = Duration::from_secs(3600);
        (ttl <= hour)
            .then_some(())
            .ok_or_else(|| "2h is too long".to_owned())
    };
    Expectations {
        trust_domain: sidewind_identity::TrustDomain::parse("sidewind.local").ok(),
        lifetime: Some(Arc::new(honours)),
    }
}

#[test]
fn each_mistake_of_a_registration_is_told_with_its_place() {
    let good = format!("{REGISTRATION}---{ATTESTORS}{PARTNER}");
    parse_for(&good, &expectations()).unwrap_or_else(|errors| panic!("{errors}"));
    let mut wrong = String::new();
    for (from, to, expected) in MISTAKES {
        assert!(REGISTRATION.contains(from), "{from}");
        let text = format!(
            "{}---{ATTESTORS}{PARTNER}",
            REGISTRATION.replacen(from, to, 1)
        );
        let told = match parse_for(&text, &expectations()) {
            Ok(_) => "nothing".to_owned(),
            Err(errors) => errors.to_string(),
        };
        if !told.starts_with(&format!("mesh.yaml:{expected}")) {
            wrong.push_str(&format!(
                "{to:?} is told as\n{told}\nand not as\n{expected}\n\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn each_mistake_of_an_attestor_is_told_with_its_field() {
    let cluster =
        "cluster: prod, apiServer: \"https://10.0.0.1:6443\", caFile: /ca, tokenFile: /token";
    let issuer = "issuer: \"https://issuer.example\", algorithms: [ES256], maxAge: 10m";
    let rows = [
        (
            "cluster: prod,",
            "cluster: Prod,",
            "cluster: must be of lower-case",
        ),
        (
            "https://10.0.0.1:6443",
            "http://10.0.0.1",
            "apiServer: \"http://10.0.0.1\" must begin with https://",
        ),
        (", caFile: /ca", "", "kubernetes[0]: must have `caFile`"),
        (
            ", tokenFile: /token",
            "",
            "kubernetes[0]: must have `tokenFile`",
        ),
        (
            "caFile: /ca",
            "caFile: ca",
            "caFile: must be the absolute path",
        ),
        (cluster, "cluster: prod", "kubernetes[0]: must have one of"),
        (
            cluster,
            "cluster: prod, inCluster: false",
            "kubernetes[0]: must have one of",
        ),
        (
            cluster,
            "cluster: prod, inCluster: true, jwksFile: /x",
            "kubernetes[0]: must have one of",
        ),
        (
            cluster,
            "cluster: prod, inCluster: true, issuer: x",
            "issuer: is for `jwksFile`",
        ),
        (
            cluster,
            "cluster: prod, jwksFile: /x",
            "kubernetes[0]: must have `issuer`",
        ),
        (
            cluster,
            "cluster: prod, issuer: x, jwksFile: /x, tokenFile: /y",
            "tokenFile: is for `apiServer`",
        ),
        (
            cluster,
            "cluster: prod, inCluster: true, audience: \"\"",
            "audience: must be a text of 1 to",
        ),
        (
            cluster,
            "cluster: prod, inCluster: true, audience: https://kubernetes.default.svc",
            "audience: is the API server's own audience",
        ),
        (
            "https://issuer.example",
            "http://issuer.example",
            "issuer: \"http://issuer.example\" must begin with https://",
        ),
        (
            "[ES256]",
            "[HS256]",
            "algorithms[0]: \"HS256\" is not one of RS256, ES256, ES384",
        ),
        ("[ES256]", "[none]", "algorithms[0]: \"none\" is not one of"),
        (
            "[ES256]",
            "[PS256]",
            "algorithms[0]: \"PS256\" is not one of",
        ),
        ("[ES256]", "[]", "algorithms: must name at least one"),
        (
            "maxAge: 10m",
            "maxAge: 25h",
            "maxAge: must be from 1m to 24h",
        ),
        (
            issuer,
            "issuer: \"https://i.example\", jwksFile: /x, jwksUrl: \"https://i.example\"",
            "jwksFile: and `jwksUrl` exclude each other",
        ),
        (
            issuer,
            "issuer: \"https://i.example\", jwksFile: /x, caFile: /y",
            "caFile: is for what is fetched",
        ),
        (
            issuer,
            "issuer: \"https://i.example\", awsAccounts: []",
            "awsAccounts: must name at least one",
        ),
        (
            issuer,
            "issuer: \"https://i.example\", awsAccounts: [\"123\"]",
            "awsAccounts[0]: must be the 12 digits",
        ),
        (
            issuer,
            "issuer: \"https://x.tokens.sts.global.api.aws\"",
            "issuer: is of AWS STS, and needs `awsAccounts`",
        ),
    ];
    for (from, to, expected) in rows {
        assert!(ATTESTORS.contains(from), "{from}");
        let errors = parse(&ATTESTORS.replacen(from, to, 1))
            .expect_err(to)
            .to_string();
        assert!(errors.contains(expected), "{to}: {errors}");
    }
    let empty = ATTESTORS.split("spec:").next().unwrap();
    let errors = parse(&format!("{empty}spec: {{}}\n"))
        .unwrap_err()
        .to_string();
    assert!(errors.contains("spec: must have an attestor"), "{errors}");
}

proptest::proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic(at in 0..600_usize, with in "\\PC{0,4}") {
        for text in [REGISTRATION, ATTESTORS] {
            let at = at % text.len();
            let damaged = format!("{}{with}{}", &text[..at], &text[(at + 1).min(text.len())..]);
            let _ = parse(&damaged);
        }
    }
}
