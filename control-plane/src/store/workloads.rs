//! Workloads as they last registered, and the replica that each is at.

use super::{ReplicaId, Store, StoreError, unix_seconds};
use prost::Message as _;
use sidewind_api::v1;
use sqlx::AnyConnection;
use std::time::SystemTime;

impl Store {
    /// Every workload that was registered when it was last written.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn workloads(&self) -> Result<Vec<v1::Workload>, StoreError> {
        let living = self.living_workloads().await?.into_iter();
        Ok(living.filter_map(|shared| shared.workload).collect())
    }
}

/// Takes over the workloads of the process that had the store before this one.
pub(super) async fn adopt(
    connection: &mut AnyConnection,
    replica: &ReplicaId,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE workloads SET replica = $1")
        .bind(replica.as_str())
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM replicas")
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) fn read(record: &[u8]) -> Result<v1::Workload, StoreError> {
    v1::Workload::decode(record).map_err(|error| StoreError::Corrupt {
        what: "workload",
        why: error.to_string(),
    })
}

/// Writes a workload as it is now, at a replica.
pub(super) async fn upsert(
    connection: &mut AnyConnection,
    workload: &v1::Workload,
    replica: &ReplicaId,
    change: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO workloads (spiffe_id, instance_id, record, replica, change)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (spiffe_id, instance_id) DO UPDATE SET record = excluded.record,
            replica = excluded.replica, change = excluded.change, gone_at = NULL",
    )
    .bind(workload.spiffe_id.as_str())
    .bind(workload.instance_id.as_str())
    .bind(workload.encode_to_vec())
    .bind(replica.as_str())
    .bind(change)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that a workload left a replica. One that is at another by now stays.
pub(super) async fn delete(
    connection: &mut AnyConnection,
    (spiffe_id, instance_id): (&str, &str),
    replica: &ReplicaId,
    change: i64,
    now: SystemTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE workloads SET gone_at = $1, change = $2
         WHERE spiffe_id = $3 AND instance_id = $4 AND replica = $5 AND gone_at IS NULL",
    )
    .bind(unix_seconds(now))
    .bind(change)
    .bind(spiffe_id)
    .bind(instance_id)
    .bind(replica.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that every workload of a replica left.
pub(super) async fn delete_all_of(
    connection: &mut AnyConnection,
    replica: &ReplicaId,
    change: i64,
    now: SystemTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE workloads SET gone_at = $1, change = $2 WHERE replica = $3 AND gone_at IS NULL",
    )
    .bind(unix_seconds(now))
    .bind(change)
    .bind(replica.as_str())
    .execute(connection)
    .await?;
    Ok(())
}
