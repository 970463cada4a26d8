//! The authorities in their slots, read from the store: what is trusted, what signs, what comes next.

use crate::store::{AuthorityRecord, AuthorityRecords, AuthorityRole, AuthorityState, StoreError};
use rustls_pki_types::CertificateDer;
use sidewind_identity::KeyIds;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Names it in the store.
    pub id: i64,
    /// What it signs.
    pub role: AuthorityRole,
    /// Where it is in its life.
    pub state: AuthorityState,
    /// Whether what it signed is to be replaced at once.
    pub tainted: bool,
    /// Whether its key is in the store.
    pub has_key: bool,
    /// Its certificate, and those between it and its root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key identifier, in lower-case hexadecimal.
    pub key_id: String,
    /// The key identifier of its root, as the last certificate of the chain names it; empty where it does not.
    pub root_key_id: String,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// When it came into its state.
    pub changed_at: SystemTime,
    /// Sequence of the trust bundle that first had it; of a root alone.
    pub introduced: u64,
    /// The latest end of all SVIDs that were signed below it, as far as it was noted.
    pub signed_until: SystemTime,
}

/// Every authority at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Grows with every change.
    pub version: u64,
    /// Sequence of the trust bundle.
    pub bundle_sequence: u64,
    slots: Vec<Slot>,
}

impl Slots {
    /// Reads what the store has.
    ///
    /// # Errors
    /// When a certificate cannot be read.
    pub fn read(records: AuthorityRecords) -> Result<Self, StoreError> {
        let slots = records.records.into_iter().map(slot);
        Ok(Self {
            version: records.version,
            bundle_sequence: records.bundle_sequence,
            slots: slots.collect::<Result<_, _>>()?,
        })
    }

    /// Every authority, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// The authorities of a role in a state.
    pub fn all(
        &self,
        role: AuthorityRole,
        state: AuthorityState,
    ) -> impl DoubleEndedIterator<Item = &Slot> {
        let wanted = move |slot: &&Slot| slot.role == role && slot.state == state;
        self.slots.iter().filter(wanted)
    }

    /// The authority of a role that is in use.
    #[must_use]
    pub fn active(&self, role: AuthorityRole) -> Option<&Slot> {
        self.all(role, AuthorityState::Active).next()
    }

    /// The newest authority of a role that is prepared.
    #[must_use]
    pub fn prepared(&self, role: AuthorityRole) -> Option<&Slot> {
        self.all(role, AuthorityState::Prepared).next_back()
    }

    /// The roots that are in the trust bundle, the one in use first.
    pub fn trusted(&self, now: SystemTime) -> impl Iterator<Item = &Slot> {
        use AuthorityState::{Active, Old, Prepared};
        [Active, Prepared, Old]
            .into_iter()
            .flat_map(|state| self.all(AuthorityRole::Root, state).rev())
            .filter(move |root| root.not_after >= now)
    }

    /// The root with a certificate.
    #[must_use]
    pub fn root(&self, certificate: &[u8]) -> Option<&Slot> {
        let is_it =
            |slot: &&Slot| slot.role == AuthorityRole::Root && slot.certificate() == certificate;
        self.slots.iter().find(is_it)
    }

    /// The signing authority with a certificate.
    #[must_use]
    pub fn signing(&self, certificate: &[u8]) -> Option<&Slot> {
        let is_it =
            |slot: &&Slot| slot.role == AuthorityRole::Signing && slot.certificate() == certificate;
        self.slots.iter().find(is_it)
    }

    /// The roots that a signing authority's chain may end at: several where a root was made anew of one key.
    pub fn roots_of<'a>(&'a self, signing: &'a Slot) -> impl Iterator<Item = &'a Slot> {
        let roots = self
            .slots
            .iter()
            .filter(|slot| slot.role == AuthorityRole::Root);
        roots.filter(|root| root.key_id == signing.root_key_id)
    }

    /// Key identifiers of an authority and, of a root, of the signing authorities below it.
    #[must_use]
    pub fn below(&self, slot: &Slot) -> Vec<String> {
        let signing = self.slots.iter().filter(|other| {
            slot.role == AuthorityRole::Root
                && other.role == AuthorityRole::Signing
                && other.root_key_id == slot.key_id
        });
        let own = std::iter::once(slot.key_id.clone());
        own.chain(signing.map(|signing| signing.key_id.clone()))
            .collect()
    }

    /// Key identifiers of what is not to be relied on any more, each once, in order.
    #[must_use]
    pub fn tainted(&self) -> Vec<String> {
        let tainted = self.slots.iter().filter(|slot| slot.tainted);
        let mut ids: Vec<_> = tainted.map(|slot| slot.key_id.clone()).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

impl Slot {
    /// The certificate itself.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        self.chain.first().map_or(&[], |der| der.as_ref())
    }

    /// How long it lives from the moment that it was made; certificates begin a little earlier.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after
            .duration_since(self.not_before)
            .unwrap_or_default()
            .saturating_sub(sidewind_identity::authority::BACKDATE)
    }

    /// How long it still lives.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

fn slot(record: AuthorityRecord) -> Result<Slot, StoreError> {
    let corrupt = |why: String| StoreError::Corrupt {
        what: "certificate authority",
        why,
    };
    let mut chain = vec![CertificateDer::from(record.certificate)];
    let mut rest = record.intermediates.as_slice();
    while !rest.is_empty() {
        let (left, _) = x509_parser::parse_x509_certificate(rest)
            .map_err(|error| corrupt(error.to_string()))?;
        let (der, _) = rest.split_at(rest.len() - left.len());
        chain.push(CertificateDer::from(der.to_vec()));
        rest = left;
    }
    let ids = |der: Option<&CertificateDer<'_>>| {
        let der = der.map_or(&[][..], |der| der.as_ref());
        KeyIds::of(der).map_err(|error| corrupt(error.to_string()))
    };
    let key_id = ids(chain.first())?.subject;
    let root_key_id = ids(chain.last())?.authority.unwrap_or_default();
    let unreadable = || corrupt("its validity is outside what a clock can say".to_owned());
    let (not_before, not_after) = chain.first().and_then(validity).ok_or_else(unreadable)?;
    Ok(Slot {
        id: record.id,
        role: record.role,
        state: record.state,
        tainted: record.tainted,
        has_key: record.has_key,
        key_id,
        root_key_id,
        not_before,
        not_after,
        changed_at: record.changed_at,
        introduced: record.introduced,
        signed_until: record.signed_until,
        chain,
    })
}

/// Begin and end of a certificate.
pub(super) fn validity(der: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let time = |time: x509_parser::time::ASN1Time| {
        Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).ok()?))
    };
    let validity = certificate.validity();
    Some((time(validity.not_before)?, time(validity.not_after)?))
}
