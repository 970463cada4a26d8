//! `sidewind-proxy run -- COMMAND`: a command that has its sidecar for exactly as long as it runs.
//!
//! - [`supervise`]: the command's process: started, sent signals, reaped; also as process 1 of a container
//! - [`beside`]: the sidecar is this same process
//! - [`neighbours`]: the other way round, a sidecar that ends when the processes beside it have
//! - [`running`]: the sidecar runs already, in a container of its own, and is reached by its admin port
//!
//! The order is the same in both: wait until the sidecar is ready, run the command, pass signals on, and once the
//! command is gone end the sidecar and exit as the command did.

mod beside;
mod neighbours;
mod running;
mod supervise;

pub(crate) use beside::{Beside, End, run_beside};
pub(crate) use neighbours::Neighbours;
pub(crate) use running::run as run_with_running_sidecar;
pub(crate) use supervise::Supervisor;

/// The sidecar was not ready in time, or something else failed before the command was started; what shells and
/// container runtimes use for their own failures.
pub(crate) const EXIT_NOT_STARTED: u8 = 125;

/// The exit code of a process that a signal ended, as shells give it.
fn exit_code_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
