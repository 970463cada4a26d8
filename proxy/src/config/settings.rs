//! The one table of settings: names, defaults and help, as clap reads them. `--help`, the variables and the
//! reference page are all made from it.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sidewind_identity::TrustDomain;

use super::addresses::{
    ControlPlaneAddress, MappedListener, PlaintextListener, host_address, listen_address, port,
    trust_domain,
};
use super::airflow::AirflowSettings;
use super::cidr::Cidr;
use super::evidence::EvidenceSettings;
use super::served_port::ServedPort;
use super::values::{
    AccessLog, OptionalDuration, SocketMode, duration_within, log_filter, ratio, retry_code,
    size_within, socket_path, trace_endpoint,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The Sidewind data plane: stands beside a workload and gives it mutual TLS, retries and telemetry.
///
/// Every flag that takes a value is also an environment variable: --drain-timeout is SIDEWIND_DRAIN_TIMEOUT. A flag wins over its
/// variable, an empty variable counts as unset, and a flag that may be repeated takes commas too.
#[derive(Debug, Parser)]
#[command(
    name = "sidewind-proxy",
    bin_name = "sidewind-proxy",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    max_term_width = 100
)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the proxy (what happens when no command is given).
    Run(Box<RunSettings>),
    /// Redirect the network namespace's TCP connections to the proxy, with nftables or iptables.
    ///
    /// Needs the NET_ADMIN capability, once: in an init container, say. Running it again replaces its own rules
    /// and touches no others.
    Redirect(RedirectSettings),
    /// Print the reference of all settings as Markdown.
    ConfigReference,
}

#[derive(Debug, Args)]
pub(super) struct RunSettings {
    #[command(flatten)]
    pub(super) identity: IdentitySettings,
    #[command(flatten)]
    pub(super) workload: WorkloadSettings,
    #[command(flatten)]
    pub(super) listeners: ListenerSettings,
    #[command(flatten)]
    pub(super) gateway: GatewaySettings,
    #[command(flatten)]
    pub(super) workload_api: WorkloadApiSettings,
    #[command(flatten)]
    pub(super) traffic: TrafficSettings,
    #[command(flatten)]
    pub(super) airflow: AirflowSettings,
    #[command(flatten)]
    pub(super) limits: LimitSettings,
    #[command(flatten)]
    pub(super) telemetry: TelemetrySettings,
    #[command(flatten)]
    pub(super) command: CommandSettings,
}

/// Which sidecar a command is run beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SidecarChoice {
    /// This process is the sidecar.
    This,
    /// One that runs already, at the first address of --admin-listen.
    Running,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Command")]
pub(super) struct CommandSettings {
    /// Which sidecar the command after `--` is run beside. By default this process where --control-plane is given, else
    /// one that runs already.
    #[arg(long, value_enum)]
    pub(super) sidecar: Option<SidecarChoice>,

    /// How long the sidecar may take to become ready before the command is given up, with exit code 125.
    #[arg(long, value_name = "DURATION", default_value = "1m",
        value_parser = duration_within(MILLISECOND, 60 * MINUTE))]
    pub(super) ready_timeout: Duration,

    /// A command to run once the sidecar is ready. It is sent this process's signals, and when it ends the sidecar ends
    /// too, with its exit code (128 and the signal's number where a signal ended it).
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
pub(super) struct IdentitySettings {
    /// Where the control plane answers; of several, separated by commas, one at random, and when it fails the next.
    #[arg(long, value_name = "https://HOST:15010", value_delimiter = ',')]
    pub(super) control_plane: Vec<ControlPlaneAddress>,

    /// The trust domain that this workload belongs to. The control plane must prove that it is
    /// spiffe://TRUST-DOMAIN/sidewind/control-plane before it is sent anything.
    #[arg(long, value_name = "NAME", value_parser = trust_domain, default_value = "sidewind.local")]
    pub(super) trust_domain: TrustDomain,

