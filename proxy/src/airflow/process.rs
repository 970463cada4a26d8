//! One process, as `/proc` shows it: held by its directory, which stays that of this process when its number is given
//! to another, so that nothing read later can be about somebody else.

use std::{
    cell::Cell,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        CWD, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, fstat, open, openat, openat2,
        readlinkat_raw, seek,
    },
    io::Errno,
};

use super::{attempt_log::MAX_PATH_BYTES, environment, title::Title};

/// Most bytes of a command line that are read: titles are short.
const MAX_TITLE_BYTES: usize = 1024;

/// A process id in the proxy's own PID namespace.
pub(super) type Pid = u32;

/// A process, for as long as it runs: its number is given again, but not within the tick in which it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessKey {
    pub(super) pid: Pid,
    /// Ticks since the system started.
    pub(super) start_time: u64,
}

/// Buffers that are used again for each directory and link.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: Vec<MaybeUninit<u8>>,
    link: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            entries: vec![MaybeUninit::uninit(); 16 * 1024],
            link: vec![0; MAX_PATH_BYTES],
        }
    }
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    /// Ticks since the system started.
    pub(super) start_time: u64,
    directory: OwnedFd,
    /// None where the proxy may not look.
    files: Option<OwnedFd>,
    /// How many files were open when they were last read; Linux 6.2 and later say it.
    open_files: Cell<Option<u64>>,
}

/// Whether a look through open files found what it was for, and whether it could look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Every file was looked at.
    Whole,
    /// The process has ended.
    Gone,
    /// The proxy may not look.
    Denied,
    /// There were more than could be looked at in time.
    Cut,
}

impl Buffers {
    pub(super) fn entries(&mut self) -> &mut [MaybeUninit<u8>] {
        &mut self.entries
    }
}

