//! The command's process.

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    process::Command,
    task::Poll,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{self, SignalKind, signal};

use super::exit_code_of_signal;
use crate::config::CommandConfig;

/// Signals that go on to the command.
const PASSED: [Signal; 7] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::WINCH,
];

/// Secrets of the sidecar's that are not the command's business.
const HIDDEN_VARIABLES: [&str; 1] = ["SIDEWIND_JOIN_TOKEN"];

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The command has ended, with this exit code of ours.
    Ended(u8),
    /// This process was sent a signal that is meant for the command as well.
    Signal(Signal),
}

/// The command could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the command {program:?} cannot be run")]
pub(crate) struct StartError {
    program: String,
    #[source]
    source: io::Error,
}

impl StartError {
    /// What shells give for it.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.source.kind() == ErrorKind::NotFound {
            127
        } else {
            126
        }
    }
}

/// Starts one command, passes signals on to it and reaps it, with every orphan that the kernel hands to process 1.
/// Make it before there is anything to miss: signals that come earlier do what they do by default.
#[derive(Debug)]
pub(crate) struct Supervisor {
    signals: Vec<(Signal, unix::Signal)>,
    children: unix::Signal,
    /// Kept until the process is reaped, so that its number is surely still its own.
    command: Option<Pid>,
    /// Limit of open files before the sidecar raised it for itself.
    file_limit: Rlimit,
}

impl Supervisor {
    /// # Errors
    /// When signals cannot be listened for.
    pub(crate) fn new() -> io::Result<Self> {
        let mut signals = Vec::with_capacity(PASSED.len());
        for passed in PASSED {
            let kind = SignalKind::from_raw(passed.as_raw());
            signals.push((passed, signal(kind)?));
        }
        Ok(Self {
            signals,
            children: signal(SignalKind::child())?,
            command: None,
            file_limit: rustix::process::getrlimit(Resource::Nofile),
        })
    }

    /// Starts the command, with this process's standard streams and environment.
    ///
    /// # Errors
    /// When there is no such program, or it cannot be run.
    pub(crate) fn start(&mut self, command: &CommandConfig) -> Result<(), StartError> {
        let mut process = Command::new(&command.program);
        process.args(&command.arguments);
        for hidden in HIDDEN_VARIABLES {
            process.env_remove(hidden);
        }
        let failed = |source| StartError {
            program: command.program.to_string_lossy().into_owned(),
            source,
        };
        // A program that uses select(2), or closes every number that might be a file, gets the limit it expects.
        let raised = rustix::process::getrlimit(Resource::Nofile);
        let lowered = Rlimit {
            maximum: raised.maximum,
            ..self.file_limit
        };
        let _ = rustix::process::setrlimit(Resource::Nofile, lowered);
        let started = process.spawn();
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
        let child = started.map_err(failed)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        tracing::info!(pid = child.id(), program = %command.program.display(), "the command has started");
        self.command = pid;
        Ok(())
    }

    /// Sends the command a signal, unless it has been sent it already: a terminal signals the whole group.
    pub(crate) fn pass(&self, signal: Signal) {
        let from_terminal = matches!(signal, Signal::INT | Signal::QUIT | Signal::WINCH);
        if from_terminal && is_in_foreground() {
            return;
        }
        if let Some(command) = self.command {
            // It may have ended and wait for being reaped.
            let _ = rustix::process::kill_process(command, signal);
        }
    }

    /// Waits for a signal, or for the command's end. Nothing is lost when it is cancelled.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if let Some(code) = self.reap() {
                return Event::Ended(code);
            }
            tokio::select! {
                signal = received(&mut self.signals) => return Event::Signal(signal),
                _ = self.children.recv() => {}
            }
        }
    }

    /// Reaps every child that has ended; the exit code of the command if it is among them.
    fn reap(&mut self) -> Option<u8> {
        let mut code = None;
        // An error means that there is no child at all.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if Some(pid) == self.command {
                self.command = None;
                code = Some(exit_code(status));
            }
        }
        code
    }
}

fn exit_code(status: WaitStatus) -> u8 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => exit_code_of_signal(signal),
        (None, None) => u8::MAX,
    }
}

async fn received(signals: &mut [(Signal, unix::Signal)]) -> Signal {
    poll_fn(|cx| {
        for (signal, stream) in signals.iter_mut() {
            if stream.poll_recv(cx).is_ready() {
                return Poll::Ready(*signal);
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether this process's group has the terminal that it reads from, which then signals the command too.
fn is_in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stdin())
        .is_ok_and(|foreground| foreground == rustix::process::getpgrp())
}
