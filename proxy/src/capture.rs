//! Sockets: listeners that workers share, the destination that a redirected connection was for, and the options
//! that every connection gets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that the kernel holds until a worker accepts them.
const BACKLOG: i32 = 4096;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// What the kernel may hold of bytes that it has not sent, on a connection that is somebody's own: what a reader leaves
/// unread waits in its stream's window and not here as well. A connection's bytes in flight come on top.
const UNSENT_BYTES: u32 = 64 * 1024;

/// What the kernel may hold of a response that was not read from a server on this machine. No delay is bridged by more of it
/// there, and thousands of responses that their clients read slowly would take up all that the machine has for sockets.
const UNREAD_BYTES: usize = 128 * 1024;

/// Who is at the other end of a connection, which decides what the kernel may hold for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Anybody.
    Any,
    /// Processes of this machine, whose connections were redirected to whichever of its IPv4 loopback addresses: see
    /// [`crate::redirect`].
    Redirected,
    /// The workload on this machine, when it is asked in HTTP. (Opaque bytes are most often few streams, which cost a tenth
    /// more where less is read of them at a time.)
    HttpServer,
    /// Another proxy: its connection is that of many streams, and has what the kernel thinks right.
    Proxy,
}

/// The destination that the workload, or a client of the workload, connected to before redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct OriginalDestination(pub SocketAddr);

/// Why a connection has no usable original destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    /// Forwarding it would lead straight back here.
    #[error("the connection to {0} was not redirected: it was made to the proxy's own port")]
    NotRedirected(SocketAddr),
    /// The kernel knows no original destination (no connection tracking in this namespace, say).
    #[error(
        "the original destination is unknown; has `sidewind-proxy redirect` run in this network namespace?"
    )]
    Unknown(#[source] io::Error),
}

/// How a listener learns what its connections were for; in tests it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DestinationSource {
    /// `SO_ORIGINAL_DST`: the connection was redirected by nftables or iptables.
    Redirect,
    /// Every connection is for this address.
    #[cfg(test)]
    Fixed(SocketAddr),
}

impl DestinationSource {
    /// The destination that an accepted connection was for.
    ///
    /// # Errors
    /// [`CaptureError::NotRedirected`] for a connection that was made to the proxy itself, and
    /// [`CaptureError::Unknown`] when the kernel cannot tell.
    pub(crate) fn original_destination(
        &self,
        stream: &TcpStream,
    ) -> Result<OriginalDestination, CaptureError> {
        match self {
            #[cfg(test)]
            Self::Fixed(address) => Ok(OriginalDestination(*address)),
            Self::Redirect => {
                let local = stream.local_addr().map_err(CaptureError::Unknown)?;
                let original = kernel_original_destination(stream, local)?;
                check_loop(original, local)
            }
        }
    }
}

fn kernel_original_destination(
    stream: &TcpStream,
    local: SocketAddr,
) -> Result<SocketAddr, CaptureError> {
    let socket = SockRef::from(stream);
    let address = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    match address {
        Ok(address) => address.as_socket().ok_or_else(|| {
            CaptureError::Unknown(io::Error::other("the kernel named no IP address"))
        }),
        // No entry in connection tracking: nothing translated this connection.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(CaptureError::NotRedirected(local))
        }
        Err(error) => Err(CaptureError::Unknown(error)),
    }
}

/// Refuses a connection of the workload's that did not arrive at a loopback address. Redirection sends them nowhere else, the
/// listener may have to be open to all, and whoever gets through acts as the workload.
///
/// # Errors
/// [`CaptureError::NotRedirected`].
pub(crate) fn check_arrival(local: SocketAddr) -> Result<(), CaptureError> {
    match local.ip().is_loopback() {
        true => Ok(()),
        false => Err(CaptureError::NotRedirected(local)),
    }
}

/// Refuses a destination that is the listener itself. A listener on loopback is reached at loopback addresses
/// alone, so the same port elsewhere is somebody else's; any other listener (inbound) is reached at all of the
/// workload's addresses, and a connection to its port is always for the proxy.
fn check_loop(
    original: SocketAddr,
    local: SocketAddr,
) -> Result<OriginalDestination, CaptureError> {
    let same_port = original.port() == local.port();
    let reaches_listener = !local.ip().is_loopback() || original.ip().is_loopback();
    if same_port && reaches_listener {
        return Err(CaptureError::NotRedirected(original));
    }
    Ok(OriginalDestination(original))
}

