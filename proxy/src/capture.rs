//! Sockets: listeners that workers share, the destination that a redirected connection was for, and the options
//! that every connection gets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that the kernel holds until a worker accepts them.
const BACKLOG: i32 = 4096;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

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

/// Fails when somebody listens on this address already. Ask once, before the workers [`listen`]: since they share
/// the port, a second proxy of the same user would otherwise get half of the connections without any error.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`], or whatever else keeps the address from being listened on.
pub(crate) fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = unbound(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// A listener that several workers can bind at once: the kernel spreads connections over them.
///
/// # Errors
/// What the system says, such as [`io::ErrorKind::AddrNotAvailable`].
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(bind(address)?)
}

/// As [`listen`], for another thread's runtime.
///
/// # Errors
/// As [`listen`].
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = unbound(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
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

/// Sets what every connection gets: no delay, and notice of a peer that has vanished while nothing is sent.
///
/// No TCP_USER_TIMEOUT: to the kernel a peer that answers probes of its shut window is as bad as one that answers
/// nothing, and a client of a database may leave rows unread for as long as it likes. HTTP sets its own
/// ([`crate::copy::Connection::wait_for_reader`]).
///
/// # Errors
/// What the system says; the connection has then been closed already, as a rule.
pub(crate) fn set_options(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Connects within `timeout`, from `source` when one is given, and sets the options of [`set_options`].
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
) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = tokio::time::timeout(timeout, socket.connect(address))
        .await
        .map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {timeout:?}"),
            )
        })??;
    set_options(&stream)?;
    Ok(stream)
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

    #[tokio::test]
    async fn two_workers_share_one_port() {
        let first = listen(address("127.0.0.1:0")).unwrap();
        let second = listen(first.local_addr().unwrap()).unwrap();
        assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_port_that_another_proxy_listens_on_is_not_free() {
        let other = listen(address("127.0.0.1:0")).unwrap();
        let taken = other.local_addr().unwrap();
        let error = check_free(taken).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(other);
        check_free(taken).unwrap();
        listen(taken).unwrap();
    }

    #[tokio::test]
    async fn ipv4_and_ipv6_wildcards_share_one_port() {
        let four = listen(address("0.0.0.0:0")).unwrap();
        let port = four.local_addr().unwrap().port();
        listen(SocketAddr::new("::".parse().unwrap(), port)).unwrap();
    }

    #[tokio::test]
    async fn connections_have_the_options_and_the_source_asked_for() {
        let listener = listen(address("127.0.0.1:0")).unwrap();
        let source = "127.0.0.77".parse().unwrap();
        let stream = connect(
            listener.local_addr().unwrap(),
            Duration::from_secs(5),
            Some(source),
        )
        .await
        .unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip(), source);
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }

    #[tokio::test]
    async fn a_connection_that_was_never_redirected_is_refused() {
        let listener = listen(address("127.0.0.1:0")).unwrap();
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
        let listener = listen(address("127.0.0.1:0")).unwrap();
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
