//! Certificate authorities replaced while proxies are connected: over the API, by the command line, by files.

use crate::lifecycle::{Process, run, state};
use crate::support::{
    ControlPlane, Proxy, TRUST_DOMAIN, from_proxy, hello, refusal, root_in, svid_of, until,
    write_root,
};
use sidewind_api::v1::control_message::Message as ToProxy;
use sidewind_api::v1::proxy_message::Message as FromProxy;
use sidewind_api::{Reason, v1};
use sidewind_control_plane::issuance::authority::upstream::files::Paths;
use sidewind_identity::authority::generate_root;
use sidewind_identity::{PrivateKey, TrustDomain};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::Status;

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

impl ControlPlane {
    async fn rotate_root(&self, force: bool) -> v1::RotateAuthorityResponse {
        let request = v1::RotateAuthorityRequest {
            kind: v1::AuthorityKind::Root.into(),
            dry_run: false,
            force,
        };
        let mut admin = self.client.admin_service().await;
        admin.rotate_authority(request).await.unwrap().into_inner()
    }

    async fn authorities(&self) -> Vec<v1::Authority> {
        let mut admin = self.client.admin_service().await;
        let answer = admin.get_authority(v1::GetAuthorityRequest {}).await;
        answer.unwrap().into_inner().authorities
    }

    /// Role and state of each that has a certificate.
    async fn states(&self) -> Vec<String> {
        let authorities = self.authorities().await;
        let word = |it: &v1::Authority| format!("{} {}", it.role, it.state);
        let certified = authorities.iter().filter(|it| it.role != "jwt");
        certified.map(word).collect()
    }

    async fn revoke(&self, key_id: &str, force: bool) -> Result<u64, Status> {
        let request = v1::RevokeAuthorityRequest {
            subject_key_id: key_id.to_owned(),
            force,
        };
        let mut admin = self.client.admin_service().await;
        Ok(admin
            .revoke_authority(request)
            .await?
            .into_inner()
            .bundle_sequence)
    }

    /// Event, outcome, detail and caller of what was done with authorities.
    async fn audit_of_authorities(&self) -> Vec<(String, String, String, String)> {
        let rows = sqlx::query_as(
            "SELECT event, outcome, detail, caller FROM audit WHERE event LIKE 'ca-%' ORDER BY id",
        );
        rows.fetch_all(&self.database().await).await.unwrap()
    }
}

impl Proxy {
    async fn bundles(&mut self) -> v1::TrustBundle {
        self.next_of(|message| match message {
            ToProxy::TrustBundles(mut bundles) => bundles.bundles.pop(),
            _ => None,
        })
        .await
    }

    async fn tainted(&mut self) -> Vec<String> {
        self.next_of(|message| match message {
            ToProxy::TaintedAuthorities(tainted) => Some(tainted.subject_key_ids),
            _ => None,
        })
        .await
    }

    async fn acknowledge(&self, sequence: u64) {
        let message = FromProxy::Acknowledge(v1::Acknowledge {
            bundles: vec![v1::BundleSequence {
                trust_domain: TRUST_DOMAIN.to_owned(),
                sequence,
            }],
            bans_version: 0,
            svid_serial: self.svid.serial_hex().to_owned(),
        });
        self.sender.send(from_proxy(message)).await.unwrap();
    }
}

fn certificates(pem: &Path) -> usize {
    std::fs::read_to_string(pem)
        .unwrap()
        .matches("BEGIN CERTIFICATE")
        .count()
}

#[tokio::test]
async fn a_stream_ends_with_the_root_that_its_certificate_chains_to() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut proxy = client.proxy(ORDERS, vec![]).await;
    assert_eq!(proxy.bundles().await.sequence, 2);
    control_plane.rotate_root(false).await;
    assert_eq!(proxy.bundles().await.sequence, 3);
    proxy.acknowledge(3).await;
    until(async || !control_plane.rotate_root(false).await.waiting).await;
    let old_root = control_plane.authorities().await[0].subject_key_id.clone();
    control_plane.revoke(&old_root, true).await.unwrap();
    let ended = proxy.end().await;
    assert_eq!(Reason::of(&ended), Some(Reason::NotRegistered), "{ended}");
    assert!(ended.message().contains("was revoked"), "{ended}");
}

