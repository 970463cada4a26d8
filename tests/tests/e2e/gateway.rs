//! A gateway in front of services of the mesh, for clients outside it.

use std::io::{Read, Write};
use std::time::Duration;

use rustix::process::Signal;
use sidewind_tests::mesh::{Mesh, Sidecar};
use sidewind_tests::wait::{PATIENCE, eventually};

use crate::edge::{Edge, GATEWAY, GATEWAY_ID, all, certificate, replace, start_gateway};
use crate::support::Answer;

/// A port with one listener.
const OWN: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: airflow }
spec:
  gatewayClassName: sidewind
  listeners:
    - name: https
      port: 8443
      protocol: HTTPS
      tls: { certificateRefs: [{ name: airflow }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: api, namespace: airflow }
spec:
  parentRefs: [{ name: web }]
  rules: [{ backendRefs: [{ name: api-server, namespace: airflow, port: 80 }] }]
";

#[test]
fn clients_outside_are_served_over_tls_and_the_hop_behind_is_mutual_tls() {
    let edge = Edge::start();
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let url = "https://airflow.example.com:8443/orders";
        let arguments = [
            "-o",
            "/dev/null",
            "-w",
            "%{http_version} %{response_code}",
            flag,
            url,
        ];
        let printed = edge.curl(&arguments).finish().success();
        assert_eq!(printed, format!("{version} 200"));
    }
    let seen = edge.echo(&[]);
    let callers = all(&seen, "x-forwarded-client-cert");
    assert!(
        matches!(callers[..], [caller] if caller.contains(&format!("URI={GATEWAY_ID}"))),
        "{seen:?}"
    );
    let record = edge
        .gateway
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert_eq!(record.text("direction"), "gateway", "{record}");
    assert_eq!(record.destination_id(), edge.api.spiffe_id, "{record}");
    assert!(record.tls(), "{record}");
    let counted = edge
        .gateway
        .metrics()
        .sum("sidewind_requests_total", &[("direction", "gateway")]);
    assert!(counted >= 3.0, "{counted}");
}

#[test]
fn who_the_client_is_no_client_can_say_itself() {
    let edge = Edge::start();
    let claims = [
        "-H",
        "x-forwarded-for: 1.1.1.1",
        "-H",
        "x-forwarded-proto: http",
        "-H",
        "forwarded: for=1.1.1.1",
        "-H",
        "x-real-ip: 1.1.1.1",
        "-H",
        "x-forwarded-client-cert: URI=spiffe://sidewind.local/ns/airflow/sa/admin",
    ];
    let seen = edge.echo(&[&claims[..], &["--interface", "127.77.0.200"]].concat());
    assert_eq!(all(&seen, "x-forwarded-for"), ["127.77.0.200"]);
    assert_eq!(all(&seen, "x-forwarded-proto"), ["https"]);
    assert_eq!(all(&seen, "x-forwarded-host"), ["airflow.example.com:8443"]);
    let forwarded = "for=127.77.0.200;proto=https;host=\"airflow.example.com:8443\"";
    assert_eq!(all(&seen, "forwarded"), [forwarded]);
    assert!(all(&seen, "x-real-ip").is_empty());
    let callers = all(&seen, "x-forwarded-client-cert");
    assert!(
        !callers.iter().any(|caller| caller.contains("sa/admin")),
        "{callers:?}"
    );

    let plan = Mesh::plan().config("gateway.yaml", GATEWAY);
    let edge = Edge::with(plan, &["--gateway-trusted-proxies", "127.77.0.201"]);
    let seen = edge.echo(&[
        "-H",
        "x-forwarded-for: 192.0.2.1",
        "--interface",
        "127.77.0.201",
    ]);
    assert_eq!(all(&seen, "x-forwarded-for"), ["192.0.2.1, 127.77.0.201"]);
    let record = edge
        .gateway
        .wait_for_access("the call", |record| record.path() == "/echo");
    assert!(record.to_string().contains("192.0.2.1"), "{record}");
}

