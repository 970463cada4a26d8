use http::{Method, Response};
use proptest::prelude::*;
use v1::{route_filter::Filter, route_match::Path, route_named_match::Value};

use super::*;
use crate::http::Body;

fn exact(path: &str) -> v1::RouteMatch {
    v1::RouteMatch {
        path: Some(Path::Exact(path.to_owned())),
        ..Default::default()
    }
}

fn prefix(path: &str) -> v1::RouteMatch {
    v1::RouteMatch {
        path: Some(Path::Prefix(path.to_owned())),
        ..Default::default()
    }
}

fn regex(path: &str) -> v1::RouteMatch {
    v1::RouteMatch {
        path: Some(Path::Regex(path.to_owned())),
        ..Default::default()
    }
}

fn grpc(service: &str, method: &str, regex: bool) -> v1::RouteMatch {
    v1::RouteMatch {
        grpc: Some(v1::GrpcMethodMatch {
            service: service.to_owned(),
            method: method.to_owned(),
            regex,
        }),
        ..Default::default()
    }
}

fn named(name: &str, value: &str) -> v1::RouteNamedMatch {
    let value = match value.strip_prefix('~') {
        Some(text) => Value::Regex(text.to_owned()),
        None => Value::Exact(value.to_owned()),
    };
    v1::RouteNamedMatch {
        name: name.to_owned(),
        value: Some(value),
    }
}

trait With: Sized {
    fn method(self, method: &str) -> Self;
    fn header(self, name: &str, value: &str) -> Self;
    fn query(self, name: &str, value: &str) -> Self;
}

impl With for v1::RouteMatch {
    fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(named(name, value));
        self
    }

    fn query(mut self, name: &str, value: &str) -> Self {
        self.query_params.push(named(name, value));
        self
    }
}

fn rule(name: &str, matches: Vec<v1::RouteMatch>) -> v1::RouteRule {
    v1::RouteRule {
        route: name.to_owned(),
        matches,
        ..Default::default()
    }
}

fn compile(rules: Vec<v1::RouteRule>) -> RouteTable {
    RouteTable::compile(&v1::RouteTable { rules }, &|_| RetryPolicy::default()).unwrap()
}

fn request(text: &str) -> http::Request<Body> {
    let mut words = text.split(' ');
    let mut request = http::Request::builder()
        .method(words.next().unwrap())
        .uri(words.next().unwrap());
    for header in words {
        let (name, value) = header.split_once('=').unwrap();
        request = request.header(name, value);
    }
    request.body(Body::Empty).unwrap()
}

fn selected(table: &RouteTable, text: &str) -> String {
    match table.select(&request(text)) {
        Some(selected) => selected.rule.name.to_string(),
        None => "none".to_owned(),
    }
}

/// Each in both orders: what is more particular wins wherever it stands.
#[test]
fn the_more_particular_match_comes_first() {
    let any = v1::RouteMatch::default;
    let cases = [
        (exact("/a/b"), prefix("/a/b"), "GET /a/b"),
        (
            exact("/a"),
            regex("/.*").method("GET").header("x", "1"),
            "GET /a x=1",
        ),
        (regex("/a.*"), prefix("/a"), "GET /a"),
        (regex("/a[b]+"), regex("/a.*"), "GET /ab"),
        (prefix("/a/b"), prefix("/a"), "GET /a/b/c"),
        (prefix("/a"), prefix("/").method("GET"), "GET /a"),
        (prefix("/a"), any(), "GET /a"),
        (
            exact("/a").method("GET"),
            exact("/a").header("x", "1").header("y", "1"),
            "GET /a x=1 y=1",
        ),
        (
            any().header("x", "1").header("y", "1"),
            any().header("x", "1").query("q", "1").query("r", "1"),
            "GET /?q=1&r=1 x=1 y=1",
        ),
        (
            any().header("x", "1"),
            any().query("q", "1"),
            "GET /?q=1 x=1",
        ),
        (
            any().query("q", "1").query("r", "1"),
            any().query("q", "1"),
            "GET /?q=1&r=1",
        ),
        (
            grpc("a.B", "Do", false),
            grpc("a.B", "", false).header("x", "1"),
            "POST /a.B/Do x=1 content-type=application/grpc",
        ),
        (
            grpc("a.B", "", false),
            grpc("", "Do", false),
            "POST /a.B/Do content-type=application/grpc",
        ),
        (
            grpc("", "Do", false),
            any(),
            "POST /a.B/Do content-type=application/grpc",
        ),
        (
            grpc("a[.]B+", "", true),
            grpc("a.*", "D.", true),
            "POST /a.B/Do content-type=application/grpc",
        ),
        (
            grpc("", "", false).header("x", "1"),
            grpc("", "", false),
            "POST /a.B/Do x=1 content-type=application/grpc",
        ),
    ];
    for (first, second, text) in cases {
        let rules = vec![rule("first", vec![first]), rule("second", vec![second])];
        let reversed = rules.iter().rev().cloned().collect();
        assert_eq!(selected(&compile(rules), text), "first", "{text}");
        assert_eq!(selected(&compile(reversed), text), "first", "{text}");
    }
}

