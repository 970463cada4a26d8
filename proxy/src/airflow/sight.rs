//! What the proxy can see of the processes beside it, found out when it starts.

use rustix::fs::{Mode, OFlags, RawDir, open};

use super::process::read_file;

/// Capabilities (capabilities(7)), by their numbers.
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const SYS_PTRACE: u32 = 19;

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
    /// Looks at `/proc`.
    pub(super) fn now() -> Self {
        let status = std::fs::read("/proc/self/status").unwrap_or_default();
        Self::of(sees_others(), capabilities(&status))
    }

    fn of(sees_others: bool, capabilities: u64) -> Self {
        let has = |number: u32| capabilities >> number & 1 == 1;
        match (sees_others, has(SYS_PTRACE)) {
            (false, _) => Self::Alone,
            (true, true) if has(DAC_OVERRIDE) || has(DAC_READ_SEARCH) => Self::Whole,
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
                 give the sidecar the capability SYS_PTRACE and run it as root, or as another user with DAC_READ_SEARCH too; or \
                 use --task-lookup plugin, which needs neither"
            }
            Self::Alone => {
                "no other process can be seen: give the sidecar the worker's PID namespace (shareProcessNamespace: true, or \
                 \"pidMode\": \"task\"), or use --task-lookup plugin, which needs none"
            }
        }
    }
}

/// The effective capabilities, as `/proc/self/status` says them.
fn capabilities(status: &[u8]) -> u64 {
    let status = String::from_utf8_lossy(status);
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default()
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
        let caps = |numbers: &[u32]| numbers.iter().map(|number| 1 << number).sum::<u64>();
        for (others, capabilities, sight) in [
            (false, u64::MAX, Sight::Alone),
            (true, 0, Sight::Partial),
            (true, caps(&[SYS_PTRACE]), Sight::Partial),
            (true, caps(&[DAC_OVERRIDE]), Sight::Partial),
            (true, caps(&[SYS_PTRACE, DAC_OVERRIDE]), Sight::Whole),
            (true, caps(&[SYS_PTRACE, DAC_READ_SEARCH]), Sight::Whole),
        ] {
            assert_eq!(Sight::of(others, capabilities), sight, "{capabilities:x}");
        }
        assert_eq!(
            capabilities(b"Name:\tx\nCapEff:\t0000000000080004\n"),
            caps(&[2, 19])
        );
        assert_eq!(capabilities(b"CapEff:\tx"), 0);
    }

    #[test]
    fn the_processes_of_this_machine_are_seen() {
        assert!(sees_others());
    }
}