    /// Root certificates of the trust domain in PEM (the control plane writes them to trust-bundle.pem in its
    /// state directory). Waited for when the file is not there yet; later changes arrive from the control plane.
    #[arg(long, value_name = "FILE")]
    pub(super) trust_bundle: Option<PathBuf>,

    /// Directory where the trust bundle is kept for a restart while the control plane is away, in trust-bundle.json:
    /// roots alone, never a key. It must exist, and be this proxy's own. By default nothing is kept.
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(super) evidence: EvidenceSettings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Workload")]
pub(super) struct WorkloadSettings {
    /// The workload's IP address, as its peers dial it; by default the address from which this proxy reaches
    /// the control plane.
    #[arg(long, value_name = "IP", value_parser = host_address)]
    pub(super) address: Option<IpAddr>,

    /// The workload's name for people: pod, task or container. By default the host name.
    #[arg(long, value_name = "NAME")]
    pub(super) workload_name: Option<String>,

    /// Where the workload stands, like an availability zone: for services whose traffic is to stay in its zone.
    #[arg(long, value_name = "NAME")]
    pub(super) zone: Option<String>,

    /// A port that the workload serves, as [SERVICE[:PORT]=]TARGETPORT[/PROTOCOL]. SERVICE is name.namespace, PORT
    /// what its clients use, and PROTOCOL one of auto (detected), http, http2, grpc, tls (passed through) and tcp.
    /// Example: orders-api.data:80=8080/http
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub(super) serve: Vec<ServedPort>,
}

/// How the workload's connections reach the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaptureMode {
    /// The kernel redirects them: `sidewind-proxy redirect` has set that up.
    Transparent,
    /// The workload uses the proxy as its HTTP proxy, and the ports of --listen.
    Explicit,
    /// There is no workload: clients outside the mesh come to the ports of Gateway documents.
    Gateway,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Listeners")]
pub(super) struct ListenerSettings {
    /// How the workload's connections reach the proxy.
    #[arg(long, value_enum, default_value = "transparent")]
    pub(super) capture: CaptureMode,

    /// Where the workload's outbound connections arrive: redirected, or as a client of an HTTP proxy. Loopback
    /// only, since whoever connects here acts as the workload; redirected ones arrive at any IPv4 loopback address. By default [::1] is left out where there is no IPv6.
    #[arg(long, value_name = "IP:PORT", value_parser = listen_address, value_delimiter = ',',
        default_values = ["127.0.0.1:15001", "[::1]:15001"])]
    pub(super) outbound_listen: Vec<SocketAddr>,

    /// Where plaintext connections to the workload arrive, redirected; with transparent capture alone. By default
    /// [::] is left out where there is no IPv6.
    #[arg(long, value_name = "IP:PORT", value_parser = listen_address, value_delimiter = ',',
        default_values = ["0.0.0.0:15006", "[::]:15006"])]
    pub(super) inbound_listen: Vec<SocketAddr>,

    /// The mesh port, where peers arrive over mutual TLS. By default [::] is left out where there is no IPv6.
    #[arg(long, value_name = "IP:PORT", value_parser = listen_address, value_delimiter = ',',
        default_values = ["0.0.0.0:15008", "[::]:15008"])]
    pub(super) mesh_listen: Vec<SocketAddr>,

    /// Where /live, /ready and /metrics answer, and from loopback alone /shutdown, /config, /log-level, /endpoints
    /// and /tasks. By default [::] is left out where there is no IPv6.
    #[arg(long, value_name = "IP:PORT", value_parser = listen_address, value_delimiter = ',',
        default_values = ["0.0.0.0:15020", "[::]:15020"])]
    pub(super) admin_listen: Vec<SocketAddr>,

    /// A loopback port that stands for a service, for clients that know no HTTP proxy.
    /// Example: 127.0.0.1:5432=postgres.data:5432
    #[arg(long, value_name = "IP:PORT=HOST:PORT", value_delimiter = ',')]
    pub(super) listen: Vec<MappedListener>,

    /// A port that takes plaintext for a port of the workload, judged like any plaintext from outside the mesh;
    /// with explicit capture alone.
    #[arg(long, value_name = "IP:PORT=TARGETPORT", value_delimiter = ',')]
    pub(super) plaintext_listen: Vec<PlaintextListener>,

    /// The address at which the workload listens; with explicit capture alone (redirected connections go to the
    /// address that they were for).
    #[arg(long, value_name = "IP", value_parser = host_address, default_value = "127.0.0.1")]
    pub(super) forward_address: IpAddr,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Gateway")]
