//! Roots and signing authorities that others give, and change.

use super::*;

#[tokio::test]
async fn a_given_root_takes_over_after_an_overlap_and_the_old_one_stays_trusted() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let first = generated(&store, now).await;
    let given = root(2 * SIGNING_LIFETIME, now);
    let files = Files::of_root(&given);
    let second = open(&store, files.source(), now).await.unwrap();
    // Proxies that come back after the restart know the old one alone.
    assert_eq!(first.signing().key_id(), second.signing().key_id());
    assert_eq!(second.bundle().authorities().len(), 2);
    assert_eq!(second.bundle().sequence(), 2);
    proxies.set("orders-1", 1, "");
    assert!(second.steps(now + MINUTE, &proxies).await.is_empty());
    proxies.set("orders-1", 2, "");
    let steps = second.steps(now + MINUTE, &proxies).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
    assert_eq!(second.key_id(Root, Active), given.key_id());
    assert_eq!(second.bundle().authorities().len(), 2);
    assert!(
        second
            .svid(HOUR, now + MINUTE)
            .authority_key_ids()
            .contains(given.key_id())
    );
    let error = open(&store, RootSource::Generated, now).await.unwrap_err();
    assert!(error.to_string().contains("--root-key"), "{error}");
}

#[tokio::test]
async fn a_changed_pair_is_published_first_and_signs_when_every_live_proxy_knows_it() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let files = Files::of_root(&one);
    let authority = open(&store, files.source(), now).await.unwrap();
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);
    proxies.set("orders-1", 1, "");
    proxies.set("orders-2", 1, "");
    assert!(authority.steps(now + MINUTE, &proxies).await.is_empty());

    files.write_root(&two);
    assert_eq!(
        authority.steps(now + HOUR, &proxies).await,
        [(Root, "prepared")]
    );
    assert_eq!(authority.bundle().sequence(), 2);
    assert_eq!(authority.key_id(Root, Active), one.key_id());
    assert_eq!(authority.waiting().number, 2);
    proxies.set("orders-1", 2, "");
    assert!(
        authority
            .steps(now + HOUR + MINUTE, &proxies)
            .await
            .is_empty()
    );
    assert_eq!(
        authority.waiting().laggards,
        ["spiffe://example.org/w (orders-2)"]
    );

    // A restart in the middle of the overlap: the deadline passes meanwhile, and still the proxies come first.
    let authority = open(&store, files.source(), now + 3 * HOUR).await.unwrap();
    assert_eq!(authority.key_id(Root, Prepared), two.key_id());
    assert!(authority.steps(now + 3 * HOUR, &proxies).await.is_empty());
    proxies.set("orders-2", 2, "");
    let steps = authority.steps(now + 3 * HOUR, &proxies).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
    assert_eq!(authority.waiting().number, 0);
    let svid = authority.svid(HOUR, now + 3 * HOUR);
    assert!(svid.authority_key_ids().contains(two.key_id()));
}

#[tokio::test]
async fn where_partners_fetch_the_bundle_a_given_root_leaves_them_the_time_to() {
    use crate::issuance::jwt::plan::OVERLAP;
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let files = Files::of_root(&root(400 * DAY, now));
    let authority = open(&store, files.source(), now).await.unwrap();
    let authority = authority.with_partners(true);
    files.write_root(&root(400 * DAY, now));
    let prepared = now + HOUR;
    assert_eq!(
        authority.steps(prepared, &proxies).await,
        [(Root, "prepared")]
    );
    // The store counts in seconds.
    let early = prepared + OVERLAP - Duration::from_secs(2);
    assert!(authority.steps(early, &proxies).await.is_empty());
    let steps = authority.steps(prepared + OVERLAP, &proxies).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
}

#[tokio::test]
async fn after_the_deadline_a_root_signs_all_the_same_and_the_laggards_are_named() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let files = Files::of_root(&root(400 * DAY, now));
    let authority = open(&store, files.source(), now)
        .await
        .unwrap()
        .with_deadline(2 * HOUR);
    proxies.set("stuck", 1, "");
    files.write_root(&root(400 * DAY, now));
    let prepared = now + HOUR;
    assert_eq!(
        authority.steps(prepared, &proxies).await,
        [(Root, "prepared")]
    );
    assert!(
        authority
            .steps(prepared + 119 * MINUTE, &proxies)
            .await
            .is_empty()
    );
    let maintenance = authority
        .maintain(prepared + 2 * HOUR, &proxies)
        .await
        .unwrap();
    let activated = maintenance.events[0].to_string();
    let expected = "although not acknowledged by spiffe://example.org/w (stuck)";
    assert!(activated.contains(expected), "{activated}");
}

