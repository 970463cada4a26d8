//! Rotate, taint and revoke as people ask for them.

use super::*;

const ACTOR: Actor<'static> = Actor {
    event: "ca-test",
    caller: "uid 7",
};

async fn rotate(
    authority: &CertificateAuthority,
    role: AuthorityRole,
    options: RotateOptions,
    proxies: &Proxies,
    now: SystemTime,
) -> Rotation {
    authority
        .rotate(role, options, proxies, &ACTOR, now)
        .await
        .unwrap()
}

const PLAIN: RotateOptions = RotateOptions {
    dry_run: false,
    force: false,
};
const DRY: RotateOptions = RotateOptions {
    dry_run: true,
    force: false,
};
const FORCE: RotateOptions = RotateOptions {
    dry_run: false,
    force: true,
};

/// What the audit says of commands.
async fn audited(store: &Store) -> Vec<(String, String)> {
    store
        .audit_details()
        .await
        .into_iter()
        .filter(|(caller, _)| caller == "uid 7")
        .collect()
}

#[tokio::test]
async fn a_signing_certificate_is_replaced_in_two_steps() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, now).await;
    let first = authority.key_id(Signing, Active);
    let dry = rotate(&authority, Signing, DRY, &nobody, now).await;
    assert!(
        dry.steps[0].starts_with("would make a signing certificate"),
        "{dry:?}"
    );
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);

    let prepared = rotate(&authority, Signing, PLAIN, &nobody, now).await;
    assert!(
        prepared.steps[0].starts_with("prepared signing certificate"),
        "{prepared:?}"
    );
    let second = authority.key_id(Signing, Prepared);
    let dry = rotate(&authority, Signing, DRY, &nobody, now).await;
    let expected = format!("would sign by signing certificate {second} in place of {first}");
    assert_eq!(dry.steps, [expected]);
    rotate(&authority, Signing, PLAIN, &nobody, now).await;
    assert_eq!(authority.signing().key_id(), second);
    assert_eq!(audited(&store).await.len(), 2, "a dry run does nothing");
}

#[tokio::test]
async fn a_root_is_not_activated_before_live_proxies_know_it_unless_by_force() {
    for options in [PLAIN, FORCE] {
        let (_directory, store) = empty_store().await;
        let (now, proxies) = (SystemTime::now(), Proxies::default());
        let authority = generated(&store, now).await;
        proxies.set("orders-1", 1, "");
        rotate(&authority, Root, PLAIN, &proxies, now).await;
        let second = authority.key_id(Root, Prepared);
        let later = now + 2 * MINUTE;
        for options in [PLAIN, DRY] {
            let waits = rotate(&authority, Root, options, &proxies, later).await;
            assert!(waits.is_waiting && waits.events.is_empty());
            assert_eq!(waits.laggards, ["spiffe://example.org/w (orders-1)"]);
            let sentence = &waits.steps[0];
            assert!(
                sentence.contains("1 live proxy has not acknowledged"),
                "{sentence}"
            );
            assert!(sentence.contains("for the deadline"), "{sentence}");
        }
        // A root that somebody prepared by hand is theirs to use: nothing happens by itself.
        assert!(authority.steps(later, &proxies).await.is_empty());
        if !options.force {
            proxies.set("orders-1", 2, "");
            assert!(authority.steps(later, &proxies).await.is_empty());
        }
        let activated = rotate(&authority, Root, options, &proxies, later).await;
        assert_eq!(activated.steps.len(), 2);
        assert_eq!(
            activated.steps[0].contains("not acknowledged by"),
            options.force
        );
        assert_eq!(authority.key_id(Root, Active), second);
    }
}

#[tokio::test]
async fn after_the_deadline_the_command_activates_and_names_the_laggards() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, now).await;
    proxies.set("stuck", 1, "");
    rotate(&authority, Root, PLAIN, &proxies, now).await;
    let activated = rotate(&authority, Root, PLAIN, &proxies, now + HOUR).await;
    assert!(!activated.is_waiting);
    assert!(
        activated.steps[0].contains("not acknowledged by"),
        "{activated:?}"
    );
    assert_eq!(activated.laggards.len(), 1);
}

#[tokio::test]
async fn what_is_given_is_not_rotated_here() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let upstream = root(400 * DAY, now);
    let files = Files::of_root(&upstream);
    let authority = open(&store, files.source(), now).await.unwrap();
    let refusal = authority
        .rotate(Root, PLAIN, &nobody, &ACTOR, now)
        .await
        .unwrap_err();
    assert!(
        refusal.message.contains("the root is given by --root-cert"),
        "{refusal}"
    );
    rotate(&authority, Signing, PLAIN, &nobody, now).await;

    let (_directory, store) = empty_store().await;
    let signing = upstream.issue_intermediate(60 * DAY, now).unwrap();
    let files = Files::of_signing(&signing, &[&upstream]);
    let authority = open(&store, files.source(), now).await.unwrap();
    let refusal = authority
        .rotate(Signing, PLAIN, &nobody, &ACTOR, now)
        .await
        .unwrap_err();
    assert!(refusal.message.contains("renew it there"), "{refusal}");
}

