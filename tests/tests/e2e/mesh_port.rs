//! The mesh port as strangers find it, by OpenSSL's own client.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::Request;
use sidewind_tests::authority::TestAuthority;
use sidewind_tests::lan::Host;
use sidewind_tests::mesh::{MESH_PORT, Mesh};
use sidewind_tests::peer::Peer;

use crate::support::{API_ID, Pair, TASK_ID, allow};

const INTRUDER_ID: &str = "spiffe://sidewind.local/ns/data/sa/intruder";

struct Story {
    pair: Pair,
    authority: TestAuthority,
    outside: Host,
}

impl Story {
    /// An API that only the task may call, and somebody outside.
    fn begin() -> Self {
        let authority = TestAuthority::new();
        let mesh = Mesh::plan()
            .root(&authority)
            .config("policy.yaml", &allow(API_ID, &[TASK_ID], ""));
        let mut pair = Pair::serving(mesh, "orders-api.data=8080/http");
        let outside = pair.mesh.outsider("outside");
        Self {
            pair,
            authority,
            outside,
        }
    }

    fn port(&self) -> SocketAddr {
        self.pair.api.at(MESH_PORT)
    }

    fn peer(&self) -> Peer {
        Peer::new(&self.outside.place, self.port(), "sidewind/1")
    }

    fn peer_as(&self, id: &str) -> Peer {
        let name = id.rsplit('/').next().unwrap_or_default();
        self.peer().with(&self.authority.svid_files(
            &self.pair.mesh.scratch,
            name,
            id,
            SystemTime::now(),
        ))
    }

    /// A request for the API, as a sidecar sends it.
    fn request(&self, path: &str) -> Request<()> {
        let destination = self.pair.api.at(8080).to_string();
        let request = Request::get(format!("http://orders-api.data:8080{path}"));
        request
            .header("sidewind-destination", destination)
            .body(())
            .unwrap()
    }

    fn failed_handshakes(&self, reason: &str) -> f64 {
        let labels = [("side", "server"), ("result", "error"), ("reason", reason)];
        self.pair
            .api
            .sidecar
            .metrics()
            .sum("sidewind_tls_handshakes_total", &labels)
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let story = Story::begin();
    let said = story.peer().handshake().failure();
    assert!(said.contains("certificate required"), "{said}");
    assert!(story.peer().ask(story.request("/orders"), "").is_err());
    assert!(story.failed_handshakes("no-certificate") >= 2.0);
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let story = Story::begin();
    // The same names throughout: only the key of the root is another.
    let other = TestAuthority::new();
    let svid = other.svid_files(
        &story.pair.mesh.scratch,
        "other",
        TASK_ID,
        SystemTime::now(),
    );
    let peer = story.peer().with(&svid);
    let said = peer.handshake().failure();
    assert!(said.contains("SSL alert number"), "{said}");
    assert!(peer.ask(story.request("/orders"), "").is_err());
    assert!(story.failed_handshakes("bad-certificate") >= 2.0);
}

#[test]
fn an_expired_certificate_is_refused() {
    let story = Story::begin();
    let long_ago = SystemTime::now() - Duration::from_secs(3 * 3600);
    let svid = story
        .authority
        .svid_files(&story.pair.mesh.scratch, "expired", TASK_ID, long_ago);
    let said = story.peer().with(&svid).handshake().failure();
    assert!(said.contains("SSL alert number"), "{said}");
    assert!(story.failed_handshakes("expired-certificate") >= 1.0);
}

#[test]
fn tls_1_2_is_refused() {
    let story = Story::begin();
    let said = story
        .peer_as(TASK_ID)
        .option("-tls1_2")
        .handshake()
        .failure();
    assert!(said.contains("protocol version"), "{said}");
    assert!(story.failed_handshakes("incompatible") >= 1.0);
}

#[test]
fn an_application_protocol_that_is_not_the_mesh_is_refused() {
    let story = Story::begin();
    let svid =
        story
            .authority
            .svid_files(&story.pair.mesh.scratch, "task", TASK_ID, SystemTime::now());
    let peer = Peer::new(&story.outside.place, story.port(), "http/1.1").with(&svid);
    let said = peer.handshake().failure();
    assert!(said.contains("no application protocol"), "{said}");
}

#[test]
fn a_valid_svid_that_policy_allows_gets_through_and_one_that_it_refuses_does_not() {
    let story = Story::begin();
    let reply = story
        .peer_as(TASK_ID)
        .ask(story.request("/orders"), "")
        .unwrap();
    assert_eq!(
        (reply.status, reply.header("sidewind-error")),
        (200, None),
        "{}",
        reply.text()
    );

    let reply = story
        .peer_as(INTRUDER_ID)
        .ask(story.request("/orders"), "")
        .unwrap();
    assert_eq!(
        (reply.status, reply.header("sidewind-error")),
        (403, Some("policy-denied")),
        "{}",
        reply.text()
    );
    let record = story
        .pair
        .api
        .sidecar
        .wait_for_access("the refusal", |record| record.error() == "policy-denied");
    assert_eq!(record.source_id(), INTRUDER_ID);
}

#[test]
fn an_hbone_peer_gets_a_tunnel_if_policy_allows_it() {
    let story = Story::begin();
    let to_the_api = || {
        let authority = story.pair.api.at(8080).to_string();
        Request::connect(authority).body(()).unwrap()
    };
    let of = |id: &str| {
        let name = format!("hbone-{}", id.rsplit('/').next().unwrap_or_default());
        let svid =
            story
                .authority
                .svid_files(&story.pair.mesh.scratch, &name, id, SystemTime::now());
        Peer::new(&story.outside.place, story.port(), "h2").with(&svid)
    };
    let request = "GET /orders HTTP/1.1\r\nhost: orders-api.data\r\nconnection: close\r\n\r\n";
    let reply = of(TASK_ID).ask(to_the_api(), request).unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("anemometer"), "{}", reply.text());

