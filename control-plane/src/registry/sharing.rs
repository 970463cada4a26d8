//! Keeps this replica's view of the mesh and the others' together, through the store.
//!
//! Every two seconds a replica raises its beat and looks at those of the others. One whose beat has stood
//! still for ten seconds is gone, and its workloads with it: their proxies have come to another replica by
//! then, or are gone as well. Beats are compared with themselves alone, so no clocks need to agree; and
//! the time in which the store could not be read does not count.

use super::{CONFIRMATION_TIME, Registry};
use crate::store::{ReplicaId, Store, StoreError, Topic};
use crate::telemetry::{Metrics, chain};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often a replica shows that it lives.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How long a beat stands still before its replica is gone.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// How long one look at the store may take.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Shares the registry with other replicas.
#[derive(Debug)]
pub struct Sharing {
    store: Store,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    replicas: HashMap<ReplicaId, Pulse>,
    /// The newest notice whose workloads are taken.
    workloads: i64,
    /// The newest notice whose services are taken.
    services: i64,
    /// Whether everything is to be read: at first, and after the store was away.
    all: bool,
    opened: Instant,
}

#[derive(Debug)]
struct Pulse {
    beat: i64,
    /// When the beat changed, or the store was there again.
    at: Instant,
    /// Whether it has changed under these eyes.
    lives: bool,
}

impl Sharing {
    /// Takes up what the other replicas have, and shows them this one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open(
        store: Store,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let mut sharing = Self {
            store,
            registry,
            metrics,
            replicas: HashMap::new(),
            workloads: 0,
            services: 0,
            all: true,
            opened: Instant::now(),
        };
        sharing.beat().await?;
        sharing.read().await?;
        Ok(sharing)
    }

    /// Shares until dropped.
    pub async fn run(mut self) {
        let mut workloads = self.store.watch(Topic::Workloads);
        let mut services = self.store.watch(Topic::Services);
        let mut beats = tokio::time::interval(BEAT_INTERVAL);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = tokio::select! {
                _ = beats.tick() => true,
                // The store lives as long as this does, and the channel with it.
                _ = workloads.changed() => false,
                _ = services.changed() => false,
            };
            let look = tokio::time::timeout(LOOK_TIME, self.look(due)).await;
            let looked = look.unwrap_or(Err(StoreError::Slow));
            if looked.is_err() {
                self.all = true;
            }
            self.store.health().note(looked);
        }
    }

    async fn look(&mut self, due: bool) -> Result<(), StoreError> {
        let was_away = self.all;
        if due || was_away {
            self.beat().await?;
        }
        self.read().await?;
        if due {
            self.bury_the_dead(was_away).await?;
        }
        Ok(())
    }

    /// Raises the beat, and reads the others'.
    async fn beat(&mut self) -> Result<(), StoreError> {
        if !self.store.beat().await? {
            self.registry.write_all_again();
        }
        let now = Instant::now();
        let mut beats = self.store.beats().await?;
        // A replica that ended between its first workload and its first beat has none.
        for replica in self.registry.remote_replicas() {
            if !beats.iter().any(|(known, _)| *known == replica) {
                beats.push((replica, -1));
            }
        }
        for (replica, beat) in &beats {
            if replica == self.store.replica() {
                continue;
            }
            let Some(pulse) = self.replicas.get_mut(replica) else {
                let lives = false;
                let (beat, at) = (*beat, now);
                let pulse = Pulse { beat, at, lives };
                self.replicas.insert(replica.clone(), pulse);
                continue;
            };
            if pulse.beat == *beat {
                continue;
            }
            (pulse.beat, pulse.at) = (*beat, now);
            if !std::mem::replace(&mut pulse.lives, true) {
                self.registry.note_replica(replica, true);
            }
        }
        // Buried by another replica: the store says what is left of its workloads.
        self.replicas
            .retain(|replica, _| beats.iter().any(|(known, _)| known == replica));
        let living = self.replicas.values().filter(|pulse| pulse.lives).count();
        let living = i64::try_from(living).unwrap_or(i64::MAX);
        self.metrics.replicas.set(living.saturating_add(1));
        Ok(())
    }

    /// Reads what came to other replicas and left them, and which services there are.
    async fn read(&mut self) -> Result<(), StoreError> {
        let own = self.store.replica().clone();
        let replicas = &self.replicas;
        let lives = |replica: &ReplicaId| replicas.get(replica).is_some_and(|pulse| pulse.lives);
        if self.all {
            let newest = self.store.newest_workload_change().await?;
            let living = self.store.living_workloads().await?;
            self.registry.take_all_remote(&own, &living, &lives);
            self.workloads = newest;
            self.services = 0;
        } else {
            let changes = self.store.workloads_since(self.workloads).await?;
            self.registry.take_remote(&own, &changes, &lives);
            let newest = changes.iter().map(|change| change.change).max();
            self.workloads = newest.unwrap_or(self.workloads);
        }
        let (names, newest) = self.store.services_since(self.services).await?;
        self.registry.learn_service_names(&names);
        self.services = newest;
        self.all = false;
        Ok(())
    }

    /// Takes replicas out of the mesh whose beat stands still.
    async fn bury_the_dead(&mut self, was_away: bool) -> Result<(), StoreError> {
        let now = Instant::now();
        if was_away {
            // Nobody could beat meanwhile, or this one could not see it.
            for pulse in self.replicas.values_mut() {
                pulse.at = now;
            }
            return Ok(());
        }
        // A whole control plane that restarts has replicas that nobody has seen alive; their proxies are given
        // the time that they are given after the restart of one.
        let restart = self.opened + CONFIRMATION_TIME;
        let is_dead = |pulse: &Pulse| {
            let silent = now.duration_since(pulse.at) >= GONE_AFTER;
            silent && (pulse.lives || now >= restart)
        };
        let dead: Vec<ReplicaId> = self
            .replicas
            .iter()
            .filter(|(_, pulse)| is_dead(pulse))
            .map(|(replica, _)| replica.clone())
            .collect();
        for replica in dead {
            tracing::warn!(%replica, "a replica is gone, and the workloads that are not back with it");
            self.registry.note_replica(&replica, false);
            self.replicas.remove(&replica);
            if let Err(error) = self.store.bury(&replica, SystemTime::now()).await {
                tracing::debug!(error = chain(&error), "another replica may have done it");
                return Err(error);
            }
        }
        Ok(())
    }
}
