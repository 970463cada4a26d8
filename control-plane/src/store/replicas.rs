//! The processes that share the store, and what each has in discovery.

use super::{Store, StoreError, Topic, unix_seconds, workloads};
use sidewind_api::v1;
use sqlx::Row as _;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// Names one running process, randomly.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplicaId(Arc<str>);

impl ReplicaId {
    pub(super) fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string().into())
    }

    pub(crate) fn named(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload as the store has it.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedWorkload {
    /// Its identity.
    pub spiffe_id: String,
    /// Its process.
    pub instance_id: String,
    /// The replica that its stream is at, or was at last.
    pub replica: ReplicaId,
    /// The notice that it came or left with.
    pub change: i64,
    /// What it registered; nothing once it has left.
    pub workload: Option<v1::Workload>,
}

impl Store {
    /// The name of this process among the replicas.
    #[must_use]
    pub fn replica(&self) -> &ReplicaId {
        &self.replica
    }

    /// Shows the others that this replica lives. `false` when they did not know of it, or had given it up:
    /// then what it has in discovery is to be written again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn beat(&self) -> Result<bool, StoreError> {
        let known = sqlx::query("UPDATE replicas SET beat = beat + 1 WHERE id = $1")
            .bind(self.replica.as_str())
            .execute(&self.pool)
            .await?;
        if known.rows_affected() > 0 {
            return Ok(true);
        }
        sqlx::query(
            "INSERT INTO replicas (id, beat, version, started_at) VALUES ($1, 1, $2, $3)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(self.replica.as_str())
        .bind(sidewind_api::VERSION)
        .bind(unix_seconds(SystemTime::now()))
        .execute(&self.pool)
        .await?;
        Ok(false)
    }

    /// The beat of every replica.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn beats(&self) -> Result<Vec<(ReplicaId, i64)>, StoreError> {
        let rows = sqlx::query("SELECT id, beat FROM replicas")
            .fetch_all(&self.pool)
            .await?;
        let read = |row: &sqlx::any::AnyRow| {
            let id: String = row.try_get("id")?;
            Ok((ReplicaId(id.into()), row.try_get("beat")?))
        };
        rows.iter().map(read).collect()
    }

    /// Tells the others that this replica ends in order: its workloads are at another soon, or have ended with it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn take_leave(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM replicas WHERE id = $1")
            .bind(self.replica.as_str())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Workloads that came or left after a notice, in that order.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn workloads_since(&self, change: i64) -> Result<Vec<SharedWorkload>, StoreError> {
        let rows = sqlx::query(
            "SELECT spiffe_id, instance_id, record, replica, change, gone_at FROM workloads
             WHERE change > $1 ORDER BY change",
        )
        .bind(change)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(shared).collect()
    }

    /// The notice of the newest change of a workload.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn newest_workload_change(&self) -> Result<i64, StoreError> {
        let newest = sqlx::query_scalar("SELECT coalesce(max(change), 0) FROM workloads")
            .fetch_one(&self.pool)
            .await?;
        Ok(newest)
    }

    /// Every workload that has not left, in the order in which they came.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn living_workloads(&self) -> Result<Vec<SharedWorkload>, StoreError> {
        let rows = sqlx::query(
            "SELECT spiffe_id, instance_id, record, replica, change, gone_at FROM workloads
             WHERE gone_at IS NULL ORDER BY change",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(shared).collect()
    }

    /// Takes a replica that is gone, and the workloads that were at it, out of discovery.
    ///
    /// # Errors
    /// When the store fails; then nothing has changed.
    pub async fn bury(&self, replica: &ReplicaId, now: SystemTime) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let change = self.announce(&mut transaction, Topic::Workloads).await?;
        sqlx::query("DELETE FROM replicas WHERE id = $1")
            .bind(replica.as_str())
            .execute(&mut *transaction)
            .await?;
        workloads::delete_all_of(&mut transaction, replica, change, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Services that registrations have named after a notice, with the newest of the notices.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn services_since(&self, change: i64) -> Result<(Vec<String>, i64), StoreError> {
        let rows = sqlx::query("SELECT name, change FROM services WHERE change > $1")
            .bind(change)
            .fetch_all(&self.pool)
            .await?;
        let mut newest = change;
        let mut names = Vec::with_capacity(rows.len());
        for row in rows {
            names.push(row.try_get("name")?);
            newest = newest.max(row.try_get("change")?);
        }
        Ok((names, newest))
    }
}

fn shared(row: &sqlx::any::AnyRow) -> Result<SharedWorkload, StoreError> {
    let replica: String = row.try_get("replica")?;
    let gone = row.try_get::<Option<i64>, _>("gone_at")?.is_some();
    let record: &[u8] = row.try_get("record")?;
    Ok(SharedWorkload {
        spiffe_id: row.try_get("spiffe_id")?,
        instance_id: row.try_get("instance_id")?,
        replica: ReplicaId(replica.into()),
        change: row.try_get("change")?,
        workload: if gone {
            None
        } else {
            Some(workloads::read(record)?)
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::each_store;
    use super::super::writer::{Write, writer};
    use super::*;

    async fn write(store: &Store, write: Write) {
        let (writer, task) = writer(store.clone(), Arc::default());
        writer.write(write);
        drop(writer);
        task.run().await;
    }

    fn came(instance: &str) -> Write {
        Write::WorkloadCame(Box::new(v1::Workload {
            spiffe_id: "spiffe://example.org/x".to_owned(),
            instance_id: instance.to_owned(),
            ..Default::default()
        }))
    }

    #[tokio::test]
    async fn a_replica_that_was_given_up_hears_of_it_at_its_next_beat() {
        for store in each_store().await {
            let now = SystemTime::now();
            assert!(!store.beat().await.unwrap());
            assert!(store.beat().await.unwrap());
            write(&store, came("a")).await;
            let replica = store.replica().clone();
            assert_eq!(store.beats().await.unwrap(), [(replica.clone(), 2)]);
            let came = store.workloads_since(0).await.unwrap();
            assert_eq!((came.len(), &came[0].replica), (1, &replica));
            store.bury(&replica, now).await.unwrap();
            let left = store.workloads_since(came[0].change).await.unwrap();
            assert_eq!((left.len(), &left[0].workload), (1, &None));
            assert!(store.living_workloads().await.unwrap().is_empty());
            assert!(!store.beat().await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_workload_that_went_to_another_replica_is_not_taken_out_by_the_first() {
        for store in each_store().await {
            let mut other = Store::clone(&store);
            other.replica = ReplicaId::random();
            write(&store, came("a")).await;
            write(&other, came("a")).await;
            let left = Write::WorkloadLeft {
                spiffe_id: "spiffe://example.org/x".to_owned(),
                instance_id: "a".to_owned(),
            };
            write(&store, left).await;
            store
                .bury(store.replica(), SystemTime::now())
                .await
                .unwrap();
            let living = store.living_workloads().await.unwrap();
            assert_eq!((living.len(), &living[0].replica), (1, &other.replica));
        }
    }
}
