//! Who is banned is cut off, told to everybody, and stays so.

use crate::support::{ControlPlane, Proxy, hello, port, refusal, until, within};
use sidewind_api::v1::ban::Subject;
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::{BanList, Reason, v1};
use sidewind_identity::{PrivateKey, SpiffeId};

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";
const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";

fn csr() -> Vec<u8> {
    PrivateKey::generate().unwrap().csr_der().unwrap()
}

async fn change(
    control_plane: &ControlPlane,
    subject: Subject,
    lift: bool,
) -> Result<u64, tonic::Status> {
    change_for(control_plane, subject, lift, "its node was stolen").await
}

async fn change_for(
    control_plane: &ControlPlane,
    subject: Subject,
    lift: bool,
    reason: &str,
) -> Result<u64, tonic::Status> {
    let ban = v1::Ban {
        subject: Some(subject),
        reason: reason.to_owned(),
        since_unix: 0,
    };
    let request = v1::SetBanRequest {
        ban: Some(ban),
        lift,
    };
    let mut admin = control_plane.client.admin_service().await;
    within(admin.set_ban(request))
        .await
        .map(|answer| answer.into_inner().version)
}

async fn ban(control_plane: &ControlPlane, subject: Subject) -> u64 {
    change(control_plane, subject, false).await.unwrap()
}

/// The next list that says something.
async fn bans(proxy: &mut Proxy) -> BanList {
    loop {
        let bans = proxy
            .next_of(|message| match message {
                ToProxy::Bans(bans) => Some(bans),
                _ => None,
            })
            .await;
        let (list, problems) = BanList::from_api(&bans);
        assert_eq!(problems, [""; 0]);
        if list.version() > 0 {
            return list;
        }
    }
}

#[tokio::test]
async fn a_banned_identity_loses_its_stream_its_renewals_and_its_tokens_and_everybody_hears_of_it()
{
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut orders = client.proxy(ORDERS, vec![port(8080, "orders.data")]).await;
    let mut worker = client.proxy(WORKER, vec![]).await;
    let token = client.token(ORDERS, &[]).await;
    ban(&control_plane, Subject::SpiffeId(ORDERS.to_owned())).await;

    assert_eq!(Reason::of(&orders.end().await), Some(Reason::Banned));
    let list = bans(&mut worker).await;
    assert!(list.refuses(&SpiffeId::parse(ORDERS).unwrap(), "1"));
    assert!(!list.refuses(&SpiffeId::parse(WORKER).unwrap(), "1"));
    let (reason, _) = refusal(client.renew(&orders.svid, csr()).await);
    assert_eq!(reason, Reason::Banned);
    let (reason, message) = refusal(client.attest(&token, csr()).await);
    assert_eq!(reason, Reason::Banned, "{message}");
    let (reason, _) = refusal(client.stream(&orders.svid, hello(vec![])).await);
    assert_eq!(reason, Reason::Banned);

    // Refusals are written soon, not at once.
    until(async || {
        let records = control_plane.audit().await;
        let count = |event: &str, outcome: &str| {
            let all = records.iter();
            all.filter(|(e, o, _)| e == event && o == outcome).count()
        };
        let counts = [
            ("ban", "granted"),
            ("renew", "banned"),
            ("attest", "banned"),
        ];
        counts.map(|(event, outcome)| count(event, outcome)) == [1, 1, 1]
    })
    .await;

    // The token was not used up by the refusal.
    let lifted = change(&control_plane, Subject::SpiffeId(ORDERS.to_owned()), true).await;
    assert!(lifted.unwrap() > list.version());
    assert!(bans(&mut worker).await.is_empty());
    client.attest(&token, csr()).await.unwrap();
}

#[tokio::test]
async fn a_banned_certificate_is_refused_and_another_of_the_same_identity_is_not() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let stolen = client.svid(ORDERS, &[]).await;
    let good = client.svid(ORDERS, &[]).await;
    ban(
        &control_plane,
        Subject::Serial(stolen.serial_hex().to_owned()),
    )
    .await;
    let (reason, _) = refusal(client.renew(&stolen, csr()).await);
    assert_eq!(reason, Reason::Banned);
    client.renew(&good, csr()).await.unwrap();
}

