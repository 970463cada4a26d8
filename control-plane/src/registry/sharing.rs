//! Keeps this replica's view of the mesh and the others' together, through the store.
//!
//! Every two seconds a replica raises its beat and looks at those of the others. Beats are compared with themselves
//! alone, so no clocks need to agree; and the time in which the store could not be read does not count.
//!
//! A beat that has stood still for ten seconds says that a replica has died, or that it alone has lost the store: then it
//! goes on serving its proxies, and to take their workloads out of discovery would break traffic that works. So the
//! workloads of a silent replica stay, not confirmed, until they come to another replica or half of the life of their
//! certificates is over. A live proxy renews before that and opens a new stream then, away from a replica that says in its
//! hello that it has lost the store; who has not come by then died together with its replica. An endpoint that is dead
//! meanwhile costs its clients a failed connection, which is no request.
//! A replica that ends in order takes its beat away, and what of its workloads is not back in half a minute has ended.

use super::{CONFIRMATION_TIME, Registry};
use crate::store::{ReplicaId, Store, StoreError, Topic};
use crate::telemetry::{Metrics, chain};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often a replica shows that it lives.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How long a beat stands still before its replica counts as silent.
const SILENT_AFTER: Duration = Duration::from_secs(10);
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
}

#[derive(Debug)]
struct Pulse {
    /// None of a replica that ended in order.
    beat: Option<i64>,
    /// When the beat changed, or the store was there again.
    at: Instant,
    /// Whether it has changed under these eyes, and not stood still since.
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
            self.judge_the_silent(was_away).await?;
        }
        Ok(())
    }

    /// Raises the beat, and reads the others'.
    async fn beat(&mut self) -> Result<(), StoreError> {
        if !self.store.beat().await? {
            self.registry.write_all_again();
        }
        let now = Instant::now();
        let beats = self.store.beats().await?;
        let mut beats: Vec<_> = beats
            .into_iter()
            .map(|(id, beat)| (id, Some(beat)))
            .collect();
        // A replica that ended in order has none.
        for replica in self.registry.remote_replicas() {
            if !beats.iter().any(|(known, _)| *known == replica) {
                beats.push((replica, None));
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
            let lives = beat.is_some();
            if std::mem::replace(&mut pulse.lives, lives) != lives {
                self.registry.note_replica(replica, lives);
            }
        }
        // Nothing of it is left.
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

    /// Takes note of replicas whose beat stands still, and out of the mesh what has surely ended.
    async fn judge_the_silent(&mut self, was_away: bool) -> Result<(), StoreError> {
        let now = Instant::now();
        if was_away {
            // Nobody could beat meanwhile, or this one could not see it.
            for pulse in self.replicas.values_mut() {
                pulse.at = now;
            }
            return Ok(());
        }
        for (replica, pulse) in &mut self.replicas {
            if pulse.is_silent(now) && std::mem::replace(&mut pulse.lives, false) {
                tracing::warn!(
                    %replica,
                    "a replica is silent: it has died, or lost the store; its workloads stay in discovery until they are \
                     at another replica or half of their certificates' life is over"
                );
                self.registry.note_replica(replica, false);
            }
        }
        let is_silent = |replica: &ReplicaId| {
            self.replicas
                .get(replica)
                .is_some_and(|it| it.is_silent(now))
        };
        self.registry
            .forget_missing_remote(SystemTime::now(), &is_silent);
        let remote = self.registry.remote_replicas();
        let is_over = |replica: &ReplicaId, pulse: &Pulse| match pulse.beat {
            None => now.duration_since(pulse.at) >= CONFIRMATION_TIME,
            Some(_) => pulse.is_silent(now) && !remote.contains(replica),
        };
        let over: Vec<ReplicaId> = self
            .replicas
            .iter()
            .filter(|(replica, pulse)| is_over(replica, pulse))
            .map(|(replica, _)| replica.clone())
            .collect();
        for replica in over {
            tracing::info!(%replica, "nothing is left of a replica that is gone");
            self.registry.forget_replica(&replica);
            self.replicas.remove(&replica);
            if let Err(error) = self.store.bury(&replica, SystemTime::now()).await {
                tracing::debug!(error = chain(&error), "another replica may have done it");
                return Err(error);
            }
        }
        let silent = self
            .replicas
            .values()
            .filter(|it| it.is_silent(now))
            .count();
        let silent = i64::try_from(silent).unwrap_or(i64::MAX);
        self.metrics.silent_replicas.set(silent);
        Ok(())
    }
}

impl Pulse {
    /// Whether the beat has stood still for so long that its replica has died or lost the store.
    fn is_silent(&self, now: Instant) -> bool {
        self.beat.is_some() && now.duration_since(self.at) >= SILENT_AFTER
    }
}
