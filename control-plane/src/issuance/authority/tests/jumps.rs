//! A wall clock that jumps ahead and comes back: what was trusted before is trusted after it.

use super::*;

const JUMP: Duration = Duration::from_secs(3 * 86_400);

async fn rotate(authority: &CertificateAuthority, role: AuthorityRole, now: SystemTime) {
    let options = RotateOptions {
        force: true,
        ..RotateOptions::default()
    };
    let (actor, nobody) = (Actor::ITSELF, Proxies::default());
    for _ in 0..2 {
        let rotated = authority.rotate(role, options, &nobody, &actor, now).await;
        rotated.unwrap();
    }
}

#[tokio::test]
async fn what_signs_no_more_is_forgotten_by_time_that_passes_and_not_by_a_clock_that_jumps() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    store.begin_time(now).await.unwrap();
    let authority = generated(&store, now).await;
    rotate(&authority, Signing, now).await;
    rotate(&authority, Root, now).await;
    let before = authority.states();
    let old = |states: &[(AuthorityRole, AuthorityState)]| {
        states.iter().filter(|(_, state)| *state == Old).count()
    };
    assert!(old(&before) >= 3, "{before:?}");
    let bundle = authority.bundle();

    let jumped = now + JUMP;
    authority.steps(jumped, &nobody).await;
    assert_eq!(authority.states(), before);
    // A restart under that clock.
    store.begin_time(jumped).await.unwrap();
    let again = generated(&store, jumped).await;
    again.steps(jumped, &nobody).await;
    assert_eq!(again.states(), before);
    assert_eq!(again.bundle(), bundle);
    again.svid(HOUR, now);

    // Three days that do pass.
    store.set_passed(jumped);
    again.steps(jumped, &nobody).await;
    assert_eq!(old(&again.states()), 0);
    assert_eq!(again.bundle().authorities().len(), 1);
}

#[tokio::test]
async fn the_deadline_of_a_prepared_root_is_not_reached_by_a_jump() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    store.begin_time(now).await.unwrap();
    let files = Files::of_root(&root(400 * DAY, now));
    let authority = open(&store, files.source(), now).await.unwrap();
    let authority = authority.with_deadline(2 * HOUR);
    proxies.set("stuck", 1, "");
    files.write_root(&root(400 * DAY, now));
    assert_eq!(authority.steps(now, &proxies).await, [(Root, "prepared")]);
    let jumped = now + JUMP;
    assert!(authority.steps(jumped, &proxies).await.is_empty());
    store.set_passed(now + 2 * HOUR + MINUTE);
    let steps = authority.steps(jumped, &proxies).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
}

#[tokio::test]
async fn where_partners_fetch_the_bundle_a_jump_is_no_time_that_they_had() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    store.begin_time(now).await.unwrap();
    let files = Files::of_root(&root(400 * DAY, now));
    let authority = open(&store, files.source(), now).await.unwrap();
    let authority = authority.with_partners(true);
    files.write_root(&root(400 * DAY, now));
    assert_eq!(authority.steps(now, &nobody).await, [(Root, "prepared")]);
    assert!(authority.steps(now + JUMP, &nobody).await.is_empty());
}
