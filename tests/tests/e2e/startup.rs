//! Beginnings: settings, tokens, and what is waited for.

use std::time::Duration;

use sidewind_tests::lan::Namespace;
use sidewind_tests::mesh::{JoinToken, Mesh};
use sidewind_tests::scratch::Scratch;
use sidewind_tests::wait::{PATIENCE, eventually, throughout};

use crate::support::{API_ID, Pair};

const TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn a_setting_that_cannot_be_used_is_one_clear_error_before_any_port_is_bound() {
    let (namespace, scratch) = (Namespace::new(), Scratch::new());
    let binaries = sidewind_tests::binaries::Binaries::find(&scratch);
    let place = namespace.place();
    // Every port is taken: whoever binds before it has checked its settings complains of that.
    let _taken: Vec<_> = [15001, 15006, 15008, 15010, 15014, 15020]
        .map(|port| place.listen(([0, 0, 0, 0], port).into()).unwrap())
        .into();
    // Not there yet, which is no mistake.
    let bundle = scratch.join("bundle.pem");
    let good = [
        "run",
        "--control-plane",
        "https://10.0.0.1:15010",
        "--trust-bundle",
        &bundle.to_string_lossy(),
    ];
    let cases: [(&[&str], &str); 9] = [
        (&["--no-such-flag"], "no-such-flag"),
        (
            &["--control-plane", "http://10.0.0.1:15010"],
            "control-plane",
        ),
        (&["--workers", "none"], "workers"),
        (&["--detect-timeout", "soon"], "detect-timeout"),
        (&["--mesh-listen", "15008"], "mesh-listen"),
        (&["--serve", "orders-api.data:80=8080/smtp"], "serve"),
        (&["--trace-ratio", "1.5"], "trace-ratio"),
        (&["--capture", "magic"], "capture"),
        (&["--join-token-file", "/no/such/file"], "join-token-file"),
    ];
    for (arguments, named) in cases {
        // A flag that is given twice would hide the case.
        let kept = good.chunks(2).filter(|pair| !arguments.contains(&pair[0]));
        let kept: Vec<&str> = kept.flatten().copied().collect();
        let run = place
            .program(&binaries.proxy)
            .args(good.iter().take(1))
            .args(kept.iter().filter(|word| **word != "run"));
        let ended = run
            .args(arguments)
            .env("SIDEWIND_JOIN_TOKEN", "swj_x")
            .timeout(TIMEOUT)
            .finish();
        assert_eq!(ended.code(), Some(64), "{arguments:?}: {}", ended.failure());
        let said = ended.err();
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{arguments:?}: {said}");
    }
    for (variable, value) in [
        ("SIDEWIND_WORKERS", "none"),
        ("SIDEWIND_DRAIN_TIMEOUT", "later"),
    ] {
        let run = place
            .program(&binaries.proxy)
            .args(good)
            .env("SIDEWIND_JOIN_TOKEN", "swj_x")
            .env(variable, value);
        let ended = run.timeout(TIMEOUT).finish();
        assert_eq!(ended.code(), Some(64), "{variable}: {}", ended.failure());
        assert!(
            ended.err().contains(variable),
            "{variable}: {}",
            ended.err()
        );
    }
    for arguments in [
        &["serve", "--svid-ttl", "1s"][..],
        &["serve", "--listen", "nowhere"],
        &["serve", "--no-such-flag"],
        &["dance"],
    ] {
        let state = scratch.join("state");
        let serve = place
            .program(&binaries.sidewind)
            .args(arguments)
            .env("SIDEWIND_STATE_DIR", state);
        let ended = serve.timeout(TIMEOUT).finish();
        assert_eq!(ended.code(), Some(64), "{arguments:?}: {}", ended.failure());
    }
}

