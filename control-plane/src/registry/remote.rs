//! Workloads whose streams are at other replicas.
//!
//! The directory holds each workload once. While a workload has a stream here, what it said here counts;
//! else what the store has of it. A workload that left this replica and is at another by then never leaves
//! discovery in between.

use super::workload::{WorkloadKey, WorkloadRecord};
use super::{Registry, State};
use crate::store::writer::Write;
use crate::store::{ReplicaId, SharedWorkload};
use sidewind_api::ServiceName;
use sidewind_identity::SpiffeId;
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;
use tokio::time::Instant;

/// The workloads of other replicas, as the store has them.
#[derive(Debug, Default)]
pub(super) struct Remote {
    workloads: HashMap<WorkloadKey, RemoteWorkload>,
}

#[derive(Debug)]
struct RemoteWorkload {
    record: WorkloadRecord,
    replica: ReplicaId,
}

impl Remote {
    /// Whether another replica has a workload.
    pub(super) fn has(&self, key: &WorkloadKey) -> bool {
        self.workloads.contains_key(key)
    }

    /// What another replica has of a workload.
    pub(super) fn record(&self, key: &WorkloadKey) -> Option<WorkloadRecord> {
        Some(self.workloads.get(key)?.record.clone())
    }
}

impl Registry {
    /// The replica that has the stream of a workload, when it is another than this one.
    #[must_use]
    pub fn replica_of(&self, key: &WorkloadKey) -> Option<ReplicaId> {
        let state = self.state();
        if state.directory.stream_of(key).is_some() {
            return None;
        }
        let remote = state.remote.workloads.get(key)?;
        Some(remote.replica.clone())
    }

    /// Takes what came to other replicas and left them. `lives` says of a replica whether it has shown that it
    /// does; workloads of one that has not are marked as not confirmed.
    pub fn take_remote(
        &self,
        own: &ReplicaId,
        changes: &[SharedWorkload],
        lives: &dyn Fn(&ReplicaId) -> bool,
    ) {
        let mut state = self.state();
        for change in changes {
            self.take_change(&mut state, own, change, lives);
        }
        self.measure(&state);
        self.notify(&state);
    }

    /// Takes everything that the store has: what it does not have has left.
    pub fn take_all_remote(
        &self,
        own: &ReplicaId,
        living: &[SharedWorkload],
        lives: &dyn Fn(&ReplicaId) -> bool,
    ) {
        let named: HashSet<(&str, &str)> = living
            .iter()
            .map(|shared| (shared.spiffe_id.as_str(), shared.instance_id.as_str()))
            .collect();
        let mut state = self.state();
        let is_left =
            |key: &WorkloadKey| !named.contains(&(key.spiffe_id.as_str(), &*key.instance_id));
        let left: Vec<_> = state.remote.workloads.keys().cloned().collect();
        for key in left.iter().filter(|key| is_left(key)) {
            state.forget_remote(key);
        }
        for key in state.own_keys().into_iter().filter(is_left) {
            self.write_again(&state, &key);
        }
        drop(state);
        self.take_remote(own, living, lives);
    }

    /// Takes note that a replica has shown that it lives, or shows so no more: then its workloads stay in discovery,
    /// not confirmed.
    pub fn note_replica(&self, replica: &ReplicaId, lives: bool) {
        let mut state = self.state();
        let state = &mut *state;
        let of_replica = |remote: &&mut RemoteWorkload| remote.replica == *replica;
        let mut keys = Vec::new();
        for remote in state.remote.workloads.values_mut().filter(of_replica) {
            if remote.record.confirmed != lives {
                remote.record.confirmed = lives;
                keys.push(remote.record.key.clone());
            }
        }
        for key in &keys {
            // One with a stream here is there, whatever becomes of the other replica.
            if state.directory.stream_of(key).is_none() {
                state.directory.set_confirmed(key, lives);
            }
        }
        self.measure(state);
    }

    /// Takes the workloads of a replica that is gone out of discovery.
    pub fn forget_replica(&self, replica: &ReplicaId) {
        self.forget_remote_if(|remote| remote.replica == *replica);
    }

    /// Takes workloads out of discovery whose replica is silent, and which have not come to another one although their
    /// proxies, if they lived, would have.
    pub fn forget_missing_remote(&self, now: SystemTime, is_silent: &dyn Fn(&ReplicaId) -> bool) {
        self.forget_remote_if(|remote| {
            is_silent(&remote.replica) && is_missing_at(&remote.record) < now
        });
    }

