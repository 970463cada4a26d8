//! Looking at the whole chain.

use super::{BATCH, BEGINNING, COLUMNS, Columns, KEPT_RECORDS, KEPT_SECONDS, Seal, StoredRecord};
use crate::store::{Store, StoreError, unix_seconds};
use std::time::SystemTime;

/// Most problems that are told one by one.
const MAX_PROBLEMS: usize = 100;

/// What looking at the whole chain found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Records whose seal is right.
    pub verified: u64,
    /// The first seal that is still kept; 0 without one.
    pub first: i64,
    /// The last seal.
    pub head: Option<Seal>,
    /// Records with no seal yet.
    pub unsealed: u64,
    /// What is wrong, each a sentence; at most a hundred.
    pub problems: Vec<String>,
}

impl Store {
    /// Looks at every seal and its record.
    ///
    /// # Errors
    /// When the store fails. What is wrong with the chain is no error but its result.
    pub async fn verify_audit(&self, now: SystemTime) -> Result<Verification, StoreError> {
        let newest = self.newest_record().await?;
        let pruned_before = (unix_seconds(now) - KEPT_SECONDS, newest - KEPT_RECORDS);
        let mut walk = Walk::new(pruned_before);
        loop {
            let seals = self.seals_after(walk.position()).await?;
            let (Some(first), Some(last)) = (seals.first(), seals.last()) else {
                break;
            };
            let records = self.records_of(first.position, last.position).await?;
            walk.take(&seals, &records);
        }
        let mut found = walk.found;
        let unsealed: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM audit
             WHERE NOT EXISTS (SELECT 1 FROM audit_chain WHERE audit_id = audit.id)",
        )
        .fetch_one(&self.pool)
        .await?;
        found.unsealed = u64::try_from(unsealed).unwrap_or_default();
        Ok(found)
    }

    async fn seals_after(&self, position: i64) -> Result<Vec<Link>, StoreError> {
        let rows = sqlx::query_as::<_, (i64, i64, i64, Vec<u8>, Vec<u8>)>(
            "SELECT position, audit_id, at, previous, hash FROM audit_chain
             WHERE position > $1 ORDER BY position LIMIT $2",
        )
        .bind(position)
        .bind(BATCH)
        .fetch_all(&self.pool)
        .await?;
        let link = |(position, audit_id, at, previous, hash)| Link {
            position,
            audit_id,
            at,
            previous,
            hash,
        };
        Ok(rows.into_iter().map(link).collect())
    }

    /// The records that the seals of some positions are of.
    async fn records_of(&self, first: i64, last: i64) -> Result<Vec<StoredRecord>, StoreError> {
        let query = format!(
            "SELECT {COLUMNS} FROM audit WHERE id IN
             (SELECT audit_id FROM audit_chain WHERE position BETWEEN $1 AND $2) ORDER BY id"
        );
        let rows = sqlx::query_as::<_, Columns>(sqlx::AssertSqlSafe(query))
            .bind(first)
            .bind(last)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(StoredRecord::from).collect())
    }
}

/// One row of the chain.
struct Link {
    position: i64,
    audit_id: i64,
    at: i64,
    previous: Vec<u8>,
    hash: Vec<u8>,
}

/// A verification under way.
struct Walk {
    /// Records before this time or up to this number may have been pruned.
    pruned_before: (i64, i64),
    found: Verification,
}

impl Walk {
    fn new(pruned_before: (i64, i64)) -> Self {
        Self {
            pruned_before,
            found: Verification::default(),
        }
    }

    fn position(&self) -> i64 {
        self.found.head.as_ref().map_or(0, |seal| seal.position)
    }

    fn take(&mut self, links: &[Link], records: &[StoredRecord]) {
        for link in links {
            let record = records
                .binary_search_by_key(&link.audit_id, |record| record.id)
                .ok()
                .and_then(|at| records.get(at));
            match self.problem(link, record) {
                Some(problem) if self.found.problems.len() < MAX_PROBLEMS => {
                    self.found.problems.push(problem);
                }
                Some(_) => {}
                None => self.found.verified += u64::from(record.is_some()),
            }
            self.found.head = Some(Seal {
                position: link.position,
                hash: link.hash.clone(),
            });
        }
    }

    fn problem(&mut self, link: &Link, record: Option<&StoredRecord>) -> Option<String> {
        let Link {
            position, audit_id, ..
        } = link;
        match &self.found.head {
            // What was before the first seal that is kept was pruned.
            None => {
                self.found.first = *position;
                if *position == 1 && link.previous != BEGINNING {
                    return Some("the chain has another beginning than it had".to_owned());
                }
            }
            Some(before) if before.position + 1 != *position => {
                let (from, to) = (before.position + 1, position - 1);
                return Some(format!("the seals {from} to {to} are gone"));
            }
            Some(before) if before.hash != link.previous => {
                return Some(format!(
                    "seal {position} does not go on from the one before"
                ));
            }
            Some(_) => {}
        }
        match record {
            Some(record) if record.seal(*position, &link.previous).as_slice() == link.hash => None,
            Some(_) => Some(format!(
                "record {audit_id} is not what seal {position} was made for"
            )),
            None if link.at < self.pruned_before.0 || *audit_id <= self.pruned_before.1 => None,
            None => Some(format!("record {audit_id}, of seal {position}, is gone")),
        }
    }
}
