use super::*;
use crate::issuance::authority::{Actor, RotateOptions};
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

const DRY: RotateOptions = RotateOptions {
    dry_run: true,
    force: false,
};
const STEP: RotateOptions = RotateOptions {
    dry_run: false,
    force: false,
};
const FORCE: RotateOptions = RotateOptions {
    dry_run: false,
    force: true,
};
const ACTOR: Actor<'static> = Actor {
    event: "ca-rotate",
    caller: "uid 0",
};

#[tokio::test]
async fn a_rotation_that_is_asked_for_goes_step_by_step_and_is_on_record() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store.clone(), start()).await.unwrap();
    let first = keys.signer().authority().clone();
    let rotate = async |options, now| {
        let rotation = keys.rotate(options, &ACTOR, now).await.unwrap();
        (rotation.steps.join("; "), rotation.is_waiting)
    };
    let now = start() + MINUTE;

    let (steps, _) = rotate(DRY, now).await;
    assert!(steps.starts_with("would publish a new key"), "{steps}");
    assert_eq!(
        keys.published().authorities.len(),
        1,
        "a dry run does nothing"
    );
    assert!(store.audit_details().await.is_empty());
    rotate(STEP, now).await;
    assert_eq!(keys.published().authorities.len(), 2);

    for options in [DRY, STEP] {
        let (steps, waits) = rotate(options, now + MINUTE).await;
        assert!(waits && steps.starts_with("wait"), "{steps}");
        assert!(steps.contains("24m"), "{steps}");
    }
    assert_eq!(*keys.signer().authority(), first);
    rotate(FORCE, now + MINUTE).await;
    let second = keys.signer().authority().clone();
    assert_ne!(second, first);

    rotate(STEP, now + 2 * MINUTE).await;
    rotate(STEP, now + 60 * MINUTE).await;
    assert_ne!(*keys.signer().authority(), second);
    assert_eq!(keys.published().authorities.len(), 3);
    let records = store.audit_details().await;
    assert_eq!(records.len(), 4, "{records:?}");
    assert!(records.iter().all(|(caller, _)| caller == "uid 0"));
}

#[tokio::test]
async fn a_tainted_key_ends_with_its_last_token_and_a_revoked_one_at_once() {
    let (_directory, store) = empty_store().await;
    let keys = JwtKeys::open(store, start()).await.unwrap();
    let now = start() + MINUTE;
    let (old_token, old) = (token(&keys, now), keys.keys()[0].key_id.clone());
    for (what, refused) in [
        ("tainted", keys.taint(&old, &ACTOR, now).await),
        ("revoked", keys.revoke(&old, true, &ACTOR, now).await),
    ] {
        let message = refused.unwrap_err().message;
        assert!(message.contains("rotate --jwt"), "{what}: {message}");
    }
    for options in [STEP, FORCE] {
        keys.rotate(options, &ACTOR, now).await.unwrap();
    }
    let refused = keys.revoke(&old, false, &ACTOR, now).await.unwrap_err();
    assert!(refused.message.contains("taint it first"), "{refused:?}");

    let before = keys.published();
    keys.taint(&old, &ACTOR, now).await.unwrap();
    let after = keys.published();
    // What proxies compare is another, so that they drop the tokens that they keep.
    assert!(after.sequence > before.sequence && bundles(&after) != bundles(&before));
    let valid =
        |token: &str, then| JwtSvid::validate(token, "a", &bundles(&keys.published()), then);
    valid(&old_token, now + 59 * MINUTE).unwrap();
    keys.taint(&old, &ACTOR, now + MINUTE).await.unwrap();
    assert_eq!(keys.published(), after, "once is enough");
    let refused = keys.revoke(&old, false, &ACTOR, now).await.unwrap_err();
    assert!(refused.message.contains("another 1h"), "{refused:?}");

    keys.revoke(&old, true, &ACTOR, now).await.unwrap();
    valid(&old_token, now).unwrap_err();
    let fresh = token(&keys, now);
    valid(&fresh, now).unwrap();
    // One that has signed nothing goes without more ado, and so does one whose tokens have ended.
    keys.rotate(STEP, &ACTOR, now).await.unwrap();
    let in_state = |state| {
        let found = keys.keys().into_iter().find(|key| key.state == state);
        found.unwrap().key_id
    };
    let prepared = in_state(JwtKeyState::Prepared);
    keys.revoke(&prepared, false, &ACTOR, now).await.unwrap();
    assert_eq!(keys.published().authorities.len(), 1);
    let second = in_state(JwtKeyState::Active);
    for options in [STEP, FORCE] {
        keys.rotate(options, &ACTOR, now).await.unwrap();
    }
    keys.taint(&second, &ACTOR, now).await.unwrap();
    let later = now + 61 * MINUTE;
    keys.revoke(&second, false, &ACTOR, later).await.unwrap();
    valid(&fresh, now).unwrap_err();
    let none = keys.taint("none", &ACTOR, now).await.unwrap_err();
    assert!(none.message.contains("no key"), "{none:?}");
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
