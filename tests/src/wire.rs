//! What a listener on the wire sees: every TCP segment that passes a namespace.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

use crate::place::Place;

/// `ETH_P_ALL` of packet(7), in network byte order.
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;

/// The largest packet: IP's own bound.
const MAX_PACKET_BYTES: usize = 65_536;

/// How long what was sent before a recording is stopped may wait to be read.
const LAST_PACKETS: Duration = Duration::from_millis(300);

/// A recording that runs until it is stopped.
#[derive(Debug)]
pub struct Recording {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Segment>>,
}

/// One TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub source: SocketAddrV4,
    /// To whom.
    pub destination: SocketAddrV4,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// The bytes.
    pub payload: Vec<u8>,
}

impl Recording {
    /// Records everything that passes `place` from now on.
    ///
    /// # Panics
    /// Without root.
    pub fn start(place: &Place) -> Self {
        let socket = place.run(|| {
            let socket = Socket::new(
                Domain::PACKET,
                Type::DGRAM,
                Some(Protocol::from(ALL_PROTOCOLS)),
            )?;
            // Large, so that nothing is lost under load. The kernel cuts it to what it allows.
            let _ = socket.set_recv_buffer_size(64 << 20);
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok::<_, std::io::Error>(socket)
        });
        let socket = socket.unwrap_or_else(|error| panic!("cannot listen on the wire: {error}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || record(socket, &stopped));
        Self { stop, thread }
    }

    /// Stops and gives what was seen.
    pub fn stop(self) -> Wire {
        self.stop.store(true, Ordering::Relaxed);
        Wire {
            segments: self.thread.join().unwrap_or_default(),
        }
    }
}

fn record(mut socket: Socket, stopped: &AtomicBool) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut packet = vec![0; MAX_PACKET_BYTES];
    let mut deadline = None;
    loop {
        let read = socket.read(&mut packet);
        if let Ok(length) = read {
            segments.extend(Segment::parse(packet.get(..length).unwrap_or_default()));
        }
        if stopped.load(Ordering::Relaxed) {
            // What was sent before the stop is read when nothing more comes, or surely after a while.
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAST_PACKETS);
            if read.is_err() || Instant::now() >= deadline {
                return segments;
            }
        }
    }
}

impl Segment {
    /// Reads an IPv4 packet (RFC 791, 9293); none where it is no TCP with payload.
    fn parse(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        if first >> 4 != 4 || *packet.get(9)? != 6 {
            return None;
        }
        let header = usize::from(first & 15) * 4;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        // Segments that the kernel has not cut yet may be larger than the field can say.
        let total = if total == 0 { packet.len() } else { total };
        let address = |at: usize| -> Option<Ipv4Addr> {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(octets.into())
        };
        let tcp = packet.get(header..total)?;
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let payload = tcp.get(usize::from(*tcp.get(12)? >> 4) * 4..)?;
        (!payload.is_empty()).then_some(Self {
            source: SocketAddrV4::new(address(12)?, port(0)?),
            destination: SocketAddrV4::new(address(16)?, port(2)?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            payload: payload.to_vec(),
        })
    }
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    segments: Vec<Segment>,
}

impl Wire {
    /// What was made from other means than a [`Recording`].
    pub fn from_segments(segments: Vec<Segment>) -> Self {
        Self { segments }
    }

    /// What passed between two hosts.
    pub fn between(&self, one: Ipv4Addr, other: Ipv4Addr) -> Self {
        let ends = |segment: &&Segment| {
            let (source, destination) = (*segment.source.ip(), *segment.destination.ip());
            (source, destination) == (one, other) || (source, destination) == (other, one)
        };
        Self {
            segments: self.segments.iter().filter(ends).cloned().collect(),
        }
    }

    /// The segments, in the order in which they passed.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether these bytes passed within one segment.
    pub fn shows(&self, bytes: &[u8]) -> bool {
        self.segments.iter().any(|segment| {
            segment
                .payload
                .windows(bytes.len())
                .any(|window| window == bytes)
        })
    }

    /// Checks that all of it was TLS on the mesh port, and that none of `secrets` could be read.
    ///
    /// # Errors
    /// What else was seen, or that nothing was seen.
    pub fn only_tls(&self, mesh_port: u16, secrets: &[&str]) -> Result<TlsSeen, String> {
        for secret in secrets {
            if self.shows(secret.as_bytes()) {
                return Err(format!("{secret:?} can be read on the wire"));
            }
        }
        let mut seen = TlsSeen::default();
        for ((source, destination), mut segments) in self.flows() {
            if source.port() != mesh_port && destination.port() != mesh_port {
                let first = segments
                    .first()
                    .map(|segment| hexdump(&segment.payload, 4))
                    .unwrap_or_default();
                return Err(format!(
                    "{source} sent to {destination} beside the mesh port:\n{first}"
                ));
            }
            seen.connections += usize::from(destination.port() == mesh_port);
            let start = segments_start(&segments);
            segments.sort_by_key(|segment| segment.sequence.wrapping_sub(start));
            let stream = contiguous(&segments);
            let records = tls_records(&stream)
                .map_err(|error| format!("{source} to {destination}: {error}"))?;
            seen.handshake_records += records
                .iter()
                .filter(|record| **record == HANDSHAKE)
                .count();
            seen.application_records += records
                .iter()
                .filter(|record| **record == APPLICATION_DATA)
                .count();
        }
        if seen.handshake_records == 0 || seen.application_records == 0 {
            return Err(format!(
                "too little TLS was seen to prove anything: {seen:?}"
            ));
        }
        Ok(seen)
    }

