//! What a proxy that starts anew knows of the trust bundle that it had.

use std::path::Path;

use super::*;
use crate::control::bundle_cache::FILE;

/// A proxy in its directory; `token` is good at the control plane.
fn start(world: &World, dir: &Path, kept: bool, token: &str, urls: &[String]) -> Proxy {
    std::fs::write(dir.join("token"), token).unwrap();
    let files = tempfile::tempdir().unwrap();
    let roots = dir.join("roots.pem");
    if roots.exists() {
        std::fs::copy(roots, files.path().join("roots.pem")).unwrap();
    }
    let mut arguments = vec![format!("--join-token-file={}/token", dir.display())];
    if kept {
        arguments.push(format!("--state-dir={}", dir.display()));
    }
    Proxy::start_proving(world, files, urls, &arguments, &[])
}

/// Waits until what is kept says something.
async fn kept(dir: &Path, text: &str) -> String {
    for _ in 0..10_000 {
        let content = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
        if content.contains(text) {
            return content;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{text:?} was not kept");
}

/// A directory whose proxy has lived through the rotation from the first root to the second.
async fn after_a_rotation(world: &World) -> (tempfile::TempDir, Arc<Authority>) {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = world.control_plane().await;
    let second = Arc::new(Authority::new());
    let roots = fake.authority.root.certificate_pem();
    std::fs::write(dir.path().join("roots.pem"), roots).unwrap();
    let proxy = start(world, dir.path(), true, "token", &[fake.url()]);
    let (.., answers) = fake.next_stream().await;
    let mut bundle = fake.authority.bundle(2);
    bundle.authorities.extend(second.bundle(2).authorities);
    let bundles = vec![bundle];
    send(
        &answers,
        Message::TrustBundles(v1::TrustBundles { bundles }),
    )
    .await;
    let content = kept(dir.path(), "\"spiffe_sequence\":2").await;
    assert!(!content.contains("PRIVATE KEY"), "{content}");
    fake.kill().await;
    drop(proxy);
    (dir, second)
}

async fn control_plane_of(world: &World, authority: &Arc<Authority>) -> Fake {
    let fake = world
        .control_plane_as(CONTROL_PLANE, authority.clone())
        .await;
    fake.behave(|behaviour| behaviour.bundle_sequence = 2);
    fake.add_token("second");
    fake
}

#[tokio::test(start_paused = true)]
async fn a_restart_after_the_root_was_rotated_finds_the_control_plane_by_what_was_kept() {
    let world = World::new();
    let (dir, second) = after_a_rotation(&world).await;
    let fake = control_plane_of(&world, &second).await;
    // The file has the first root alone.
    let mut without = start(&world, dir.path(), false, "second", &[fake.url()]);
    let status = without.status(|status| status.svid_failures > 2).await;
    let error = status.identity_error.unwrap();
    assert!(error.starts_with("TLS handshake with"), "{error}");
    drop(without);
    let mut with = start(&world, dir.path(), true, "second", &[fake.url()]);
    assert_eq!(with.identity(1).await.id.as_str(), WORKLOAD);
}

#[tokio::test(start_paused = true)]
async fn while_the_control_plane_is_away_what_was_kept_brings_no_identity() {
    let world = World::new();
    let (dir, second) = after_a_rotation(&world).await;
    let mut fake = control_plane_of(&world, &second).await;
    fake.kill().await;
    std::fs::remove_file(dir.path().join("roots.pem")).unwrap();
    let mut proxy = start(&world, dir.path(), true, "second", &[fake.url()]);
    let status = proxy.status(|status| status.svid_failures > 2).await;
    assert!(status.identity.is_none() && !status.policy_received);
    // But it waits for the control plane and not for the file.
    let error = status.identity_error.unwrap();
    assert!(error.starts_with("cannot connect to"), "{error}");
    fake.restart().await;
    fake.add_token("second");
    proxy.identity(1).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_bundle_than_what_was_kept_is_not_taken() {
    let world = World::new();
    let (dir, second) = after_a_rotation(&world).await;
    let mut fake = control_plane_of(&world, &second).await;
    fake.behave(|behaviour| behaviour.bundle_sequence = 1);
    let mut proxy = start(&world, dir.path(), true, "second", &[fake.url()]);
    proxy.identity(1).await;
    let (sequence, _) = fake.next_acknowledgement().await;
    assert_eq!(sequence, 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_file_of_the_operators_counts_for_more_than_what_was_kept() {
    let world = World::new();
    let (dir, _) = after_a_rotation(&world).await;
    let third = Arc::new(Authority::new());
    std::fs::write(dir.path().join("roots.pem"), third.root.certificate_pem()).unwrap();
    let fake = control_plane_of(&world, &third).await;
    fake.behave(|behaviour| behaviour.bundle_sequence = 1);
    let mut proxy = start(&world, dir.path(), true, "second", &[fake.url()]);
    proxy.identity(1).await;
    kept(dir.path(), "\"spiffe_sequence\":1").await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_believed_is_as_if_nothing_had_been_kept() {
    let world = World::new();
    let (dir, second) = after_a_rotation(&world).await;
    let fake = control_plane_of(&world, &second).await;
    let content = kept(dir.path(), "keys").await;
    for damaged in [content.replace("x509-svid", "x509-svie"), String::new()] {
        std::fs::write(dir.path().join(FILE), damaged).unwrap();
        let mut proxy = start(&world, dir.path(), true, "second", &[fake.url()]);
        let status = proxy.status(|status| status.svid_failures > 0).await;
        let error = status.identity_error.unwrap();
        assert!(error.starts_with("TLS handshake with"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_written_costs_nothing_else() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let fake = world.control_plane().await;
    let roots = fake.authority.root.certificate_pem();
    std::fs::write(dir.path().join("roots.pem"), roots).unwrap();
    // A directory where the file is to be: renaming over it fails, for root too.
    std::fs::create_dir(dir.path().join(FILE)).unwrap();
    let mut proxy = start(&world, dir.path(), true, "token", &[fake.url()]);
    proxy.identity(3).await;
}
