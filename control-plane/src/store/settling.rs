//! First certificates written together.
//!
//! What an attestation leaves behind is on the disk before its answer leaves, and a disk takes hundreds of such commits a
//! second at most. After an outage thousands of proxies attest at once: so whatever comes while one transaction is under
//! way goes into the next one together. Each is decided for itself, in the order in which it came; one transaction takes
//! up all of them or none.

use super::attestations::hold;
use super::registrations::{NewSvid, insert as insert_registration, insert_svids, note_services};
use super::{
    AuditRecord, ChangedFact, PinnedFact, Registration, Store, StoreError, SvidRecord, audit,
    unix_seconds,
};
use sqlx::{Any, Connection as _, Transaction};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Most attestations of one transaction.
const TOGETHER: usize = 64;

/// What an attestation rests on.
#[derive(Debug)]
pub(super) enum Ground {
    /// A join token, by its SHA-256; it is used up.
    JoinToken([u8; 32]),
    /// Facts that are held to.
    Facts(Vec<PinnedFact>),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is written.
    Written,
    /// The token is used, has ended or was never made.
    NoToken,
    /// A fact is another than before.
    Changed(ChangedFact),
}

/// Everything that is written of an attestation.
#[derive(Debug)]
pub(super) struct Issuance {
    pub(super) ground: Ground,
    pub(super) registration: Registration,
    pub(super) svid: SvidRecord,
    pub(super) audit: AuditRecord,
}

/// Attestations that wait for the next transaction.
#[derive(Debug, Default)]
pub(super) struct Settling {
    waiting: Mutex<Vec<Waiting>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Waiting {
    issuance: Issuance,
    answer: oneshot::Sender<Result<Settled, StoreError>>,
}

impl Settling {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next to be written, the oldest first. Who has gone away meanwhile gets nothing.
    fn next(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        waiting.retain(|one| !one.answer.is_closed());
        let number = waiting.len().min(TOGETHER);
        waiting.drain(..number).collect()
    }
}

impl Store {
    /// Writes what comes of an attestation, all or nothing, together with others.
    ///
    /// # Errors
    /// When the store fails; then nothing was written.
    pub(super) async fn settle(&self, issuance: Issuance) -> Result<Settled, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        self.settling.waiting().push(Waiting { issuance, answer });
        loop {
            tokio::select! {
                biased;
                outcome = &mut answered => return outcome.unwrap_or(Err(StoreError::Slow)),
                // Whoever has the turn writes those that have waited longest, and may have to take another for its own.
                turn = Arc::clone(&self.settling.turn).lock_owned() => {
                    let (store, batch) = (self.clone(), self.settling.next());
                    // By itself: whoever waits here may go away in the middle, and the others must not go with it.
                    tokio::spawn(async move {
                        store.settle_all(batch).await;
                        drop(turn);
                    });
                }
            }
        }
    }

