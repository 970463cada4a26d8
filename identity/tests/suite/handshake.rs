//! The TLS configurations, through real rustls connections in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::UnixTime;
use sidewind_identity::tls::{self, ClientAuth, PeerError, TlsOptions};
use sidewind_identity::{PeerIdentity, VerifyError, peer_identity};

use crate::support::{HOUR, Mesh, Refused, handshake};

/// A clock that stands where a test puts it.
#[derive(Debug)]
struct FakeClock(AtomicU64);

impl FakeClock {
    fn at(time: SystemTime) -> Arc<Self> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Arc::new(Self(AtomicU64::new(since.as_secs())))
    }

    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl TimeProvider for FakeClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.0.load(Ordering::Relaxed);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// Connects, and gives back what each side learned of the other.
fn connect(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(PeerIdentity, Result<PeerIdentity, PeerError>), Refused> {
    let mut from = ClientConnection::new(client.clone(), tls::server_name()).unwrap();
    let mut to = ServerConnection::new(server.clone()).unwrap();
    handshake(&mut from, &mut to)?;
    let seen_by_client = peer_identity(from.peer_certificates()).unwrap();
    Ok((seen_by_client, peer_identity(to.peer_certificates())))
}

fn code(error: &rustls::Error) -> &'static str {
    VerifyError::code_of_tls(error).unwrap_or_else(|| panic!("{error:?}"))
}

