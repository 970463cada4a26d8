//! What each living certificate may be renewed to, in memory; and in the store, where other replicas issue too.

use crate::store::{Registration, RegistrationId, Store, StoreError};
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
    /// the store that it shares with others.
    ///
    /// # Errors
    /// When the store is away and nothing is known here of the peer's identity.
    pub async fn find(&self, peer: &PeerIdentity) -> Result<Option<Arc<Registration>>, StoreError> {
        if let Some(registration) = self.noted(peer) {
            return Ok(Some(registration));
        }
        let Some(store) = &self.shared else {
            return Ok(self.newest(peer));
        };
        let lookup = store.registration_of(&peer.serial_hex, &peer.id);
        let found = tokio::time::timeout(LOOKUP_TIME, lookup).await;
        match found.unwrap_or(Err(StoreError::Slow)) {
            Ok(Some(registration)) => {
                self.restore(registration, peer.serial_hex.clone(), peer.not_after);
                Ok(self.noted(peer))
            }
            Ok(None) => Ok(self.newest(peer)),
            // Renewals need no store as long as anything is known of who asks.
            Err(error) => match self.newest(peer) {
                Some(registration) => Ok(Some(registration)),
                None => Err(error),
            },
        }
    }

    /// Takes a certificate of a registration that the store knows.
    pub fn restore(&self, registration: Registration, serial: String, not_after: SystemTime) {
        let mut tables = self.tables();
        let known = tables
            .by_spiffe_id
            .get(&registration.spiffe_id)
            .and_then(|identity| identity.living.get(&registration.id))
            .map(|living| Arc::clone(&living.registration));
        let registration = known.unwrap_or_else(|| Arc::new(registration));
        tables.add(registration, serial, not_after);
    }

    /// Notes a new certificate of a registration.
    pub fn add(&self, registration: Arc<Registration>, serial: String, not_after: SystemTime) {
        self.tables().add(registration, serial, not_after);
    }

    /// The registration that a peer's certificate came from, as far as it is known here. A certificate that
    /// is not noted, because the store was restored from an older copy, goes by the newest registration of its
    /// identity.
    #[must_use]
    pub fn of(&self, peer: &PeerIdentity) -> Option<Arc<Registration>> {
        self.noted(peer).or_else(|| self.newest(peer))
    }

    fn noted(&self, peer: &PeerIdentity) -> Option<Arc<Registration>> {
        let tables = self.tables();
        let certificate = tables.by_serial.get(&peer.serial_hex)?;
        let registration = &certificate.registration;
        (registration.spiffe_id == peer.id).then(|| Arc::clone(registration))
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

impl Tables {
    fn add(&mut self, registration: Arc<Registration>, serial: String, not_after: SystemTime) {
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
            certificate_sha256: [0; 32],
            subject: String::new(),
        }
    }

    #[test]
    fn a_certificate_goes_by_the_registration_that_it_came_from() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        registrations.add(Arc::new(registration("a.x")), "01".to_owned(), now);
        registrations.add(Arc::new(registration("b.x")), "02".to_owned(), now);
        let service = |serial, id| {
            let found = registrations.of(&peer(serial, id))?;
            Some(found.services[0].to_string())
        };
        assert_eq!(service("01", "spiffe://example.org/x").unwrap(), "a.x");
        assert_eq!(service("02", "spiffe://example.org/x").unwrap(), "b.x");
        assert_eq!(service("03", "spiffe://example.org/x").unwrap(), "b.x");
        assert_eq!(service("01", "spiffe://example.org/y"), None);
    }

    #[test]
    fn what_can_attest_again_is_forgotten_sooner_and_leaves_the_others() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        registrations.add(Arc::new(registration("a.x")), "01".to_owned(), now);
        let of_pod = Registration {
            document: Some("data/x".to_owned()),
            ..registration("b.x")
        };
        registrations.add(Arc::new(of_pod), "02".to_owned(), now);
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
        registrations.add(Arc::new(first), "01".to_owned(), now);
        registrations.add(Arc::new(changed), "02".to_owned(), now);
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
        registrations.add(Arc::new(registration("a.x")), "01".to_owned(), now);
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
