//! Several processes of the control plane on one store.

use super::*;

#[tokio::test]
async fn of_processes_that_begin_at_once_one_makes_the_authorities() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let begin = || generated(&store, now);
    let (a, b, c) = tokio::join!(begin(), begin(), begin());
    assert_eq!(a.bundle().to_pem(), b.bundle().to_pem());
    assert_eq!(a.signing().key_id(), c.signing().key_id());
    assert_eq!(c.states(), [(Root, Active), (Signing, Active)]);
}

#[tokio::test]
async fn of_processes_that_rotate_at_once_one_does_and_the_others_follow() {
    let (_directory, store) = empty_store().await;
    let (begin, nobody) = (SystemTime::now(), Proxies::default());
    let (a, b) = (
        generated(&store, begin).await,
        generated(&store, begin).await,
    );
    for due in [
        begin + SIGNING_LIFETIME / 2,
        begin + SIGNING_LIFETIME / 6 * 5,
    ] {
        let due = due + MINUTE;
        let (of_a, of_b) = tokio::join!(a.steps(due, &nobody), b.steps(due, &nobody));
        assert_eq!(of_a.len() + of_b.len(), 1, "{of_a:?} {of_b:?}");
        a.reload(due).await.unwrap();
        b.reload(due).await.unwrap();
        assert_eq!(a.states(), b.states());
        assert_eq!(a.signing().key_id(), b.signing().key_id());
    }
}

#[tokio::test]
async fn of_commands_at_once_one_makes_the_step_and_the_other_is_told() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let (a, b) = (generated(&store, now).await, generated(&store, now).await);
    let actor = Actor {
        event: "ca-rotate",
        caller: "test",
    };
    let options = RotateOptions::default();
    let (of_a, of_b) = tokio::join!(
        a.rotate(Root, options, &nobody, &actor, now),
        b.rotate(Root, options, &nobody, &actor, now)
    );
    // The slower either lost to the other, or came after it and made the next step.
    let made = [&of_a, &of_b].into_iter().flatten().count();
    a.reload(now).await.unwrap();
    let roots = a.slots().iter().filter(|slot| slot.role == Root).count();
    assert_eq!(roots, 2);
    for refusal in [of_a, of_b].into_iter().filter_map(Result::err) {
        assert!(refusal.message.contains("at the same moment"), "{refusal}");
    }
    assert!(made >= 1);
}

#[tokio::test]
async fn a_reload_shows_what_another_process_did() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let (a, b) = (generated(&store, now).await, generated(&store, now).await);
    assert!(!b.reload(now).await.unwrap());
    let actor = Actor {
        event: "ca-rotate",
        caller: "test",
    };
    for _ in 0..2 {
        a.rotate(Root, RotateOptions::default(), &nobody, &actor, now)
            .await
            .unwrap();
    }
    assert_eq!(b.bundle().sequence(), 1);
    assert!(b.reload(now).await.unwrap());
    assert_eq!(b.bundle().to_pem(), a.bundle().to_pem());
    assert_eq!(b.signing().key_id(), a.signing().key_id());
    b.svid(HOUR, now);
}

#[tokio::test]
async fn a_root_waits_for_the_proxies_of_every_process() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let files = Files::of_root(&one);
    let a = open(&store, files.source(), now).await.unwrap().shared();
    let b = open(&store, files.source(), now).await.unwrap().shared();
    let (of_a, of_b) = (Proxies::default(), Proxies::default());
    of_a.set("orders-1", 2, "");
    of_b.set("orders-2", 1, "");
    files.write_root(&two);
    let seconds = Duration::from_secs;
    assert_eq!(a.steps(now, &of_a).await, [(Root, "prepared")]);
    assert!(
        a.waiting().is_unsettled,
        "b has not said who of its proxies is behind"
    );
    assert!(b.steps(now + seconds(5), &of_b).await.is_empty());
    assert!(a.steps(now + seconds(25), &of_a).await.is_empty());
    let waiting = a.waiting();
    assert_eq!(waiting.laggards, ["spiffe://example.org/w (orders-2)"]);
    assert!(!waiting.is_unsettled);

    of_b.set("orders-2", 2, "");
    let steps = b.steps(now + seconds(30), &of_b).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
    assert!(a.steps(now + seconds(31), &of_a).await.is_empty());
    assert_eq!(a.signing().key_id(), b.signing().key_id());
}

#[tokio::test]
async fn a_process_that_is_gone_is_not_waited_for() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let files = Files::of_root(&root(400 * DAY, now));
    let a = open(&store, files.source(), now).await.unwrap().shared();
    let b = open(&store, files.source(), now).await.unwrap().shared();
    let (nobody, of_b) = (Proxies::default(), Proxies::default());
    of_b.set("orders-2", 1, "");
    files.write_root(&root(400 * DAY, now));
    let seconds = Duration::from_secs;
    a.steps(now, &nobody).await;
    b.steps(now, &of_b).await;
    drop(b);
    assert!(a.steps(now + seconds(25), &nobody).await.is_empty());
    let steps = a.steps(now + seconds(31), &nobody).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
}
