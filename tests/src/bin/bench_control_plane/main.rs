//! `bench_control_plane`: what one control plane carries.
//!
//! Starts the real `sidewind serve` and drives its real gRPC API, over TLS, with thousands of simulated proxies in this
//! process, each at a loopback address of its own. Nothing is asserted but that everything arrives; the figures are for
//! people.
//!
//! Rooms: [`server`] is the process that is measured; [`proxy`] one simulated proxy, speaking [`grpc`]; [`fleet`] all of
//! them; [`tally`] what happened to them and when; [`report`] the table.

mod fleet;
mod grpc;
mod proxy;
mod report;
mod server;
mod tally;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, getrlimit};
use sidewind_tests::measure;
use sidewind_tests::scratch::Scratch;
use tokio::time::Instant;

use fleet::Fleet;
use report::{Report, Return};
use server::Server;

/// What fails ends the run with one sentence; nothing here is recovered from.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How long all proxies may take for one thing.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Parser)]
#[command(about = "Measures what one control plane carries")]
struct Cli {
    /// The `sidewind` program.
    #[arg(long)]
    program: PathBuf,
    /// Where control-plane.md and control-plane.json go; nowhere by default.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Simulated proxies.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    proxies: u32,
    /// Length of each run of renewals, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Renewals under way at once.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// How long the connected proxies stand idle before their memory is measured, in seconds.
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// How long the control plane stays away after it was killed, in seconds.
    #[arg(long, default_value_t = 5)]
    away: u64,
    /// Further arguments of `sidewind serve`.
    #[arg(last = true)]
    serve: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = tokio::select! {
        outcome = run(Cli::parse()) => outcome,
        signal = interrupted() => signal.and(Err("interrupted".into())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_control_plane: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Dropping the run on a signal kills the control plane and removes its state.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn run(cli: Cli) -> Result<()> {
    raise_open_files(cli.proxies, cli.concurrency)?;
    let scratch = Scratch::new();
    let mut report = Report::new(&cli);
    let mut server = Server::new(cli.program.clone(), scratch.path(), &cli.serve)?;
    server.start().await?;
    report.memory_at_start = server.memory()?.now;
    let fleet = Fleet::new(cli.proxies, &server)?;

    come(&cli, &server, &fleet, &mut report).await?;
    renew(&cli, &server, &fleet, &mut report).await?;
    push(&server, &fleet, &mut report).await?;
    report.metrics(&server.metrics().await?);

    say("killing the control plane; the proxies still have their certificates");
    report.reconnected = Some(restart(&cli, &mut server, &fleet).await?);
    say("once more; the proxies have no certificates any more");
    fleet.give_tokens(&server.admin().await?).await?;
    fleet.forget_svids();
    report.reattested = Some(restart(&cli, &mut server, &fleet).await?);

    report.finish();
    let table = report.to_markdown();
    if let Some(output) = &cli.output {
        std::fs::create_dir_all(output)?;
        std::fs::write(output.join("control-plane.md"), &table)?;
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(output.join("control-plane.json"), json)?;
    }
    println!("{table}");
    Ok(())
}

/// Each proxy takes a socket here and one in the control plane, which inherits the limit.
fn raise_open_files(proxies: u32, concurrency: usize) -> Result<()> {
    let needed = u64::from(proxies) + concurrency as u64 + 200;
    measure::raise_open_files(needed)?;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(format!(
            "{proxies} proxies need {needed} open files, and the limit is {limit}: raise it (ulimit -Hn), or give --proxies"
        )
        .into()),
        _ => Ok(()),
    }
}

/// The proxies attest, then connect.
async fn come(cli: &Cli, server: &Server, fleet: &Fleet, report: &mut Report) -> Result<()> {
    say("making join tokens");
    fleet.give_tokens(&server.admin().await?).await?;
    say("attesting");
    let (began, cpu) = (Instant::now(), server.cpu()?);
    fleet.attest().await?;
    report.attested(fleet.len(), began.elapsed(), server.cpu()? - cpu);

    say("opening streams");
    let (began, cpu) = (Instant::now(), server.cpu()?);
    fleet.tally().begin();
    fleet.connect();
    fleet.all_connected(PATIENCE).await?;
    let spread = fleet.tally().read(|counts| counts.opened_since(began));
    report.connected(fleet.len(), spread, server.cpu()? - cpu);

    say("standing idle");
    let idle = Duration::from_secs(cli.idle);
    let cpu = server.cpu()?;
    tokio::time::sleep(idle).await;
    report.idle(server.memory()?.now, server.cpu()? - cpu, idle);
    Ok(())
}

/// Certificates are renewed as fast as it goes.
async fn renew(cli: &Cli, server: &Server, fleet: &Fleet, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs(cli.seconds);
    for anew in [false, true] {
        match anew {
            false => say("renewing on the connections of the streams"),
            true => say("renewing on connections made for each"),
        }
        let cpu = server.cpu()?;
        let began = Instant::now();
        let renewed = fleet.renew(time, cli.concurrency, anew).await?;
        let (took, within) = (began.elapsed(), server.cpu()? - cpu);
        // What is written and sealed after the answers belongs to them as well.
        let after = fleet::until_quiet(server, report.idle_cores()).await?;
        report.renewed(anew, renewed, took, within, after);
    }
    report.memory_after_renewals = server.memory()?.now;
    Ok(())
}

/// A ban and a new trust bundle reach everybody.
async fn push(server: &Server, fleet: &Fleet, report: &mut Report) -> Result<()> {
    let admin = server.admin().await?;
    let tally = fleet.tally();
    for round in 0..3 {
        say("banning somebody else");
        tally.begin();
        let began = Instant::now();
        let id = format!(
            "spiffe://{}/ns/bench/sa/banned-{round}",
            server::TRUST_DOMAIN
        );
        let version = admin.ban(&id).await?;
        let all = fleet.len();
        if !tally.wait(PATIENCE, |c| c.with_bans(version) >= all).await {
            return Err("a ban did not reach every proxy".into());
        }
        report
            .bans
            .push(tally.read(|c| c.bans_since(began, version)).into());
    }
    say("adding a root to the trust bundle");
    tally.begin();
    let began = Instant::now();
    let Some(sequence) = admin.prepare_root().await else {
        return Ok(());
    };
    let all = fleet.len();
    if !tally
        .wait(PATIENCE, |c| c.with_bundle(sequence) >= all)
        .await
    {
        return Err("a trust bundle did not reach every proxy".into());
    }
    report.bundle = Some(tally.read(|c| c.bundle_since(began, sequence)).into());
    Ok(())
}

/// `kill -9`, a while of nothing, and back.
async fn restart(cli: &Cli, server: &mut Server, fleet: &Fleet) -> Result<Return> {
    let tally = fleet.tally();
    server.kill().await?;
    if !tally.wait(PATIENCE, |counts| counts.streams == 0).await {
        return Err("the streams outlive the control plane".into());
    }
    tokio::time::sleep(Duration::from_secs(cli.away)).await;
    tally.begin();
    let began = Instant::now();
    let ready = server.start().await?;
    fleet.all_connected(PATIENCE).await?;
    let spread = tally.read(|counts| counts.opened_since(began));
    let (attempts, most) = tally.read(|counts| counts.attempts_since(began + ready));
    let failures = tally.read(tally::Counts::failures);
    Ok(Return {
        ready: ready.as_secs_f64(),
        back: spread.into(),
        attempts,
        most_attempts_in_a_second: most,
        cpu: server.cpu()?.as_secs_f64(),
        peak: server.memory()?.peak,
        failures,
    })
}

fn say(what: &str) {
    eprintln!("{what}");
}
