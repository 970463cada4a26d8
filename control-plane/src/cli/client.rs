//! The commands that ask a running control plane over its admin socket.

use super::arguments::{
    LogLevelFlags, OutputFormat, SocketFlags, TokenCreateFlags, WorkloadsFlags,
};
use super::{Failure, output};
use crate::store::StateDir;
use hyper_util::rt::TokioIo;
use sidewind_api::v1;
use sidewind_api::v1::admin_service_client::AdminServiceClient;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// The workloads of a large mesh in one message.
const MAX_ANSWER_BYTES: usize = 256 << 20;

pub(super) fn create_token(flags: TokenCreateFlags) -> Result<(), Failure> {
    let request = v1::CreateJoinTokenRequest {
        spiffe_id: flags.spiffe_id.to_string(),
        expires_in_seconds: whole_seconds("--expires", flags.expires)?,
        svid_ttl_seconds: match flags.svid_ttl {
            None => 0,
            Some(ttl) => whole_seconds("--svid-ttl", ttl)?,
        },
        services: flags.services.iter().map(ToString::to_string).collect(),
        federates_with: flags
            .federates_with
            .iter()
            .map(ToString::to_string)
            .collect(),
    };
    let answer = ask(&flags.socket, async |mut client| {
        client.create_join_token(request).await
    })?;
    println!("{}", answer.token);
    Ok(())
}

pub(super) fn list_workloads(flags: &WorkloadsFlags) -> Result<(), Failure> {
    let answer = ask(&flags.socket, async |mut client| {
        client.list_workloads(v1::ListWorkloadsRequest {}).await
    })?;
    match flags.output {
        OutputFormat::Table => print!("{}", output::workloads_table(&answer.workloads)),
        OutputFormat::Json => println!("{}", output::workloads_json(&answer.workloads)),
    }
    Ok(())
}

pub(super) fn log_level(flags: &LogLevelFlags) -> Result<(), Failure> {
    let answer = ask(&flags.socket, async |mut client| match &flags.filter {
        None => client.get_log_level(v1::GetLogLevelRequest {}).await,
        Some(filter) => {
            let filter = filter.clone();
            client
                .set_log_level(v1::SetLogLevelRequest { filter })
                .await
        }
    })?;
    println!("{}", answer.filter);
    Ok(())
}

/// The API counts in whole seconds, and 0 would mean the default.
fn whole_seconds(flag: &str, duration: Duration) -> Result<u64, Failure> {
    match duration.as_secs() {
        0 => Err(Failure::Usage(format!("{flag} must be at least 1s"))),
        seconds => Ok(seconds),
    }
}

/// Asks one thing of the control plane that the flags name.
pub(super) fn ask<T>(
    flags: &SocketFlags,
    call: impl AsyncFnOnce(AdminServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
) -> Result<T, Failure> {
    let path = flags
        .socket
        .clone()
        .unwrap_or_else(|| StateDir::admin_socket(&flags.state_dir));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("the runtime cannot start: {error}")))?;
    runtime.block_on(async {
        let client = connect(path).await?;
        match call(client).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(refused(&status)),
        }
    })
}

async fn connect(path: PathBuf) -> Result<AdminServiceClient<Channel>, Failure> {
    // Connected here once, so that what is wrong is said in the system's own words.
    let stream = UnixStream::connect(&path).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "no control plane is running there; start it with `sidewind serve`, or name its --state-dir or --socket"
            }
            io::ErrorKind::PermissionDenied => {
                "the socket is for the control plane's own user; run this as that user or as root"
            }
            _ => "name the --state-dir or --socket of a running control plane",
        };
        Failure::Other(format!("cannot connect to {}: {error}; {hint}", path.display()))
    })?;
    let mut stream = Some(stream);
    let connector = service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    // The name goes into a header that nobody reads.
    let channel = Endpoint::from_static("http://sidewind.invalid")
        .timeout(Duration::from_secs(30))
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            let error = crate::telemetry::chain(&error);
            Failure::Other(format!("{} does not answer: {error}", path.display()))
        })?;
    Ok(AdminServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
}

fn refused(status: &Status) -> Failure {
    match status.code() {
        // What the command line said is wrong.
        tonic::Code::InvalidArgument
        | tonic::Code::PermissionDenied
        | tonic::Code::FailedPrecondition
        | tonic::Code::ResourceExhausted => Failure::Usage(status.message().to_owned()),
        tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::Unavailable
            if status.message().contains("transport") =>
        {
            Failure::Other(
                "the control plane closed the connection; the socket is for its own user and root alone"
                    .to_owned(),
            )
        }
        _ => Failure::Other(status.message().to_owned()),
    }
}
