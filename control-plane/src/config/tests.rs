//! Resources, right and wrong.

use super::*;
use document::SourceFile;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let name = "mesh.yaml".to_owned();
    let text = text.to_owned();
    Config::parse(&[SourceFile { name, text }])
}

fn counts(config: &Config) -> (usize, usize, usize) {
    let counts = config.counts();
    (counts.policies, counts.entries, counts.routes)
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

const POLICY: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: orders-api, namespace: data }
spec:
  selector: { spiffeIds: ["spiffe://sidewind.local/ns/data/sa/orders-api"] }
  rules:
    - from: [{ spiffeIds: ["spiffe://sidewind.local/ns/airflow/sa/*"] }]
      to:   [{ ports: [8080], methods: [GET], paths: ["/orders", "/orders/*"] }]
"#;

const ENTRY: &str = r"
apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: orders, namespace: data }
spec:
  hosts: [orders.data]
  addresses: [10.96.0.10]
  ports: [{port: 80, protocol: http, targetPort: 8080}]
  service: orders-api.data
";

const FAR: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: ServiceEntry
metadata: { name: prices }
spec:
  hosts: [prices.partner.example]
  ports: [{ port: 80, targetPort: 8080 }]
  endpoints: [{ address: 192.0.2.7, spiffeId: "spiffe://partner.example/prices", meshPort: 15009 }]
"#;

const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data }
spec:
  parentRefs: [{ group: "", kind: Service, name: orders-api, port: 8080 }]
  rules:
    - timeouts: { request: 10s, backendRequest: 2s500ms }
      retry: { attempts: 3, codes: [502, 503], backoff: 50ms }
      backendRefs: [{ name: orders-api, port: 8080 }]
"#;

#[test]
fn a_file_of_several_documents_is_read_whole() {
    let text = format!("# comments alone\n---{POLICY}---{ENTRY}\n---\n---{ROUTE}--- # the end\n");
    let config = parse(&text).unwrap();
    assert_eq!(counts(&config), (1, 1, 1));
    let (selected, rules) =
        config.inbound_rules(&id("spiffe://sidewind.local/ns/data/sa/orders-api"));
    assert!(selected);
    assert_eq!(
        rules,
        [v1::AllowRule {
            policy: "data/orders-api".to_owned(),
            sources: vec!["spiffe://sidewind.local/ns/airflow/sa/*".to_owned()],
            ports: vec![8080],
            methods: vec!["GET".to_owned()],
            path_patterns: vec!["/orders".to_owned(), "/orders/*".to_owned()],
        }]
    );
    let address = "10.96.0.10".parse().unwrap();
    assert!(config.entry_of_address(address, 80).is_some());
    assert!(config.entry_of_address(address, 81).is_none());
    assert_eq!(
        config.entry_of_host("orders.data", 80).unwrap().name,
        "data/orders"
    );
    let service = "orders-api.data".parse().unwrap();
    let (route, table) = config.routes(&service, 8080);
    let route = route.unwrap();
    assert_eq!(route.request_timeout_ms, Some(10_000));
    assert_eq!(route.backend_request_timeout_ms, Some(2_500));
    assert_eq!(route.retry_codes, [502, 503]);
    assert_eq!(table, None);
    assert_eq!(config.routes(&service, 9090), (None, None));
}

#[test]
fn a_workload_that_no_policy_selects_is_not_denied_by_default() {
    let config = parse(POLICY).unwrap();
    let (selected, rules) = config.inbound_rules(&id("spiffe://sidewind.local/ns/data/sa/orders"));
    assert!(!selected && rules.is_empty());
}

#[test]
fn a_policy_without_rules_denies_everything() {
    let rules = POLICY.split("rules:").next().unwrap();
    let config = parse(&format!("{rules}rules: []\n")).unwrap();
    let (selected, rules) =
        config.inbound_rules(&id("spiffe://sidewind.local/ns/data/sa/orders-api"));
    assert!(selected && rules.is_empty());
}