pub(super) struct GatewaySettings {
    /// Where the ports of Gateway documents are opened; with gateway capture alone, like all of these. By default [::] is
    /// left out where there is no IPv6.
    #[arg(long, value_name = "IP", value_delimiter = ',', default_values = ["0.0.0.0", "::"])]
    pub(super) gateway_address: Vec<IpAddr>,

    /// Where the certificates of Gateway documents are: certificateRefs name NAME is DIR/NAME/tls.crt, the chain with its
    /// leaf first, and DIR/NAME/tls.key, both in PEM. Read again when they change.
    #[arg(long, value_name = "DIR")]
    pub(super) gateway_certificates: Option<PathBuf>,

    /// Proxies in front of the gateway whose x-forwarded-for, -proto and -host are believed and continued. From all others
    /// they are overwritten.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(super) gateway_trusted_proxies: Vec<Cidr>,

    /// Load balancers in front of the gateway that begin each connection with a PROXY protocol header, version 1 or 2.
    /// From these it must come, and from no others is it taken.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(super) gateway_proxy_protocol_from: Vec<Cidr>,

    /// How long a client of the gateway may keep a connection open without a request.
    #[arg(long, value_name = "DURATION", default_value = "90s",
        value_parser = duration_within(MILLISECOND, DAY))]
    pub(super) gateway_idle_timeout: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Workload API")]
pub(super) struct WorkloadApiSettings {
    /// Unix socket on which programs of the workload get its SVIDs with their keys: by the SPIFFE Workload API, and by
    /// Envoy's SDS. Whoever reaches the socket is the workload, so it belongs where nobody else comes: a volume of the
    /// pod or task. None by default.
    #[arg(long, value_name = "PATH", value_parser = socket_path)]
    pub(super) workload_api_socket: Option<PathBuf>,

    /// Access mode of that socket, in octal. Programs of another user than the proxy's need 666, or the proxy's group
    /// and 660.
    #[arg(long, value_name = "MODE", default_value = "660")]
    pub(super) workload_api_mode: SocketMode,
}

/// Whether plaintext from outside the mesh reaches the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InboundPlaintext {
    /// It does not.
    Strict,
    /// It does, where policy allows.
    Permissive,
}

/// What becomes of connections to destinations outside the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Outside {
    /// They are made, as plain as the workload made them.
    Permit,
    /// They are refused.
    Refuse,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Traffic")]
pub(super) struct TrafficSettings {
    /// Whether plaintext from outside the mesh reaches the workload. By default what the control plane says; when
    /// both say something, strict wins.
    #[arg(long, value_enum)]
    pub(super) inbound_plaintext: Option<InboundPlaintext>,

    /// What becomes of connections to destinations outside the mesh.
    #[arg(long, value_enum, default_value = "permit")]
    pub(super) outside: Outside,

