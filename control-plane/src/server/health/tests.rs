use super::*;
use crate::server::{ShutdownTrigger, shutdown};
use crate::store::StateDir;
use sidewind_identity::TrustBundle;
use sidewind_identity::authority::{RootAuthority, SigningAuthority, SvidTemplate, generate_root};
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const DAY: Duration = Duration::from_secs(86_400);

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn root() -> RootAuthority {
    generate_root(&domain(), 365 * DAY, SystemTime::now() - DAY).unwrap()
}

/// A signer whose parts can be broken.
#[derive(Debug)]
struct Fake {
    domain: TrustDomain,
    signing: StdMutex<SigningAuthority>,
    bundles: StdMutex<Arc<TrustBundles>>,
    /// What it signs in place of what it is asked for.
    names: StdMutex<Option<SpiffeId>>,
    signed: AtomicUsize,
}

fn bundle_of(root: &RootAuthority) -> Arc<TrustBundles> {
    Arc::new(
        TrustBundle::from_pem(domain(), &root.certificate_pem())
            .unwrap()
            .into(),
    )
}

impl Fake {
    fn new(root: &RootAuthority) -> Arc<Self> {
        let begin = SystemTime::now() - DAY;
        Arc::new(Self {
            domain: domain(),
            signing: StdMutex::new(root.issue_intermediate(30 * DAY, begin).unwrap()),
            bundles: StdMutex::new(bundle_of(root)),
            names: StdMutex::new(None),
            signed: AtomicUsize::new(0),
        })
    }
}

impl Signer for Fake {
    fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        self.signed.fetch_add(1, Ordering::Relaxed);
        let template = SvidTemplate {
            id: self.names.lock().unwrap().clone().unwrap_or(id.clone()),
            ttl: MIN_SVID_TTL,
            dns_names: Vec::new(),
        };
        self.signing.lock().unwrap().sign(csr, &template, now)
    }

    fn bundles(&self) -> Arc<TrustBundles> {
        Arc::clone(&self.bundles.lock().unwrap())
    }
}

struct Story {
    signer: Arc<Fake>,
    root: RootAuthority,
    store: Store,
    health: Health,
    metrics: Arc<Metrics>,
    trigger: ShutdownTrigger,
    _directory: tempfile::TempDir,
}

impl Story {
    async fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("state")).unwrap();
        let store = Store::open(&state).await.unwrap();
        let root = root();
        let signer = Fake::new(&root);
        let metrics = Arc::new(Metrics::new());
        let (trigger, shutdown) = shutdown();
        let health = Health::new(
            Arc::clone(&signer) as Arc<dyn Signer>,
            store.clone(),
            Arc::clone(&metrics),
            shutdown,
        );
        Self {
            signer,
            root,
            store,
            health,
            metrics,
            trigger,
            _directory: directory,
        }
    }

    /// The document of a check that is made anew.
    async fn document(&self) -> (bool, serde_json::Value) {
        *self.health.last.lock().await = None;
        let (ready, document) = self.health.document().await;
        (ready, serde_json::from_str(&document).unwrap())
    }

    #[track_caller]
    fn fails(found: &(bool, serde_json::Value), expected: &str) {
        let (ready, document) = found;
        assert!(!ready, "{document}");
        let signing = &document["components"]["signing"];
        assert_eq!(signing["ready"], false);
        let detail = signing["detail"].as_str().unwrap();
        assert!(detail.contains(expected), "{expected}: {detail}");
    }
}

#[tokio::test]
async fn a_control_plane_that_signs_and_has_its_store_is_ready() {
    let story = Story::begin().await;
    let (ready, document) = story.document().await;
    assert!(ready);
    let expected = serde_json::json!({
        "ready": true, "draining": false,
        "components": {"signing": {"ready": true}, "store": {"ready": true}},
    });
    assert_eq!(document, expected);
    let metrics = story.metrics.encode();
    assert!(
        metrics.contains("sidewind_healthy{check=\"signing\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn certificates_that_the_bundle_refuses_make_it_unready_with_the_reason() {
    let story = Story::begin().await;
    *story.signer.bundles.lock().unwrap() = bundle_of(&root());
    let refused = "refused by the trust bundle";
    Story::fails(&story.document().await, refused);
    *story.signer.bundles.lock().unwrap() =
        Arc::new(TrustBundle::from_der(domain(), 1, vec![]).unwrap().into());
    Story::fails(&story.document().await, refused);
    *story.signer.bundles.lock().unwrap() = bundle_of(&story.root);
    assert!(story.document().await.0, "and it heals");
}

#[tokio::test]
async fn a_signer_that_has_ended_or_signs_another_name_makes_it_unready_with_the_reason() {
    let story = Story::begin().await;
    let other = SpiffeId::parse("spiffe://example.org/other").unwrap();
    *story.signer.names.lock().unwrap() = Some(other);
    Story::fails(&story.document().await, "is for spiffe://example.org/other");
    *story.signer.names.lock().unwrap() = None;

    let begin = SystemTime::now() - 40 * DAY;
    let old = generate_root(&domain(), 365 * DAY, begin).unwrap();
    *story.signer.signing.lock().unwrap() = old.issue_intermediate(30 * DAY, begin).unwrap();
    *story.signer.bundles.lock().unwrap() = bundle_of(&old);
    Story::fails(&story.document().await, "the authority does not sign");
    let metrics = story.metrics.encode();
    assert!(
        metrics.contains("sidewind_healthy{check=\"signing\"} 0"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_store_that_is_away_is_told_and_renewals_go_on() {
    let story = Story::begin().await;
    story.store.close().await;
    let (ready, document) = story.document().await;
    assert!(ready, "{document}");
    let store = &document["components"]["store"];
    assert_eq!(store["ready"], false);
    assert!(
        store["detail"]
            .as_str()
            .unwrap()
            .contains("attestations are refused")
    );
}

#[tokio::test]
async fn many_probes_are_one_check() {
    let story = Story::begin().await;
    for _ in 0..100 {
        assert!(story.health.document().await.0);
    }
    assert_eq!(story.signer.signed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_control_plane_that_stops_is_not_ready_at_once() {
    let story = Story::begin().await;
    assert!(story.health.document().await.0);
    story.trigger.trigger();
    let (ready, document) = story.health.document().await;
    assert!(
        !ready && document.contains("\"draining\":true"),
        "{document}"
    );
}