/// What is replaced in a right document, by what, and the one error that this must be.
type Mistake = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    (POLICY, "  rules:", "  rule:", "mesh.yaml:7:3: spec.rule: unknown field `rule`, expected one of selector, rules"),
    (POLICY, "  selector: { spiffeIds: [\"spiffe://sidewind.local/ns/data/sa/orders-api\"] }\n", "", "mesh.yaml:6:3: spec.selector: is missing"),
    (POLICY, "kind: AuthorizationPolicy", "kind: AuthorisationPolicy", "mesh.yaml:3:7: kind: AuthorisationPolicy of sidewind.dev/v1alpha1 is not one that this version takes; it takes AuthorizationPolicy, ServiceEntry, TrafficPolicy, RouteExtension, Registration, AttestorConfig and FederatedTrustDomain of sidewind.dev/v1alpha1, and HTTPRoute, GRPCRoute, TLSRoute and Gateway of gateway.networking.k8s.io/v1"),
    (POLICY, "kind: AuthorizationPolicy\n", "", "mesh.yaml:1:1: kind: is missing"),
    (POLICY, "apiVersion: sidewind.dev/v1alpha1\n", "", "mesh.yaml:1:1: apiVersion: is missing"),
    (POLICY, "[8080]", "[80800]", "mesh.yaml:9:24: spec.rules[0].to[0].ports[0]: must be a whole number from 0 to 65535"),
    (POLICY, "[8080]", "[0]", "mesh.yaml:9:24: spec.rules[0].to[0].ports[0]: must be a port from 1 to 65535"),
    (POLICY, "[8080]", "8080", "mesh.yaml:9:23: spec.rules[0].to[0].ports: must be a list, like [a, b]"),
    (POLICY, "[8080]", "[]", "mesh.yaml:9:23: spec.rules[0].to[0].ports: must not be empty; leave it out to allow every port"),
    (POLICY, "methods: [GET]", "methods: [get]", "mesh.yaml:9:41: spec.rules[0].to[0].methods[0]: \"get\" is not an HTTP method; write it in upper case, like GET"),
    (POLICY, "\"/orders/*\"", "\"/orders*\"", "mesh.yaml:9:66: spec.rules[0].to[0].paths[1]: in path pattern \"/orders*\" a `*` must be a whole segment: `/orders/*` matches what is below /orders, `/orders/*/items` one segment between"),
    (POLICY, "/ns/airflow/sa/*", "/ns/airflow/**", "mesh.yaml:8:28: spec.rules[0].from[0].spiffeIds[0]: "),
    (POLICY, "from: [{ spiffeIds: [\"spiffe://sidewind.local/ns/airflow/sa/*\"] }]", "from: []", "mesh.yaml:8:13: spec.rules[0].from: must not be empty; leave it out to allow any caller"),
    (POLICY, "[\"spiffe://sidewind.local/ns/data/sa/orders-api\"]", "[]", "mesh.yaml:6:26: spec.selector.spiffeIds: must name at least one SPIFFE ID or pattern"),
    (POLICY, "name: orders-api,", "name: Orders,", "mesh.yaml:4:19: metadata.name: must be of lower-case letters, digits, `-` and `.`"),
    (ENTRY, "[orders.data]", "[Orders.data]", "mesh.yaml:6:11: spec.hosts[0]: \"Orders.data\" is not a host name in lower case"),
    (ENTRY, "[orders.data]", "[10.0.0.1]", "mesh.yaml:6:11: spec.hosts[0]: is an address; give it under `addresses`"),
    (ENTRY, "[10.96.0.10]", "[10.96.0.0/24]", "mesh.yaml:7:15: spec.addresses[0]: \"10.96.0.0/24\" is not an IP address; names go under `hosts`"),
    (ENTRY, "[10.96.0.10]", "[0.0.0.0]", "mesh.yaml:7:15: spec.addresses[0]: 0.0.0.0 is not the address of one host"),
    (ENTRY, "protocol: http,", "protocol: https,", "mesh.yaml:8:32: spec.ports[0].protocol: \"https\" is not one of auto, http, http2, grpc, tls, tcp"),
    (ENTRY, "service: orders-api.data", "endpoints: []", "mesh.yaml:9:14: spec.endpoints: must name at least one endpoint"),
    (ENTRY, "  service: orders-api.data\n", "", "mesh.yaml:6:3: spec: must have either `service` or `endpoints`: what stands behind"),
    (ENTRY, "orders-api.data", "orders-api", "mesh.yaml:9:12: spec.service: \"orders-api\" is not a service name; it must be `name.namespace`, each of lower-case letters, digits and `-`, at most 63 characters"),
    (ENTRY, "targetPort", "target_port", "mesh.yaml:8:38: spec.ports[0].target_port: unknown field `target_port`, expected one of port, protocol, targetPort"),
    (ROUTE, "request: 10s", "request: 10", "mesh.yaml:8:28: spec.rules[0].timeouts.request: \"10\" is not a duration; write it like 250ms, 90s, 10m, 1h or 1h30m"),
    (ROUTE, "request: 10s", "request: 1s", "mesh.yaml:8:48: spec.rules[0].timeouts.backendRequest: must not be longer than the request's (2500 ms > 1000 ms)"),
    (ROUTE, "503]", "200]", "mesh.yaml:9:42: spec.rules[0].retry.codes[1]: must be a status code from 400 to 599"),
    (ROUTE, "attempts: 3", "attempts: 11", "mesh.yaml:9:26: spec.rules[0].retry.attempts: must be at most 10"),
    (FAR, "spiffe://partner.example/prices", "spiffe://partner.example", "mesh.yaml:8:47: spec.endpoints[0].spiffeId: is a trust domain's and no workload's"),
    (FAR, "spiffe://partner.example/prices", "prices", "mesh.yaml:8:47: spec.endpoints[0].spiffeId: "),
    (FAR, "meshPort: 15009", "meshPort: 0", "mesh.yaml:8:92: spec.endpoints[0].meshPort: must be a port from 1 to 65535"),
    (FAR, " spiffeId: \"spiffe://partner.example/prices\",", "", "mesh.yaml:8:47: spec.endpoints[0].meshPort: needs `spiffeId`: who must answer there"),
];

