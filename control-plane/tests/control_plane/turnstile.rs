//! What a call must pass before its request is read.

use crate::support::{
    ControlPlane, attest_request, from_proxy, hello, limited, refusal, svid_of, within,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_api::{MAX_CSR_BYTES, MAX_PROXY_MESSAGE_BYTES, Reason, v1};
use sidewind_identity::PrivateKey;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::metadata::MetadataValue;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

fn key_and_csr() -> (PrivateKey, Vec<u8>) {
    let key = PrivateKey::generate().unwrap();
    let csr = key.csr_der().unwrap();
    (key, csr)
}

/// A signing request of exactly so many bytes, most of them in an extension.
fn csr_of(bytes: usize) -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut filler = bytes - 300;
    loop {
        let mut params = CertificateParams::default();
        let name = "x".repeat(filler).try_into().unwrap();
        params.subject_alt_names = vec![SanType::DnsName(name)];
        let csr = params.serialize_request(&key).unwrap().der().to_vec();
        // Its signature is one or two bytes longer at times.
        match csr.len().cmp(&bytes) {
            std::cmp::Ordering::Equal => return csr,
            std::cmp::Ordering::Less => filler += (bytes - csr.len()).max(1),
            std::cmp::Ordering::Greater => filler -= csr.len() - bytes,
        }
    }
}

/// What the audit holds of attestations: outcome, and whether the signing request's hash is there.
async fn audit(control_plane: &ControlPlane) -> Vec<(String, bool)> {
    let rows = sqlx::query_as(
        "SELECT outcome, csr_sha256 IS NOT NULL FROM audit WHERE event = 'attest' ORDER BY id",
    );
    rows.fetch_all(&control_plane.database().await)
        .await
        .unwrap()
}

async fn recorded(control_plane: &ControlPlane, outcome: &str, hashed: bool) {
    let wanted = (outcome.to_owned(), hashed);
    crate::support::until(async || audit(control_plane).await.contains(&wanted)).await;
}

#[tokio::test]
async fn a_request_with_a_mebibyte_of_extensions_is_refused_with_its_reason_and_recorded() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let token = client.token(ORDERS, &[]).await;
    let (reason, message) = refusal(client.attest(&token, csr_of(1 << 20)).await);
    assert_eq!(reason, Reason::CsrRefused);
    assert!(message.contains("1048576 bytes; at most 8192"), "{message}");
    for line in [
        "sidewind_svid_refusals_total{call=\"attest\",reason=\"csr-refused\"} 1",
        "sidewind_calls_refused_total{call=\"attest\",reason=\"csr-refused\"} 1",
    ] {
        control_plane.metric(line).await;
    }
    recorded(&control_plane, "csr-refused", false).await;
    // It cost no token.
    client.attest(&token, key_and_csr().1).await.unwrap();
}

#[tokio::test]
async fn a_signing_request_at_the_limit_is_signed_and_one_past_it_is_refused() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let token = client.token(ORDERS, &[]).await;
    let past = client.attest(&token, csr_of(MAX_CSR_BYTES + 1)).await;
    assert_eq!(refusal(past).0, Reason::CsrRefused);
    recorded(&control_plane, "csr-refused", true).await;
    client.attest(&token, csr_of(MAX_CSR_BYTES)).await.unwrap();
}

#[tokio::test]
async fn a_message_at_the_limit_is_read_and_one_past_it_is_not() {
    let control_plane = ControlPlane::start().await;
    let mut service = control_plane.client.identity_service().await;
    let mut read = Vec::new();
    for bytes in [MAX_PROXY_MESSAGE_BYTES, MAX_PROXY_MESSAGE_BYTES + 1] {
        let overhead = prost::Message::encoded_len(&attest_request("x", vec![0; 50_000])) - 50_000;
        let request = attest_request("x", vec![0; bytes - overhead]);
        assert_eq!(prost::Message::encoded_len(&request), bytes);
        assert_eq!(refusal(service.attest(request).await).0, Reason::CsrRefused);
        let refused = "sidewind_calls_refused_total{call=\"attest\",reason=\"csr-refused\"}";
        read.push(!control_plane.get("/metrics").await.1.contains(refused));
    }
    assert_eq!(read, [true, false]);
    // What is too large need not be the signing request.
    let request = attest_request(&"x".repeat(70_000), key_and_csr().1);
    let (reason, message) = refusal(service.attest(request).await);
    assert_eq!(reason, Reason::LimitExceeded);
    assert!(message.contains("at most 65536"), "{message}");
}

