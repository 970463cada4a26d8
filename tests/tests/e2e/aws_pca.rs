//! AWS Private CA signs the signing certificates: moto's API, which checks who asks and what they may.

use sidewind_tests::aws::PrivateCa;
use sidewind_tests::binaries::Binaries;
use sidewind_tests::mesh::{Mesh, MeshPlan};
use sidewind_tests::place::Place;
use sidewind_tests::scratch::Scratch;
use sidewind_tests::wait::{PATIENCE, eventually};
use sidewind_tests::workloads;

const TEMPLATE: &str = "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1";

/// A mesh whose control plane asks the authority.
fn plan(authority: &PrivateCa) -> MeshPlan {
    Mesh::plan()
        .flag("--aws-pca", &authority.arn)
        .flag("--aws-pca-endpoint", &authority.endpoint)
        .flag("--aws-pca-ca-file", authority.ca_file.to_string_lossy())
        .flag("--svid-ttl", "60s")
        .env("AWS_ACCESS_KEY_ID", &authority.access_key.0)
        .env("AWS_SECRET_ACCESS_KEY", &authority.access_key.1)
}

#[test]
fn workloads_trust_one_another_by_an_authority_of_aws_which_signs_each_signing_certificate() {
    let files = Scratch::new();
    let mut authority = PrivateCa::start(&files);
    let mut mesh = plan(&authority).start_on_host_loopback();
    assert_eq!(mesh.control_plane.trust_bundle(), authority.root);
    assert_eq!(authority.signed(), [TEMPLATE]);

    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data:80=8080/http").start();
    let _server = workloads::api(&api, 8080, &mesh.scratch);
    let task = mesh.workload("airflow", "task").start();
    let proxy = format!("http://{}", task.at(15001));
    let call = || {
        let curl = task.curl(&["-p", "http://orders-api.data/orders"]);
        curl.env("http_proxy", &proxy).finish().success()
    };
    assert!(call().contains("anemometer"));

    let run = |arguments: &[&str]| {
        let command = mesh.control_plane.command().args(arguments);
        let command = command.arg("--state-dir").arg(mesh.control_plane.state());
        command.finish().success()
    };
    run(&["ca", "rotate"]);
    assert_eq!(authority.signed(), [TEMPLATE, TEMPLATE]);
    run(&["ca", "rotate"]);
    assert!(call().contains("anemometer"));

    // What was signed lasts: AWS that is away stops nothing but the next signing certificate.
    authority.kill();
    let renewed = || {
        let metrics = mesh.control_plane.metrics();
        metrics.sum("sidewind_svids_issued_total", &[("call", "renew")])
    };
    let before = renewed();
    eventually("both have renewed", PATIENCE * 2, || {
        (renewed() >= before + 2.0).then_some(())
    });
    assert!(call().contains("anemometer"));
    let rotate = mesh.control_plane.command().args(["ca", "rotate"]);
    let rotate = rotate.arg("--state-dir").arg(mesh.control_plane.state());
    let refused = rotate.finish();
    assert!(
        !refused.status.success() && refused.err().contains("no connection"),
        "{}",
        refused.err()
    );
}

#[test]
fn who_may_not_have_the_authority_sign_is_told_so_by_aws_and_serves_nobody() {
    let files = Scratch::new();
    let authority = PrivateCa::start(&files);
    let flags = [
        ("--state-dir", files.join("state")),
        ("--aws-pca-ca-file", authority.ca_file.clone()),
    ];
    let serve = Place::Host.program(Binaries::find(&files).sidewind);
    let mut serve = serve
        .arg("serve")
        .args(["--aws-pca", &authority.arn])
        .args(["--aws-pca-endpoint", &authority.endpoint])
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .env("AWS_ACCESS_KEY_ID", &authority.access_key.0)
        .env("AWS_SECRET_ACCESS_KEY", "wrong");
    for (flag, path) in flags {
        serve = serve.arg(flag).arg(path);
    }
    let ended = serve.finish();
    assert!(!ended.status.success());
    let said = ended.err();
    assert!(said.contains("403"), "{said}");
    assert!(!said.contains("wrong"), "{said}");
    assert!(authority.signed().is_empty());
}
