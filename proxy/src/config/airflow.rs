//! Airflow: whose connections are attributed to tasks, and whose word on tasks is taken.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use sidewind_identity::SpiffeIdPattern;

use super::environment::WorkloadVariables;
use super::error::ConfigError;
use super::validate::Given;
use super::values::{duration_within, socket_path};
use crate::airflow::{AttemptLogs, DEFAULT_TEMPLATE, TaskSource, command_line, environment};

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
    /// By the proxy's own environment, beside a workload that runs one task (KubernetesExecutor, ECS): AIRFLOW_CTX_DAG_ID,
    /// AIRFLOW_CTX_TASK_ID and AIRFLOW_CTX_DAG_RUN_ID, and AIRFLOW_CTX_TRY_NUMBER, AIRFLOW_CTX_MAP_INDEX and
    /// AIRFLOW_CTX_TASK_INSTANCE_ID where they are known. Without them, by the command after `--`, where that is what
    /// Airflow's executors run a task by.
    Environment,
    /// By Airflow's plugin sidewind-airflow, which says at --task-socket which task a process works for. Needs no privilege
    /// and no common PID namespace.
    Plugin,
}

/// As what a connection goes into the mesh whose task is not known for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnprovenTask {
    /// As the workload.
    Own,
    /// Not at all. That refuses programs which no worker has started, too: probes, scripts that wait for a server, and
    /// whatever runs beside Airflow 2.
    Refuse,
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

    /// Unix socket at which Airflow's plugin says which task a process works for. Airflow's user must reach it; the plugin
    /// looks for it in SIDEWIND_TASK_SOCKET.
    #[arg(long, value_name = "PATH", value_parser = socket_path, default_value = "/run/sidewind/task.sock")]
    pub(super) task_socket: PathBuf,

    /// How long a connection's first request waits until its task is known. Later the task is only logged.
    #[arg(long, value_name = "DURATION", default_value = "1s",
        value_parser = duration_within(Duration::ZERO, Duration::from_secs(1)))]
    pub(super) task_lookup_timeout: Duration,

    /// As what a connection goes into the mesh of which it is not sure which task it belongs to, if any; where the
    /// registration gives tasks identities of their own.
    #[arg(long, value_enum, default_value = "own")]
    pub(super) unproven_task: UnprovenTask,

    /// Peers that are believed when they say which task a request comes from: SPIFFE IDs, in which * stands for one
    /// segment of the path, at its end for one or more. Nobody by default.
    #[arg(long, value_name = "SPIFFE-ID", value_delimiter = ',', value_parser = SpiffeIdPattern::parse)]
    pub(super) task_context_from: Vec<SpiffeIdPattern>,

    /// Services of the mesh that are Airflow's Execution API, as NAME.NAMESPACE: whose word about tasks counts. By default
    /// that of any that clients of Airflow's SDK ask; no task gets an identity of its own then. What requests are held is
    /// not told by it.
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    pub(super) execution_api_service: Vec<String>,

    /// How long requests to Airflow's Execution API are held and tried again while no API server answers, counted from the
    /// request: less than the 5 s after which Airflow's client gives up a try. 0 is not at all.
    #[arg(long, value_name = "DURATION", default_value = "4500ms",
        value_parser = duration_within(Duration::ZERO, Duration::from_secs(60)))]
    pub(super) execution_api_hold: Duration,

    /// After how long without an answer a request to Airflow's Execution API that may be repeated goes to another API server
    /// as well; the first answer counts. 0 is never.
    #[arg(long, value_name = "DURATION", default_value = "2s",
        value_parser = duration_within(Duration::ZERO, Duration::from_secs(60)))]
    pub(super) execution_api_hedge: Duration,
}

