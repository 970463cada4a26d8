//! `airflow status`: asks sidecars which tasks have connections open.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{instance, shown, table};
use crate::cli::Failure;
use crate::cli::arguments::{AirflowStatusFlags, OutputFormat};

/// How long one sidecar may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read: some ten thousand tasks.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What `GET /tasks` answers.
#[derive(Debug, Deserialize)]
struct Answer {
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Task {
    dag_id: String,
    run_id: String,
    task_id: String,
    map_index: Option<i64>,
    try_number: Option<u64>,
    triggered_by: Option<String>,
    connections: u64,
}

pub(super) fn run(flags: &AirflowStatusFlags) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Other(format!("the runtime cannot start: {error}")))?;
    let mut found = Vec::new();
    for proxy in &flags.proxies {
        let asked = runtime.block_on(async { tokio::time::timeout(TIMEOUT, ask(*proxy)).await });
        let answer = asked
            .unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
            .map_err(|problem| Failure::Other(format!("the proxy at {proxy}: {problem}")))?;
        found.extend(answer.tasks.into_iter().map(|task| (*proxy, task)));
    }
    match flags.output {
        OutputFormat::Table => print!("{}", for_people(&found)),
        OutputFormat::Json => println!("{:#}", for_programs(&found)),
    }
    Ok(())
}

async fn ask(proxy: SocketAddr) -> Result<Answer, String> {
    let stream = TcpStream::connect(proxy).await.map_err(|error| {
        format!("{error}; --proxy names the admin port of a sidecar, 127.0.0.1:15020 beside it")
    })?;
    let said = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get("/tasks")
        .header("host", proxy.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(said)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    connection.abort();
    match status.as_u16() {
        200 => serde_json::from_slice(&body.to_bytes())
            .map_err(|error| format!("its answer cannot be read: {error}")),
        403 => Err("it answers programs beside it alone: run this there, or through `kubectl port-forward`".to_owned()),
        404 => Err("it knows nothing of tasks: it is older than this command".to_owned()),
        status => Err(format!("it answered with {status}")),
    }
}

fn for_people(found: &[(SocketAddr, Task)]) -> String {
    if found.is_empty() {
        return "no task has a connection open\n".to_owned();
    }
    let rows = found.iter().map(|(proxy, task)| {
        [
            instance(&task.dag_id, &task.task_id, task.map_index, task.try_number),
            shown(&task.run_id),
            shown(task.triggered_by.as_deref().unwrap_or("-")),
            task.connections.to_string(),
            proxy.to_string(),
        ]
    });
    let header = ["TASK", "RUN", "TRIGGERED BY", "CONNECTIONS", "PROXY"];
    table(header, rows.collect())
}

fn for_programs(found: &[(SocketAddr, Task)]) -> Value {
    let each = found.iter().map(|(proxy, task)| {
        let mut task = json!(task);
        task["proxy"] = proxy.to_string().into();
        task
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_one_row_and_what_it_is_called_cannot_move_the_cursor() {
        let answer = r#"{"tasks":[{"dag_id":"pay\u001b[2J","run_id":"r","task_id":"load","map_index":3,"try_number":2,
            "triggered_by":"ada","connections":4},
            {"dag_id":"d","run_id":"r","task_id":"t","map_index":null,"try_number":null,"triggered_by":null,"connections":1}]}"#;
        let answer: Answer = serde_json::from_str(answer).unwrap();
        let proxy = SocketAddr::from(([127, 0, 0, 1], 15020));
        let found: Vec<_> = answer.tasks.into_iter().map(|it| (proxy, it)).collect();
        let text = for_people(&found);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].starts_with(r"pay\u{1b}[2J.load[3] try 2  r"),
            "{text}"
        );
        assert!(lines[1].contains("  ada "), "{text}");
        assert!(lines[2].starts_with("d.t "), "{text}");
        assert_eq!(for_programs(&found)[0]["proxy"], "127.0.0.1:15020");
        assert_eq!(for_people(&[]), "no task has a connection open\n");
    }
}
