//! `serve`: flags into settings, signals into the shutdown.

use super::Failure;
use super::arguments::{PlaintextFlag, ServeFlags};
use crate::issuance::authority::RootSource;
use crate::issuance::authority::upstream::aws_pca::arn::AuthorityArn;
use crate::issuance::authority::upstream::aws_pca::credentials::CredentialsSource;
use crate::issuance::authority::upstream::aws_pca::{self, AwsPca};
use crate::issuance::authority::upstream::files::{Paths, UpstreamFiles};
use crate::server::{BundleEndpoints, Limits, Server, Settings, StartError, WebEndpoint, shutdown};
use crate::store::{Location, LocationError, StoreKey};
use crate::telemetry::{LogHandle, chain, init_logs};
use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};
use sidewind_api::v1::PlaintextMode;
use sidewind_identity::TrustDomain;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::signal::unix::{SignalKind, signal};

pub(super) fn run(flags: ServeFlags) -> Result<(), Failure> {
    let logs = init_logs(&flags.log_level, flags.log_format)
        .map_err(|error| Failure::Usage(format!("--log-level: {error}")))?;
    harden();
    let settings = settings(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("the runtime cannot start: {error}")))?;
    runtime.block_on(serve(settings, logs))
}

async fn serve(settings: Settings, logs: LogHandle) -> Result<(), Failure> {
    let failed = |error: StartError| {
        let message = chain(&error);
        if error.is_usage() {
            Failure::Usage(message)
        } else {
            Failure::Other(message)
        }
    };
    let no_signals = |error| Failure::Other(format!("signals cannot be watched: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let server = Server::start(settings).await.map_err(failed)?;
    let server = server.with_logs(logs);
    let (trigger, shutdown) = shutdown();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        trigger.trigger();
    });
    server.run(shutdown).await.map_err(failed)
}

fn settings(flags: ServeFlags) -> Result<Settings, Failure> {
    let root = match (&flags.root_cert, &flags.root_key, &flags.aws_pca) {
        (_, _, Some(arn)) => aws_pca(arn.clone(), &flags)?,
        (Some(certificate), Some(key), None) => {
            let paths = Paths {
                certificate: certificate.clone(),
                key: key.clone(),
                upstream_bundle: flags.upstream_bundle.clone(),
            };
            given_root(paths, &flags.trust_domain)?
        }
        _ => RootSource::Generated,
    };
    if let Some(config) = flags.config.as_deref().filter(|config| !config.is_dir()) {
        let message = format!("--config: {} is not a directory", config.display());
        return Err(Failure::Usage(message));
    }
    let store = location(flags.store.as_deref(), flags.store_file.as_deref())?;
    let read_key = |path: &std::path::PathBuf| {
        StoreKey::read(path)
            .map_err(|error| Failure::Usage(format!("--store-key-file: {}", chain(&error))))
    };
    let server_id = flags
        .server_id
        .unwrap_or_else(|| format!("sidewind://{}", flags.trust_domain));
    let web = flags.federation_web_listen;
    let web = web.zip(flags.federation_web_cert.zip(flags.federation_web_key));
    let web = web.map(|(listen, (certificate, key))| WebEndpoint {
        listen,
        certificate,
        key,
    });
    Ok(Settings {
        bundle_endpoints: BundleEndpoints {
            web,
            spiffe: flags.federation_spiffe_listen,
        },
        server_id,
        store,
        store_key: flags.store_key_file.as_ref().map(read_key).transpose()?,
        state_dir: flags.state_dir,
        config: flags.config,
        trust_domain: flags.trust_domain,
        listen: flags.listen,
        admin_listen: flags.admin_listen,
        svid_ttl: flags.svid_ttl,
        jwt_ttl: flags.jwt_ttl,
        inbound_plaintext: match flags.inbound_plaintext {
            PlaintextFlag::Permissive => PlaintextMode::Permissive,
            PlaintextFlag::Strict => PlaintextMode::Strict,
        },
        root,
        limits: Limits {
            attest_per_second: flags.attest_rate,
            sign_per_second: flags.sign_rate,
        },
        rotation_deadline: flags.rotation_deadline,
        trust_clock: flags.trust_clock,
    })
}

fn location(url: Option<&str>, file: Option<&Path>) -> Result<Location, Failure> {
    let usage =
        |flag: &str, error: LocationError| Failure::Usage(format!("{flag}: {}", chain(&error)));
    match (url, file) {
        (Some(url), _) => {
            let location = Location::parse(url).map_err(|error| usage("--store", error))?;
            if location.has_password() && std::env::var_os("SIDEWIND_STORE").is_none() {
                tracing::warn!(
                    "everyone on this machine can see the password in --store; use --store-file, SIDEWIND_STORE or PGPASSWORD"
                );
            }
            Ok(location)
        }
        (None, Some(file)) => Location::read(file).map_err(|error| usage("--store-file", error)),
        (None, None) => Ok(Location::StateDir),
    }
}

/// The root that is given, read once so that a mistake in it is said at once.
fn given_root(paths: Paths, trust_domain: &TrustDomain) -> Result<RootSource, Failure> {
    let files = UpstreamFiles::new(paths);
    files
        .check(trust_domain, SystemTime::now())
        .map_err(|error| Failure::Usage(chain(&error)))?;
    Ok(RootSource::Upstream(Arc::new(files)))
}

/// An authority of AWS Private CA; it is asked at the start.
fn aws_pca(arn: AuthorityArn, flags: &ServeFlags) -> Result<RootSource, Failure> {
    let credentials = CredentialsSource::from_variables(|name| std::env::var(name).ok());
    let credentials = credentials.map_err(|error| Failure::Usage(format!("--aws-pca: {error}")))?;
    Ok(RootSource::Upstream(Arc::new(AwsPca::new(
        aws_pca::Settings {
            arn,
            endpoint: flags.aws_pca_endpoint.clone(),
            ca_file: flags.aws_pca_ca_file.clone(),
            credentials,
        },
    ))))
}

/// Keys must not end in a core dump, nor be read by a debugger of the same user; and each proxy takes a
/// file descriptor. Where the system refuses, the control plane runs all the same.
fn harden() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps stay allowed");
    }
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
