//! Writes that may follow the answer: one task commits them in batches.
//!
//! A renewal waits for no disk. When the store is away its writes are kept, up to a bound, and tried
//! again; beyond the bound they are counted as lost and said aloud, and the renewals go on.

use super::registrations::insert_svid;
use super::{AuditRecord, RegistrationId, Store, StoreError, audit, workloads};
use crate::telemetry::{Metrics, Throttle};
use sidewind_api::v1;
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
        /// Its serial number.
        serial: String,
        /// The registration.
        registration: RegistrationId,
        /// Its end.
        not_after: SystemTime,
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

/// Most writes that wait, some megabytes at most.
const QUEUE: usize = 16_384;
/// Most writes in one transaction.
const BATCH: usize = 512;
const RETRY_AFTER: Duration = Duration::from_secs(1);

static FAILED: Throttle = Throttle::new();

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
        if self.queue.try_send(write).is_err() {
            self.metrics.store_writes_lost.inc();
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
            tracing::error!("not everything could be written to the store");
        }
    }

    /// Logs a record and writes it soon.
    pub fn audit(&self, record: AuditRecord) {
        record.log();
        self.write(Write::Audit(Box::new(record)));
    }
}

impl WriterTask {
    /// Writes until every [`Writer`] is gone.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            // The last writes of a process are tried twice and not for ever.
            let mut attempts_left_at_end = 2_u32;
            while let Err(error) = commit(&self.store, &batch).await {
                self.metrics.store_failures.inc();
                let waiting = self.queue.len();
                if let Some(unsaid) = FAILED.admit("write") {
                    tracing::error!(
                        error = crate::telemetry::chain(&error),
                        waiting,
                        unsaid,
                        "the store cannot be written; keeping what is to be written"
                    );
                }
                if self.queue.is_closed() {
                    attempts_left_at_end = attempts_left_at_end.saturating_sub(1);
                    if attempts_left_at_end == 0 {
                        return;
                    }
                }
                tokio::time::sleep(RETRY_AFTER).await;
            }
            for write in batch.drain(..) {
                if let Write::Flush(written) = write {
                    // Who asked may have lost patience.
                    let _ = written.send(());
                }
            }
        }
    }
}

async fn commit(store: &Store, batch: &[Write]) -> Result<(), StoreError> {
    let mut transaction = store.begin().await?;
    for write in batch {
        match write {
            Write::Audit(record) => audit::insert(&mut transaction, record).await?,
            Write::Svid {
                serial,
                registration,
                not_after,
            } => insert_svid(&mut transaction, serial, registration, *not_after).await?,
            Write::WorkloadCame(workload) => workloads::upsert(&mut transaction, workload).await?,
            Write::WorkloadLeft {
                spiffe_id,
                instance_id,
            } => workloads::delete(&mut transaction, spiffe_id, instance_id).await?,
            Write::Flush(_) => {}
        }
    }
    transaction.commit().await?;
    Ok(())
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
}
