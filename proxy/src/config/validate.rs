//! What one value alone cannot tell: settings that are missing, that exclude each other, or that name a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;
use sidewind_identity::{TrustBundle, TrustDomain};

use super::airflow::airflow;
use super::environment::{WorkloadVariables, variable_name};
use super::error::{ConfigError, Place};
use super::evidence;
use super::settings::{
    CaptureMode, CommandSettings, GatewaySettings, IdentitySettings, LimitSettings,
    ListenerSettings, RedirectSettings, RunSettings, SidecarChoice, TelemetrySettings,
    TrafficSettings, WorkloadApiSettings, WorkloadSettings,
};
use super::{
    CommandConfig, Config, ControlConfig, GatewayConfig, GatewayListenConfig, LimitConfig,
    ListenAddress, ListenerConfig, Patience, RedirectConfig, RunningSidecarConfig, TelemetryConfig,
    TrafficConfig, WorkloadApiConfig, WorkloadConfig,
};

/// Which settings were given, and where.
pub(super) struct Given<'a> {
    matches: ArgMatches,
    place_of: &'a dyn Fn(&str) -> Place,
}

impl<'a> Given<'a> {
    pub(super) fn new(matches: ArgMatches, place_of: &'a dyn Fn(&str) -> Place) -> Self {
        Self { matches, place_of }
    }

    pub(super) fn is_given(&self, flag: &str) -> bool {
        self.matches.value_source(&flag.replace('-', "_")) == Some(ValueSource::CommandLine)
    }

    pub(super) fn error(&self, flag: &str, problem: impl std::fmt::Display) -> ConfigError {
        ConfigError::new((self.place_of)(flag), problem)
    }

    /// Where a setting was given.
    pub(super) fn place(&self, flag: &str) -> Place {
        (self.place_of)(flag)
    }

    pub(super) fn missing(&self, flag: &str, problem: impl std::fmt::Display) -> ConfigError {
        let place = Place::Missing {
            flag: flag.to_owned(),
            variable: variable_name(flag),
        };
        ConfigError::new(place, problem)
    }

    /// Refuses a setting that has no meaning under the chosen capture mode.
    fn only_with(
        &self,
        flag: &str,
        needed: CaptureMode,
        capture: CaptureMode,
    ) -> Result<(), ConfigError> {
        if self.is_given(flag) && needed != capture {
            let needed = match needed {
                CaptureMode::Transparent => "transparent",
                CaptureMode::Explicit => "explicit",
                CaptureMode::Gateway => "gateway",
            };
            return Err(self.error(flag, format!("works with --capture {needed} alone")));
        }
        Ok(())
    }
}

pub(super) fn run(
    settings: RunSettings,
    given: &Given<'_>,
    aws: &WorkloadVariables,
) -> Result<Config, ConfigError> {
    let control = control(settings.identity, given, aws)?;
    let gateway = gateway(settings.gateway, settings.listeners.capture, given)?;
    let listeners = listeners(settings.listeners, given)?;
    let workload = workload(settings.workload, &listeners, given)?;
    Ok(Config {
        control,
        workload,
        listeners,
        gateway,
        workload_api: workload_api(settings.workload_api, given)?,
        traffic: traffic(settings.traffic, given)?,
        airflow: airflow(settings.airflow, given, aws, &settings.command.command)?,
        limits: limits(&settings.limits),
        telemetry: telemetry(settings.telemetry),
        command: command(&settings.command),
        warnings: Vec::new(),
    })
}

/// What is needed to run a command beside a proxy that runs already; none where this process is the proxy.
pub(super) fn beside_running(
    settings: &RunSettings,
    given: &Given<'_>,
) -> Result<Option<RunningSidecarConfig>, ConfigError> {
    let command = command(&settings.command);
    if command.is_some() && settings.traffic.end_with_workload {
        let message = "is for a sidecar whose workload runs beside it, and this one runs a command, with which it ends";
        return Err(given.error("end-with-workload", message));
    }
    let Some(command) = command else {
        if given.is_given("sidecar") {
            return Err(given.error("sidecar", "needs a command, after `--`"));
        }
        return Ok(None);
    };
    let is_this = match settings.command.sidecar {
        Some(choice) => choice == SidecarChoice::This,
        None => given.is_given("control-plane"),
    };
    if is_this {
        return Ok(None);
    }
    let admin = settings.listeners.admin_listen.first().copied();
    let admin = admin
        .ok_or_else(|| given.missing("admin-listen", "is needed: where the sidecar answers"))?;
    Ok(Some(RunningSidecarConfig {
        command,
        admin: reachable(admin),
        log_filter: settings.telemetry.log_level.clone(),
        log_format: settings.telemetry.log_format,
    }))
}

