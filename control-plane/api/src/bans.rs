//! Who is banned: identities and certificates that are refused although their certificates are good.
//!
//! The control plane keeps the list and pushes it whole; both sides ask it the same question.

use crate::v1;
use crate::v1::ban::Subject;
use sidewind_identity::{SpiffeId, SpiffeIdError};
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// Most bans at a time.
pub const MAX_BANS: usize = 4096;

/// Most bytes of a ban's reason.
pub const MAX_BAN_REASON_BYTES: usize = 256;

/// Most hexadecimal digits of a certificate's serial number: 20 octets (RFC 5280 section 4.1.2.2), and one that
/// keeps the sign clear.
const MAX_SERIAL_DIGITS: usize = 42;

/// What separates a workload's identity from the task identities derived from it.
const DERIVED: &str = "/dag/";

/// What is banned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Banned {
    /// An identity, and the task identities derived from it.
    Identity(SpiffeId),
    /// One certificate, by its serial number in lower-case hexadecimal.
    Serial(String),
}

/// Why a text names nothing that can be banned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BannedError {
    /// It looks like a SPIFFE ID and is none.
    #[error("{0}")]
    Identity(#[from] SpiffeIdError),
    /// It is no serial number either.
    #[error(
        "neither a SPIFFE ID nor the serial number of a certificate: write spiffe://TRUST-DOMAIN/PATH, or up to 40 hexadecimal digits as access logs and `sidewind explain` show them"
    )]
    Serial,
}

impl FromStr for Banned {
    type Err = BannedError;

    /// Reads a SPIFFE ID or a serial number. Colons between the octets and upper case are taken too, as openssl
    /// prints them.
    fn from_str(text: &str) -> Result<Self, BannedError> {
        if text.contains('/') {
            return Ok(Self::Identity(SpiffeId::parse(text)?));
        }
        let digits = text.replace(':', "").to_ascii_lowercase();
        let is_serial = (1..=MAX_SERIAL_DIGITS).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_serial {
            return Err(BannedError::Serial);
        }
        Ok(Self::Serial(significant(&digits).to_owned()))
    }
}

impl fmt::Display for Banned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::Serial(serial) => f.write_str(serial),
        }
    }
}

impl From<Banned> for Subject {
    fn from(banned: Banned) -> Self {
        match banned {
            Banned::Identity(id) => Self::SpiffeId(id.to_string()),
            Banned::Serial(serial) => Self::Serial(serial),
        }
    }
}

impl TryFrom<&Subject> for Banned {
    type Error = BannedError;

    fn try_from(subject: &Subject) -> Result<Self, BannedError> {
        match subject {
            Subject::SpiffeId(id) => Ok(Self::Identity(SpiffeId::parse(id)?)),
            Subject::Serial(serial) => match serial.parse()? {
                serial @ Self::Serial(_) => Ok(serial),
                Self::Identity(_) => Err(BannedError::Serial),
            },
        }
    }
}

/// The list, to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BanList {
    version: u64,
    identities: HashSet<SpiffeId>,
    serials: HashSet<String>,
}

impl BanList {
    /// A list of what is banned.
    #[must_use]
    pub fn new(version: u64, banned: impl IntoIterator<Item = Banned>) -> Self {
        let mut list = Self {
            version,
            ..Self::default()
        };
        for banned in banned {
            match banned {
                Banned::Identity(id) => list.identities.insert(id),
                Banned::Serial(serial) => list.serials.insert(serial),
            };
        }
        list
    }