/// What is known of Airflow.
#[derive(Debug, Clone)]
pub(crate) struct AirflowConfig {
    /// Where it is known from whose connections are; none: nobody looks.
    pub lookup: Option<TaskSource>,
    pub lookup_timeout: Duration,
    /// Peers whose word is taken.
    pub context_from: Vec<SpiffeIdPattern>,
    /// The services whose word about tasks counts; none: of whatever Airflow's clients ask.
    pub execution_api: Vec<String>,
    /// Connections are refused of which it is not sure which task they belong to, where tasks have identities.
    pub refuse_unproven: bool,
    /// How long requests to it are held while it is away; zero: not at all.
    pub hold: Duration,
    /// After how long without an answer another API server is asked as well.
    pub hedge: Option<Duration>,
}

impl AirflowConfig {
    /// Whether tasks can have identities of their own: where it can be sure which task a connection is of.
    pub(crate) fn gives_identities(&self) -> bool {
        let is_by_processes = matches!(self.lookup, Some(TaskSource::Processes(_)));
        is_by_processes && !self.execution_api.is_empty()
    }
}

pub(super) fn airflow(
    settings: AirflowSettings,
    given: &Given<'_>,
    variables: &WorkloadVariables,
    command: &[OsString],
) -> Result<AirflowConfig, ConfigError> {
    let is_by_processes = settings.task_lookup == TaskLookup::Processes;
    for flag in ["task-log-folder", "task-log-template"] {
        if given.is_given(flag) && !is_by_processes {
            return Err(given.error(flag, "needs --task-lookup processes"));
        }
    }
    if given.is_given("task-socket") && settings.task_lookup != TaskLookup::Plugin {
        return Err(given.error("task-socket", "needs --task-lookup plugin"));
    }
    if given.is_given("task-lookup-timeout") && settings.task_lookup == TaskLookup::Off {
        return Err(given.error("task-lookup-timeout", "needs --task-lookup"));
    }
    let refuse_unproven = settings.unproven_task == UnprovenTask::Refuse;
    if refuse_unproven && (!is_by_processes || settings.execution_api_service.is_empty()) {
        let needs = "needs --task-lookup processes and --execution-api-service: else it is sure of no connection";
        return Err(given.error("unproven-task", needs));
    }
    let lookup = match settings.task_lookup {
        TaskLookup::Off => None,
        TaskLookup::Plugin => Some(TaskSource::Plugin(settings.task_socket)),
        TaskLookup::Environment => environment::own(|name| variables.get(name))
            .map_err(|problem| given.error("task-lookup", problem))?
            .or_else(|| command_line::task(command))
            .map(|task| TaskSource::Given(Box::new(task))),
        TaskLookup::Processes => {
            if !settings.task_log_folder.is_absolute() {
                return Err(given.error("task-log-folder", "must be an absolute path"));
            }
            let logs = AttemptLogs::new(&settings.task_log_folder, &settings.task_log_template)
                .map_err(|problem| given.error("task-log-template", problem.to_string()))?;
            Some(TaskSource::Processes(logs))
        }
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
        refuse_unproven,
        hold: settings.execution_api_hold,
        hedge: Some(settings.execution_api_hedge).filter(|hedge| !hedge.is_zero()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::run_with;

    const PROCESSES: &str = "--task-lookup=processes";
    const SERVICE: &str = "--execution-api-service=api-server.airflow";
    const REFUSE: &str = "--unproven-task=refuse";

    #[test]
    fn tasks_can_have_identities_where_it_can_be_sure_whose_a_connection_is() {
        for (flags, gives, refuses) in [
            (&[][..], false, false),
            (&[PROCESSES], false, false),
            (&["--task-lookup=plugin", SERVICE], false, false),
            (&[PROCESSES, SERVICE], true, false),
            (&[PROCESSES, SERVICE, REFUSE], true, true),
        ] {
            let airflow = run_with(flags, &[]).unwrap().airflow;
            let got = (airflow.gives_identities(), airflow.refuse_unproven);
            assert_eq!(got, (gives, refuses), "{flags:?}");
        }
        for flags in [
            &[REFUSE][..],
            &[PROCESSES, REFUSE],
            &["--task-lookup=plugin", SERVICE, REFUSE],
        ] {
            let error = run_with(flags, &[]).unwrap_err().to_string();
            assert!(error.contains("--unproven-task"), "{error}");
        }
    }
}
