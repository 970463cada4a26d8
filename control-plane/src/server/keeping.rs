//! The store of a running control plane: opened, shared with other replicas, and remembered.

use crate::registry::Registry;
use crate::registry::sharing::Sharing;
use crate::store::{Location, StateDir, Store, StoreError, StoreKey};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// How often it is noted how far the store has come.
const REMEMBERED_EVERY: Duration = Duration::from_secs(10);

/// Opens the store, and makes up for what it has lost if an older copy was restored.
pub(super) async fn open_store(
    state: &StateDir,
    location: Location,
    key: Option<StoreKey>,
    metrics: &Metrics,
) -> Result<Store, StoreError> {
    let store = Store::open_at(state, location, key).await?;
    store.health().report_to(metrics.store_up.clone());
    let (now, restored) = (SystemTime::now(), metrics.store_restored.clone());
    store.watch_for_loss(state, restored, now).await?;
    store.begin_time(now).await?;
    Ok(store)
}

/// Hears of other replicas and shows them this one, where there can be any.
pub(super) async fn share(
    store: &Store,
    registry: &Arc<Registry>,
    metrics: &Arc<Metrics>,
    background: &mut JoinSet<()>,
) -> Result<(), StoreError> {
    metrics.replicas.set(1);
    if !store.is_shared() {
        return Ok(());
    }
    let sharing = Sharing::open(store.clone(), Arc::clone(registry), Arc::clone(metrics)).await?;
    background.spawn(sharing.run());
    background.spawn(store.clone().hear_notices());
    tracing::info!(replica = %store.replica(), store = %store.location(), "the store is shared");
    Ok(())
}

/// Remembers how far the store and time have come, and notices when the store was put back. Runs until dropped.
pub(super) async fn remember(store: Store) {
    let mut interval = tokio::time::interval(REMEMBERED_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = SystemTime::now();
        let kept = match store.look_for_loss(now).await {
            // It answers, and what it answers is not to be relied on: this process ends for it.
            Err(StoreError::DistrustedRoot { .. }) => continue,
            Ok(_) => store.keep_time(now).await,
            Err(error) => Err(error),
        };
        store.health().note(kept);
    }
}
