//! Settings as people give them: command lines and variables in, configuration or one line of error out.

use std::io::Write as _;

use super::*;

/// A directory with a trust bundle and a join token.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), "  secret-token\n").unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// What every run needs.
    fn needed(&self) -> Vec<String> {
        vec![
            "--control-plane=https://sidewind:15010".into(),
            format!("--trust-bundle={}", self.path("roots.pem")),
            format!("--join-token-file={}", self.path("token")),
        ]
    }
}

fn parse_strings(
    arguments: &[String],
    variables: &[(&str, &str)],
) -> Result<Invocation, ConfigError> {
    let program = std::iter::once(OsString::from("sidewind-proxy"));
    parse(
        program.chain(arguments.iter().map(OsString::from)),
        variables
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value))),
    )
}

pub(super) fn run_with(extra: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let files = Files::new();
    let flag = |argument: &str| argument.split('=').next().map(ToOwned::to_owned);
    let mut arguments = files.needed();
    arguments.retain(|needed| extra.iter().all(|extra| flag(extra) != flag(needed)));
    arguments.extend(extra.iter().map(ToString::to_string));
    match parse_strings(&arguments, variables)? {
        Invocation::Run(config) => Ok(*config),
        other => panic!("not a run: {other:?}"),
    }
}

fn redirect_with(extra: &[&str]) -> Result<RedirectConfig, ConfigError> {
    let mut arguments = vec!["redirect".to_owned()];
    arguments.extend(extra.iter().map(ToString::to_string));
    match parse_strings(&arguments, &[])? {
        Invocation::Redirect(config) => Ok(config),
        other => panic!("not a redirect: {other:?}"),
    }
}

