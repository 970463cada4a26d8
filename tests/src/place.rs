//! Where a program runs or a socket is: this machine's own network, or a network namespace.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::invocation::Invocation;

/// A network to run things in. Cheap to clone; does not keep the namespace alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The network that this process is in.
    Host,
    /// A network namespace by its name in `/run/netns`.
    Namespace(Arc<str>),
}

impl Place {
    /// A program to be run here.
    pub fn program(&self, program: impl Into<std::ffi::OsString>) -> Invocation {
        Invocation::new(self.clone(), program.into())
    }

    /// Runs `work` on a thread of its own that is in this network: every socket it makes is here.
    ///
    /// # Panics
    /// When the namespace is gone, or when the thread cannot enter it, which needs root.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let place = self.clone();
        std::thread::spawn(move || {
            place.enter();
            work()
        })
    }

    /// As [`Place::spawn`], and waits for the result.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects from here.
    ///
    /// # Errors
    /// As `connect(2)`, and when it took longer than `timeout`.
    pub fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.run(|| {
            let stream = TcpStream::connect_timeout(&address, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        })
    }

    /// Listens here.
    ///
    /// # Errors
    /// As `bind(2)`.
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| TcpListener::bind(address))
    }

    /// Whether something accepts connections there.
    pub fn is_open(&self, address: SocketAddr) -> bool {
        self.connect(address, Duration::from_secs(1)).is_ok()
    }

    fn enter(&self) {
        let Self::Namespace(name) = self else {
            return;
        };
        let path = format!("/run/netns/{name}");
        let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::Network),
        )
        .unwrap_or_else(|error| panic!("cannot enter the network namespace {name}: {error}"));
    }
}
