//! Nothing stays behind: what tests put on the machine is taken away on success, on a panic (by `Drop`) and when
//! the process is told to end (here). What a killed process left is taken away by the next one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, Once, PoisonError};

use rustix::process::{Pid, Signal};

/// What must be taken away in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// A group of processes.
    Group(i32),
    /// A network namespace, its processes and its files in `/etc/netns`.
    Namespace(String),
    /// A directory and everything in it.
    Directory(PathBuf),
    /// What is mounted at a directory.
    Mount(PathBuf),
}

impl Held {
    fn release(&self) {
        match self {
            Self::Group(group) => kill_group(*group),
            Self::Namespace(name) => delete_namespace(name),
            Self::Directory(path) => {
                let _ = std::fs::remove_dir_all(path);
            }
            Self::Mount(path) => unmount(path),
        }
    }
}

static HELD: LazyLock<Mutex<BTreeMap<u64, Held>>> = LazyLock::new(Mutex::default);
static SIGNALS: Once = Once::new();

/// Takes one thing away when it is dropped.
#[derive(Debug)]
pub struct Ticket(u64);

/// Has `held` taken away when the ticket is dropped or the process is told to end.
pub fn hold(held: Held) -> Ticket {
    SIGNALS.call_once(release_on_signal);
    let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
    all.insert(number, held);
    Ticket(number)
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let held = HELD
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.0);
        if let Some(held) = held {
            held.release();
        }
    }
}

/// On SIGINT, SIGTERM and SIGHUP everything held is released, newest first, and the process ends.
fn release_on_signal() {
    let run = || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        else {
            return;
        };
        let Some(number) = runtime.block_on(a_signal()) else {
            return;
        };
        let all = std::mem::take(&mut *HELD.lock().unwrap_or_else(PoisonError::into_inner));
        eprintln!("ended by signal {number}: cleaning up");
        for held in all.values().rev() {
            if let Held::Directory(path) = held {
                crate::scratch::print_logs(path);
            }
            held.release();
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the destructors' work has just been done"
        )]
        std::process::exit(128 + number);
    };
    let _ = std::thread::Builder::new()
        .name("signals".into())
        .spawn(run);
}

async fn a_signal() -> Option<i32> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).ok()?;
    let mut terminate = signal(SignalKind::terminate()).ok()?;
    let mut hangup = signal(SignalKind::hangup()).ok()?;
    Some(tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    })
}

/// Lets go of a mount, also while something still uses it.
fn unmount(path: &Path) {
    let _ = Command::new("umount")
        .args(["--lazy", "--quiet"])
        .arg(path)
        .stderr(Stdio::null())
        .status();
}

fn kill_group(group: i32) {
    if let Some(group) = Pid::from_raw(group) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Kills what runs in the namespace, so that nothing keeps it alive, and deletes it.
fn delete_namespace(name: &str) {
    let pids = Command::new("ip")
        .args(["netns", "pids", name])
        .stderr(Stdio::null())
        .output();
    for pid in pids
        .map(|output| output.stdout)
        .unwrap_or_default()
        .split(|byte| *byte == b'\n')
    {
        let pid = std::str::from_utf8(pid)
            .ok()
            .and_then(|pid| pid.trim().parse().ok());
        // A thread of this very process may be in the namespace.
        if let Some(pid) = pid
            .and_then(Pid::from_raw)
            .filter(|pid| *pid != rustix::process::getpid())
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    let _ = std::fs::remove_dir_all(PathBuf::from("/etc/netns").join(name));
    // Only if it is empty, that is if nobody else uses it.
    let _ = std::fs::remove_dir("/etc/netns");
    let _ = Command::new("ip")
        .args(["netns", "delete", name])
        .stderr(Stdio::null())
        .status();
}

/// Takes away the namespaces and directories of test processes that were killed.
pub fn remove_leftovers() {
    for directory in ["/run/netns", "/etc/netns"] {
        for name in names_in(directory.as_ref()) {
            if owner_of(&name).is_some_and(is_dead) {
                delete_namespace(&name);
            }
        }
    }
    let scratch = crate::scratch::parent();
    for name in names_in(&scratch) {
        if owner_of(&name).is_some_and(is_dead) {
            let directory = scratch.join(name);
            for inside in names_in(&directory) {
                if is_mount(&directory.join(&inside)) {
                    unmount(&directory.join(&inside));
                }
            }
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Whether something is mounted at a directory: then it is on another device than the one that it is in.
fn is_mount(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| path.symlink_metadata().ok().map(|metadata| metadata.dev());
    path.parent().and_then(device) != device(path)
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The process that made `sw-<pid>-<anything>`.
fn owner_of(name: &str) -> Option<i32> {
    let (pid, _) = name.strip_prefix("sw-")?.split_once('-')?;
    pid.parse().ok()
}

fn is_dead(pid: i32) -> bool {
    Pid::from_raw(pid)
        .is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_form_have_an_owner() {
        for (name, owner) in [
            ("sw-12-3", Some(12)),
            ("sw-12-demo", Some(12)),
            ("sw-12", None),
            ("sw--3", None),
            ("other-12-3", None),
        ] {
            assert_eq!(owner_of(name), owner, "{name}");
        }
    }

    #[test]
    fn a_living_process_is_not_dead() {
        assert!(!is_dead(rustix::process::getpid().as_raw_nonzero().get()));
        assert!(is_dead(i32::MAX));
    }
}