#[test]
fn the_defaults_are_those_of_the_design() {
    let config = run_with(&[], &[]).unwrap();
    assert_eq!(config.control.trust_domain.as_str(), "sidewind.local");
    assert_eq!(
        config.control.control_planes[0].to_string(),
        "https://sidewind:15010"
    );
    assert_eq!(config.listeners.capture, CaptureMode::Transparent);
    let all = [
        &config.listeners.outbound,
        &config.listeners.inbound,
        &config.listeners.mesh,
        &config.listeners.admin,
    ]
    .map(|list| {
        list.iter()
            .map(|listen| {
                format!(
                    "{}{}",
                    listen.address,
                    if listen.required { "" } else { "?" }
                )
            })
            .collect::<Vec<_>>()
            .join(" ")
    });
    assert_eq!(
        all,
        [
            "127.0.0.1:15001 [::1]:15001?",
            "0.0.0.0:15006 [::]:15006?",
            "0.0.0.0:15008 [::]:15008?",
            "0.0.0.0:15020 [::]:15020?",
        ]
    );
    assert_eq!(config.listeners.mesh_port(), 15008);
    assert_eq!(config.listeners.forward_address, None);
    assert_eq!(config.traffic.detect_timeout, Duration::from_secs(1));
    assert_eq!(config.traffic.request_timeout, None);
    assert_eq!(config.traffic.retry_codes, [502, 503, 504]);
    assert_eq!(config.limits.max_header_bytes, 64 << 10);
    assert_eq!(config.limits.workers.get(), 1);
    assert_eq!(config.telemetry.access_log, AccessLog::Stdout);
    assert!(!config.workload.name.is_empty());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn variables_set_what_flags_do_not() {
    let config = run_with(
        &["--workers=2"],
        &[
            ("SIDEWIND_WORKERS", "4"),
            ("SIDEWIND_DRAIN_TIMEOUT", "1h30m"),
            ("SIDEWIND_SERVE", "8080/http,orders.data:80=8081/grpc"),
            ("SIDEWIND_LOG_FORMAT", ""),
            ("SIDEWIND_WORKRES", "9"),
            ("SIDEWIND_PORT_15010_TCP_ADDR", "10.96.0.1"),
            ("SIDEWIND_CONTROL_PLANE_SERVICE_HOST", "10.96.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(config.limits.workers.get(), 2);
    assert_eq!(config.traffic.drain_timeout, Duration::from_secs(5400));
    assert_eq!(config.workload.serve.len(), 2);
    assert_eq!(config.telemetry.log_format, LogFormat::Json);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("SIDEWIND_WORKRES"));
}

#[test]
fn explicit_capture_has_its_own_listeners() {
    let config = run_with(
        &[
            "--capture=explicit",
            "--outbound-listen=127.0.0.2:15001",
            "--listen=127.0.0.1:5432=Postgres.Data:5432",
            "--listen=[::1]:6379=[fd00::7]:6379",
            "--plaintext-listen=0.0.0.0:8080=18080",
            "--mesh-listen=127.0.0.2:25008",
        ],
        &[],
    )
    .unwrap();
    let listeners = config.listeners;
    assert!(listeners.inbound.is_empty());
    assert_eq!(listeners.mesh_port(), 25008);
    assert_eq!(listeners.forward_address.unwrap().to_string(), "127.0.0.1");
    let mapped: Vec<_> = listeners
        .mapped
        .iter()
        .map(|mapped| mapped.destination.to_string())
        .collect();
    assert_eq!(mapped, ["postgres.data:5432", "[fd00::7]:6379"]);
    assert_eq!(listeners.plaintext[0].target_port, 18080);
}

#[test]
fn every_bad_setting_is_one_line_that_names_it() {
    for (flag, expected) in [
        ("--workers=many", "--workers: invalid digit"),
        ("--workers=0", "--workers: 0 is not in 1..=256"),
        (
            "--drain-timeout=30",
            "--drain-timeout: \"30\" is not a duration; write a number and a unit",
        ),
        (
            "--detect-timeout=2h",
            "--detect-timeout: \"2h\" is out of range; it must be from 1ms to 1m",
        ),
        (
            "--request-timeout=0s",
            "--request-timeout: 0 is no bound that works",
        ),
        (
            "--max-header-bytes=1KiB",
            "--max-header-bytes: \"1KiB\" is out of range",
        ),
        (
            "--max-header-bytes=64kb",
            "--max-header-bytes: \"64kb\" is not a size",
        ),
        (
            "--retry-codes=200",
            "--retry-codes: \"200\" is not an HTTP error status",
        ),
        ("--trace-ratio=2", "--trace-ratio: \"2\" is not a fraction"),
        (
            "--trust-domain=UPPER",
            "--trust-domain: \"UPPER\" is not a trust domain",
        ),
        (
            "--control-plane=http://h:1",
            "--control-plane: \"http://h:1\" is not a control plane's address",
        ),
        (
            "--control-plane=https://h:0",
            "--control-plane: \"https://h:0\" is not",
        ),
        (
            "--control-plane=https://h/x",
            "--control-plane: \"https://h/x\" is not",
        ),
        (
            "--trust-bundle=/",
            "--trust-bundle: / cannot be read: Is a directory",
        ),
        ("--join-token=abc", "--join-token"),
        ("--address=0.0.0.0", "--address: \"0.0.0.0\" is no address"),
        ("--address=host", "--address: \"host\" is not an IP address"),
        ("--workload-name=", "--workload-name: must be 1 to 253"),
        ("--serve=80/ftp", "--serve: \"ftp\" is not a protocol"),
        (
            "--serve=orders=80",
            "--serve: \"orders\" is not a service; write name.namespace",
        ),
        (
            "--serve=Orders.data=80",
            "--serve: \"Orders.data\" is not a service",
        ),
        ("--serve=0", "--serve: \"0\" is not a port"),
        (
            "--serve=15008",
            "--serve: 15008 is a port of the proxy itself",
        ),
        (
            "--serve=80,80/http",
            "--serve: port 80 of the workload is given twice",
        ),
        (
            "--capture=magic",
            "--capture: \"magic\" is none of transparent or explicit",
        ),
        (
            "--outbound-listen=0.0.0.0:15001",
            "--outbound-listen: 0.0.0.0:15001 is not a loopback address",
        ),
        (
            "--outbound-listen=15001",
            "--outbound-listen: \"15001\" is not an address to listen on",
        ),
        (
            "--listen=10.0.0.1:1=a:1",
            "--listen: 10.0.0.1:1 is not a loopback address",
        ),
        ("--listen=127.0.0.1:1", "--listen: \"127.0.0.1:1\" has no ="),
        (
            "--listen=127.0.0.1:1=a b:2",
            "--listen: \"a b:2\" is not a destination",
        ),
        (
            "--plaintext-listen=0.0.0.0:80=81",
            "--plaintext-listen: works with --capture explicit alone",
        ),
        (
            "--forward-address=127.0.0.1",
            "--forward-address: works with --capture explicit alone",
        ),
        (
            "--mesh-listen=0.0.0.0:15006",
            "--mesh-listen: 0.0.0.0:15006 is taken by --inbound-listen 0.0.0.0:15006",
        ),
        (
            "--mesh-listen=10.0.0.1:1,10.0.0.2:2",
            "--mesh-listen: names several ports",
        ),
        (
            "--trace-endpoint=https://otel:4317",
            "--trace-endpoint: \"https://otel:4317\" is not a collector (https",
        ),
        (
            "--log-level=a=b=c",
            "--log-level: \"a=b=c\" is not a log filter",
        ),
        (
            "--wrokers=2",
            "command line: \"--wrokers\" is not known; did you mean --workers?",
        ),
        ("extra", "command line: \"extra\" is not known"),
    ] {
        let error = run_with(&[flag], &[]).expect_err(flag);
        let text = error.to_string();
        assert!(text.starts_with(expected), "{flag}: {text}");
        assert!(!text.contains('\n'), "{flag}: {text}");
    }
}

#[test]
fn an_error_names_the_variable_when_the_value_came_from_one() {
    for (variable, value, expected) in [
        (
            "SIDEWIND_WORKERS",
            "many",
            "SIDEWIND_WORKERS: invalid digit",
        ),
        (
            "SIDEWIND_OUTSIDE",
            "maybe",
            "SIDEWIND_OUTSIDE: \"maybe\" is none of permit or refuse",
        ),
        (
            "SIDEWIND_SERVE",
            "15020",
            "SIDEWIND_SERVE: 15020 is a port of the proxy itself",
        ),
    ] {
        let text = run_with(&[], &[(variable, value)]).unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn what_is_needed_is_asked_for_by_flag_and_variable() {
    let files = Files::new();
    for (missing, asked_for) in ["control-plane", "trust-bundle", "attestor"]
        .iter()
        .enumerate()
    {
        let mut arguments = files.needed();
        arguments.remove(missing);
        let variable = asked_for.to_uppercase().replace('-', "_");
        let text = parse_strings(&arguments, &[]).unwrap_err().to_string();
        let expected = format!("--{asked_for} (or SIDEWIND_{variable}): is needed");
        assert!(text.starts_with(&expected), "{text}");
    }
}

#[test]
fn a_join_token_is_never_shown() {
    let files = Files::new();
    let mut arguments = files.needed();
    arguments.pop();
    let variables = [("SIDEWIND_JOIN_TOKEN", "secret-token")];
    let Invocation::Run(config) = parse_strings(&arguments, &variables).unwrap() else {
        panic!("not a run");
    };
    let EvidenceSource::JoinToken(source) = &config.control.evidence else {
        panic!("{:?}", config.control.evidence);
    };
    assert_eq!(source.read().unwrap().expose(), "secret-token");
    assert!(!format!("{config:?}").contains("secret-token"));

    for (arguments, variables) in [
        (
            [arguments.clone(), vec!["--join-token=secret-token".into()]].concat(),
            &[][..],
        ),
        (
            arguments.clone(),
            &[("SIDEWIND_JOIN_TOKEN", "secret-token two")][..],
        ),
        (files.needed(), &variables[..]),
    ] {
        let text = parse_strings(&arguments, variables)
            .unwrap_err()
            .to_string();
        assert!(!text.contains("secret-token"), "{text}");
    }
}

#[test]
fn a_bad_token_file_is_named() {
    let files = Files::new();
    let path = files.path("token");
    let attempt = || parse_strings(&files.needed(), &[]).unwrap_err().to_string();
    std::fs::write(&path, "\n").unwrap();
    let expected = format!("--join-token-file: the file {path} holds no token");
    assert!(attempt().starts_with(&expected), "{}", attempt());
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(&[b'a'; 5000]))
        .unwrap();
    assert!(
        attempt().contains("is longer than 4096 bytes"),
        "{}",
        attempt()
    );
    std::fs::remove_file(&path).unwrap();
    assert!(
        attempt().contains("cannot be read: No such file"),
        "{}",
        attempt()
    );
}

#[test]
fn a_trust_bundle_that_is_there_must_be_right() {
    let files = Files::new();
    std::fs::write(files.path("roots.pem"), "no certificate").unwrap();
    let text = parse_strings(&files.needed(), &[]).unwrap_err().to_string();
    assert!(
        text.starts_with("--trust-bundle: /")
            && text.contains("is no trust bundle: no certificate"),
        "{text}"
    );
}

#[test]
fn a_token_file_is_read_again_each_time() {
    let files = Files::new();
    let source = JoinTokenSource::File(files.path("token").into());
    assert_eq!(source.read().unwrap().expose(), "secret-token");
    std::fs::write(files.path("token"), "another").unwrap();
    assert_eq!(source.read().unwrap().expose(), "another");
}

#[test]
fn help_version_and_reference_are_printed() {
    for (arguments, expected) in [
        (vec!["--help"], "redirect"),
        (vec!["--version"], env!("CARGO_PKG_VERSION")),
        (vec!["run", "--help"], "[env: SIDEWIND_CONTROL_PLANE]"),
        (vec!["redirect", "--help"], "--exclude-outbound-cidrs"),
        (
            vec!["config-reference"],
            "| `--workers N` | `SIDEWIND_WORKERS` | `1` |",
        ),
    ] {
        let arguments: Vec<String> = arguments.into_iter().map(ToOwned::to_owned).collect();
        match parse_strings(&arguments, &[]).unwrap() {
            Invocation::Print(text) => assert!(text.contains(expected), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn no_command_at_all_means_run() {
    let text = parse_strings(&[], &[]).unwrap_err().to_string();
    assert!(text.starts_with("--control-plane"), "{text}");
    let text = parse(Vec::new(), Vec::new()).unwrap_err().to_string();
    assert!(text.starts_with("--control-plane"), "{text}");
}

#[test]
fn redirection_always_leaves_the_proxys_own_ports_alone() {
    let config = redirect_with(&["--exclude-inbound-ports=22", "--exempt-uid=1400"]).unwrap();
    assert_eq!(config.exclude_inbound_ports, [22, 15008, 15020]);
    assert_eq!(config.uid, 1400);
    assert_eq!(config.gid, None);
    assert_eq!(config.backend, RedirectBackend::Auto);
}

#[test]
fn bad_redirections_are_refused() {
    for (flag, expected) in [
        ("--uid=0", "--uid: 0 would exempt"),
        (
            "--inbound-port=15001",
            "--inbound-port: is --outbound-port too",
        ),
        (
            "--exclude-outbound-cidrs=10.0.0.0/33",
            "--exclude-outbound-cidrs: \"10.0.0.0/33\" is not a block",
        ),
        ("--backend=ebpf", "--backend: \"ebpf\" is none of"),
    ] {
        let text = redirect_with(&[flag]).unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text}");
    }
}
