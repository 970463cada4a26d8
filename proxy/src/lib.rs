//! `sidewind-proxy`, the data plane: stands beside a workload and carries its traffic.
//!
//! # Rooms
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`config`] | command line and environment → one checked configuration |
//! | [`run`] | the process: threads, signals, drain ([`drain`]) |
//! | [`command`] | `run -- COMMAND`: a command that has its sidecar for as long as it runs |
//! | [`control`] | identity, discovery and policy from the control plane, as snapshots |
//! | [`listen`], [`capture`], [`redirect`] | sockets, and how connections get here |
//! | [`outbound`] | the way of a connection that the workload makes |
//! | [`inbound`] | the way of a connection to the workload |
//! | [`gateway`] | the way of a connection from outside the mesh to a service within |
//! | [`detect`], [`http`], [`copy`], [`upgrade`] | protocols: what a client speaks, HTTP, bytes |
//! | [`route`], [`balance`], [`health`], [`retry`], [`policy`], [`limit`] | where to, which endpoint, which are well, whether again, whether at all, how many |
//! | [`airflow`] | which task a connection of the workload belongs to |
//! | [`mesh`], [`plaintext`] | connections to other sidecars, and to those who have none |
//! | [`workload_api`] | the workload's own programs get its identity: SPIFFE Workload API, Envoy SDS |
//! | [`hot`] | the pieces that every request passes, for `benches/` alone |
//! | [`fuzzing`] | what reads bytes of strangers, for `fuzz/` alone |
//! | [`exchange`], [`telemetry`], [`errors`], [`complaints`], [`admin`], [`status`] | what is said about all of it |
//!
//! # Threads
//!
//! The control thread holds identity, control-plane streams, admin port and trace export, so that load never
//! starves certificates or probes. The Workload API has a thread too, where it is wanted. Each worker ([`worker`]) is a thread with a runtime, listeners, pools and
//! metric cells of its own; workers share snapshots and nothing else.

mod admin;
mod airflow;
mod balance;
mod capture;
mod command;
mod complaints;
mod config;
mod control;
mod copy;
mod detect;
mod drain;
mod errors;
mod exchange;
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod health;
#[doc(hidden)]
pub mod hot;
mod http;
mod inbound;
mod limit;
mod listen;
mod mesh;
mod outbound;
mod plaintext;
mod policy;
mod redirect;
mod retry;
mod route;
mod run;
mod status;
mod telemetry;
mod upgrade;
mod worker;
mod workload_api;

use std::process::ExitCode;

use config::{EXIT_USAGE, Invocation};

/// The program: what the command line says, done. Gives back the exit code.
pub fn main() -> ExitCode {
    match config::parse(std::env::args_os(), std::env::vars_os()) {
        Ok(Invocation::Run(config)) => run::run(*config),
        Ok(Invocation::RunBesideRunning(config)) => command::run_with_running_sidecar(&config),
        Ok(Invocation::Redirect(config)) => match redirect::run(&config) {
            Ok(done) => {
                print!("{done}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("sidewind-proxy: {}", errors::Chain(&error));
                ExitCode::FAILURE
            }
        },
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sidewind-proxy: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
