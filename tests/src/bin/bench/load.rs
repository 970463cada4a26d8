//! Load by other people's programs: wrk, h2load, redis-benchmark, and curl for one request.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::Result;
use crate::lab::{Lab, SERVER_ADDRESS, check, expected_answer};
use crate::service::Service;

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
    let result = run_wrk(lab, connections, duration).await?;
    match result.requests {
        0 => Err("not one request was answered".into()),
        _ => Ok(result),
    }
}

/// Requests per second, which may be none at all.
pub(crate) async fn wrk_or_nothing(lab: &Lab, connections: u32, duration: Duration) -> Result<f64> {
    let result = run_wrk(lab, connections, duration).await?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(result.requests as f64 / (result.duration / 1e6))
}

async fn run_wrk(lab: &Lab, connections: u32, duration: Duration) -> Result<WrkResult> {
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
                format!("http://{}/", Service::Http.address()),
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
    Ok(serde_json::from_str(line)?)
}

/// Waits for the first right answer from the service.
pub(crate) async fn wait_until_served(lab: &Lab) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let answer = fetch(lab, &format!("http://{}/", Service::Http.address())).await?;
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

/// What h2load or redis-benchmark measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Counted {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) per_second: f64,
}

/// Runs h2load: `clients` connections of `streams` streams each, `requests` in all.
pub(crate) async fn h2load(
    lab: &Lab,
    service: Service,
    clients: u32,
    streams: u32,
    requests: u64,
) -> Result<Counted> {
    let mut args = vec![
        format!("--clients={clients}"),
        format!("--max-concurrent-streams={streams}"),
        format!("--requests={requests}"),
    ];
    if service == Service::Grpc {
        // A message of 100 bytes, after the five that gRPC puts before it.
        let mut message = vec![0, 0, 0, 0, 100];
        message.extend_from_slice(&[b'x'; 100]);
        let path = lab.path("message.grpc");
        std::fs::write(&path, message)?;
        args.extend([
            format!("--data={}", path.display()),
            "--header=content-type: application/grpc".to_owned(),
            "--header=te: trailers".to_owned(),
        ]);
    }
    let path = match service {
        Service::Grpc => "bench.Echo/Say",
        _ => "",
    };
    args.push(format!("http://{}/{path}", service.address()));
    let output = lab.client.command("h2load", args).output().await?;
    check("h2load", output.status)?;
    parse_h2load(&String::from_utf8_lossy(&output.stdout))
}

fn parse_h2load(output: &str) -> Result<Counted> {
    let unclear = || format!("h2load printed no result: {output}");
    let line = |start| {
        output
            .lines()
            .find_map(|line: &str| line.strip_prefix(start))
    };
    let first =
        |text: &'static str| line(text).and_then(|rest| rest.split_ascii_whitespace().next());
    let count = |text| first(text).and_then(|word| word.parse::<u64>().ok());
    let requests = count("requests: ").ok_or_else(unclear)?;
    let good = count("status codes: ").ok_or_else(unclear)?;
    let finished = line("finished in ").and_then(|rest| rest.split_once(", "));
    let per_second =
        finished.and_then(|(_, rate)| rate.split_ascii_whitespace().next()?.parse().ok());
    Ok(Counted {
        requests,
        errors: requests.saturating_sub(good),
        per_second: per_second.ok_or_else(unclear)?,
    })
}

/// Runs redis-benchmark: PING from so many connections, one at a time on each.
pub(crate) async fn redis(lab: &Lab, connections: u32, requests: u64) -> Result<Counted> {
    let output = lab
        .client
        .command(
            "redis-benchmark",
            [
                "-h".to_owned(),
                SERVER_ADDRESS.to_owned(),
                "-p".to_owned(),
                Service::Redis.port().to_string(),
                "-c".to_owned(),
                connections.to_string(),
                "-n".to_owned(),
                requests.to_string(),
                "-t".to_owned(),
                "ping_mbulk".to_owned(),
                "--csv".to_owned(),
            ],
        )
        .output()
        .await?;
    check("redis-benchmark", output.status)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(Counted {
        requests,
        errors: 0,
        per_second: parse_redis(&text)?,
    })
}

fn parse_redis(output: &str) -> Result<f64> {
    let line = output
        .lines()
        .find(|line| line.starts_with("\"PING_MBULK\""));
    let rate = line.and_then(|line| line.split(',').nth(1));
    let rate = rate.and_then(|rate| rate.trim_matches('"').parse().ok());
    rate.ok_or_else(|| format!("redis-benchmark printed no result: {output}").into())
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
    fn a_run_without_a_result_is_an_error() {
        assert!(parse_wrk("unable to connect").is_err());
    }

    #[test]
    fn what_h2load_says_is_read() {
        let output = "finished in 1.50s, 26666.67 req/s, 27.5MB/s\nrequests: 40000 total, 40000 started, 40000 done, \
39990 succeeded, 10 failed\nstatus codes: 39990 2xx, 0 3xx, 0 4xx, 10 5xx\n";
        let counted = parse_h2load(output).unwrap();
        assert_eq!((counted.requests, counted.errors), (40_000, 10));
        assert!((counted.per_second - 26_666.67).abs() < 0.01);
        assert!(parse_h2load("").is_err());
    }

    #[test]
    fn what_redis_benchmark_says_is_read() {
        let output = "\"test\",\"rps\",\"avg_latency_ms\"\n\"PING_MBULK\",\"51000.50\",\"0.2\"\n";
        assert_eq!(parse_redis(output).unwrap(), 51_000.5);
        assert!(parse_redis("").is_err());
    }
}