/// Where a program of the same network namespace reaches a listener.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = match listener {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    match listener.ip().is_unspecified() {
        true => SocketAddr::new(loopback, listener.port()),
        false => listener,
    }
}

fn command(settings: &CommandSettings) -> Option<CommandConfig> {
    let (program, arguments) = settings.command.split_first()?;
    Some(CommandConfig {
        program: program.clone(),
        arguments: arguments.to_vec(),
        ready_timeout: settings.ready_timeout,
    })
}

fn control(
    settings: IdentitySettings,
    given: &Given<'_>,
    aws: &WorkloadVariables,
) -> Result<ControlConfig, ConfigError> {
    if settings.control_plane.is_empty() {
        return Err(given.missing(
            "control-plane",
            "is needed: where the control plane answers, https://HOST:15010",
        ));
    }
    let trust_bundle = settings.trust_bundle.ok_or_else(|| {
        given.missing(
            "trust-bundle",
            "is needed: a PEM file of the trust domain's roots, such as trust-bundle.pem of the control plane's \
             state directory",
        )
    })?;
    check_trust_bundle(&trust_bundle, &settings.trust_domain)
        .map_err(|problem| given.error("trust-bundle", problem))?;
    if let Some(dir) = settings.state_dir.as_deref().filter(|dir| !dir.is_dir()) {
        let problem = format!("{} is no directory; make it first", dir.display());
        return Err(given.error("state-dir", problem));
    }
    let evidence = evidence::source(settings.evidence, given, aws)?;
    Ok(ControlConfig {
        control_planes: settings.control_plane,
        trust_domain: settings.trust_domain,
        trust_bundle,
        state_dir: settings.state_dir,
        evidence,
    })
}

