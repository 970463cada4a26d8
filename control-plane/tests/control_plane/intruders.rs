//! Who asks for what is not theirs: the command line's service over the network, another address, more than was sent.

use crate::support::{ControlPlane, attest_request, http_get, limited, until, within};
use sidewind_api::v1::admin_service_client::AdminServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_identity::PrivateKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr_der().unwrap()
}

#[tokio::test]
async fn nobody_administers_over_the_network_whatever_certificate_they_have() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let worker = client.svid(ORDERS, &[]).await;
    let before = control_plane.audit().await;
    for tls in [client.anonymous_tls(), client.tls(&worker)] {
        let mut admin = AdminServiceClient::new(client.channel(tls).await.unwrap());
        let token = v1::CreateJoinTokenRequest {
            spiffe_id: "spiffe://sidewind.local/admin".to_owned(),
            ..Default::default()
        };
        let minted = admin.create_join_token(token).await;
        assert_eq!(minted.unwrap_err().code(), Code::Unimplemented);
        let banned = admin.set_ban(v1::SetBanRequest::default()).await;
        assert_eq!(banned.unwrap_err().code(), Code::Unimplemented);
        let rotated = admin.rotate_authority(v1::RotateAuthorityRequest::default());
        assert_eq!(rotated.await.unwrap_err().code(), Code::Unimplemented);
        let listed = admin.list_audit(v1::ListAuditRequest::default()).await;
        assert_eq!(listed.unwrap_err().code(), Code::Unimplemented);
    }
    assert_eq!(control_plane.audit().await, before);
}

#[tokio::test]
async fn the_port_of_probes_changes_nothing() {
    let control_plane = ControlPlane::start().await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        let request = format!("{method} /ready HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        let mut stream = TcpStream::connect(control_plane.admin).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
    }
    for path in [
        "/token",
        "/ban",
        "/config",
        "/debug",
        "/log-level",
        "/../state/sidewind.db",
    ] {
        let (status, _) = http_get(control_plane.admin, path).await;
        assert_eq!(status, "HTTP/1.1 404 Not Found", "{path}");
    }
}

#[tokio::test]
async fn headers_that_name_another_address_evade_no_limit() {
    let control_plane = limited(1, 100).await;
    let mut service = control_plane.client.identity_service().await;
    let mut number = 0;
    until(async || {
        number += 1;
        let mut request = Request::new(attest_request("made-up", csr()));
        let address = format!("198.51.100.{number}");
        for (name, value) in [
            ("x-forwarded-for", address.clone()),
            ("forwarded", format!("for={address}")),
            ("x-real-ip", address.clone()),
        ] {
            let value = MetadataValue::try_from(value).unwrap();
            request.metadata_mut().insert(name, value);
        }
        let status = service.attest(request).await.unwrap_err();
        Reason::of(&status) == Some(Reason::RateLimited)
    })
    .await;
    // The audit has the address of the connection.
    let database = control_plane.database().await;
    let callers = "SELECT DISTINCT caller FROM audit WHERE event = 'attest'";
    until(async || {
        let callers = sqlx::query_scalar::<_, String>(callers).fetch_all(&database);
        callers.await.unwrap() == ["127.0.0.1"]
    })
    .await;
}

#[tokio::test]
async fn a_proxy_protocol_line_is_no_way_to_another_address() {
    let control_plane = ControlPlane::start().await;
    let address = control_plane.client.address;
    for line in [
        &b"PROXY TCP4 198.51.100.1 127.0.0.1 1 15010\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x01\x7f\0\0\x01\0\x01\x3a\xa2",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(line).await.unwrap();
        let _ = within(stream.read_to_end(&mut Vec::new())).await;
    }
    control_plane
        .metric("sidewind_connections_refused_total{reason=\"not-tls\"} 2")
        .await;
}

#[tokio::test]
async fn a_compressed_message_is_not_unpacked() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut service = client.identity_service().await;
    let token = client.token(ORDERS, &[]).await;
    for encoding in ["gzip", "deflate", "zstd"] {
        let mut request = Request::new(attest_request(&token, csr()));
        let value = MetadataValue::from_static(encoding);
        request.metadata_mut().insert("grpc-encoding", value);
        let status = service.attest(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
    client.attest(&token, csr()).await.unwrap();
}
