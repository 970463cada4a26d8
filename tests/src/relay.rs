//! A listener in the middle: passes bytes on and keeps what it sees. For machines where the wire itself cannot be
//! listened to without root.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::place::Place;
use crate::wire::{Segment, Wire};

/// The most that is kept.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// A running relay. Ends with the process.
#[derive(Clone, Debug)]
pub struct Relay {
    seen: Arc<Mutex<Vec<Segment>>>,
}

impl Relay {
    /// Listens at `address` and passes everything on to `target`.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start(place: &Place, address: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = place.listen(address)?;
        let relay = Self {
            seen: Arc::default(),
        };
        let accepting = relay.clone();
        place.spawn(move || accepting.accept(&listener, target));
        Ok(relay)
    }

    /// What was seen so far.
    pub fn wire(&self) -> Wire {
        Wire::from_segments(
            self.seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }

    fn accept(&self, listener: &TcpListener, target: SocketAddr) {
        while let Ok((client, _)) = listener.accept() {
            let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(2)) else {
                continue;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ends = client
                .try_clone()
                .and_then(|client| Ok((client, server.try_clone()?)));
            if let Ok((client_too, server_too)) = ends {
                let (there, back) = (self.clone(), self.clone());
                std::thread::spawn(move || there.copy(client, server));
                std::thread::spawn(move || back.copy(server_too, client_too));
            }
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let (source, destination) = (peer(&from), peer(&to));
        let mut buffer = vec![0; 65_536];
        let mut sequence = 0_u32;
        while let Ok(length) = from.read(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            self.keep(Segment {
                source,
                destination,
                sequence,
                payload: bytes.to_vec(),
            });
            sequence = sequence.wrapping_add(length as u32);
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    fn keep(&self, segment: Segment) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = seen.iter().map(|segment| segment.payload.len()).sum();
        if kept < MAX_KEPT_BYTES {
            seen.push(segment);
        }
    }
}

fn peer(stream: &TcpStream) -> SocketAddrV4 {
    match stream.peer_addr() {
        Ok(SocketAddr::V4(address)) => address,
        _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
    }
}
