//! Policies, right and wrong.

use crate::config::document::SourceFile;
use crate::config::{Config, ConfigErrors};
use sidewind_api::{ServiceName, v1};

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let name = "mesh.yaml".to_owned();
    let text = text.to_owned();
    let routes = SourceFile {
        name: "routes.yaml".to_owned(),
        text: ROUTE.to_owned(),
    };
    Config::parse(&[SourceFile { name, text }, routes])
}

/// What limits may name.
const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: airflow }
spec:
  parentRefs: [{ group: "", kind: Service, name: api-server }]
  rules: [{ name: all }]
"#;

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

const POLICY: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: TrafficPolicy
metadata: { name: api-server, namespace: airflow }
spec:
  targetRefs: [{ kind: Service, name: api-server, port: 8080 }]
  protocol: http
  balance:
    algorithm: consistentHash
    hash: { header: X-User, loadPercent: 150 }
    stickiness: { cookie: airflow-endpoint, maxAge: 8h }
    preferZone: true
    failoverPercent: 60
    panicPercent: 10
    slowStart: 30s
    endpoints:
      - { zones: [eu-1b], priority: 1 }
      - { workloads: [api-2], addresses: [10.0.0.2], weight: 3 }
  healthCheck:
    http: { path: /api/v2/monitor/health, statuses: ["200-299", "404"], body: { contains: scheduler, json: { /metadatabase/status: healthy, /up: true } } }
    interval: 2s
    timeout: 500ms
    unhealthyThreshold: 2
  outlierDetection:
    consecutiveFailures: 3
    successRate: { minPercent: 80, minRequests: 10, interval: 5s }
    hold: 5s
    maxHold: 1m
    maxEjectedPercent: 50
  limits:
    caller: { maxRequests: 100, maxPending: 20, pendingTimeout: 250ms, maxConnections: 50 }
    server: { maxRequests: 400, maxBodyBytes: 10485760 }
  rateLimits:
    - { name: logins, requests: 10, per: 1m, burst: 20, key: sourceAddress, methods: [POST], paths: ["/login", "/auth/token"] }
    - { name: routes, requests: 5, per: 1s, key: route, at: caller, routes: [airflow/api] }
"#;

#[test]
fn a_policy_is_read_whole() {
    let config = parse(POLICY).unwrap();
    assert_eq!(config.counts().traffic_policies, 1);
    let policy = config
        .traffic(&service("api-server.airflow"), 8080)
        .unwrap();
    assert_eq!(policy.protocol, Some(v1::Protocol::Http));
    assert_eq!(policy.caller.name, "airflow/api-server");
    let balance = policy.caller.balance.as_ref().unwrap();
    assert_eq!(balance.algorithm(), v1::BalanceAlgorithm::ConsistentHash);
    let key = balance.hash_key.as_ref().unwrap().key.as_ref().unwrap();
    assert_eq!(*key, v1::hash_key::Key::Header("x-user".to_owned()));
    assert_eq!(
        (balance.hash_load_percent, balance.slow_start_ms),
        (150, 30_000)
    );
    let sticky = balance.stickiness.as_ref().unwrap();
    assert_eq!(
        (sticky.cookie.as_str(), sticky.max_age_seconds),
        ("airflow-endpoint", 28_800)
    );
    let check = policy.caller.health_check.as_ref().unwrap();
    assert_eq!((check.interval_ms, check.timeout_ms), (2_000, 500));
    assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (2, 2));
    let Some(v1::health_check::Check::Http(http)) = &check.check else {
        panic!("{check:?}");
    };
    let body = http.body.as_ref().unwrap();
    let expected: Vec<_> = body
        .json
        .iter()
        .map(|it| (&*it.pointer, &*it.value))
        .collect();
    assert_eq!(body.contains, "scheduler");
    assert_eq!(
        expected,
        [("/metadatabase/status", "healthy"), ("/up", "true")]
    );
    let outliers = policy.caller.outlier_detection.as_ref().unwrap();
    assert_eq!((outliers.hold_ms, outliers.max_hold_ms), (5_000, 60_000));
    assert_eq!(policy.caller.bounds.as_ref().unwrap().max_requests, 100);
    assert_eq!(policy.caller.rate_limits.len(), 1);
    let (bounds, rates) = policy.beside.as_ref().unwrap();
    assert_eq!(
        (bounds.max_requests, bounds.max_body_bytes),
        (400, 10_485_760)
    );
    assert_eq!(rates[0].path_patterns, ["/login", "/auth/token"]);
}

