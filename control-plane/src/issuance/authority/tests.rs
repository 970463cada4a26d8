//! The authority through restarts, new roots and time.

use super::*;
use crate::store::tests::empty_store;
use sidewind_identity::authority::generate_root;

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

async fn open(
    store: &Store,
    source: RootSource,
) -> Result<CertificateAuthority, AuthorityStartError> {
    CertificateAuthority::open(store.clone(), trust_domain(), source, SystemTime::now()).await
}

fn given(root: &RootAuthority) -> RootSource {
    RootSource::Given {
        certificate_pem: root.certificate_pem(),
        key_pem: root.key().to_pkcs8_pem(),
    }
}

#[tokio::test]
async fn a_restart_keeps_root_and_signing_certificate() {
    let (_directory, store) = empty_store().await;
    let first = open(&store, RootSource::Generated).await.unwrap();
    let second = open(&store, RootSource::Generated).await.unwrap();
    assert_eq!(first.bundle().to_pem(), second.bundle().to_pem());
    assert_eq!(first.signing().chain(), second.signing().chain());
    assert_eq!(second.bundle().sequence(), 1);
}

#[tokio::test]
async fn a_given_root_takes_over_and_the_old_one_stays_trusted() {
    let (_directory, store) = empty_store().await;
    let first = open(&store, RootSource::Generated).await.unwrap();
    let root = generate_root(&trust_domain(), SIGNING_LIFETIME * 2, SystemTime::now()).unwrap();
    let second = open(&store, given(&root)).await.unwrap();
    assert_ne!(first.signing().chain(), second.signing().chain());
    assert_eq!(second.bundle().authorities().len(), 2);
    assert_eq!(second.bundle().sequence(), 2);
    let error = open(&store, RootSource::Generated).await.unwrap_err();
    assert!(error.to_string().contains("--root-key"), "{error}");
}

#[tokio::test]
async fn a_signing_certificate_is_replaced_when_a_sixth_of_its_life_is_left() {
    let (_directory, store) = empty_store().await;
    let authority = open(&store, RootSource::Generated).await.unwrap();
    let before = authority.signing();
    let now = SystemTime::now();
    let five_sixths = SIGNING_LIFETIME / 6 * 5;
    let minute = Duration::from_secs(60);
    assert!(
        !authority
            .maintain(now + five_sixths - minute)
            .await
            .unwrap()
    );
    assert!(
        authority
            .maintain(now + five_sixths + minute)
            .await
            .unwrap()
    );
    assert_ne!(before.chain(), authority.signing().chain());
}

#[tokio::test]
async fn a_lifetime_that_cannot_be_promised_is_refused_with_the_arithmetic() {
    let (_directory, store) = empty_store().await;
    let day = Duration::from_secs(86_400);
    let root = generate_root(&trust_domain(), 3 * day, SystemTime::now()).unwrap();
    let authority = open(&store, given(&root)).await.unwrap();
    authority.check_lifetime(day / 3).unwrap();
    let error = authority.check_lifetime(day).unwrap_err().to_string();
    assert!(error.contains("of 1d cannot be honoured"), "{error}");
    assert!(error.contains("/ 6 = 11h59m"), "{error}");
}

#[test]
fn the_control_planes_own_path_is_reserved_and_its_neighbours_are_not() {
    let reserved =
        |path: &str| is_reserved(&SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap());
    assert!(reserved("/sidewind") && reserved("/sidewind/control-plane"));
    assert!(!reserved("/sidewinder") && !reserved("/ns/sidewind/sa/x"));
}
