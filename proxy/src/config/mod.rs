//! Configuration: command line and environment → one validated [`Config`], before any port is bound.
//!
//! [`settings`] is the table of all settings; [`environment`] turns variables into flags; [`validate`] checks
//! what one value alone cannot tell, and reads files; [`reference`] prints the table for the docs.

mod addresses;
mod airflow;
mod aws;
mod cidr;
mod environment;
mod error;
mod evidence;
mod reference;
mod secret;
mod served_port;
mod settings;
#[cfg(test)]
mod tests;
mod validate;
#[cfg(test)]
mod value_tests;
mod values;
#[cfg(test)]
mod workload_api_tests;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use sidewind_identity::TrustDomain;

pub(crate) use addresses::{ControlPlaneAddress, Destination, MappedListener, PlaintextListener};
pub(crate) use airflow::AirflowConfig;
pub(crate) use aws::{
    AwsCredentials, AwsCredentialsSource, ContainerAuthorization, ContainerCredentials,
};
pub(crate) use cidr::Cidr;
pub(crate) use error::{ConfigError, EXIT_USAGE};
pub(crate) use evidence::EvidenceSource;
pub(crate) use secret::{JoinToken, JoinTokenSource, Secret, read_bounded};
pub(crate) use served_port::ServedPort;
pub(crate) use settings::{CaptureMode, InboundPlaintext, LogFormat, Outside, RedirectBackend};
pub(crate) use values::{AccessLog, SOCKET_DRAFT_SUFFIX};

use environment::{Environment, WorkloadVariables, variable_name};
use error::Place;
use settings::{Command, CommandLine};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Run the proxy.
    Run(Box<Config>),
    /// Run a command beside a proxy that runs already.
    RunBesideRunning(RunningSidecarConfig),
    /// Set up or remove redirection.
    Redirect(RedirectConfig),
    /// Print this on standard output and exit with 0: help, version, or the reference.
    Print(String),
}

/// Everything that `run` is told, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub control: ControlConfig,
    pub workload: WorkloadConfig,
    pub listeners: ListenerConfig,
    pub gateway: GatewayConfig,
    /// None: there is no Workload API.
    pub workload_api: Option<WorkloadApiConfig>,
    pub traffic: TrafficConfig,
    pub airflow: AirflowConfig,
    pub limits: LimitConfig,
    pub telemetry: TelemetryConfig,
    /// None: the proxy runs until it is told to end.
    pub command: Option<CommandConfig>,
    /// Findings that are no errors, to be logged once logging is set up.
    pub warnings: Vec<String>,
}

/// How the proxy reaches and verifies its control plane.
#[derive(Debug, Clone)]
pub(crate) struct ControlConfig {
    /// At least one; tried in turn.
    pub control_planes: Vec<ControlPlaneAddress>,
    pub trust_domain: TrustDomain,
    /// PEM file of roots; may not be there yet.
    pub trust_bundle: PathBuf,
    /// None: nothing is kept for a restart.
    pub state_dir: Option<PathBuf>,
    pub evidence: EvidenceSource,
}

/// What the proxy tells the control plane of its workload.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadConfig {
    /// None: the address from which the control plane is reached.
    pub address: Option<IpAddr>,
    pub name: String,
    /// Empty where nobody says it.
    pub zone: String,
    pub serve: Vec<ServedPort>,
}

/// Where programs of the workload get its SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkloadApiConfig {
    /// Absolute.
    pub socket: PathBuf,
    /// Access mode of the socket.
    pub mode: u32,
}

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenAddress {
    pub address: SocketAddr,
    /// False for an IPv6 address that nobody asked for by name: it is left out where there is no IPv6.
    pub required: bool,
}

