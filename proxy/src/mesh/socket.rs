//! Socket options of mesh connections.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long sent data may stay unacknowledged before the kernel gives the peer up; its own
/// default is about 15 minutes.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an idle connection waits before the kernel asks for a sign of life.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Turns delays off and the detection of dead peers on.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}
