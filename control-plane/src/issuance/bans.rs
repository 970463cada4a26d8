//! Who gets no certificate although their evidence is good, and is cut off everywhere.

mod returned;
mod seal;

pub use returned::{Returned, TooMuch};

use super::Refusal;
use crate::store::{
    AuditRecord, BanRecord, BanRecords, Store, StoreError, from_unix_seconds, unix_seconds,
};
use crate::telemetry::Throttle;
use arc_swap::ArcSwap;
use seal::Sealer;
use sidewind_api::bans::{MAX_BAN_REASON_BYTES, MAX_BANS};
use sidewind_api::{BanList, Banned, Reason, v1};
use sidewind_identity::SpiffeId;
use sidewind_identity::authority::MAX_SVID_TTL;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;

/// Lists that wait to be taken up.
const MAX_RETURNED: usize = 4;
/// How long the ban of a certificate is kept: longer than any certificate lives.
const CERTIFICATE_BAN: Duration = MAX_SVID_TTL.saturating_mul(2);

/// The bans: in the store, and in memory to be asked.
#[derive(Debug)]
pub struct Bans {
    store: Store,
    current: ArcSwap<Current>,
    sealer: Sealer,
    /// Lists that proxies gave back, to be taken up.
    returned: std::sync::Mutex<Vec<v1::Bans>>,
    /// One change at a time, so that an older list never replaces a newer one.
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Current {
    list: BanList,
    api: v1::Bans,
}

impl Current {
    fn new(records: BanRecords, sealer: &Sealer) -> Self {
        let list = BanList::new(
            records.version,
            records.bans.iter().map(|ban| ban.banned.clone()),
        );
        let mut api = v1::Bans {
            version: records.version,
            bans: records.bans.into_iter().map(to_api).collect(),
            seal: Vec::new(),
        };
        api.seal = sealer.seal(&api);
        Self { list, api }
    }
}

impl Bans {
    /// The bans of a store.
    ///
    /// # Errors
    /// When the store fails: without its bans a control plane must not begin.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let sealer = Sealer::new(&store.bans_secret().await?);
        let current = Current::new(store.bans().await?, &sealer);
        Ok(Self {
            store,
            current: ArcSwap::from_pointee(current),
            sealer,
            returned: std::sync::Mutex::default(),
            changing: Mutex::default(),
        })
    }

    /// Refuses an identity or a certificate that is banned.
    ///
    /// # Errors
    /// That it is.
    pub fn check(&self, id: &SpiffeId, serial_hex: &str) -> Result<(), Refusal> {
        if !self.current.load().list.refuses(id, serial_hex) {
            return Ok(());
        }
        Err(refused(id))
    }

    /// Refuses an identity that is banned, whatever its certificate.
    ///
    /// # Errors
    /// That it is.
    pub fn check_identity(&self, id: &SpiffeId) -> Result<(), Refusal> {
        if self.current.load().list.refuses_identity(id) {
            return Err(refused(id));
        }
        Ok(())
    }

    /// The list in the API's form.
    #[must_use]
    pub fn api(&self) -> v1::Bans {
        self.current.load().api.clone()
    }

    /// Bans somebody, or lifts a ban.
    ///
    /// # Errors
    /// When there are too many, when what is to be lifted is not banned, or when the store fails.
    pub async fn change(
        &self,
        banned: Banned,
        reason: String,
        lift: bool,
        audit: &AuditRecord,
    ) -> Result<(), Refusal> {
        let _changing = self.changing.lock().await;
        let current = self.current.load();
        let subject = v1::ban::Subject::from(banned.clone());
        let known = current
            .api
            .bans
            .iter()
            .any(|ban| ban.subject.as_ref() == Some(&subject));
        if lift && !known {
            let message = format!("{banned} is not banned");
            return Err(Refusal::new(Reason::InvalidMessage, message));
        }
        if !lift && !known && current.api.bans.len() >= MAX_BANS {
            let message = format!("there are {MAX_BANS} bans already; lift some");
            return Err(Refusal::new(Reason::LimitExceeded, message));
        }
        if reason.len() > MAX_BAN_REASON_BYTES {
            let message = format!("a reason has at most {MAX_BAN_REASON_BYTES} bytes");
            return Err(Refusal::new(Reason::LimitExceeded, message));
        }
        let ban = BanRecord {
            banned,
            reason,
            since: self.store.latest(audit.at),
        };
        let changed = self.store.change_ban(&ban, lift, audit).await;
        changed.map_err(|error| Refusal::store(&error))?;
        audit.log();
        self.read().await.map_err(|error| Refusal::store(&error))
    }