    fn forget_remote_if(&self, is_over: impl Fn(&RemoteWorkload) -> bool) {
        let mut state = self.state();
        let over = state.remote.workloads.values().filter(|it| is_over(it));
        let keys: Vec<_> = over.map(|remote| remote.record.key.clone()).collect();
        for key in &keys {
            state.forget_remote(key);
        }
        self.measure(&state);
        self.notify(&state);
    }

    /// The replicas whose workloads are in discovery here.
    pub fn remote_replicas(&self) -> HashSet<ReplicaId> {
        let state = self.state();
        let remote = state.remote.workloads.values();
        remote.map(|remote| remote.replica.clone()).collect()
    }

    /// Writes every workload that has a stream here again, after the others had given this replica up.
    pub fn write_all_again(&self) {
        let state = self.state();
        for key in state.own_keys() {
            self.write_again(&state, &key);
        }
    }

    /// Learns which services belong to the mesh by what other replicas registered.
    pub fn learn_service_names(&self, names: &[String]) {
        let mut state = self.state();
        for service in names
            .iter()
            .filter_map(|name| name.parse::<ServiceName>().ok())
        {
            if state.directory.learn_service(&service) {
                state.dirty.insert(super::Topic::Service(service));
            }
        }
        self.notify(&state);
    }

    fn take_change(
        &self,
        state: &mut State,
        own: &ReplicaId,
        change: &SharedWorkload,
        lives: &dyn Fn(&ReplicaId) -> bool,
    ) {
        let Ok(spiffe_id) = SpiffeId::parse(&change.spiffe_id) else {
            return;
        };
        let key = WorkloadKey {
            spiffe_id,
            instance_id: change.instance_id.as_str().into(),
        };
        let here = state.directory.stream_of(&key).is_some();
        let record = change.workload.as_ref().and_then(WorkloadRecord::from_api);
        match record {
            // What this replica wrote itself: it knows better what is here by now.
            _ if change.replica == *own && here && change.workload.is_some() => {
                state.remote.workloads.remove(&key);
            }
            Some(mut record) if change.replica != *own => {
                record.confirmed = lives(&change.replica);
                let replica = change.replica.clone();
                let remote = RemoteWorkload { record, replica };
                state.remote.workloads.insert(key.clone(), remote);
                state.show_remote(&key);
            }
            // Written here, and left since: the writing of that is under way.
            Some(_) => {}
            None => {
                state.forget_remote(&key);
                // Late news of a stream that the workload had before: it is here.
                if here {
                    self.write_again(state, &key);
                }
            }
        }
    }

    fn write_again(&self, state: &State, key: &WorkloadKey) {
        if let Some(record) = state.directory.record(key) {
            self.writer
                .write(Write::WorkloadCame(Box::new(record.to_api())));
        }
    }
}

/// When a live proxy would have come again: it renews within a third of its certificate's life and opens a new stream
/// then, and is told to look elsewhere by a replica that has lost the store. The time from a third to a half is for it to
/// find one.
fn is_missing_at(record: &WorkloadRecord) -> SystemTime {
    let life = record.svid_not_after.duration_since(record.connected_since);
    record.connected_since + life.unwrap_or_default() / 2
}

impl State {
    /// Workloads with a stream here.
    fn own_keys(&self) -> Vec<WorkloadKey> {
        let keys = self.streams.values().map(|stream| stream.key.clone());
        keys.collect()
    }

    /// Puts what another replica has of a workload into discovery, unless it has a stream here.
    fn show_remote(&mut self, key: &WorkloadKey) {
        let Some(record) = self.remote.record(key) else {
            return;
        };
        if self.directory.stream_of(key).is_some() || self.directory.record(key) == Some(&record) {
            return;
        }
        let topics = self.directory.insert(record, None);
        self.dirty.extend(topics);
    }

    /// Takes a workload of another replica out of discovery, unless it has a stream here.
    fn forget_remote(&mut self, key: &WorkloadKey) {
        let known = self.remote.workloads.remove(key).is_some();
        if known && self.directory.stream_of(key).is_none() {
            let topics = self.directory.remove(key, Instant::now());
            self.dirty.extend(topics);
        }
    }
}