#[test]
fn a_resource_that_is_wrong_is_named_by_file_line_and_field() {
    let scratch = Scratch::new();
    let binaries = sidewind_tests::binaries::Binaries::find(&scratch);
    let directory = scratch.directory("resources", None);
    let check = || {
        let check = sidewind_tests::place::Place::Host
            .program(&binaries.sidewind)
            .args(["config", "check"]);
        check.arg(&directory).timeout(TIMEOUT).finish()
    };
    let good = crate::support::allow(
        API_ID,
        &["spiffe://sidewind.local/ns/airflow/sa/*"],
        "{ ports: [8080] }",
    );
    std::fs::write(directory.join("good.yaml"), &good).unwrap();
    check().success();
    let bad = good
        .replace("ports: [8080]", "ports: [808080]")
        .replace("name: callers", "name: others");
    std::fs::write(directory.join("bad.yaml"), bad).unwrap();
    let refused = check();
    assert_eq!(refused.code(), Some(64), "{}", refused.failure());
    let said = refused.out() + &refused.err();
    assert!(
        said.contains("bad.yaml") && said.contains("ports") && said.contains("8"),
        "{said}"
    );
    assert!(!said.contains("good.yaml"), "{said}");
}

/// Starts a proxy with a token of the test's own, and waits until the control plane has refused and recorded it.
#[track_caller]
fn refused_token(pair: &mut Pair, name: &str, token: &str, reason: &str) {
    let host = pair.mesh.outsider(name);
    let file = pair.mesh.scratch.write_secret(
        &format!("{name}.token"),
        token,
        Some(sidewind_tests::mesh::SIDECAR_UID),
    );
    let proxy = pair.mesh.proxy(&host).arg("--join-token-file").arg(file);
    let process = proxy.start(name, &pair.mesh.scratch);
    let line = eventually("the audit says so", PATIENCE, || {
        let log = pair.mesh.control_plane.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("sidewind::audit") && line.contains("refused"));
        lines
            .map(str::to_owned)
            .find(|line| line.contains(&host.address.to_string()))
    });
    assert!(line.contains(reason), "{line}");
    // Not a line of it holds the token, here or there.
    assert!(token.is_empty() || !(pair.mesh.control_plane.log() + &process.log()).contains(token));
    let admin = ([127, 0, 0, 1], 15020).into();
    let ready = eventually("the sidecar says why it is not ready", PATIENCE, || {
        let ready = sidewind_tests::http::Request::get(admin, "/ready")
            .try_send(&host.place)
            .ok()?;
        Some(ready).filter(|ready| ready.text().contains("token"))
    });
    assert_eq!(ready.status, 503, "{}", ready.text());
}

#[test]
fn a_used_an_expired_and_a_made_up_join_token_are_refused_and_the_audit_says_so() {
    let mut pair = Pair::start();
    let wanted = JoinToken {
        spiffe_id: "spiffe://sidewind.local/ns/airflow/sa/second".into(),
        ..JoinToken::default()
    };
    let used = pair.mesh.control_plane.token(&wanted);
    let host = pair.mesh.outsider("first");
    let secret = pair.mesh.scratch.write_secret(
        "first.token",
        &used,
        Some(sidewind_tests::mesh::SIDECAR_UID),
    );
    let first = pair
        .mesh
        .proxy(&host)
        .arg("--join-token-file")
        .arg(secret)
        .start("first", &pair.mesh.scratch);
    eventually("the first use is granted", PATIENCE, || {
        let listed = pair.mesh.control_plane.workloads().to_string();
        listed.contains("sa/second").then_some(())
    });
    refused_token(&mut pair, "used", &used, "token-used");
    drop(first);

    let expired = pair.mesh.control_plane.token(&JoinToken {
        expires: Some("1s".into()),
        ..wanted
    });
    let issued = tokio::time::Instant::now();
    eventually("the token expires", PATIENCE, || {
        (issued.elapsed() > Duration::from_millis(2500)).then_some(())
    });
    refused_token(&mut pair, "expired", &expired, "token-expired");
    refused_token(
        &mut pair,
        "invented",
        "swj_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "token-unknown",
    );
}

#[test]
fn a_token_for_an_identity_of_another_trust_domain_is_not_made() {
    let mesh = Mesh::plan().start();
    for id in [
        "spiffe://elsewhere.example/ns/a/sa/b",
        "spiffe://sidewind.local",
        "spiffe://sidewind.local/sidewind/control-plane",
        "orders-api",
    ] {
        let wanted = JoinToken {
            spiffe_id: id.into(),
            ..JoinToken::default()
        };
        mesh.control_plane.try_token(&wanted).failure();
    }
}

