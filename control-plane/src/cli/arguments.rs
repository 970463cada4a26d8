//! Every command and flag. Each flag is also a variable: `--state-dir` is `SIDEWIND_STATE_DIR`.

mod airflow;
mod serve;

pub use airflow::{AirflowCommand, AirflowStatusFlags, AirflowTraceFlags};
pub use serve::{PlaintextFlag, ServeFlags};

use clap::{Args, Parser, Subcommand, ValueEnum};
use sidewind_api::{Banned, ServiceName, duration};
use sidewind_identity::{SpiffeId, TrustDomain};
use std::path::PathBuf;
use std::time::Duration;

/// The control plane of Sidewind, a service mesh for Apache Airflow.
///
/// Begin with `sidewind serve`; it needs no configuration. Then give each workload's proxy the trust
/// bundle and a join token:
///
///   sidewind token create --spiffe-id spiffe://sidewind.local/ns/data/sa/orders --service orders.data
#[derive(Debug, Parser)]
#[command(
    name = "sidewind",
    version,
    verbatim_doc_comment,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane.
    ///
    /// With no flags at all it keeps its state in /var/lib/sidewind, makes a root certificate there, and
    /// serves proxies on port 15010. The file trust-bundle.pem in the state directory is what proxies need
    /// to know it by.
    Serve(Box<ServeFlags>),
    /// Make join tokens, with which proxies get their first certificate.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at the certificate authorities, and replace them.
    #[command(subcommand)]
    Ca(AuthorityCommand),
    /// List the workloads of the mesh.
    Workloads(WorkloadsFlags),
    /// Explain one workload: certificate, authority, trust bundle on each side, bans, and which rule lets a caller in.
    Explain(ExplainFlags),
    /// See which Airflow tasks call, and what the tasks of a run have called.
    #[command(subcommand)]
    Airflow(AirflowCommand),
    /// Cut an identity or a certificate off, everywhere and at once.
    ///
    /// Every proxy refuses it from then on and closes its living connections, within a second. A banned identity
    /// (with the task identities derived from it) also gets no new certificate; a banned certificate's workload
    /// does, so ban the identity when its evidence is stolen too.
    Ban(BanFlags),
    /// Lift a ban.
    Unban(UnbanFlags),
    /// List what is banned.
    Bans(BansFlags),
    /// Look at foreign trust domains, whose bundles are fetched.
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Look at resources: policies, service entries, routes, registrations, attestors, foreign trust domains.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show what was granted and refused, and check that nothing of it was changed.
    Audit(AuditFlags),
    /// Show what the running control plane logs, or change it.
    ///
    /// With a filter it is changed at once, until the process ends; a filter that is none changes nothing
    /// and ends with 64.
    LogLevel(LogLevelFlags),
}

/// Where state is kept by default.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/sidewind";

/// Commands about join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token and print it, and nothing else, on standard output.
    ///
    /// The token is good once and is kept nowhere but where you put it. Give it to one proxy, as
    /// SIDEWIND_JOIN_TOKEN or in a file named by --join-token-file.
    Create(TokenCreateFlags),
}

/// Flags of `token create`.
#[derive(Debug, Args)]
pub struct TokenCreateFlags {
    /// Identity that the token gives, like spiffe://sidewind.local/ns/data/sa/orders.
    #[arg(long, env = "SIDEWIND_SPIFFE_ID", value_name = "ID", value_parser = parse_spiffe_id)]
    pub spiffe_id: SpiffeId,

    /// Service that the workload may offer, as name.namespace; may be given several times.
    #[arg(
        long = "service",
        env = "SIDEWIND_SERVICE",
        value_name = "SERVICE",
        value_delimiter = ','
    )]
    pub services: Vec<ServiceName>,

    /// Foreign trust domain whose bundle the workload gets, so that it can talk to workloads there; may be given several
    /// times.
    #[arg(
        long = "federates-with",
        env = "SIDEWIND_FEDERATES_WITH",
        value_name = "TRUST_DOMAIN",
        value_delimiter = ',',
        value_parser = parse_trust_domain
    )]
    pub federates_with: Vec<TrustDomain>,

    /// How long the token is good, at most 24h.
    #[arg(
        long, env = "SIDEWIND_EXPIRES", value_name = "DURATION", default_value = "10m",
        value_parser = parse_duration
    )]
    pub expires: Duration,

    /// Lifetime of the certificates that come of it, from 1m to 24h [default: the server's --svid-ttl].
    #[arg(long, env = "SIDEWIND_SVID_TTL", value_name = "DURATION", value_parser = parse_duration)]
    pub svid_ttl: Option<Duration>,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Which running control plane is asked.
#[derive(Debug, Args)]
pub struct SocketFlags {
    /// State directory of the running control plane; its admin.sock is asked.
    #[arg(long, env = "SIDEWIND_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,

    /// Admin socket of the running control plane, when it is elsewhere.
    #[arg(long, env = "SIDEWIND_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Commands about the certificate authority.
#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Show the root and signing certificates with their states and key ids.
    Show(AuthorityShowFlags),
    /// Go one step further in replacing the signing certificate, the root or the key of JWT-SVIDs: prepare the next, or
    /// use the prepared one.
    ///
    /// All are replaced by themselves in time; this is for doing it now. A root that is prepared is in the trust
    /// bundle, and is used once every live proxy has acknowledged that; a key of JWT-SVIDs once those who fetch the bundle have it. Ends
    /// with 1 when it has to wait.
    Rotate(AuthorityRotateFlags),
    /// Declare an old certificate unreliable: every proxy whose certificate chains through it renews at once. An old key of
    /// JWT-SVIDs: proxies ask for new tokens, and it is believed an hour more.
    Taint(AuthorityTaintFlags),
    /// Take an old root, or an old key of JWT-SVIDs, out of the trust bundle: what it signed is believed no longer.
    Revoke(AuthorityRevokeFlags),
}

