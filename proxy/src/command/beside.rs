//! The command of a sidecar that is this same process.

use rustix::process::Signal;
use tokio::sync::Notify;

use super::{
    EXIT_NOT_STARTED, exit_code_of_signal,
    supervise::{Event, Supervisor},
};
use crate::{admin::Readiness, config::CommandConfig, errors::Chain};

/// What the command runs beside.
pub(crate) struct Beside<'a, H, D> {
    pub(crate) readiness: &'a Readiness,
    /// `/shutdown` was asked for.
    pub(crate) shutdown: &'a Notify,
    /// What the sidecar itself does on SIGHUP.
    pub(crate) on_hangup: H,
    /// Begins the drain: called once, when the command is told to end or has ended.
    pub(crate) begin_drain: D,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The exit code of this process.
    pub(crate) code: u8,
}

/// Runs the command once the sidecar is ready, to its end.
///
/// SIGTERM and `/shutdown` end the command, and the sidecar drains meanwhile: inbound takes no new work, and outbound
/// stays open until the command is gone, however long that takes.
pub(crate) async fn run_beside<H: Fn(), D: FnOnce()>(
    command: &CommandConfig,
    supervisor: &mut Supervisor,
    beside: Beside<'_, H, D>,
) -> End {
    let mut begin_drain = Some(beside.begin_drain);
    let code = match wait_ready(command, supervisor, beside.readiness, beside.shutdown).await {
        Err(code) => code,
        Ok(()) => match supervisor.start(command) {
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the command was not started");
                error.exit_code()
            }
            Ok(()) => loop {
                let event = tokio::select! {
                    event = supervisor.next() => event,
                    () = beside.shutdown.notified() => Event::Signal(Signal::TERM),
                };
                match event {
                    Event::Ended(code) => {
                        tracing::info!(code, "the command has ended");
                        break code;
                    }
                    Event::Signal(signal) => {
                        supervisor.pass(signal);
                        if signal == Signal::TERM
                            && let Some(begin) = begin_drain.take()
                        {
                            begin();
                        }
                        if signal == Signal::HUP {
                            (beside.on_hangup)();
                        }
                    }
                }
            },
        },
    };
    if let Some(begin) = begin_drain {
        begin();
    }
    End { code }
}

/// Waits until the sidecar is ready; the exit code where it is not to be.
async fn wait_ready(
    command: &CommandConfig,
    supervisor: &mut Supervisor,
    readiness: &Readiness,
    shutdown: &Notify,
) -> Result<(), u8> {
    let mut deadline = std::pin::pin!(tokio::time::sleep(command.ready_timeout));
    loop {
        tokio::select! {
            () = readiness.ready() => return Ok(()),
            () = &mut deadline => {
                let (_, detail) = readiness.document();
                tracing::error!(
                    waited = ?command.ready_timeout, readiness = detail,
                    "the command was not started: the sidecar is not ready within --ready-timeout"
                );
                return Err(EXIT_NOT_STARTED);
            }
            () = shutdown.notified() => return Err(exit_code_of_signal(Signal::TERM.as_raw())),
            event = supervisor.next() => {
                if let Event::Signal(signal @ (Signal::TERM | Signal::INT | Signal::QUIT)) = event {
                    return Err(exit_code_of_signal(signal.as_raw()));
                }
            }
        }
    }
}