    /// How long a client may stay silent before its connection counts as opaque TCP.
    #[arg(long, value_name = "DURATION", default_value = "1s",
        value_parser = duration_within(MILLISECOND, MINUTE))]
    pub(super) detect_timeout: Duration,

    /// How long one TCP connection to an endpoint may take.
    #[arg(long, value_name = "DURATION", default_value = "2s",
        value_parser = duration_within(MILLISECOND, 5 * MINUTE))]
    pub(super) connect_timeout: Duration,

    /// How long a TLS handshake may take, as client or as server.
    #[arg(long, value_name = "DURATION", default_value = "10s",
        value_parser = duration_within(MILLISECOND, 5 * MINUTE))]
    pub(super) handshake_timeout: Duration,

    /// How long a request may take in all, retries included; a route's own timeout comes first. None by default,
    /// because uploads, log streams and long polls have no length that fits all.
    #[arg(long, value_name = "DURATION", default_value = "none")]
    pub(super) request_timeout: OptionalDuration,

    /// How long one try of a request that may be retried may take; a route's own comes first.
    #[arg(long, value_name = "DURATION", default_value = "none")]
    pub(super) per_try_timeout: OptionalDuration,

    /// Retries after the first try, of requests with an idempotent method; a route's own number comes first, 0 is
    /// none.
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(0..=10))]
    pub(super) retry_attempts: u32,

    /// Status codes after which an idempotent request is retried; a failed connection always counts.
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = retry_code,
        default_values = ["502", "503", "504"])]
    pub(super) retry_codes: Vec<u16>,

    /// The wait before the first retry, doubled for each further one up to ten times as long, less a random part.
    #[arg(long, value_name = "DURATION", default_value = "25ms",
        value_parser = duration_within(MILLISECOND, MINUTE))]
    pub(super) retry_backoff: Duration,

    /// How long an unused connection to the workload is kept for the next request: less than the shortest
    /// keep-alive in use (gunicorn closes after 2 s), so that a request never meets a closing connection.
    #[arg(long, value_name = "DURATION", default_value = "1500ms",
        value_parser = duration_within(MILLISECOND, DAY))]
    pub(super) pool_idle_timeout: Duration,

    /// How long a mesh connection that carries nothing is kept.
    #[arg(long, value_name = "DURATION", default_value = "5m",
        value_parser = duration_within(MILLISECOND, DAY))]
    pub(super) mesh_idle_timeout: Duration,

    /// How long connections may go on after SIGTERM.
    #[arg(long, value_name = "DURATION", default_value = "30s",
        value_parser = duration_within(Duration::ZERO, DAY))]
    pub(super) drain_timeout: Duration,

    /// For how long after SIGTERM nothing may be open before the workload counts as gone and the proxy ends: longer
    /// than the workload's pauses between calls.
    #[arg(long, value_name = "DURATION", default_value = "10s",
        value_parser = duration_within(Duration::ZERO, DAY))]
    pub(super) drain_quiet: Duration,

    /// End with 0 when all other processes of the PID namespace have ended, for jobs whose sidecar shares it; and after
    /// SIGTERM not before they have, instead of --drain-quiet.
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, default_missing_value = "true")]
    pub(super) end_with_workload: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitSettings {
    /// Threads that carry traffic. One is cheapest for each request; more when one core is not enough.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) workers: u16,

    /// Connections open on each listener; further ones are refused at once.
    #[arg(long, value_name = "N", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) max_connections: u32,

    /// Requests at once for each worker; further ones are answered with 503 at once.
    #[arg(long, value_name = "N", default_value_t = 20_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) max_requests: u32,

    /// Streams that one peer may have open on one mesh connection.
    #[arg(long, value_name = "N", default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) max_mesh_streams: u32,

    /// Bytes of a request's head.
    #[arg(long, value_name = "SIZE", default_value = "64KiB",
        value_parser = size_within(8 << 10, 1 << 20))]
    pub(super) max_header_bytes: usize,

    /// How long a client may take over the head of a request once it has begun it.
    #[arg(long, value_name = "DURATION", default_value = "10s",
        value_parser = duration_within(MILLISECOND, 10 * MINUTE))]
    pub(super) header_timeout: Duration,

    /// How long an HTTP client may keep a connection open without a request.
    #[arg(long, value_name = "DURATION", default_value = "1h",
        value_parser = duration_within(MILLISECOND, DAY))]
    pub(super) client_idle_timeout: Duration,

    /// How long a body may stand still while its sender has more of it: 1 KiB must come in this time, or the end. Holds
    /// for the body of a request, and for that of a response whose length is known. gRPC is left alone.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(super) body_timeout: OptionalDuration,

    /// How long a response of unknown length, a stream perhaps, may say nothing, and how long an endpoint may take to
    /// begin its answer. gRPC and upgraded connections are left alone.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub(super) stream_idle_timeout: OptionalDuration,

    /// How long a client may take nothing of a response that waits for it, and a server nothing of a request.
    #[arg(long, value_name = "DURATION", default_value = "15m",
        value_parser = duration_within(MILLISECOND, DAY))]
    pub(super) reader_timeout: Duration,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object on each line.
    Json,
    /// For people.
    Text,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Telemetry")]
