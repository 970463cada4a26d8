//! The commands about Airflow's tasks.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::OutputFormat;

/// Commands about Airflow's tasks.
#[derive(Debug, Subcommand)]
pub enum AirflowCommand {
    /// Show which DAGs and tasks have connections open now.
    ///
    /// Asks the sidecars of workers that look for tasks (--task-lookup), each at its admin port, which answers programs
    /// beside it alone: run this there, or through `kubectl port-forward POD 15020`.
    Status(AirflowStatusFlags),
    /// Show who called what in a DAG run, from the access logs of sidecars.
    ///
    /// With the logs of the workers' sidecars alone each call is there once; those of services show it again as it arrived.
    Trace(AirflowTraceFlags),
}

/// Flags of `airflow status`.
#[derive(Debug, Args)]
pub struct AirflowStatusFlags {
    /// Admin port of a sidecar; may be given several times.
    #[arg(
        long = "proxy",
        env = "SIDEWIND_PROXY",
        value_name = "IP:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:15020"
    )]
    pub proxies: Vec<SocketAddr>,

    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,
}

/// Flags of `airflow trace`.
#[derive(Debug, Args)]
pub struct AirflowTraceFlags {
    /// The DAG run, as Airflow shows it: manual__2026-11-21T06:13:00+00:00, say.
    ///
    /// Runs of several DAGs may have one name, as those of one schedule have: --dag says which is meant.
    #[arg(value_name = "RUN_ID")]
    pub run_id: String,

    /// The DAG of the run; needed where runs of several DAGs have that name.
    #[arg(long = "dag", env = "SIDEWIND_DAG", value_name = "DAG_ID")]
    pub dag_id: Option<String>,

    /// Access logs; - or none is standard input.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,
}
