//! Who has the trust bundle by now, in this process and in the others of the control plane.

use crate::registry::Registry;
use crate::registry::acknowledgements::Laggard;
use crate::store::{LaggardReport, Store, StoreError};
use sidewind_identity::TrustDomain;
use std::fmt;
use std::time::{Duration, SystemTime};

/// How often a process says who of its proxies is behind, at least, while a root is prepared.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// A process that has said nothing for so long is gone, and so are its proxies.
const REPORT_LIFE: Duration = Duration::from_secs(30);

/// The proxies that live, as this process knows them.
pub trait Followers: Sync {
    /// Those that have not said that they have a bundle of this sequence or a later one.
    fn laggards(&self, trust_domain: &TrustDomain, sequence: u64) -> Vec<Laggard>;

    /// Those whose certificate was signed by an authority with one of these key identifiers.
    fn using(&self, key_ids: &[String]) -> Vec<Laggard>;
}

impl Followers for Registry {
    fn laggards(&self, trust_domain: &TrustDomain, sequence: u64) -> Vec<Laggard> {
        Registry::laggards(self, trust_domain, sequence)
    }

    fn using(&self, key_ids: &[String]) -> Vec<Laggard> {
        Registry::using(self, key_ids)
    }
}

/// What is waited for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many live proxies have not got the bundle.
    pub number: usize,
    /// The first of them, by SPIFFE ID and workload name.
    pub laggards: Vec<String>,
    /// Whether other processes may not have said yet who of theirs is behind.
    pub is_unsettled: bool,
}

impl Waiting {
    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.number == 0 && !self.is_unsettled
    }

    /// Asks this process's own proxies.
    pub(super) fn here(
        followers: &dyn Followers,
        trust_domain: &TrustDomain,
        sequence: u64,
    ) -> Self {
        let laggards = followers.laggards(trust_domain, sequence);
        Self {
            number: laggards.len(),
            laggards: laggards.iter().map(ToString::to_string).collect(),
            is_unsettled: false,
        }
    }

    /// Tells the other processes, and adds what they said.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn exchange(
        mut self,
        store: &Store,
        process: &str,
        sequence: u64,
        prepared_at: SystemTime,
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        // The others would take the report of one whose clock jumped for one that is to come, and it theirs for old ones.
        let passed = store.passed(now);
        let report = LaggardReport {
            bundle_sequence: sequence,
            waiting: self.number as u64,
            laggards: self.laggards.clone(),
            reported_at: passed,
        };
        store.report_laggards(process, &report).await?;
        self.is_unsettled = now < prepared_at + 2 * REPORT_INTERVAL;
        let elsewhere = store
            .laggards_elsewhere(process, passed - REPORT_LIFE)
            .await?;
        for report in elsewhere {
            if report.bundle_sequence < sequence {
                self.is_unsettled = true;
            } else {
                let waiting = usize::try_from(report.waiting).unwrap_or(usize::MAX);
                self.number = self.number.saturating_add(waiting);
                self.laggards.extend(report.laggards);
            }
        }
        Ok(self)
    }
}

/// Names the first of them and counts the rest.
impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 20;
        let named: Vec<&str> = self
            .laggards
            .iter()
            .take(NAMED)
            .map(String::as_str)
            .collect();
        f.write_str(&named.join(", "))?;
        match self.number.saturating_sub(named.len()) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