/// Where to listen for connections that were redirected to any loopback address.
fn widened(socket: &Socket, address: SocketAddr, peer: Peer) -> SocketAddr {
    if peer != Peer::Redirected || !address.is_ipv4() || !address.ip().is_loopback() {
        return address;
    }
    // Keeps those of other machines from connecting at all, where the kernel is new enough (5.7) or the proxy privileged.
    // Elsewhere [`check_arrival`] refuses them.
    let _ = socket.bind_device(Some(b"lo"));
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())
}

/// Fails when somebody listens on this address already. Ask once, before the workers [`listen`]: since they share
/// the port, a second proxy of the same user would otherwise get half of the connections without any error.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`], or whatever else keeps the address from being listened on.
pub(crate) fn check_free(address: SocketAddr, peer: Peer) -> io::Result<()> {
    let socket = unbound(address)?;
    socket.bind(&widened(&socket, address, peer).into())?;
    socket.listen(1)
}

/// A listener that several workers can bind at once: the kernel spreads connections over them. They have the options of
/// [`set_options`] from it.
///
/// # Errors
/// What the system says, such as [`io::ErrorKind::AddrNotAvailable`].
pub(crate) fn listen(address: SocketAddr, peer: Peer) -> io::Result<TcpListener> {
    TcpListener::from_std(bind(address, peer)?)
}

/// As [`listen`], for another thread's runtime.
///
/// # Errors
/// As [`listen`].
pub(crate) fn bind(address: SocketAddr, peer: Peer) -> io::Result<std::net::TcpListener> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    set_options(SockRef::from(&socket), peer)?;
    socket.bind(&widened(&socket, address, peer).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // IPv4 has a listener of its own, so that addresses never come as ::ffff:a.b.c.d.
        socket.set_only_v6(true)?;
    }
    // Connections of a proxy that ended just now do not keep the next from starting.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Whether an error of [`listen`] means that the machine has no such address family or address: then a listener
/// that nobody asked for by name is left out.
pub(crate) fn is_unavailable(error: &io::Error) -> bool {
    use rustix::io::Errno;

    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

/// Sets what every connection gets before it is there, or its listener for it: no delay, notice of a peer that has
/// vanished while nothing is sent, and bounds of what the kernel holds.
///
/// No TCP_USER_TIMEOUT: to the kernel a peer that answers probes of its shut window is as bad as one that answers
/// nothing, and a client of a database may leave rows unread for as long as it likes. HTTP sets its own
/// ([`crate::copy::Connection::wait_for_reader`]).
fn set_options(socket: SockRef<'_>, peer: Peer) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    if peer != Peer::Proxy {
        socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    }
    if peer == Peer::HttpServer {
        socket.set_recv_buffer_size(UNREAD_BYTES)?;
    }
    Ok(())
}

/// Connects within `timeout`, from `source` when one is given, with the options of [`set_options`].
///
/// A connection from a given source takes one of that address's ephemeral ports whatever its destination (Linux
/// binds before it knows the destination), so leave `source` out where the kernel's own choice will do.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after `timeout`, or what the system says.
pub(crate) async fn connect(
    address: SocketAddr,
    timeout: Duration,
    source: Option<IpAddr>,
    peer: Peer,
) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    set_options(SockRef::from(&socket), peer)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    tokio::time::timeout(timeout, socket.connect(address))
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {timeout:?}"),
            )
        })?
}

