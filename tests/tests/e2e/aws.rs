//! Attestation by the role of an AWS task: a real proxy, moto's STS that checks signatures, and requests that a proxy
//! would never send.

use sidewind_api::Reason;
use sidewind_api::v1;
use sidewind_api::v1::attest_request::Evidence;
use sidewind_tests::attesting::{Attesting, Refused};
use sidewind_tests::aws::Aws;
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::wait::{PATIENCE, eventually};

const ORDERS: &str = "spiffe://sidewind.local/ns/data/sa/orders";

/// The role `orders` of the one account is a workload.
const REGISTRATION: &str = r#"
apiVersion: sidewind.dev/v1alpha1
kind: Registration
metadata: { name: orders, namespace: data }
spec:
  selectors: { awsIam: { roleArn: "arn:aws:iam::123456789012:role/orders" } }
  spiffeId: spiffe://sidewind.local/ns/data/sa/orders
  services: [orders.data]
"#;

fn start() -> (Aws, Mesh) {
    let mut mesh = Mesh::plan().start_on_loopback();
    let aws = Aws::start(&mut mesh);
    let documents = format!("{}---{REGISTRATION}", aws.attestor_config());
    mesh.control_plane.write_config("aws.yaml", &documents);
    eventually("the control plane has the attestor", PATIENCE, || {
        mesh.control_plane
            .log()
            .contains(r#""attestors":3"#)
            .then_some(())
    });
    (aws, mesh)
}

/// A task with a role, as ECS starts one.
fn task(mesh: &mut Mesh, name: &str, role: &str, waits: bool) -> Workload {
    let credentials = format!("/v2/credentials/{role}");
    let plan = mesh
        .workload("data", name)
        .serves("orders.data=8080/http")
        .attested_by(&["--attestor", "aws-iam"])
        .env("AWS_REGION", "us-east-1")
        .env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", &credentials);
    if waits {
        plan.start()
    } else {
        plan.without_waiting().start()
    }
}

#[test]
fn a_task_with_a_role_joins_the_mesh_and_one_with_another_is_told_why_not() {
    let (aws, mut mesh) = start();
    let _task = task(&mut mesh, "orders", "orders", true);
    let listed = mesh.control_plane.workloads().to_string();
    assert!(listed.contains(ORDERS), "{listed}");
    let log = mesh.control_plane.log();
    assert!(log.contains(r#""session":"task-1""#), "{log}");

    let stranger = task(&mut mesh, "stranger", "stranger", false);
    eventually("the stranger is told its selectors", PATIENCE, || {
        let log = stranger.sidecar.log();
        let told = log.contains("aws-iam:role-arn=arn:aws:iam::123456789012:role/stranger");
        (told && log.contains("no registration")).then_some(())
    });
    assert!(!stranger.sidecar.is_ready());

    // A role that was deleted and made again is another role.
    aws.make_again("orders");
    let heir = task(&mut mesh, "heir", "orders", false);
    eventually("the heir of the role's name is refused", PATIENCE, || {
        heir.sidecar
            .log()
            .contains("another one than at first")
            .then_some(())
    });
    for sidecar in [&stranger.sidecar, &heir.sidecar] {
        let log = sidecar.log();
        for secret in ["x-amz-security-token", "Signature=", "ASIA", "Credential="] {
            assert!(!log.contains(secret), "{secret} in {log}");
        }
    }
    let log = mesh.control_plane.log();
    for secret in ["Signature=", "ASIA", "Credential="] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

/// One try with a challenge of its own.
fn attest(
    aws: &Aws,
    mesh: &Mesh,
    role: &str,
    region: &str,
    change: impl FnOnce(&mut v1::AwsIam),
) -> Result<v1::SvidResponse, Refused> {
    let mut attesting = Attesting::connect(mesh);
    let challenge = attesting.challenge();
    let key = key_sha256(&attesting);
    let mut signed = aws.sign(role, region, &challenge, &key);
    change(&mut signed);
    attesting.attest(Evidence::AwsIam(signed))
}

fn key_sha256(attesting: &Attesting) -> String {
    let public_key = attesting.key.public_key_der();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &public_key);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn value<'a>(signed: &'a mut v1::AwsIam, name: &str) -> &'a mut String {
    let mut headers = signed.headers.iter_mut();
    let header = headers.find(|header| header.name.eq_ignore_ascii_case(name));
    &mut header.unwrap_or_else(|| panic!("no header {name}")).value
}

#[track_caller]
fn refused(answer: Result<v1::SvidResponse, Refused>, reason: Reason, says: &str) {
    let (found, message) = answer.expect_err(says);
    assert_eq!(found, Some(reason), "{message}");
    assert!(message.contains(says), "{message}");
}

#[test]
fn requests_to_sts_that_are_forged_replayed_or_led_astray_are_refused() {
    use Reason::{ChallengeUnknown, EvidenceRefused, EvidenceUnverifiable};
    let (aws, mesh) = start();
    let answer = attest(&aws, &mesh, "orders", "us-east-1", |_| {});
    assert_eq!(
        answer.map(|answer| answer.certificate_chain.is_empty()),
        Ok(false)
    );

    // Signed with a wrong key, altered after it was signed, another's token.
    let answer = attest(&aws, &mesh, "forged", "us-east-1", |_| {});
    refused(answer, EvidenceRefused, "SignatureDoesNotMatch");
    let answer = attest(&aws, &mesh, "orders", "us-east-1", |signed| {
        let authorization = value(signed, "authorization");
        let last = if authorization.ends_with('0') {
            "1"
        } else {
            "0"
        };
        authorization.replace_range(authorization.len() - 1.., last);
    });
    refused(answer, EvidenceRefused, "SignatureDoesNotMatch");
    let answer = attest(&aws, &mesh, "orders", "us-east-1", |signed| {
        value(signed, "x-amz-security-token").push('x');
    });
    refused(answer, EvidenceRefused, "STS refused");

    // Of an account that is not taken; and answers that are not STS's own.
    let answer = attest(&aws, &mesh, "elsewhere", "us-east-1", |_| {});
    refused(answer, EvidenceRefused, "account 999999999999");
    let answer = attest(&aws, &mesh, "orders", "us-west-1", |_| {});
    refused(answer, EvidenceUnverifiable, "redirects");
    let answer = attest(&aws, &mesh, "orders", "us-west-2", |_| {});
    refused(answer, EvidenceUnverifiable, "text/xml");
    let answer = attest(&aws, &mesh, "orders", "eu-west-1", |_| {});
    refused(answer, EvidenceRefused, "region eu-west-1");
    let answer = attest(&aws, &mesh, "orders", "us-east-1", |signed| {
        let (name, value) = ("accept".to_owned(), "application/json".to_owned());
        signed.headers.push(v1::HttpHeader { name, value });
    });
    refused(answer, EvidenceRefused, "accept is not taken");

    // The same again, for another key, and to whom it was not signed for.
    let mut attesting = Attesting::connect(&mesh);
    let (challenge, key) = (attesting.challenge(), key_sha256(&attesting));
    let signed = aws.sign("orders", "us-east-1", &challenge, &key);
    let mut thief = Attesting::connect(&mesh);
    let stolen = thief.attest(Evidence::AwsIam(signed.clone()));
    refused(stolen, EvidenceRefused, "x-sidewind-key");
    assert!(attesting.attest(Evidence::AwsIam(signed.clone())).is_ok());
    let replayed = attesting.attest(Evidence::AwsIam(signed));
    refused(replayed, ChallengeUnknown, "has been used");
    let mut elsewhere = attesting.challenge();
    elsewhere.server_id = "sidewind://other".to_owned();
    let signed = aws.sign("orders", "us-east-1", &elsewhere, &key);
    let answer = attesting.attest(Evidence::AwsIam(signed));
    refused(answer, EvidenceRefused, "another control plane");
}
