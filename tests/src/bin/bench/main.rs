//! `bench`: Sidewind beside other proxies, doing the same work on the same machine in the same run.
//!
//! ```text
//!  namespace "client"                     veth        namespace "server"
//!  client ─redirect→ outbound proxy ══ mutual TLS 1.3 ══ inbound proxy → server
//! ```
//!
//! Rooms: [`lab`] makes the namespaces, certificates and processes; [`service`] names what is called; [`peers`]
//! knows how each proxy is set up, and [`floor`] is the two smallest of them; [`load`] and [`clients`] drive the work,
//! [`turn`] measures it, [`report`] makes the table and holds it against the bars of [`bars`].
//! Each peer has its turn in every round, so that a machine that slows down slows all of them.

mod bars;
mod clients;
mod floor;
mod lab;
mod load;
mod peers;
mod report;
mod service;
mod turn;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::time::Instant;

use lab::{Lab, Namespace};
use peers::Peer;
use report::{Results, Round};
use sidewind_tests::collector::Collector;
use sidewind_tests::measure;
use turn::Work;

/// What 10,000 connections take in a proxy that has as many onwards.
const OPEN_FILES: u64 = 32_768;

/// What fails ends the run with one sentence; nothing here is recovered from.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Parser)]
#[command(about = "Measures Sidewind beside HAProxy, nginx and Envoy")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the peers in turn and print the table.
    Run(RunArgs),
    /// One half of a pair that does nothing but the work.
    #[command(hide = true)]
    Floor(floor::FloorArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Directory with the `sidewind` and `sidewind-proxy` binaries.
    #[arg(long)]
    binaries: PathBuf,
    /// The Envoy binary.
    #[arg(long, default_value = "envoy")]
    envoy: PathBuf,
    /// Where results.md and results.json go.
    #[arg(long)]
    output: PathBuf,
    /// Peers in the order of their turns.
    #[arg(long, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// What is measured.
    #[arg(long, value_delimiter = ',', default_values_t = Work::ALL)]
    work: Vec<Work>,
    /// Rounds; the table shows medians. Memory and stalled readers are measured in the first alone.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of each measured run that has one, in seconds; half of it goes before as a warm-up. The others are
    /// scaled with it.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| {
            let outcome = runtime.block_on(async {
                tokio::select! {
                    outcome = dispatch(cli.command) => outcome,
                    signal = interrupted() => signal.and(Err("interrupted".into())),
                }
            });
            // A client that nobody waits for any more holds up nothing: its namespace is gone.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Dropping the run on a signal kills its processes and removes its namespaces.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Floor(args) => floor::run(&args).await,
        Command::Run(args) => run(&args).await,
    }
}

async fn run(args: &RunArgs) -> Result<()> {
    if !rustix::process::getuid().is_root() {
        return Err("needs root, for network namespaces".into());
    }
    let most_idle = turn::most_idle(measure::raise_open_files(OPEN_FILES)?);
    let lab = Lab::new(args, most_idle).await?;
    let _collectors = [collect(&lab.client)?, collect(&lab.server)?];
    let begun = Instant::now();
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        for &peer in &args.peers {
            eprintln!(
                "{:4} s  round {round} of {}: {}",
                begun.elapsed().as_secs(),
                args.rounds,
                peer.title()
            );
            let turn = turn::take(&lab, peer, args, round == 1).await;
            let figures = turn.map_err(|error| format!("{}: {error}", peer.title()))?;
            rounds.push(Round { peer, figures });
        }
    }
    let results = Results::new(
        args,
        most_idle,
        measure::machine(),
        lab.versions().await,
        rounds,
    );
    std::fs::create_dir_all(&args.output)?;
    std::fs::write(
        args.output.join("results.json"),
        serde_json::to_vec_pretty(&results)?,
    )?;
    let table = results.to_markdown();
    std::fs::write(args.output.join("results.md"), &table)?;
    println!("{table}");
    Ok(())
}

/// Takes the spans of the proxy in a namespace.
fn collect(namespace: &Namespace) -> Result<Collector> {
    Ok(Collector::start(
        &namespace.place(),
        peers::COLLECTOR.parse()?,
    ))
}