#[test]
fn of_equal_matches_the_one_that_stands_first_wins() {
    let table = compile(vec![
        rule("first", vec![prefix("/a"), prefix("/b/")]),
        rule("second", vec![prefix("/a/"), prefix("/b")]),
    ]);
    for path in ["GET /a", "GET /b/c"] {
        assert_eq!(selected(&table, path), "first");
    }
}

#[test]
fn a_match_asks_for_all_that_it_names() {
    let any = v1::RouteMatch::default;
    for (matched, text, expected) in [
        (exact("/a"), "GET /a", true),
        (exact("/a"), "GET /a?q=1", true),
        (exact("/a"), "GET /a/", false),
        (exact("/a"), "GET /A", false),
        (prefix("/a"), "GET /a", true),
        (prefix("/a"), "GET /a/", true),
        (prefix("/a/"), "GET /a", true),
        (prefix("/a/"), "GET /a/b", true),
        (prefix("/a"), "GET /ab", false),
        (prefix("/a/b"), "GET /a", false),
        (prefix("/"), "GET /anything", true),
        (regex("/v[0-9]+/.*"), "GET /v12/x", true),
        (regex("/v[0-9]+"), "GET /v12/x", false),
        (any().method("GET"), "POST /", false),
        (any().header("x", "1"), "GET / x=1", true),
        (any().header("x", "1"), "GET / x=2", false),
        (any().header("x", "1"), "GET /", false),
        (any().header("x", "1,2"), "GET / x=1 x=2", true),
        (
            any().header("cookie", "~.*; b=1"),
            "GET / cookie=a=1 cookie=b=1",
            true,
        ),
        (any().header("x", "~[a-c]+"), "GET / x=abc", true),
        (any().header("x", "~[a-c]+"), "GET / x=abcd", false),
        (
            any().header("host", "api.data"),
            "GET / host=api.data",
            true,
        ),
        (
            any().header("host", "api.data"),
            "GET http://api.data/",
            true,
        ),
        (any().query("q", "a b"), "GET /?q=a+b", true),
        (any().query("q", "a b"), "GET /?q=a%20b", true),
        (any().query("q", "1"), "GET /?q=1&q=2", true),
        (any().query("q", "2"), "GET /?q=1&q=2", false),
        (any().query("q", ""), "GET /?q", true),
        (any().query("q", "100%"), "GET /?q=100%", true),
        (any().query("q", "~[0-9]+"), "GET /?p=1&%71=42", true),
        (any().query("q", "1"), "GET /", false),
        (
            grpc("a.B", "Do", false),
            "POST /a.B/Do content-type=application/grpc+proto",
            true,
        ),
        (
            grpc("a.B", "Do", false),
            "POST /a.B/Do content-type=text/plain",
            false,
        ),
        (
            grpc("a.B", "", false),
            "POST /a.B/Do content-type=application/grpc",
            true,
        ),
        (
            grpc("a.B", "", false),
            "POST /a.Bc/Do content-type=application/grpc",
            false,
        ),
        (
            grpc("", "Do", false),
            "POST /x.Y/Do content-type=application/grpc",
            true,
        ),
        (
            grpc("a[.].*", "D.", true),
            "POST /a.B/Do content-type=application/grpc",
            true,
        ),
        (
            grpc("a[.].*", "D", true),
            "POST /a.B/Do content-type=application/grpc",
            false,
        ),
    ] {
        let name = format!("{matched:?} {text}");
        let table = compile(vec![rule("it", vec![matched])]);
        assert_eq!(selected(&table, text) == "it", expected, "{name}");
    }
}

