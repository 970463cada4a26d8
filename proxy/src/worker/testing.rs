//! A worker for tests of what connections do with it, with no control plane behind.

use std::ffi::OsString;

use super::*;
use crate::{
    config::{self, Invocation},
    control, drain,
    telemetry::{
        SharedTelemetry,
        access_log::{AccessLog, Destination},
        metrics::Metrics,
    },
};

/// A worker of defaults that nobody gives a certificate, a policy or an answer.
pub(crate) fn worker() -> Rc<Worker> {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "token").unwrap();
    let arguments = [
        "sidewind-proxy".into(),
        "--control-plane=https://127.0.0.1:1".into(),
        format!(
            "--trust-bundle={}",
            directory.path().join("roots.pem").display()
        ),
        format!("--join-token-file={}", token.display()),
    ];
    let parsed = config::parse(arguments.map(OsString::from), std::iter::empty()).unwrap();
    let Invocation::Run(config) = parsed else {
        panic!("not a run: {parsed:?}");
    };
    let config = Arc::new(*config);
    // The work is never done.
    let (control, _) = control::new(&config).unwrap();
    let metrics = Arc::new(Metrics::new());
    let shared = SharedTelemetry {
        access_log: AccessLog::start(Destination::Off, false, &metrics).unwrap(),
        metrics,
        spans: None,
        trace_ratio: 0.0,
    };
    let (_, drain) = drain::drain();
    Rc::new(Worker::new(
        config,
        &control,
        Telemetry::new(&shared, 0),
        drain,
        crate::mesh::Proofs::default(),
        Shared::default(),
    ))
}
