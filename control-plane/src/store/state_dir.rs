//! The state directory: who may read it, and that one process alone uses it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// Why a state directory or a file of secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// The directory or a file in it cannot be created, opened or read.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that holds secrets may be read or written by others than its owner.
    #[error(
        "{} holds a private key but has mode {mode:04o}, so others than its owner may use it; run: chmod 600 {}",
        path.display(), path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that holds a secret may be used by others than its owner and group.
    #[error(
        "{} holds {what} but has mode {mode:04o}, so others may use it; run: chmod 0440 {}",
        path.display(), path.display()
    )]
    OpenToOthers {
        /// What it holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process uses the directory.
    #[error(
        "another sidewind process{} is using {}; one process alone may use a state directory, so stop that one or give another --state-dir",
        pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other process, as it wrote itself down.
        pid: Option<String>,
    },
    /// Another process uses the same database by another name.
    #[error(
        "another sidewind process is using the database {} by another name: it is a hard link to a file in another --state-dir, or that directory is mounted here as well; one process alone may use a database, so stop that one, or give this one a --state-dir with a database of its own",
        path.display()
    )]
    DatabaseInUse {
        /// The database, as this process would have it.
        path: PathBuf,
    },
}

/// The state directory, locked for this process until dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
    /// The database, locked by its inode. Never closed before the store: closing any descriptor of a file gives up the
    /// locks that SQLite has on it (fcntl(2), F_SETLK).
    database: Mutex<Option<File>>,
}

impl StateDir {
    /// Takes a state directory, created with mode 0700 where it is missing.
    ///
    /// # Errors
    /// When it cannot be made, or another process has it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StateDirError::Io {
                action,
                path,
                source,
            }
        };
        if !path.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed("create the state directory", path))?;
        }
        Ok(Self {
            _lock: lock(path)?,
            path: path.to_owned(),
            database: Mutex::default(),
        })
    }

    /// Makes the SQLite file where it is missing, checks that it is open to its owner alone, and keeps every other
    /// process out of it, whatever name that one has for it.
    ///
    /// # Errors
    /// When it cannot be made, or others may use it or do.
    pub fn create_database(&self) -> Result<PathBuf, StateDirError> {
        let database = self.database();
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Some(lock_database(&database)?);
        }
        check_private(&database)?;
        Ok(database)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SQLite file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path.join("sidewind.db")
    }

    /// The trust bundle in PEM, for proxies to be given.
    #[must_use]
    pub fn trust_bundle(&self) -> PathBuf {
        self.path.join("trust-bundle.pem")
    }

    /// The Unix socket of the command line in a state directory.
    #[must_use]
    pub fn admin_socket(path: &Path) -> PathBuf {
        path.join("admin.sock")
    }

    /// Writes the trust bundle for all to read, whole or not at all.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write_trust_bundle(&self, pem: &str) -> Result<(), StateDirError> {
        let target = self.trust_bundle();
        let draft = self.path.join(".trust-bundle.pem.new");
        let write = || {
            let mut file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .custom_flags(nofollow())
                .open(&draft)?;
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, &target)
        };
        write().map_err(|source| StateDirError::Io {
            action: "write the trust bundle",
            path: target.clone(),
            source,
        })
    }
}

fn nofollow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default()
}

/// Opens the database and locks it by flock(2), which goes by the inode and leaves SQLite's own locks, which are those
/// of fcntl(2), alone. A hard link in another state directory has a write-ahead log of its own there: two processes
/// would destroy each other's database.
fn lock_database(path: &Path) -> Result<File, StateDirError> {
    let failed = |action| {
        let path = path.to_owned();
        move |source| StateDirError::Io {
            action,
            path,
            source,
        }
    };
    // Made here and not by SQLite, which would go by the umask; its side files take the same mode.
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(nofollow())
        .open(path)
        .map_err(failed("open the database"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateDirError::DatabaseInUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(failed("lock the database")(source)),
    }
}

fn lock(directory: &Path) -> Result<File, StateDirError> {
    let path = directory.join("sidewind.lock");
    let failed = |source| StateDirError::Io {
        action: "lock the state directory with",
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(nofollow())
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(source)) => return Err(failed(source)),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Who it is only makes the message better.
            let _unread = file.take(16).read_to_string(&mut pid);
            let digits = pid.trim();
            let known = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            return Err(StateDirError::InUse {
                path: directory.to_owned(),
                pid: known.then(|| digits.to_owned()),
            });
        }
    }
    let write_pid = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_pid(&mut file).map_err(failed)?;
    Ok(file)
}

/// Checks that a file with secrets in it is open to its owner alone.
///
/// # Errors
/// When it cannot be read, or any permission bit of group or others is set.
pub fn check_private(path: &Path) -> Result<(), StateDirError> {
    let mode = mode_of(path)?;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.to_owned();
    Err(StateDirError::TooOpen { path, mode })
}

