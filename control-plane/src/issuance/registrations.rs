//! What each living certificate may be renewed to, in memory.

use crate::store::{Registration, RegistrationId};
use sidewind_identity::{PeerIdentity, SpiffeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Registrations, found by the certificates that came of them.
#[derive(Debug, Default)]
pub struct Registrations {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    by_serial: HashMap<String, Certificate>,
    by_spiffe_id: HashMap<SpiffeId, Vec<Living>>,
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

impl Registrations {
    /// Takes a certificate of a registration that the store knows.
    pub fn restore(&self, registration: Registration, serial: String, not_after: SystemTime) {
        let mut tables = self.tables();
        let known = tables
            .by_spiffe_id
            .get(&registration.spiffe_id)
            .and_then(|living| living.iter().find(|l| l.registration.id == registration.id))
            .map(|living| Arc::clone(&living.registration));
        let registration = known.unwrap_or_else(|| Arc::new(registration));
        tables.add(registration, serial, not_after);
    }

    /// Notes a new certificate of a registration.
    pub fn add(&self, registration: Arc<Registration>, serial: String, not_after: SystemTime) {
        self.tables().add(registration, serial, not_after);
    }

    /// The registration that a peer's certificate came from. A certificate that is not noted, because the
    /// store was restored from an older copy, goes by the newest registration of its identity.
    #[must_use]
    pub fn of(&self, peer: &PeerIdentity) -> Option<Arc<Registration>> {
        let tables = self.tables();
        let noted = tables
            .by_serial
            .get(&peer.serial_hex)
            .filter(|certificate| certificate.registration.spiffe_id == peer.id)
            .map(|certificate| Arc::clone(&certificate.registration));
        noted.or_else(|| {
            let living = tables.by_spiffe_id.get(&peer.id)?;
            living.last().map(|living| Arc::clone(&living.registration))
        })
    }

    /// Every registration.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Registration>> {
        let tables = self.tables();
        let living = tables.by_spiffe_id.values().flatten();
        living
            .map(|living| Arc::clone(&living.registration))
            .collect()
    }

    /// Forgets certificates that have ended, and registrations with no other.
    pub fn prune(&self, now: SystemTime) {
        let mut tables = self.tables();
        let tables = &mut *tables;
        tables
            .by_serial
            .retain(|_, certificate| certificate.not_after + GRACE >= now);
        tables.by_spiffe_id.retain(|_, living| {
            living.retain(|living| living.not_after + GRACE >= now);
            !living.is_empty()
        });
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn add(&mut self, registration: Arc<Registration>, serial: String, not_after: SystemTime) {
        let living = self
            .by_spiffe_id
            .entry(registration.spiffe_id.clone())
            .or_default();
        match living
            .iter_mut()
            .find(|l| l.registration.id == registration.id)
        {
            Some(known) => known.not_after = known.not_after.max(not_after),
            None => living.push(Living {
                registration: Arc::clone(&registration),
                not_after,
            }),
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
        Registration {
            id: RegistrationId::random(),
            spiffe_id: SpiffeId::parse("spiffe://example.org/x").unwrap(),
            attestor: "join-token",
            svid_ttl: Duration::from_secs(60),
            services: vec![service.parse().unwrap()],
        }
    }

    fn peer(serial: &str, id: &str) -> PeerIdentity {
        PeerIdentity {
            id: SpiffeId::parse(id).unwrap(),
            not_after: SystemTime::now(),
            serial_hex: serial.to_owned(),
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
