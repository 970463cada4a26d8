//! SVIDs of Airflow tasks over the real API.

use crate::attestation::{attest, oidc, renew};
use crate::signer::{Signer, jwks, now};
use crate::support::{ControlPlane, hello, refusal, svid_of, within};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sidewind_api::v1::ban::Subject;
use sidewind_api::v1::identity_service_client::IdentityServiceClient;
use sidewind_api::{Reason, v1};
use sidewind_identity::{PrivateKey, Svid, Usage, VerifyOptions, verify_chain};
use std::sync::Arc;
use std::time::SystemTime;
use tonic::Status;

const WORKER: &str = "spiffe://sidewind.local/ns/airflow/sa/worker";
const ISSUER: &str = "https://ci.example";
const TI: &str = "01998d6c-0000-7000-8000-000000000001";
const AUDIENCE: &str = "urn:airflow.apache.org:task";

/// A control plane whose workers attest by tokens of an issuer.
struct Given {
    control_plane: ControlPlane,
    ci: Signer,
    airflow: Signer,
}

impl Given {
    /// `tasks` is what the registration says of tasks.
    async fn new(tasks: &str) -> Self {
        Self::with_airflow(tasks, Signer::es256("airflow")).await
    }

    async fn with_airflow(tasks: &str, airflow: Signer) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let ci = Signer::es256("ci");
        let file = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(file("ci.json"), jwks(&[&ci])).unwrap();
        std::fs::write(file("airflow.json"), jwks(&[&airflow])).unwrap();
        std::fs::write(file("secret"), format!("{SECRET}\n")).unwrap();
        let resources = format!(
            "apiVersion: sidewind.dev/v1alpha1\nkind: AttestorConfig\nmetadata: {{ name: a }}\nspec:\n  oidc: [{{ issuer: \"{ISSUER}\", jwksFile: {} }}]\n  airflow:\n  - {{ name: public, jwksFile: {} }}\n  - {{ name: shared, secretFile: {} }}\n  - {{ name: away, secretFile: /nonexistent/secret }}\n---\napiVersion: sidewind.dev/v1alpha1\nkind: Registration\nmetadata: {{ name: worker }}\nspec:\n  selectors: {{ oidc: {{ issuer: \"{ISSUER}\" }} }}\n  spiffeId: \"spiffe://sidewind.local/ns/airflow/sa/{{oidc.subject}}\"\n  dnsNames: [worker.airflow]\n  services: [worker.airflow]\n{tasks}\n",
            file("ci.json"),
            file("airflow.json"),
            file("secret"),
        );
        let config = directory.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("mesh.yaml"), resources).unwrap();
        let control_plane =
            ControlPlane::start_in(directory, |settings| settings.config = Some(config)).await;
        Self {
            control_plane,
            ci,
            airflow,
        }
    }

    async fn worker(&self) -> Svid {
        let claims = json!({
            "iss": ISSUER, "aud": "sidewind", "sub": "worker", "iat": now(), "exp": now() + 300,
        });
        let token = self.ci.token(&claims);
        attest(&self.control_plane, oidc(&token)).await.unwrap()
    }

    async fn issue(
        &self,
        worker: &Svid,
        dag_id: &str,
        task_id: &str,
        airflow: Option<v1::AirflowTaskToken>,
    ) -> Result<Svid, Status> {
        let key = PrivateKey::generate().unwrap();
        let request = v1::IssueTaskSvidRequest {
            csr: key.csr_der().unwrap(),
            dag_id: dag_id.to_owned(),
            task_id: task_id.to_owned(),
            airflow,
            instance: Some(v1::TaskInstance {
                run_id: "manual__1".to_owned(),
                triggered_by: "alice".to_owned(),
                ..v1::TaskInstance::default()
            }),
            version: "test".to_owned(),
        };
        let client = &self.control_plane.client;
        let channel = client.channel(client.tls(worker)).await.unwrap();
        let mut service = IdentityServiceClient::new(channel);
        Ok(svid_of(
            service.issue_task_svid(request).await?.into_inner(),
            key,
        ))
    }

    async fn ban(&self, id: &str) {
        let ban = v1::Ban {
            subject: Some(Subject::SpiffeId(id.to_owned())),
            reason: "a test".to_owned(),
            since_unix: 0,
        };
        let request = v1::SetBanRequest {
            ban: Some(ban),
            lift: false,
        };
        let mut admin = self.control_plane.client.admin_service().await;
        within(admin.set_ban(request)).await.unwrap();
    }
}

