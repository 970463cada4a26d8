use std::ffi::OsString;

use crate::config::{
    AwsCredentialsSource, ConfigError, ContainerAuthorization, EvidenceSource, Invocation,
    JoinTokenSource, parse,
};

fn evidence(flags: &[&str], variables: &[(&str, &str)]) -> Result<EvidenceSource, ConfigError> {
    let needed = [
        "sidewind-proxy",
        "--control-plane=https://sidewind:15010",
        "--trust-bundle=/nowhere/roots.pem",
    ];
    let arguments = needed.iter().chain(flags).map(OsString::from);
    let variables = variables.iter();
    let variables = variables.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    match parse(arguments, variables)? {
        Invocation::Run(config) => Ok(config.control.evidence),
        other => panic!("not a run: {other:?}"),
    }
}

fn error(flags: &[&str], variables: &[(&str, &str)]) -> String {
    evidence(flags, variables).unwrap_err().to_string()
}

#[test]
fn the_evidence_that_is_configured_is_the_one_that_is_brought() {
    let kubernetes = |token_file: &str, cluster: &str| EvidenceSource::Kubernetes {
        token_file: token_file.into(),
        cluster: cluster.to_owned(),
    };
    let default = "/var/run/secrets/tokens/sidewind";
    for (flags, variables, expected) in [
        (
            &["--attestor=kubernetes"][..],
            &[][..],
            kubernetes(default, ""),
        ),
        (&["--cluster=prod"], &[], kubernetes(default, "prod")),
        (&["--kubernetes-token-file=/t"], &[], kubernetes("/t", "")),
        (
            &[],
            &[
                ("SIDEWIND_ATTESTOR", "kubernetes"),
                ("SIDEWIND_CLUSTER", "c"),
            ],
            kubernetes(default, "c"),
        ),
        (
            &["--oidc-token-file=/t"],
            &[],
            EvidenceSource::Oidc {
                token_file: "/t".into(),
            },
        ),
        (
            &["--x509-cert-file=/c", "--x509-key-file=/k"],
            &[],
            EvidenceSource::X509 {
                certificate_file: "/c".into(),
                key_file: "/k".into(),
            },
        ),
    ] {
        let found = evidence(flags, variables).unwrap();
        assert_eq!(found, expected);
    }
    let token = evidence(&[], &[("SIDEWIND_JOIN_TOKEN", "t")]).unwrap();
    assert!(matches!(
        token,
        EvidenceSource::JoinToken(JoinTokenSource::Variable(_))
    ));
}

#[test]
fn no_evidence_and_two_kinds_of_it_are_errors() {
    for (flags, variables, says) in [
        (
            &[][..],
            &[][..],
            "--attestor (or SIDEWIND_ATTESTOR): is needed",
        ),
        (&["--attestor=magic"], &[], "is none of"),
        (
            &["--attestor=join-token"],
            &[],
            "--join-token-file (or SIDEWIND_JOIN_TOKEN_FILE): is needed",
        ),
        (&["--attestor=oidc"], &[], "--oidc-token-file (or"),
        (&["--x509-cert-file=/c"], &[], "--x509-key-file (or"),
        (&["--x509-key-file=/k"], &[], "--x509-cert-file (or"),
        (
            &["--oidc-token-file=/t", "--cluster=c"],
            &[],
            "--oidc-token-file: is for attestor oidc, and kubernetes is",
        ),
        (
            &["--attestor=kubernetes", "--oidc-token-file=/t"],
            &[],
            "is for attestor oidc, and kubernetes is",
        ),
        (
            &["--attestor=oidc", "--oidc-token-file=/t"],
            &[("SIDEWIND_JOIN_TOKEN", "t")],
            "SIDEWIND_JOIN_TOKEN: is for attestor join-token",
        ),
        (
            &["--aws-region=eu-west-1"],
            &[("SIDEWIND_OIDC_TOKEN_FILE", "/t")],
            "SIDEWIND_OIDC_TOKEN_FILE: is for attestor oidc",
        ),
    ] {
        let error = error(flags, variables);
        assert!(error.contains(says), "{flags:?}: {error}");
    }
}

const KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "s3cret"),
    ("AWS_SESSION_TOKEN", "t0ken"),
];

