use proptest::prelude::*;

use super::*;

fn rule(policy: &str) -> v1::AllowRule {
    v1::AllowRule {
        policy: policy.into(),
        ..v1::AllowRule::default()
    }
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn the_word_of_those_on_tasks_counts_whom_the_control_plane_names() {
    let teller = "spiffe://sidewind.local/ns/airflow/sa/worker";
    let policy = v1::InboundPolicy {
        task_context_from: strings(&["nonsense", teller]),
        ..v1::InboundPolicy::default()
    };
    let policy = InboundPolicy::compile(&policy).unwrap();
    let believes = |id: &str| policy.believes_tasks_of(&SpiffeId::parse(id).unwrap());
    assert!(believes(teller));
    assert!(!believes("spiffe://sidewind.local/ns/airflow/sa/web"));
    assert!(!believes(&format!("{teller}/more")));
}

fn policy(rules: Vec<v1::AllowRule>) -> Arc<InboundPolicy> {
    let policy = v1::InboundPolicy {
        version: 1,
        plaintext: v1::PlaintextMode::Permissive.into(),
        default_deny: true,
        rules,
        ..v1::InboundPolicy::default()
    };
    Arc::new(InboundPolicy::compile(&policy).unwrap())
}

impl InboundPolicy {
    fn authorize_connection(self: &Arc<Self>, peer: Option<&SpiffeId>, port: u16) -> Decision {
        self.for_caller(peer, port).authorize_connection()
    }

    fn authorize_request(
        self: &Arc<Self>,
        peer: Option<&SpiffeId>,
        port: u16,
        method: &Method,
        path: &str,
    ) -> Decision {
        self.for_caller(peer, port).authorize_request(method, path)
    }
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn by(policy: &str) -> Decision {
    Decision::Allow {
        policy: Some(policy.into()),
    }
}

#[test]
fn without_a_policy_that_selects_the_workload_everything_goes_through() {
    let open = Arc::new(InboundPolicy::compile(&v1::InboundPolicy::default()).unwrap());
    assert_eq!(
        open.authorize_connection(None, 80),
        Decision::Allow { policy: None }
    );
    assert_eq!(
        open.plaintext(),
        Plaintext::Strict,
        "what is not said is strict"
    );
}

#[test]
fn once_a_policy_selects_the_workload_only_its_rules_let_through() {
    let worker = id("spiffe://td/ns/airflow/sa/worker");
    let other = id("spiffe://td/ns/other/sa/worker");
    let rules = vec![
        v1::AllowRule {
            sources: strings(&["spiffe://td/ns/airflow/sa/*"]),
            ports: vec![8080],
            methods: strings(&["GET"]),
            path_patterns: strings(&["/orders", "/orders/*"]),
            ..rule("data/orders")
        },
        v1::AllowRule {
            sources: strings(&["spiffe://td/ns/airflow/sa/worker"]),
            ports: vec![5432, 6379],
            ..rule("data/stores")
        },
    ];
    let policy = policy(rules);
    let get = |peer: Option<&SpiffeId>, port, path| {
        policy.authorize_request(peer, port, &Method::GET, path)
    };
    assert_eq!(get(Some(&worker), 8080, "/orders/1"), by("data/orders"));
    assert_eq!(
        get(Some(&worker), 8080, "/users"),
        Decision::Deny(Denial::Request)
    );
    assert_eq!(
        get(Some(&worker), 8080, "/orders/%2e%2e/users"),
        Decision::Deny(Denial::AmbiguousPath)
    );
    assert_eq!(
        get(Some(&worker), 6379, "/orders/%2e%2e/users"),
        by("data/stores")
    );
    assert_eq!(
        get(Some(&worker), 81, "/orders"),
        Decision::Deny(Denial::Port)
    );
    assert_eq!(
        get(Some(&other), 8080, "/orders"),
        Decision::Deny(Denial::Caller)
    );
    assert_eq!(
        get(None, 8080, "/orders"),
        Decision::Deny(Denial::NoIdentity)
    );
    let post = policy.authorize_request(Some(&worker), 8080, &Method::POST, "/orders");
    assert_eq!(post, Decision::Deny(Denial::Request));
    assert_eq!(
        policy.authorize_connection(Some(&worker), 5432),
        by("data/stores")
    );
    assert_eq!(
        policy.authorize_connection(Some(&worker), 8080),
        Decision::Deny(Denial::OnlyHttp)
    );
}

#[test]
fn a_policy_with_no_rule_refuses_everyone() {
    let closed = policy(Vec::new());
    assert_eq!(
        closed.authorize_connection(None, 80),
        Decision::Deny(Denial::NoIdentity)
    );
    let peer = id("spiffe://td/x");
    assert_eq!(
        closed.authorize_connection(Some(&peer), 80),
        Decision::Deny(Denial::Caller)
    );
}

#[test]
fn a_rule_without_sources_allows_callers_without_identity() {
    let health = policy(vec![v1::AllowRule {
        path_patterns: strings(&["/health"]),
        ..rule("data/health")
    }]);
    assert_eq!(
        health.authorize_request(None, 80, &Method::GET, "/health?x"),
        by("data/health")
    );
}

#[test]
fn a_rule_that_cannot_be_understood_refuses_the_whole_policy() {
    let broken = [
        v1::AllowRule {
            sources: strings(&["spiffe://*/x"]),
            ..rule("a/b")
        },
        v1::AllowRule {
            ports: vec![70_000],
            ..rule("a/b")
        },
        v1::AllowRule {
            ports: vec![0],
            ..rule("a/b")
        },
        v1::AllowRule {
            methods: strings(&["G E T"]),
            ..rule("a/b")
        },
        v1::AllowRule {
            path_patterns: strings(&["/a/*/b"]),
            ..rule("a/b")
        },
    ];
    for broken in broken {
        let policy = v1::InboundPolicy {
            rules: vec![rule("good"), broken],
            ..v1::InboundPolicy::default()
        };
        let error = InboundPolicy::compile(&policy).unwrap_err();
        assert!(error.to_string().starts_with("policy \"a/b\": "), "{error}");
    }
}

#[test]
fn a_kept_caller_policy_knows_when_it_is_outdated() {
    let first = policy(Vec::new());
    let second = policy(Vec::new());
    let caller = first.for_caller(None, 80);
    assert!(caller.is_of(&first) && !caller.is_of(&second));
}

const PEERS: [&str; 4] = [
    "spiffe://td/ns/a/sa/x",
    "spiffe://td/ns/a/sa/y",
    "spiffe://td/ns/b/sa/x",
    "spiffe://other/ns/a/sa/x",
];
const SOURCES: [&str; 5] = [
    "spiffe://td/ns/a/sa/x",
    "spiffe://td/ns/a/*",
    "spiffe://td/ns/*/sa/x",
    "spiffe://td/*",
    "spiffe://other/ns/a/sa/x",
];
const METHODS: [&str; 3] = ["GET", "POST", "PURGE"];
const PATTERNS: [&str; 5] = ["/", "/a", "/a/*", "/a/b", "/*"];
const PATHS: [&str; 9] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c",
    "/ab",
    "/a/../b",
    "/a/%2e%2e/b",
    "/a//b",
];

fn subset<T: Clone + std::fmt::Debug>(of: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    proptest::sample::subsequence(of, 0..=2)
}

fn any_rule() -> impl Strategy<Value = v1::AllowRule> {
    let ports = proptest::collection::vec(80..83_u32, 0..3);
    (subset(&SOURCES), ports, subset(&METHODS), subset(&PATTERNS)).prop_map(
        |(sources, ports, methods, paths)| v1::AllowRule {
            policy: format!("{sources:?}{ports:?}{methods:?}{paths:?}"),
            sources: strings(&sources),
            ports,
            methods: strings(&methods),
            path_patterns: strings(&paths),
        },
    )
}

/// The policy's meaning, said as plainly as can be.
fn naive_allows(
    rule: &v1::AllowRule,
    peer: Option<&str>,
    port: u16,
    request: Option<(&str, &str)>,
) -> bool {
    let source = |pattern: &String| {
        peer.is_some_and(|peer| SpiffeIdPattern::parse(pattern).unwrap().matches(&id(peer)))
    };
    let path_matches = |pattern: &String, path: &str| {
        let plain = !path.contains("//") && !path.contains("..") && !path.contains('%');
        plain
            && match pattern.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => path == pattern,
            }
    };
    let source_ok = rule.sources.is_empty() || rule.sources.iter().any(source);
    let port_ok = rule.ports.is_empty() || rule.ports.contains(&u32::from(port));
    let request_ok = match request {
        None => rule.methods.is_empty() && rule.path_patterns.is_empty(),
        Some((method, path)) => {
            (rule.methods.is_empty() || rule.methods.iter().any(|allowed| allowed == method))
                && (rule.path_patterns.is_empty()
                    || rule
                        .path_patterns
                        .iter()
                        .any(|pattern| path_matches(pattern, path)))
        }
    };
    source_ok && port_ok && request_ok
}