#[tokio::test]
async fn a_pair_that_is_bad_or_half_written_changes_nothing() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let files = Files::of_root(&one);
    let authority = open(&store, files.source(), now).await.unwrap();
    let refused = async || authority.maintain(now, &proxies).await.unwrap().refused;

    files.write("tls.crt", &two.certificate_pem());
    assert!(refused().await.is_none(), "it may be half written");
    let error = refused().await.expect("it is still there").to_string();
    assert!(error.contains("is for another private key"), "{error}");
    files.write("tls.key", "garbage");
    assert!(refused().await.is_none());
    assert!(refused().await.is_some());
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);
    authority.svid(HOUR, now);

    let open_to_all = std::fs::Permissions::from_mode(0o644);
    files.write_root(&two);
    std::fs::set_permissions(files.path("tls.key"), open_to_all).unwrap();
    let error = refused().await.unwrap().to_string();
    assert!(error.contains("has mode 0644"), "{error}");
    std::fs::remove_file(files.path("tls.key")).unwrap();
    let error = refused().await.unwrap().to_string();
    assert!(error.starts_with("--root-key: cannot read"), "{error}");

    files.write_root(&two);
    let steps = authority.steps(now, &proxies).await;
    assert_eq!(steps[0], (Root, "prepared"));
}

#[tokio::test]
async fn a_secrets_mount_that_swaps_its_symlink_is_read_again() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let mount = tempfile::tempdir().unwrap();
    let version = |name: &str, root: &RootAuthority| {
        let directory = mount.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("tls.crt"), root.certificate_pem()).unwrap();
        std::fs::write(
            directory.join("tls.key"),
            root.key().to_pkcs8_pem().as_bytes(),
        )
        .unwrap();
        let private = std::fs::Permissions::from_mode(0o400);
        std::fs::set_permissions(directory.join("tls.key"), private).unwrap();
        let link = mount.path().join("..data_tmp");
        std::os::unix::fs::symlink(name, &link).unwrap();
        std::fs::rename(link, mount.path().join("..data")).unwrap();
    };
    version("..1", &one);
    for file in ["tls.crt", "tls.key"] {
        let target = format!("..data/{file}");
        std::os::unix::fs::symlink(target, mount.path().join(file)).unwrap();
    }
    let paths = Paths {
        certificate: mount.path().join("tls.crt"),
        key: mount.path().join("tls.key"),
        upstream_bundle: None,
    };
    let source = RootSource::Upstream(Arc::new(UpstreamFiles::new(paths)));
    let authority = open(&store, source, now).await.unwrap();
    version("..2", &two);
    authority.steps(now, &nobody).await;
    assert_eq!(authority.key_id(Root, Active), two.key_id());
    assert_eq!(authority.key_id(Root, Old), one.key_id());
}

#[tokio::test]
async fn a_pair_that_is_taken_back_before_it_signed_leaves_the_bundle() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let files = Files::of_root(&one);
    let authority = open(&store, files.source(), now).await.unwrap();
    proxies.set("orders-1", 1, "");
    files.write_root(&two);
    assert_eq!(authority.steps(now, &proxies).await, [(Root, "prepared")]);
    files.write_root(&one);
    assert_eq!(authority.steps(now, &proxies).await, [(Root, "retired")]);
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);
    assert_eq!(authority.bundle().sequence(), 3);
}

#[tokio::test]
async fn a_pair_that_is_put_back_after_another_signed_is_used_again() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let files = Files::of_root(&one);
    let authority = open(&store, files.source(), now).await.unwrap();
    for root in [&two, &one] {
        files.write_root(root);
        authority.steps(now, &nobody).await;
        assert_eq!(authority.key_id(Root, Active), root.key_id());
    }
    assert_eq!(authority.bundle().authorities().len(), 2);
    authority.svid(HOUR, now);
}

