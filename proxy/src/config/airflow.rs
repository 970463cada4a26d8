//! Airflow: whose connections are attributed to tasks, and whose word on tasks is taken.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use sidewind_identity::SpiffeIdPattern;

use super::error::ConfigError;
use super::validate::Given;
use super::values::duration_within;
use crate::airflow::{AttemptLogs, DEFAULT_TEMPLATE};

/// Most patterns of peers that are believed.
const MAX_PEERS: usize = 64;

/// How tasks are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskLookup {
    /// Not at all.
    Off,
    /// By the processes beside the proxy, on workers that run many tasks (Celery, LocalExecutor). Needs their PID
    /// namespace (shareProcessNamespace, or pidMode "task") and, from Airflow 3.2 on, the capability SYS_PTRACE.
    Processes,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Airflow")]
pub(super) struct AirflowSettings {
    /// How it is found out which Airflow task each outbound connection belongs to.
    #[arg(long, value_enum, default_value = "off")]
    pub(super) task_lookup: TaskLookup,

    /// Airflow's [logging] base_log_folder, as the worker sees it.
    #[arg(long, value_name = "DIRECTORY", default_value = "/opt/airflow/logs")]
    pub(super) task_log_folder: PathBuf,

    /// Airflow's [logging] log_filename_template, where it was changed.
    #[arg(long, value_name = "TEMPLATE", default_value = DEFAULT_TEMPLATE, hide_default_value = true)]
    pub(super) task_log_template: String,

    /// How long a connection's first request waits until its task is known. Later the task is only logged.
    #[arg(long, value_name = "DURATION", default_value = "20ms",
        value_parser = duration_within(Duration::ZERO, Duration::from_secs(1)))]
    pub(super) task_lookup_timeout: Duration,

    /// Peers that are believed when they say which task a request comes from: SPIFFE IDs, in which * stands for one
    /// segment of the path, at its end for one or more. Nobody by default.
    #[arg(long, value_name = "SPIFFE-ID", value_delimiter = ',', value_parser = SpiffeIdPattern::parse)]
    pub(super) task_context_from: Vec<SpiffeIdPattern>,

    /// Services of the mesh that are Airflow's Execution API, as NAME.NAMESPACE: whose requests below /execution/ tell of
    /// tasks. By default any that clients of Airflow's SDK ask.
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub(super) execution_api_service: Vec<String>,

    /// How long requests to Airflow's Execution API are held and tried again while no API server answers, counted from the
    /// request: less than the 5 s after which Airflow's client gives up a try. 0 is not at all.
    #[arg(long, value_name = "DURATION", default_value = "4500ms",
        value_parser = duration_within(Duration::ZERO, Duration::from_secs(60)))]
    pub(super) execution_api_hold: Duration,
}

/// What is known of Airflow.
#[derive(Debug, Clone)]
pub(crate) struct AirflowConfig {
    /// The attempt logs by which tasks are found; none: nobody looks.
    pub lookup: Option<AttemptLogs>,
    pub lookup_timeout: Duration,
    /// Peers whose word is taken.
    pub context_from: Vec<SpiffeIdPattern>,
    /// The services of the Execution API; none: whatever Airflow's clients ask.
    pub execution_api: Vec<String>,
    /// How long requests to it are held while it is away; zero: not at all.
    pub hold: Duration,
}

pub(super) fn airflow(
    settings: AirflowSettings,
    given: &Given<'_>,
) -> Result<AirflowConfig, ConfigError> {
    let lookup = if settings.task_lookup == TaskLookup::Processes {
        if !settings.task_log_folder.is_absolute() {
            return Err(given.error("task-log-folder", "must be an absolute path"));
        }
        let logs = AttemptLogs::new(&settings.task_log_folder, &settings.task_log_template)
            .map_err(|problem| given.error("task-log-template", problem.to_string()))?;
        Some(logs)
    } else {
        for flag in [
            "task-log-folder",
            "task-log-template",
            "task-lookup-timeout",
        ] {
            if given.is_given(flag) {
                return Err(given.error(flag, "needs --task-lookup processes"));
            }
        }
        None
    };
    if settings.execution_api_service.len() > MAX_PEERS {
        let problem = format!("names more than {MAX_PEERS} services");
        return Err(given.error("execution-api-service", problem));
    }
    if settings.task_context_from.len() > MAX_PEERS {
        let problem = format!("names more than {MAX_PEERS} patterns");
        return Err(given.error("task-context-from", problem));
    }
    Ok(AirflowConfig {
        lookup,
        lookup_timeout: settings.task_lookup_timeout,
        context_from: settings.task_context_from,
        execution_api: settings.execution_api_service,
        hold: settings.execution_api_hold,
    })
}
