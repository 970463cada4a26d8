//! The authorities through restarts, rotations and time, which passes as the tests say.

mod commands;
mod given;
mod jumps;
mod life;
mod replicas;

use super::upstream::files::{Paths, UpstreamFiles};
use super::*;
use crate::registry::acknowledgements::Laggard;
use crate::store::AuthorityState;
use crate::store::tests::empty_store;
use AuthorityRole::{Root, Signing};
use AuthorityState::{Active, Old, Prepared, Revoked};
use sidewind_identity::PrivateKey;
use sidewind_identity::authority::{RootAuthority, generate_root};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

async fn open(
    store: &Store,
    source: RootSource,
    now: SystemTime,
) -> Result<CertificateAuthority, AuthorityStartError> {
    CertificateAuthority::open(store.clone(), trust_domain(), source, now).await
}

async fn generated(store: &Store, now: SystemTime) -> CertificateAuthority {
    open(store, RootSource::Generated, now).await.unwrap()
}

/// Proxies, as a test has them.
#[derive(Debug, Default)]
struct Proxies {
    /// Name and acknowledged sequence of each, and the authority that signed its certificate.
    proxies: Mutex<Vec<(&'static str, u64, String)>>,
}

impl Proxies {
    fn set(&self, name: &'static str, sequence: u64, issuer: &str) {
        let mut proxies = self.proxies.lock().unwrap();
        proxies.retain(|(known, ..)| *known != name);
        proxies.push((name, sequence, issuer.to_owned()));
    }

    fn which(&self, wanted: impl Fn(u64, &String) -> bool) -> Vec<Laggard> {
        let proxies = self.proxies.lock().unwrap();
        let wanted = proxies
            .iter()
            .filter(|(_, sequence, issuer)| wanted(*sequence, issuer));
        let laggard = |(name, ..): &(&'static str, u64, String)| Laggard {
            spiffe_id: SpiffeId::parse("spiffe://example.org/w").unwrap(),
            workload_name: (*name).to_owned(),
        };
        wanted.map(laggard).collect()
    }
}

impl Followers for Proxies {
    fn laggards(&self, _: &TrustDomain, sequence: u64) -> Vec<Laggard> {
        self.which(|has, _| has < sequence)
    }

    fn using(&self, key_ids: &[String]) -> Vec<Laggard> {
        self.which(|_, issuer| key_ids.contains(issuer))
    }
}

impl CertificateAuthority {
    /// What is done at a moment, in short.
    async fn steps(
        &self,
        now: SystemTime,
        proxies: &Proxies,
    ) -> Vec<(AuthorityRole, &'static str)> {
        let maintenance = self.maintain(now, proxies).await.unwrap();
        if let Some(refused) = maintenance.refused {
            panic!("{refused}");
        }
        maintenance
            .events
            .iter()
            .map(|event| (event.role, event.step))
            .collect()
    }

    /// Roles and states, in the order in which they came.
    fn states(&self) -> Vec<(AuthorityRole, AuthorityState)> {
        self.slots()
            .iter()
            .map(|slot| (slot.role, slot.state))
            .collect()
    }

    fn key_id(&self, role: AuthorityRole, state: AuthorityState) -> String {
        let slots = self.slots();
        let mut all = slots.all(role, state);
        all.next().expect("no such authority").key_id.clone()
    }

    /// Signs an SVID for somebody, and gives the chain's authorities.
    fn svid(&self, ttl: Duration, now: SystemTime) -> sidewind_identity::Svid {
        let id = SpiffeId::parse("spiffe://example.org/w").unwrap();
        let key = PrivateKey::generate().unwrap();
        let issued = self.sign(&key.csr_der().unwrap(), &id, ttl, now).unwrap();
        sidewind_identity::Svid::new(issued.chain, key).unwrap()
    }
}

/// Certificate and key in files, as an operator, or a Secret's mount, has them.
#[derive(Debug)]
struct Files {
    directory: tempfile::TempDir,
    with_bundle: bool,
}

impl Files {
    fn of_root(root: &RootAuthority) -> Self {
        let files = Self {
            directory: tempfile::tempdir().unwrap(),
            with_bundle: false,
        };
        files.write_root(root);
        files
    }

    fn of_signing(signing: &SigningAuthority, roots: &[&RootAuthority]) -> Self {
        let files = Self {
            directory: tempfile::tempdir().unwrap(),
            with_bundle: true,
        };
        files.write_signing(signing, roots);
        files
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(self.path(name), private).unwrap();
    }

    fn write_root(&self, root: &RootAuthority) {
        self.write("tls.crt", &root.certificate_pem());
        self.write("tls.key", &root.key().to_pkcs8_pem());
    }

    fn write_signing(&self, signing: &SigningAuthority, roots: &[&RootAuthority]) {
        self.write("tls.crt", &signing.chain_pem());
        self.write("tls.key", &signing.key().to_pkcs8_pem());
        let roots: String = roots.iter().map(|root| root.certificate_pem()).collect();
        self.write("ca.crt", &roots);
    }

    fn paths(&self) -> Paths {
        Paths {
            certificate: self.path("tls.crt"),
            key: self.path("tls.key"),
            upstream_bundle: self.with_bundle.then(|| self.path("ca.crt")),
        }
    }

    fn source(&self) -> RootSource {
        RootSource::Upstream(Arc::new(UpstreamFiles::new(self.paths())))
    }
}

fn root(lifetime: Duration, now: SystemTime) -> RootAuthority {
    generate_root(&trust_domain(), lifetime, now).unwrap()
}

#[tokio::test]
async fn a_lifetime_that_cannot_be_promised_is_refused_with_the_arithmetic() {
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let files = Files::of_root(&root(3 * DAY, now));
    let authority = open(&store, files.source(), now).await.unwrap();
    authority.check_lifetime(DAY / 3).unwrap();
    let error = authority.check_lifetime(DAY).unwrap_err().to_string();
    assert!(error.contains("of 1d cannot be honoured"), "{error}");
    assert!(error.contains("/ 6 = 11h59m"), "{error}");
}

#[test]
fn the_control_planes_own_path_is_reserved_and_its_neighbours_are_not() {
    let reserved =
        |path: &str| is_reserved(&SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap());
    assert!(reserved("/sidewind") && reserved("/sidewind/control-plane"));
    assert!(!reserved("/sidewinder") && !reserved("/ns/sidewind/sa/x"));
}

#[tokio::test]
async fn dns_names_are_those_of_the_template_and_never_of_the_request() {
    use rcgen::{CertificateParams, KeyPair};
    let (_directory, store) = empty_store().await;
    let now = SystemTime::now();
    let authority = generated(&store, now).await;
    let key = KeyPair::generate().unwrap();
    let asked = CertificateParams::new(vec!["admin.svc".to_owned()]).unwrap();
    let csr = asked.serialize_request(&key).unwrap();
    let id = SpiffeId::parse("spiffe://example.org/w").unwrap();
    let names = |issued: &Issued| {
        let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        names
            .value
            .general_names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let issued = authority.sign(csr.der(), &id, HOUR, now).unwrap();
    assert_eq!(names(&issued), ["URI(spiffe://example.org/w)"]);
    let template = SvidTemplate {
        id,
        ttl: HOUR,
        dns_names: vec!["orders.data.svc".to_owned()],
    };
    let issued = authority.sign_template(csr.der(), &template, now).unwrap();
    let expected = ["URI(spiffe://example.org/w)", "DNSName(orders.data.svc)"];
    assert_eq!(names(&issued), expected);
}
