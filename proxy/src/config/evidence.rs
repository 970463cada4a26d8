//! What proves who this workload is: exactly one kind of evidence, with all that bringing it needs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sidewind_api::evidence::sts_host;

use super::aws::AwsCredentialsSource;
use super::environment::WorkloadVariables;
use super::error::{ConfigError, Place};
use super::secret::{JoinToken, JoinTokenSource};
use super::validate::Given;

/// Where a projected service-account token is mounted by default.
const KUBERNETES_TOKEN_FILE: &str = "/var/run/secrets/tokens/sidewind";

/// What a workload proves itself with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttestorKind {
    /// A one-use token from `sidewind token create`.
    JoinToken,
    /// A projected Kubernetes service-account token.
    Kubernetes,
    /// The AWS role of an ECS task or an EKS pod.
    AwsIam,
    /// A JWT of an OIDC issuer.
    Oidc,
    /// An existing certificate, of the CA that the mesh moves away from.
    X509,
}

impl AttestorKind {
    fn name(self) -> &'static str {
        match self {
            Self::JoinToken => "join-token",
            Self::Kubernetes => "kubernetes",
            Self::AwsIam => "aws-iam",
            Self::Oidc => "oidc",
            Self::X509 => "x509",
        }
    }
}

/// Flags of each kind of evidence: those of one kind alone may be given.
const FLAGS: [(&str, AttestorKind); 8] = [
    ("join-token", AttestorKind::JoinToken),
    ("join-token-file", AttestorKind::JoinToken),
    ("kubernetes-token-file", AttestorKind::Kubernetes),
    ("cluster", AttestorKind::Kubernetes),
    ("aws-region", AttestorKind::AwsIam),
    ("oidc-token-file", AttestorKind::Oidc),
    ("x509-cert-file", AttestorKind::X509),
    ("x509-key-file", AttestorKind::X509),
];

#[derive(Debug, Args)]
#[command(next_help_heading = "Identity")]
pub(super) struct EvidenceSettings {
    /// What this workload proves itself with. By default what another setting is given for.
    #[arg(long, value_enum)]
    attestor: Option<AttestorKind>,

    /// File with the one-use token that proves who this workload is, from `sidewind token create`. It is read
    /// again for each try, so a new token can be put in its place without a restart.
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,

    /// The token itself. Only as a variable: a command line can be read by every process of the machine.
    #[arg(long, value_name = "TOKEN")]
    join_token: Option<String>,

    /// File of the projected service-account token, made for the control plane's audience; read again at each use.
    /// With --attestor kubernetes /var/run/secrets/tokens/sidewind by default.
    #[arg(long, value_name = "FILE")]
    kubernetes_token_file: Option<PathBuf>,

    /// The Kubernetes cluster that the token is of, as the control plane's AttestorConfig names it; not needed where
    /// that knows one cluster.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,

    /// The AWS region whose STS says which role this workload has. With --attestor aws-iam by default AWS_REGION or
    /// AWS_DEFAULT_REGION. Credentials come from the variables of the AWS SDKs: AWS_ACCESS_KEY_ID and those with it,
    /// or the endpoint that ECS and EKS Pod Identity name by AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or _FULL_URI.
    #[arg(long, value_name = "REGION")]
    aws_region: Option<String>,

    /// File with a JWT of an issuer that the control plane's AttestorConfig names; read again at each use.
    #[arg(long, value_name = "FILE")]
    oidc_token_file: Option<PathBuf>,

    /// An existing certificate in PEM, with its intermediates after it; read again at each use.
    #[arg(long, value_name = "FILE")]
    x509_cert_file: Option<PathBuf>,

    /// The private key of --x509-cert-file in PEM.
    #[arg(long, value_name = "FILE")]
    x509_key_file: Option<PathBuf>,
}

/// Where evidence comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EvidenceSource {
    /// A token that is good once.
    JoinToken(JoinTokenSource),
    /// A projected service-account token.
    Kubernetes {
        token_file: PathBuf,
        /// Empty where the control plane knows one cluster.
        cluster: String,
    },
    /// A request to STS, signed with the workload's credentials.
    AwsIam {
        region: String,
        credentials: AwsCredentialsSource,
    },
    /// A JWT.
    Oidc { token_file: PathBuf },
    /// A certificate and its key.
    X509 {
        certificate_file: PathBuf,
        key_file: PathBuf,
    },
}