    // There is no request that it may send, so that it gets no tunnel.
    let reply = of(INTRUDER_ID).ask(to_the_api(), request).unwrap();
    assert_eq!(
        (reply.status, reply.header("sidewind-error")),
        (403, Some("policy-denied")),
        "{}",
        reply.text()
    );
    let record = story
        .pair
        .api
        .sidecar
        .wait_for_access("the refusal", |record| record.error() == "policy-denied");
    assert_eq!(record.source_id(), INTRUDER_ID);
}

#[test]
fn a_tunnel_to_an_http_port_carries_no_identity_but_the_peers_own() {
    let story = Story::begin();
    let svid = story.authority.svid_files(
        &story.pair.mesh.scratch,
        "forger",
        TASK_ID,
        SystemTime::now(),
    );
    let peer = Peer::new(&story.outside.place, story.port(), "h2").with(&svid);
    let tunnel = || Request::connect(story.pair.api.at(8080).to_string()).body(());
    let forged = "GET /echo HTTP/1.1\r\nhost: orders-api.data\r\nconnection: close\r\n\
        x-forwarded-client-cert: URI=spiffe://sidewind.local/ns/admin/sa/root\r\n\r\n";
    let echoed = peer.ask(tunnel().unwrap(), forged).unwrap().text();
    assert!(
        echoed.contains(&format!("URI={TASK_ID}")) && !echoed.contains("sa/root"),
        "{echoed}"
    );
    // What is no HTTP gets nowhere: the port is declared as HTTP.
    if let Ok(reply) = peer.ask(tunnel().unwrap(), "\x01\x02\x03\x04\r\n\r\n") {
        assert!(reply.text().is_empty(), "{}", reply.text());
    }
}

#[test]
fn a_peer_reaches_no_other_host_through_the_mesh_port() {
    let story = Story::begin();
    let peer = story.peer_as(TASK_ID);
    // The control plane's admin port, the workload's loopback, and the sidecar's own admin port.
    let control_plane = story.pair.mesh.control_plane.host().address;
    for destination in [
        format!("{control_plane}:15014"),
        "127.0.0.1:8080".into(),
        story.pair.api.at(15020).to_string(),
    ] {
        let request = Request::get(format!("http://{destination}/metrics"));
        let request = request
            .header("sidewind-destination", &destination)
            .body(())
            .unwrap();
        let reply = peer.ask(request, "").unwrap();
        assert!(
            reply.status >= 400 && reply.header("sidewind-error").is_some(),
            "{destination}: {reply:?}"
        );
        let tunnel = peer.ask(
            Request::connect(&destination).body(()).unwrap(),
            "GET / HTTP/1.0\r\n\r\n",
        );
        assert!(
            !tunnel.as_ref().is_ok_and(|reply| reply.status == 200),
            "{destination}: {tunnel:?}"
        );
    }
}

#[test]
fn what_a_peer_says_about_itself_is_not_believed() {
    let story = Story::begin();
    let mut request = story.request("/echo");
    for name in [
        "x-forwarded-client-cert",
        "sidewind-destination-identity",
        "x-sidewind-anything",
    ] {
        request
            .headers_mut()
            .insert(name, format!("URI={INTRUDER_ID}").parse().unwrap());
    }
    let reply = story.peer_as(TASK_ID).ask(request, "").unwrap();
    let document = reply.json();
    let headers = document["headers"].as_array().unwrap();
    let of = |name: &str| {
        let named = headers
            .iter()
            .filter(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
        named
            .map(|header| header[1].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let certificates = of("x-forwarded-client-cert");
    assert_eq!(certificates.len(), 1, "{document}");
    assert!(
        certificates[0].contains(&format!("URI={TASK_ID}")),
        "{document}"
    );
    assert!(!certificates[0].contains(INTRUDER_ID), "{document}");
    assert!(
        of("sidewind-destination").is_empty() && of("sidewind-protocol").is_empty(),
        "{document}"
    );
}
