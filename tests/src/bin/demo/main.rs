//! The mesh in a minute: a control plane, an API and a task with a sidecar each, and what they do for one another.
//!
//! As root it runs in network namespaces of its own with redirection; otherwise on loopback addresses with explicit
//! capture. It ends by itself, with 1 when a claim did not hold, and leaves nothing behind.
//!
//! The same program is also each of the workloads: `demo api`, `redis`, `call` and `redis-call` know nothing
//! of a mesh.

mod acts;
mod calls;
mod ground;
mod servers;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use sidewind_tests::stage::Stage;

/// Shows what Sidewind does, in less than a minute.
#[derive(Debug, Parser)]
struct CommandLine {
    /// Use loopback addresses and explicit capture, also as root.
    #[arg(long)]
    loopback: bool,
    #[command(subcommand)]
    workload: Option<Workload>,
}

/// The programs that the demo runs; none of them knows of the mesh.
#[derive(Debug, Subcommand)]
#[command(hide = true)]
enum Workload {
    /// An HTTP API that answers 503 to every third request of /flaky.
    Api { address: SocketAddr },
    /// A server that speaks as much of Redis' protocol as the demo needs.
    Redis { address: SocketAddr },
    /// One HTTP request; honours http_proxy.
    Call {
        url: String,
        #[arg(short = 'H')]
        headers: Vec<String>,
    },
    /// One command to a Redis.
    RedisCall { address: String, words: Vec<String> },
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    match line.workload {
        Some(Workload::Api { address }) => ended(servers::api(address)),
        Some(Workload::Redis { address }) => ended(servers::redis(address)),
        Some(Workload::Call { url, headers }) => ended(calls::http(&url, &headers)),
        Some(Workload::RedisCall { address, words }) => ended(calls::redis(&address, &words)),
        None => show(line.loopback),
    }
}

fn ended(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn show(loopback: bool) -> ExitCode {
    let mut stage = Stage::new();
    acts::play(&mut stage, loopback);
    if stage.conclude() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
