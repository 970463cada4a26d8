//! Finding the Airflow task behind a new connection, on a worker that runs 16 tasks among 200 processes with 500 sockets.
//!
//! The processes are real: `worker.py` does what Airflow's do. Each task makes one connection after the other, some from
//! programs that it has just started. It prints the median and the 99th percentile, and fails when a task is named
//! wrongly. One that is not found counts with all the time that its search had. Not by Criterion, which says nothing of percentiles, and runs what it measures at will.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sidewind_proxy::hot::TaskSearch;
use tokio::time::Instant;

const WORKER: &str = include_str!("task_search/worker.py");

/// Connections that are looked up before the measurement, and in it.
const WARM_UP: usize = 100;
const MEASURED: usize = 3000;

/// What a look-up may take.
const MEDIAN: Duration = Duration::from_millis(1);
const PERCENTILE_99: Duration = Duration::from_millis(5);

/// Ends with the end of its input, and all that it has started with it.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let remote = server.local_addr()?;
    // The worker holds connections of its own, which nobody asks about.
    let idle = TcpListener::bind("127.0.0.1:0")?;
    let held = std::thread::spawn({
        let idle = idle.try_clone()?;
        move || -> std::io::Result<()> {
            let mut held = Vec::new();
            loop {
                held.push(idle.accept()?);
            }
        }
    });
    let mut search = TaskSearch::new(folder.path())?;
    let worker = Worker(
        Command::new("python3")
            .args(["-c", WORKER])
            .arg(remote.port().to_string())
            .arg(idle.local_addr()?.port().to_string())
            .arg(folder.path())
            .stdin(Stdio::piped())
            // What its tasks say when their connections end with the measurement.
            .stderr(Stdio::null())
            .spawn()?,
    );

    let mut times = Vec::with_capacity(MEASURED);
    let mut unknown = 0;
    for n in 0..WARM_UP + MEASURED {
        let (mut stream, local) = server.accept()?;
        let mut dag = [0; 8];
        stream.read_exact(&mut dag)?;
        let expected = String::from_utf8_lossy(&dag);
        let began = Instant::now();
        let found = search.dag_of(local, remote);
        let took = began.elapsed();
        match found {
            Ok(dag) if dag == expected.trim_end() => {}
            Ok(wrong) => return Err(format!("a connection of {expected} was named {wrong}").into()),
            // It takes its time like the others, and all of the time that there is.
            Err(why) if n >= WARM_UP => {
                unknown += 1;
                println!("a connection of {expected} is nobody's: {why}");
            }
            Err(_) => {}
        }
        if n >= WARM_UP {
            times.push(took);
        }
        stream.write_all(b".")?;
    }
    drop(worker);
    drop(held);

    times.sort_unstable();
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .copied()
            .unwrap_or_default()
    };
    let (median, p99, most) = (at(0.5), at(0.99), at(0.9999));
    println!(
        "finding a task, of 16 among 200 processes: median {median:?}, 99 % {p99:?}, most {most:?}, {unknown} of {MEASURED} not found"
    );
    if median > MEDIAN || p99 > PERCENTILE_99 {
        return Err(
            format!("more than {MEDIAN:?} in the median, or {PERCENTILE_99:?} in 99 %").into(),
        );
    }
    Ok(())
}