    /// The version of the list.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.current.load().list.version()
    }

    /// Notes a list that a proxy gave back, when it is one that was made here and that the store has lost. It is taken
    /// up at the next look.
    pub fn give_back(&self, list: v1::Bans) {
        static STRANGE: Throttle = Throttle::new();
        if list.version <= self.version() {
            return;
        }
        if !self.sealer.knows(&list) {
            if let Some(unsaid) = STRANGE.admit("seal") {
                tracing::warn!(
                    version = list.version,
                    unsaid,
                    "a proxy gave back a list of bans that was not made here; it is not believed"
                );
            }
            return;
        }
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        // One stream is asked at a time.
        if returned.len() < MAX_RETURNED {
            returned.push(list);
        }
    }

    /// Takes up what proxies gave back.
    async fn take_returned(&self, now: SystemTime) -> Result<(), StoreError> {
        let returned = {
            let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *returned)
        };
        for list in &returned {
            let bans: Vec<BanRecord> = list.bans.iter().filter_map(from_api).collect();
            let found = self.store.restore_bans(list.version, &bans, now).await;
            let found = found.inspect_err(|_| {
                let mut kept = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
                kept.clone_from(&returned);
            })?;
            tracing::error!(
                version = list.version,
                found,
                "the store was restored from an older copy: its list of bans was completed by what a proxy has. Bans that \
                 were lifted since that copy may be back; look with `sidewind bans`"
            );
        }
        Ok(())
    }

    /// Takes up what another process has changed, and forgets bans of certificates that have ended. Gives back
    /// whether anything changed.
    ///
    /// # Errors
    /// When the store fails; what is known stays in force.
    pub async fn maintain(&self, now: SystemTime) -> Result<bool, StoreError> {
        let _changing = self.changing.lock().await;
        let before = self.current.load().list.version();
        let passed = self.store.passed(now);
        if let Some(end) = passed.checked_sub(CERTIFICATE_BAN)
            && self.has_certificate_bans(end)
        {
            self.store.forget_bans_of_certificates(end).await?;
        }
        self.take_returned(now).await?;
        self.read().await?;
        Ok(self.current.load().list.version() != before)
    }

    fn has_certificate_bans(&self, before: SystemTime) -> bool {
        let before = unix_seconds(before);
        let current = self.current.load();
        let mut bans = current.api.bans.iter();
        bans.any(|ban| {
            matches!(ban.subject, Some(v1::ban::Subject::Serial(_))) && ban.since_unix < before
        })
    }

    async fn read(&self) -> Result<(), StoreError> {
        let records = self.store.bans().await?;
        if records.version != self.current.load().list.version() {
            let current = Current::new(records, &self.sealer);
            self.current.store(Arc::new(current));
        }
        Ok(())
    }
}

fn refused(id: &SpiffeId) -> Refusal {
    let message = format!("{id} is banned; `sidewind unban` lifts it");
    Refusal::new(Reason::Banned, message)
}

fn from_api(ban: &v1::Ban) -> Option<BanRecord> {
    Some(BanRecord {
        banned: Banned::try_from(ban.subject.as_ref()?).ok()?,
        reason: ban.reason.clone(),
        since: from_unix_seconds(ban.since_unix),
    })
}

fn to_api(ban: BanRecord) -> v1::Ban {
    v1::Ban {
        subject: Some(ban.banned.into()),
        reason: ban.reason,
        since_unix: unix_seconds(ban.since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{audit_record, empty_store};

    #[tokio::test]
    async fn there_are_so_many_bans_and_no_more() {
        let (_directory, store) = empty_store().await;
        let now = SystemTime::now();
        let number =
            |number: usize| -> Banned { format!("spiffe://example.org/{number}").parse().unwrap() };
        let all_but_one: Vec<_> = (1..MAX_BANS)
            .map(|it| BanRecord {
                banned: number(it),
                reason: String::new(),
                since: now,
            })
            .collect();
        store.restore_bans(1, &all_but_one, now).await.unwrap();
        let bans = Bans::open(store).await.unwrap();
        let audit = audit_record("ban", now);
        let change = async |banned, lift| {
            let changed = bans.change(banned, String::new(), lift, &audit).await;
            changed.map_err(|refusal| refusal.reason)
        };
        let rows = [
            ("the last", MAX_BANS, false, Ok(())),
            ("one more", MAX_BANS + 1, false, Err(Reason::LimitExceeded)),
            ("one that is banned", 1, false, Ok(())),
            ("none", 1, true, Ok(())),
            ("the last again", MAX_BANS + 1, false, Ok(())),
        ];
        for (name, banned, lift, expected) in rows {
            assert_eq!(change(number(banned), lift).await, expected, "{name}");
        }
        assert_eq!(bans.api().bans.len(), MAX_BANS);
    }

    #[tokio::test]
    async fn a_ban_of_serial_number_zero_is_one_of_a_certificate_and_of_no_identity() {
        let (_directory, store) = empty_store().await;
        let bans = Bans::open(store).await.unwrap();
        let audit = audit_record("ban", SystemTime::now());
        let zero = "00".parse().unwrap();
        let done = bans.change(zero, String::new(), false, &audit).await;
        done.unwrap();
        let id = SpiffeId::parse("spiffe://example.org/x").unwrap();
        bans.check_identity(&id).unwrap();
        bans.check(&id, "01").unwrap();
        // As the serial number of a certificate is written, without leading zeros.
        assert_eq!(bans.check(&id, "").unwrap_err().reason, Reason::Banned);
    }

    #[tokio::test]
    async fn a_clock_that_jumps_three_days_lifts_no_ban_and_time_that_passes_those_of_certificates()
    {
        let (_directory, store) = empty_store().await;
        let day = Duration::from_secs(86_400);
        let now = SystemTime::now();
        store.begin_time(now).await.unwrap();
        let bans = Bans::open(store.clone()).await.unwrap();
        let audit = audit_record("ban", now);
        for banned in ["0f", "spiffe://example.org/x"] {
            let banned = banned.parse().unwrap();
            let done = bans.change(banned, String::new(), false, &audit).await;
            done.unwrap();
        }
        // Also by one that begins anew under that clock.
        let jumped = now + 3 * day;
        assert!(!bans.maintain(jumped).await.unwrap());
        store.begin_time(jumped).await.unwrap();
        assert!(!bans.maintain(jumped).await.unwrap());
        assert_eq!(bans.api().bans.len(), 2);
        store.set_passed(jumped);
        assert!(bans.maintain(jumped).await.unwrap());
        assert_eq!(bans.api().bans.len(), 1);
    }
}