proptest! {
    #[test]
    fn decisions_agree_with_the_plain_reading(
        rules in proptest::collection::vec(any_rule(), 0..5),
        default_deny: bool,
        peer in proptest::option::of(proptest::sample::select(&PEERS[..])),
        port in 79..84_u16,
        method in proptest::sample::select(&METHODS[..]),
        path in proptest::sample::select(&PATHS[..]),
    ) {
        let wire = v1::InboundPolicy { default_deny, rules: rules.clone(), ..v1::InboundPolicy::default() };
        let policy = Arc::new(InboundPolicy::compile(&wire).unwrap());
        let peer_id = peer.map(id);
        let caller = policy.for_caller(peer_id.as_ref(), port);
        for request in [None, Some((method, path))] {
            let expected = !default_deny || rules.iter().any(|rule| naive_allows(rule, peer, port, request));
            let decision = match request {
                None => caller.authorize_connection(),
                Some((method, path)) => caller.authorize_request(&Method::from_bytes(method.as_bytes()).unwrap(), path),
            };
            prop_assert_eq!(decision.is_allowed(), expected, "{:?} {:?}", decision, request);
            if let Decision::Allow { policy: Some(name) } = &decision {
                let named = rules.iter().find(|rule| rule.policy == **name).unwrap();
                prop_assert!(naive_allows(named, peer, port, request), "{} does not allow it", name);
            }
        }
    }
}