    async fn settle_all(&self, batch: Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        let (issuances, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|one| (one.issuance, one.answer))
            .unzip();
        let outcomes = match self.write_together(&issuances).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            // One that the database never takes must not stop the others.
            Err(StoreError::Database(sqlx::Error::Database(_))) if issuances.len() > 1 => {
                let mut outcomes = Vec::with_capacity(issuances.len());
                for issuance in &issuances {
                    let written = self.write_together(std::slice::from_ref(issuance)).await;
                    outcomes.push(written.and_then(|mut one| one.pop().ok_or(StoreError::Slow)));
                }
                outcomes
            }
            Err(error) => {
                let others = (1..issuances.len()).map(|_| Err(StoreError::Slow));
                std::iter::once(Err(error))
                    .chain(others)
                    .collect::<Vec<_>>()
            }
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // Who asked may have gone.
            let _ = answer.send(outcome);
        }
    }

    async fn write_together(&self, batch: &[Issuance]) -> Result<Vec<Settled>, StoreError> {
        let mut transaction = self.begin().await?;
        let mut outcomes = Vec::with_capacity(batch.len());
        let (mut svids, mut records) = (Vec::new(), Vec::new());
        for issuance in batch {
            let outcome = decide(&mut transaction, issuance).await?;
            if outcome == Settled::Written {
                let registration = &issuance.registration;
                let now = issuance.audit.at;
                insert_registration(&mut transaction, registration, now).await?;
                svids.push(NewSvid {
                    svid: &issuance.svid,
                    registration: &registration.id,
                });
                records.push((audit::new_name(), &issuance.audit));
                note_services(self, &mut transaction, &registration.services, now).await?;
            }
            outcomes.push(outcome);
        }
        let Some(first) = svids.first() else {
            transaction.rollback().await?;
            return Ok(outcomes);
        };
        let serial = first.svid.serial.clone();
        insert_svids(&mut transaction, &svids).await?;
        let records: Vec<_> = records
            .iter()
            .map(|(name, it)| (name.as_str(), *it))
            .collect();
        audit::insert_named(&mut transaction, &records).await?;
        self.commit_issuance(transaction, &serial).await?;
        Ok(outcomes)
    }
}

