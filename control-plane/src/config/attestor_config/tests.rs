//! `AttestorConfig` of AWS and of existing certificates, and the registrations that go with them.

use super::super::document::SourceFile;
use super::super::{Config, ConfigErrors};

fn parse(spec: &str, registration: &str) -> Result<Config, ConfigErrors> {
    let text = format!(
        "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: a, namespace: mesh }}\nspec:\n{spec}\n---\n{registration}"
    );
    let name = "mesh.yaml".to_owned();
    Config::parse(&[SourceFile { name, text }])
}

fn registration(selectors: &str) -> String {
    format!(
        "apiVersion: sidewind.dev/v1alpha1\nkind: Registration\nmetadata: {{ name: r, namespace: mesh }}\nspec:\n  selectors: {selectors}\n  spiffeId: spiffe://sidewind.local/ns/data/sa/orders\n"
    )
}

fn error(spec: &str, registration: &str) -> String {
    parse(spec, registration).unwrap_err().to_string()
}

const AWS: &str = r#"  awsIam: [{ regions: [eu-west-1, cn-north-1], accounts: ["123456789012", "210987654321"] }]"#;
const X509: &str = "  x509: [{ authority: vault, caFile: /etc/sidewind/vault.pem }]";

#[test]
fn regions_and_authorities_are_read() {
    let roles = r#"{ awsIam: { roleArn: "arn:aws:iam::123456789012:role/orders" } }"#;
    let config = parse(AWS, &registration(roles)).unwrap();
    let regions = &config.attestors().aws_iam;
    let hosts: Vec<&str> = regions.iter().map(|taken| taken.region.host()).collect();
    assert_eq!(
        hosts,
        [
            "sts.eu-west-1.amazonaws.com",
            "sts.cn-north-1.amazonaws.com.cn"
        ]
    );
    assert_eq!(regions[1].accounts, ["123456789012", "210987654321"]);
    assert_eq!(config.counts().attestors, 2);

    let endpoint = r#"  awsIam: [{ regions: [eu-west-1], accounts: ["123456789012"], endpoint: "https://vpce-1.example", caFile: /ca.pem }]"#;
    let config = parse(endpoint, "").unwrap();
    let taken = &config.attestors().aws_iam[0];
    assert_eq!(
        taken.region.endpoint().to_string(),
        "https://vpce-1.example"
    );
    assert!(taken.ca_file.is_some());

    let names = "{ x509: { authority: vault, dnsNames: orders.data } }";
    let config = parse(X509, &registration(names)).unwrap();
    assert_eq!(config.attestors().x509[0].authority, "vault");
}

#[test]
fn airflows_are_read() {
    let spec = "  airflow:\n  - { name: a, secretFile: /secret }\n  - { name: b, jwksFile: /keys.json, audience: tasks, issuer: b }";
    let config = parse(spec, "").unwrap();
    let [a, b] = config.attestors().airflow.as_slice() else {
        panic!("not two");
    };
    assert_eq!(a.audience, "urn:airflow.apache.org:task");
    assert_eq!(
        (b.audience.as_str(), b.issuer.as_deref()),
        ("tasks", Some("b"))
    );
    assert_eq!(config.counts().attestors, 2);
}

#[test]
fn attestors_that_cannot_be_meant_are_refused() {
    for (spec, says) in [
        ("  airflow: [{ name: a }]", "must have one of `secretFile`"),
        (
            "  airflow: [{ name: a, secretFile: /s, jwksFile: /k }]",
            "and not both",
        ),
        ("  airflow: [{ name: a, secretFile: s }]", "absolute path"),
        ("  airflow: [{ name: A b, secretFile: /s }]", "lower-case"),
        (
            "  airflow: [{ name: a, secretFile: /s, issuer: \"\" }]",
            "must not be empty",
        ),
        (
            "  airflow: [{ name: a, secretFile: /s }, { name: a, secretFile: /t }]",
            "already given",
        ),
        ("  {}", "must have an attestor"),
        (
            r#"  awsIam: [{ regions: [], accounts: ["123456789012"] }]"#,
            "at least one region",
        ),
        (
            "  awsIam: [{ regions: [eu-west-1], accounts: [] }]",
            "at least one account",
        ),
        ("  awsIam: [{ regions: [eu-west-1] }]", "missing"),
        (
            r#"  awsIam: [{ regions: [eu-west-1], accounts: ["12345678901"] }]"#,
            "12 digits",
        ),
        (
            r#"  awsIam: [{ regions: ["*"], accounts: ["123456789012"] }]"#,
            "not the name of a region",
        ),
        (
            r#"  awsIam: [{ regions: [sts.amazonaws.com.evil], accounts: ["123456789012"] }]"#,
            "not the name of a region",
        ),
        (
            r#"  awsIam: [{ regions: [eu-west-1, eu-west-1], accounts: ["123456789012"] }]"#,
            "already given",
        ),
        (
            r#"  awsIam: [{ regions: [eu-west-1], accounts: ["123456789012"], endpoint: "http://127.0.0.1:5000" }]"#,
            "https://",
        ),
        (
            r#"  awsIam: [{ regions: [eu-west-1], accounts: ["123456789012"], endpoint: "https://a/b" }]"#,
            "has a path",
        ),
        (
            r#"  awsIam: [{ regions: [eu-west-1, eu-west-2], accounts: ["123456789012"], endpoint: "https://a" }]"#,
            "of one region",
        ),
        (
            r#"  awsIam: [{ regions: [eu-west-1], accounts: ["123456789012"], url: x }]"#,
            "url",
        ),
        (
            "  x509: [{ authority: vault, caFile: roots.pem }]",
            "absolute path",
        ),
        (
            "  x509: [{ authority: Vault CA, caFile: /roots.pem }]",
            "lower-case",
        ),
        (
            "  x509: [{ authority: a, caFile: /a.pem }, { authority: a, caFile: /b.pem }]",
            "already given",
        ),
    ] {
        let error = error(spec, "");
        assert!(error.contains(says), "{spec}: {error}");
    }
}

#[test]
fn registrations_that_could_never_match_or_match_too_much_are_refused() {
    for (spec, selectors, says) in [
        (
            AWS,
            r#"{ awsIam: { roleArn: "arn:aws:iam::123456789012:role/team/orders" } }"#,
            "role/orders",
        ),
        (
            AWS,
            r#"{ awsIam: { roleArn: "arn:aws:iam::999999999999:role/orders" } }"#,
            "account",
        ),
        (
            AWS,
            r#"{ awsIam: { roleArn: "arn:aws:iam::123456789012:role/*" } }"#,
            "is not like",
        ),
        (
            AWS,
            r#"{ awsIam: { accounts: "999999999999", roleName: orders } }"#,
            "999999999999",
        ),
        (AWS, "{ awsIam: { roleName: orders } }", "two accounts"),
        (
            AWS,
            "{ x509: { authority: vault, dnsNames: a } }",
            "no AttestorConfig",
        ),
        (X509, "{ x509: { authority: other, dnsNames: a } }", "other"),
        (X509, "{ x509: { dnsNames: a } }", "must name `authority`"),
        (
            X509,
            r#"{ awsIam: { accounts: "123456789012", roleName: a } }"#,
            "no AttestorConfig",
        ),
    ] {
        let error = error(spec, &registration(selectors));
        assert!(error.contains(says), "{selectors}: {error}");
    }
}