    /// Reads the API's list. What cannot be read is left out and given back, each as a sentence: one bad entry
    /// must not keep the others from being enforced.
    #[must_use]
    pub fn from_api(bans: &v1::Bans) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let banned = bans.bans.iter().filter_map(|ban| {
            let Some(subject) = &ban.subject else {
                problems.push("a ban of a kind that this version does not know".to_owned());
                return None;
            };
            Banned::try_from(subject)
                .map_err(|error| problems.push(format!("a ban cannot be read: {error}")))
                .ok()
        });
        let list = Self::new(bans.version, banned);
        (list, problems)
    }

    /// Grows with each change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What this list and another ban together, under this list's version.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.identities.extend(other.identities.iter().cloned());
        both.serials.extend(other.serials.iter().cloned());
        both
    }

    /// Whether nothing is banned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.serials.is_empty()
    }

    /// Whether an identity with this certificate is banned.
    #[must_use]
    pub fn refuses(&self, id: &SpiffeId, serial_hex: &str) -> bool {
        if self.is_empty() {
            return false;
        }
        self.refuses_identity(id) || self.serials.contains(significant(serial_hex))
    }

    /// Whether an identity is banned, whatever its certificate.
    #[must_use]
    pub fn refuses_identity(&self, id: &SpiffeId) -> bool {
        !self.identities.is_empty()
            && (self.identities.contains(id) || self.refuses_the_workload_of(id))
    }

    fn refuses_the_workload_of(&self, id: &SpiffeId) -> bool {
        let text = id.as_str();
        text.match_indices(DERIVED)
            .filter_map(|(end, _)| text.get(..end))
            .filter_map(|workload| SpiffeId::parse(workload).ok())
            .any(|workload| self.identities.contains(&workload))
    }
}

/// Serial numbers are numbers: leading zeros say nothing.
fn significant(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        SpiffeId::parse(text).unwrap()
    }

    fn list(banned: &[&str]) -> BanList {
        BanList::new(7, banned.iter().map(|text| text.parse().unwrap()))
    }

    #[test]
    fn an_identity_is_banned_with_its_task_identities_and_nothing_else() {
        let list = list(&["spiffe://td/ns/a/sa/worker"]);
        for banned in [
            "spiffe://td/ns/a/sa/worker",
            "spiffe://td/ns/a/sa/worker/dag/etl/task/load",
        ] {
            assert!(list.refuses(&id(banned), "01"), "{banned}");
        }
        for free in [
            "spiffe://td/ns/a/sa/worker2",
            "spiffe://td/ns/a/sa/worker/dagger",
            "spiffe://td/ns/a",
            "spiffe://other/ns/a/sa/worker",
        ] {
            assert!(!list.refuses(&id(free), "01"), "{free}");
        }
    }

    #[test]
    fn a_certificate_is_banned_however_its_serial_is_written() {
        let colons = list(&["0A:bC:01"]);
        assert!(colons.refuses(&id("spiffe://td/x"), "abc01"));
        assert!(colons.refuses(&id("spiffe://td/x"), "0abc01"));
        assert!(!colons.refuses(&id("spiffe://td/x"), "abc0"));
        assert!(list(&["00"]).refuses(&id("spiffe://td/x"), "00"));
    }

    #[test]
    fn what_can_be_banned_by_no_one_is_refused_with_a_hint() {
        for text in ["", "worker", "spiffe://td/", "http://td/x", &"a".repeat(43)] {
            assert!(text.parse::<Banned>().is_err(), "{text}");
        }
        let error = "worker".parse::<Banned>().unwrap_err();
        assert!(error.to_string().contains("spiffe://"), "{error}");
    }

    #[test]
    fn a_list_survives_the_api_and_one_bad_entry_hides_no_other() {
        let ban = |subject| v1::Ban {
            subject,
            ..v1::Ban::default()
        };
        let good: Banned = "spiffe://td/x".parse().unwrap();
        let api = v1::Bans {
            version: 3,
            bans: vec![
                ban(None),
                ban(Some(Subject::SpiffeId("nonsense".to_owned()))),
                ban(Some(good.into())),
                ban(Some(Subject::Serial("0f".to_owned()))),
            ],
            ..v1::Bans::default()
        };
        let (list, problems) = BanList::from_api(&api);
        assert_eq!((list.version(), problems.len()), (3, 2));
        assert!(list.refuses(&id("spiffe://td/x"), "1"));
        assert!(list.refuses(&id("spiffe://td/y"), "f"));
        assert!(!list.refuses(&id("spiffe://td/y"), "1"));
    }

    #[test]
    fn an_empty_list_refuses_nobody() {
        assert!(!BanList::default().refuses(&id("spiffe://td/x"), ""));
    }
}