#[tokio::test]
async fn a_reason_has_256_bytes_at_most() {
    let control_plane = ControlPlane::start().await;
    let subject = || Subject::SpiffeId(ORDERS.to_owned());
    let too_long = "x".repeat(257);
    let (reason, message) = refusal(change_for(&control_plane, subject(), false, &too_long).await);
    assert_eq!(reason, Reason::LimitExceeded);
    assert!(message.contains("at most 256 bytes"), "{message}");
    let longest = change_for(&control_plane, subject(), false, &too_long[1..]).await;
    longest.unwrap();
}

/// A workload of another trust domain calls workloads here: it is these that cut it off.
#[tokio::test]
async fn a_foreign_identity_is_banned_here_whatever_its_own_control_plane_thinks_of_it() {
    const FOREIGN: &str = "spiffe://partner.example/ns/sales/sa/prices";
    let control_plane = ControlPlane::start().await;
    let mut worker = control_plane.client.proxy(WORKER, vec![]).await;
    ban(&control_plane, Subject::SpiffeId(FOREIGN.to_owned())).await;
    let list = bans(&mut worker).await;
    for (id, refused) in [
        (FOREIGN.to_owned(), true),
        (format!("{FOREIGN}/dag/etl/task/load"), true),
        (FOREIGN.replace("partner", "other"), false),
        (FOREIGN.replace("partner.example", "sidewind.local"), false),
        (WORKER.to_owned(), false),
    ] {
        let id = SpiffeId::parse(&id).unwrap();
        assert_eq!(list.refuses(&id, "1"), refused, "{id}");
    }
    let lifted = change(&control_plane, Subject::SpiffeId(FOREIGN.to_owned()), true).await;
    assert!(lifted.unwrap() > list.version());
    assert!(bans(&mut worker).await.is_empty());
}

#[tokio::test]
async fn bans_outlive_a_restart() {
    let control_plane = ControlPlane::start().await;
    let svid = control_plane.client.svid(ORDERS, &[]).await;
    let version = ban(&control_plane, Subject::SpiffeId(ORDERS.to_owned())).await;
    let directory = control_plane.stop().await;
    let control_plane = ControlPlane::start_in(directory, |_| ()).await;
    let (reason, _) = refusal(control_plane.client.renew(&svid, csr()).await);
    assert_eq!(reason, Reason::Banned);
    let mut admin = control_plane.client.admin_service().await;
    let list = within(admin.list_bans(v1::ListBansRequest {})).await;
    let list = list.unwrap().into_inner();
    assert_eq!((list.version, list.bans.len()), (version, 1));
    assert_eq!(list.bans[0].reason, "its node was stolen");
}

#[tokio::test]
async fn what_cannot_be_banned_or_lifted_is_refused_with_the_reason() {
    let control_plane = ControlPlane::start().await;
    for (subject, lift, expected) in [
        (
            Subject::SpiffeId("spiffe://sidewind.local/sidewind/control-plane".to_owned()),
            false,
            "reserved",
        ),
        // A whole trust domain is no member of it: its relation is ended by its document.
        (
            Subject::SpiffeId("spiffe://partner.example".to_owned()),
            false,
            "not a workload's ID",
        ),
        (
            Subject::SpiffeId("spiffe://sidewind.local".to_owned()),
            false,
            "not a workload's ID",
        ),
        (
            Subject::SpiffeId("spiffe://Partner.example/x".to_owned()),
            false,
            "",
        ),
        (
            Subject::SpiffeId("spiffe://partner.example/x".to_owned()),
            true,
            "not banned",
        ),
        (Subject::Serial("xyz".to_owned()), false, "hexadecimal"),
        (Subject::Serial("0f".to_owned()), true, "not banned"),
    ] {
        let (_, message) = refusal(change(&control_plane, subject, lift).await);
        assert!(message.contains(expected), "{message}");
    }
}
