//! Asks the kernel for one TCP socket (NETLINK_SOCK_DIAG): its inode number, by which an owner can be found.
//!
//! One exact question, and no dump: reading `/proc/net/tcp` walks every socket of the namespace.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

/// Answers are a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 8 * 1024;

/// Both ends of a connection, as the socket that is looked for sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SocketPair {
    /// Its own address.
    pub(crate) local: SocketAddr,
    /// The address that it connected to, before any redirection.
    pub(crate) remote: SocketAddr,
}

/// A socket that the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) inode: u32,
    /// Of the process that made it.
    pub(super) uid: u32,
}

/// A question socket to the kernel.
#[derive(Debug)]
pub(super) struct SocketTable {
    socket: Socket,
    answer: Vec<u8>,
    sequence: u32,
}

impl SocketTable {
    /// Needs no privilege. The network namespace is that of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            answer: Vec::with_capacity(MAX_ANSWER_BYTES),
            sequence: 0,
        })
    }

    /// The socket with these ends; none when there is no such socket (any more), or no process holds it.
    pub(super) fn look(&mut self, pair: SocketPair) -> io::Result<Option<Seen>> {
        let SocketPair { local, remote } = pair;
        let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
        let family = match (local_ip, remote_ip) {
            (IpAddr::V4(_), IpAddr::V4(_)) => AF_INET,
            (IpAddr::V6(_), IpAddr::V6(_)) => AF_INET6,
            _ => return Ok(None),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local_ip,
                destination_address: remote_ip,
                interface_id: 0,
                // Whichever socket has these ends.
                cookie: [0xff; 8],
            },
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            self.answer.clear();
            self.socket.recv(&mut self.answer, 0)?;
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&self.answer)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    // 0 is a socket that nobody holds any more (TIME_WAIT, orphaned).
                    let (inode, uid) = (response.header.inode, response.header.uid);
                    Ok((inode != 0).then_some(Seen { inode, uid }))
                }
                NetlinkPayload::Error(error) => match error.to_io() {
                    error if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    error => Err(error),
                },
                _ => Ok(None),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd,
    };

    use super::*;

    fn connect(listener: &TcpListener) -> TcpStream {
        let address = listener.local_addr().unwrap();
        TcpStream::connect_timeout(&address, std::time::Duration::from_secs(10)).unwrap()
    }

    fn inode_of(stream: &TcpStream) -> u32 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap();
        let link = link.to_str().unwrap();
        link.trim_start_matches("socket:[")
            .trim_end_matches(']')
            .parse()
            .unwrap()
    }

    fn inode(table: &mut SocketTable, pair: SocketPair) -> io::Result<Option<u32>> {
        let seen = table.look(pair)?;
        Ok(seen.map(|seen| seen.inode))
    }

    fn pair(stream: &TcpStream) -> SocketPair {
        SocketPair {
            local: stream.local_addr().unwrap(),
            remote: stream.peer_addr().unwrap(),
        }
    }

    #[test]
    fn a_connections_socket_is_found_by_its_ends_in_ipv4_ipv6_and_ipv4_mapped() {
        let mut table = SocketTable::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = connect(&listener);
            let (server, _) = listener.accept().unwrap();
            assert_eq!(
                inode(&mut table, pair(&client)).unwrap(),
                Some(inode_of(&client)),
                "{address}"
            );
            assert_eq!(
                inode(&mut table, pair(&server)).unwrap(),
                Some(inode_of(&server))
            );
        }
    }

    #[test]
    fn a_socket_that_is_gone_is_not_found() {
        let mut table = SocketTable::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = connect(&listener);
        let mut other = pair(&client);
        other.remote.set_port(1);
        assert_eq!(inode(&mut table, other).unwrap(), None);
        let ends = pair(&client);
        drop((client, listener));
        assert_eq!(inode(&mut table, ends).unwrap(), None);
    }
}