/// Flags of `ca rotate`.
#[derive(Debug, Args)]
pub struct AuthorityRotateFlags {
    /// The root, and with it the signing certificate.
    #[arg(long)]
    pub root: bool,

    /// The key that signs JWT-SVIDs.
    #[arg(long, conflicts_with = "root")]
    pub jwt: bool,

    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,

    /// Use the prepared root although some proxies have not acknowledged it, or the prepared key of JWT-SVIDs although it
    /// was not published for long.
    #[arg(long)]
    pub force: bool,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `ca taint`.
#[derive(Debug, Args)]
pub struct AuthorityTaintFlags {
    /// Key id of the certificate or key, as `ca show` prints it.
    #[arg(value_name = "KEY_ID", allow_hyphen_values = true)]
    pub key_id: String,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `ca revoke`.
#[derive(Debug, Args)]
pub struct AuthorityRevokeFlags {
    /// Key id of the root or key, as `ca show` prints it.
    #[arg(value_name = "KEY_ID", allow_hyphen_values = true)]
    pub key_id: String,

    /// Although certificates below it are still good.
    #[arg(long)]
    pub force: bool,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `ca show`.
#[derive(Debug, Args)]
pub struct AuthorityShowFlags {
    /// Print the roots in PEM: the trust bundle that proxies are given.
    #[arg(long)]
    pub pem: bool,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `workloads`.
#[derive(Debug, Args)]
pub struct WorkloadsFlags {
    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct ExplainFlags {
    /// The workload's SPIFFE ID, name or address, or the serial number of its certificate.
    #[arg(value_name = "PEER")]
    pub peer: String,

    /// Who calls it, to say which rule lets them in.
    #[arg(long, value_name = "SPIFFE_ID", value_parser = parse_spiffe_id)]
    pub from: Option<SpiffeId>,

    /// The port of the workload that is called.
    #[arg(long, value_name = "PORT", requires = "from")]
    pub port: Option<u16>,

    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `ban`.
#[derive(Debug, Args)]
pub struct BanFlags {
    /// A SPIFFE ID, or the serial number of a certificate in hexadecimal.
    #[arg(value_name = "SPIFFE_ID|SERIAL")]
    pub subject: Banned,

    /// Why, for whoever reads the list later.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `unban`.
#[derive(Debug, Args)]
pub struct UnbanFlags {
    /// The SPIFFE ID or serial number, as `sidewind bans` shows it.
    #[arg(value_name = "SPIFFE_ID|SERIAL")]
    pub subject: Banned,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `bans`.
#[derive(Debug, Args)]
pub struct BansFlags {
    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Commands about foreign trust domains.
#[derive(Debug, Subcommand)]
pub enum FederationCommand {
    /// List foreign trust domains: where each bundle comes from, its sequence, when its endpoint was last heard, and why the
    /// last try failed.
    List(FederationListFlags),
    /// Forget the bundle of a trust domain, and which sequence it had.
    ///
    /// For a trust domain that begins anew, with a lower sequence than before. Take its FederatedTrustDomain out first, and
    /// put it back afterwards.
    Forget(FederationForgetFlags),
}

/// Flags of `federation list`.
#[derive(Debug, Args)]
pub struct FederationListFlags {
    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `federation forget`.
#[derive(Debug, Args)]
pub struct FederationForgetFlags {
    /// The trust domain.
    #[arg(value_name = "TRUST_DOMAIN", value_parser = parse_trust_domain)]
    pub trust_domain: TrustDomain,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// The form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
}

/// Flags of `audit`.
#[derive(Debug, Args)]
pub struct AuditFlags {
    /// Only records of this last time, at most 90 days.
    #[arg(
        long, env = "SIDEWIND_SINCE", value_name = "DURATION", default_value = "1h",
        value_parser = parse_duration
    )]
    pub since: Duration,

    /// Instead of showing records, check the chain of hashes over all of them; ends with 1 when it is broken.
    ///
    /// Prints the last hash. Note it elsewhere: who can write the database can make a new chain, but none
    /// that has a noted hash in it.
    #[arg(long)]
    pub verify: bool,

    /// Form of the output.
    #[arg(
        short,
        long,
        env = "SIDEWIND_OUTPUT",
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: OutputFormat,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Flags of `log-level`.
#[derive(Debug, Args)]
pub struct LogLevelFlags {
    /// A level, or a filter like info,sidewind_control_plane=debug; left out: show the present one.
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,

    /// Which control plane to ask.
    #[command(flatten)]
    pub socket: SocketFlags,
}

/// Commands about resources.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a directory of resources, without a running control plane.
    ///
    /// Prints everything that is wrong, each with file, line, column and field, and ends with 64 then.
    Check {
        /// The directory.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

fn parse_trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|error| error.to_string())
}

fn parse_spiffe_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text).map_err(|error| error.to_string())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