#[test]
fn each_mistake_is_named_with_file_line_column_field_and_what_would_be_right() {
    let mut wrong = String::new();
    for (right, from, to, expected) in MISTAKES {
        assert!(right.contains(from), "{from}");
        let errors = parse(&right.replacen(from, to, 1)).unwrap_err();
        let text = errors.to_string();
        if !text.starts_with(expected) || errors.0.len() != 1 {
            wrong.push_str(&format!(
                "{to:?} is told as\n{text}\nand not as\n{expected}\n\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn lines_are_counted_from_the_files_start_in_later_documents() {
    let bad = POLICY
        .replace("[8080]", "[0]")
        .replace("name: orders-api,", "name: second,");
    let errors = parse(&format!("{POLICY}---{bad}")).unwrap_err();
    assert!(
        errors
            .to_string()
            .starts_with("mesh.yaml:18:24: spec.rules[0]"),
        "{errors}"
    );
}

#[test]
fn every_mistake_of_every_document_is_told_at_once() {
    let bad = POLICY.replace("[8080]", "[0]").replace("[GET]", "[get]");
    let errors = parse(&format!("{bad}---{}", ENTRY.replace("http,", "x,"))).unwrap_err();
    assert_eq!(errors.0.len(), 3, "{errors}");
}

#[test]
fn two_resources_that_claim_the_same_are_refused_and_the_other_is_named() {
    let table = [
        (
            POLICY,
            "AuthorizationPolicy data/orders-api is already given at mesh.yaml:4",
        ),
        (
            ENTRY,
            "ServiceEntry data/orders is already given at mesh.yaml:4",
        ),
        (
            ROUTE,
            "HTTPRoute data/orders is already given at mesh.yaml:4",
        ),
    ];
    for (text, expected) in table {
        let errors = parse(&format!("{text}---{text}")).unwrap_err();
        assert!(errors.to_string().contains(expected), "{errors}");
    }
    let other = ENTRY.replace("name: orders,", "name: other,");
    let errors = parse(&format!("{ENTRY}---{other}"))
        .unwrap_err()
        .to_string();
    assert!(
        errors.contains("orders.data:80 is already given at mesh.yaml:6"),
        "{errors}"
    );
    assert!(
        errors.contains("10.96.0.10 port 80 is already given at mesh.yaml:7"),
        "{errors}"
    );
}

#[test]
fn a_rule_that_is_empty_by_mistake_is_refused() {
    let head = POLICY.split("    - from").next().unwrap();
    for rule in [
        "    - {}\n",
        "    - from:\n",
        "    - to:\n",
        "    - from:\n      to:\n",
        "    -\n",
    ] {
        let errors = parse(&format!("{head}{rule}")).unwrap_err();
        assert!(
            errors.to_string().contains("spec.rules[0]"),
            "{rule:?}: {errors}"
        );
    }
}

#[test]
fn what_is_no_yaml_is_refused_with_its_place() {
    for text in [
        "a: [",
        "a: b: c",
        "\t- a",
        "a: *unknown",
        "<<: {a: b}",
        "- a",
        "text",
    ] {
        let errors = parse(text).unwrap_err();
        assert!(
            errors.to_string().starts_with("mesh.yaml:1:"),
            "{text:?}: {errors}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(---|[a-z:{}\\[\\]\"'&*!|>#\\- \n\t,0-9])*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_to_a_resource_makes_the_reader_panic(at in 0..400_usize, with in "\\PC{0,4}") {
        for text in [POLICY, ENTRY, ROUTE] {
            let at = at % text.len();
            let damaged = format!("{}{with}{}", &text[..at], &text[(at + 1).min(text.len())..]);
            let _ = parse(&damaged);
        }
    }
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        let list = vec![format!("*a{before}"); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    parse(&text).unwrap_err();
    parse(&"[".repeat(100_000)).unwrap_err();
}

mod watching {
    use super::super::watch::{Look, Watcher};
    use super::{ENTRY, Expectations, POLICY, counts};
    use std::path::Path;

    fn directory() -> (tempfile::TempDir, Watcher) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), POLICY);
        let (watcher, config) = Watcher::open(directory.path(), Expectations::default()).unwrap();
        assert_eq!(counts(&config), (1, 0, 0));
        (directory, watcher)
    }

    fn write(directory: &Path, text: &str) {
        std::fs::write(directory.join("mesh.yaml"), text).unwrap();
    }

    #[test]
    fn a_change_is_taken_when_two_looks_have_found_the_same() {
        let (directory, mut watcher) = directory();
        assert!(matches!(watcher.look(), Look::Same));
        write(directory.path(), ENTRY);
        assert!(matches!(watcher.look(), Look::Settling));
        write(directory.path(), &format!("{ENTRY}---{POLICY}"));
        assert!(matches!(watcher.look(), Look::Settling));
        let Look::New(config) = watcher.look() else {
            panic!("the change was not taken");
        };
        assert_eq!(counts(&config), (1, 1, 0));
        assert!(matches!(watcher.look(), Look::Same));
    }

    #[test]
    fn a_bad_change_is_refused_once_and_a_good_one_after_it_is_taken() {
        let (directory, mut watcher) = directory();
        write(directory.path(), "kind: Nothing");
        assert!(matches!(watcher.look(), Look::Settling));
        assert!(matches!(watcher.look(), Look::Refused(_)));
        assert!(matches!(watcher.look(), Look::Same));
        write(directory.path(), ENTRY);
        assert!(matches!(watcher.look(), Look::Settling));
        assert!(matches!(watcher.look(), Look::New(_)));
    }

    #[test]
    fn a_directory_that_vanishes_is_a_bad_change() {
        let (directory, mut watcher) = directory();
        directory.close().unwrap();
        assert!(matches!(watcher.look(), Look::Settling));
        assert!(matches!(watcher.look(), Look::Refused(_)));
    }

    #[test]
    fn hidden_files_and_files_of_other_kinds_are_passed_over() {
        let (directory, mut watcher) = directory();
        for name in [".hidden.yaml", "..data", "README.md", "mesh.yaml~"] {
            std::fs::write(directory.path().join(name), "not: [a resource").unwrap();
        }
        assert!(matches!(watcher.look(), Look::Same));
    }
}
