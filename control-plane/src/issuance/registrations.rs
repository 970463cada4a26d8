//! What each living certificate may be renewed to, in memory; and in the store, where other replicas issue too.

use crate::store::{
    Registration, RegistrationId, Store, StoreError, SvidRecord, from_unix_seconds, unix_seconds,
};
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
    by_serial: HashMap<Serial, Certificate>,
    living: HashMap<RegistrationId, Living>,
    /// One identity may have thousands of registrations, one for each pod that ran with it. This is the last that came.
    newest: HashMap<SpiffeId, Arc<Registration>>,
}

/// A serial number: at most 20 bytes (RFC 5280 section 4.1.2.2), with zeros before it. There is one for each renewal, so
/// these are small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Serial([u8; 20]);

impl Serial {
    /// None for what is no serial number in hexadecimal, or too large to be one that was given here.
    fn parse(hex: &str) -> Option<Self> {
        let digits = hex.as_bytes();
        let mut number = [0; 20];
        if digits.len() > 2 * number.len() {
            return None;
        }
        let mut bytes = number.iter_mut().rev();
        for pair in digits.rchunks(2) {
            let mut value = 0;
            for digit in pair {
                value = value << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
            }
            *bytes.next()? = value;
        }
        Some(Self(number))
    }
}

#[derive(Debug)]
struct Certificate {
    registration: Arc<Registration>,
    /// Its end, in seconds since 1970.
    not_after: i64,
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
/// What can attest again needs less of that, and comes in larger numbers; and a certificate that has ended renews nothing.
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
        let living = self.tables();
        let living = living.living.get(&registration.id);
        let known = living.map(|living| Arc::clone(&living.registration));
        known.unwrap_or_else(|| Arc::new(registration))
    }

    /// Notes a new certificate of a registration. Gives back the registration to go on with: one that is known already
    /// is not kept twice.
    pub fn add(&self, registration: Arc<Registration>, svid: SvidRecord) -> Arc<Registration> {
        self.tables().add(registration, svid)
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
        let serial = Serial::parse(&peer.serial_hex);
        let Some(certificate) = serial.and_then(|serial| tables.by_serial.get(&serial)) else {
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
        self.tables().newest.get(&peer.id).map(Arc::clone)
    }

    /// Every registration.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Registration>> {
        let tables = self.tables();
        let living = tables.living.values();
        living.map(|it| Arc::clone(&it.registration)).collect()
    }

    /// How many registrations there are.
    #[must_use]
    pub fn number(&self) -> usize {
        self.tables().living.len()
    }

    /// Forgets certificates that have ended, and registrations with no other.
    pub fn prune(&self, now: SystemTime) {
        let mut tables = self.tables();
        let Tables {
            by_serial,
            living,
            newest,
        } = &mut *tables;
        by_serial.retain(|_, known| from_unix_seconds(known.not_after) + SHORT_GRACE >= now);
        living.retain(|_, known| known.not_after + grace(&known.registration) >= now);
        newest.retain(|_, known| living.contains_key(&known.id));
        // Those whose newest is gone go by the one that is good for longest.
        let mut ends: HashMap<SpiffeId, SystemTime> = HashMap::new();
        for known in living.values() {
            let id = &known.registration.spiffe_id;
            match ends.get(id) {
                None if newest.contains_key(id) => continue,
                Some(end) if *end >= known.not_after => continue,
                _ => {}
            }
            ends.insert(id.clone(), known.not_after);
            newest.insert(id.clone(), Arc::clone(&known.registration));
        }
        if by_serial.capacity() > 4 * by_serial.len() {
            by_serial.shrink_to_fit();
        }
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
    /// Notes a certificate; gives back its registration as it is shared by all that are equal.
    fn add(&mut self, registration: Arc<Registration>, svid: SvidRecord) -> Arc<Registration> {
        let SvidRecord {
            serial,
            not_after,
            sha256,
        } = svid;
        let shared = match self.living.get_mut(&registration.id) {
            Some(known) => {
                known.not_after = known.not_after.max(not_after);
                if *known.registration != *registration {
                    // Documents have changed since.
                    known.registration = registration;
                }
                Arc::clone(&known.registration)
            }
            None => {
                let living = Living {
                    registration: Arc::clone(&registration),
                    not_after,
                };
                self.living.insert(registration.id.clone(), living);
                self.newest
                    .insert(registration.spiffe_id.clone(), Arc::clone(&registration));
                registration
            }
        };
        if let Some(newest) = self.newest.get_mut(&shared.spiffe_id)
            && newest.id == shared.id
        {
            newest.clone_from(&shared);
        }
        if let Some(serial) = Serial::parse(&serial) {
            let certificate = Certificate {
                registration: Arc::clone(&shared),
                not_after: unix_seconds(not_after),
                sha256,
            };
            self.by_serial.insert(serial, certificate);
        }
        shared
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
    fn renewals_keep_one_registration_and_only_certificates_that_live() {
        let registrations = Registrations::default();
        let now = SystemTime::now();
        let first = registrations.add(Arc::new(registration("a.x")), svid("01", now));
        for serial in 2..100 {
            let equal = Arc::new(Registration::clone(&first));
            let kept = registrations.add(equal, svid(&format!("{serial:02x}"), now));
            assert!(Arc::ptr_eq(&kept, &first), "{serial}");
        }
        assert_eq!(registrations.tables().by_serial.len(), 99);
        registrations.prune(now + SHORT_GRACE + Duration::from_secs(1));
        let tables = registrations.tables();
        assert_eq!((tables.by_serial.len(), tables.living.len()), (0, 1));
    }

    #[test]
    fn serial_numbers_are_told_apart_by_their_value() {
        let equal = [("0b", "b"), ("0B", "0b"), ("", "00"), ("000102", "0102")];
        for (one, other) in equal {
            assert_eq!(Serial::parse(one), Serial::parse(other), "{one} {other}");
        }
        let largest = "f".repeat(40);
        let mut others = vec!["0b", "b0", "0b00", "000b01", &largest, &largest[1..]];
        others.sort_by_key(|serial| Serial::parse(serial).unwrap().0);
        others.dedup_by_key(|serial| Serial::parse(serial).unwrap().0);
        assert_eq!(others.len(), 6);
        for none in [&format!("1{largest}"), "0g", "é"] {
            assert_eq!(Serial::parse(none), None, "{none}");
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
