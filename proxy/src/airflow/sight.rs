//! What the proxy can see of the processes beside it, found out when it starts.

use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RawDir, open};
use rustix::thread::{CapabilitySet, set_capabilities};

use super::process::read_file;
use crate::{
    admin::{Component, Readiness},
    telemetry::{logs::Throttle, metrics::Metrics},
};

/// Either of these lets a user other than root read what belongs to others.
const READING: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// How much the proxy can see of the processes beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Sight {
    /// All of them, with their open files.
    Whole,
    /// All of them, and the open files of some at most.
    Partial,
    /// None of them.
    Alone,
}

impl Sight {
    /// Looks at `/proc` and at what this process may use of capabilities(7).
    pub(super) fn now() -> Self {
        let own = rustix::thread::capabilities(None).map(|sets| sets.permitted);
        Self::of(sees_others(), own.unwrap_or(CapabilitySet::empty()))
    }

    fn of(sees_others: bool, capabilities: CapabilitySet) -> Self {
        match (
            sees_others,
            capabilities.contains(CapabilitySet::SYS_PTRACE),
        ) {
            (false, _) => Self::Alone,
            (true, true) if capabilities.intersects(READING) => Self::Whole,
            _ => Self::Partial,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Partial => "partial",
            Self::Alone => "alone",
        }
    }

    /// What follows from it, and the remedy.
    pub(super) const fn explanation(self) -> &'static str {
        match self {
            Self::Whole => "the processes beside this one and their open files can be seen",
            Self::Partial => {
                "the open files of other processes are hidden from this one, at least those of tasks of Airflow 3.2 and later: \
                 give the sidecar the capability SYS_PTRACE (with allowPrivilegeEscalation, and DAC_READ_SEARCH where it has not the \
                 usual ones, if it is not root), or \
                 use --task-lookup plugin, which needs neither"
            }
            Self::Alone => {
                "no other process can be seen: give the sidecar the worker's PID namespace (shareProcessNamespace: true, or \
                 \"pidMode\": \"task\"), or use --task-lookup plugin, which needs none"
            }
        }
    }
}

/// Says what can be seen of other processes: at the start, and when the first connection comes if that is something else:
/// the worker may have been started after the proxy.
#[derive(Debug)]
pub(super) struct Watch {
    metrics: Arc<Metrics>,
    readiness: Readiness,
    said: Sight,
    is_last: bool,
}

impl Watch {
    pub(super) fn begin(metrics: &Arc<Metrics>, readiness: &Readiness) -> Self {
        let watch = Self {
            metrics: Arc::clone(metrics),
            readiness: readiness.clone(),
            said: Sight::now(),
            is_last: false,
        };
        watch.say();
        watch
    }

    pub(super) fn look_again(&mut self) {
        if std::mem::replace(&mut self.is_last, true) {
            return;
        }
        let now = Sight::now();
        if std::mem::replace(&mut self.said, now) != now {
            self.say();
        }
    }

    fn say(&self) {
        let (sight, explanation) = (self.said.as_str(), self.said.explanation());
        match self.said {
            Sight::Whole => tracing::info!(sight, "tasks are looked for: {explanation}"),
            _ => tracing::warn!(sight, "tasks may not be found: {explanation}"),
        }
        self.metrics.set_task_sight(self.said);
        let is_whole = self.said == Sight::Whole;
        let detail = if is_whole { "" } else { explanation };
        self.readiness.set(Component::TaskLookup, is_whole, detail);
    }
}

/// Says, once a minute, that a connection's task is not known for want of sight.
pub(super) fn say_what_is_missing() {
    static DENIED: Throttle = Throttle::new();
    if let Some(suppressed) = DENIED.admit() {
        let explanation = Sight::Partial.explanation();
        tracing::warn!(
            suppressed,
            "the task behind a connection is not known: {explanation}"
        );
    }
}

/// Puts to use, on this thread alone, what the process may use to look into others.
///
/// A container's user other than root gets the capabilities that its container may have by the marks on the program's
/// file, which permit them and do not use them: a container that may have none must be able to start the same program.
pub(super) fn use_capabilities() {
    let Ok(mut sets) = rustix::thread::capabilities(None) else {
        return;
    };
    let reading = match sets.permitted.contains(CapabilitySet::DAC_READ_SEARCH) {
        true => CapabilitySet::DAC_READ_SEARCH,
        false => CapabilitySet::DAC_OVERRIDE,
    };
    sets.effective |= sets.permitted & (CapabilitySet::SYS_PTRACE | reading);
    if let Err(error) = set_capabilities(None, sets) {
        tracing::warn!(%error, "the capabilities to look into other processes cannot be used");
    }
}

/// Whether there is a process that is neither this one nor a thread of the kernel's, which have no command line.
fn sees_others() -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(proc) = open("/proc", flags, Mode::empty()) else {
        return false;
    };
    let own = std::process::id().to_string();
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut entries = RawDir::new(&proc, buffer.spare_capacity_mut());
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name().to_bytes();
        let is_process = name.first().is_some_and(u8::is_ascii_digit);
        if !is_process || name == own.as_bytes() {
            continue;
        }
        let Ok(directory) = rustix::fs::openat(&proc, entry.file_name(), flags, Mode::empty())
        else {
            continue;
        };
        if read_file(&directory, c"cmdline", 1).is_some_and(|line| !line.is_empty()) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_seen_follows_from_the_pid_namespace_and_two_capabilities() {
        const NONE: CapabilitySet = CapabilitySet::empty();
        const PTRACE: CapabilitySet = CapabilitySet::SYS_PTRACE;
        for (others, capabilities, sight) in [
            (false, CapabilitySet::all(), Sight::Alone),
            (true, NONE, Sight::Partial),
            (true, PTRACE, Sight::Partial),
            (true, CapabilitySet::DAC_OVERRIDE, Sight::Partial),
            (true, PTRACE | CapabilitySet::DAC_OVERRIDE, Sight::Whole),
            (true, PTRACE | CapabilitySet::DAC_READ_SEARCH, Sight::Whole),
        ] {
            assert_eq!(Sight::of(others, capabilities), sight, "{capabilities:?}");
        }
    }

    #[test]
    fn the_processes_of_this_machine_are_seen() {
        assert!(sees_others());
    }
}