#[test]
fn two_workloads_of_one_trust_domain_know_each_other() {
    let mesh = Mesh::new("sidewind.local");
    let (client, server) = (mesh.svid("/ns/a/sa/client"), mesh.svid("/ns/a/sa/server"));
    let client_config =
        tls::client_config(&client, &mesh.bundles, &[b"sidewind/1", b"h2"]).unwrap();
    let server_config =
        tls::server_config(&server, &mesh.bundles, &[b"h2"], ClientAuth::Required).unwrap();
    let mut from = ClientConnection::new(client_config, tls::server_name()).unwrap();
    let mut to = ServerConnection::new(server_config).unwrap();

    handshake(&mut from, &mut to).unwrap();

    let seen_by_client = peer_identity(from.peer_certificates()).unwrap();
    let seen_by_server = peer_identity(to.peer_certificates()).unwrap();
    assert_eq!(seen_by_client.id, *server.id());
    assert_eq!(seen_by_server.id, *client.id());
    assert_eq!(seen_by_server.serial_hex, client.serial_hex());
    assert_eq!(seen_by_server.not_after, client.not_after());
    assert_eq!(seen_by_server.subject, "");
    assert_eq!(from.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(
        from.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let group = from.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(to.server_name(), None, "no name is sent");
    assert_eq!(from.tls13_tickets_received(), 0);
}

#[test]
fn each_side_refuses_a_peer_of_another_authority() {
    let (ours, theirs) = (Mesh::new("td"), Mesh::new("td"));
    let our_server =
        tls::server_config(&ours.svid("/s"), &ours.bundles, &[], ClientAuth::Required).unwrap();
    // A stranger that believes our bundle, so that only the server's verdict counts, and the other way round.
    let stranger = tls::client_config(&theirs.svid("/c"), &ours.bundles, &[]).unwrap();
    match connect(&stranger, &our_server) {
        Err(Refused::ByServer(error)) => assert_eq!(code(&error), "unknown-issuer"),
        other => panic!("{other:?}"),
    }
    let our_client = tls::client_config(&ours.svid("/c"), &ours.bundles, &[]).unwrap();
    let impostor =
        tls::server_config(&theirs.svid("/s"), &ours.bundles, &[], ClientAuth::Required).unwrap();
    match connect(&our_client, &impostor) {
        Err(Refused::ByClient(error)) => {
            assert_eq!(code(&error), "unknown-issuer");
            // The message says who signed and who is believed.
            let text = tls::describe(&error);
            assert!(
                text.contains("signed by 'O=Sidewind, CN=Sidewind root CA, serialNumber="),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_side_refuses_a_peer_of_a_trust_domain_that_it_does_not_know() {
    let (ours, theirs) = (Mesh::new("td"), Mesh::new("other"));
    let server =
        tls::server_config(&ours.svid("/s"), &ours.bundles, &[], ClientAuth::Required).unwrap();
    let client = tls::client_config(&theirs.svid("/c"), &ours.bundles, &[]).unwrap();
    match connect(&client, &server) {
        Err(Refused::ByServer(error)) => assert_eq!(code(&error), "unknown-trust-domain"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_federated_trust_domains_know_each_other() {
    let (one, two) = (Mesh::new("one"), Mesh::new("two"));
    let both = [one.bundles.iter(), two.bundles.iter()]
        .into_iter()
        .flatten();
    let both = Arc::new(both.cloned().collect());
    let client = tls::client_config(&one.svid("/c"), &both, &[]).unwrap();
    let server = tls::server_config(&two.svid("/s"), &both, &[], ClientAuth::Required).unwrap();
    let (seen_by_client, seen_by_server) = connect(&client, &server).unwrap();
    assert_eq!(seen_by_client.id.as_str(), "spiffe://two/s");
    assert_eq!(seen_by_server.unwrap().id.as_str(), "spiffe://one/c");
}

#[test]
fn a_client_without_certificate_is_refused_where_one_is_required() {
    let mesh = Mesh::new("td");
    let client = tls::anonymous_client_config(&mesh.bundles, &[]).unwrap();
    let server =
        tls::server_config(&mesh.svid("/s"), &mesh.bundles, &[], ClientAuth::Required).unwrap();
    match connect(&client, &server) {
        Err(Refused::ByServer(error)) => assert_eq!(code(&error), "no-certificate"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_without_certificate_is_nobody_where_one_is_optional() {
    let mesh = Mesh::new("td");
    let client = tls::anonymous_client_config(&mesh.bundles, &[]).unwrap();
    let server =
        tls::server_config(&mesh.svid("/s"), &mesh.bundles, &[], ClientAuth::Optional).unwrap();
    let (seen_by_client, seen_by_server) = connect(&client, &server).unwrap();
    assert_eq!(seen_by_client.id.as_str(), "spiffe://td/s");
    assert_eq!(seen_by_server, Err(PeerError::Anonymous));
}

#[test]
fn a_wrong_certificate_is_refused_where_one_is_optional() {
    let (ours, theirs) = (Mesh::new("td"), Mesh::new("td"));
    let client = tls::client_config(&theirs.svid("/c"), &ours.bundles, &[]).unwrap();
    let server =
        tls::server_config(&ours.svid("/s"), &ours.bundles, &[], ClientAuth::Optional).unwrap();
    assert!(matches!(
        connect(&client, &server),
        Err(Refused::ByServer(_))
    ));
}

#[test]
fn a_client_without_svid_still_verifies_the_server() {
    let (ours, theirs) = (Mesh::new("td"), Mesh::new("td"));
    let client = tls::anonymous_client_config(&ours.bundles, &[]).unwrap();
    let server = tls::server_config(
        &theirs.svid("/s"),
        &theirs.bundles,
        &[],
        ClientAuth::Optional,
    )
    .unwrap();
    assert!(matches!(
        connect(&client, &server),
        Err(Refused::ByClient(_))
    ));
}

#[test]
fn certificates_are_judged_by_the_clock_of_each_handshake() {
    let now = SystemTime::now();
    let mesh = Mesh::at("td", now);
    let clock = FakeClock::at(now);
    let options = |clock: &Arc<FakeClock>| TlsOptions {
        time_provider: clock.clone(),
        ..TlsOptions::default()
    };
    let (client, server) = (mesh.svid_at("/c", now), mesh.svid_at("/s", now + HOUR / 2));
    let standing = FakeClock::at(now);
    let client =
        tls::client_config_with(Some(&client), &mesh.bundles, &[], &options(&standing)).unwrap();
    let server = tls::server_config_with(
        &server,
        &mesh.bundles,
        &[],
        ClientAuth::Required,
        &options(&clock),
    )
    .unwrap();

    // The server's certificate begins in half an hour less 30 s, by the client's clock.
    match connect(&client, &server) {
        Err(Refused::ByClient(error)) => assert_eq!(code(&error), "not-yet-valid"),
        other => panic!("{other:?}"),
    }
    standing.advance(HOUR / 2);
    clock.advance(HOUR);
    let _ = connect(&client, &server).unwrap();
    // The same configurations, a second past the end of the client's certificate.
    clock.advance(Duration::from_secs(1));
    match connect(&client, &server) {
        Err(Refused::ByServer(error)) => assert_eq!(code(&error), "expired"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_identity_holds_what_forwarded_headers_need() {
    use aws_lc_rs::digest::{SHA256, digest};
    use rcgen::{DnType, DnValue, KeyPair};

    let mut params = crate::scenario::leaf("spiffe://td/w");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Data, \"Inc\"");
    params
        .distinguished_name
        .push(DnType::CommonName, " a\nb;ü ");
    let custom = DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 99999, 7]);
    params
        .distinguished_name
        .push(custom, DnValue::Utf8String("x".into()));
    params.serial_number = Some(vec![0x00, 0x0a, 0xff].into());
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();

    let peer = peer_identity(Some(&[certificate.der().clone()])).unwrap();

    assert_eq!(peer.id.as_str(), "spiffe://td/w");
    assert_eq!(peer.serial_hex, "0aff");
    assert_eq!(
        peer.certificate_sha256,
        digest(&SHA256, certificate.der()).as_ref()
    );
    let expected = r#"1.3.6.1.4.1.99999.7=x,CN=\ a\0Ab\;\C3\BC\ ,O=Data\, \"Inc\""#;
    assert_eq!(peer.subject, expected);
}

#[test]
fn a_long_subject_is_left_out_of_the_peer_identity() {
    use rcgen::{DnType, KeyPair};

    let mut params = crate::scenario::leaf("spiffe://td/w");
    params
        .distinguished_name
        .push(DnType::CommonName, "x".repeat(1000));
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let peer = peer_identity(Some(&[certificate.der().clone()])).unwrap();
    assert_eq!(peer.subject, "");
}

#[test]
fn nobody_without_certificates_has_an_identity() {
    assert_eq!(peer_identity(None), Err(PeerError::Anonymous));
    assert_eq!(peer_identity(Some(&[])), Err(PeerError::Anonymous));
}