#[tokio::test]
async fn a_root_is_published_acknowledged_activated_tainted_and_revoked() {
    let control_plane = ControlPlane::start().await;
    let client = &control_plane.client;
    let mut proxy = client.proxy(ORDERS, vec![]).await;
    // The first root and the first key of JWT-SVIDs have raised it once each.
    assert_eq!(proxy.bundles().await.sequence, 2);
    proxy.acknowledge(2).await;
    let bundle_file = client.admin_socket().with_file_name("trust-bundle.pem");

    let prepared = control_plane.rotate_root(false).await;
    assert!(
        prepared.steps[0].starts_with("prepared root certificate"),
        "{prepared:?}"
    );
    let bundle = proxy.bundles().await;
    assert_eq!((bundle.sequence, bundle.authorities.len()), (3, 2));
    assert_eq!(certificates(&bundle_file), 2);
    let waits = control_plane.rotate_root(false).await;
    assert!(waits.waiting, "{waits:?}");
    assert_eq!(waits.laggards, [format!("{ORDERS} (workload)")]);
    control_plane.metric("sidewind_authority_laggards 1").await;
    assert_eq!(
        control_plane.states().await[..2],
        ["root active", "root prepared"]
    );

    proxy.acknowledge(3).await;
    until(async || !control_plane.rotate_root(false).await.waiting).await;
    let expected = ["root old", "root active", "signing old", "signing active"];
    assert_eq!(control_plane.states().await, expected);
    let old_root = control_plane.authorities().await[0].subject_key_id.clone();

    let request = v1::TaintAuthorityRequest {
        subject_key_id: old_root.to_uppercase(),
    };
    let mut admin = client.admin_service().await;
    let tainted = admin.taint_authority(request).await.unwrap().into_inner();
    assert_eq!(tainted.affected, 1);
    assert_eq!(proxy.tainted().await, std::slice::from_ref(&old_root));
    assert_eq!(control_plane.states().await[0], "root tainted");
    let (reason, sentence) = refusal(control_plane.revoke(&old_root, false).await);
    assert_eq!(reason, Reason::AuthorityRefused);
    assert!(sentence.contains("1 connected proxies"), "{sentence}");

    // What a proxy does then: a new certificate, and a new stream with it.
    let mut client = client.clone();
    let pem = std::fs::read_to_string(&bundle_file).unwrap();
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let bundle = sidewind_identity::TrustBundle::from_pem(trust_domain, &pem).unwrap();
    client.bundles = Arc::new(bundle.into());
    let key = PrivateKey::generate().unwrap();
    let renewed = client
        .renew(&proxy.svid, key.csr_der().unwrap())
        .await
        .unwrap();
    let svid = svid_of(renewed, key);
    assert!(!svid.authority_key_ids().contains(&old_root));
    let mut second = client.stream(&svid, hello(vec![])).await.unwrap();
    assert_eq!(second.tainted().await, std::slice::from_ref(&old_root));
    drop(proxy);
    until(async || {
        let (_, sentence) = refusal(control_plane.revoke(&old_root, false).await);
        // Others may still have certificates that are good for most of an hour.
        sentence.contains("are good for another 59m")
    })
    .await;
    assert_eq!(control_plane.revoke(&old_root, true).await.unwrap(), 4);
    let bundle = second.bundles().await;
    assert_eq!((bundle.sequence, bundle.authorities.len()), (4, 1));
    assert_eq!(certificates(&bundle_file), 1);
    client.stream(&svid, hello(vec![])).await.unwrap();
    let line = r#"sidewind_authority_rotations_total{role="root",step="revoked"} 1"#;
    control_plane.metric(line).await;

    until(async || {
        let audit = control_plane.audit_of_authorities().await;
        let has = |event: &str, outcome: &str| {
            audit.iter().any(|(found, how, _, caller)| {
                found == event && how == outcome && caller.starts_with("uid ")
            })
        };
        has("ca-rotate", "granted")
            && has("ca-rotate", "authority-refused")
            && has("ca-taint", "granted")
            && has("ca-revoke", "authority-refused")
            && has("ca-revoke", "granted")
    })
    .await;
}

#[tokio::test]
async fn files_that_change_become_the_new_root_and_a_bad_pair_does_not() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let root = || {
        let life = Duration::from_secs(400 * 86_400);
        generate_root(&trust_domain, life, SystemTime::now()).unwrap()
    };
    let source = root_in(directory.path(), &root());
    let control_plane = ControlPlane::start_in(directory.clone(), |it| it.root = source).await;
    control_plane
        .metric("sidewind_authority_given_current 1")
        .await;

    std::fs::write(directory.path().join("root.key"), "half a key").unwrap();
    control_plane
        .metric("sidewind_authority_given_current 0")
        .await;
    assert_eq!(
        control_plane.states().await,
        ["root active", "signing active"]
    );
    control_plane.client.svid(ORDERS, &[]).await;

    let second = root();
    let paths = Paths {
        certificate: directory.path().join("root.pem"),
        key: directory.path().join("root.key"),
        upstream_bundle: None,
    };
    write_root(&paths, &second);
    until(async || {
        let authorities = control_plane.authorities().await;
        let is_second =
            |it: &v1::Authority| it.subject_key_id == second.key_id() && it.state == "active";
        authorities.iter().any(is_second)
    })
    .await;
    control_plane
        .metric("sidewind_authority_given_current 1")
        .await;
    let bundle_file = directory.path().join("state/trust-bundle.pem");
    assert_eq!(certificates(&bundle_file), 2);
}