/// Takes what an attestation rests on. Of any number of callers at once one uses a token.
async fn decide(
    transaction: &mut Transaction<'static, Any>,
    issuance: &Issuance,
) -> Result<Settled, StoreError> {
    let now = issuance.audit.at;
    match &issuance.ground {
        Ground::JoinToken(sha256) => {
            let used = sqlx::query(
                "UPDATE join_tokens SET used_at = $1
                 WHERE sha256 = $2 AND used_at IS NULL AND expires_at > $1",
            )
            .bind(unix_seconds(now))
            .bind(sha256.as_slice())
            .execute(&mut **transaction)
            .await?;
            Ok(match used.rows_affected() {
                1 => Settled::Written,
                _ => Settled::NoToken,
            })
        }
        Ground::Facts(facts) if facts.is_empty() => Ok(Settled::Written),
        Ground::Facts(facts) => {
            // What is refused holds nobody to anything.
            let mut held = transaction.begin().await?;
            for fact in facts {
                if !hold(&mut held, fact, now).await? {
                    held.rollback().await?;
                    let (subject, value) = (fact.subject.clone(), fact.value.clone());
                    return Ok(Settled::Changed(ChangedFact { subject, value }));
                }
            }
            held.commit().await?;
            Ok(Settled::Written)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        MINUTE, audit_record, each_store, empty_store, insert_token, registration, svid,
    };
    use super::*;
    use std::time::SystemTime;

    fn issuance(ground: Ground, serial: &str) -> Issuance {
        let now = SystemTime::now();
        Issuance {
            ground,
            registration: registration(),
            svid: svid(serial, now + MINUTE),
            audit: audit_record("attest", now),
        }
    }

    fn fact(subject: &str, value: &str) -> PinnedFact {
        PinnedFact {
            subject: subject.to_owned(),
            value: value.to_owned(),
            named: false,
        }
    }

    async fn serials(store: &Store) -> Vec<String> {
        let serials = sqlx::query_scalar("SELECT serial FROM svids ORDER BY serial");
        serials.fetch_all(&store.pool).await.unwrap()
    }

    #[tokio::test]
    async fn each_of_those_written_together_is_decided_for_itself_in_its_order() {
        for store in each_store().await {
            for token in [1, 2] {
                insert_token(&store, token, SystemTime::now() + MINUTE).await;
            }
            let batch = [
                issuance(Ground::JoinToken([1; 32]), "01"),
                issuance(Ground::JoinToken([1; 32]), "02"),
                issuance(Ground::JoinToken([9; 32]), "03"),
                issuance(Ground::Facts(vec![fact("a", "x"), fact("b", "y")]), "04"),
                issuance(
                    Ground::Facts(vec![fact("c", "z"), fact("b", "other")]),
                    "05",
                ),
                issuance(Ground::JoinToken([2; 32]), "06"),
                issuance(Ground::Facts(vec![fact("c", "new")]), "07"),
                issuance(Ground::Facts(Vec::new()), "08"),
            ];
            let changed = ChangedFact {
                subject: "b".to_owned(),
                value: "other".to_owned(),
            };
            let expected = [
                Settled::Written,
                Settled::NoToken,
                Settled::NoToken,
                Settled::Written,
                Settled::Changed(changed),
                Settled::Written,
                // The refused one has held nobody to anything.
                Settled::Written,
                Settled::Written,
            ];
            assert_eq!(store.write_together(&batch).await.unwrap(), expected);
            assert_eq!(serials(&store).await, ["01", "04", "06", "07", "08"]);
            let audited: i64 =
                sqlx::query_scalar("SELECT count(*) FROM audit WHERE event = 'attest'")
                    .fetch_one(&store.pool)
                    .await
                    .unwrap();
            assert_eq!(audited, 5);
        }
    }

    #[tokio::test]
    async fn one_that_the_database_never_takes_does_not_stop_the_others() {
        for store in each_store().await {
            let twice = issuance(Ground::Facts(Vec::new()), "01");
            let again = Issuance {
                registration: twice.registration.clone(),
                ..issuance(Ground::Facts(Vec::new()), "02")
            };
            let good = issuance(Ground::Facts(Vec::new()), "03");
            let mut answers = Vec::new();
            let mut batch = Vec::new();
            for issuance in [twice, again, good] {
                let (answer, answered) = oneshot::channel();
                batch.push(Waiting { issuance, answer });
                answers.push(answered);
            }
            store.settle_all(batch).await;
            let mut outcomes = Vec::new();
            for answered in answers {
                outcomes.push(answered.await.unwrap().is_ok());
            }
            assert_eq!(outcomes, [true, false, true]);
            assert_eq!(serials(&store).await, ["01", "03"]);
        }
    }

    #[tokio::test]
    async fn who_has_gone_away_uses_no_token_and_takes_nobody_along() {
        let (_directory, store) = empty_store().await;
        for token in [1, 2, 3] {
            insert_token(&store, token, SystemTime::now() + MINUTE).await;
        }
        let held = Arc::clone(&store.settling.turn).lock_owned().await;
        let settle = |token: u8| {
            let store = Store::clone(&store);
            let issuance = issuance(Ground::JoinToken([token; 32]), &format!("0{token}"));
            tokio::spawn(async move { store.settle(issuance).await })
        };
        let (gone, stays, later) = (settle(1), settle(2), settle(3));
        while store.settling.waiting().len() < 3 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        drop(held);
        assert_eq!(stays.await.unwrap().unwrap(), Settled::Written);
        assert_eq!(later.await.unwrap().unwrap(), Settled::Written);
        assert_eq!(serials(&store).await, ["02", "03"]);
        let unused = store.join_token([1; 32], SystemTime::now()).await.unwrap();
        assert!(unused.is_ok(), "{unused:?}");
    }

    #[tokio::test]
    async fn who_has_the_turn_and_no_place_in_its_transaction_takes_another_for_itself() {
        let (_directory, store) = empty_store().await;
        let mut answers = Vec::new();
        for number in 0..TOGETHER {
            let issuance = issuance(Ground::Facts(Vec::new()), &format!("{number:04}"));
            let (answer, answered) = oneshot::channel();
            store.settling.waiting().push(Waiting { issuance, answer });
            answers.push(answered);
        }
        // The others wait for their answers and take no turn.
        let last = issuance(Ground::Facts(Vec::new()), "last");
        let settled = tokio::time::timeout(MINUTE, store.settle(last)).await;
        assert_eq!(settled.unwrap().unwrap(), Settled::Written);
        for answered in answers {
            assert_eq!(answered.await.unwrap().unwrap(), Settled::Written);
        }
    }
}
