use super::*;

fn keeper() -> Keeper {
    let config = GatewayListenConfig {
        addresses: vec![ListenAddress {
            address: ([127, 0, 0, 1], 0).into(),
            required: true,
        }],
        certificates: None,
    };
    let metrics = Arc::new(Metrics::new());
    Keeper::new(config, 1, Readiness::default(), metrics)
}

/// A port that nobody has, and one that somebody has for as long as the socket lives.
fn ports() -> (u32, TcpListener) {
    let [free, taken] = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    (free.local_addr().unwrap().port().into(), taken)
}

fn listener(port: u32, hostname: &str) -> v1::GatewayListener {
    v1::GatewayListener {
        gateway: "airflow/web".to_owned(),
        name: "plain".to_owned(),
        port,
        hostname: hostname.to_owned(),
        protocol: v1::GatewayProtocol::Http.into(),
        ..v1::GatewayListener::default()
    }
}

fn routes(regex: &str) -> Option<v1::RouteTable> {
    let matched = v1::RouteMatch {
        path: Some(v1::route_match::Path::Regex(regex.to_owned())),
        ..v1::RouteMatch::default()
    };
    let rule = v1::RouteRule {
        matches: vec![matched],
        ..v1::RouteRule::default()
    };
    Some(v1::RouteTable { rules: vec![rule] })
}

fn config(listeners: &[v1::GatewayListener]) -> v1::GatewayConfig {
    v1::GatewayConfig {
        listeners: listeners.to_vec(),
        ..v1::GatewayConfig::default()
    }
}

fn served(keeper: &Keeper) -> Option<(u16, Arc<Listener>)> {
    keeper.served("airflow/web/plain")
}

#[test]
fn a_listener_that_cannot_be_as_its_document_says_goes_on_as_it_was() {
    let (port, taken) = ports();
    let taken = u32::from(taken.local_addr().unwrap().port());
    let good = v1::GatewayListener {
        routes: routes("/a"),
        ..listener(port, "a.example.com")
    };
    let other = v1::GatewayListener {
        hostname: "b.example.com".to_owned(),
        ..good.clone()
    };
    let speaking = |protocol: v1::GatewayProtocol| v1::GatewayListener {
        protocol: protocol.into(),
        ..other.clone()
    };
    let at = |port| v1::GatewayListener {
        port,
        ..other.clone()
    };
    let unreadable = v1::GatewayListener {
        routes: routes("("),
        ..other.clone()
    };
    for (reason, bad) in [
        (
            "none of its certificates",
            speaking(v1::GatewayProtocol::Https),
        ),
        (
            "its protocol is not one",
            speaking(v1::GatewayProtocol::Unspecified),
        ),
        ("its routes cannot be read", unreadable),
        ("cannot be opened", at(taken)),
        ("port 0 is none", at(0)),
    ] {
        let mut keeper = keeper();
        keeper.apply(&config(std::slice::from_ref(&good)));
        let (number, before) = served(&keeper).unwrap();
        keeper.apply(&config(std::slice::from_ref(&bad)));
        let (stays, now) = served(&keeper).unwrap_or_else(|| panic!("{reason}: it has gone"));
        assert!(Arc::ptr_eq(&now, &before) && stays == number, "{reason}");
        let (ready, told) = keeper.readiness.document();
        assert!(
            told.contains(reason) && told.contains("what was served before goes on"),
            "{reason}: {ready}, {told}"
        );
        // Another document that can be served takes its place, and none takes it away.
        keeper.apply(&config(&[listener(port, "c.example.com")]));
        let (_, now) = served(&keeper).unwrap();
        assert!(!Arc::ptr_eq(&now, &before), "{reason}");
        keeper.apply(&config(&[]));
        assert!(served(&keeper).is_none(), "{reason}");
    }
}

#[test]
fn what_was_served_before_gives_way_to_what_can_be_served_now() {
    let (port, _taken) = ports();
    let mut keeper = keeper();
    keeper.apply(&config(&[listener(port, "a.example.com")]));
    let bad = v1::GatewayListener {
        protocol: v1::GatewayProtocol::Https.into(),
        ..listener(port, "a.example.com")
    };
    let other = v1::GatewayListener {
        name: "other".to_owned(),
        ..listener(port, "a.example.com")
    };
    keeper.apply(&config(&[bad, other]));
    assert!(served(&keeper).is_none());
    assert!(keeper.served("airflow/web/other").is_some());
}

#[test]
fn a_listener_that_is_new_is_served_although_its_routes_cannot_be_read() {
    let (port, _taken) = ports();
    let mut keeper = keeper();
    let unreadable = v1::GatewayListener {
        routes: routes("("),
        ..listener(port, "")
    };
    // Every request is answered with an error then, which says more than a closed port.
    keeper.apply(&config(&[unreadable]));
    assert!(served(&keeper).is_some());
}
