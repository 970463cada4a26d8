//! Which destinations the workload uses, and what the control plane says of each.
//!
//! Workers subscribe from their own threads and keep the receiver; the stream to the control plane takes from here
//! what is to be subscribed, and puts answers in. Answers stay while the control plane is away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sidewind_api::v1;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Most destinations that are followed; the one that was subscribed longest ago gives way.
pub(crate) const MAX_DESTINATIONS: usize = 4096;

/// A destination without receivers is followed this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Longest destination: a DNS name of 253 bytes and a port.
const MAX_DESTINATION_BYTES: usize = 260;

/// What a destination is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Resolution {
    /// Not in the mesh, and no ServiceEntry names it.
    Outside,
    /// A service, with its endpoints.
    Service(Arc<v1::Service>),
}

/// Gives out receivers of resolutions. Clones share everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<Entries>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    by_destination: HashMap<Arc<str>, Entry>,
    /// From the one that was subscribed longest ago.
    by_age: BTreeMap<u64, Arc<str>>,
    next_age: u64,
    /// Destinations that were added or removed since the stream last looked.
    dirty: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    resolution: watch::Sender<Option<Resolution>>,
    age: u64,
    idle_since: Option<Instant>,
}

impl Discovery {
    /// Follows `destination` (`ip:port`, `[ipv6]:port` or `host:port`): none until the first answer, then what it is
    /// now.
    ///
    /// Subscribing again is cheap, but a receiver that is kept costs nothing. A receiver whose sender is gone
    /// (`has_changed` fails) was pushed out by [`MAX_DESTINATIONS`] others: its value gets old, so subscribe again.
    pub(crate) fn subscribe(&self, destination: &str) -> watch::Receiver<Option<Resolution>> {
        if destination.len() > MAX_DESTINATION_BYTES
            || destination.parse::<sidewind_api::Destination>().is_err()
        {
            // No such name can be in the mesh, and a control plane would take the question amiss.
            return watch::channel(Some(Resolution::Outside)).1;
        }
        let name = if destination.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Arc::from(destination.to_ascii_lowercase())
        } else {
            Arc::from(destination)
        };
        let (receiver, is_new) = self.entries().subscribe(name);
        if is_new {
            self.shared.changed.notify_one();
        }
        receiver
    }

    /// How many destinations are followed.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries().by_destination.len()
    }

    /// Waits until destinations were added or removed.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Destinations that were added or removed since the last call.
    pub(super) fn take_dirty(&self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.entries().dirty)
    }

    /// Every destination that is followed.
    pub(super) fn all(&self) -> Vec<Arc<str>> {
        self.entries().by_destination.keys().cloned().collect()
    }

    pub(super) fn is_followed(&self, destination: &str) -> bool {
        self.entries().by_destination.contains_key(destination)
    }

    /// Puts in what the control plane says. Receivers are woken only when it is something new. False for a
    /// destination that nobody follows.
    pub(super) fn apply(&self, destination: &str, resolution: Resolution) -> bool {
        let entries = self.entries();
        let Some(entry) = entries.by_destination.get(destination) else {
            return false;
        };
        entry.resolution.send_if_modified(|present| {
            let is_new = present.as_ref() != Some(&resolution);
            if is_new {
                *present = Some(resolution);
            }
            is_new
        });
        true
    }

    /// Forgets destinations that have had no receiver for [`IDLE_TIMEOUT`].
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut entries = self.entries();
        let mut idle = Vec::new();
        for (name, entry) in &mut entries.by_destination {
            if entry.resolution.receiver_count() > 0 {
                entry.idle_since = None;
            } else if now - *entry.idle_since.get_or_insert(now) >= IDLE_TIMEOUT {
                idle.push(name.clone());
            }
        }
        for name in &idle {
            entries.remove(name);
        }
        drop(entries);
        if !idle.is_empty() {
            self.shared.changed.notify_one();
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing in here panics half-way, so a poisoned lock still guards whole entries.
        self.shared
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn subscribe(&mut self, name: Arc<str>) -> (watch::Receiver<Option<Resolution>>, bool) {
        let age = self.next_age;
        self.next_age += 1;
        self.by_age.insert(age, name.clone());
        if let Some(entry) = self.by_destination.get_mut(&name) {
            self.by_age.remove(&entry.age);
            entry.age = age;
            entry.idle_since = None;
            return (entry.resolution.subscribe(), false);
        }
        if self.by_destination.len() >= MAX_DESTINATIONS
            && let Some((_, oldest)) = self.by_age.first_key_value()
        {
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
        let (resolution, receiver) = watch::channel(None);
        let entry = Entry {
            resolution,
            age,
            idle_since: None,
        };
        self.by_destination.insert(name.clone(), entry);
        self.dirty.insert(name);
        (receiver, true)
    }

    fn remove(&mut self, name: &Arc<str>) {
        if let Some(entry) = self.by_destination.remove(name) {
            self.by_age.remove(&entry.age);
            self.dirty.insert(name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Resolution {
        Resolution::Service(Arc::new(v1::Service {
            name: name.to_owned(),
            ..Default::default()
        }))
    }

    #[tokio::test]
    async fn subscribers_of_one_destination_share_its_resolution() {
        let discovery = Discovery::default();
        let mut first = discovery.subscribe("orders.data:80");
        let second = discovery.subscribe("Orders.DATA:80");
        assert_eq!(discovery.len(), 1);
        assert_eq!(*first.borrow_and_update(), None);
        assert!(discovery.apply("orders.data:80", service("orders.data")));
        assert!(first.has_changed().unwrap());
        assert_eq!(*second.borrow(), Some(service("orders.data")));

        first.mark_unchanged();
        assert!(discovery.apply("orders.data:80", service("orders.data")));
        assert!(!first.has_changed().unwrap(), "the same again wakes nobody");
        assert!(!discovery.apply("unknown:80", Resolution::Outside));
    }

    #[tokio::test]
    async fn only_the_most_recent_destinations_are_followed() {
        let discovery = Discovery::default();
        let pushed_out = discovery.subscribe("10.0.0.0:1");
        let kept = discovery.subscribe("10.0.0.1:1");
        for port in 2..MAX_DESTINATIONS {
            discovery.subscribe(&format!("10.0.0.1:{port}"));
        }
        discovery.subscribe("10.0.0.0:1");
        discovery.subscribe("10.0.0.1:1");
        discovery.subscribe("10.9.9.9:1");
        assert_eq!(discovery.len(), MAX_DESTINATIONS);
        assert!(!discovery.is_followed("10.0.0.1:2"));
        assert!(kept.has_changed().is_ok());
        assert!(pushed_out.has_changed().is_ok());
        for port in 0..MAX_DESTINATIONS {
            discovery.subscribe(&format!("10.1.1.1:{port}"));
        }
        assert!(pushed_out.has_changed().is_err());
        assert_eq!(discovery.len(), MAX_DESTINATIONS);
        assert_eq!(discovery.entries().by_age.len(), MAX_DESTINATIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_nobody_uses_is_forgotten_after_ten_minutes() {
        let discovery = Discovery::default();
        let used = discovery.subscribe("used:1");
        drop(discovery.subscribe("unused:1"));
        discovery.sweep();
        tokio::time::advance(IDLE_TIMEOUT - Duration::from_secs(1)).await;
        discovery.sweep();
        assert_eq!(discovery.len(), 2);
        drop(discovery.subscribe("unused:1"));
        tokio::time::advance(Duration::from_secs(1)).await;
        discovery.sweep();
        assert_eq!(discovery.len(), 2, "it was used again in between");
        tokio::time::advance(IDLE_TIMEOUT).await;
        discovery.take_dirty();
        discovery.sweep();
        assert_eq!(discovery.all(), [Arc::from("used:1")]);
        assert_eq!(
            discovery.take_dirty(),
            HashSet::from([Arc::from("unused:1")])
        );
        drop(used);
    }

    #[tokio::test]
    async fn a_name_too_long_to_exist_is_outside_and_followed_by_nobody() {
        let discovery = Discovery::default();
        let receiver = discovery.subscribe(&"a".repeat(MAX_DESTINATION_BYTES + 1));
        assert_eq!(*receiver.borrow(), Some(Resolution::Outside));
        assert_eq!(discovery.len(), 0);
    }

    #[tokio::test]
    async fn the_stream_is_told_what_was_added_whichever_thread_added_it() {
        let discovery = Discovery::default();
        let other = discovery.clone();
        let worker = std::thread::spawn(move || other.subscribe("a:1"));
        discovery.changed().await;
        assert_eq!(discovery.take_dirty(), HashSet::from([Arc::from("a:1")]));
        drop(worker.join());
    }
}
