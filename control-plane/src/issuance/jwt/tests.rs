use super::*;
use crate::store::tests::empty_store;
use sidewind_identity::jwt::bundle::{JwtAuthority, JwtBundle, JwtBundles};
use sidewind_identity::jwt::svid::JwtSvid;
use sidewind_identity::{SpiffeId, TrustDomain};

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + 20_000 * DAY
}

/// What a proxy makes of what was published.
fn bundles(published: &PublishedJwtKeys) -> JwtBundles {
    let authorities = published.authorities.iter().map(|key| {
        let expires = crate::store::from_unix_seconds(key.expires_at_unix);
        JwtAuthority::from_spki_der(&key.key_id, &key.public_key, Some(expires)).unwrap()
    });
    let trust_domain = TrustDomain::parse("td").unwrap();
    let bundle = JwtBundle::new(trust_domain, authorities.collect()).unwrap();
    JwtBundles::from_iter([bundle])
}

fn token(keys: &JwtKeys, now: SystemTime) -> String {
    let id = SpiffeId::parse("spiffe://td/w").unwrap();
    let signed = keys.signer().sign(&id, &["a".to_owned()], 60 * MINUTE, now);
    signed.unwrap().token
}

#[tokio::test]
async fn keys_rotate_by_themselves_and_no_living_token_is_ever_refused() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store.clone(), start()).await.unwrap();
    let (mut signers, mut now) = (std::collections::BTreeSet::new(), start());
    let (mut fetched, mut sequence) = (bundles(&keys.published()), 0);
    for _ in 0..(30 * 24 * 6) {
        // Who verifies has the bundle of ten minutes ago.
        let token = token(&keys, now);
        JwtSvid::validate(&token, "a", &fetched, now + 59 * MINUTE).unwrap();
        signers.insert(keys.signer().authority().key_id.clone());
        let published = keys.published();
        assert!(published.sequence >= sequence && published.authorities.len() <= 4);
        (fetched, sequence) = (bundles(&published), published.sequence);
        now += 10 * MINUTE;
        let changed = keys.maintain(now).await.unwrap();
        assert_eq!(changed, keys.published().sequence != sequence);
    }
    assert!((5..=8).contains(&signers.len()), "{}", signers.len());
    let kept = store.jwt_keys().await.unwrap().keys;
    let private = kept.iter().filter(|key| key.private_key.is_some()).count();
    assert!(private <= 2, "old keys keep no private half");
}

#[tokio::test]
async fn a_restart_takes_the_rotation_up_where_it_was() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store.clone(), start()).await.unwrap();
    let first = keys.signer().authority().clone();
    assert!(keys.maintain(start() + 4 * DAY).await.unwrap());
    let published = keys.published();
    assert_eq!(published.authorities.len(), 2);

    let again = JwtKeys::open(store.clone(), start() + 4 * DAY)
        .await
        .unwrap();
    assert_eq!(again.published(), published);
    assert_eq!(*again.signer().authority(), first);
    // A replica that did nothing follows the one that did.
    assert!(!again.maintain(start() + 6 * DAY).await.unwrap());
    assert_ne!(*again.signer().authority(), first);
    keys.maintain(start() + 6 * DAY).await.unwrap();
    assert_eq!(keys.signer().authority(), again.signer().authority());
}

#[tokio::test]
async fn two_replicas_make_one_key() {
    let (_directory, store) = empty_store().await;
    let open = || JwtKeys::open(store.clone(), start());
    let (one, two) = tokio::join!(open(), open());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.published(), two.published());
    assert_eq!(one.published().authorities.len(), 1);
    let later = start() + 4 * DAY;
    let (first, second) = tokio::join!(one.maintain(later), two.maintain(later));
    assert!(first.unwrap() && second.unwrap());
    assert_eq!(one.published(), two.published());
    assert_eq!(one.published().authorities.len(), 2);
}

#[tokio::test]
async fn a_rotation_that_is_asked_for_goes_step_by_step() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store.clone(), start()).await.unwrap();
    let first = keys.signer().authority().clone();
    let said = |steps: Vec<String>| steps.join("; ");
    let now = start() + MINUTE;

    let steps = keys.rotate(now, true, false).await.unwrap();
    assert!(said(steps).starts_with("publish a new key"));
    assert_eq!(
        keys.published().authorities.len(),
        1,
        "a dry run does nothing"
    );
    keys.rotate(now, false, false).await.unwrap();
    assert_eq!(keys.published().authorities.len(), 2);

    let steps = said(keys.rotate(now + MINUTE, false, false).await.unwrap());
    assert!(
        steps.starts_with("wait") && steps.contains("24m"),
        "{steps}"
    );
    assert_eq!(*keys.signer().authority(), first);
    keys.rotate(now + MINUTE, false, true).await.unwrap();
    let second = keys.signer().authority().clone();
    assert_ne!(second, first);

    keys.rotate(now + 2 * MINUTE, false, false).await.unwrap();
    keys.rotate(now + 60 * MINUTE, false, false).await.unwrap();
    assert_ne!(*keys.signer().authority(), second);
    assert_eq!(keys.published().authorities.len(), 3);
}

#[tokio::test]
async fn a_month_away_and_a_clock_that_jumps_leave_a_key_that_signs() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store.clone(), start()).await.unwrap();
    keys.maintain(start() + 4 * DAY).await.unwrap();
    let later = start() + 40 * DAY;
    let keys = JwtKeys::open(store.clone(), later).await.unwrap();
    let signed = token(&keys, later);
    JwtSvid::validate(&signed, "a", &bundles(&keys.published()), later).unwrap();
    // And back: the key is from the future, and signs all the same.
    let keys = JwtKeys::open(store, start() + 5 * DAY).await.unwrap();
    let now = start() + 5 * DAY;
    let signed = token(&keys, now);
    JwtSvid::validate(&signed, "a", &bundles(&keys.published()), now).unwrap();
}

#[tokio::test]
async fn a_store_that_is_away_leaves_the_present_key_in_use() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store.clone(), start()).await.unwrap();
    store.close().await;
    assert!(keys.maintain(start() + 4 * DAY).await.is_err());
    token(&keys, start() + 4 * DAY);
}