fn aws(flags: &[&str], variables: &[(&str, &str)]) -> (String, AwsCredentialsSource) {
    match evidence(flags, variables).unwrap() {
        EvidenceSource::AwsIam {
            region,
            credentials,
        } => (region, credentials),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_region_is_the_flags_or_that_of_the_sdks() {
    let with = |more: &[(&'static str, &'static str)]| [&KEYS[..], more].concat();
    let region = |flags: &[&str], more: &[(&'static str, &'static str)]| aws(flags, &with(more)).0;
    assert_eq!(
        region(&["--aws-region=eu-west-1"], &[("AWS_REGION", "us-east-1")]),
        "eu-west-1"
    );
    let chosen = ["--attestor=aws-iam"];
    let both = [
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "us-east-2"),
    ];
    assert_eq!(region(&chosen, &both), "us-east-1");
    assert_eq!(region(&chosen, &both[1..]), "us-east-2");
    assert!(error(&chosen, &KEYS).contains("--aws-region (or SIDEWIND_AWS_REGION): is needed"));
    assert!(error(&["--aws-region=evil#eu-west-1"], &KEYS).contains("is not the name of a region"));
    // The variables of the workload's own SDK do not decide who it is.
    assert!(error(&[], &with(&both)).contains("--attestor"));
}

#[test]
fn credentials_are_found_in_the_order_of_the_sdks_and_never_shown() {
    let flags = ["--aws-region=eu-west-1"];
    let relative = (
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "/v2/credentials/0f5c",
    );
    let full = (
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "http://169.254.170.23/v1/credentials",
    );
    let token = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "authori7ation");
    let file = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token");

    let (_, found) = aws(&flags, &[&KEYS[..], &[relative, full]].concat());
    assert!(matches!(&found, AwsCredentialsSource::Variables(_)));
    let debug = format!("{found:?}");
    assert!(
        !debug.contains("s3cret") && !debug.contains("t0ken") && !debug.contains("AKID"),
        "{debug}"
    );

    for (variables, address, path, authorization) in [
        (
            vec![relative, full],
            "169.254.170.2:80",
            "/v2/credentials/0f5c",
            "nothing",
        ),
        (
            vec![full, token],
            "169.254.170.23:80",
            "/v1/credentials",
            "token",
        ),
        (
            vec![full, token, file],
            "169.254.170.23:80",
            "/v1/credentials",
            "file",
        ),
        (
            vec![(full.0, "http://[fd00:ec2::23]/v1/credentials")],
            "[fd00:ec2::23]:80",
            "/v1/credentials",
            "nothing",
        ),
        (
            vec![(full.0, "http://127.0.0.1:8080/?a=b")],
            "127.0.0.1:8080",
            "/?a=b",
            "nothing",
        ),
        (
            vec![(full.0, "http://[::1]:81/x")],
            "[::1]:81",
            "/x",
            "nothing",
        ),
    ] {
        let (_, found) = aws(&flags, &variables);
        let AwsCredentialsSource::Container(found) = found else {
            panic!("{found:?}");
        };
        assert_eq!(
            (found.address.to_string().as_str(), found.path.expose()),
            (address, path)
        );
        let kind = match &found.authorization {
            ContainerAuthorization::Nothing => "nothing",
            ContainerAuthorization::Token(_) => "token",
            ContainerAuthorization::File(_) => "file",
        };
        assert_eq!(kind, authorization);
        let debug = format!("{found:?}");
        assert!(
            !debug.contains("0f5c") && !debug.contains("authori7ation"),
            "{debug}"
        );
    }
}

#[test]
fn credentials_are_not_fetched_from_elsewhere() {
    let flags = ["--aws-region=eu-west-1"];
    assert!(error(&flags, &[]).contains("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"));
    assert!(error(&flags, &KEYS[..1]).contains("both"));
    let full = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    for uri in [
        "http://10.0.0.1/x",
        "http://169.254.169.254/latest/meta-data",
        "http://169.254.170.2.evil/x",
        "http://169.254.170.2@evil/x",
        "http://localhost/x",
        "https://127.0.0.1/x",
        "127.0.0.1",
        "/x",
    ] {
        let error = error(&flags, &[(full, uri)]);
        assert!(
            error.contains(full) && error.contains("loopback"),
            "{uri}: {error}"
        );
    }
    let relative = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
    for uri in ["v2/credentials", "http://evil/x", "@evil/x"] {
        let error = error(&flags, &[(relative, uri)]);
        assert!(error.contains("begins with /"), "{uri}: {error}");
    }
}