#[tokio::test]
async fn only_an_old_authority_is_tainted_and_the_refusal_says_what_to_do_first() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, now).await;
    let (root, signing) = (
        authority.key_id(Root, Active),
        authority.key_id(Signing, Active),
    );
    proxies.set("orders-1", 9, &signing);
    let taint = async |key_id: &str| authority.taint(key_id, &proxies, &ACTOR, now).await;
    let refused = async |key_id: &str| taint(key_id).await.unwrap_err().message;
    assert!(
        refused("0123")
            .await
            .contains("`sidewind ca show` lists them")
    );
    assert!(
        refused(&root)
            .await
            .contains("`sidewind ca rotate --root`, twice")
    );
    assert!(
        refused(&signing)
            .await
            .contains("`sidewind ca rotate`, twice")
    );
    rotate(&authority, Root, PLAIN, &proxies, now).await;
    assert!(
        refused(&authority.key_id(Root, Prepared))
            .await
            .contains("has signed nothing")
    );
    rotate(&authority, Root, PLAIN, &proxies, now).await;

    let (affected, events) = taint(&root).await.unwrap();
    assert_eq!((affected, events.len()), (1, 1));
    assert_eq!(
        authority.api_tainted().subject_key_ids,
        std::slice::from_ref(&root)
    );
    let (_, events) = taint(&root).await.unwrap();
    assert!(events.is_empty(), "once is enough");
    taint(&signing).await.unwrap();
    assert_eq!(authority.api_tainted().subject_key_ids.len(), 2);
    assert_eq!(
        authority.bundle().authorities().len(),
        2,
        "it is still believed"
    );
    let restarted = generated(&store, now).await;
    assert_eq!(restarted.api_tainted(), authority.api_tainted());
    let audited = audited(&store).await;
    assert!(
        audited
            .iter()
            .any(|(_, detail)| detail.contains("tainted root")),
        "{audited:?}"
    );
}

#[tokio::test]
async fn a_root_is_revoked_when_nobody_needs_it_any_more_or_by_force() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let authority = generated(&store, now).await;
    let (root, signing) = (
        authority.key_id(Root, Active),
        authority.key_id(Signing, Active),
    );
    authority.svid(HOUR, now);
    proxies.set("orders-1", 9, &signing);
    let revoke = async |key_id: &str, force, now| {
        authority.revoke(key_id, force, &proxies, &ACTOR, now).await
    };
    let refused = async |key_id: &str, force| {
        revoke(key_id, force, now + 10 * MINUTE)
            .await
            .unwrap_err()
            .message
    };
    assert!(refused(&root, true).await.contains("is the one in use"));
    assert!(
        refused(&signing, true)
            .await
            .contains("is not in the trust bundle")
    );
    for _ in 0..2 {
        rotate(&authority, Root, FORCE, &proxies, now).await;
    }
    let sentence = refused(&root, false).await;
    assert!(
        sentence.contains("1 connected proxies have certificates below"),
        "{sentence}"
    );
    assert!(sentence.contains("`sidewind ca taint"), "{sentence}");
    proxies.set("orders-1", 9, &authority.key_id(Signing, Active));
    let sentence = refused(&root, false).await;
    assert!(sentence.contains("are good for another 50m"), "{sentence}");

    let (sequence, _) = revoke(&root, false, now + HOUR + MINUTE).await.unwrap();
    assert_eq!((sequence, authority.bundle().sequence()), (3, 3));
    assert_eq!(authority.bundle().authorities().len(), 1);
    assert!(refused(&root, true).await.contains("revoked already"));
    assert_eq!(
        authority.states(),
        [(Root, Revoked), (Root, Active), (Signing, Active)]
    );
    // It is remembered until it has ended by itself.
    authority.steps(now + ROOT_LIFETIME + HOUR, &proxies).await;
    assert!(!authority.states().contains(&(Root, Revoked)));

    let second = authority.key_id(Root, Active);
    for _ in 0..2 {
        rotate(&authority, Root, FORCE, &proxies, now).await;
    }
    revoke(&second, true, now).await.unwrap();
}

#[tokio::test]
async fn a_prepared_root_is_revoked_and_a_given_one_is_not_taken_up_again() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let files = Files::of_root(&one);
    let authority = open(&store, files.source(), now).await.unwrap();
    proxies.set("orders-1", 1, "");
    files.write_root(&two);
    authority.steps(now, &proxies).await;
    authority
        .revoke(two.key_id(), false, &proxies, &ACTOR, now)
        .await
        .unwrap();
    assert_eq!(authority.bundle().authorities().len(), 1);
    proxies.set("orders-1", 9, "");
    assert!(authority.steps(now + 3 * HOUR, &proxies).await.is_empty());
    let error = open(&store, files.source(), now).await.unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("was revoked before"),
        "{error}"
    );
}