#[test]
fn http_is_redirected_and_browsers_are_told_to_stay_with_https() {
    let edge = Edge::start();
    let printed = edge
        .curl(&["-i", "http://airflow.example.com:8080/orders?a=b"])
        .finish()
        .success();
    assert!(printed.starts_with("HTTP/1.1 308 "), "{printed}");
    assert!(
        printed.contains("location: https://airflow.example.com:8443/orders?a=b\r\n"),
        "{printed}"
    );
    assert!(
        !printed.to_lowercase().contains("strict-transport-security"),
        "{printed}"
    );
    let followed = ["-L", "-d", "x", "http://airflow.example.com:8080/echo"];
    assert_eq!(edge.curl(&followed).finish().success(), "x");
    let printed = edge
        .curl(&["-i", "https://airflow.example.com:8443/orders"])
        .finish()
        .success();
    assert!(
        printed.contains("strict-transport-security: max-age=3600\r\n"),
        "{printed}"
    );
    let printed = edge
        .curl(&["-i", "https://a.apps.example.com:8443/orders"])
        .finish()
        .success();
    assert!(!printed.contains("strict-transport-security"), "{printed}");
}

#[test]
fn the_server_name_chooses_listener_certificate_and_versions() {
    let edge = Edge::start();
    for (arguments, expected) in [
        (
            ["-servername", "airflow.example.com", "-tls1_2"],
            Some("airflow.example.com"),
        ),
        (
            ["-servername", "airflow.example.com", "-tls1_3"],
            Some("airflow.example.com"),
        ),
        (
            ["-servername", "b.apps.example.com", "-tls1_3"],
            Some("*.apps.example.com"),
        ),
        (["-servername", "b.apps.example.com", "-tls1_2"], None),
        (["-servername", "airflow.example.com", "-tls1_1"], None),
        (["-servername", "other.example.com", "-tls1_3"], None),
    ] {
        let seen = edge.s_client(&arguments);
        let (out, err) = (seen.out(), seen.err());
        match expected {
            Some(_) => assert!(
                out.contains("BEGIN CERTIFICATE"),
                "{arguments:?}: {out}{err}"
            ),
            None => assert!(!out.contains("BEGIN CERTIFICATE"), "{arguments:?}: {out}"),
        }
    }
    let refused = edge.s_client(&["-servername", "other.example.com"]);
    let refused = refused.out() + &refused.err();
    assert!(refused.contains("unrecognized name"), "{refused}");
    // curl checks that the certificate is for the name.
    for host in ["airflow.example.com", "a.apps.example.com"] {
        assert_eq!(
            edge.ask(&[&format!("https://{host}:8443/orders")]).status,
            200
        );
    }
}

#[test]
fn a_request_for_another_listener_than_its_connections_is_sent_to_make_a_new_one() {
    let edge = Edge::start();
    for (host, status, code) in [
        ("a.apps.example.com", 421, "wrong-destination"),
        // Of no listener at all: a new connection would be of no use.
        ("other.example.com", 404, "no-route"),
    ] {
        let header = format!("host: {host}");
        let answer = edge.ask(&["-H", &header, "https://airflow.example.com:8443/orders"]);
        assert_eq!(
            (answer.status, answer.error.as_str()),
            (status, code),
            "{answer:?}"
        );
    }
}

#[test]
fn a_client_may_ask_whether_its_body_is_wanted_and_write_its_host_with_a_dot() {
    let edge = Edge::start();
    let url = "https://airflow.example.com:8443/echo";
    let asks = ["-v", "--http1.1", "--expect100-timeout", "25"];
    let asks = edge.curl(&asks).args(["-H", "expect: 100-continue"]);
    let asked = asks.args(["-d", "x", url]).finish();
    assert_eq!(asked.success(), "x");
    let said = asked.err();
    assert!(said.contains("< HTTP/1.1 100 Continue"), "{said}");
    let dotted = edge.ask(&["-H", "host: airflow.example.com.", url]);
    assert_eq!(dotted.status, 200, "{dotted:?}");
}

#[test]
fn a_route_to_what_is_no_service_leads_nowhere_and_never_out_of_the_mesh() {
    let edge = Edge::start();
    let answer = edge.ask(&["https://airflow.example.com:8443/nowhere"]);
    assert_eq!(answer.status, 500, "{answer:?}");
    assert_eq!(answer.error, "backend-invalid", "{answer:?}");
}

