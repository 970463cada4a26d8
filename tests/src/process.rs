//! A process that runs beside the test.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::cleanup::{Held, Ticket, hold};
use crate::wait::{eventually, within};

/// A running program. It and everything that it started are killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    _ticket: Ticket,
}

impl Process {
    pub(crate) fn new(name: &str, child: Child, output: PathBuf, errors: PathBuf) -> Self {
        let group = i32::try_from(child.id()).unwrap_or_default();
        Self {
            name: name.into(),
            child,
            output,
            errors,
            _ticket: hold(Held::Group(group)),
        }
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Asks it to end (SIGTERM), or whatever else `signal` means to it.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Sends a signal to it and to everything that it started.
    pub fn signal_group(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended in time.
    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, patience, || self.child.try_wait().ok().flatten())
    }

    /// Waits until `ready`.
    ///
    /// # Panics
    /// When it is not ready in time, or has ended.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, patience: Duration, mut ready: impl FnMut() -> bool) {
        let mut ended = None;
        let outcome = within(patience, || {
            ended = self.child.try_wait().ok().flatten();
            (ended.is_some() || ready()).then_some(())
        });
        if let Some(status) = ended {
            panic!("{} ended with {status} before: {what}", self.name);
        }
        assert!(
            outcome.is_some(),
            "{}: not within {patience:?}: {what}",
            self.name
        );
    }

    /// What it wrote on standard output so far.
    pub fn output(&self) -> String {
        read(&self.output)
    }

    /// What it wrote on standard error so far.
    pub fn errors(&self) -> String {
        read(&self.errors)
    }

    /// What it wrote so far on both.
    pub fn log(&self) -> String {
        self.output() + &self.errors()
    }

    /// Waits until it has written a line that holds `needle`, and returns the line.
    ///
    /// # Panics
    /// When there is none in time.
    #[track_caller]
    pub fn wait_for_log(&self, needle: &str, patience: Duration) -> String {
        let what = format!("{} logs {needle:?}", self.name);
        eventually(&what, patience, || {
            self.log()
                .lines()
                .find(|line| line.contains(needle))
                .map(str::to_owned)
        })
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_field("VmRSS:") * 1024
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    fn status_field(&self, field: &str) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.id())));
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The ticket kills the whole group; this one is also reaped, so that its port is free at once.
        self.kill();
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
