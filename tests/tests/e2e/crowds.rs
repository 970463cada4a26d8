//! Thousands of clients at once: most of them idle, many that read slowly. Memory follows what they may hold, and is given
//! back.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sidewind_tests::mesh::{Mesh, Workload};
use sidewind_tests::place::Place;
use sidewind_tests::wait::{PATIENCE, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::API;

/// The body that each busy client asks for.
const BODY_BYTES: usize = 10 << 20;
/// What it reads each second.
const READ_BYTES: usize = 1024;

/// What the kernel is to hold at both ends: at its own measure thousands of full sockets are more than it has memory for,
/// and it resets some of them.
const SOCKET_BYTES: u32 = 32 * 1024;

/// What a proxy may hold for each busy client: a stream's window, and as much on its way out.
const BUSY_BYTES: u64 = 512 << 10;
const IDLE_BYTES: u64 = 16 << 10;
/// What may be left a while after all have gone.
const KEPT_BYTES: u64 = 48 << 20;

struct Crowd {
    idle: usize,
    busy: usize,
    lasts: Duration,
}

/// A runtime on a thread of its own, in a network.
fn on_a_thread<F: Future<Output = ()>>(
    place: &Place,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::thread::JoinHandle<()> {
    place.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(work());
    })
}

/// Answers each request with a large body, which is nowhere whole in memory.
async fn serve(address: SocketAddr, mut over: watch::Receiver<bool>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Accepted ones have it from here.
    let _ = socket.set_send_buffer_size(SOCKET_BYTES);
    let _ = socket.set_reuseaddr(true);
    socket.bind(address).expect("a free port");
    let listener = socket.listen(1024).expect("a listener");
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    clients.spawn(answer(stream));
                }
            }
            _ = over.changed() => return,
        }
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    static PIECE: [u8; 16384] = [b'x'; 16384];
    loop {
        let head = read_head(&mut stream).await?;
        let length = if head.starts_with("GET /large") {
            BODY_BYTES
        } else {
            2
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut left = length;
        while left > 0 {
            let piece = PIECE.get(..left.min(PIECE.len())).unwrap_or_default();
            stream.write_all(piece).await?;
            left -= piece.len();
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// One request, whose answer is 200 with the connection kept. A proxy to which so many come at once may say that it is too busy, and
/// when to ask again.
async fn ask(stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: orders-api.data\r\n\r\n");
    loop {
        stream.write_all(request.as_bytes()).await?;
        let head = read_head(stream).await?.to_ascii_lowercase();
        if head.starts_with("http/1.1 200") {
            return Ok(());
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        assert_eq!(field("sidewind-error: "), Some("overloaded"), "{head}");
        let number = |name: &str| field(name).and_then(|value| value.parse().ok());
        let body = number("content-length: ").expect("an answer with a length");
        stream.read_exact(&mut vec![0; body]).await?;
        let seconds = number("retry-after: ").expect("when to ask again");
        tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    }
}

/// Opens all connections, a few hundred at a time, says so, and holds them.
async fn crowd(address: SocketAddr, crowd: Crowd, state: watch::Sender<State>) {
    let mut clients = JoinSet::new();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(200));
    let (open, all_open) = watch::channel(0_usize);
    for number in 0..crowd.idle + crowd.busy {
        let (gate, open, lasts) = (gate.clone(), open.clone(), crowd.lasts);
        let mut all_open = all_open.clone();
        let (busy, count) = (number < crowd.busy, crowd.idle + crowd.busy);
        clients.spawn(async move {
            let permit = gate.acquire_owned().await;
            let socket = TcpSocket::new_v4().expect("a socket");
            let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
            let mut stream = socket.connect(address).await.expect("a connection");
            let path = if busy { "/large" } else { "/small" };
            ask(&mut stream, path).await.expect("an answer");
            drop(permit);
            let mut piece = [0; READ_BYTES];
            if !busy {
                stream.read_exact(&mut piece[..2]).await.expect("a body");
            }
            open.send_modify(|open| *open += 1);
            let _ = all_open.wait_for(|open| *open == count).await;
            let end = tokio::time::Instant::now() + lasts;
            while tokio::time::Instant::now() < end {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if busy {
                    stream.read_exact(&mut piece).await.expect("more of it");
                }
            }
            if !busy {
                ask(&mut stream, "/small").await.expect("another answer");
            }
        });
    }
    let total = crowd.idle + crowd.busy;
    let mut watched = all_open;
    let _ = watched.wait_for(|open| *open == total).await;
    state.send_replace(State::Open);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client that got what it asked for");
    }
    state.send_replace(State::Over);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    Over,
}

fn holds(plan: Crowd) {
    // Of this process: a connection for each client, and at the server one for each that is busy: idle ones share theirs. Each
    // proxy needs fewer.
    let wanted = (plan.idle + 2 * plan.busy) as u64 + 2000;
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(wanted.max(4096)),
        maximum: hard.map(|hard| hard.max(wanted)),
    };
    setrlimit(Resource::Nofile, limit).expect("root may open as many files as it likes");
    let mut mesh = Mesh::plan().start();
    let most = wanted.to_string();
    let api = mesh.workload("data", "orders-api");
    let api = api.serves("orders-api.data=8080/http");
    let mut api = api.flag("--max-connections", &most).start();
    let task = mesh.workload("airflow", "task");
    let mut task = task.flag("--max-connections", &most).start();
    let (end, over) = watch::channel(false);
    let address = (api.bind(), 8080).into();
    let server = on_a_thread(&api.place, move || serve(address, over));
    let local = api.local(8080);
    eventually("the server listens", PATIENCE, || {
        api.place.is_open(local).then_some(())
    });
    let check = |task: &Workload| {
        // Again where it is told to, as the crowd does.
        let curl = task.curl(&["--retry", "9", "--retry-all-errors", "--fail"]);
        let asked = curl.arg(format!("{API}/small")).finish().success();
        assert_eq!(asked, "xx");
    };
    check(&task);
    let resident = |workloads: [&mut Workload; 2]| {
        workloads.map(|workload| workload.sidecar.process().resident_bytes())
    };
    let before = resident([&mut task, &mut api]);
    let bound = plan.busy as u64 * BUSY_BYTES + plan.idle as u64 * IDLE_BYTES + KEPT_BYTES;
    let (state, mut seen) = watch::channel(State::Opening);
    let limit = plan.lasts * 2 + Duration::from_secs(240);
    let (busy, idle) = (plan.busy, plan.idle);
    let clients = {
        let address = api.at(8080);
        on_a_thread(&task.place, move || crowd(address, plan, state))
    };
    let mut most = [0; 2];
    eventually("the crowd has gone", limit, || {
        let held = resident([&mut task, &mut api]);
        for ((most, held), before) in most.iter_mut().zip(held).zip(before) {
            let grown = held.saturating_sub(before);
            assert!(grown < bound, "{} MiB more are held", grown >> 20);
            *most = grown.max(*most);
        }
        match *seen.borrow_and_update() {
            State::Opening => None,
            State::Open => {
                check(&task);
                None
            }
            State::Over => Some(()),
        }
    });
    clients.join().expect("no client failed");
    println!(
        "{busy} busy and {idle} idle: {:?} MiB at most",
        most.map(|most| most >> 20)
    );
    eventually("memory is given back", PATIENCE, || {
        let held = resident([&mut task, &mut api]);
        let mut grown = held
            .iter()
            .zip(before)
            .map(|(held, before)| held.saturating_sub(before));
        grown.all(|grown| grown < KEPT_BYTES).then_some(())
    });
    end.send_replace(true);
    server.join().expect("the server ended");
}

#[test]
fn a_thousand_idle_and_two_hundred_slow_readers_hold_bounded_memory() {
    holds(Crowd {
        idle: 1000,
        busy: 200,
        lasts: Duration::from_secs(20),
    });
}

mod soak {
    use super::*;

    #[test]
    fn ten_thousand_idle_and_two_thousand_slow_readers_hold_bounded_memory_for_ten_minutes() {
        holds(Crowd {
            idle: 10_000,
            busy: 2000,
            lasts: Duration::from_secs(600),
        });
    }
}
