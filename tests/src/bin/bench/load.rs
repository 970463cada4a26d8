//! Requests: one to see that a pair works, many by wrk, and connections that are held idle.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::Instant;

use crate::Result;
use crate::lab::{Lab, SERVER_ADDRESS, SERVICE, check, expected_answer};

/// A pair that serves nothing after this long has failed.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two looks at whether a pair serves yet.
const POLL: Duration = Duration::from_millis(50);

/// What wrk measured in one run.
#[derive(Debug, Deserialize)]
pub(crate) struct WrkResult {
    pub(crate) requests: u64,
    /// Microseconds.
    pub(crate) duration: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
    pub(crate) errors: u64,
}

/// A script that has no hook for requests or responses costs wrk nothing while it runs.
const WRK_REPORT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('bench {"requests":%d,"duration":%.0f,"p50":%.1f,"p99":%.1f,"errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// Runs wrk with so many keep-alive connections for so long (whole seconds, at least one).
pub(crate) async fn wrk(lab: &Lab, connections: u32, duration: Duration) -> Result<WrkResult> {
    let script = lab.write("report.lua", WRK_REPORT)?;
    let output = lab
        .client
        .command(
            "wrk",
            [
                "--threads=1".to_owned(),
                format!("--connections={connections}"),
                format!("--duration={}s", duration.as_secs().max(1)),
                format!("--script={}", script.display()),
                format!("http://{SERVICE}/"),
            ],
        )
        .output()
        .await?;
    check("wrk", output.status)?;
    parse_wrk(&String::from_utf8_lossy(&output.stdout))
}

fn parse_wrk(output: &str) -> Result<WrkResult> {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix("bench "))
        .ok_or_else(|| format!("wrk printed no result: {output}"))?;
    let result: WrkResult = serde_json::from_str(line)?;
    if result.requests == 0 {
        return Err(format!("not one request was answered: {output}").into());
    }
    Ok(result)
}

/// Waits for the first right answer from the service.
pub(crate) async fn wait_until_served(lab: &Lab) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let answer = fetch(lab, &format!("http://{SERVICE}/")).await?;
        if answer == expected_answer() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "no answer after {} s; the last was '{answer}' (status, bytes)",
                START_TIMEOUT.as_secs()
            )
            .into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A pair whose mesh port serves a client without TLS does other work than the rest.
pub(crate) async fn expect_mesh_port_refuses_plaintext(lab: &Lab) -> Result<()> {
    let answer = fetch(lab, &format!("http://{SERVER_ADDRESS}:15008/")).await?;
    if answer.starts_with("200") {
        return Err("the port between the proxies serves plaintext".into());
    }
    Ok(())
}

/// Status and body length as curl saw them, from the client's namespace.
async fn fetch(lab: &Lab, url: &str) -> Result<String> {
    let output = lab
        .client
        .command(
            "curl",
            [
                "--silent",
                "--max-time",
                "5",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code} %{size_download}",
                url,
            ],
        )
        .output()
        .await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Idle connections, held by a process in the client's namespace.
#[derive(Debug)]
pub(crate) struct Held {
    child: Child,
}

impl Held {
    /// Returns once each connection has had one answer.
    pub(crate) async fn start(lab: &Lab, connections: u32) -> Result<Self> {
        let mut child = lab
            .client
            .command(
                std::env::current_exe()?,
                ["hold", SERVICE, &connections.to_string()],
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let first = BufReader::new(stdout).lines().next_line().await?;
        if first.as_deref() != Some("held") {
            return Err("the idle connections could not be opened".into());
        }
        // Proxies give back buffers a moment after a connection falls idle; the figure is the settled one.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Self { child })
    }

    pub(crate) async fn release(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        check("hold", self.child.wait().await?)
    }
}

/// The process behind [`Held`].
pub(crate) async fn hold(address: SocketAddr, connections: u32) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())
            .await?;
        read_answer(&mut stream).await?;
        held.push(stream);
    }
    println!("held");
    // Blocks, which is well here: the connections are to stay as they are.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Reads up to the end of the body, by its content-length.
async fn read_answer(stream: &mut TcpStream) -> Result<()> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Err("a connection was closed before its answer".into());
        }
        answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if is_whole(&answer)? {
            return Ok(());
        }
    }
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(false);
    };
    if !head.starts_with("http/1.1 200 ") {
        return Err(format!("an idle connection's request was answered with: {head}").into());
    }
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .ok_or("an answer without content-length")?
        .trim()
        .parse()?;
    Ok(body.len() >= length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_script_is_found_among_the_rest() {
        let output = "Running 1s test\nbench {\"requests\":10,\"duration\":1000000,\"p50\":90.0,\"p99\":200.5,\"errors\":0}\n";
        let result = parse_wrk(output).unwrap();
        assert_eq!((result.requests, result.p99), (10, 200.5));
    }

    #[test]
    fn a_run_without_a_request_is_an_error() {
        let output = "bench {\"requests\":0,\"duration\":1000000,\"p50\":0,\"p99\":0,\"errors\":3}";
        assert!(parse_wrk(output).is_err());
        assert!(parse_wrk("unable to connect").is_err());
    }

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n").unwrap());
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab").unwrap());
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap());
        assert!(is_whole(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}