/// Where the proxy listens.
#[derive(Debug, Clone)]
pub(crate) struct ListenerConfig {
    pub capture: CaptureMode,
    pub outbound: Vec<ListenAddress>,
    /// Empty with explicit capture.
    pub inbound: Vec<ListenAddress>,
    pub mesh: Vec<ListenAddress>,
    pub admin: Vec<ListenAddress>,
    pub mapped: Vec<MappedListener>,
    /// Empty with transparent capture.
    pub plaintext: Vec<PlaintextListener>,
    /// Where inbound goes with explicit capture; none with transparent capture, where it goes to the address that
    /// it was for.
    pub forward_address: Option<IpAddr>,
}

impl ListenerConfig {
    /// The port of the mesh listener, as peers dial it.
    pub(crate) fn mesh_port(&self) -> u16 {
        self.mesh
            .first()
            .map_or(15008, |listen| listen.address.port())
    }
}

/// How a gateway treats its clients.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatewayConfig {
    /// None: the proxy is no gateway.
    pub listen: Option<GatewayListenConfig>,
    /// Whose `x-forwarded-…` are believed.
    pub trusted_proxies: Vec<Cidr>,
    /// Who begins each connection with a PROXY protocol header.
    pub proxy_protocol_from: Vec<Cidr>,
    pub idle_timeout: Duration,
}

/// Where a gateway listens, and with which certificates.
#[derive(Debug, Clone)]
pub(crate) struct GatewayListenConfig {
    /// Their ports are those of Gateway documents.
    pub addresses: Vec<ListenAddress>,
    pub certificates: Option<PathBuf>,
}

/// What becomes of traffic, and how long it may take.
#[derive(Debug, Clone)]
pub(crate) struct TrafficConfig {
    /// None: as the control plane says.
    pub inbound_plaintext: Option<InboundPlaintext>,
    pub outside: Outside,
    pub detect_timeout: Duration,
    pub connect_timeout: Duration,
    pub handshake_timeout: Duration,
    pub request_timeout: Option<Duration>,
    pub per_try_timeout: Option<Duration>,
    pub retry_attempts: u32,
    pub retry_codes: Vec<u16>,
    pub retry_backoff: Duration,
    pub pool_idle_timeout: Duration,
    pub mesh_idle_timeout: Duration,
    pub drain_timeout: Duration,
    pub drain_quiet: Duration,
    /// Whether the proxy ends when the processes beside it have.
    pub end_with_workload: bool,
}

/// Bounds on what a client can make the proxy hold.
#[derive(Debug, Clone)]
pub(crate) struct LimitConfig {
    pub workers: NonZeroUsize,
    /// For each listener, over all workers.
    pub max_connections: usize,
    /// At once, for each worker.
    pub max_requests: usize,
    pub max_mesh_streams: u32,
    /// Of a request.
    pub max_header_bytes: usize,
    pub header_timeout: Duration,
    pub client_idle_timeout: Duration,
    pub patience: Patience,
}

/// How long bodies may stand still.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Whose sender has more of it; none for ever.
    pub body: Option<Duration>,
    /// Of unknown length; none for ever.
    pub stream: Option<Duration>,
    /// That wait for their reader.
    pub reader: Duration,
}

/// What the proxy says about its traffic and itself.
#[derive(Debug, Clone)]
pub(crate) struct TelemetryConfig {
    pub access_log: AccessLog,
    /// URL of an OTLP gRPC collector.
    pub trace_endpoint: Option<String>,
    pub trace_ratio: f64,
    pub log_filter: String,
    pub log_format: LogFormat,
}

/// A command that has its sidecar for as long as it runs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CommandConfig {
    pub program: OsString,
    pub arguments: Vec<OsString>,
    /// How long the sidecar may take to become ready.
    pub ready_timeout: Duration,
}

impl std::fmt::Debug for CommandConfig {
    /// Without the arguments: Airflow gives a task its token there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandConfig")
            .field("program", &self.program)
            .field("ready_timeout", &self.ready_timeout)
            .finish_non_exhaustive()
    }
}