#[tokio::test]
async fn an_address_that_attests_too_often_is_told_when_to_come_back() {
    let control_plane = limited(1, 100).await;
    let mut service = control_plane.client.identity_service().await;
    let mut reasons = Vec::new();
    // Five at once, and one more for each second that this takes.
    let status = loop {
        let refused = service.attest(attest_request("made-up", key_and_csr().1));
        let status = refused.await.unwrap_err();
        reasons.push(Reason::of(&status).unwrap());
        if reasons.last() == Some(&Reason::RateLimited) {
            break status;
        }
    };
    assert!(reasons.len() > 5, "{reasons:?}");
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let wait = Reason::retry_after(&status).unwrap();
    assert!(
        wait <= Duration::from_secs(1) && !wait.is_zero(),
        "{wait:?}"
    );
    for line in [
        "sidewind_calls_refused_total{call=\"attest\",reason=\"rate-limited\"} 1",
        "sidewind_svid_refusals_total{call=\"attest\",reason=\"rate-limited\"} 1",
    ] {
        control_plane.metric(line).await;
    }
    recorded(&control_plane, "rate-limited", false).await;
    // A stranger's renewals count as well.
    let refused = service.renew(v1::RenewRequest::default()).await;
    assert_eq!(refusal(refused).0, Reason::RateLimited);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_sidecars_behind_one_address_all_get_certificates_at_once() {
    let control_plane = Arc::new(ControlPlane::start().await);
    let mut sidecars = JoinSet::new();
    for number in 0..500 {
        let id = format!("{ORDERS}-{number}");
        let token = control_plane.client.token(&id, &[]).await;
        let client = control_plane.client.clone();
        sidecars.spawn(async move {
            loop {
                let (key, csr) = key_and_csr();
                match client.attest(&token, csr).await {
                    Ok(response) => return svid_of(response, key).id().to_string() == id,
                    // What a sidecar does when the store is slower than all of them.
                    Err(status) if Reason::of(&status) == Some(Reason::Overloaded) => {}
                    Err(status) => panic!("{status:?}"),
                }
            }
        });
    }
    while let Some(right) = within(sidecars.join_next()).await {
        assert!(right.unwrap());
    }
    let metrics = control_plane.get("/metrics").await.1;
    assert!(!metrics.contains("rate-limited"), "{metrics}");
}

#[tokio::test]
async fn a_registration_that_renews_too_often_is_refused_and_its_namesakes_are_not() {
    let control_plane = limited(200, 1).await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    let channel = client.channel(client.tls(&svid)).await.unwrap();
    let mut service = IdentityServiceClient::new(channel);
    let request = || v1::RenewRequest {
        csr: key_and_csr().1,
        version: String::new(),
    };
    let mut renewed = 0;
    let status = loop {
        match service.renew(request()).await {
            Ok(_) => renewed += 1,
            Err(status) => break status,
        }
    };
    assert!(renewed >= 5, "{renewed}");
    assert_eq!(Reason::of(&status), Some(Reason::RateLimited));
    assert!(Reason::retry_after(&status).is_some());
    control_plane
        .metric("sidewind_calls_refused_total{call=\"renew\",reason=\"rate-limited\"} 1")
        .await;
    // Another replica of the same workload.
    let namesake = client.svid(ORDERS, &[]).await;
    client.renew(&namesake, key_and_csr().1).await.unwrap();
}

#[tokio::test]
async fn headers_at_the_limit_are_taken_and_past_it_refused_with_the_reason() {
    let control_plane = ControlPlane::start().await;
    let mut service = control_plane.client.identity_service().await;
    for (bytes, expected) in [
        (15 * 1024, Reason::JoinTokenUnknown),
        (17 * 1024, Reason::LimitExceeded),
    ] {
        let mut request = tonic::Request::new(attest_request("made-up", key_and_csr().1));
        let filler: MetadataValue<_> = "x".repeat(bytes).parse().unwrap();
        request.metadata_mut().insert("x-filler", filler);
        assert_eq!(refusal(service.attest(request).await).0, expected);
    }
    control_plane
        .metric("sidewind_calls_refused_total{call=\"any\",reason=\"limit-exceeded\"} 1")
        .await;
}

#[tokio::test]
async fn a_stream_ends_with_the_reason_when_a_message_is_too_large() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let svid = client.svid(ORDERS, &[]).await;
    let mut stream = client.stream(&svid, hello(vec![])).await.unwrap();
    let destination = "x".repeat(MAX_PROXY_MESSAGE_BYTES);
    let message = FromProxy::Subscribe(v1::Subscribe { destination });
    stream.sender.send(from_proxy(message)).await.unwrap();
    let status = stream.end().await;
    assert_eq!(
        Reason::of(&status),
        Some(Reason::LimitExceeded),
        "{status:?}"
    );
    control_plane
        .metric("sidewind_streams_ended_total{reason=\"limit-exceeded\"} 1")
        .await;
}
