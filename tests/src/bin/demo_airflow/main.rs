//! A real Airflow through the mesh, in some minutes: a DAG that calls a service in every way that DAGs use, and whose each
//! call was.
//!
//! Needs root, for network namespaces. It ends by itself, with 1 when a claim did not hold, and leaves nothing behind
//! but a page of the calls.

mod acts;
mod page;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sidewind_tests::stage::Stage;

/// Shows what Sidewind knows of an Airflow's connections.
#[derive(Debug, Parser)]
struct CommandLine {
    /// Where the page of all calls is written.
    #[arg(long, default_value = "airflow-calls.html")]
    page: PathBuf,
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    if !rustix::process::geteuid().is_root() {
        eprintln!("this makes network namespaces and needs root: run `make demo-airflow`");
        return ExitCode::FAILURE;
    }
    let mut stage = Stage::new();
    acts::play(&mut stage, &line.page);
    if stage.conclude() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
