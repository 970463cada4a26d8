//! `bench`: Sidewind beside other proxies, doing the same work on the same machine in the same run.
//!
//! ```text
//!  namespace "client"                     veth        namespace "server"
//!  wrk ─redirect→ outbound proxy ══ mutual TLS 1.3 ══ inbound proxy → nginx (1 KiB body)
//! ```
//!
//! Rooms: [`lab`] makes the namespaces, certificates and processes; [`peers`] knows how each proxy is set up;
//! [`load`] drives requests; [`report`] makes the table. Each peer has its turn in
//! every round, so that a machine that slows down slows all of them.

mod lab;
mod load;
mod peers;
mod report;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use lab::Lab;
use peers::Peer;
use report::{LoadSample, MemorySample, Results, Round};
use sidewind_tests::measure;

/// What fails ends the run with one sentence; nothing here is recovered from.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Client connections of the keep-alive runs.
const CONNECTIONS: [u32; 3] = [1, 16, 128];
/// Idle client connections whose memory is measured.
const IDLE_CONNECTIONS: u32 = 1000;

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
    /// Open connections, make one request on each, and hold them until standard input closes.
    #[command(hide = true)]
    Hold {
        address: std::net::SocketAddr,
        connections: u32,
    },
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
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of each measured run, in seconds; half of it goes before as a warm-up.
    #[arg(long, default_value_t = 6)]
    seconds: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        outcome = dispatch(Cli::parse().command) => outcome,
        signal = interrupted() => signal.and(Err("interrupted".into())),
    };
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
        Command::Hold {
            address,
            connections,
        } => load::hold(address, connections).await,
        Command::Run(args) => run(&args).await,
    }
}

async fn run(args: &RunArgs) -> Result<()> {
    if !rustix::process::getuid().is_root() {
        return Err("needs root, for network namespaces".into());
    }
    measure::raise_open_files()?;
    let lab = Lab::new(args).await?;
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        for &peer in &args.peers {
            eprintln!("round {round} of {}: {}", args.rounds, peer.title());
            rounds.push(
                one_turn(&lab, peer, args)
                    .await
                    .map_err(|error| format!("{}: {error}", peer.title()))?,
            );
        }
    }
    let results = Results::new(args, measure::machine(), lab.versions().await, rounds);
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

/// One peer's turn: started, measured at each load and at rest, stopped.
async fn one_turn(lab: &Lab, peer: Peer, args: &RunArgs) -> Result<Round> {
    let pair = peers::start(lab, peer).await?;
    let mut memory = MemorySample {
        at_rest: pair.memory()?,
        ..MemorySample::default()
    };
    let mut loads = Vec::new();
    let measured = Duration::from_secs(u64::from(args.seconds));
    for connections in CONNECTIONS {
        load::wrk(lab, connections, measured / 2).await?;
        let before = pair.cpu_time()?;
        let load = load::wrk(lab, connections, measured).await?;
        let cpu = pair.cpu_time()?.saturating_sub(before);
        loads.push(LoadSample::new(connections, &load, cpu));
    }
    if peer != Peer::Direct {
        let before = pair.memory()?;
        let held = load::Held::start(lab, IDLE_CONNECTIONS).await?;
        memory.before_idle = before;
        memory.with_idle = pair.memory()?;
        held.release().await?;
    }
    pair.stop().await?;
    Ok(Round {
        peer,
        loads,
        memory,
    })
}