#[tokio::test]
async fn a_root_that_could_not_honour_what_was_promised_is_not_taken() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let files = Files::of_root(&root(400 * DAY, now));
    let authority = open(&store, files.source(), now).await.unwrap();
    authority.check_lifetime(DAY).unwrap();
    files.write_root(&root(3 * DAY, now));
    let refused = authority.maintain(now, &nobody).await.unwrap().refused;
    let error = refused.unwrap().to_string();
    assert!(
        error.contains("of 1d cannot be honoured") && error.contains("/ 6 = 11h59m"),
        "{error}"
    );
    assert_eq!(authority.states(), [(Root, Active), (Signing, Active)]);
    authority.svid(DAY, now);
}

#[tokio::test]
async fn a_given_signing_authority_signs_below_an_upstream_root_whose_key_is_elsewhere() {
    let (_directory, store) = empty_store().await;
    let (now, nobody) = (SystemTime::now(), Proxies::default());
    let upstream = root(4000 * DAY, now);
    let first = upstream.issue_intermediate(60 * DAY, now).unwrap();
    let files = Files::of_signing(&first, &[&upstream]);
    let authority = open(&store, files.source(), now).await.unwrap();
    assert_eq!(authority.signing().key_id(), first.key_id());
    let slots = authority.slots();
    assert!(slots.iter().all(|slot| !slot.has_key), "no key is kept");
    let verify = |svid: &sidewind_identity::Svid| {
        let options = sidewind_identity::VerifyOptions::default();
        let usage = sidewind_identity::Usage::Server;
        let bundles = authority.bundles();
        sidewind_identity::verify_chain(svid.chain(), &bundles, usage, now, &options).unwrap()
    };
    verify(&authority.svid(HOUR, now));

    // Renewed in place below the same root: nobody needs to be told before.
    let second = upstream.issue_intermediate(60 * DAY, now).unwrap();
    files.write_signing(&second, &[&upstream]);
    assert_eq!(
        authority.steps(now, &nobody).await,
        [(Signing, "activated")]
    );
    assert_eq!(authority.signing().key_id(), second.key_id());
    assert_eq!(authority.bundle().sequence(), 1);
    verify(&authority.svid(HOUR, now));
    let authority = open(&store, files.source(), now).await.unwrap();
    assert_eq!(authority.signing().key_id(), second.key_id());
}

#[tokio::test]
async fn an_upstream_that_changes_its_root_is_followed_by_prepare_and_activate() {
    let (_directory, store) = empty_store().await;
    let (now, proxies) = (SystemTime::now(), Proxies::default());
    let (one, two) = (root(4000 * DAY, now), root(4000 * DAY, now));
    let below_one = one.issue_intermediate(60 * DAY, now).unwrap();
    let below_two = two.issue_intermediate(60 * DAY, now).unwrap();
    let files = Files::of_signing(&below_one, &[&one]);
    let authority = open(&store, files.source(), now).await.unwrap();
    proxies.set("orders-1", 1, "");

    // The upstream tells of its next root first.
    files.write_signing(&below_one, &[&one, &two]);
    assert_eq!(authority.steps(now, &proxies).await, [(Root, "prepared")]);
    assert_eq!(authority.signing().key_id(), below_one.key_id());
    files.write_signing(&below_two, &[&one, &two]);
    assert!(authority.steps(now, &proxies).await.is_empty());
    proxies.set("orders-1", 2, "");
    let steps = authority.steps(now, &proxies).await;
    assert_eq!(steps, [(Root, "activated"), (Signing, "activated")]);
    assert_eq!(authority.signing().key_id(), below_two.key_id());

    // As long as the upstream trusts the old one, so does everybody.
    let later = now + 3 * DAY;
    assert!(authority.steps(later, &proxies).await.is_empty());
    files.write_signing(&below_two, &[&two]);
    assert_eq!(authority.steps(later, &proxies).await, [(Root, "retired")]);
}

#[tokio::test]
async fn a_signing_authority_of_no_given_root_is_refused() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let (one, two) = (root(400 * DAY, now), root(400 * DAY, now));
    let signing = one.issue_intermediate(60 * DAY, now).unwrap();
    let files = Files::of_signing(&signing, &[&two]);
    let error = open(&store, files.source(), now).await.unwrap_err();
    assert!(
        error.is_usage() && error.to_string().contains("--upstream-bundle: no root"),
        "{error}"
    );
}