#[test]
fn the_policy_of_a_port_comes_before_its_services_and_that_before_its_namespaces() {
    let of = |name: &str, target: &str| {
        format!(
            "---\napiVersion: sidewind.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: {name}, namespace: airflow }}\nspec: {{ {target} balance: {{ algorithm: roundRobin }} }}\n"
        )
    };
    let text = [
        of("namespace", ""),
        of("service", "targetRefs: [{ kind: Service, name: api }],"),
        of(
            "port",
            "targetRefs: [{ kind: Service, name: api, port: 80 }],",
        ),
    ]
    .concat();
    let config = parse(&text).unwrap();
    let name = |service_name: &str, port| {
        let policy = config.traffic(&service(service_name), port)?;
        Some(policy.caller.name.clone())
    };
    assert_eq!(name("api.airflow", 80).unwrap(), "airflow/port");
    assert_eq!(name("api.airflow", 81).unwrap(), "airflow/service");
    assert_eq!(name("other.airflow", 80).unwrap(), "airflow/namespace");
    assert_eq!(name("api.data", 80), None);
}

#[test]
fn each_service_that_a_policy_holds_for_has_a_cookie_of_its_own() {
    let text = "apiVersion: sidewind.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: { name: all, namespace: airflow }\nspec: { balance: { stickiness: {} } }\n";
    let cookie = |text: &str, name: &str, port| {
        let (config, name) = (parse(text).unwrap(), service(name));
        let policy = config.traffic(&name, port).unwrap().caller_of(&name, port);
        policy.balance.unwrap().stickiness.unwrap().cookie
    };
    let api = cookie(text, "api.airflow", 80);
    assert_eq!(api, "sidewind-endpoint-c144d830");
    assert_eq!(cookie(text, "api.airflow", 80), api);
    assert_ne!(cookie(text, "api.airflow", 81), api);
    assert_ne!(cookie(text, "flower.airflow", 80), api);
    let named = text.replace("stickiness: {}", "stickiness: { cookie: stay }");
    for name in ["api.airflow", "flower.airflow"] {
        assert_eq!(cookie(&named, name, 80), "stay");
    }
}

#[test]
fn a_hashed_key_has_one_endpoint_where_the_policy_names_no_bound() {
    for (bound, percent) in [
        ("", 0),
        (", loadPercent: 0", 0),
        (", loadPercent: 150", 150),
    ] {
        let text = format!(
            "apiVersion: sidewind.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: all, namespace: airflow }}\nspec: {{ balance: {{ algorithm: consistentHash, hash: {{ header: x-user{bound} }} }} }}\n"
        );
        let config = parse(&text).unwrap();
        let policy = config.traffic(&service("api.airflow"), 80).unwrap();
        let balance = policy.caller.balance.as_ref().unwrap();
        assert_eq!(balance.hash_load_percent, percent, "{bound}");
    }
}

#[test]
fn two_policies_of_one_target_are_refused_and_the_other_is_named() {
    let other = POLICY.replace("name: api-server, namespace", "name: second, namespace");
    let errors = parse(&format!("{POLICY}---{other}"))
        .unwrap_err()
        .to_string();
    assert!(
        errors.contains("the traffic policy of service api-server.airflow port 8080 is already given at mesh.yaml:6"),
        "{errors}"
    );
}

