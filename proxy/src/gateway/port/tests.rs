use std::path::Path;

use super::*;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(directory: &Path, named: &[(&str, &[&str])]) -> Certificates {
    for (name, hosts) in named {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
        std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    }
    let names: Vec<String> = named.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut certificates = Certificates::new(Some(directory.to_owned()));
    certificates.look(&names, &provider());
    certificates
}

fn listener(name: &str, hostname: &str, protocol: v1::GatewayProtocol) -> v1::GatewayListener {
    v1::GatewayListener {
        gateway: "airflow/web".to_owned(),
        name: name.to_owned(),
        port: 443,
        hostname: hostname.to_owned(),
        protocol: protocol.into(),
        certificates: vec!["one".to_owned(), "two".to_owned()],
        ..v1::GatewayListener::default()
    }
}

#[test]
fn a_certificate_is_chosen_by_server_name_and_the_first_where_none_is_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = certificates(
        directory.path(),
        &[
            ("one", &["a.example.com"]),
            ("two", &["*.example.com", "b.example.com"]),
        ],
    );
    let served = ["one", "two"].map(|name| certificates.get(name).unwrap().clone());
    let [one, two] = served.clone();
    let resolver = Resolver::new(served.to_vec()).unwrap();
    for (name, expected) in [
        ("a.example.com", &one),
        ("b.example.com", &two),
        ("c.example.com", &two),
        ("example.com", &one),
        ("other.org", &one),
        ("", &one),
    ] {
        assert!(Arc::ptr_eq(&resolver.choose(name), &expected.key), "{name}");
    }
    assert!(Resolver::new(Vec::new()).is_none());
}

#[test]
fn listeners_of_a_port_are_told_apart_by_host_and_do_not_mix() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = certificates(directory.path(), &[("one", &["a.example.com"])]);
    let made = |listener: &v1::GatewayListener| Listener::new(listener, &certificates, &provider());
    let mut port = Port::new(true);
    for (name, hostname) in [
        ("all", ""),
        ("wild", "*.example.com"),
        ("exact", "a.example.com"),
    ] {
        let listener = listener(name, hostname, v1::GatewayProtocol::Https);
        port.add(Arc::new(made(&listener).unwrap())).unwrap();
    }
    for (host, expected) in [
        ("a.example.com", "airflow/web/exact"),
        ("b.example.com", "airflow/web/wild"),
        ("example.com", "airflow/web/all"),
        ("", "airflow/web/all"),
    ] {
        assert_eq!(port.listener(host).unwrap().name, expected, "{host}");
    }
    let same = made(&listener(
        "same",
        "a.example.com",
        v1::GatewayProtocol::Https,
    ))
    .unwrap();
    let added = port.add(Arc::new(same));
    assert!(matches!(added, Err(ListenerError::Taken)));
    let plain = made(&listener(
        "plain",
        "c.example.com",
        v1::GatewayProtocol::Http,
    ))
    .unwrap();
    let added = port.add(Arc::new(plain));
    assert!(matches!(added, Err(ListenerError::Mixed)));
    let mut none = listener("none", "", v1::GatewayProtocol::Https);
    none.certificates = vec!["missing".to_owned()];
    assert!(matches!(made(&none), Err(ListenerError::NoCertificate)));
    let unknown = listener("unknown", "", v1::GatewayProtocol::Unspecified);
    assert!(matches!(made(&unknown), Err(ListenerError::Protocol)));
}

#[test]
fn browsers_are_told_of_hsts_where_they_speak_tls_alone() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = certificates(directory.path(), &[("one", &["a.example.com"])]);
    let made = |protocol, subdomains| {
        let mut listener = listener("web", "", protocol);
        listener.hsts_seconds = Some(3600);
        listener.hsts_include_subdomains = subdomains;
        let made = Listener::new(&listener, &certificates, &provider()).unwrap();
        made.hsts.map(|hsts| hsts.to_str().unwrap().to_owned())
    };
    use v1::GatewayProtocol::{Http, Https};
    assert_eq!(made(Https, false).as_deref(), Some("max-age=3600"));
    assert_eq!(
        made(Https, true).as_deref(),
        Some("max-age=3600; includeSubDomains")
    );
    assert_eq!(made(Http, true), None);
}

#[test]
fn tls_that_is_passed_through_goes_by_name_and_weight() {
    let route = |hostnames: &[&str], backends: &[(&str, u32)]| {
        TlsRoute::new(&v1::GatewayTlsRoute {
            route: "airflow/db".to_owned(),
            hostnames: hostnames.iter().map(|name| (*name).to_owned()).collect(),
            backends: backends
                .iter()
                .map(|(destination, weight)| v1::GatewayTlsBackend {
                    destination: (*destination).to_owned(),
                    weight: *weight,
                })
                .collect(),
        })
    };
    let routes = [
        route(&["*.example.com"], &[("wild.data:1", 1)]),
        route(
            &["db.example.com"],
            &[("one.data:1", 1), ("two.data:1", 3), ("none.data:1", 0)],
        ),
        route(&[], &[("all.data:1", 1)]),
    ];
    let goes = |name, draw| TlsRoute::destination(&routes, name, draw);
    assert_eq!(goes("x.example.com", 7), Some("wild.data:1"));
    assert_eq!(goes("other.org", 7), Some("all.data:1"));
    assert_eq!(goes("db.example.com", 0), Some("one.data:1"));
    assert_eq!(goes("db.example.com", u32::MAX / 4 - 1), Some("one.data:1"));
    assert_eq!(goes("db.example.com", u32::MAX / 4 + 1), Some("two.data:1"));
    assert_eq!(goes("db.example.com", u32::MAX), Some("two.data:1"));
    assert_eq!(
        TlsRoute::destination(&[route(&[], &[("a.data:1", 0)])], "x", 1),
        None
    );
    assert_eq!(TlsRoute::destination(&[], "x", 1), None);
}
