//! Who may stay: bans, ends of certificates, and meeting again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control::MeshIdentity;
use crate::mesh::testing::{Bouncer, HOUR, Realm, TestServer, into_tunnel, spiffe_id, until};
use crate::mesh::*;

async fn echo(request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let (mut read, mut write) = tokio::io::split(into_tunnel(request, respond));
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// A client with a tunnel through a server that echoes.
struct Tunnelled {
    server: TestServer,
    bouncer: Bouncer,
    census: Census,
    pool: MeshPool,
    tunnel: TunnelStream,
}

impl Tunnelled {
    /// The server's certificate lives for a day, the client's for an hour.
    async fn new() -> Self {
        let realm = Realm::shared();
        let identity = realm.identity_for("server", 1, 24 * HOUR);
        let server = TestServer::start(identity, ServerSettings::default(), echo).await;
        let bouncer = Bouncer::default();
        let census = bouncer.census();
        let pool = MeshPool::new(PoolSettings::default(), Box::new(()), census.clone());
        let client = realm.identity("client", 1);
        let tunnel = open(&pool, &client, &server).await.unwrap();
        let mut this = Self {
            server,
            bouncer,
            census,
            pool,
            tunnel,
        };
        assert!(this.works().await);
        this
    }

    async fn works(&mut self) -> bool {
        let mut back = [0; 4];
        self.tunnel.write_all(b"ping").await.is_ok()
            && self.tunnel.read_exact(&mut back).await.is_ok()
    }
}

async fn open(
    pool: &MeshPool,
    client: &Arc<MeshIdentity>,
    server: &TestServer,
) -> Result<TunnelStream, TunnelError> {
    let authority = "10.0.0.9:5432".parse().unwrap();
    let expected = spiffe_id("server");
    pool.tunnel(
        client,
        server.address,
        &expected,
        authority,
        HeaderMap::new(),
    )
    .await
}

fn after(duration: Duration) -> SystemTime {
    SystemTime::now() + duration
}

#[tokio::test(flavor = "local")]
async fn a_banned_client_is_cut_off_and_not_let_in_again() {
    let mut it = Tunnelled::new().await;
    it.server.bouncer.ban(spiffe_id("client").as_str());
    let review = it.server.census.review(SystemTime::now());
    assert_eq!((review.banned, review.ended), (1, 0));
    assert!(!it.works().await);
    until("the connection ends", || it.server.open.get() == 0).await;
    // The client sees its new connection closed, whatever its certificate.
    let client = Realm::shared().identity("client", 2);
    assert!(open(&it.pool, &client, &it.server).await.is_err());
    assert_eq!(it.server.refused.borrow().as_slice(), ["banned"]);
}

#[tokio::test(flavor = "local")]
async fn a_banned_server_loses_its_clients_and_gets_no_more() {
    let mut it = Tunnelled::new().await;
    it.bouncer.ban(spiffe_id("server").as_str());
    assert_eq!(it.census.review(SystemTime::now()).banned, 1);
    assert!(!it.works().await);
    let client = Realm::shared().identity("client", 1);
    let refused = open(&it.pool, &client, &it.server).await.unwrap_err();
    assert!(
        matches!(refused, TunnelError::Connect(ConnectError::Banned { .. })),
        "{refused}"
    );
}

#[tokio::test(flavor = "local")]
async fn peers_of_a_trust_domain_that_is_not_believed_any_more_are_cut_off() {
    let mut it = Tunnelled::new().await;
    it.server
        .bouncer
        .believe(&Realm::shared().identity("server", 2));
    let review = it.server.census.review(SystemTime::now());
    assert_eq!((review.banned, review.distrusted), (0, 0));
    assert!(it.works().await);
    it.server
        .bouncer
        .believe(&Realm::shared().distrusting("server", 3));
    let review = it.server.census.review(SystemTime::now());
    assert_eq!((review.banned, review.distrusted), (0, 1));
    assert!(!it.works().await);
    until("the connection ends", || it.server.open.get() == 0).await;
}

#[tokio::test(flavor = "local")]
async fn a_connection_goes_with_the_root_that_vouched_for_it_and_with_no_other() {
    let mut it = Tunnelled::new().await;
    let another = Realm::new();
    let (both, alone, without) = ([Realm::shared(), &another], [Realm::shared()], [&another]);
    let distrusted = |it: &Tunnelled, generation, realms: &[&Realm]| {
        let identity = Realm::shared().believing("server", generation, realms);
        it.server.bouncer.believe(&identity);
        it.server.census.review(SystemTime::now()).distrusted
    };
    assert_eq!(distrusted(&it, 2, &both), 0);
    assert_eq!(distrusted(&it, 3, &alone), 0);
    assert!(it.works().await, "the other root has gone");
    assert_eq!(distrusted(&it, 4, &without), 1);
    assert!(!it.works().await);
    until("the connection ends", || it.server.open.get() == 0).await;
}

#[tokio::test(flavor = "local")]
async fn a_later_handshake_under_a_root_that_was_revoked_since_prolongs_nothing() {
    let (realm, stolen) = (Realm::shared(), Realm::new());
    let identity = realm.believing("server", 1, &[realm, &stolen]);
    let server = TestServer::start(identity, ServerSettings::default(), echo).await;
    let pool = |census| MeshPool::new(PoolSettings::default(), Box::new(()), census);
    let (honest, forging) = (
        pool(Bouncer::default().census()),
        pool(Bouncer::default().census()),
    );
    let client = realm.identity("client", 1);
    let _tunnel = open(&honest, &client, &server).await.unwrap();
    // Whoever has the root's key makes a certificate of the client's name that ends later.
    let forged = realm.identity_of(&stolen, "client", 1, 24 * HOUR);
    let _forged = open(&forging, &forged, &server).await.unwrap();
    server
        .bouncer
        .believe(&realm.believing("server", 2, &[realm]));
    let review = server.census.review(SystemTime::now());
    assert_eq!((review.distrusted, review.ended), (1, 0));
    let review = server.census.review(after(HOUR + Duration::from_secs(11)));
    assert_eq!((review.distrusted, review.ended), (0, 1));
}

#[tokio::test(flavor = "local")]
async fn somebody_elses_ban_disturbs_nobody() {
    let mut it = Tunnelled::new().await;
    it.server.bouncer.ban(spiffe_id("another").as_str());
    assert_eq!(it.server.census.review(SystemTime::now()).banned, 0);
    assert!(it.works().await);
}

#[tokio::test(flavor = "local")]
async fn a_connection_ends_soon_after_its_clients_certificate() {
    let mut it = Tunnelled::new().await;
    let ended = |at| it.server.census.review(at).ended;
    assert_eq!(ended(after(HOUR - Duration::from_secs(1))), 0);
    assert_eq!(ended(after(HOUR + Duration::from_secs(5))), 0);
    assert!(it.works().await, "it has a moment to finish");
    let ended = |at| it.server.census.review(at).ended;
    assert_eq!(ended(after(HOUR + Duration::from_secs(11))), 1);
    assert!(!it.works().await);
}

#[tokio::test(flavor = "local")]
async fn a_tunnel_outlives_the_certificates_that_it_was_made_under_because_the_two_meet_again() {
    let mut it = Tunnelled::new().await;
    let early = it.census.review(after(HOUR / 2));
    assert!(early.due.is_empty(), "half of the time is left");
    let review = it.census.review(after(HOUR - Duration::from_secs(120)));
    assert_eq!(review.due.len(), 1);
    assert_eq!(review.due[0].own(), Some(&spiffe_id("client")));
    let renewed = Realm::shared().identity_for("client", 2, 2 * HOUR);
    it.pool.meet_again(&renewed, &review.due[0]).await;
    assert_eq!(it.server.accepted.get(), 2);

    let later = after(HOUR + Duration::from_secs(60));
    assert_eq!(it.server.census.review(later).ended, 0);
    let review = it.census.review(later);
    assert_eq!((review.ended, review.due.len()), (0, 0));
    assert!(it.works().await);
    assert_eq!(it.server.accepted.get(), 2);
}

#[tokio::test(flavor = "local")]
async fn a_connection_goes_with_the_certificate_of_the_later_handshake_that_it_rests_on() {
    let mut it = Tunnelled::new().await;
    let review = it.census.review(after(HOUR - Duration::from_secs(120)));
    let renewed = Realm::shared().identity_for("client", 2, 2 * HOUR);
    it.pool.meet_again(&renewed, &review.due[0]).await;
    let later = after(HOUR + Duration::from_secs(60));
    assert_eq!(it.server.census.review(later).ended, 0);
    it.server.bouncer.ban(&renewed.serial_hex);
    // The first connection and the one of the later handshake.
    assert_eq!(it.server.census.review(later).banned, 2);
    assert!(!it.works().await);
    until("the connections end", || it.server.open.get() == 0).await;
}

#[tokio::test(flavor = "local")]
async fn a_later_handshake_under_a_certificate_that_is_banned_prolongs_nothing() {
    let mut it = Tunnelled::new().await;
    let review = it.census.review(after(HOUR - Duration::from_secs(120)));
    let renewed = Realm::shared().identity_for("client", 2, 2 * HOUR);
    it.pool.meet_again(&renewed, &review.due[0]).await;
    it.server.bouncer.ban(&renewed.serial_hex);
    assert_eq!(it.server.census.review(SystemTime::now()).banned, 1);
    assert!(
        it.works().await,
        "the first certificate is good for an hour"
    );
    let too_late = after(HOUR + Duration::from_secs(11));
    assert_eq!(it.server.census.review(too_late).ended, 1);
    assert!(!it.works().await);
}

#[tokio::test(flavor = "local")]
async fn a_dialled_connection_goes_with_the_certificate_that_its_server_showed_later() {
    let mut it = Tunnelled::new().await;
    let now = SystemTime::now();
    let review = it.census.review(after(HOUR - Duration::from_secs(120)));
    let (_, state) = review.due[0].connection().unwrap();
    let shown = state.shown.clone();
    assert!(review.due[0].prove(after(2 * HOUR), "0bad", shown, now));
    it.bouncer.ban("0bad");
    assert_eq!(it.census.review(now).banned, 1);
    assert!(!it.works().await);
}

#[tokio::test(flavor = "local")]
async fn meeting_again_under_the_same_certificate_proves_nothing() {
    let mut it = Tunnelled::new().await;
    let same = Realm::shared().identity_for("client", 2, HOUR / 2);
    let near_the_end = after(HOUR - Duration::from_secs(60));
    let review = it.census.review(near_the_end);
    it.pool.meet_again(&same, &review.due[0]).await;
    let too_late = after(HOUR + Duration::from_secs(60));
    assert_eq!(it.server.census.review(too_late).ended, 2);
    assert!(!it.works().await);
}

#[tokio::test(flavor = "local")]
async fn a_connection_that_nobody_uses_is_not_made_again() {
    let it = Tunnelled::new().await;
    let Tunnelled {
        server,
        census,
        pool,
        tunnel,
        ..
    } = it;
    drop(tunnel);
    let review = census.review(after(HOUR - Duration::from_secs(60)));
    let renewed = Realm::shared().identity_for("client", 2, 2 * HOUR);
    pool.meet_again(&renewed, &review.due[0]).await;
    until("the connection ends", || server.open.get() == 0).await;
    assert_eq!(server.accepted.get(), 1);
}