#[tokio::test]
async fn the_commands_rotate_taint_and_revoke_and_say_what_they_did() {
    let (_directory, state) = state();
    let _process = Process::start(&state, &[]).await;
    let path = state.to_str().unwrap();
    let command = async |arguments: &[&str]| {
        let output = run(&[&["ca"], arguments, &["--state-dir", path]].concat()).await;
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    // A second may pass between two looks.
    let show = async || {
        let (_, shown) = command(&["show"]).await;
        let lines = shown.lines().map(|line| line.split(" (ends in").next());
        lines
            .map(Option::unwrap_or_default)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let before = show().await;
    assert!(before.contains("root certificate (active)"), "{before}");
    let dry = command(&["rotate", "--dry-run"]).await;
    assert!(
        dry.0 == Some(0) && dry.1.starts_with("would make a signing"),
        "{dry:?}"
    );
    assert_eq!(show().await, before);
    for expected in [
        "prepared signing certificate",
        "activated signing certificate",
    ] {
        let (code, text) = command(&["rotate"]).await;
        assert!(
            code == Some(0) && text.starts_with(expected),
            "{code:?} {text}"
        );
    }
    let (_, shown) = command(&["show"]).await;
    assert!(shown.contains("signing certificate (old)"), "{shown}");
    let key_ids: Vec<&str> = shown
        .lines()
        .filter_map(|it| it.strip_prefix("  key id   "))
        .collect();
    let [root, old_signing, ..] = key_ids.as_slice() else {
        panic!("{shown}");
    };
    let (code, text) = command(&["taint", old_signing]).await;
    assert!(
        code == Some(0) && text.contains("0 connected proxies"),
        "{code:?} {text}"
    );
    for (arguments, expected) in [
        (&["taint", root][..], "only an old one can be tainted"),
        (&["revoke", root, "--force"], "is the one in use"),
        (&["revoke", old_signing], "is not in the trust bundle"),
        (&["taint", "none"], "no authority has the key id"),
    ] {
        let (code, text) = command(arguments).await;
        assert!(
            code == Some(64) && text.contains(expected),
            "{arguments:?}: {code:?} {text}"
        );
    }
    for expected in ["prepared root certificate", "activated root certificate"] {
        let (code, text) = command(&["rotate", "--root"]).await;
        assert!(
            code == Some(0) && text.starts_with(expected),
            "{code:?} {text}"
        );
    }
    let (code, text) = command(&["revoke", root, "--force"]).await;
    assert!(
        code == Some(0) && text.contains("has sequence 4"),
        "{code:?} {text}"
    );
    let jwt_keys = async || {
        let (_, shown) = command(&["show"]).await;
        let keys = shown.split("JWT key (").skip(1).map(|key| {
            let (state, rest) = key.split_once(')').unwrap();
            let id = rest
                .split_once("key id   ")
                .unwrap()
                .1
                .lines()
                .next()
                .unwrap();
            (state.to_owned(), id.to_owned())
        });
        keys.collect::<Vec<_>>()
    };
    let [(_, first_key)] = &jwt_keys().await[..] else {
        panic!("one key at first");
    };
    for (arguments, expected_code, expected) in [
        (
            &["rotate", "--jwt", "--dry-run"][..],
            0,
            "would publish a new key",
        ),
        (&["taint", first_key], 64, "only an old one can be tainted"),
        (&["rotate", "--jwt"], 0, "publish a new key"),
        (&["rotate", "--jwt"], 1, "wait"),
        (&["rotate", "--jwt", "--force"], 0, "sign with key"),
        (&["revoke", first_key], 64, "taint it first"),
        (&["taint", first_key], 0, "tainted"),
        (&["revoke", first_key], 64, "wait for their end"),
    ] {
        let (code, text) = command(arguments).await;
        assert!(
            code == Some(expected_code) && text.contains(expected),
            "{arguments:?}: {code:?} {text}"
        );
    }
    let states = jwt_keys().await.into_iter().map(|(state, _)| state);
    let states: std::collections::BTreeSet<_> = states.collect();
    assert!(states.iter().eq(["active", "tainted"]), "{states:?}");
    let (code, text) = command(&["revoke", first_key, "--force"]).await;
    assert!(
        code == Some(0) && text.contains("trust bundle without it"),
        "{code:?} {text}"
    );
    assert_eq!(jwt_keys().await.len(), 1);
    let (_, pem) = command(&["show", "--pem"]).await;
    assert_eq!(
        pem,
        std::fs::read_to_string(state.join("trust-bundle.pem")).unwrap()
    );
}
