//! The command of a sidecar that runs already: found, asked and ended by its admin port.

use std::{io, net::SocketAddr, process::ExitCode, time::Duration};

use http::{Method, Request, StatusCode, header};
use rustix::process::Signal;
use tokio::{net::TcpStream, runtime::Builder, time::Instant};

use super::{
    EXIT_NOT_STARTED, exit_code_of_signal,
    supervise::{Event, Supervisor},
};
use crate::{
    config::{self, RunningSidecarConfig},
    errors::Chain,
    http::{Body, H1Connection},
    telemetry::logs,
};

/// How often a sidecar that is not ready is asked again.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How long one answer of the admin port may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the admin port gave no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("no answer within {ANSWER_TIMEOUT:?}")]
    Timeout,
    #[error("no request")]
    Request(#[source] http::Error),
    #[error("no HTTP")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Runs the command once the sidecar is ready, to its end, and ends the sidecar; gives back the exit code.
pub(crate) fn run(config: &RunningSidecarConfig) -> ExitCode {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        eprintln!("sidewind-proxy: {}", Chain(error));
        ExitCode::from(EXIT_NOT_STARTED)
    };
    let format = match config.log_format {
        config::LogFormat::Json => logs::LogFormat::Json,
        config::LogFormat::Text => logs::LogFormat::Text,
    };
    let _log = match logs::install(&config.log_filter, format) {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let code = runtime.block_on(async {
        let mut supervisor = match Supervisor::new() {
            Ok(supervisor) => supervisor,
            Err(error) => {
                tracing::error!(%error, "signals cannot be listened for");
                return EXIT_NOT_STARTED;
            }
        };
        accompany(config, &mut supervisor).await
    });
    ExitCode::from(code)
}

async fn accompany(config: &RunningSidecarConfig, supervisor: &mut Supervisor) -> u8 {
    if let Err(code) = wait_ready(config, supervisor).await {
        return code;
    }
    if let Err(error) = supervisor.start(&config.command) {
        tracing::error!(error = %Chain(&error), "the command was not started");
        end_sidecar(config.admin).await;
        return error.exit_code();
    }
    let code = loop {
        match supervisor.next().await {
            Event::Ended(code) => break code,
            Event::Signal(signal) => supervisor.pass(signal),
        }
    };
    tracing::info!(code, "the command has ended");
    end_sidecar(config.admin).await;
    code
}

/// Waits until the sidecar is ready; the exit code where it is not to be. One that was never seen is not ended either.
async fn wait_ready(config: &RunningSidecarConfig, supervisor: &mut Supervisor) -> Result<(), u8> {
    let limit = config.command.ready_timeout;
    let deadline = Instant::now() + limit;
    let mut last = String::from("it was not asked yet");
    loop {
        let asked = async {
            let answer = ask(config.admin, Method::GET, "/ready").await;
            let ready = matches!(answer, Ok(StatusCode::OK));
            if !ready {
                last = match answer {
                    Ok(status) => format!("it answers {status}"),
                    Err(error) => Chain(&error).to_string(),
                };
                tokio::time::sleep(ASK_INTERVAL).await;
            }
            ready
        };
        tokio::select! {
            ready = asked => if ready {
                return Ok(());
            },
            () = tokio::time::sleep_until(deadline) => {
                tracing::error!(
                    admin = %config.admin, waited = ?limit, last,
                    "the command was not started: the sidecar is not ready within --ready-timeout"
                );
                return Err(EXIT_NOT_STARTED);
            }
            event = supervisor.next() => {
                if let Event::Signal(signal @ (Signal::TERM | Signal::INT | Signal::QUIT)) = event {
                    return Err(exit_code_of_signal(signal.as_raw()));
                }
            }
        }
    }
}

async fn end_sidecar(admin: SocketAddr) {
    match ask(admin, Method::POST, "/shutdown").await {
        Ok(StatusCode::ACCEPTED) => {}
        Ok(status) => tracing::warn!(%admin, %status, "the sidecar was not told to end"),
        Err(error) => {
            tracing::warn!(%admin, error = %Chain(&error), "the sidecar was not told to end");
        }
    }
}

async fn ask(admin: SocketAddr, method: Method, path: &str) -> Result<StatusCode, AskError> {
    let asked = async {
        let stream = TcpStream::connect(admin).await.map_err(AskError::Connect)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, admin.to_string())
            .header(header::CONNECTION, "close")
            .body(Body::Empty)
            .map_err(AskError::Request)?;
        let connection = H1Connection::new(stream)
            .await
            .map_err(|error| AskError::Http(error.into()))?;
        let response = connection
            .send(request)
            .await
            .map_err(|error| AskError::Http(error.to_string().into()))?;
        Ok(response.status())
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asked)
        .await
        .map_err(|_| AskError::Timeout)?
}