#[test]
fn the_most_particular_host_comes_before_everything_else() {
    let for_hosts = |name: &str, hosts: &[&str], matched| v1::RouteRule {
        hostnames: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..rule(name, vec![matched])
    };
    let table = compile(vec![
        for_hosts("any", &[], exact("/a")),
        for_hosts("wide", &["*.example.org"], exact("/a")),
        for_hosts("narrow", &["*.eu.example.org"], prefix("/")),
        for_hosts("one", &["api.eu.example.org", "x.net"], prefix("/b")),
    ]);
    for (text, expected) in [
        ("GET /a host=other.net", "any"),
        ("GET /a host=example.org", "any"),
        ("GET /a host=us.example.org:8443", "wide"),
        ("GET /a host=a.eu.Example.ORG", "narrow"),
        ("GET /b host=api.eu.example.org", "one"),
        ("GET /b/c host=x.net", "one"),
        // What the most particular host has no rule for is for the next.
        ("GET /a host=api.eu.example.org", "narrow"),
        ("GET https://x.net/b host=other.net", "one"),
        ("GET /b host=[::1]:80", "none"),
    ] {
        assert_eq!(selected(&table, text), expected, "{text}");
    }
}

#[test]
fn backends_share_by_weight_and_weight_0_gets_nothing() {
    let backend = |weight, destination: &str| v1::RouteBackend {
        weight,
        target: Some(v1::route_backend::Target::Destination(
            destination.to_owned(),
        )),
        filters: Vec::new(),
    };
    let with = |backends| {
        let table = compile(vec![v1::RouteRule {
            backends,
            ..rule("it", Vec::new())
        }]);
        table.select(&request("GET /")).unwrap().rule
    };
    let canary = with(vec![
        backend(90, "a.x:80"),
        backend(10, "b.x:80"),
        backend(0, "c.x:80"),
    ]);
    let mut counts = std::collections::HashMap::new();
    for _ in 0..10_000 {
        let Target::Destination(target) = &canary.backend().unwrap().target else {
            panic!("no destination");
        };
        *counts.entry(target.to_string()).or_insert(0) += 1;
    }
    // Ten standard deviations of a binomial with p = 0.1 are 300.
    assert!((700..1300).contains(&counts["b.x:80"]), "{counts:?}");
    assert_eq!(counts.len(), 2);
    assert!(with(vec![backend(0, "a.x:80")]).backend().is_none());
    assert!(
        with(vec![backend(0, "a.x:80"), backend(0, "b.x:80")])
            .backend()
            .is_none()
    );
    assert_eq!(with(Vec::new()).backend().unwrap().target, Target::Own);
}

fn filtered(filters: Vec<Filter>) -> Selected {
    let filters = filters.into_iter().map(|filter| v1::RouteFilter {
        filter: Some(filter),
    });
    let table = compile(vec![v1::RouteRule {
        filters: filters.collect(),
        ..rule("it", vec![prefix("/api")])
    }]);
    table.select(&request("GET /api/dags?limit=1")).unwrap()
}