#[test]
fn a_certificate_is_replaced_under_load_and_a_bad_one_is_not_taken() {
    let edge = Edge::start();
    let url = "https://airflow.example.com:8443/orders";
    let load = edge.host.place.program("h2load");
    let load = load.args(["-n", "20000", "-c", "8", "-m", "4", "--connect-to"]);
    let load = load.arg(format!("{}:8443", edge.host.address));
    let mut load = load.arg(url).start("h2load", &edge.mesh.scratch);
    let serving = || {
        let seen = edge.s_client(&["-servername", "airflow.example.com"]).out();
        let begin = seen.find("-----BEGIN").unwrap_or_else(|| panic!("{seen}"));
        seen[begin..].split("-----END").next().unwrap().to_owned()
    };
    let before = serving();
    certificate(&edge.mesh, "airflow", "airflow.example.com");
    eventually("the new certificate is served", PATIENCE, || {
        (serving() != before).then_some(())
    });
    let good = serving();
    let directory = edge.mesh.scratch.join("certificates/airflow");
    let refused = "sidewind_gateway_certificates_refused_total";
    let counted = edge.metric(refused);
    replace(&directory, "tls.key", "no key");
    eventually("the bad pair is refused", PATIENCE, || {
        (edge.metric(refused) > counted).then_some(())
    });
    assert_eq!(serving(), good);
    assert!(edge.gateway.is_ready());
    eventually("readiness says which", PATIENCE, || {
        let said = edge.gateway.get("/ready").text();
        said.contains("certificate airflow").then_some(())
    });
    assert!(
        load.wait(Duration::from_secs(60)).success(),
        "{}",
        load.log()
    );
    let report = load.output();
    assert!(
        report.contains("20000 succeeded, 0 failed, 0 errored"),
        "{report}"
    );
}

#[test]
fn the_client_behind_haproxy_is_known_by_its_proxy_header() {
    let from = ["--gateway-proxy-protocol-from", "127.77.0.210,127.77.0.211"];
    let edge = Edge::with(Mesh::plan().config("gateway.yaml", GATEWAY), &from);
    let at = edge.host.address;
    for (version, port, source) in [
        ("send-proxy", 7001, "127.77.0.210"),
        ("send-proxy-v2", 7002, "127.77.0.211"),
    ] {
        let configuration = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen web\n bind 127.0.0.1:{port}\n server gateway {at}:8443 {version} source {source}\n"
        );
        let file = edge
            .mesh
            .scratch
            .write(&format!("{version}.cfg"), configuration);
        let haproxy = edge
            .host
            .place
            .program("haproxy")
            .args(["-db", "-f"])
            .arg(file);
        let mut haproxy = haproxy.start(version, &edge.mesh.scratch);
        let place = edge.host.place.clone();
        haproxy.wait_until("it listens", PATIENCE, || {
            place.is_open(([127, 0, 0, 1], port).into())
        });
        let connect = format!("airflow.example.com:8443:127.0.0.1:{port}");
        let seen = edge.echo(&["--connect-to", &connect, "--interface", "127.77.0.220"]);
        assert_eq!(all(&seen, "x-forwarded-for"), ["127.77.0.220"], "{version}");
    }
    // A client that is no such load balancer is itself, and its header no HTTP and no TLS.
    assert_eq!(
        edge.ask(&["https://airflow.example.com:8443/orders"])
            .status,
        200
    );
    edge.curl(&[
        "--haproxy-protocol",
        "https://airflow.example.com:8443/orders",
    ])
    .finish()
    .failure();
    // From a load balancer it must come.
    let without = [
        "--interface",
        "127.77.0.210",
        "https://airflow.example.com:8443/orders",
    ];
    edge.curl(&without).finish().failure();
    let log = edge.gateway.log();
    assert!(log.contains("sent no PROXY header"), "{log}");
}

#[test]
fn tls_is_passed_through_by_server_name() {
    let edge = Edge::start();
    certificate(&edge.mesh, "own", "own.example.com");
    let pair = edge.mesh.scratch.join("certificates/own");
    let own = edge
        .api
        .program("openssl")
        .args(["s_server", "-quiet", "-www", "-accept"]);
    let own = own.arg(edge.api.local(4433).to_string());
    let own = own
        .arg("-cert")
        .arg(pair.join("tls.crt"))
        .arg("-key")
        .arg(pair.join("tls.key"));
    let mut own = own.start("own", &edge.mesh.scratch);
    let (place, local) = (edge.api.place.clone(), edge.api.local(4433));
    own.wait_until("it listens", PATIENCE, || place.is_open(local));
    let page = edge
        .curl(&["https://own.example.com:9443/"])
        .finish()
        .success();
    assert!(page.contains("s_server"), "{page}");
    let record = edge
        .gateway
        .wait_for_access("the connection", |record| !record.is_request());
    assert_eq!(record.text("direction"), "gateway", "{record}");
    assert_eq!(record.destination_id(), edge.api.spiffe_id, "{record}");
    // A ClientHello of more than a record of 512 bytes, by which other clients' middleboxes go.
    let protocols: Vec<String> = (0..80).map(|number| format!("protocol-{number}")).collect();
    let at = format!("{}:9443", edge.host.address);
    let client = edge.host.place.program("openssl");
    let client = client.args(["s_client", "-quiet", "-servername", "own.example.com"]);
    let client = client.args(["-connect", &at, "-max_send_frag", "512"]);
    let client = client.args(["-alpn", &protocols.join(",")]);
    let page = client.input("GET / HTTP/1.0\r\n\r\n").finish().out();
    assert!(page.contains("s_server"), "{page}");
    let unknown = [
        "--connect-to",
        &format!("x.example.com:9443:{}:9443", edge.host.address),
        "https://x.example.com:9443/",
    ];
    edge.curl(&unknown).finish().failure();
}