impl Process {
    /// Takes hold of a process; none if there is none (any more).
    pub(super) fn open(pid: Pid) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        let files = openat(&directory, c"fd", flags, Mode::empty()).ok();
        let (_, start_time) = stat(&directory)?;
        Some(Self {
            pid,
            start_time,
            directory,
            files,
            open_files: Cell::new(None),
        })
    }

    pub(super) fn key(&self) -> ProcessKey {
        ProcessKey {
            pid: self.pid,
            start_time: self.start_time,
        }
    }

    /// The parent now; none when this process has ended.
    pub(super) fn parent(&self) -> Option<Pid> {
        stat(&self.directory).map(|(parent, _)| parent)
    }

    pub(super) fn title(&self) -> Title {
        self.read(c"cmdline", MAX_TITLE_BYTES)
            .map_or(Title::Other, |line| Title::read(&line))
    }

    /// The beginning of its environment, as it was when its program was started.
    pub(super) fn environment(&self) -> Option<Vec<u8>> {
        self.read(c"environ", environment::MAX_BYTES)
    }

    /// The control group, which is another for each container.
    pub(super) fn control_group(&self) -> Option<Vec<u8>> {
        self.read(c"cgroup", MAX_PATH_BYTES)
    }

    /// Whether it is the first process of its PID namespace, whose child every process becomes that has lost its parent.
    /// True where that is not to be read.
    pub(super) fn is_init(&self) -> bool {
        let status = self.read(c"status", MAX_PATH_BYTES).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        line.and_then(|pids| pids.split_ascii_whitespace().last())
            .is_none_or(|innermost| innermost == "1")
    }

    /// Whether it is in the network namespace whose link is `own`. True where the proxy may not look.
    pub(super) fn shares_network(&self, own: &[u8], buffers: &mut Buffers) -> bool {
        link(&self.directory, c"ns/net", &mut buffers.link).is_none_or(|theirs| theirs == own)
    }

    /// What stands for its file system: processes of one container have the same.
    pub(super) fn mounts(&self, buffers: &mut Buffers) -> Option<Vec<u8>> {
        link(&self.directory, c"ns/mnt", &mut buffers.link).map(<[u8]>::to_vec)
    }

    /// Where `path` leads in its file system, as links of open files show it: without symbolic links. None where there is
    /// no such directory, or the proxy may not look.
    pub(super) fn resolve(&self, path: &Path, buffers: &mut Buffers) -> Option<Vec<u8>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(&self.directory, c"root", flags, Mode::empty()).ok()?;
        // An absolute link in it begins at its root, and not at the proxy's.
        let found = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
        let own = format!("/proc/self/fd/{}", found.as_raw_fd());
        let length = readlinkat_raw(CWD, own, &mut buffers.link[..]).ok()?;
        buffers.link.get(..length).map(<[u8]>::to_vec)
    }

    /// Whether other files may be open than when they were last read, by how many are open now. True where the kernel does
    /// not say.
    pub(super) fn may_have_opened_files(&self, now: Option<u64>) -> bool {
        now.is_none() || now != self.open_files.get()
    }

    /// How many files are open now; none where the kernel does not say.
    pub(super) fn count_files(&self) -> Option<u64> {
        let stat = fstat(self.files.as_ref()?).ok()?;
        u64::try_from(stat.st_size).ok().filter(|files| *files > 0)
    }

    /// Calls `see` with what each open file is, until it says to stop (false).
    pub(super) fn each_file(
        &self,
        buffers: &mut Buffers,
        mut see: impl FnMut(&[u8]) -> bool,
    ) -> Read {
        let Some(files) = &self.files else {
            return Read::Denied;
        };
        let count = self.count_files();
        if seek(files, SeekFrom::Start(0)).is_err() {
            return Read::Gone;
        }
        let mut seen_any = false;
        let mut entries = RawDir::new(files, &mut buffers.entries);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::ACCESS | Errno::PERM) => return Read::Denied,
                Err(_) => return Read::Gone,
            };
            let name = entry.file_name();
            if !name.to_bytes().first().is_some_and(u8::is_ascii_digit) {
                continue;
            }
            match readlinkat_raw(files, name, &mut buffers.link[..]) {
                Ok(length) => {
                    seen_any = true;
                    if !see(buffers.link.get(..length).unwrap_or_default()) {
                        return Read::Cut;
                    }
                }
                Err(Errno::ACCESS | Errno::PERM) => return Read::Denied,
                // Closed in between.
                Err(_) => {}
            }
        }
        if !seen_any && self.parent().is_none() {
            return Read::Gone;
        }
        self.open_files.set(count);
        Read::Whole
    }

    fn read(&self, name: &std::ffi::CStr, limit: usize) -> Option<Vec<u8>> {
        read_file(&self.directory, name, limit)
    }
}

/// The inode of the socket that an open file is, if it is one.
pub(super) fn socket(link: &[u8]) -> Option<u32> {
    let inode = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

/// What a link under a directory says.
pub(super) fn link<'b>(
    directory: impl AsFd,
    name: &std::ffi::CStr,
    buffer: &'b mut [u8],
) -> Option<&'b [u8]> {
    let length = readlinkat_raw(directory, name, &mut *buffer).ok()?;
    buffer.get(..length)
}

/// Parent and start time (proc_pid_stat(5), fields 4 and 22). The name of the program, in parentheses, may hold
/// anything, so that they are counted from its end.
fn stat(directory: &OwnedFd) -> Option<(Pid, u64)> {
    let stat = read_file(directory, c"stat", MAX_PATH_BYTES)?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some((parent, start_time))
}

pub(super) fn read_file(
    directory: impl AsFd,
    name: &std::ffi::CStr,
    limit: usize,
) -> Option<Vec<u8>> {
    let file = openat(
        directory,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut bytes = Vec::with_capacity(limit.min(4096));
    loop {
        let room = limit.saturating_sub(bytes.len());
        if room == 0 {
            return Some(bytes);
        }
        let mut chunk = [0_u8; 4096];
        let chunk = &mut chunk[..room.min(4096)];
        match rustix::io::read(&file, &mut *chunk) {
            Ok(0) => return Some(bytes),
            Ok(read) => bytes.extend_from_slice(chunk.get(..read)?),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}