/// A file that is not there yet is waited for; one that is there must be right.
fn check_trust_bundle(path: &Path, trust_domain: &TrustDomain) -> Result<(), String> {
    let pem = match std::fs::read_to_string(path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    TrustBundle::from_pem(trust_domain.clone(), &pem)
        .map(|_| ())
        .map_err(|error| format!("{} is no trust bundle: {error}", path.display()))
}

fn listeners(settings: ListenerSettings, given: &Given<'_>) -> Result<ListenerConfig, ConfigError> {
    let capture = settings.capture;
    given.only_with("inbound-listen", CaptureMode::Transparent, capture)?;
    given.only_with("plaintext-listen", CaptureMode::Explicit, capture)?;
    given.only_with("forward-address", CaptureMode::Explicit, capture)?;
    let is_gateway = capture == CaptureMode::Gateway;
    if is_gateway {
        // It has no workload, and is nobody's peer.
        for flag in ["outbound-listen", "mesh-listen", "listen", "serve"] {
            if given.is_given(flag) {
                return Err(given.error(flag, "does not work with --capture gateway"));
            }
        }
    }
    let addresses = |flag: &str, addresses: Vec<SocketAddr>| -> Vec<ListenAddress> {
        let chosen = given.is_given(flag);
        addresses
            .into_iter()
            .map(|address| ListenAddress {
                address,
                required: chosen || address.is_ipv4(),
            })
            .collect()
    };
    let explicit = capture == CaptureMode::Explicit;
    let without_gateway = |listen: Vec<ListenAddress>| match is_gateway {
        true => Vec::new(),
        false => listen,
    };
    let config = ListenerConfig {
        capture,
        outbound: without_gateway(addresses("outbound-listen", settings.outbound_listen)),
        inbound: if explicit || is_gateway {
            Vec::new()
        } else {
            addresses("inbound-listen", settings.inbound_listen)
        },
        mesh: without_gateway(addresses("mesh-listen", settings.mesh_listen)),
        admin: addresses("admin-listen", settings.admin_listen),
        mapped: settings.listen,
        plaintext: settings.plaintext_listen,
        forward_address: explicit.then_some(settings.forward_address),
    };
    check_loopback(&config, given)?;
    check_overlap(&config, given)?;
    check_mesh_port(&config, given)?;
    Ok(config)
}

fn gateway(
    settings: GatewaySettings,
    capture: CaptureMode,
    given: &Given<'_>,
) -> Result<GatewayConfig, ConfigError> {
    for flag in [
        "gateway-address",
        "gateway-certificates",
        "gateway-trusted-proxies",
        "gateway-proxy-protocol-from",
        "gateway-idle-timeout",
    ] {
        given.only_with(flag, CaptureMode::Gateway, capture)?;
    }
    let chosen = given.is_given("gateway-address");
    let addresses = settings
        .gateway_address
        .into_iter()
        .map(|address| ListenAddress {
            address: SocketAddr::new(address, 0),
            required: chosen || address.is_ipv4(),
        });
    let listen = (capture == CaptureMode::Gateway).then(|| GatewayListenConfig {
        addresses: addresses.collect(),
        certificates: settings.gateway_certificates,
    });
    Ok(GatewayConfig {
        listen,
        trusted_proxies: settings.gateway_trusted_proxies,
        proxy_protocol_from: settings.gateway_proxy_protocol_from,
        idle_timeout: settings.gateway_idle_timeout,
    })
}

/// Whoever reaches these listeners acts with the workload's identity.
fn check_loopback(config: &ListenerConfig, given: &Given<'_>) -> Result<(), ConfigError> {
    let outbound = config.outbound.iter().map(|listen| listen.address);
    let mapped = config.mapped.iter().map(|mapped| mapped.listen);
    let all = outbound
        .map(|address| ("outbound-listen", address))
        .chain(mapped.map(|address| ("listen", address)));
    for (flag, address) in all {
        if !address.ip().is_loopback() {
            return Err(given.error(
                flag,
                format!(
                    "{address} is not a loopback address: whoever connected there would act as the workload; \
                     use 127.0.0.1 or [::1]"
                ),
            ));
        }
    }
    Ok(())
}

fn check_overlap(config: &ListenerConfig, given: &Given<'_>) -> Result<(), ConfigError> {
    let of = |flag: &'static str, listen: &[ListenAddress]| -> Vec<(&'static str, SocketAddr)> {
        listen.iter().map(|listen| (flag, listen.address)).collect()
    };
    let mut all = of("outbound-listen", &config.outbound);
    all.extend(of("inbound-listen", &config.inbound));
    all.extend(of("mesh-listen", &config.mesh));
    all.extend(of("admin-listen", &config.admin));
    all.extend(config.mapped.iter().map(|mapped| ("listen", mapped.listen)));
    all.extend(
        config
            .plaintext
            .iter()
            .map(|plaintext| ("plaintext-listen", plaintext.listen)),
    );
    for (index, (flag, address)) in all.iter().enumerate() {
        let earlier = all
            .iter()
            .take(index)
            .find(|(_, other)| overlap(*address, *other));
        if let Some((other_flag, other)) = earlier {
            return Err(given.error(
                flag,
                format!(
                    "{address} is taken by --{other_flag} {other}; give each listener its own port"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether two sockets cannot both listen. Port 0 stands for any free port.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() != 0
        && one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// The control plane tells peers one mesh port for each workload.
fn check_mesh_port(config: &ListenerConfig, given: &Given<'_>) -> Result<(), ConfigError> {
    if config
        .mesh
        .iter()
        .any(|listen| listen.address.port() != config.mesh_port())
    {
        return Err(given.error(
            "mesh-listen",
            "names several ports; its addresses must share one",
        ));
    }
    Ok(())
}

fn workload(
    settings: WorkloadSettings,
    listeners: &ListenerConfig,
    given: &Given<'_>,
) -> Result<WorkloadConfig, ConfigError> {
    let own = [
        &listeners.outbound,
        &listeners.inbound,
        &listeners.mesh,
        &listeners.admin,
    ];
    for (index, served) in settings.serve.iter().enumerate() {
        // With explicit capture the workload may share a port number with the proxy, on another address.
        if listeners.capture == CaptureMode::Transparent
            && own.iter().any(|list| {
                list.iter()
                    .any(|listen| listen.address.port() == served.target_port)
            })
        {
            let problem = format!("{} is a port of the proxy itself", served.target_port);
            return Err(given.error("serve", problem));
        }
        let same = |other: &&super::ServedPort| {
            other.service == served.service && other.service_port == served.service_port
        };
        if settings.serve.iter().take(index).any(|other| same(&other)) {
            let of = served.service.as_deref().unwrap_or("the workload");
            let problem = format!("port {} of {of} is given twice", served.service_port);
            return Err(given.error("serve", problem));
        }
    }
    let name = settings.workload_name.unwrap_or_else(host_name);
    if name.is_empty() || name.len() > 253 || name.chars().any(char::is_control) {
        return Err(given.error("workload-name", "must be 1 to 253 printable characters"));
    }
    let zone = settings.zone.unwrap_or_default();
    if zone.len() > 253 || !zone.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(given.error("zone", "must be 1 to 253 printable ASCII characters"));
    }
    Ok(WorkloadConfig {
        address: settings.address,
        name,
        zone,
        serve: settings.serve,
    })
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

fn workload_api(
    settings: WorkloadApiSettings,
    given: &Given<'_>,
) -> Result<Option<WorkloadApiConfig>, ConfigError> {
    let Some(socket) = settings.workload_api_socket else {
        if given.is_given("workload-api-mode") {
            return Err(given.error("workload-api-mode", "needs --workload-api-socket"));
        }
        return Ok(None);
    };
    Ok(Some(WorkloadApiConfig {
        socket,
        mode: settings.workload_api_mode.0,
    }))
}

fn traffic(settings: TrafficSettings, given: &Given<'_>) -> Result<TrafficConfig, ConfigError> {
    if let (Some(try_bound), Some(bound)) = (settings.per_try_timeout.0, settings.request_timeout.0)
        && try_bound > bound
    {
        return Err(given.error("per-try-timeout", "is longer than --request-timeout"));
    }
    Ok(TrafficConfig {
        inbound_plaintext: settings.inbound_plaintext,
        outside: settings.outside,
        detect_timeout: settings.detect_timeout,
        connect_timeout: settings.connect_timeout,
        handshake_timeout: settings.handshake_timeout,
        request_timeout: settings.request_timeout.0,
        per_try_timeout: settings.per_try_timeout.0,
        retry_attempts: settings.retry_attempts,
        retry_codes: settings.retry_codes,
        retry_backoff: settings.retry_backoff,
        pool_idle_timeout: settings.pool_idle_timeout,
        mesh_idle_timeout: settings.mesh_idle_timeout,
        drain_timeout: settings.drain_timeout,
        drain_quiet: settings.drain_quiet,
        end_with_workload: settings.end_with_workload,
    })
}

fn limits(settings: &LimitSettings) -> LimitConfig {
    LimitConfig {
        workers: NonZeroUsize::new(settings.workers.into()).unwrap_or(NonZeroUsize::MIN),
        max_connections: usize::try_from(settings.max_connections).unwrap_or(usize::MAX),
        max_requests: usize::try_from(settings.max_requests).unwrap_or(usize::MAX),
        max_mesh_streams: settings.max_mesh_streams,
        max_header_bytes: settings.max_header_bytes,
        header_timeout: settings.header_timeout,
        client_idle_timeout: settings.client_idle_timeout,
        patience: Patience {
            body: settings.body_timeout.0,
            stream: settings.stream_idle_timeout.0,
            reader: settings.reader_timeout,
        },
    }
}

fn telemetry(settings: TelemetrySettings) -> TelemetryConfig {
    TelemetryConfig {
        access_log: settings.access_log,
        trace_endpoint: settings.trace_endpoint,
        trace_ratio: settings.trace_ratio,
        log_filter: settings.log_level,
        log_format: settings.log_format,
    }
}

pub(super) fn redirect(
    settings: RedirectSettings,
    given: &Given<'_>,
) -> Result<RedirectConfig, ConfigError> {
    if settings.uid == 0 {
        return Err(given.error(
            "uid",
            "0 would exempt every connection of root; run the proxy as a user of its own",
        ));
    }
    if settings.outbound_port == settings.inbound_port {
        return Err(given.error("inbound-port", "is --outbound-port too; they must differ"));
    }
    let mut inbound = settings.exclude_inbound_ports;
    // A mesh connection that were redirected would be taken for plaintext, and a probe would not be answered.
    inbound.extend([15008, 15020]);
    let mut outbound = settings.exclude_outbound_ports;
    for ports in [&mut inbound, &mut outbound] {
        ports.sort_unstable();
        ports.dedup();
    }
    Ok(RedirectConfig {
        uid: settings.uid,
        gid: settings.gid,
        outbound_port: settings.outbound_port,
        inbound_port: settings.inbound_port,
        exclude_inbound_ports: inbound,
        exclude_outbound_ports: outbound,
        exclude_outbound_cidrs: settings.exclude_outbound_cidrs,
        remove: settings.remove,
        dry_run: settings.dry_run,
        backend: settings.backend,
    })
}