#[test]
fn an_upgraded_connection_goes_through_both_ways() {
    let edge = Edge::start();
    let (place, local) = (edge.api.place.clone(), edge.api.local(8080));
    let mut server = edge.server;
    server.kill();
    let listener = place.listen(local).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(switch).unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).unwrap();
        stream.write_all(&said).unwrap();
    });
    let at = format!("{}:8443", edge.host.address);
    let client = edge.host.place.program("openssl");
    let client = client.args([
        "s_client",
        "-quiet",
        "-servername",
        "airflow.example.com",
        "-connect",
        &at,
    ]);
    let upgrade = "GET /ws HTTP/1.1\r\nhost: airflow.example.com\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
    let seen = client.input(upgrade).finish().out();
    assert!(
        seen.starts_with("HTTP/1.1 101 ") && seen.ends_with("\r\n\r\nhello"),
        "{seen}"
    );
    serving.join().unwrap();
}

#[test]
fn ports_open_and_close_with_their_documents_and_the_others_go_on() {
    let edge = Edge::start();
    let port = |number: u16| (edge.host.address, number).into();
    let slow = edge.curl(&["-i", "https://airflow.example.com:8443/slow?ms=3000"]);
    let slow = std::thread::spawn(move || Answer::parse(&slow.finish().success()));
    let more = GATEWAY
        .replace("port: 8080", "port: 8081")
        .replace("max-age: 1h", "max-age: 2h");
    edge.mesh.control_plane.write_config("gateway.yaml", &more);
    eventually("the new port is open", PATIENCE, || {
        edge.host.place.is_open(port(8081)).then_some(())
    });
    eventually("the old port is closed", PATIENCE, || {
        (!edge.host.place.is_open(port(8080))).then_some(())
    });
    eventually("the listener that stays has changed", PATIENCE, || {
        let printed = edge
            .curl(&["-i", "https://airflow.example.com:8443/orders"])
            .finish()
            .success();
        printed.contains("max-age=7200").then_some(())
    });
    assert_eq!(slow.join().unwrap().status, 200, "what was under way");
    // Nothing is left of a listener whose document has gone, and what is wrong with a new one stops no other.
    let wrong = GATEWAY.replace("name: apps }", "name: missing }");
    edge.mesh.control_plane.write_config("gateway.yaml", &wrong);
    eventually("the fault is told", PATIENCE, || {
        edge.gateway
            .get("/ready")
            .text()
            .contains("airflow/web/modern")
            .then_some(())
    });
    assert_eq!(
        edge.ask(&["https://airflow.example.com:8443/orders"])
            .status,
        200
    );
    assert!(edge.gateway.is_ready());
    // Its own one goes on as it was.
    let modern = ["https://a.apps.example.com:8443/orders"];
    assert_eq!(edge.ask(&modern).status, 200);
    assert_eq!(kept(&edge), 1.0);
}

/// Listeners that go on as an earlier document had them.
fn kept(edge: &Edge) -> f64 {
    let metrics = edge.gateway.metrics();
    metrics.sum("sidewind_gateway_kept_listeners", &[])
}