#[test]
fn a_sidecar_waits_for_its_trust_bundle_and_its_control_plane() {
    let mut pair = Pair::start();
    let host = pair.mesh.outsider("early");
    let uid = Some(sidewind_tests::mesh::SIDECAR_UID);
    let wanted = JoinToken {
        spiffe_id: "spiffe://sidewind.local/ns/airflow/sa/early".into(),
        ..JoinToken::default()
    };
    let token =
        pair.mesh
            .scratch
            .write_secret("early.token", pair.mesh.control_plane.token(&wanted), uid);
    let bundle = pair.mesh.scratch.join("early-bundle.pem");
    let control_plane = format!("https://{}:15010", pair.mesh.control_plane.host().address);
    let proxy = host
        .place
        .program(&pair.mesh.binaries().proxy)
        .user(uid)
        .args(["--control-plane", &control_plane]);
    let proxy = proxy
        .arg("--trust-bundle")
        .arg(&bundle)
        .arg("--join-token-file")
        .arg(token);
    let _process = proxy.start("early", &pair.mesh.scratch);
    let ready = || {
        sidewind_tests::http::Request::get(([127, 0, 0, 1], 15020).into(), "/ready")
            .try_send(&host.place)
    };
    let waiting = eventually("it answers", PATIENCE, || ready().ok());
    assert_eq!(waiting.status, 503, "{}", waiting.text());
    throughout("it is not ready", Duration::from_secs(1), || {
        ready().is_ok_and(|reply| reply.status == 503)
    });
    pair.mesh
        .scratch
        .write("early-bundle.pem", pair.mesh.control_plane.trust_bundle());
    eventually("it is ready", PATIENCE, || {
        ready().ok().filter(|reply| reply.status == 200)
    });
}

#[test]
fn a_sidecar_sends_its_token_to_nobody_but_its_own_control_plane() {
    use sidewind_tests::authority::TestAuthority;
    let mut pair = Pair::start();
    let host = pair.mesh.outsider("careful");
    let uid = Some(sidewind_tests::mesh::SIDECAR_UID);
    let wanted = JoinToken {
        spiffe_id: "spiffe://sidewind.local/ns/airflow/sa/careful".into(),
        ..JoinToken::default()
    };
    let token = pair.mesh.scratch.write_secret(
        "careful.token",
        pair.mesh.control_plane.token(&wanted),
        uid,
    );
    // It trusts another root than the control plane's.
    let bundle = pair
        .mesh
        .scratch
        .write("other-bundle.pem", TestAuthority::new().root_pem());
    let control_plane = format!("https://{}:15010", pair.mesh.control_plane.host().address);
    let proxy = host
        .place
        .program(&pair.mesh.binaries().proxy)
        .user(uid)
        .args(["--control-plane", &control_plane]);
    let proxy = proxy
        .arg("--trust-bundle")
        .arg(&bundle)
        .arg("--join-token-file")
        .arg(token);
    let process = proxy.start("careful", &pair.mesh.scratch);
    let admin = ([127, 0, 0, 1], 15020).into();
    eventually("it says why it is not ready", PATIENCE, || {
        let reply = sidewind_tests::http::Request::get(admin, "/ready")
            .try_send(&host.place)
            .ok()?;
        Some(reply).filter(|reply| {
            reply.status == 503 && reply.text().to_lowercase().contains("certificate")
        })
    });
    assert!(
        !pair
            .mesh
            .control_plane
            .log()
            .contains("sa/careful\",\"registration"),
        "{}",
        process.log()
    );
    assert!(
        !pair
            .mesh
            .control_plane
            .workloads()
            .to_string()
            .contains("careful")
    );
}

#[test]
fn the_command_line_shows_the_authority_and_the_workloads() {
    let pair = Pair::start();
    let of_state = |arguments: &[&str]| {
        let command = pair
            .mesh
            .control_plane
            .command()
            .args(arguments)
            .arg("--state-dir");
        command
            .arg(pair.mesh.control_plane.state())
            .finish()
            .success()
    };
    let shown = of_state(&["ca", "show"]);
    assert!(
        shown.contains("sidewind.local") && shown.contains("root"),
        "{shown}"
    );
    assert_eq!(
        of_state(&["ca", "show", "--pem"]),
        pair.mesh.control_plane.trust_bundle()
    );
    let table = of_state(&["workloads"]);
    assert!(
        table.contains(API_ID) && table.contains(&pair.api.address.to_string()),
        "{table}"
    );
}
