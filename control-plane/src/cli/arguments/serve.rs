//! The flags of `serve`.

use super::{DEFAULT_STATE_DIR, parse_duration, parse_trust_domain};
use crate::https::HttpsUrl;
use crate::issuance::authority::upstream::aws_pca::arn::AuthorityArn;
use crate::server::limits::{ATTEST_PER_SECOND, SIGN_PER_SECOND};
use crate::telemetry::LogFormat;
use clap::{Args, ValueEnum};
use sidewind_identity::TrustDomain;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeFlags {
    /// Directory of the state: keys, registrations, audit. Made with mode 0700 where it is missing.
    #[arg(long, env = "SIDEWIND_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,

    /// PostgreSQL database for the state, shared by any number of replicas [default: SQLite in the state
    /// directory, for one].
    ///
    /// What the URL lacks comes from the variables of PostgreSQL's own clients (PGPASSWORD and so on). A
    /// command line is no place for a password: put it there, into this flag's variable, or into a file for
    /// --store-file.
    #[arg(
        long,
        env = "SIDEWIND_STORE",
        value_name = "postgres://USER@HOST/DATABASE",
        hide_env_values = true,
        conflicts_with = "store_file"
    )]
    pub store: Option<String>,

    /// File that holds the URL of --store; its mode must be 0440 or stricter.
    #[arg(long, env = "SIDEWIND_STORE_FILE", value_name = "FILE")]
    pub store_file: Option<PathBuf>,

    /// File of 32 random bytes that private keys in the store are sealed with; its mode must be 0440 or
    /// stricter.
    #[arg(long, env = "SIDEWIND_STORE_KEY_FILE", value_name = "FILE")]
    pub store_key_file: Option<PathBuf>,

    /// Directory of resources (*.yaml), read again on change; none by default.
    #[arg(long, env = "SIDEWIND_CONFIG", value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Trust domain whose identities are issued.
    #[arg(
        long, env = "SIDEWIND_TRUST_DOMAIN", value_name = "NAME", default_value = "sidewind.local",
        value_parser = parse_trust_domain
    )]
    pub trust_domain: TrustDomain,

    /// Address and port for proxies (gRPC over TLS 1.3).
    #[arg(
        long,
        env = "SIDEWIND_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:15010"
    )]
    pub listen: SocketAddr,

    /// Address and port for probes and metrics (plain HTTP: /live, /ready, /metrics).
    #[arg(
        long,
        env = "SIDEWIND_ADMIN_LISTEN",
        value_name = "IP:PORT",
        default_value = "0.0.0.0:15014"
    )]
    pub admin_listen: SocketAddr,

    /// Lifetime of certificates, from 1m to 24h, for join tokens that say nothing else.
    #[arg(
        long, env = "SIDEWIND_SVID_TTL", value_name = "DURATION", default_value = "1h",
        value_parser = parse_duration
    )]
    pub svid_ttl: Duration,

    /// Lifetime of JWT-SVIDs, from 1m to 1h, for registrations that say nothing else.
    #[arg(
        long, env = "SIDEWIND_JWT_TTL", value_name = "DURATION", default_value = "5m",
        value_parser = parse_duration
    )]
    pub jwt_ttl: Duration,

    /// What proxies sign evidence for (aws-iam, x509), so that it is good nowhere else; the same for all
    /// replicas [default: sidewind://TRUST-DOMAIN].
    #[arg(long, env = "SIDEWIND_SERVER_ID", value_name = "TEXT", value_parser = parse_server_id)]
    pub server_id: Option<String>,

    /// Whether workloads take plaintext connections from outside the mesh.
    #[arg(
        long,
        env = "SIDEWIND_INBOUND_PLAINTEXT",
        value_name = "MODE",
        default_value = "permissive"
    )]
    pub inbound_plaintext: PlaintextFlag,

    /// Root certificate in PEM, instead of a generated one; goes with --root-key. Read again as it changes.
    ///
    /// With --upstream-bundle: the certificate of a signing authority, and those between it and its root.
    #[arg(
        long,
        env = "SIDEWIND_ROOT_CERT",
        value_name = "FILE",
        requires = "root_key"
    )]
    pub root_cert: Option<PathBuf>,

    /// Key of that certificate in PEM (P-256). Its mode must be 0600 or stricter; a Secret's mount, which is root's
    /// and readable for the process's group, will do.
    #[arg(
        long,
        env = "SIDEWIND_ROOT_KEY",
        value_name = "FILE",
        requires = "root_cert"
    )]
    pub root_key: Option<PathBuf>,

    /// Attestations, and challenges for them, that one address may ask for in one second.
    ///
    /// It is what counts before it is known who asks. Five times as many may come at once. An IPv6 address counts as its /64 network, and handshakes
    /// without a certificate may be twice as many. Raise it where more than a thousand proxies stand behind
    /// one address. Who asks more often is refused with the reason rate-limited, and told when to try again.
    #[arg(
        long, env = "SIDEWIND_ATTEST_RATE", value_name = "NUMBER", default_value_t = ATTEST_PER_SECOND
    )]
    pub attest_rate: NonZeroU32,

    /// Certificates that one proxy may have signed in one second; five times as many at once.
    ///
    /// A proxy is known by its registration, which it has from its attestation: a SPIFFE ID is shared by
    /// all replicas of a workload.
    #[arg(
        long, env = "SIDEWIND_SIGN_RATE", value_name = "NUMBER", default_value_t = SIGN_PER_SECOND
    )]
    pub sign_rate: NonZeroU32,
    /// Roots in PEM above the signing authority that --root-cert and --root-key give: another CA's, whose own key
    /// stays where it is. Read again as it changes.
    #[arg(
        long,
        env = "SIDEWIND_UPSTREAM_BUNDLE",
        value_name = "FILE",
        requires = "root_cert"
    )]
    pub upstream_bundle: Option<PathBuf>,

    /// Address and port where others fetch the trust bundle by the SPIFFE profile https_web, with the certificate of
    /// --federation-web-cert; none by default.
    #[arg(
        long,
        env = "SIDEWIND_FEDERATION_WEB_LISTEN",
        value_name = "IP:PORT",
        requires = "federation_web_cert"
    )]
    pub federation_web_listen: Option<SocketAddr>,

    /// Certificate in PEM for the host of that address, with those below its root. Read again as it changes.
    #[arg(
        long,
        env = "SIDEWIND_FEDERATION_WEB_CERT",
        value_name = "FILE",
        requires = "federation_web_key"
    )]
    pub federation_web_cert: Option<PathBuf>,

    /// Key of that certificate in PEM, with a mode as for --root-key.
    #[arg(
        long,
        env = "SIDEWIND_FEDERATION_WEB_KEY",
        value_name = "FILE",
        requires = "federation_web_listen"
    )]
    pub federation_web_key: Option<PathBuf>,

    /// Address and port where others fetch the trust bundle by the SPIFFE profile https_spiffe, with the control plane's own
    /// SVID; none by default.
    #[arg(
        long,
        env = "SIDEWIND_FEDERATION_SPIFFE_LISTEN",
        value_name = "IP:PORT"
    )]
    pub federation_spiffe_listen: Option<SocketAddr>,

    /// Authority of AWS Private CA that signs this control plane's signing certificates, instead of a root of its own.
    ///
    /// Needs acm-pca:IssueCertificate, acm-pca:GetCertificate and acm-pca:GetCertificateAuthorityCertificate for it.
    /// Credentials come from the variables of AWS's SDKs (AWS_ACCESS_KEY_ID and those with it), or from the endpoint
    /// that ECS and EKS Pod Identity put beside a container.
    #[arg(
        long,
        env = "SIDEWIND_AWS_PCA",
        value_name = "ARN",
        conflicts_with = "root_cert"
    )]
    pub aws_pca: Option<AuthorityArn>,

    /// Where that authority answers, if not at AWS's own endpoint of its region: a VPC endpoint.
    #[arg(
        long,
        env = "SIDEWIND_AWS_PCA_ENDPOINT",
        value_name = "URL",
        value_parser = parse_url,
        requires = "aws_pca"
    )]
    pub aws_pca_endpoint: Option<HttpsUrl>,

    /// Certificate authorities in PEM to believe at that endpoint [default: those of the system].
    #[arg(
        long,
        env = "SIDEWIND_AWS_PCA_CA_FILE",
        value_name = "FILE",
        requires = "aws_pca"
    )]
    pub aws_pca_ca_file: Option<PathBuf>,

    /// How long a new root waits for proxies that do not acknowledge it, before it signs all the same.
    #[arg(
        long, env = "SIDEWIND_ROTATION_DEADLINE", value_name = "DURATION", default_value = "1h",
        value_parser = parse_duration
    )]
    pub rotation_deadline: Duration,

    /// Start although the clock of this machine is before the build of this program or the newest certificate in the
    /// store: that one was made while a clock was ahead, and this clock is right.
    #[arg(long, env = "SIDEWIND_TRUST_CLOCK")]
    pub trust_clock: bool,

    /// What to log: a level, or a filter like info,sidewind_control_plane=debug.
    #[arg(
        long,
        env = "SIDEWIND_LOG_LEVEL",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log_level: String,

    /// Form of the log lines, which go to standard error.
    #[arg(
        long,
        env = "SIDEWIND_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "json"
    )]
    pub log_format: LogFormat,
}

/// Whether plaintext from outside the mesh is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlaintextFlag {
    /// Taken, and subject to the policies like everything else.
    Permissive,
    /// Refused.
    Strict,
}

fn parse_url(text: &str) -> Result<HttpsUrl, String> {
    HttpsUrl::parse(text).map_err(|error| error.to_string())
}

fn parse_server_id(text: &str) -> Result<String, String> {
    // It becomes the value of an HTTP header.
    let known = text.bytes().all(|byte| byte.is_ascii_graphic());
    if known && (1..=255).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 255 printable characters without spaces".to_owned())
}
