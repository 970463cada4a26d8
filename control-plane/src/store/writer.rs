//! Writes that may follow the answer: one task commits them in batches.
//!
//! A renewal waits for no disk. When the store is away its writes are kept, up to a bound, and tried
//! again; beyond the bound they are counted as lost and said aloud, and the renewals go on.

use super::registrations::{NewSvid, insert_svids};
use super::{AuditRecord, RegistrationId, Store, StoreError, SvidRecord, Topic, audit, workloads};
use crate::telemetry::{Metrics, Throttle};
use sidewind_api::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// Something to be written.
#[derive(Debug)]
pub enum Write {
    /// A record of an issuance or refusal.
    Audit(Box<AuditRecord>),
    /// A certificate that came of a registration.
    Svid {
        /// The certificate.
        svid: SvidRecord,
        /// The registration.
        registration: RegistrationId,
    },
    /// A workload that registered.
    WorkloadCame(Box<v1::Workload>),
    /// A workload that went away.
    WorkloadLeft {
        /// Its identity.
        spiffe_id: String,
        /// Its process.
        instance_id: String,
    },
    /// Nothing; says when all that came before is written.
    Flush(oneshot::Sender<()>),
}

/// Most writes that wait, some tens of megabytes at most: minutes of renewals.
const QUEUE: usize = 65_536;
/// Most writes in one transaction.
const BATCH: usize = 512;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a transaction may take.
const COMMIT_TIME: Duration = Duration::from_secs(15);

/// Takes writes for the writer task. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Writer {
    queue: mpsc::Sender<Write>,
    metrics: Arc<Metrics>,
}

/// The task that writes; it ends when every [`Writer`] is gone and all is written.
#[derive(Debug)]
pub struct WriterTask {
    queue: mpsc::Receiver<Write>,
    store: Store,
    metrics: Arc<Metrics>,
}

/// A writer and its task, to be spawned.
#[must_use]
pub fn writer(store: Store, metrics: Arc<Metrics>) -> (Writer, WriterTask) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let task = WriterTask {
        queue,
        store,
        metrics: Arc::clone(&metrics),
    };
    let queue = sender;
    (Writer { queue, metrics }, task)
}

impl Writer {
    /// Writes a thing soon.
    pub fn write(&self, write: Write) {
        static LOST: Throttle = Throttle::new();
        if self.queue.try_send(write).is_err() {
            self.metrics.store_writes_lost.inc();
            if let Some(unsaid) = LOST.admit("write") {
                tracing::error!(
                    unsaid,
                    "the store has been away for so long that records are lost: audit, certificates, workloads"
                );
            }
        }
    }

    /// Waits until all that was given so far is written, for five seconds at most.
    pub async fn flush(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let (sender, written) = oneshot::channel();
        let flushed = async {
            self.queue.send(Write::Flush(sender)).await.ok()?;
            written.await.ok()
        };
        if !matches!(tokio::time::timeout(PATIENCE, flushed).await, Ok(Some(()))) {
            let lost = self.queue.max_capacity() - self.queue.capacity();
            self.metrics.store_writes_lost.inc_by(lost as u64);
            tracing::error!(
                lost,
                "what waited to be written to the store is lost with this process"
            );
        }
    }

    /// Logs a record and writes it soon.
    pub fn audit(&self, record: AuditRecord) {
        record.log();
        self.write(Write::Audit(Box::new(record)));
    }
}

/// A write with the name that its record has, however often it is tried.
#[derive(Debug)]
struct Named {
    name: String,
    write: Write,
}

