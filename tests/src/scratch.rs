//! A directory for one test: logs, sockets, keys. Readable by the other users that the test's processes run as.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cleanup::{Held, Ticket, hold};

/// How many of a log's last lines a failed test prints.
const TAIL_LINES: usize = 25;

/// How much of a line it prints.
const MAX_LINE_CHARACTERS: usize = 700;

/// Where scratch directories are made: somewhere that every user may enter.
pub(crate) fn parent() -> PathBuf {
    let wanted = std::env::temp_dir();
    if everyone_may_enter(&wanted) {
        wanted
    } else {
        PathBuf::from("/tmp")
    }
}

/// Whether other users reach `path`: each directory on the way to it is open to all.
pub(crate) fn everyone_may_enter(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else {
        return false;
    };
    path.ancestors()
        .filter(|ancestor| ancestor.is_dir())
        .all(|directory| {
            directory
                .metadata()
                .is_ok_and(|metadata| metadata.mode() & 0o001 != 0)
        })
}

/// A directory that is removed in the end; a failed test first prints the tails of the logs in it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _ticket: Ticket,
}

impl Scratch {
    /// Makes an empty directory.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent().join(format!("sw-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {path:?}: {error}"));
        let scratch = Self {
            _ticket: hold(Held::Directory(path.clone())),
            path,
        };
        open_to_all(&scratch.path);
        scratch
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Prints the last lines of each log in it on standard error.
    pub fn show_logs(&self) {
        print_logs(&self.path);
    }

    /// Writes a file that everybody may read.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
        path
    }

    /// Writes a file that only `uid` may read.
    pub fn write_secret(&self, name: &str, content: impl AsRef<[u8]>, uid: Option<u32>) -> PathBuf {
        let path = self.write(name, content);
        let mode = std::fs::Permissions::from_mode(0o400);
        std::fs::set_permissions(&path, mode).expect("a file of one's own");
        if let Some(uid) = uid {
            chown(&path, Some(uid), Some(uid)).expect("root may give files away");
        }
        path
    }

    /// Makes a directory that belongs to `uid`.
    pub fn directory(&self, name: &str, uid: Option<u32>) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {path:?}: {error}"));
        open_to_all(&path);
        if let Some(uid) = uid {
            chown(&path, Some(uid), Some(uid)).expect("root may give directories away");
        }
        path
    }
}

/// Prints the last lines of each log in `directory`.
pub(crate) fn print_logs(directory: &Path) {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "out" || extension == "err")
        })
        .collect();
    paths.sort();
    for path in paths {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        eprintln!("--- {name} ({} lines)", lines.len());
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
            let shown: String = line.chars().take(MAX_LINE_CHARACTERS).collect();
            eprintln!("{shown}");
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.path);
        }
    }
}

fn open_to_all(path: &Path) {
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("a directory of one's own");
}