fn field(name: &str, value: &str) -> v1::HttpHeader {
    v1::HttpHeader {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

#[test]
fn header_fields_are_set_added_and_removed_in_requests_and_responses() {
    let change = || v1::HeaderModifier {
        set: vec![field("a", "new")],
        add: vec![field("b", "more")],
        remove: vec!["c".to_owned()],
    };
    let selected = filtered(vec![
        Filter::RequestHeaders(change()),
        Filter::ResponseHeaders(change()),
    ]);
    let expected = |headers: &http::HeaderMap| {
        let all = |name| {
            headers
                .get_all(name)
                .iter()
                .map(|v| v.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(all("a"), ["new"]);
        assert_eq!(all("b"), ["old", "more"]);
        assert!(all("c").is_empty());
    };
    let mut request = request("GET /api a=old b=old c=old");
    selected
        .rule
        .filters
        .change_request(&mut request, 4)
        .unwrap();
    expected(request.headers());
    let mut response = Response::builder()
        .header("a", "old")
        .header("b", "old")
        .header("c", "old");
    let mut response = std::mem::take(&mut response).body(Body::Empty).unwrap();
    selected.rule.filters.change_response(&mut response);
    expected(response.headers());
}

#[test]
fn paths_and_hosts_are_rewritten_with_the_query_kept() {
    let path = |modifier| {
        Some(v1::PathModifier {
            modifier: Some(modifier),
        })
    };
    use v1::path_modifier::Modifier;
    for (host, modifier, text, target, host_field) in [
        (
            "",
            Modifier::Prefix("/v2".to_owned()),
            "GET /api/dags?limit=1 host=a",
            "/v2/dags?limit=1",
            Some("a"),
        ),
        (
            "",
            Modifier::Full("/x".to_owned()),
            "GET /api/dags?limit=1 host=a",
            "/x?limit=1",
            Some("a"),
        ),
        (
            "b.org",
            Modifier::Prefix(String::new()),
            "GET /api host=a",
            "/",
            Some("b.org"),
        ),
        (
            "b.org",
            Modifier::Full("/x".to_owned()),
            "GET http://a/api",
            "http://b.org/x",
            None,
        ),
    ] {
        let rewrite = v1::UrlRewrite {
            hostname: host.to_owned(),
            path: path(modifier),
        };
        let selected = filtered(vec![Filter::Rewrite(rewrite)]);
        let mut request = request(text);
        selected
            .rule
            .filters
            .change_request(&mut request, selected.prefix)
            .unwrap();
        assert_eq!(request.uri().to_string(), target, "{text}");
        let found = request
            .headers()
            .get("host")
            .map(|host| host.to_str().unwrap());
        assert_eq!(found, host_field, "{text}");
    }
}

#[test]
fn a_redirect_names_scheme_host_port_and_path_as_the_gateway_api_prescribes() {
    use v1::path_modifier::Modifier;
    let redirect =
        |scheme: &str, hostname: &str, port, path: Option<Modifier>| v1::RequestRedirect {
            scheme: scheme.to_owned(),
            hostname: hostname.to_owned(),
            path: path.map(|path| v1::PathModifier {
                modifier: Some(path),
            }),
            port,
            status: 0,
        };
    let http = |port| Front { tls: false, port };
    let https = |port| Front { tls: true, port };
    let prefix = |text: &str| Some(Modifier::Prefix(text.to_owned()));
    for (redirect, front, expected) in [
        (
            redirect("https", "", 0, None),
            http(8080),
            "https://a.org/api/dags?limit=1",
        ),
        (
            redirect("https", "", 8443, None),
            http(80),
            "https://a.org:8443/api/dags?limit=1",
        ),
        (
            redirect("http", "", 0, None),
            https(8443),
            "http://a.org/api/dags?limit=1",
        ),
        (
            redirect("", "b.org", 0, None),
            http(8080),
            "http://b.org:8080/api/dags?limit=1",
        ),
        (
            redirect("", "b.org", 0, None),
            https(443),
            "https://b.org/api/dags?limit=1",
        ),
        (
            redirect("", "", 80, None),
            http(8080),
            "http://a.org/api/dags?limit=1",
        ),
        (
            redirect("https", "", 80, None),
            http(80),
            "https://a.org:80/api/dags?limit=1",
        ),
        (
            redirect("", "", 0, prefix("/new/")),
            http(80),
            "http://a.org/new/dags?limit=1",
        ),
        (
            redirect("", "", 0, Some(Modifier::Full("/x".to_owned()))),
            http(80),
            "http://a.org/x?limit=1",
        ),
    ] {
        let selected = filtered(vec![Filter::Redirect(redirect)]);
        let came = request("GET /api/dags?limit=1 host=A.org:8080");
        let filter = selected.rule.filters.redirect.as_ref().unwrap();
        let response = filter.answer(&came, front, selected.prefix).unwrap();
        assert_eq!(response.status(), 302);
        assert_eq!(response.headers()["location"], expected);
    }
}

#[test]
fn what_cannot_be_read_makes_no_table() {
    let refused = |rule| {
        let table = v1::RouteTable { rules: vec![rule] };
        RouteTable::compile(&table, &|_| RetryPolicy::default()).unwrap_err()
    };
    let filter = |filter| v1::RouteFilter { filter };
    let with = |filters| v1::RouteRule {
        filters,
        ..rule("it", Vec::new())
    };
    let set = |name: &str, value: &str| {
        let change = v1::HeaderModifier {
            set: vec![field(name, value)],
            ..Default::default()
        };
        with(vec![filter(Some(Filter::RequestHeaders(change)))])
    };
    for (rule, expected) in [
        (rule("it", vec![regex("(")]), "expression"),
        (
            rule("it", vec![v1::RouteMatch::default().method("a b")]),
            "method",
        ),
        (
            rule(
                "it",
                vec![v1::RouteMatch {
                    headers: vec![v1::RouteNamedMatch::default()],
                    ..exact("/")
                }],
            ),
            "name",
        ),
        (with(vec![filter(None)]), "a filter"),
        (set("host", "a"), "host"),
        (
            set("sidewind-destination", "10.0.0.1:80"),
            "sidewind-destination",
        ),
        (set("x", "a\r\nb"), "header"),
        (
            v1::RouteRule {
                backends: vec![v1::RouteBackend::default()],
                ..rule("it", Vec::new())
            },
            "a backend",
        ),
    ] {
        let error = refused(rule).to_string();
        assert!(error.contains(expected), "{error} {expected}");
    }
}

/// Without any index: every match in the order of the Gateway API's criteria.
fn by_the_book(rules: &[(usize, v1::RouteMatch)], path: &str, method: &Method) -> Option<usize> {
    let candidates = rules.iter().enumerate().filter(|(_, (_, matched))| {
        let path_matches = match &matched.path {
            Some(Path::Exact(exact)) => exact == path,
            Some(Path::Prefix(prefix)) => {
                let wanted = prefix.split('/').filter(|element| !element.is_empty());
                let mut found = path.split('/').skip(1);
                wanted
                    .into_iter()
                    .all(|element| found.next() == Some(element))
            }
            _ => true,
        };
        path_matches && (matched.method.is_empty() || matched.method == method.as_str())
    });
    let best = candidates.min_by_key(|(order, (_, matched))| {
        let kind = match &matched.path {
            Some(Path::Exact(_)) => (0, 0),
            Some(Path::Prefix(prefix)) => (1, usize::MAX - prefix.trim_end_matches('/').len()),
            _ => (1, usize::MAX),
        };
        (kind, matched.method.is_empty(), *order)
    });
    best.map(|(_, (name, _))| *name)
}

fn arbitrary_match() -> impl Strategy<Value = v1::RouteMatch> {
    let path = prop_oneof![
        "(/[ab]{1,2}){1,3}".prop_map(|path| exact(&path)),
        "(/[ab]{1,2}){0,3}/?"
            .prop_filter("begins with a slash", |path| path.starts_with('/'))
            .prop_map(|path| prefix(&path)),
        Just(v1::RouteMatch::default()),
    ];
    (path, prop_oneof!["GET", Just(String::new())])
        .prop_map(|(matched, method)| matched.method(&method))
}

proptest! {
    #[test]
    fn the_index_finds_what_a_search_by_the_criteria_finds(
        matches in prop::collection::vec(arbitrary_match(), 0..12),
        path in "(/[ab]{1,2}){1,4}",
        get in any::<bool>(),
    ) {
        let method = if get { Method::GET } else { Method::PUT };
        let numbered: Vec<_> = matches.into_iter().enumerate().collect();
        let rules = numbered.iter().map(|(n, matched)| rule(&n.to_string(), vec![matched.clone()]));
        let table = compile(rules.collect());
        let expected = by_the_book(&numbered, &path, &method);
        let expected = expected.map_or("none".to_owned(), |n| n.to_string());
        prop_assert_eq!(selected(&table, &format!("{method} {path}")), expected);
    }

    #[test]
    fn no_target_and_no_header_makes_matching_fail(
        path in "/[ -~&&[^ #]]{0,40}",
        value in "[ -~]{0,20}",
    ) {
        let Ok(uri) = path.parse::<http::Uri>() else { return Ok(()) };
        let mut request = request("GET /");
        *request.uri_mut() = uri;
        request.headers_mut().insert("x", value.parse().unwrap());
        let table = compile(vec![
            rule("a", vec![prefix("/a").query("q", "~.*").header("x", "~.*")]),
            rule("b", vec![regex("/[^/]*").query("r", "1")]),
        ]);
        let _ = table.select(&request);
    }
}

#[test]
fn a_mirror_gets_the_share_of_requests_that_the_route_says() {
    let table = |numerator, denominator| {
        let mirror = v1::RequestMirror {
            backend: Some(v1::RouteBackend {
                weight: 1,
                target: Some(v1::route_backend::Target::Own(true)),
                filters: Vec::new(),
            }),
            numerator,
            denominator,
        };
        let rule = v1::RouteRule {
            filters: vec![v1::RouteFilter {
                filter: Some(Filter::Mirror(mirror)),
            }],
            ..Default::default()
        };
        let table = v1::RouteTable { rules: vec![rule] };
        RouteTable::compile(&table, &|_| RetryPolicy::default())
    };
    for (numerator, denominator, expected) in [
        (None, 0, 10_000..=10_000),
        (Some(0), 100, 0..=0),
        (Some(10), 100, 800..=1200),
        (Some(1), 8, 1050..=1450),
        (Some(100), 100, 10_000..=10_000),
    ] {
        let table = table(numerator, denominator).unwrap();
        let request = http::Request::get("http://orders/")
            .body(Body::Empty)
            .unwrap();
        let rule = table.select(&request).unwrap().rule;
        let copies: usize = (0..10_000).map(|_| rule.mirrors().count()).sum();
        assert!(
            expected.contains(&copies),
            "{numerator:?}/{denominator}: {copies}"
        );
    }
    assert!(table(Some(1), 0).is_err());
}

#[test]
fn a_host_with_the_dot_of_the_whole_name_space_is_the_same_host() {
    let rule = v1::RouteRule {
        hostnames: vec![
            "airflow.example.com".to_owned(),
            "*.apps.example.com".to_owned(),
        ],
        ..Default::default()
    };
    let table = v1::RouteTable { rules: vec![rule] };
    let table = RouteTable::compile(&table, &|_| RetryPolicy::default()).unwrap();
    for (host, matches) in [
        ("airflow.example.com", true),
        ("airflow.example.com.", true),
        ("Airflow.Example.com.:8443", true),
        ("a.apps.example.com.", true),
        ("airflow.example.com..", false),
        ("other.example.com.", false),
    ] {
        let request = http::Request::get("/")
            .header("host", host)
            .body(Body::Empty);
        assert_eq!(table.select(&request.unwrap()).is_some(), matches, "{host}");
    }
}