pub(super) struct TelemetrySettings {
    /// Where the record of each request and connection goes: stdout, off, or a file's path.
    #[arg(long, value_name = "WHERE", default_value = "stdout")]
    pub(super) access_log: AccessLog,

    /// OpenTelemetry collector that takes traces by OTLP over gRPC; none by default.
    #[arg(long, value_name = "http://HOST:4317", value_parser = trace_endpoint)]
    pub(super) trace_endpoint: Option<String>,

    /// Fraction of requests that begin a trace when their client has not; a client's decision is kept.
    #[arg(long, value_name = "FRACTION", default_value = "0.01", value_parser = ratio)]
    pub(super) trace_ratio: f64,

    /// Log filter: a level (error, warn, info, debug, trace), or levels by module. /log-level changes it while
    /// the proxy runs.
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub(super) log_level: String,

    /// How log lines are written.
    #[arg(long, value_enum, default_value = "json")]
    pub(super) log_format: LogFormat,
}

/// What sets up the redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RedirectBackend {
    /// nftables when `nft` is installed, else iptables.
    Auto,
    /// `nft`.
    Nftables,
    /// `iptables` and `ip6tables`.
    Iptables,
}

#[derive(Debug, Args)]
pub(super) struct RedirectSettings {
    /// User id whose connections are left alone: the one that the proxy runs as.
    #[arg(long, alias = "exempt-uid", value_name = "UID", default_value_t = 1337)]
    pub(super) uid: u32,

    /// Group id whose connections are left alone too.
    #[arg(long, alias = "exempt-gid", value_name = "GID")]
    pub(super) gid: Option<u32>,

    /// The proxy's outbound port.
    #[arg(long, value_name = "PORT", value_parser = port, default_value = "15001")]
    pub(super) outbound_port: u16,

    /// The proxy's inbound port.
    #[arg(long, value_name = "PORT", value_parser = port, default_value = "15006")]
    pub(super) inbound_port: u16,

    /// Ports of the workload that are not redirected; 15008 and 15020 are always among them. Name the ports of
    /// --mesh-listen and --admin-listen too where they are others.
    #[arg(long, value_name = "PORT", value_parser = port, value_delimiter = ',',
        default_values = ["15008", "15020"])]
    pub(super) exclude_inbound_ports: Vec<u16>,

    /// Destination ports that are not redirected.
    #[arg(long, value_name = "PORT", value_parser = port, value_delimiter = ',')]
    pub(super) exclude_outbound_ports: Vec<u16>,

    /// Destination addresses that are not redirected.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(super) exclude_outbound_cidrs: Vec<Cidr>,

    /// Remove the redirection.
    #[arg(long)]
    pub(super) remove: bool,

    /// Print what would be done, and do nothing.
    #[arg(long)]
    pub(super) dry_run: bool,

    /// What sets up the redirection: auto is nftables when nft is installed, else iptables.
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) backend: RedirectBackend,
}
