//! Requests at a fixed rate, each timed from the moment at which it was due: a server that stalls delays no
//! request's clock ("coordinated omission").

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sidewind_tests::measure::pause;
use tokio::time::Instant;

use super::hold::is_whole;
use crate::Result;
use crate::lab::Lab;

/// Connections that take turns, each on a thread of its own.
const CONNECTIONS: u32 = 16;
/// Patience with a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first requests are not counted.
const WARM_UP: Duration = Duration::from_millis(500);

/// Latencies in microseconds, in order.
pub(crate) async fn at_rate(
    lab: &Lab,
    address: SocketAddr,
    per_second: u32,
    duration: Duration,
) -> Result<Vec<f64>> {
    let begin = Instant::now() + Duration::from_millis(50);
    let interval = Duration::from_secs(1) / per_second;
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            lab.client.place().spawn(move || {
                let schedule = Schedule {
                    first: begin + interval * number,
                    interval: interval * CONNECTIONS,
                    counted: begin + WARM_UP,
                    end: begin + WARM_UP + duration,
                };
                requests(address, &schedule).map_err(|error| error.to_string())
            })
        })
        .collect();
    let joined = tokio::task::spawn_blocking(move || {
        threads
            .into_iter()
            .map(std::thread::JoinHandle::join)
            .collect::<Vec<_>>()
    });
    let mut latencies = Vec::new();
    for outcome in joined.await? {
        latencies.extend(outcome.map_err(|_| "a client panicked")??);
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

struct Schedule {
    first: Instant,
    interval: Duration,
    counted: Instant,
    end: Instant,
}

fn requests(address: SocketAddr, schedule: &Schedule) -> Result<Vec<f64>> {
    // The kernel adds 50 µs to a sleep otherwise.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_nodelay(true)?;
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut latencies = Vec::new();
    let mut due = schedule.first;
    let mut answer = Vec::new();
    while due < schedule.end {
        pause(due.saturating_duration_since(Instant::now()));
        stream.write_all(request.as_bytes())?;
        answer.clear();
        while !is_whole(&answer)? {
            let mut chunk = [0; 4096];
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                return Err("a connection was closed before its answer".into());
            }
            answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
        if due >= schedule.counted {
            latencies.push(due.elapsed().as_secs_f64() * 1e6);
        }
        due += schedule.interval;
    }
    Ok(latencies)
}
