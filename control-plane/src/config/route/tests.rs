//! Routes, right and wrong.

use super::super::document::SourceFile;
use super::super::traffic_policy::default_cookie;
use super::super::{Config, ConfigErrors};
use sidewind_api::v1;
use v1::route_backend::Target;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let name = "routes.yaml".to_owned();
    let text = text.to_owned();
    Config::parse(&[SourceFile { name, text }])
}

const WHOLE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: data, creationTimestamp: "2026-01-02T03:04:05Z" }
spec:
  parentRefs: [{ group: "", kind: Service, name: orders, port: 80 }]
  rules:
    - name: canary
      matches:
        - path: { type: Exact, value: /orders }
          method: GET
          headers: [{ name: X-Team, value: data }, { type: RegularExpression, name: x-env, value: "dev.*" }]
          queryParams: [{ name: canary, value: "1" }]
        - path: { type: RegularExpression, value: "/v[0-9]+" }
      filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: { set: [{ name: x-a, value: "1" }], add: [{ name: x-b, value: "2" }], remove: [x-c] }
        - type: RequestMirror
          requestMirror: { backendRef: { name: shadow, port: 81 }, fraction: { numerator: 1, denominator: 8 } }
        - type: ExtensionRef
          extensionRef: { group: sidewind.dev, kind: RouteExtension, name: patient }
      backendRefs:
        - { name: orders, port: 80, weight: 9 }
        - { name: orders-next, namespace: next, port: 8080, weight: 0, filters: [{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-next, value: "yes" }] } }] }
      timeouts: { request: 10s }
      retry: { attempts: 1 }
    - matches: [{ path: { type: PathPrefix, value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { scheme: https, hostname: new.example.org, port: 8443, statusCode: 301, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }
    - matches: [{ path: { value: /legacy } }]
      filters:
        - type: URLRewrite
          urlRewrite: { hostname: legacy.example.org, path: { type: ReplaceFullPath, replaceFullPath: /all } }
"#;

const EXTENSION: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: RouteExtension
metadata: { name: patient, namespace: data }
spec:
  retry: { methods: [POST], grpcStatuses: [UNAVAILABLE, ABORTED], maxBodyBytes: 1048576 }
  hold: { timeout: 20s, maxRequests: 10, maxBytes: 4096 }
"#;

const GRPC: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: greeter, namespace: data }
spec:
  parentRefs: [{ group: "", kind: Service, name: greeter }]
  rules:
    - matches:
        - method: { service: hello.Greeter, method: SayHello }
          headers: [{ name: x-team, value: data }]
        - method: { type: RegularExpression, service: "hello[.].*" }
      filters:
        - type: ExtensionRef
          extensionRef: { group: sidewind.dev, kind: RouteExtension, name: slow }
      backendRefs: [{ name: greeter-next, port: 50051 }]
    - {}
"#;

const SLOW: &str = r"
apiVersion: sidewind.dev/v1alpha1
kind: RouteExtension
metadata: { name: slow, namespace: data }
spec:
  timeouts: { request: 30s, backendRequest: 10s }
  retry: { attempts: 4, backoff: 1s }
";

fn table(config: &Config, service: &str, port: u16) -> v1::RouteTable {
    config.routes(&service.parse().unwrap(), port).1.unwrap()
}

#[test]
fn a_whole_route_goes_to_proxies_as_it_is_written() {
    let config = parse(&format!("{WHOLE}---{EXTENSION}")).unwrap();
    let table = table(&config, "orders.data", 80);
    let [canary, redirect, rewrite] = table.rules.as_slice() else {
        panic!("{table:?}");
    };
    assert_eq!(
        (canary.route.as_str(), canary.name.as_str()),
        ("data/orders", "canary")
    );
    let [exact, regex] = canary.matches.as_slice() else {
        panic!("{canary:?}");
    };
    assert_eq!(
        exact.path,
        Some(v1::route_match::Path::Exact("/orders".to_owned()))
    );
    assert_eq!(exact.method, "GET");
    let names: Vec<_> = exact
        .headers
        .iter()
        .map(|header| header.name.as_str())
        .collect();
    assert_eq!(names, ["x-team", "x-env"]);
    assert_eq!(exact.query_params.len(), 1);
    assert_eq!(
        regex.path,
        Some(v1::route_match::Path::Regex("/v[0-9]+".to_owned()))
    );
    let policy = canary.policy.as_ref().unwrap();
    assert_eq!(policy.request_timeout_ms, Some(10_000));
    assert_eq!(policy.retry_attempts, Some(1));
    assert_eq!(policy.retry_methods, ["POST"]);
    assert_eq!(policy.retry_grpc_codes, [14, 10]);
    assert_eq!(policy.retry_body_bytes, Some(1 << 20));
    let hold = v1::Hold {
        timeout_ms: 20_000,
        max_requests: 10,
        max_bytes: 4096,
    };
    assert_eq!(policy.hold, Some(hold));
    let targets: Vec<_> = canary
        .backends
        .iter()
        .map(|backend| {
            (
                backend.weight,
                backend.target.clone().unwrap(),
                backend.filters.len(),
            )
        })
        .collect();
    let next = Target::Destination("orders-next.next:8080".to_owned());
    assert_eq!(targets, [(9, Target::Own(true), 0), (0, next, 1)]);
    let filters = &canary.filters;
    assert_eq!(filters.len(), 2);
    let Some(v1::route_filter::Filter::Mirror(mirror)) = &filters[1].filter else {
        panic!("{filters:?}");
    };
    assert_eq!((mirror.numerator, mirror.denominator), (Some(1), 8));
    let Some(v1::route_filter::Filter::Redirect(to)) = &redirect.filters[0].filter else {
        panic!("{redirect:?}");
    };
    assert_eq!(
        (to.scheme.as_str(), to.port, to.status),
        ("https", 8443, 301)
    );
    let Some(v1::route_filter::Filter::Rewrite(to)) = &rewrite.filters[0].filter else {
        panic!("{rewrite:?}");
    };
    assert_eq!(to.hostname, "legacy.example.org");
}

#[test]
fn a_grpc_route_has_matches_of_calls_and_times_by_its_extension() {
    let config = parse(&format!("{GRPC}---{SLOW}")).unwrap();
    let table = table(&config, "greeter.data", 50_051);
    let [named, all] = table.rules.as_slice() else {
        panic!("{table:?}");
    };
    let grpc: Vec<_> = named
        .matches
        .iter()
        .filter_map(|matched| matched.grpc.clone())
        .collect();
    assert_eq!(
        (grpc[0].service.as_str(), grpc[0].method.as_str()),
        ("hello.Greeter", "SayHello")
    );
    assert!(grpc[1].regex);
    let policy = named.policy.as_ref().unwrap();
    assert_eq!(
        (policy.request_timeout_ms, policy.retry_attempts),
        (Some(30_000), Some(4))
    );
    assert!(all.matches[0].grpc.is_some());
}

#[test]
fn routes_of_one_port_are_one_table_in_the_order_of_age_and_name() {
    let route = |name: &str, port: &str, created: &str| {
        WHOLE
            .replace(
                "name: orders, namespace: data, creationTimestamp: \"2026-01-02T03:04:05Z\"",
                &format!("name: {name}, namespace: data{created}"),
            )
            .replace(", port: 80 }]\n", &format!("{port} }}]\n"))
    };
    let young = ", creationTimestamp: \"2026-05-01T00:00:00Z\"";
    let old = ", creationTimestamp: \"2026-01-01T00:00:00Z\"";
    let text = [
        route("c", ", port: 80", young),
        route("b", "", old),
        route("d", ", port: 80", old),
        route("a", ", port: 81", old),
        EXTENSION.to_owned(),
    ];
    let config = parse(&text.join("---")).unwrap();
    let order = |port| {
        let table = table(&config, "orders.data", port);
        let mut names: Vec<_> = table.rules.into_iter().map(|rule| rule.route).collect();
        names.dedup();
        names
    };
    assert_eq!(order(80), ["data/b", "data/d", "data/c"]);
    assert_eq!(order(81), ["data/a", "data/b"]);
    assert_eq!(config.counts().routes, 4);
}

/// What is replaced in the right documents, by what, and the one error that this must be.
type Mistake = (&'static str, &'static str, &'static str);

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    ("name: canary\n", "nmae: canary\n", "routes.yaml:8:7: spec.rules[0].nmae: unknown field `nmae`"),
    ("type: Exact, value: /orders", "type: Precise, value: /orders", "routes.yaml:10:25: spec.rules[0].matches[0].path.type: must be one of Exact, PathPrefix, RegularExpression"),
    ("value: /orders }", "value: orders }", "routes.yaml:10:39: spec.rules[0].matches[0].path.value: must be a path of at most 1024 characters that begins with `/`"),
    ("value: /orders }", "value: /a/../b }", "routes.yaml:10:39: spec.rules[0].matches[0].path.value: must not contain `/../`"),
    ("method: GET", "method: get", "routes.yaml:11:19: spec.rules[0].matches[0].method: must be one of GET, HEAD, POST"),
    ("name: X-Team", "name: \"x team\"", "routes.yaml:12:29: spec.rules[0].matches[0].headers[0].name: must be the name of a header field"),
    ("name: x-env", "name: x-team", "routes.yaml:12:85: spec.rules[0].matches[0].headers[1].name: is given twice"),
    ("\"dev.*\"", "\"dev(\"", "routes.yaml:12:99: spec.rules[0].matches[0].headers[1].value: is not a regular expression in RE2's syntax: unclosed group"),
    ("set: [{ name: x-a", "set: [{ name: host", "routes.yaml:17:50: spec.rules[0].filters[0].requestHeaderModifier.set[0].name: is not for this filter; URLRewrite has `hostname`"),
    ("remove: [x-c]", "remove: [sidewind-destination]", "routes.yaml:17:113: spec.rules[0].filters[0].requestHeaderModifier.remove[0]: is not for routes"),
    ("remove: [x-c]", "remove: [x-a]", "routes.yaml:17:113: spec.rules[0].filters[0].requestHeaderModifier.remove[0]: is named twice in this filter"),
    ("numerator: 1,", "numerator: 9,", "routes.yaml:19:78: spec.rules[0].filters[1].requestMirror.fraction: must be at most 1"),
    ("name: shadow, port: 81", "name: shadow, port: 81, weight: 5", "routes.yaml:19:74: spec.rules[0].filters[1].requestMirror.backendRef.weight: does not go with a mirror, whose share is its `percent` or `fraction`"),
    ("name: shadow, port: 81", "name: shadow, port: 81, filters: []", "routes.yaml:19:75: spec.rules[0].filters[1].requestMirror.backendRef.filters: do not go with a mirror, which gets the request after the rule's own filters"),
    ("name: shadow, port: 81", "name: shadow", "routes.yaml:19:40: spec.rules[0].filters[1].requestMirror.backendRef: must have a `port`"),
    ("name: patient }\n      backend", "name: hasty }\n      backend", "routes.yaml:21:76: spec.rules[0].filters[2].extensionRef.name: names RouteExtension data/hasty, which no document describes"),
    ("weight: 9", "weight: 1000001", "routes.yaml:23:45: spec.rules[0].backendRefs[0].weight: must be at most 1000000"),
    ("- { name: orders, port: 80", "- { kind: Secret, name: orders, port: 80", "routes.yaml:23:11: spec.rules[0].backendRefs[0]: must be a service"),
    ("type: ResponseHeaderModifier, responseHeaderModifier:", "type: URLRewrite, responseHeaderModifier:", "routes.yaml:24:90: spec.rules[0].backendRefs[1].filters[0].type: does not go with the field `responseHeaderModifier`"),
    ("scheme: https", "scheme: ftp", "routes.yaml:30:38: spec.rules[1].filters[0].requestRedirect.scheme: must be one of http, https"),
    ("statusCode: 301", "statusCode: 200", "routes.yaml:30:96: spec.rules[1].filters[0].requestRedirect.statusCode: must be one of 301"),
    ("type: PathPrefix, value: /old", "type: Exact, value: /old", "routes.yaml:30:115: spec.rules[1].filters[0].requestRedirect.path.type: needs matches of type PathPrefix alone"),
    ("replaceFullPath: /all", "replaceFullPath: \"/all?x\"", "routes.yaml:34:103: spec.rules[2].filters[0].urlRewrite.path.replaceFullPath: must be a path"),
    ("kind: Service, name: orders, port: 80 }]", "kind: Service, name: orders, port: 80, namespace: other }]", "routes.yaml:6:79: spec.parentRefs[0].namespace: must be the route's own"),
    ("kind: Service, name: orders, port: 80 }]", "kind: Service, name: orders, port: 80 }, { name: edge, group: gateway.networking.k8s.io, kind: Gateway }]", "routes.yaml:6:70: spec.parentRefs[1]: names Gateway data/edge, which no document describes"),
    ("methods: [POST]", "methods: [post]", "routes.yaml:40:22: spec.retry.methods[0]: must be an HTTP method in upper case, like POST"),
    ("ABORTED", "BROKEN", "routes.yaml:40:57: spec.retry.grpcStatuses[1]: must be one of CANCELLED"),
    ("timeout: 20s", "timeout: 0s", "routes.yaml:41:20: spec.hold.timeout: must be more than 0"),
    ("maxRequests: 10", "maxRequests: 0", "routes.yaml:41:38: spec.hold.maxRequests: must be more than 0"),
    ("retry: { methods", "timeouts: { request: 1s }\n  retry: { methods", "routes.yaml:21:76: spec.rules[0].filters[2].extensionRef.name: names an extension with `timeouts.request`, which the rule has too"),
];

#[test]
fn each_mistake_is_named_with_file_line_column_field_and_what_would_be_right() {
    let right = format!("{}---{EXTENSION}", WHOLE);
    let mut wrong = String::new();
    for (from, to, expected) in MISTAKES {
        assert!(right.contains(from), "{from}");
        let errors = match parse(&right.replacen(from, to, 1)) {
            Ok(_) => "nothing".to_owned(),
            Err(errors) => errors.to_string(),
        };
        if !errors.starts_with(expected) || errors.trim_end().lines().count() != 1 {
            wrong.push_str(&format!(
                "{to:?} is told as\n{errors}\nand not as\n{expected}\n\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn one_port_takes_routes_of_one_kind() {
    let http = GRPC
        .replace("GRPCRoute", "HTTPRoute")
        .split("  rules:")
        .next()
        .unwrap()
        .to_owned()
        + "  rules: [{}]\n";
    let errors = parse(&format!("{GRPC}---{SLOW}---{http}")).unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("has GRPCRoute data/greeter attached already"),
        "{errors}"
    );
}

proptest::proptest! {
    #[test]
    fn no_damage_to_a_route_makes_the_reader_panic(at in 0..4000_usize, with in "\\PC{0,4}") {
        for text in [WHOLE, GRPC, EXTENSION] {
            let at = at % text.len();
            let damaged = format!("{}{with}{}", &text[..at], &text[(at + 1).min(text.len())..]);
            let _ = parse(&damaged);
        }
    }
}

#[test]
fn a_route_of_a_gateway_is_at_the_listeners_that_it_names_with_its_hosts() {
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge, namespace: data }
spec:
  gatewayClassName: sidewind
  listeners:
    - { name: one, port: 8080, protocol: HTTP }
    - { name: two, port: 8081, protocol: HTTP }
";
    let route = WHOLE.replace(
        "parentRefs: [{ group: \"\", kind: Service, name: orders, port: 80 }]",
        "parentRefs: [{ name: edge, sectionName: two }]\n  hostnames: [\"*.example.org\"]",
    );
    let config = parse(&format!("{gateway}---{route}---{EXTENSION}")).unwrap();
    let id = "spiffe://sidewind.local/ns/data/sa/edge";
    let id = sidewind_identity::SpiffeId::parse(id).unwrap();
    let listeners = config.gateway_listeners(&id);
    assert_eq!(listeners[0].routes, None);
    let table = listeners[1].routes.as_ref().unwrap();
    assert_eq!(table.rules.len(), 3);
    assert!(
        table
            .rules
            .iter()
            .all(|rule| rule.hostnames == ["*.example.org"])
    );
    // Of a gateway there is no service of its own.
    let target = Target::Destination("orders.data:80".to_owned());
    assert_eq!(table.rules[0].backends[0].target, Some(target));
}

fn with_session(kind: &str, session: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: orders, namespace: data }}\nspec:\n  \
         parentRefs: [{{ group: \"\", kind: Service, name: orders, port: 80 }}]\n  rules:\n    - {backends}\n      \
         sessionPersistence: {session}\n"
    )
}

#[test]
fn sessions_are_kept_as_a_traffic_policy_keeps_them() {
    let orders = "orders.data".parse().unwrap();
    let default = default_cookie("orders.data:80");
    for (session, cookie, header, max_age_seconds) in [
        ("{}", default.as_str(), "", 0),
        ("{ sessionName: sid }", "sid", "", 0),
        (
            "{ type: Cookie, cookieConfig: { lifetimeType: Session } }",
            default.as_str(),
            "",
            0,
        ),
        (
            "{ sessionName: sid, absoluteTimeout: 8h, cookieConfig: { lifetimeType: Permanent } }",
            "sid",
            "",
            28_800,
        ),
        (
            "{ sessionName: X-Session, type: Header }",
            "",
            "x-session",
            0,
        ),
    ] {
        let expected = v1::Stickiness {
            cookie: cookie.to_owned(),
            max_age_seconds,
            header: header.to_owned(),
        };
        let backends = "backendRefs: [{ name: orders, port: 80 }]";
        let text = with_session("HTTPRoute", session, backends);
        let config = parse(&text).unwrap_or_else(|errors| panic!("{session}: {errors}"));
        // A rule that does nothing else goes without a table, and its name with it.
        let (policy, table) = config.routes(&orders, 80);
        assert_eq!(table, None, "{session}");
        let policy = policy.unwrap();
        assert_eq!(policy.route, "data/orders");
        assert_eq!(policy.stickiness, Some(expected.clone()), "{session}");
        let text = with_session("GRPCRoute", session, backends);
        let config = parse(&text).unwrap_or_else(|errors| panic!("{session}: {errors}"));
        let (_, table) = config.routes(&orders, 80);
        let rule = &table.unwrap().rules[0];
        let kept = rule.policy.as_ref().unwrap().stickiness.clone();
        assert_eq!(kept, Some(expected), "{session}");
    }
}

#[test]
fn sessions_at_several_services_have_a_cookie_each() {
    let cookies = |kind: &str, backends: &str| {
        let text = with_session(kind, "{}", backends);
        let text = format!(
            "{text}    - filters: [{{ type: ResponseHeaderModifier, responseHeaderModifier: {{ remove: [x-a] }} }}]\n"
        );
        let config = parse(&text).unwrap_or_else(|errors| panic!("{backends}: {errors}"));
        let (_, table) = config.routes(&"orders.data".parse().unwrap(), 80);
        let policy = table.unwrap().rules[0].policy.clone().unwrap();
        policy.stickiness.unwrap().cookie
    };
    let own = default_cookie("orders.data:80");
    for kind in ["HTTPRoute", "GRPCRoute"] {
        // Without a backend it is the service itself.
        assert_eq!(cookies(kind, "name: whole"), own);
        assert_eq!(
            cookies(kind, "backendRefs: [{ name: orders, port: 80 }]"),
            own
        );
        for other in ["{ name: orders, port: 81 }", "{ name: other, port: 80 }"] {
            assert_ne!(cookies(kind, &format!("backendRefs: [{other}]")), own);
        }
    }
}

#[test]
fn what_of_a_session_cannot_be_kept_is_refused_at_its_place() {
    let one = "backendRefs: [{ name: orders, port: 80 }]";
    let two = "backendRefs: [{ name: orders, port: 80 }, { name: other, port: 80 }]";
    let mut wrong = String::new();
    for (session, backends, expected) in [
        (
            "{ idleTimeout: 1h }",
            one,
            "8:42: spec.rules[0].sessionPersistence.idleTimeout: is not supported",
        ),
        (
            "{ absoluteTimeout: 1h }",
            one,
            "8:46: spec.rules[0].sessionPersistence.absoluteTimeout: needs `cookieConfig.lifetimeType: Permanent`",
        ),
        (
            "{ cookieConfig: { lifetimeType: Permanent } }",
            one,
            "8:43: spec.rules[0].sessionPersistence.cookieConfig: is Permanent, which needs `absoluteTimeout`",
        ),
        (
            "{ cookieConfig: { lifetimeType: Ever } }",
            one,
            "8:59: spec.rules[0].sessionPersistence.cookieConfig.lifetimeType: must be one of Session, Permanent",
        ),
        (
            "{ type: Url }",
            one,
            "8:35: spec.rules[0].sessionPersistence.type: must be one of Cookie, Header",
        ),
        (
            "{ type: Header }",
            one,
            "8:27: spec.rules[0].sessionPersistence: must have a `sessionName`",
        ),
        (
            "{ type: Header, sessionName: sidewind-error }",
            one,
            "8:56: spec.rules[0].sessionPersistence.sessionName: is a field that routes may not set",
        ),
        (
            "{ type: Header, sessionName: x, absoluteTimeout: 1h }",
            one,
            "8:76: spec.rules[0].sessionPersistence.absoluteTimeout: is for cookies",
        ),
        (
            "{ sessionName: \"a;b\" }",
            one,
            "8:42: spec.rules[0].sessionPersistence.sessionName: must be the name of a header or cookie",
        ),
        (
            "{ name: a }",
            one,
            "8:29: spec.rules[0].sessionPersistence.name: unknown field `name`",
        ),
        (
            "{}",
            two,
            "8:27: spec.rules[0].sessionPersistence: must not be beside several backendRefs",
        ),
    ] {
        let errors = match parse(&with_session("HTTPRoute", session, backends)) {
            Ok(_) => "nothing".to_owned(),
            Err(errors) => errors.to_string(),
        };
        if !errors.starts_with(&format!("routes.yaml:{expected}")) {
            wrong.push_str(&format!(
                "{session} is told as\n{errors}\nand not as\n{expected}\n\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_route_without_rules_has_one_for_every_request() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let route = format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: orders, namespace: data }}
spec:
  parentRefs: [{{ group: \"\", kind: Service, name: orders, port: 80 }}]
"
        );
        let config = parse(&route).unwrap();
        let service = "orders.data".parse().unwrap();
        let (policy, table) = config.routes(&service, 80);
        match kind {
            "HTTPRoute" => {
                assert_eq!(policy.unwrap().route, "data/orders");
                assert_eq!(table, None);
            }
            // A request that is no call is for nobody.
            _ => {
                let [rule] = table.unwrap().rules.try_into().unwrap();
                let [matched] = rule.matches.try_into().unwrap();
                assert_eq!(matched.grpc, Some(v1::GrpcMethodMatch::default()));
                assert_eq!(rule.backends, []);
            }
        }
        let error = parse(&format!("{route}  rules: []\n")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("must have a rule, or be left out"),
            "{error}"
        );
    }
}

/// As `kubectl get -o yaml` shows a route.
const OF_A_CLUSTER: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute"}
  creationTimestamp: "2026-01-02T03:04:05Z"
  deletionGracePeriodSeconds: 0
  deletionTimestamp: "2026-01-02T03:04:05Z"
  finalizers:
  - example.org/keep
  generateName: orders-
  generation: 3
  labels:
    team: data
  managedFields:
  - apiVersion: gateway.networking.k8s.io/v1
    fieldsType: FieldsV1
    fieldsV1:
      f:metadata:
        f:annotations:
          .: {}
          f:kubectl.kubernetes.io/last-applied-configuration: {}
      f:spec:
        .: {}
        f:parentRefs: {}
        f:rules: {}
    manager: kubectl-client-side-apply
    operation: Update
    time: "2026-01-02T03:04:05Z"
  name: orders
  namespace: data
  ownerReferences:
  - apiVersion: apps/v1
    blockOwnerDeletion: true
    controller: true
    kind: Deployment
    name: orders
    uid: 5f1c1cf3-54ad-4f1c-9a8e-0d6a7e6c3f11
  resourceVersion: "81231"
  selfLink: /apis/gateway.networking.k8s.io/v1/namespaces/data/httproutes/orders
  uid: 6d8b3ad1-9a5f-4e6f-8d4f-2c1f0c7b9a10
spec:
  parentRefs:
  - group: ""
    kind: Service
    name: orders
    port: 80
  rules:
  - backendRefs:
    - group: ""
      kind: Service
      name: orders
      port: 80
      weight: 1
    matches:
    - path:
        type: PathPrefix
        value: /
status:
  parents:
  - conditions:
    - lastTransitionTime: "2026-01-02T03:04:06Z"
      message: Route is accepted
      observedGeneration: 3
      reason: Accepted
      status: "True"
      type: Accepted
    controllerName: example.org/controller
    parentRef:
      group: ""
      kind: Service
      name: orders
"#;

#[test]
fn what_a_cluster_adds_to_a_document_is_passed_over() {
    let config = parse(OF_A_CLUSTER).unwrap();
    let service = "orders.data".parse().unwrap();
    let (policy, _) = config.routes(&service, 80);
    assert_eq!(policy.unwrap().route, "data/orders");
    let wrong = OF_A_CLUSTER.replace("  selfLink:", "  selfLnk:");
    let error = parse(&wrong).unwrap_err().to_string();
    assert!(error.contains("metadata.selfLnk: unknown field"), "{error}");
}
