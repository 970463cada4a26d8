//! IPv6 is no way around the sidecar.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use sidewind_tests::http::Request;
use sidewind_tests::mesh::Mesh;
use sidewind_tests::wait::{PATIENCE, eventually};

#[test]
fn plaintext_by_ipv6_is_refused_in_strict_mode_like_any_other() {
    let mut mesh = Mesh::plan().flag("--inbound-plaintext", "strict").start();
    let api = mesh
        .workload("data", "orders-api")
        .serves("orders-api.data=8080")
        .start();
    // On all addresses of both kinds, as most servers listen.
    let server = (Ipv6Addr::UNSPECIFIED, 8080).into();
    let server = api.place.listen(server).expect("a free port");
    server.set_nonblocking(true).expect("a socket");
    let outside = mesh.outsider("outside");
    let [target, _] = [&api.host(), &outside].map(|host| mesh.lan().add_ipv6(host));

    // It is there: programs of its own host reach it, by either kind of address.
    for local in [
        SocketAddr::from((Ipv6Addr::LOCALHOST, 8080)),
        api.local(8080),
    ] {
        let _client = api.place.connect(local, Duration::from_secs(5)).unwrap();
        eventually("the server is reached", PATIENCE, || server.accept().ok());
    }
    for address in [SocketAddr::from((target, 8080)), api.at(8080)] {
        let reply = Request::get(address, "/").try_send(&outside.place).unwrap();
        assert_eq!(
            (reply.status, reply.header("sidewind-error")),
            (403, Some("plaintext-refused")),
            "{address}: {reply:?}"
        );
        assert!(server.accept().is_err(), "{address} leads to the server");
    }
}
