//! Foreign trust domains, right and wrong.

use super::*;
use crate::config::document::SourceFile;
use crate::config::{Config, ConfigErrors, Expectations};

const WEB: &str = r"apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: { name: partner }
spec:
  trustDomain: partner.example
  url: https://bundle.partner.example/spiffe?v=1
  profile: https_web
  caFile: /etc/partner/ca.pem
  refreshInterval: 10m
";

fn root() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.self_signed(&key).unwrap().pem()
}

fn spiffe() -> String {
    let root: String = root().lines().map(|line| format!("    {line}\n")).collect();
    format!(
        r"apiVersion: sidewind.dev/v1alpha1
kind: FederatedTrustDomain
metadata: {{ name: partner }}
spec:
  trustDomain: partner.example
  url: https://bundle.partner.example
  profile: https_spiffe
  endpointSpiffeId: spiffe://partner.example/sidewind/control-plane
  bootstrapBundle: |
{root}"
    )
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let file = SourceFile {
        name: "mesh.yaml".to_owned(),
        text: text.to_owned(),
    };
    let expectations = Expectations {
        trust_domain: TrustDomain::parse("sidewind.local").ok(),
        ..Expectations::default()
    };
    Config::parse_for(&[file], &expectations)
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[test]
fn a_foreign_trust_domain_of_each_profile_is_read() {
    let config = parse(WEB).unwrap();
    let partner = &config.federated()[&domain("partner.example")];
    assert_eq!(
        partner.url.to_string(),
        "https://bundle.partner.example/spiffe?v=1"
    );
    let ca_file = Some(PathBuf::from("/etc/partner/ca.pem"));
    assert_eq!(partner.profile, EndpointProfile::Web { ca_file });
    assert_eq!(partner.refresh_interval, Some(Duration::from_secs(600)));
    assert_eq!(config.counts().federated, 1);

    let config = parse(&spiffe()).unwrap();
    let partner = &config.federated()[&domain("partner.example")];
    let EndpointProfile::Spiffe {
        endpoint,
        bootstrap: Some(Bootstrap::Inline(bundle)),
    } = &partner.profile
    else {
        panic!("{partner:?}");
    };
    assert_eq!(
        endpoint.as_str(),
        "spiffe://partner.example/sidewind/control-plane"
    );
    assert_eq!(bundle.authorities().len(), 1);
    assert_eq!(partner.refresh_interval, None);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_field() {
    let spiffe = spiffe();
    let rows = [
        (
            WEB,
            "partner.example\n",
            "Partner\n",
            "5:16: spec.trustDomain:",
        ),
        (
            WEB,
            "partner.example\n",
            "sidewind.local\n",
            "5:16: spec.trustDomain: is this control plane's own trust domain",
        ),
        (WEB, "https://bundle", "http://bundle", "6:8: spec.url:"),
        (WEB, "https://bundle", "https://me@bundle", "6:8: spec.url:"),
        (
            WEB,
            "https_web",
            "https",
            "7:12: spec.profile: \"https\" is not one of",
        ),
        (
            WEB,
            "/etc/partner",
            "partner",
            "8:11: spec.caFile: must be the absolute path",
        ),
        (WEB, "10m", "0s", "9:20: spec.refreshInterval:"),
        (
            WEB,
            "10m",
            "25h",
            "9:20: spec.refreshInterval: must be from 1s to 24h",
        ),
        (
            WEB,
            "caFile: /etc",
            "bootstrapBundleFile: /etc",
            "8:24: spec.bootstrapBundleFile: is for profile https_spiffe",
        ),
        (
            WEB,
            "https_web",
            "https_spiffe",
            "8:11: spec.caFile: is for profile https_web",
        ),
        (WEB, "refreshInterval", "refresh", "9:3: spec.refresh:"),
        (
            &spiffe,
            "spiffe://partner.example/sidewind/control-plane",
            "spiffe://partner.example",
            "8:21: spec.endpointSpiffeId: is a trust domain's and no workload's",
        ),
        (
            &spiffe,
            "spiffe://partner.example/sidewind/control-plane",
            "partner.example",
            "8:21: spec.endpointSpiffeId:",
        ),
        (
            &spiffe,
            "spiffe://partner.example/sidewind/control-plane",
            "spiffe://other.example/server",
            "8:21: spec.endpointSpiffeId: is of trust domain other.example, and is verified with the bundle of that one",
        ),
        (
            &spiffe,
            "BEGIN CERTIFICATE",
            "BEGIN KEY",
            "10:5: spec.bootstrapBundle: is no bundle of partner.example",
        ),
    ];
    for (document, from, to, expected) in rows {
        let error = parse(&document.replacen(from, to, 1)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected), "{from} → {to}:\n{error}");
    }
    let cut = |name: &str| {
        let lines = spiffe.lines().filter(|line| !line.contains(name));
        let lines = lines.map(|line| format!("{line}\n"));
        parse(&lines.collect::<String>()).unwrap_err().to_string()
    };
    assert!(cut("endpointSpiffeId").contains("must have `endpointSpiffeId`"));
    let without = spiffe.split("  bootstrapBundle").next().unwrap();
    let error = parse(without).unwrap_err().to_string();
    assert!(
        error.contains("spec: must have `bootstrapBundle` or `bootstrapBundleFile`"),
        "{error}"
    );
}

#[test]
fn one_trust_domain_is_configured_once_and_no_more_than_can_be_fetched() {
    let twice = format!("{WEB}---\n{}", WEB.replace("name: partner", "name: other"));
    let error = parse(&twice).unwrap_err().to_string();
    assert!(
        error.contains("trust domain partner.example is already given at mesh.yaml:5"),
        "{error}"
    );
    let many = |number: usize| {
        let one = |n: usize| {
            let text = WEB.replace("name: partner", &format!("name: p{n}"));
            format!(
                "---\n{}",
                text.replace("trustDomain: partner", &format!("trustDomain: p{n}"))
            )
        };
        parse(&(0..number).map(one).collect::<String>())
    };
    assert_eq!(
        many(MAX_FEDERATED).unwrap().counts().federated,
        MAX_FEDERATED
    );
    let error = many(MAX_FEDERATED + 1).unwrap_err().to_string();
    assert!(error.contains("one too many"), "{error}");
}

#[test]
fn who_names_a_trust_domain_that_nobody_fetches_is_told() {
    let entry = |id: &str| {
        format!(
            "---\napiVersion: sidewind.dev/v1alpha1\nkind: ServiceEntry\nmetadata: {{ name: far }}\nspec:\n  hosts: [far.example]\n  ports: [{{ port: 80 }}]\n  endpoints:\n    - {{ address: 192.0.2.7, spiffeId: \"{id}\" }}\n"
        )
    };
    for (documents, expected) in [
        (entry("spiffe://partner.example/x") + "---\n" + WEB, None),
        (entry("spiffe://sidewind.local/x"), None),
        (
            entry("spiffe://partner.example/x"),
            Some(
                "spec.endpoints[0].spiffeId: is of trust domain partner.example, which no FederatedTrustDomain",
            ),
        ),
        (
            spiffe()
                .replace(
                    "spiffe://partner.example/sidewind",
                    "spiffe://other.example/sidewind",
                )
                .split("  bootstrapBundle")
                .next()
                .unwrap()
                .to_owned(),
            Some(
                "spec.endpointSpiffeId: is of trust domain other.example, which no FederatedTrustDomain",
            ),
        ),
    ] {
        match (parse(&documents), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                let error = error.to_string();
                assert!(error.contains(expected), "{error}");
            }
            (result, _) => panic!("{documents}: {result:?}"),
        }
    }
}

#[test]
fn a_bootstrap_bundle_is_a_bundle_document_or_pem() {
    let domain = domain("partner.example");
    let now = SystemTime::now();
    let pem = root();
    let bundle = read_bootstrap(&domain, &pem, now).unwrap();
    let keys = sidewind_identity::jwt::bundle::JwtBundle::new(domain.clone(), Vec::new()).unwrap();
    let document = BundleDocument::new(bundle.clone(), keys, Duration::from_secs(300)).unwrap();
    let read = read_bootstrap(&domain, &document.to_json(), now).unwrap();
    assert_eq!(read.authorities(), bundle.authorities());
    for bad in ["", "{}", "{\"keys\":[]}", "-----BEGIN", "[]"] {
        assert!(read_bootstrap(&domain, bad, now).is_err(), "{bad:?}");
    }
    let large = " ".repeat(MAX_DOCUMENT_BYTES + 1);
    assert!(read_bootstrap(&domain, &large, now).is_err());
}