#[test]
fn a_port_whose_only_listener_is_given_a_certificate_that_is_not_there_yet_goes_on() {
    let edge = Edge::with(Mesh::plan().config("gateway.yaml", OWN), &[]);
    let own = ["https://airflow.example.com:8443/orders"];
    assert_eq!(edge.ask(&own).status, 200);
    let renamed = OWN.replace("name: airflow }]", "name: renamed }]");
    let (config, told) = (&edge.mesh.control_plane, "what was served before goes on");
    config.write_config("gateway.yaml", &renamed);
    eventually("the fault is told", PATIENCE, || {
        let ready = edge.gateway.get("/ready").text();
        ready.contains(told).then_some(())
    });
    eventually("it is in the log, too", PATIENCE, || {
        edge.gateway.log().contains(told).then_some(())
    });
    assert_eq!(edge.ask(&own).status, 200);
    assert!(edge.gateway.is_ready());
    assert_eq!(kept(&edge), 1.0);
    // And so does one that is to move to where somebody else is.
    let taken = edge.host.place.listen((edge.host.address, 9443).into());
    config.write_config("gateway.yaml", &OWN.replace("port: 8443", "port: 9443"));
    eventually("the fault is told", PATIENCE, || {
        let ready = edge.gateway.get("/ready").text();
        ready.contains("port 9443 cannot be opened").then_some(())
    });
    assert_eq!(edge.ask(&own).status, 200);
    // Until it can be served as its document says.
    drop(taken);
    eventually("the new port is open", PATIENCE, || {
        (kept(&edge) == 0.0).then_some(())
    });
    let moved = ["https://airflow.example.com:9443/orders"];
    assert_eq!(edge.ask(&moved).status, 200);
    config.write_config("gateway.yaml", &renamed);
    certificate(&edge.mesh, "renamed", "airflow.example.com");
    eventually("it is back where the new document has it", PATIENCE, || {
        let port = (edge.host.address, 9443).into();
        (!edge.host.place.is_open(port)).then_some(())
    });
    assert_eq!(edge.ask(&own).status, 200);
}

#[test]
fn a_gateway_is_ready_once_its_listeners_are() {
    let mut mesh = Mesh::plan().start_on_loopback();
    certificate(&mesh, "airflow", "airflow.example.com");
    let host = mesh.outsider("gateway");
    let mut gateway = start_gateway(&mesh, &host, &[]);
    let detail = |gateway: &Sidecar, text: &str| {
        let what = format!("readiness says {text:?}");
        eventually(&what, PATIENCE, || {
            gateway.get("/ready").text().contains(text).then_some(())
        });
        assert!(!gateway.is_ready());
    };
    eventually("the admin port answers", PATIENCE, || {
        host.place.is_open(gateway.admin()).then_some(())
    });
    assert_eq!(gateway.get("/live").status, 200);
    detail(&gateway, "no Gateway document");
    mesh.control_plane.write_config("gateway.yaml", GATEWAY);
    detail(&gateway, "certificate apps");
    certificate(&mesh, "apps", "*.apps.example.com");
    gateway.wait_ready(PATIENCE);
}

#[test]
fn a_gateway_that_is_told_to_end_finishes_what_it_has_accepted() {
    let mut edge = Edge::start();
    let slow = edge.curl(&[
        "-i",
        "--http2",
        "https://airflow.example.com:8443/slow?ms=2000",
    ]);
    let slow = std::thread::spawn(move || Answer::parse(&slow.finish().success()));
    crate::support::working_on(&edge.server, 1);
    edge.gateway.process().signal(Signal::TERM);
    eventually("it is not ready", PATIENCE, || {
        (!edge.gateway.is_ready()).then_some(())
    });
    // Load balancers need a while to notice.
    assert_eq!(
        edge.ask(&["https://airflow.example.com:8443/orders"])
            .status,
        200
    );
    assert_eq!(slow.join().unwrap().status, 200);
    assert!(edge.gateway.process().wait(PATIENCE).success());
}

#[test]
fn slow_and_silent_clients_are_not_waited_for() {
    let flags = [
        "--gateway-idle-timeout",
        "3s",
        "--header-timeout",
        "1s",
        "--handshake-timeout",
        "1s",
    ];
    let edge = Edge::with(Mesh::plan().config("gateway.yaml", GATEWAY), &flags);
    let at = format!("{}:8443", edge.host.address);
    let client = |input: &str| {
        let client = edge.host.place.program("openssl");
        let client = client.args([
            "s_client",
            "-quiet",
            "-servername",
            "airflow.example.com",
            "-connect",
            &at,
        ]);
        client.input(input).finish().out()
    };
    // Each ends by the gateway's closing: s_client itself would wait for ever.
    let seen = client("GET /orders HTTP/1.1\r\nhost: airflow.ex");
    assert!(
        seen.starts_with("HTTP/1.1 408 ")
            && seen.contains("\r\nsidewind-error: client-timeout\r\n"),
        "{seen}"
    );
    let seen = client("GET /orders HTTP/1.1\r\nhost: airflow.example.com\r\n\r\n");
    assert!(
        seen.contains(" 200 ") && seen.contains("anemometer"),
        "{seen}"
    );
    for silent in [8443, 9443] {
        let mut stream = edge
            .host
            .place
            .connect((edge.host.address, silent).into(), PATIENCE)
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(
            stream.read(&mut [0; 16]).unwrap_or(0),
            0,
            "closed with nothing said"
        );
    }
}