/// The one kind of evidence that is configured.
pub(super) fn source(
    settings: EvidenceSettings,
    given: &Given<'_>,
    aws: &WorkloadVariables,
) -> Result<EvidenceSource, ConfigError> {
    match kind(&settings, given)? {
        AttestorKind::JoinToken => join_token(settings, given),
        AttestorKind::Kubernetes => Ok(EvidenceSource::Kubernetes {
            token_file: settings
                .kubernetes_token_file
                .unwrap_or_else(|| KUBERNETES_TOKEN_FILE.into()),
            cluster: settings.cluster.unwrap_or_default(),
        }),
        AttestorKind::AwsIam => aws_iam(settings, given, aws),
        AttestorKind::Oidc => match settings.oidc_token_file {
            Some(token_file) => Ok(EvidenceSource::Oidc { token_file }),
            None => Err(given.missing("oidc-token-file", "is needed: a file with a JWT")),
        },
        AttestorKind::X509 => match (settings.x509_cert_file, settings.x509_key_file) {
            (Some(certificate_file), Some(key_file)) => Ok(EvidenceSource::X509 {
                certificate_file,
                key_file,
            }),
            (None, _) => Err(given.missing("x509-cert-file", "is needed: the certificate in PEM")),
            (_, None) => Err(given.missing("x509-key-file", "is needed: the certificate's key")),
        },
    }
}

/// The kind that is named, or that other flags are given for.
fn kind(settings: &EvidenceSettings, given: &Given<'_>) -> Result<AttestorKind, ConfigError> {
    let mut named = FLAGS.iter().filter(|(flag, _)| given.is_given(flag));
    let chosen = match (settings.attestor, named.clone().next()) {
        (Some(kind), _) => kind,
        (None, Some((_, kind))) => *kind,
        (None, None) => {
            return Err(given.missing(
                "attestor",
                "is needed, or what it uses: --join-token-file with a token from `sidewind token create`, the token \
                 in SIDEWIND_JOIN_TOKEN, --kubernetes-token-file, --aws-region, --oidc-token-file, or \
                 --x509-cert-file with --x509-key-file",
            ));
        }
    };
    match named.find(|(_, kind)| *kind != chosen) {
        None => Ok(chosen),
        Some((flag, kind)) => {
            let (other, chosen) = (kind.name(), chosen.name());
            let problem =
                format!("is for attestor {other}, and {chosen} is configured too; give one");
            Err(given.error(flag, problem))
        }
    }
}

fn join_token(
    settings: EvidenceSettings,
    given: &Given<'_>,
) -> Result<EvidenceSource, ConfigError> {
    let source = match (settings.join_token, settings.join_token_file) {
        (Some(_), Some(_)) => {
            return Err(given.error(
                "join-token-file",
                "and SIDEWIND_JOIN_TOKEN are both given; give one",
            ));
        }
        (Some(token), None) => {
            if given.place("join-token") == Place::Flag("join-token".to_owned()) {
                return Err(given.error(
                    "join-token",
                    "would show the token to every process of the machine; use --join-token-file or \
                     SIDEWIND_JOIN_TOKEN",
                ));
            }
            let token =
                JoinToken::parse(&token).map_err(|problem| given.error("join-token", problem))?;
            JoinTokenSource::Variable(token)
        }
        (None, Some(path)) => {
            let source = JoinTokenSource::File(path);
            source
                .read()
                .map_err(|problem| given.error("join-token-file", problem))?;
            source
        }
        (None, None) => {
            return Err(given.missing(
                "join-token-file",
                "is needed: a file with a token from `sidewind token create`, or the token in SIDEWIND_JOIN_TOKEN",
            ));
        }
    };
    Ok(EvidenceSource::JoinToken(source))
}

fn aws_iam(
    settings: EvidenceSettings,
    given: &Given<'_>,
    aws: &WorkloadVariables,
) -> Result<EvidenceSource, ConfigError> {
    let default = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let default = default
        .iter()
        .find_map(|name| aws.get(name))
        .map(str::to_owned);
    let Some(region) = settings.aws_region.or(default) else {
        return Err(given.missing("aws-region", "is needed: the region whose STS is asked"));
    };
    if sts_host(&region).is_none() {
        let problem = format!("{region:?} is not the name of a region, like eu-west-1");
        return Err(given.error("aws-region", problem));
    }
    let credentials = AwsCredentialsSource::from_variables(aws).map_err(|problem| {
        let place = Place::Flag("attestor aws-iam".to_owned());
        ConfigError::new(place, problem)
    })?;
    Ok(EvidenceSource::AwsIam {
        region,
        credentials,
    })
}

#[cfg(test)]
mod tests;