/// Checks that a file with secrets in it is open to its owner, and for reading to its group, at most: an
/// orchestrator gives secrets to a process by its group.
///
/// # Errors
/// When it cannot be read, or more is allowed.
pub fn check_group_private(path: &Path, what: &'static str) -> Result<(), StateDirError> {
    let mode = mode_of(path)?;
    if mode & 0o037 == 0 {
        return Ok(());
    }
    let path = path.to_owned();
    Err(StateDirError::OpenToOthers { what, path, mode })
}

fn mode_of(path: &Path) -> Result<u32, StateDirError> {
    let metadata = path.metadata().map_err(|source| StateDirError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(metadata.permissions().mode() & 0o7777)
}

/// Reads a file with a private key in it, of at most `limit` bytes. Besides a file of its owner's alone this takes
/// what a Kubernetes Secret's mount gives a process that is not root: root's file, which the process's own group
/// may read.
///
/// # Errors
/// When it cannot be read, is larger, or others may read it.
pub fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, StateDirError> {
    let failed = |source| StateDirError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Of the file that was opened: what stands at the path may be another one by now.
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if !is_private(mode, metadata.uid(), metadata.gid(), &own_groups()) {
        let path = path.to_owned();
        return Err(StateDirError::TooOpen { path, mode });
    }
    if metadata.len() > limit {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(limit).unwrap_or(0)));
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// Whether no stranger may read a file, nor anybody but its owner write it.
fn is_private(mode: u32, owner: u32, group: u32, own_groups: &[u32]) -> bool {
    let of_owner_alone = mode & 0o077 == 0;
    let of_a_mount = mode & 0o037 == 0 && owner == 0 && own_groups.contains(&group);
    of_owner_alone || of_a_mount
}

fn own_groups() -> Vec<u32> {
    let mut groups = vec![rustix::process::getegid().as_raw()];
    // Without them the file is judged more strictly.
    let others = rustix::process::getgroups().unwrap_or_default();
    groups.extend(others.iter().map(|group| group.as_raw()));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_from_its_owners_file_or_a_secrets_mount_and_nowhere_else() {
        let (root, me, fs_group, others) = (0, 1000, 2000, 3000);
        let table = [
            (0o600, me, me, true),
            (0o400, root, root, true),
            (0o440, root, fs_group, true),
            (0o640, root, fs_group, true),
            (0o440, root, others, false),
            (0o440, me, fs_group, false),
            (0o460, root, fs_group, false),
            (0o450, root, fs_group, false),
            (0o444, root, fs_group, false),
            (0o644, me, me, false),
            (0o604, me, me, false),
        ];
        for (mode, owner, group, expected) in table {
            let found = is_private(mode, owner, group, &[me, fs_group]);
            assert_eq!(found, expected, "{mode:04o} of {owner}:{group}");
        }
    }

    #[test]
    fn a_key_file_that_others_may_read_or_that_is_too_large_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "0123456789").unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, mode(0o600)).unwrap();
        assert_eq!(read_private(&path, 10).unwrap().as_slice(), b"0123456789");
        let error = read_private(&path, 9).unwrap_err();
        assert!(matches!(error, StateDirError::Io { .. }), "{error}");
        std::fs::set_permissions(&path, mode(0o644)).unwrap();
        let error = read_private(&path, 10).unwrap_err().to_string();
        assert!(
            error.contains("0644") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn a_second_process_is_told_who_has_the_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        assert!(error.contains("--state-dir"), "{error}");
        drop(first);
        StateDir::open(directory.path()).unwrap();
    }

    #[test]
    fn a_database_is_locked_by_its_inode_whatever_name_it_has() {
        let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [first, second, third] = directories.each_ref().map(|it| it.path());
        let holder = StateDir::open(first).unwrap();
        let database = holder.create_database().unwrap();
        // The same process may ask again.
        holder.create_database().unwrap();
        std::fs::hard_link(&database, second.join("sidewind.db")).unwrap();
        let other = StateDir::open(second).unwrap();
        let error = other.create_database().unwrap_err();
        assert!(
            matches!(error, StateDirError::DatabaseInUse { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("hard link"), "{error}");
        // A symbolic link is not followed at all.
        std::os::unix::fs::symlink(&database, third.join("sidewind.db")).unwrap();
        let error = StateDir::open(third).unwrap().create_database();
        assert!(matches!(error, Err(StateDirError::Io { .. })), "{error:?}");
        drop(holder);
        other.create_database().unwrap();
    }

    #[test]
    fn a_database_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        state.create_database().unwrap();
        let database = directory.path().join("sidewind.db");
        std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = state.create_database().unwrap_err().to_string();
        assert!(
            error.contains("0644") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn the_trust_bundle_is_for_all_to_read() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        state.write_trust_bundle("one").unwrap();
        state.write_trust_bundle("two").unwrap();
        let path = state.trust_bundle();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    }
}