    /// The longest piece of application data, as a listener sees it.
    pub fn sample(&self) -> Option<&Segment> {
        let data = self
            .segments
            .iter()
            .filter(|segment| segment.payload.first() == Some(&APPLICATION_DATA));
        data.max_by_key(|segment| segment.payload.len().min(200))
    }

    /// Each direction of each connection whose beginning was seen first.
    fn flows(&self) -> BTreeMap<(SocketAddrV4, SocketAddrV4), Vec<&Segment>> {
        let mut flows: BTreeMap<_, Vec<&Segment>> = BTreeMap::new();
        for segment in &self.segments {
            flows
                .entry((segment.source, segment.destination))
                .or_default()
                .push(segment);
        }
        flows
    }
}

/// How much TLS was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsSeen {
    /// Connections to the mesh port.
    pub connections: usize,
    /// Records of handshakes that are not yet encrypted.
    pub handshake_records: usize,
    /// Encrypted records.
    pub application_records: usize,
}

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

fn segments_start(segments: &[&Segment]) -> u32 {
    segments.first().map_or(0, |segment| segment.sequence)
}

/// The bytes from the first segment on, up to the first gap. Each passes a router twice.
fn contiguous(segments: &[&Segment]) -> Vec<u8> {
    let start = segments_start(segments);
    let mut stream = Vec::new();
    for segment in segments {
        let at = segment.sequence.wrapping_sub(start) as usize;
        if at > stream.len() {
            break;
        }
        let known = stream.len() - at;
        stream.extend_from_slice(segment.payload.get(known..).unwrap_or_default());
    }
    stream
}

/// The types of the TLS records of a stream (RFC 8446 section 5.1); the last one may be incomplete.
fn tls_records(mut stream: &[u8]) -> Result<Vec<u8>, String> {
    let mut types = Vec::new();
    while let [kind, major, minor, high, low, rest @ ..] = stream {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // 20 to 23: change_cipher_spec, alert, handshake, application_data. 256 bytes for expansion.
        if !(20..=23).contains(kind)
            || *major != 3
            || !(1..=3).contains(minor)
            || length > 16_384 + 256
        {
            return Err(format!(
                "no TLS record after {} of them:\n{}",
                types.len(),
                hexdump(stream, 4)
            ));
        }
        types.push(*kind);
        stream = rest.get(length..).unwrap_or_default();
    }
    Ok(types)
}

/// Bytes as people read them: 16 a line, at most `lines`.
pub fn hexdump(bytes: &[u8], lines: usize) -> String {
    let mut text = String::new();
    for (number, line) in bytes.chunks(16).take(lines).enumerate() {
        let _ = write!(text, "{:04x}  ", number * 16);
        for at in 0..16 {
            let _ = match line.get(at) {
                Some(byte) => write!(text, "{byte:02x} "),
                None => write!(text, "   "),
            };
        }
        let printable = line.iter().map(|byte| {
            if (b' '..=b'~').contains(byte) {
                char::from(*byte)
            } else {
                '.'
            }
        });
        let _ = writeln!(text, " {}", printable.collect::<String>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u32, payload: &[u8]) -> Segment {
        let client = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 40000);
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 3), 15008);
        Segment {
            source: client,
            destination: server,
            sequence,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn a_stream_is_joined_across_disorder_repetition_and_wrapping() {
        let start = u32::MAX - 2;
        let wire = Wire::from_segments(vec![
            segment(start, &[22, 3, 1, 0, 2]),
            segment(start.wrapping_add(7), &[23, 3, 3, 0, 1, 9]),
            segment(start.wrapping_add(5), &[1, 2]),
            segment(start, &[22, 3, 1, 0, 2]),
        ]);
        let seen = wire.only_tls(15008, &["GET"]).unwrap();
        assert_eq!(
            seen,
            TlsSeen {
                connections: 1,
                handshake_records: 1,
                application_records: 1
            }
        );
    }

    #[test]
    fn plaintext_is_found() {
        let wire = Wire::from_segments(vec![segment(0, b"GET / HTTP/1.1\r\n")]);
        assert!(
            wire.only_tls(15008, &["GET / "])
                .unwrap_err()
                .contains("can be read")
        );
        assert!(
            wire.only_tls(15008, &[])
                .unwrap_err()
                .contains("no TLS record")
        );
        assert!(
            wire.only_tls(8080, &[])
                .unwrap_err()
                .contains("beside the mesh port")
        );
        assert!(
            Wire::default()
                .only_tls(15008, &[])
                .unwrap_err()
                .contains("too little")
        );
    }

    #[test]
    fn a_packet_is_read() {
        let mut packet = vec![
            0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 2, 10, 77, 0, 3,
        ];
        packet.extend([
            0x9c, 0x40, 0x3a, 0xa0, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0,
        ]);
        packet.extend(b"abcpadding");
        assert_eq!(Segment::parse(&packet), Some(segment(7, b"abc")));
        for length in 0..43 {
            assert_eq!(Segment::parse(&packet[..length]), None);
        }
    }
}
