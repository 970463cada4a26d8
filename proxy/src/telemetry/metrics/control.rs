//! What the control side knows of itself, read from its last status at each scrape.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;

use super::{Computed, ComputedCounter};
use crate::control::ControlStatus;

/// The numbers that are shown.
#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    clock_difference: Option<f64>,
    clock_jumps: u64,
    svids_issued: u64,
    svid_failures: u64,
    task_identities: usize,
    task_svids_issued: u64,
    task_svid_failures: u64,
}

/// Holds the numbers between scrapes.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlNumbers(Arc<Mutex<Numbers>>);

impl ControlNumbers {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let numbers = Self::default();
        let gauge = |read: fn(Numbers) -> Option<f64>| {
            let numbers = numbers.clone();
            Computed(move || read(numbers.get()))
        };
        registry.register(
            "sidewind_control_plane_clock_difference_seconds",
            "By how much the control plane's clock is ahead of this machine's",
            gauge(|numbers| numbers.clock_difference),
        );
        registry.register(
            "sidewind_task_identities",
            "Airflow tasks that have an identity of their own just now",
            gauge(|numbers| Some(numbers.task_identities as f64)),
        );
        let counter = |read: fn(Numbers) -> u64| {
            let numbers = numbers.clone();
            ComputedCounter(move || Some(read(numbers.get()) as f64))
        };
        registry.register(
            "sidewind_clock_jumps",
            "Times that the wall clock has jumped, because the machine slept or the clock was set",
            counter(|numbers| numbers.clock_jumps),
        );
        registry.register(
            "sidewind_svids_received",
            "Certificates of this workload received",
            counter(|numbers| numbers.svids_issued),
        );
        registry.register(
            "sidewind_svid_failures",
            "Failed tries to get the next certificate of this workload",
            counter(|numbers| numbers.svid_failures),
        );
        registry.register(
            "sidewind_task_svids_issued",
            "SVIDs of Airflow tasks received",
            counter(|numbers| numbers.task_svids_issued),
        );
        registry.register(
            "sidewind_task_svid_failures",
            "Failed tries to get the SVID of an Airflow task",
            counter(|numbers| numbers.task_svid_failures),
        );
        numbers
    }

    /// Takes what there is to show.
    pub(crate) fn set(&self, status: &ControlStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Numbers {
            clock_difference: status.clock_difference,
            clock_jumps: status.clock_jumps,
            svids_issued: status.svids_issued,
            svid_failures: status.svid_failures,
            task_identities: status.task_identities,
            task_svids_issued: status.task_svids_issued,
            task_svid_failures: status.task_svid_failures,
        };
    }

    fn get(&self) -> Numbers {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