const SECRET: &str = "0123456789abcdef+airflow";

/// A token as Airflow signs it with a secret.
fn with_secret(claims: &Value) -> String {
    use aws_lc_rs::hmac;
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"alg": "HS512", "kid": "not-used", "typ": "JWT"});
    let signed = format!("{}.{}", part(&header), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA512, SECRET.as_bytes());
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

fn claims(subject: &str) -> Value {
    json!({
        "sub": subject, "aud": AUDIENCE, "scope": "execution", "iat": now(), "nbf": now(), "exp": now() + 600,
    })
}

fn word(ti_id: &str, token: String) -> Option<v1::AirflowTaskToken> {
    Some(v1::AirflowTaskToken {
        ti_id: ti_id.to_owned(),
        token,
    })
}

fn seconds(svid: &Svid) -> u64 {
    let left = svid.not_after().duration_since(SystemTime::now());
    left.unwrap().as_secs()
}

#[tokio::test]
async fn a_worker_gets_short_lived_svids_of_its_tasks_that_the_trust_bundle_verifies() {
    let given = Given::new("  taskIdentities: true").await;
    let worker = given.worker().await;
    for (dag, task, path) in [
        ("payroll", "charge", "dag/payroll/task/charge"),
        ("..", "group.a", "dag/x--../task/group.a"),
        ("gehälter", "a/b", "dag/x--geh-c3-a4lter/task/x--a-2fb"),
    ] {
        let svid = given.issue(&worker, dag, task, None).await.unwrap();
        assert_eq!(svid.id().as_str(), format!("{WORKER}/{path}"));
        assert!((240..=300).contains(&seconds(&svid)), "{}", seconds(&svid));
        let verified = verify_chain(
            svid.chain(),
            &given.control_plane.client.bundles,
            Usage::Client,
            SystemTime::now(),
            &VerifyOptions::default(),
        );
        assert_eq!(verified.unwrap(), *svid.id());
    }
    given
        .control_plane
        .metric("sidewind_svids_issued_total{call=\"task-svid\"} 3")
        .await;
    let (pool, name) = (
        given.control_plane.database().await,
        format!("{WORKER}/dag/payroll/task/charge"),
    );
    let mut rows = 0;
    // The audit is written behind the answer.
    while rows == 0 {
        rows = sqlx::query_scalar::<_, i64>(
            "SELECT COUNT(*) FROM audit WHERE event = 'task-svid' AND outcome = 'granted'
             AND spiffe_id = $1 AND serial IS NOT NULL AND detail = $2",
        )
        .bind(&name)
        .bind(format!(
            "for {WORKER}; as the worker says, run_id=\"manual__1\" triggered_by=\"alice\""
        ))
        .fetch_one(&pool)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn who_may_have_no_tasks_gets_none() {
    for (tasks, dag, task, says) in [
        ("", "d", "t", "taskIdentities"),
        ("  taskIdentities: false", "d", "t", "taskIdentities"),
        (
            "  taskIdentities: true",
            "",
            "t",
            "name of the DAG is empty",
        ),
        (
            "  taskIdentities: true",
            "d",
            "",
            "name of the task is empty",
        ),
        (
            "  taskIdentities: true",
            &"x".repeat(1001),
            "t",
            "1001 bytes",
        ),
        ("  taskIdentities: true", &"é".repeat(400), "t", "2048"),
    ] {
        let given = Given::new(tasks).await;
        let worker = given.worker().await;
        let (reason, message) = refusal(given.issue(&worker, dag, task, None).await);
        assert_eq!(reason, Reason::TaskRefused, "{message}");
        assert!(message.contains(says), "{message}");
        given
            .control_plane
            .metric("sidewind_svid_refusals_total{call=\"task-svid\",reason=\"task-refused\"} 1")
            .await;
    }
    // A join token says nothing of tasks.
    let control_plane = ControlPlane::start().await;
    let orders = control_plane.client.svid(WORKER, &[]).await;
    let given = Given {
        control_plane,
        ci: Signer::es256("ci"),
        airflow: Signer::es256("airflow"),
    };
    let (reason, _) = refusal(given.issue(&orders, "d", "t", None).await);
    assert_eq!(reason, Reason::TaskRefused);
}

#[tokio::test]
async fn an_svid_of_a_task_is_good_for_nothing_at_the_control_plane() {
    let given = Given::new("  taskIdentities: true").await;
    let worker = given.worker().await;
    let task = given
        .issue(&worker, "payroll", "charge", None)
        .await
        .unwrap();
    let client = &given.control_plane.client;
    let (reason, _) = refusal(renew(&given.control_plane, &task).await);
    assert_eq!(reason, Reason::NotRegistered);
    let (reason, _) = refusal(given.issue(&task, "payroll", "other", None).await);
    assert_eq!(reason, Reason::NotRegistered);
    let (reason, _) = refusal(client.stream(&task, hello(Vec::new())).await.map(|_| ()));
    assert_eq!(reason, Reason::NotRegistered);
    let channel = client.channel(client.tls(&task)).await.unwrap();
    let request = v1::MintJwtSvidRequest {
        audience: vec!["a".to_owned()],
    };
    let mut service = IdentityServiceClient::new(channel);
    let (reason, _) = refusal(service.mint_jwt_svid(request).await);
    assert_eq!(reason, Reason::NotRegistered);
}

#[tokio::test]
async fn a_ban_of_the_worker_bans_its_tasks_and_one_of_a_task_that_task_alone() {
    let given = Given::new("  taskIdentities: true").await;
    let worker = given.worker().await;
    given
        .ban(&format!("{WORKER}/dag/payroll/task/charge"))
        .await;
    let (reason, _) = refusal(given.issue(&worker, "payroll", "charge", None).await);
    assert_eq!(reason, Reason::Banned);
    given
        .issue(&worker, "payroll", "check", None)
        .await
        .unwrap();
    given.ban(WORKER).await;
    let (reason, _) = refusal(given.issue(&worker, "payroll", "check", None).await);
    assert_eq!(reason, Reason::Banned);
}

#[tokio::test]
async fn a_registration_says_how_long_svids_of_its_tasks_live() {
    let given = Given::new("  svidTtl: 10m\n  taskIdentities: { svidTtl: 1m }").await;
    let worker = given.worker().await;
    let task = given.issue(&worker, "d", "t", None).await.unwrap();
    assert!(seconds(&task) <= 60);
    // Never longer than the worker's own.
    let given = Given::new("  svidTtl: 2m\n  taskIdentities: { svidTtl: 1h }").await;
    let worker = given.worker().await;
    let task = given.issue(&worker, "d", "t", None).await.unwrap();
    assert!(seconds(&task) <= 120);
    assert!(task.not_after() <= worker.not_after());
}

#[tokio::test]
async fn airflows_own_word_is_demanded_where_the_registration_says_so() {
    for (name, airflow) in [
        ("public", Signer::es256("airflow")),
        ("public", Signer::ed25519("airflow")),
        ("shared", Signer::es256("airflow")),
    ] {
        let tasks = format!("  taskIdentities: {{ airflow: {name} }}");
        let given = Given::with_airflow(&tasks, airflow).await;
        let worker = given.worker().await;
        let token = |claims: &Value| match name {
            "public" => given.airflow.token(claims),
            _ => with_secret(claims),
        };
        let with = |member: &str, value: Value| {
            let mut claims = claims(TI);
            claims[member] = value;
            token(&claims)
        };
        let good = || word(TI, token(&claims(TI)));
        let granted = given.issue(&worker, "payroll", "charge", good()).await;
        granted.unwrap();
        given
            .issue(&worker, "payroll", "charge", good())
            .await
            .unwrap();
        let (reason, message) = refusal(given.issue(&worker, "payroll", "charge", None).await);
        assert_eq!(reason, Reason::EvidenceMissing, "{message}");
        let other = format!("{}2", &TI[..35]);
        for (evidence, says) in [
            (word(&other, token(&claims(TI))), "another task instance"),
            (word("", token(&claims(TI))), "task instance is none"),
            (
                word(&"x".repeat(65), token(&claims(TI))),
                "task instance is none",
            ),
            (word(TI, "garbage".to_owned()), "three parts"),
            (
                word(TI, with("aud", "urn:airflow.apache.org:api".into())),
                "'aud'",
            ),
            (word(TI, with("exp", (now() - 60).into())), "expired"),
            (word(TI, with("scope", "admin".into())), "scope"),
            (word(TI, Signer::es256("airflow").token(&claims(TI))), ""),
            (word(TI, Signer::ed25519("airflow").token(&claims(TI))), ""),
        ] {
            let refused = given.issue(&worker, "payroll", "charge", evidence).await;
            let (reason, message) = refusal(refused);
            assert_eq!(reason, Reason::EvidenceRefused, "{name}: {message}");
            assert!(message.contains(says), "{name}: {message}");
        }
        // The instance is that task's from its first use on.
        let (reason, message) = refusal(given.issue(&worker, "reports", "charge", good()).await);
        assert_eq!(reason, Reason::EvidenceRefused);
        assert!(message.contains("another task before"), "{message}");
        let fresh = word(&other, token(&claims(&other)));
        given
            .issue(&worker, "reports", "charge", fresh)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn without_its_secret_airflows_word_cannot_be_checked_and_nothing_is_given() {
    let given = Given::new("  taskIdentities: { airflow: away }").await;
    let worker = given.worker().await;
    let token = word(TI, with_secret(&claims(TI)));
    let (reason, message) = refusal(given.issue(&worker, "d", "t", token).await);
    assert_eq!(reason, Reason::EvidenceUnverifiable);
    assert!(!message.contains("nonexistent"), "{message}");
}

#[tokio::test]
async fn answers_say_what_the_control_planes_clock_is() {
    let given = Given::new("").await;
    let worker = given.worker().await;
    let key = PrivateKey::generate().unwrap();
    let client = &given.control_plane.client;
    let renewed = client.renew(&worker, key.csr_der().unwrap()).await.unwrap();
    let mut stream = client.stream(&worker, hello(Vec::new())).await.unwrap();
    let greeted = stream.hello().await.now_unix_ms;
    for said in [renewed.now_unix_ms, greeted] {
        let ahead = sidewind_api::clock::seconds_ahead(said, SystemTime::now()).unwrap();
        assert!((-30.0..=0.1).contains(&ahead), "{ahead}");
    }
}

#[tokio::test]
async fn a_worker_is_told_at_attestation_and_renewal_what_its_tasks_may_have() {
    for (tasks, told) in [
        ("", None),
        ("  taskIdentities: true", Some(false)),
        ("  taskIdentities: { airflow: shared }", Some(true)),
    ] {
        let given = Given::new(tasks).await;
        let worker = given.worker().await;
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr_der().unwrap();
        let renewed = given.control_plane.client.renew(&worker, csr).await;
        let terms = renewed.unwrap().task_identities;
        assert_eq!(
            terms.map(|terms| terms.needs_airflow_token),
            told,
            "{tasks}"
        );
    }
}
