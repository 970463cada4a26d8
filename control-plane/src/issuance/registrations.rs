//! What each living certificate may be renewed to, in memory; and in the store, where other replicas issue too.

use crate::store::{Registration, RegistrationId, Store, StoreError, SvidRecord};
use sidewind_identity::{PeerIdentity, SpiffeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Registrations, found by the certificates that came of them.
#[derive(Debug, Default)]
pub struct Registrations {
    tables: Mutex<Tables>,
    shared: Option<Store>,
}

#[derive(Debug, Default)]
struct Tables {
    by_serial: HashMap<String, Certificate>,
    by_spiffe_id: HashMap<SpiffeId, Identity>,
}

/// One identity may have thousands of registrations, one for each pod that ran with it.
#[derive(Debug)]
struct Identity {
    living: HashMap<RegistrationId, Living>,
    newest: Arc<Registration>,
}

#[derive(Debug)]
struct Certificate {
    registration: Arc<Registration>,
    not_after: SystemTime,
    /// Of its DER form, where it is known.
    sha256: Option<[u8; 32]>,
}

/// What is noted of a peer's certificate.
#[derive(Debug)]
enum Noted {
    /// Nothing.
    Nothing,
    /// Another certificate has its serial number.
    Another,
    /// A certificate with its serial number; nobody can say whether it is the same.
    Perhaps(Arc<Registration>),
    /// It was signed here.
    Surely(Arc<Registration>),
}

#[derive(Debug)]
struct Living {
    registration: Arc<Registration>,
    /// End of its last certificate.
    not_after: SystemTime,
}

/// A clock that jumped forward must not forget what is still in use.
const GRACE: Duration = Duration::from_secs(7 * 86_400);
/// What can attest again needs less of that, and comes in larger numbers.
const SHORT_GRACE: Duration = Duration::from_secs(3600);

fn grace(registration: &Registration) -> Duration {
    if registration.document.is_some() {
        SHORT_GRACE
    } else {
        GRACE
    }
}

/// How long the store may take to say what a certificate came from.
const LOOKUP_TIME: Duration = Duration::from_secs(3);

impl Registrations {
    /// Registrations of which other replicas may have more, in a store that they share.
    #[must_use]
    pub fn of_store(store: &Store) -> Self {
        Self {
            tables: Mutex::default(),
            shared: store.is_shared().then(|| store.clone()),
        }
    }

    /// The registration that a peer's certificate came from. What this replica does not know is looked up in
    /// the store that it shares with others. A certificate that is not on record, because its record was lost, goes
    /// by the newest registration of its name, if the name alone is to be believed.
    ///
    /// # Errors
    /// When the store is away and nothing is known here of the peer's identity.
    pub async fn find(
        &self,
        peer: &PeerIdentity,
        by_name: bool,
    ) -> Result<Option<Arc<Registration>>, StoreError> {
        let noted = self.noted(peer);
        let Some(store) = self.shared.as_ref().filter(|_| noted.is_nothing()) else {
            return Ok(self.judge(noted, peer, by_name));
        };
        let newest = || self.newest(peer).filter(|_| by_name);
        let lookup = store.registration_of(&peer.serial_hex, &peer.id);
        let found = tokio::time::timeout(LOOKUP_TIME, lookup).await;
        match found.unwrap_or(Err(StoreError::Slow)) {
            Ok(Some((registration, svid))) => {
                self.restore(registration, svid);
                Ok(self.judge(self.noted(peer), peer, by_name))
            }
            Ok(None) if !by_name => Ok(None),
            Ok(None) => {
                // Another replica may have registered it.
                let lookup = store.newest_registration(&peer.id);
                let found = tokio::time::timeout(LOOKUP_TIME, lookup).await;
                match found.unwrap_or(Err(StoreError::Slow)) {
                    Ok(Some(registration)) => Ok(Some(self.known(registration))),
                    Ok(None) => Ok(newest()),
                    Err(error) => newest().map(Some).ok_or(error),
                }
            }
            // Renewals need no store as long as anything is known of who asks.
            Err(error) => newest().map(Some).ok_or(error),
        }
    }

    /// Takes a certificate of a registration that the store knows.
    pub fn restore(&self, registration: Registration, svid: SvidRecord) {
        let registration = self.known(registration);
        self.tables().add(registration, svid);
    }

    /// A registration, as it is known here if it is.
    fn known(&self, registration: Registration) -> Arc<Registration> {
        let tables = self.tables();
        let identity = tables.by_spiffe_id.get(&registration.spiffe_id);
        let living = identity.and_then(|identity| identity.living.get(&registration.id));
        let known = living.map(|living| Arc::clone(&living.registration));
        known.unwrap_or_else(|| Arc::new(registration))
    }

    /// Notes a new certificate of a registration.
    pub fn add(&self, registration: Arc<Registration>, svid: SvidRecord) {
        self.tables().add(registration, svid);
    }

    /// Whether a peer's certificate is one that was signed here, as far as it is known without the store.
    #[must_use]
    pub fn is_on_record(&self, peer: &PeerIdentity) -> bool {
        matches!(self.noted(peer), Noted::Surely(_))
    }

    /// The registration that a peer's certificate came from, as far as it is known here; else the newest of its name.
    #[must_use]
    pub fn of(&self, peer: &PeerIdentity) -> Option<Arc<Registration>> {
        self.judge(self.noted(peer), peer, true)
    }

    fn judge(&self, noted: Noted, peer: &PeerIdentity, by_name: bool) -> Option<Arc<Registration>> {
        match noted {
            Noted::Surely(registration) => Some(registration),
            // Whoever has the authority's key has copied the serial number.
            Noted::Another => None,
            Noted::Perhaps(registration) => Some(registration).filter(|_| by_name),
            Noted::Nothing => self.newest(peer).filter(|_| by_name),
        }
    }

    fn noted(&self, peer: &PeerIdentity) -> Noted {
        let tables = self.tables();
        let Some(certificate) = tables.by_serial.get(&peer.serial_hex) else {
            return Noted::Nothing;
        };
        let registration = &certificate.registration;
        match certificate.sha256 {
            _ if registration.spiffe_id != peer.id => Noted::Another,
            None => Noted::Perhaps(Arc::clone(registration)),
            Some(sha256) if sha256 == peer.certificate_sha256 => {
                Noted::Surely(Arc::clone(registration))
            }
            Some(_) => Noted::Another,
        }
    }

    fn newest(&self, peer: &PeerIdentity) -> Option<Arc<Registration>> {
        let tables = self.tables();
        let identity = tables.by_spiffe_id.get(&peer.id)?;
        Some(Arc::clone(&identity.newest))
    }

    /// Every registration.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Registration>> {
        let tables = self.tables();
        let identities = tables.by_spiffe_id.values();
        identities
            .flat_map(|identity| identity.living.values())
            .map(|living| Arc::clone(&living.registration))
            .collect()
    }

    /// Forgets certificates that have ended, and registrations with no other.
    pub fn prune(&self, now: SystemTime) {
        let mut tables = self.tables();
        let tables = &mut *tables;
        tables
            .by_serial
            .retain(|_, known| known.not_after + grace(&known.registration) >= now);
        tables.by_spiffe_id.retain(|_, identity| {
            let living = &mut identity.living;
            living.retain(|_, known| known.not_after + grace(&known.registration) >= now);
            let newest = living.values().max_by_key(|known| known.not_after);
            if !living.contains_key(&identity.newest.id)
                && let Some(newest) = newest
            {
                identity.newest = Arc::clone(&newest.registration);
            }
            !living.is_empty()
        });
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

impl Tables {
    fn add(&mut self, registration: Arc<Registration>, svid: SvidRecord) {
        let SvidRecord {
            serial,
            not_after,
            sha256,
        } = svid;
        let identity = self
            .by_spiffe_id
            .entry(registration.spiffe_id.clone())
            .or_insert_with(|| Identity {
                living: HashMap::new(),
                newest: Arc::clone(&registration),
            });
        match identity.living.get_mut(&registration.id) {
            Some(known) => {
                known.not_after = known.not_after.max(not_after);
                // Documents may have changed since.
                known.registration = Arc::clone(&registration);
                if identity.newest.id == registration.id {
                    identity.newest = Arc::clone(&registration);
                }
            }
            None => {
                let living = Living {
                    registration: Arc::clone(&registration),
                    not_after,
                };
                identity.living.insert(registration.id.clone(), living);
                identity.newest = Arc::clone(&registration);
            }
        }
        let certificate = Certificate {
            registration,
            not_after,
            sha256,
        };
        self.by_serial.insert(serial, certificate);
    }
}

/// A registration's name, for logs and audit.
#[must_use]
pub fn name(registration: &Registration) -> String {
    RegistrationId::as_str(&registration.id).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{digest_of, each_store, svid, token_registration};

    fn registration(service: &str) -> Registration {
        let id = SpiffeId::parse("spiffe://example.org/x").unwrap();
        Registration {
            services: vec![service.parse().unwrap()],
            ..Registration::new(id, "join-token")
        }
    }

    fn peer(serial: &str, id: &str) -> PeerIdentity {
        PeerIdentity {
            id: SpiffeId::parse(id).unwrap(),
            not_after: SystemTime::now(),
            serial_hex: serial.to_owned(),
            issuer_key_id: String::new(),
            certificate_sha256: digest_of(serial),
            subject: String::new(),
        }
    }

    #[test]
    fn a_certificate_goes_by_the_registration_that_it_came_from() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        registrations.add(Arc::new(registration("a.x")), svid("01", now));
        registrations.add(Arc::new(registration("b.x")), svid("02", now));
        let service = |serial, id| {
            let found = registrations.of(&peer(serial, id))?;
            Some(found.services[0].to_string())
        };
        assert_eq!(service("01", "spiffe://example.org/x").unwrap(), "a.x");
        assert_eq!(service("02", "spiffe://example.org/x").unwrap(), "b.x");
        assert_eq!(service("03", "spiffe://example.org/x").unwrap(), "b.x");
        assert_eq!(service("01", "spiffe://example.org/y"), None);
    }

    #[tokio::test]
    async fn what_is_not_on_record_is_believed_where_its_name_alone_is() {
        let now = SystemTime::now();
        for store in each_store().await {
            // What another replica, or this one before it was started, has signed.
            let first = token_registration(&store, 1, "01").await;
            let statement = "UPDATE svids SET sha256 = NULL WHERE serial = '03'";
            token_registration(&store, 3, "03").await;
            store.execute(statement).await;
            let registrations = Registrations::of_store(&store);
            for (registration, svid) in store.living_registrations(now).await.unwrap() {
                if !store.is_shared() {
                    registrations.restore(registration, svid);
                }
            }
            let id = first.spiffe_id.as_str();
            let mut copied = peer("01", id);
            copied.certificate_sha256 = [9; 32];
            // Whether it is believed on its name, and without.
            let table = [
                ("on record", peer("01", id), true, true),
                ("its serial number copied", copied, false, false),
                ("of an earlier version", peer("03", id), true, false),
                ("not on record", peer("05", id), true, false),
                (
                    "nobody's",
                    peer("05", "spiffe://example.org/y"),
                    false,
                    false,
                ),
            ];
            for (name, peer, by_name, without) in table {
                for (by_name, expected) in [(true, by_name), (false, without)] {
                    let found = registrations.find(&peer, by_name).await.unwrap();
                    assert_eq!(found.is_some(), expected, "{name}, {by_name}");
                }
            }
        }
    }

    #[test]
    fn what_can_attest_again_is_forgotten_sooner_and_leaves_the_others() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        registrations.add(Arc::new(registration("a.x")), svid("01", now));
        let of_pod = Registration {
            document: Some("data/x".to_owned()),
            ..registration("b.x")
        };
        registrations.add(Arc::new(of_pod), svid("02", now));
        let service = |serial| {
            let found = registrations.of(&peer(serial, "spiffe://example.org/x"));
            found.unwrap().services[0].to_string()
        };
        assert_eq!(service("03"), "b.x");
        registrations.prune(now + SHORT_GRACE + Duration::from_secs(1));
        assert_eq!(registrations.all().len(), 1);
        assert_eq!(service("03"), "a.x");
    }

    #[test]
    fn a_registration_that_changed_is_the_one_that_is_gone_by() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        let first = registration("a.x");
        let changed = Registration {
            services: vec!["b.x".parse().unwrap()],
            ..first.clone()
        };
        registrations.add(Arc::new(first), svid("01", now));
        registrations.add(Arc::new(changed), svid("02", now));
        assert_eq!(registrations.all().len(), 1);
        for (serial, expected) in [("01", "a.x"), ("02", "b.x"), ("03", "b.x")] {
            let found = registrations.of(&peer(serial, "spiffe://example.org/x"));
            assert_eq!(found.unwrap().services[0].as_str(), expected, "{serial}");
        }
    }

    #[test]
    fn ended_registrations_are_forgotten_a_week_later() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        registrations.add(Arc::new(registration("a.x")), svid("01", now));
        registrations.prune(now + GRACE);
        assert_eq!(registrations.all().len(), 1);
        registrations.prune(now + GRACE + Duration::from_secs(1));
        assert!(registrations.all().is_empty());
        assert_eq!(
            registrations.of(&peer("01", "spiffe://example.org/x")),
            None
        );
    }
}