#[test]
fn a_rule_is_about_the_endpoints_that_each_of_its_lists_names() {
    let config = parse(POLICY).unwrap();
    let policy = config
        .traffic(&service("api-server.airflow"), 8080)
        .unwrap();
    let endpoint = |zone: &str, name: &str, address: &str| v1::Endpoint {
        zone: zone.to_owned(),
        workload_name: name.to_owned(),
        address: address.to_owned(),
        ..Default::default()
    };
    let rule = |endpoint| {
        let found = policy.endpoints.iter().find(|rule| rule.matches(&endpoint));
        found.map(|rule| (rule.weight, rule.priority))
    };
    assert_eq!(
        rule(endpoint("eu-1b", "api-9", "10.0.0.9")),
        Some((None, Some(1)))
    );
    assert_eq!(
        rule(endpoint("eu-1a", "api-2", "10.0.0.2")),
        Some((Some(3), None))
    );
    assert_eq!(rule(endpoint("eu-1a", "api-2", "10.0.0.3")), None);
}

/// What is replaced, by what, and the one error that this must be.
#[rustfmt::skip]
const MISTAKES: &[(&str, &str, &str)] = &[
    ("protocol: http\n", "protocol: https\n", "mesh.yaml:7:13: spec.protocol: \"https\" is not one of auto, http, http2, grpc, tls, tcp"),
    ("kind: Service,", "kind: Gateway,", "mesh.yaml:6:16: spec.targetRefs[0]: must be `kind: Service`, or `kind: Gateway` with `group: gateway.networking.k8s.io`"),
    ("port: 8080", "port: 0", "mesh.yaml:6:57: spec.targetRefs[0].port: must be a port from 1 to 65535"),
    ("    algorithm: consistentHash\n    hash: { header: X-User, loadPercent: 150 }\n", "    algorithm: random\n", "mesh.yaml:9:16: spec.balance.algorithm: \"random\" is not one of peakEwma, leastRequest, roundRobin, consistentHash"),
    ("    hash: { header: X-User, loadPercent: 150 }\n", "", "mesh.yaml:9:16: spec.balance.algorithm: needs `hash`, which says what of a request is hashed"),
    ("algorithm: consistentHash", "algorithm: roundRobin", "mesh.yaml:10:11: spec.balance.hash: is for `algorithm: consistentHash` alone"),
    ("header: X-User", "header: X-User, cookie: a", "mesh.yaml:10:11: spec.balance.hash: must have one of `header`, `cookie` and `source`"),
    ("header: X-User", "source: host", "mesh.yaml:10:21: spec.balance.hash.source: \"host\" is not one of identity, address"),
    ("header: X-User", "header: \"x user\"", "mesh.yaml:10:21: spec.balance.hash.header: must be the name of a header or cookie (a token of RFC 9110)"),
    ("loadPercent: 150", "loadPercent: 90", "mesh.yaml:10:42: spec.balance.hash.loadPercent: must be from 101 to 10000"),
    ("cookie: airflow-endpoint", "cookie: \"a;b\"", "mesh.yaml:11:27: spec.balance.stickiness.cookie: must be the name"),
    ("failoverPercent: 60", "failoverPercent: 101", "mesh.yaml:13:22: spec.balance.failoverPercent: must be from 0 to 100"),
    ("slowStart: 30s", "slowStart: 30", "mesh.yaml:15:16: spec.balance.slowStart: \"30\" is not a duration"),
    ("zones: [eu-1b], priority: 1", "priority: 1", "mesh.yaml:17:9: spec.balance.endpoints[0]: must say which endpoints: `zones`, `workloads` or `addresses`, none empty"),
    ("zones: [eu-1b], priority: 1", "zones: [eu-1b]", "mesh.yaml:17:9: spec.balance.endpoints[0]: must have `weight` or `priority`"),
    ("weight: 3", "weight: 0", "mesh.yaml:18:62: spec.balance.endpoints[1].weight: must be from 1 to 1000000"),
    ("    http: { path: /api/v2/monitor/health, statuses: [\"200-299\", \"404\"], body: { contains: scheduler, json: { /metadatabase/status: healthy, /up: true } } }\n", "", "mesh.yaml:20:5: spec.healthCheck: must have one of `http`, `grpc` and `tcp`"),
    ("path: /api/v2/monitor/health", "path: api", "mesh.yaml:20:19: spec.healthCheck.http.path: must be a path"),
    ("\"404\"", "\"4xx\"", "mesh.yaml:20:65: spec.healthCheck.http.statuses[1]: \"4xx\" is neither a status like 200 nor a range like 200-299"),
 ("body: { contains: scheduler, json: { /metadatabase/status: healthy, /up: true } }", "body: {}", "mesh.yaml:20:79: spec.healthCheck.http.body: must have `contains`, or `json` with a pointer at least"),
    ("contains: scheduler", "contains: \"\"", "mesh.yaml:20:91: spec.healthCheck.http.body.contains: must be of 1 to 1024 bytes"),
    ("/up: true", "up: true", "mesh.yaml:20:145: spec.healthCheck.http.body.json.up: \"up\" is no JSON pointer like /metadatabase/status (RFC 6901)"),
    ("interval: 2s", "interval: 1ms", "mesh.yaml:21:15: spec.healthCheck.interval: must be from 100ms to 86400s"),
    ("unhealthyThreshold: 2", "unhealthyTreshold: 2", "mesh.yaml:23:5: spec.healthCheck.unhealthyTreshold: unknown field `unhealthyTreshold`"),
    ("minPercent: 80", "minPercent: 0", "mesh.yaml:26:32: spec.outlierDetection.successRate.minPercent: must be from 1 to 100"),
    ("maxHold: 1m", "maxHold: 1s", "mesh.yaml:28:14: spec.outlierDetection.maxHold: must not be shorter than `hold`"),
    ("maxEjectedPercent: 50", "maxEjectedPercent: -1", "mesh.yaml:29:24: spec.outlierDetection.maxEjectedPercent: must be a whole number"),
    ("caller: { maxRequests: 100, maxPending: 20, pendingTimeout: 250ms,", "caller: { maxPending: 20,", "mesh.yaml:31:27: spec.limits.caller.maxPending: is for requests above `maxRequests`, which is missing"),
    ("maxBodyBytes: 10485760", "maxBodyBytes: 0", "mesh.yaml:32:47: spec.limits.server.maxBodyBytes: must be at least 1; leave it out for no bound"),
    ("requests: 10,", "requests: 0,", "mesh.yaml:34:33: spec.rateLimits[0].requests: must be from 1 to 1000000000"),
    ("key: sourceAddress", "key: address", "mesh.yaml:34:62: spec.rateLimits[0].key: \"address\" is not one of service, route, sourceIdentity, sourceAddress"),
    ("methods: [POST]", "methods: [post]", "mesh.yaml:34:87: spec.rateLimits[0].methods[0]: \"post\" is not an HTTP method"),
    ("\"/login\"", "\"/login*\"", "mesh.yaml:34:102: spec.rateLimits[0].paths[0]: in path pattern"),
    ("at: caller, routes: [airflow/api]", "at: caller, routes: []", "mesh.yaml:35:77: spec.rateLimits[1].routes: must not be empty; leave it out to mean every route"),
    ("at: caller, routes: [airflow/api]", "at: server", "mesh.yaml:35:50: spec.rateLimits[1].key: routes are known to callers' proxies alone: say `at: caller`"),
    ("routes: [airflow/api]", "routes: [airflow/api/all, api]", "mesh.yaml:35:95: spec.rateLimits[1].routes[1]: names route \"api\", which no document describes; a route is NAMESPACE/NAME"),
    ("name: routes,", "name: logins,", "mesh.yaml:35:15: spec.rateLimits[1].name: is given twice"),
];

#[test]
fn each_mistake_is_named_with_file_line_column_field_and_what_would_be_right() {
    let mut wrong = String::new();
    for (from, to, expected) in MISTAKES {
        assert!(POLICY.contains(from), "{from}");
        let errors = parse(&POLICY.replacen(from, to, 1)).unwrap_err();
        let text = errors.to_string();
        if !text.starts_with(expected) || errors.0.len() != 1 {
            wrong.push_str(&format!(
                "{to:?} is told as\n{text}\nand not as\n{expected}\n\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

proptest::proptest! {
    #[test]
    fn no_damage_to_a_policy_makes_the_reader_panic(at in 0..2000_usize, with in "\\PC{0,4}") {
        let at = at % POLICY.len();
        let damaged = format!("{}{with}{}", &POLICY[..at], &POLICY[(at + 1).min(POLICY.len())..]);
        let _ = parse(&damaged);
    }
}
