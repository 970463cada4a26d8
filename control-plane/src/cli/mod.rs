//! The command line.
//!
//! - [`arguments`]: every command and flag
//! - `airflow`: which tasks call, and what those of a run have called
//! - `serve`: flags into settings; signals
//! - `client`: the admin socket of a running server, and the commands that ask it
//! - `audit`: what was granted and refused
//! - `authority`: the commands about certificate authorities
//! - `bans`: ban, unban, bans
//! - `check`: `config check`, offline
//! - `explain`: what is known of one workload
//! - `federation`: foreign trust domains

mod airflow;
pub mod arguments;
mod audit;
mod authority;
mod bans;
mod check;
mod client;
mod explain;
mod federation;
mod output;
mod serve;

use arguments::{
    Arguments, AuthorityCommand, Command, ConfigCommand, FederationCommand, TokenCommand,
};
use clap::Parser as _;
use std::process::ExitCode;

/// Why a command failed, and the exit code that says so.
#[derive(Debug)]
pub enum Failure {
    /// A flag, variable or file is wrong: 64, `EX_USAGE` of sysexits.h.
    Usage(String),
    /// Something else: 1.
    Other(String),
}

impl Failure {
    fn report(&self) -> ExitCode {
        let (message, code) = match self {
            Self::Usage(message) => (message, 64),
            Self::Other(message) => (message, 1),
        };
        eprintln!("error: {message}");
        ExitCode::from(code)
    }
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Printing help to a closed pipe is no failure.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(64)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Serve(flags) => serve::run(*flags),
        Command::Token(TokenCommand::Create(flags)) => client::create_token(flags),
        Command::Ca(AuthorityCommand::Show(flags)) => authority::show(&flags),
        Command::Ca(AuthorityCommand::Rotate(flags)) => authority::rotate(&flags),
        Command::Ca(AuthorityCommand::Taint(flags)) => authority::taint(&flags),
        Command::Ca(AuthorityCommand::Revoke(flags)) => authority::revoke(&flags),
        Command::Workloads(flags) => client::list_workloads(&flags),
        Command::Explain(flags) => explain::run(&flags),
        Command::Airflow(command) => airflow::run(&command),
        Command::Ban(flags) => bans::ban(flags),
        Command::Unban(flags) => bans::unban(flags),
        Command::Bans(flags) => bans::list(&flags),
        Command::Federation(FederationCommand::List(flags)) => federation::list(&flags),
        Command::Federation(FederationCommand::Forget(flags)) => federation::forget(flags),
        Command::Audit(flags) => audit::run(&flags),
        Command::LogLevel(flags) => client::log_level(&flags),
        Command::Config(ConfigCommand::Check { directory }) => check::run(&directory),
    }
}