/// Raises this process's limit of open files to `wanted`, or as far as the hard limit lets it.
///
/// # Errors
/// What the system says. On success, the limit that now holds; it may be less than `wanted`.
pub(crate) fn raise_nofile_limit(wanted: u64) -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let now = limit.current.unwrap_or(u64::MAX);
    let target = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if now >= target {
        return Ok(now);
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(target),
            maximum: limit.maximum,
        },
    )?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_connection_to_the_listener_itself_is_refused() {
        for (original, local, redirected) in [
            ("127.0.0.1:15001", "127.0.0.1:15001", false),
            ("127.0.0.2:15001", "127.0.0.1:15001", false),
            ("10.0.0.9:15001", "127.0.0.1:15001", true),
            ("10.0.0.9:80", "127.0.0.1:15001", true),
            ("10.0.0.5:15006", "10.0.0.5:15006", false),
            ("10.0.0.6:15006", "10.0.0.5:15006", false),
            ("10.0.0.5:8080", "10.0.0.5:15006", true),
            ("[::1]:15001", "[::1]:15001", false),
            ("[fd00::9]:15001", "[::1]:15001", true),
        ] {
            let result = check_loop(address(original), address(local));
            assert_eq!(result.is_ok(), redirected, "{original} at {local}");
        }
    }

    #[test]
    fn what_arrives_at_another_address_than_loopback_is_not_of_the_workload() {
        for (local, is_of_workload) in [
            ("127.0.0.1:15001", true),
            ("127.0.200.9:15001", true),
            ("[::1]:15001", true),
            ("10.0.0.5:15001", false),
            ("0.0.0.0:15001", false),
            ("[fd00::5]:15001", false),
            ("[::ffff:10.0.0.5]:15001", false),
        ] {
            let result = check_arrival(address(local));
            assert_eq!(result.is_ok(), is_of_workload, "{local}");
        }
    }

    #[tokio::test]
    async fn two_workers_share_one_port() {
        let first = listen(address("127.0.0.1:0"), Peer::Any).unwrap();
        let second = listen(first.local_addr().unwrap(), Peer::Any).unwrap();
        assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_port_that_another_proxy_listens_on_is_not_free() {
        let other = listen(address("127.0.0.1:0"), Peer::Any).unwrap();
        let taken = other.local_addr().unwrap();
        let error = check_free(taken, Peer::Any).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(other);
        check_free(taken, Peer::Any).unwrap();
        listen(taken, Peer::Any).unwrap();
    }

    #[tokio::test]
    async fn what_is_redirected_arrives_at_every_loopback_address() {
        let listener = listen(address("127.0.0.1:0"), Peer::Redirected).unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "127.0.0.9", "127.0.255.254"] {
            let at = SocketAddr::new(host.parse().unwrap(), port);
            let client = TcpStream::connect(at).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            assert_eq!(stream.local_addr().unwrap(), at);
            assert_eq!(peer, client.local_addr().unwrap());
        }
        for peer in [Peer::Any, Peer::Redirected] {
            let taken = check_free(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), peer);
            assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[tokio::test]
    async fn ipv4_and_ipv6_wildcards_share_one_port() {
        let four = listen(address("0.0.0.0:0"), Peer::Any).unwrap();
        let port = four.local_addr().unwrap().port();
        listen(SocketAddr::new("::".parse().unwrap(), port), Peer::Any).unwrap();
    }

    #[tokio::test]
    async fn connections_have_the_options_and_the_source_asked_for() {
        for (peer, unread, unsent) in [
            (Peer::HttpServer, Some(UNREAD_BYTES), UNSENT_BYTES),
            (Peer::Any, None, UNSENT_BYTES),
            (Peer::Proxy, None, 0),
        ] {
            let listener = listen(address("127.0.0.1:0"), peer).unwrap();
            let source = "127.0.0.77".parse().unwrap();
            let to = listener.local_addr().unwrap();
            let stream = connect(to, Duration::from_secs(5), Some(source), peer).await;
            let stream = stream.unwrap();
            let (accepted, from) = listener.accept().await.unwrap();
            assert_eq!(from.ip(), source);
            for socket in [SockRef::from(&stream), SockRef::from(&accepted)] {
                assert!(socket.tcp_nodelay().unwrap());
                assert!(socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
                assert_eq!(socket.tcp_user_timeout().unwrap(), None);
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), unsent);
                // The kernel takes twice of it, for its own part.
                let room = unread.map(|bytes| 2 * bytes);
                assert!(room.is_none_or(|room| socket.recv_buffer_size().unwrap() == room));
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_never_redirected_is_refused() {
        let listener = listen(address("127.0.0.1:0"), Peer::Any).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let result = DestinationSource::Redirect.original_destination(&stream);
        assert!(
            matches!(result, Err(CaptureError::NotRedirected(_))),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn a_fixed_destination_stands_in_for_redirection() {
        let listener = listen(address("127.0.0.1:0"), Peer::Any).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let told = address("10.0.0.9:80");
        let source = DestinationSource::Fixed(told);
        assert_eq!(
            source.original_destination(&stream).unwrap(),
            OriginalDestination(told)
        );
    }

    #[test]
    fn the_file_limit_is_never_lowered() {
        let before = getrlimit(Resource::Nofile).current;
        let now = raise_nofile_limit(1).unwrap();
        assert_eq!(Some(now), before.or(Some(u64::MAX)));
    }
}