/// What running a command beside a proxy that runs already needs.
#[derive(Debug, Clone)]
pub(crate) struct RunningSidecarConfig {
    pub command: CommandConfig,
    /// Where that proxy answers /ready and /shutdown.
    pub admin: SocketAddr,
    pub log_filter: String,
    pub log_format: LogFormat,
}

/// Everything that `redirect` is told.
#[derive(Debug, Clone)]
pub(crate) struct RedirectConfig {
    pub uid: u32,
    pub gid: Option<u32>,
    pub outbound_port: u16,
    pub inbound_port: u16,
    /// Sorted, each once.
    pub exclude_inbound_ports: Vec<u16>,
    /// Sorted, each once.
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<Cidr>,
    pub remove: bool,
    pub dry_run: bool,
    pub backend: RedirectBackend,
}

/// Reads the command line (program name first) and the environment.
///
/// # Errors
/// The first setting that cannot be used, as one line; the process then exits with [`EXIT_USAGE`].
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    let variables: Vec<(OsString, OsString)> = variables.into_iter().collect();
    let aws = WorkloadVariables::new(&variables);
    let environment = Environment::new(variables);
    let commands = reference::with_variables(CommandLine::command());
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = choose_command(&commands, &mut arguments);
    // What follows is another program's command line: no flag of ours, nor taken for one.
    let end = arguments.iter().position(|argument| argument == "--");
    let beside = end.map_or_else(Vec::new, |end| arguments.split_off(end));

    let from_environment = command
        .and_then(|name| commands.find_subcommand(name))
        .map(|command| environment.arguments(command, &arguments))
        .unwrap_or_default();
    let set_by_variable: Vec<String> = from_environment
        .iter()
        .map(|(flag, _)| flag.clone())
        .collect();
    arguments.extend(from_environment.into_iter().map(|(_, argument)| argument));
    arguments.extend(beside);
    let place_of = |flag: &str| {
        if set_by_variable.iter().any(|name| name == flag) {
            Place::Variable(variable_name(flag))
        } else {
            Place::Flag(flag.to_owned())
        }
    };

    let unknown = environment.unknown(&commands);
    let parsed = commands
        .try_get_matches_from(arguments)
        .and_then(|matches| {
            CommandLine::from_arg_matches(&matches).map(|settings| (matches, settings))
        });
    let (matches, settings) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if !error.use_stderr() => return Ok(Invocation::Print(error.to_string())),
        Err(error) => return Err(error::from_clap(&error, &place_of)),
    };
    let matches = matches.subcommand().map(|(_, matches)| matches.clone());
    let given = validate::Given::new(matches.unwrap_or_default(), &place_of);
    match settings.command {
        Command::Run(settings) => {
            if let Some(beside) = validate::beside_running(&settings, &given)? {
                return Ok(Invocation::RunBesideRunning(beside));
            }
            let mut config = validate::run(*settings, &given, &aws)?;
            config.warnings.extend(unknown.into_iter().map(|name| {
                format!(
                    "the variable {name} sets nothing: `sidewind-proxy --help` lists those that do"
                )
            }));
            Ok(Invocation::Run(Box::new(config)))
        }
        Command::Redirect(settings) => {
            Ok(Invocation::Redirect(validate::redirect(settings, &given)?))
        }
        Command::ConfigReference => Ok(Invocation::Print(reference::markdown())),
    }
}

/// Inserts `run` when the command line names no command, and says which command it is.
fn choose_command<'a>(
    commands: &'a clap::Command,
    arguments: &mut Vec<OsString>,
) -> Option<&'a str> {
    let first = arguments.get(1).and_then(|first| first.to_str());
    if matches!(first, Some("-h" | "--help" | "-V" | "--version")) {
        return None;
    }
    let named = first.filter(|first| !first.starts_with('-'));
    if let Some(name) = named {
        return commands.find_subcommand(name).map(clap::Command::get_name);
    }
    if arguments.is_empty() {
        arguments.push("sidewind-proxy".into());
    }
    arguments.insert(1, "run".into());
    Some("run")
}