impl WriterTask {
    /// Writes until every [`Writer`] is gone.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            let named = |write| Named {
                name: audit::new_name(),
                write,
            };
            let named: Vec<Named> = batch.drain(..).map(named).collect();
            if !self.write(&named).await {
                self.give_up(named.len());
                return;
            }
            for Named { write, .. } in named {
                if let Write::Flush(written) = write {
                    // Who asked may have lost patience.
                    let _ = written.send(());
                }
            }
        }
    }

    /// Counts what is lost with the process.
    fn give_up(&mut self, batch: usize) {
        self.queue.close();
        let lost = batch + std::iter::from_fn(|| self.queue.try_recv().ok()).count();
        self.metrics.store_writes_lost.inc_by(lost as u64);
        tracing::error!(
            lost,
            "the process ends before all was written to the store, and the rest is lost"
        );
    }

    /// Writes a batch, as often as it takes; `false` when the process ends first.
    async fn write(&self, batch: &[Named]) -> bool {
        // The last writes of a process are tried twice and not for ever.
        let mut attempts_left_at_end = 2_u32;
        loop {
            let error = match self.commit(batch).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            self.metrics.store_failures.inc();
            if is_about_the_data(&error) {
                self.write_one_by_one(batch).await;
                return true;
            }
            self.store.health().fails(&error);
            if self.queue.is_closed() {
                attempts_left_at_end = attempts_left_at_end.saturating_sub(1);
                if attempts_left_at_end == 0 {
                    return false;
                }
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// One write that the store will never take must not hold up the others.
    async fn write_one_by_one(&self, batch: &[Named]) {
        for write in batch {
            if let Err(error) = self.commit(std::slice::from_ref(write)).await {
                self.metrics.store_writes_lost.inc();
                let error = crate::telemetry::chain(&error);
                tracing::error!(error, "the store does not take a record; it is given up");
            }
        }
    }

    async fn commit(&self, batch: &[Named]) -> Result<(), StoreError> {
        let committed = tokio::time::timeout(COMMIT_TIME, commit(&self.store, batch)).await;
        committed.unwrap_or(Err(StoreError::Slow))?;
        self.store.health().works();
        Ok(())
    }
}

/// Whether the database refuses what is written, and not the writing: SQLSTATE classes 22 and 23 of
/// PostgreSQL; TOOBIG, CONSTRAINT and MISMATCH of SQLite.
fn is_about_the_data(error: &StoreError) -> bool {
    let StoreError::Database(sqlx::Error::Database(error)) = error else {
        return matches!(error, StoreError::Database(sqlx::Error::Encode(_)));
    };
    let code = error.code().unwrap_or_default();
    if error
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
        .is_some()
    {
        return code.starts_with("22") || code.starts_with("23");
    }
    let primary = code.parse::<u32>().map(|code| code & 0xff);
    matches!(primary, Ok(18..=20))
}

async fn commit(store: &Store, batch: &[Named]) -> Result<(), StoreError> {
    let mut records = Vec::new();
    let mut svids = Vec::new();
    // Of each workload the last counts: one that came and left while the store was away is at another replica by now, and
    // must not be taken back from it for a moment.
    let mut moves = BTreeMap::new();
    for Named { name, write } in batch {
        match write {
            Write::Audit(record) => records.push((name.as_str(), record.as_ref())),
            Write::Svid { svid, registration } => svids.push(NewSvid { svid, registration }),
            Write::WorkloadCame(workload) => {
                moves.insert((&*workload.spiffe_id, &*workload.instance_id), write);
            }
            Write::WorkloadLeft {
                spiffe_id,
                instance_id,
            } => {
                moves.insert((&**spiffe_id, &**instance_id), write);
            }
            Write::Flush(_) => {}
        }
    }
    let mut transaction = store.begin().await?;
    insert_svids(&mut transaction, &svids).await?;
    audit::insert_named(&mut transaction, &records).await?;
    if !moves.is_empty() {
        let change = store.announce(&mut transaction, Topic::Workloads).await?;
        for write in moves.into_values() {
            move_workload(&mut transaction, store, write, change).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

async fn move_workload(
    transaction: &mut sqlx::AnyConnection,
    store: &Store,
    write: &Write,
    change: i64,
) -> Result<(), StoreError> {
    let replica = store.replica();
    match write {
        Write::WorkloadCame(workload) => {
            workloads::upsert(transaction, workload, replica, change).await
        }
        Write::WorkloadLeft {
            spiffe_id,
            instance_id,
        } => {
            let key = (spiffe_id.as_str(), instance_id.as_str());
            workloads::delete(transaction, key, replica, change, SystemTime::now()).await
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{each_store, empty_store};
    use super::*;

    #[tokio::test]
    async fn what_was_taken_is_written_before_the_task_ends() {
        for store in each_store().await {
            let (writer, task) = writer(Store::clone(&store), Arc::default());
            for instance in ["a", "b", "c"] {
                writer.write(Write::WorkloadCame(Box::new(v1::Workload {
                    spiffe_id: "spiffe://example.org/x".to_owned(),
                    instance_id: instance.to_owned(),
                    ..Default::default()
                })));
            }
            writer.write(Write::WorkloadLeft {
                spiffe_id: "spiffe://example.org/x".to_owned(),
                instance_id: "b".to_owned(),
            });
            drop(writer);
            task.run().await;
            let mut left: Vec<String> = store
                .workloads()
                .await
                .unwrap()
                .into_iter()
                .map(|workload| workload.instance_id)
                .collect();
            left.sort();
            assert_eq!(left, ["a", "c"]);
        }
    }

    #[tokio::test]
    async fn a_workload_that_came_and_left_again_is_not_taken_from_the_replica_that_has_it() {
        for store in each_store().await {
            let other = store.second_replica().await;
            let came = Write::WorkloadCame(Box::new(v1::Workload {
                spiffe_id: "spiffe://example.org/x".to_owned(),
                instance_id: "a".to_owned(),
                ..v1::Workload::default()
            }));
            let left = Write::WorkloadLeft {
                spiffe_id: "spiffe://example.org/x".to_owned(),
                instance_id: "a".to_owned(),
            };
            let named = |write| Named {
                name: audit::new_name(),
                write,
            };
            let batch = [named(came), named(left)];
            commit(&other, &batch[..1]).await.unwrap();
            let before = store.living_workloads().await.unwrap();
            commit(&store, &batch).await.unwrap();
            let living = store.living_workloads().await.unwrap();
            if store.is_shared() {
                assert_eq!(living, before);
                assert_eq!(living[0].replica, *other.replica());
            } else {
                assert!(living.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn writes_beyond_the_bound_are_counted_and_block_nobody() {
        let (_directory, store) = empty_store().await;
        let (writer, _task) = writer(store, Arc::default());
        for _ in 0..QUEUE + 3 {
            writer.write(Write::WorkloadLeft {
                spiffe_id: String::new(),
                instance_id: String::new(),
            });
        }
        assert_eq!(writer.metrics.store_writes_lost.get(), 3);
    }

    #[tokio::test]
    async fn what_is_lost_with_the_process_is_counted() {
        let (_directory, store) = empty_store().await;
        let (writer, task) = writer(store.clone(), Arc::default());
        for _ in 0..BATCH + 3 {
            writer.audit(granted(None));
        }
        let metrics = Arc::clone(&writer.metrics);
        store.close().await;
        drop(writer);
        task.run().await;
        assert_eq!(metrics.store_writes_lost.get(), BATCH as u64 + 3);
    }

    fn granted(detail: Option<String>) -> AuditRecord {
        let mut record = super::super::tests::audit_record("renew", SystemTime::now());
        record.detail = detail;
        record
    }

    #[tokio::test]
    async fn a_batch_whose_commit_was_not_confirmed_is_written_once() {
        for store in each_store().await {
            let named = |number: usize| Named {
                name: format!("record {number}"),
                write: Write::Audit(Box::new(granted(Some("with a \0 in it".to_owned())))),
            };
            let batch: Vec<Named> = (0..75).map(named).collect();
            commit(&store, &batch).await.unwrap();
            commit(&store, &batch).await.unwrap();
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM audit")
                .fetch_one(&store.pool)
                .await
                .unwrap();
            assert_eq!(count, 75);
        }
    }

    #[tokio::test]
    async fn a_record_that_the_store_never_takes_does_not_hold_up_the_others() {
        for store in each_store().await {
            for statement in [
                "CREATE UNIQUE INDEX only_one ON audit (caller)",
                "INSERT INTO audit (at, event, outcome, caller) VALUES (1, 'x', 'x', 'taken')",
            ] {
                sqlx::query(statement).execute(&store.pool).await.unwrap();
            }
            let (writer, task) = writer(Store::clone(&store), Arc::default());
            for caller in ["one", "taken", "two"] {
                let mut record = granted(None);
                record.caller = caller.to_owned();
                writer.audit(record);
            }
            let metrics = Arc::clone(&writer.metrics);
            drop(writer);
            task.run().await;
            let callers: Vec<String> = sqlx::query_scalar(
                "SELECT caller FROM audit WHERE event = 'renew' ORDER BY caller",
            )
            .fetch_all(&store.pool)
            .await
            .unwrap();
            assert_eq!(callers, ["one", "two"]);
            assert_eq!(metrics.store_writes_lost.get(), 1);
        }
    }

    #[tokio::test]
    async fn a_full_disk_keeps_what_is_to_be_written_and_says_so() {
        let (_directory, store) = empty_store().await;
        let limit = async |pages: i64| {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "PRAGMA max_page_count = {pages}"
            )))
            .execute(&store.pool)
            .await
            .unwrap();
        };
        limit(1).await;
        let (writer, task) = writer(store.clone(), Arc::default());
        let writing = tokio::spawn(task.run());
        for _ in 0..2000 {
            writer.audit(granted(Some("x".repeat(500))));
        }
        while store.health().failing().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (_, why) = store.health().failing().unwrap();
        assert!(why.contains("full"), "{why}");
        limit(1_000_000).await;
        writer.flush().await;
        assert_eq!(store.health().failing(), None);
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM audit")
            .fetch_one(&store.pool)
            .await
            .unwrap();
        assert_eq!(count, 2000);
        drop(writer);
        writing.await.unwrap();
    }
}
