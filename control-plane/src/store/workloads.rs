//! Workloads as they last registered.

use super::{Store, StoreError};
use prost::Message as _;
use sidewind_api::v1;
use sqlx::AnyConnection;

impl Store {
    /// Every workload that was registered when it was last written.
    ///
    /// # Errors
    /// When the store fails, or holds what cannot be read.
    pub async fn workloads(&self) -> Result<Vec<v1::Workload>, StoreError> {
        let records: Vec<Vec<u8>> = sqlx::query_scalar("SELECT record FROM workloads")
            .fetch_all(&self.pool)
            .await?;
        let read = |record: &Vec<u8>| {
            v1::Workload::decode(record.as_slice()).map_err(|error| StoreError::Corrupt {
                what: "workload",
                why: error.to_string(),
            })
        };
        records.iter().map(read).collect()
    }
}

/// Writes a workload as it is now.
pub(super) async fn upsert(
    connection: &mut AnyConnection,
    workload: &v1::Workload,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO workloads (spiffe_id, instance_id, record) VALUES ($1, $2, $3)
         ON CONFLICT (spiffe_id, instance_id) DO UPDATE SET record = excluded.record",
    )
    .bind(workload.spiffe_id.as_str())
    .bind(workload.instance_id.as_str())
    .bind(workload.encode_to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a workload.
pub(super) async fn delete(
    connection: &mut AnyConnection,
    spiffe_id: &str,
    instance_id: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM workloads WHERE spiffe_id = $1 AND instance_id = $2")
        .bind(spiffe_id)
        .bind(instance_id)
        .execute(connection)
        .await?;
    Ok(())
}
