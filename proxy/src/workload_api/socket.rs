//! The socket's path: who may connect, and when it may be taken over from an earlier process.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Type};

use crate::config::SOCKET_DRAFT_SUFFIX;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("another process answers at the socket {0}; give each proxy a path of its own")]
    Answered(PathBuf),
    #[error("{0} is there already and is no socket; remove it, or name another path")]
    NotASocket(PathBuf),
    #[error(
        "the socket {path} cannot be {what}; its directory must be there, and the proxy's user must be able \
         to write to it"
    )]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A listening socket's path, which is removed in the end.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    /// Device and inode: a successor may have taken the path over.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`. What an earlier process left there is replaced, unless somebody still answers.
    ///
    /// The socket gets its mode before it gets its name, so that nobody whom the mode keeps out finds it open.
    pub(crate) fn bind(path: &Path, mode: u32) -> Result<(Self, UnixListener), SocketError> {
        let failed = |what: &'static str| {
            move |source: io::Error| SocketError::Io {
                path: path.to_owned(),
                what,
                source,
            }
        };
        check_free(path)?;
        let mut draft = path.as_os_str().to_owned();
        draft.push(SOCKET_DRAFT_SUFFIX);
        let draft = PathBuf::from(draft);
        remove_stale_draft(&draft).map_err(failed("made"))?;
        let listener = listen(&draft, mode).map_err(failed("made"))?;
        let socket = std::fs::set_permissions(&draft, Permissions::from_mode(mode))
            .and_then(|()| std::fs::symlink_metadata(&draft))
            .and_then(|metadata| std::fs::rename(&draft, path).map(|()| metadata));
        let metadata = socket.map_err(|error| {
            // It is of no use, and a failure to remove it says nothing new.
            let _ = std::fs::remove_file(&draft);
            failed("put in its place")(error)
        })?;
        let socket = Self {
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
        };
        Ok((socket, listener))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_own = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if is_own && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket could not be removed");
        }
    }
}

/// The kernel makes a socket's file with the mode of the socket, less the process's mask: nobody but this user can
/// connect before the mode is as wanted.
fn listen(draft: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::from_raw_mode(mode & 0o600))?;
    socket.bind(&SockAddr::unix(draft)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// Refuses a path that is taken: by something that is no socket, or by a socket at which somebody answers.
fn check_free(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        what: "looked at",
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // A listener that is alive but busy must not be waited for.
    socket.set_nonblocking(true).map_err(failed)?;
    match socket.connect(&SockAddr::unix(path).map_err(failed)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        _ => Err(SocketError::Answered(path.to_owned())),
    }
}

/// What a process left that died between making the socket and putting it in its place.
fn remove_stale_draft(draft: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(draft) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(draft),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} is in the way", draft.display()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workload.sock");
        (directory, path)
    }

    #[test]
    fn the_socket_has_its_mode_and_goes_in_the_end() {
        let (directory, path) = directory();
        for mode in [0o600, 0o660, 0o666] {
            let (socket, _listener) = Socket::bind(&path, mode).unwrap();
            assert_eq!(path.metadata().unwrap().mode() & 0o777, mode);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
            UnixStream::connect(socket.path()).unwrap();
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_socket_that_nobody_serves_any_more_is_replaced() {
        let (_directory, path) = directory();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_socket, _listener) = Socket::bind(&path, 0o600).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_serves_is_left_alone() {
        let (_directory, path) = directory();
        let (_first, _listener) = Socket::bind(&path, 0o600).unwrap();
        let error = Socket::bind(&path, 0o600).unwrap_err();
        assert!(matches!(error, SocketError::Answered(_)), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let (_directory, path) = directory();
        let (first, listener) = Socket::bind(&path, 0o600).unwrap();
        drop(listener);
        let (_second, _listener) = Socket::bind(&path, 0o600).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_never_touched() {
        let (directory, path) = directory();
        std::fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path, 0o600).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        let link = directory.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Socket::bind(&link, 0o600).is_err());
        let missing = directory.path().join("missing/workload.sock");
        let error = Socket::bind(&missing, 0o600).unwrap_err();
        assert!(
            error.to_string().contains("directory must be there"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
