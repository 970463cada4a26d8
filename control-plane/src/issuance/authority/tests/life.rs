//! Generated authorities from their first day to their last.

use super::*;

#[tokio::test]
async fn a_restart_keeps_root_and_signing_certificate() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let first = generated(&store, now).await;
    let second = generated(&store, now).await;
    assert_eq!(first.bundle().to_pem(), second.bundle().to_pem());
    assert_eq!(first.signing().chain(), second.signing().chain());
    assert_eq!(second.bundle().sequence(), 1);
}

#[tokio::test]
async fn a_signing_certificate_is_prepared_at_half_its_life_and_used_when_a_sixth_is_left() {
    let (_directory, store) = empty_store().await;
    let (begin, nobody) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, begin).await;
    let first = authority.signing().key_id().to_owned();

    let half = begin + SIGNING_LIFETIME / 2;
    assert!(authority.steps(half - MINUTE, &nobody).await.is_empty());
    assert_eq!(
        authority.steps(half + MINUTE, &nobody).await,
        [(Signing, "prepared")]
    );
    assert_eq!(authority.signing().key_id(), first);
    let prepared = authority.key_id(Signing, Prepared);

    // A restart in between resumes where it was.
    let authority = generated(&store, half + HOUR).await;
    assert_eq!(authority.signing().key_id(), first);
    assert_eq!(authority.key_id(Signing, Prepared), prepared);
    let due = begin + SIGNING_LIFETIME / 6 * 5;
    assert!(authority.steps(due - MINUTE, &nobody).await.is_empty());
    assert_eq!(
        authority.steps(due + MINUTE, &nobody).await,
        [(Signing, "activated")]
    );
    assert_eq!(authority.signing().key_id(), prepared);
    assert_eq!(
        authority.bundle().sequence(),
        1,
        "no proxy needs to know it beforehand"
    );

    // Its key is gone at once, and it is forgotten when nothing that it signed can be good any more.
    let slots = authority.slots();
    let old = slots.all(Signing, Old).next().unwrap();
    assert!(!old.has_key && old.key_id == first);
    let day_after = due + DAY + 20 * MINUTE;
    assert!(authority.steps(due + DAY, &nobody).await.is_empty());
    assert!(authority.steps(day_after, &nobody).await.is_empty());
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);
}

#[tokio::test]
async fn a_process_that_was_away_for_weeks_makes_up_for_it_at_once() {
    let (_directory, store) = empty_store().await;
    let begin = SystemTime::now();
    let first = generated(&store, begin).await.signing().key_id().to_owned();
    for away in [26 * DAY, 40 * DAY, 400 * DAY] {
        let authority = generated(&store, begin + away).await;
        assert_ne!(authority.signing().key_id(), first);
        authority.svid(DAY, begin + away);
    }
}

#[tokio::test]
async fn a_generated_root_replaces_itself_before_its_end() {
    let (_directory, store) = empty_store().await;
    let (begin, proxies) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, begin).await;
    let first = authority.key_id(Root, Active);
    let end = begin + ROOT_LIFETIME;

    let early = end - 181 * DAY;
    authority.steps(early, &proxies).await;
    assert_eq!(authority.bundle().authorities().len(), 1);
    let steps = authority.steps(end - 179 * DAY, &proxies).await;
    assert!(steps.contains(&(Root, "prepared")), "{steps:?}");
    assert_eq!(authority.bundle().authorities().len(), 2);
    assert_eq!(authority.bundle().sequence(), 2);
    let second = authority.key_id(Root, Prepared);
    let svid = authority.svid(HOUR, end - 179 * DAY);
    assert!(svid.authority_key_ids().contains(&first));

    let authority = generated(&store, end - 100 * DAY).await;
    assert_eq!(
        authority.key_id(Root, Active),
        first,
        "it is published and not used yet"
    );
    let steps = authority.steps(end - 89 * DAY, &proxies).await;
    assert!(steps.contains(&(Root, "activated")), "{steps:?}");
    assert_eq!(authority.key_id(Root, Active), second);
    assert!(
        authority
            .svid(HOUR, end - 89 * DAY)
            .authority_key_ids()
            .contains(&second)
    );
    assert_eq!(
        authority.bundle().authorities().len(),
        2,
        "both are believed"
    );
    let slots = authority.slots();
    assert!(!slots.all(Root, Old).next().unwrap().has_key);

    let steps = authority.steps(end - 88 * DAY + HOUR, &proxies).await;
    assert_eq!(steps, [(Root, "retired")]);
    assert_eq!(authority.bundle().authorities().len(), 1);
    assert_eq!(authority.bundle().sequence(), 3);
}

#[tokio::test]
async fn an_old_root_stays_until_everything_below_it_has_ended() {
    let (_directory, store) = empty_store().await;
    let (begin, nobody) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, begin).await;
    let rotate = async |now| {
        let actor = Actor {
            event: "ca-rotate",
            caller: "test",
        };
        let options = RotateOptions::default();
        authority
            .rotate(Root, options, &nobody, &actor, now)
            .await
            .unwrap()
    };
    rotate(begin).await;
    authority.svid(DAY, begin + HOUR);
    rotate(begin + HOUR).await;
    let last = begin + HOUR + DAY;
    assert!(authority.steps(last, &nobody).await.is_empty());
    assert_eq!(
        authority.steps(last + 11 * MINUTE, &nobody).await,
        [(Root, "retired")]
    );
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);
}

#[tokio::test]
async fn a_root_that_has_ended_is_not_begun_with() {
    let (_directory, store) = empty_store().await;
    let begin = SystemTime::now();
    generated(&store, begin).await;
    let late = begin + ROOT_LIFETIME + DAY;
    let error = open(&store, RootSource::Generated, late).await.unwrap_err();
    assert!(matches!(error, AuthorityStartError::RootEnded), "{error}");
}

#[tokio::test]
async fn seventeen_roots_do_not_fit_and_the_refusal_says_what_to_do() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, now).await;
    let actor = Actor {
        event: "ca-rotate",
        caller: "test",
    };
    let rotate = async || {
        let options = RotateOptions::default();
        authority.rotate(Root, options, &nobody, &actor, now).await
    };
    for _ in 0..15 {
        rotate().await.unwrap();
        rotate().await.unwrap();
    }
    assert_eq!(authority.bundle().authorities().len(), 16);
    let refusal = rotate().await.unwrap_err();
    assert!(refusal.message.contains("revoke those"), "{refusal}");
}
