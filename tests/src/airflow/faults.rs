//! What is wrong with an API server now: it stands behind a listener of the test's own, on its own machine, that refuses,
//! resets, answers for it, or loses what it answers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::place::Place;
use crate::wait::pause;

/// How often it is looked whether the fault has changed.
const INTERVAL: Duration = Duration::from_millis(20);

/// Connections that are kept to be broken when the fault changes.
const MAX_CONNECTIONS: usize = 1024;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody listens.
    Refused,
    /// Each connection is reset as soon as it is there.
    Reset,
    /// Each request is answered with 503.
    Unavailable,
    /// Each request is carried out, and its connection reset in place of the answer.
    LostResponse,
}

impl Fault {
    const ALL: [Self; 5] = [
        Self::None,
        Self::Refused,
        Self::Reset,
        Self::Unavailable,
        Self::LostResponse,
    ];
}

/// The listener.
#[derive(Clone, Debug)]
pub(super) struct Faulty {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    listen: SocketAddr,
    target: SocketAddr,
    fault: AtomicU8,
    spoiled: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Faulty {
    /// Listens, and passes what comes on to the server, until something is to be wrong.
    ///
    /// # Panics
    /// When the address is taken.
    #[track_caller]
    pub(super) fn start(place: &Place, listen: SocketAddr, target: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            place: place.clone(),
            listen,
            target,
            fault: AtomicU8::new(0),
            spoiled: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let listener = shared.listen();
        let serving = Arc::clone(&shared);
        place.spawn(move || serving.serve(listener));
        Self { shared }
    }

    /// From now on this is wrong. Connections that are open are broken by everything but `None`.
    pub(super) fn set(&self, fault: Fault) {
        self.shared.fault.store(fault as u8, Ordering::SeqCst);
        if fault != Fault::None {
            let mut open = self.shared.open();
            for stream in open.drain(..) {
                reset(stream);
            }
        }
    }

    /// How many requests or connections it has spoiled.
    pub(super) fn spoiled(&self) -> u64 {
        self.shared.spoiled.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn fault(&self) -> Fault {
        let number = usize::from(self.fault.load(Ordering::SeqCst));
        Fault::ALL.get(number).copied().unwrap_or(Fault::None)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn listen(&self) -> TcpListener {
        let listener = self.place.listen(self.listen).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        listener.unwrap_or_else(|error| panic!("cannot listen at {}: {error}", self.listen))
    }

    fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut listener = Some(listener);
        let mut seen = 0;
        loop {
            let refuses = self.fault() == Fault::Refused;
            if refuses == listener.is_some() {
                listener = (!refuses).then(|| self.listen());
                if refuses {
                    // Those of the connections that the fault itself has broken are over.
                    pause(5 * INTERVAL);
                    seen = resets_sent();
                }
            } else if refuses {
                let now = resets_sent();
                self.spoiled
                    .fetch_add(now.saturating_sub(seen), Ordering::SeqCst);
                seen = now;
            }
            match listener.as_ref().map(TcpListener::accept) {
                Some(Ok((client, _))) => {
                    let this = Arc::clone(&self);
                    std::thread::spawn(move || this.connection(client));
                }
                _ => pause(INTERVAL),
            }
        }
    }

    fn connection(&self, client: TcpStream) {
        let _ = (client.set_nonblocking(false), client.set_nodelay(true));
        match self.fault() {
            Fault::Refused | Fault::Reset => {
                self.spoiled.fetch_add(1, Ordering::SeqCst);
                reset(client);
            }
            Fault::Unavailable => self.answer(client),
            fault @ (Fault::None | Fault::LostResponse) => {
                let _ = self.pass(client, fault == Fault::LostResponse);
            }
        }
    }

    /// Reads a request's head, and answers it.
    fn answer(&self, mut client: TcpStream) {
        let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match client.read(&mut buffer) {
                Ok(length @ 1..) => {
                    head.extend_from_slice(buffer.get(..length).unwrap_or_default())
                }
                _ => return,
            }
        }
        self.spoiled.fetch_add(1, Ordering::SeqCst);
        let answer =
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let _ = client.write_all(answer.as_bytes());
        // What comes of the body is read, or the answer would be lost with it.
        let _ = client.shutdown(Shutdown::Write);
        while matches!(client.read(&mut buffer), Ok(1..)) {}
    }

    fn pass(&self, client: TcpStream, loses: bool) -> std::io::Result<()> {
        let server = TcpStream::connect_timeout(&self.target, Duration::from_secs(5));
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                reset(client);
                return Err(error);
            }
        };
        server.set_nodelay(true)?;
        {
            let mut open = self.open();
            if open.len() >= MAX_CONNECTIONS {
                open.remove(0);
            }
            open.push(client.try_clone()?);
        }
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let (mut server, mut client) = (server, client);
        if loses {
            let read = server.read(&mut [0; 4096]);
            if matches!(read, Ok(1..)) {
                self.spoiled.fetch_add(1, Ordering::SeqCst);
            }
            reset(client);
            return Ok(());
        }
        let copied = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(Shutdown::Both);
        copied.map(drop)
    }
}

/// How many resets this network has sent: one for each connection to a port at which nobody listens.
fn resets_sent() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
    let mut tcp = counters.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (
        tcp.next().unwrap_or_default(),
        tcp.next().unwrap_or_default(),
    );
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let found = both.find(|(name, _)| *name == "OutRsts");
    found
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or_default()
}

/// Ends a connection by a reset.
fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
    // Also where another thread still reads from it.
    let _ = socket.shutdown(Shutdown::Both);
}
