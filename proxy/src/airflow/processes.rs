//! The processes beside the proxy, and which of them holds a socket.
//!
//! A look-up reads few of them: those that are new or have opened files since they were last read come first, then those
//! that had connections lately, and last those that have very many files, so that they delay nobody but themselves. What
//! it has read is good for all who had asked by then, so that of many tasks that begin at once one pays for the others.
//! Whoever is found is not yet the owner: sockets are inherited by fork, so the shallowest of its ancestors that holds
//! the socket too is.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::{
    fs::{Mode, OFlags, RawDir, SeekFrom, open, seek},
    time::{ClockId, clock_gettime},
};
use tokio::time::Instant;

use super::{
    attempt_log::AttemptLogs,
    process::{self, Buffers, Pid, Process, ProcessKey, Read},
    roots::{MAX_CONTROL_GROUPS, Roots},
    title::Title,
};
use crate::telemetry::TaskContext;

/// Most processes that are followed, each with two open directories.
const MAX_PROCESSES: usize = 4096;

/// Generations above a process that are looked at. Whose a process is that has more is not known.
const MAX_DEPTH: usize = 32;

/// Files between two looks at the clock.
const FILES_PER_LOOK: u32 = 256;

/// Open files from which on a process is looked at after all others.
const MANY_FILES: u32 = 1024;

/// The processor time that this thread has had.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // It is never negative.
    Duration::try_from(time).unwrap_or_default()
}

/// Why no owner was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotFound {
    /// Nobody holds the socket whose files the proxy may read.
    Nobody,
    /// The same, and there are processes whose files it may not read.
    Denied,
    /// It would have taken too long.
    TimedOut,
    /// More processes stand above its owner than are looked at.
    TooDeep,
}

/// A process on the way from the owner of a socket to the first process.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) pid: Pid,
    pub(super) title: Title,
    /// The attempt logs that it has open; of more than two, two.
    pub(super) logs: Vec<TaskContext>,
    holds_socket: bool,
}

/// The way from the owner of a socket up to the first process.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) holders: Vec<Holder>,
    /// Those of them of which it is sure that each is a child of the next, now that all of them were read.
    pub(super) lineage: Vec<ProcessKey>,
    /// The worker beside them, if there is one.
    pub(super) roots: Option<Roots>,
}

/// How long a search may go on.
#[derive(Debug)]
struct Bound {
    until: Duration,
    /// Files that were looked at.
    files: u32,
}

impl Bound {
    /// Counts a file, and says whether time is left.
    fn goes_on(&mut self) -> bool {
        self.files = self.files.wrapping_add(1);
        !self.files.is_multiple_of(FILES_PER_LOOK) || processor_time() <= self.until
    }
}

/// What was seen of a process's open files.
#[derive(Debug, Default)]
struct Seen {
    /// In which round.
    round: u64,
    logs: Vec<TaskContext>,
    /// Inodes.
    sockets: Vec<u32>,
}

#[derive(Debug)]
struct Known {
    process: Process,
    seen: Seen,
    /// Grows: the search that last found it to be an owner, or 0.
    last_found: u64,
    /// It is in the proxy's network namespace, so that it may hold its sockets.
    near: bool,
    is_new: bool,
    /// It had very many files when it was last looked at.
    is_crowded: bool,
    /// Its mount namespace.
    mounts: Option<Vec<u8>>,
}

impl Seen {
    fn in_round(&self, round: u64) -> Option<&Self> {
        (self.round == round).then_some(self)
    }

    fn holder(&self, pid: Pid, inode: u32) -> Holder {
        Holder {
            pid,
            title: Title::Other,
            logs: self.logs.clone(),
            holds_socket: self.sockets.contains(&inode),
        }
    }
}

#[derive(Debug)]
pub(super) struct Processes {
    proc: OwnedFd,
    own_pid: Pid,
    own_network: Vec<u8>,
    known: HashMap<Pid, Known>,
    roots: HashMap<Vec<u8>, Roots>,
    /// What tells the processes of one container from those of others.
    container: fn(&Process) -> Option<Vec<u8>>,
    /// Where the folder of attempt logs really is, by mount namespace.
    folders: HashMap<Vec<u8>, Arc<[u8]>>,
    last_created: Option<Vec<u8>>,
    searches: u64,
    /// Grows: what was seen in this round is not read again.
    round: u64,
    /// Whoever asked before has his socket open since before anything was read in this round.
    round_began: Instant,
    /// Files that were looked at by all of them.
    #[cfg(test)]
    pub(super) files: u64,
    /// How much processor time one search may take; beyond it the connection stays unattributed. Of the time on the wall a busy
    /// machine takes some away, for which nobody is to lose a name.
    search_time: Duration,
    buffers: Buffers,
    logs: AttemptLogs,
}

impl Processes {
    pub(super) fn new(logs: AttemptLogs, search_time: Duration) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = open("/proc", flags, Mode::empty())?;
        let mut path = [0; 256];
        let own_network = process::link(&proc, c"self/ns/net", &mut path)
            .unwrap_or_default()
            .to_vec();
        // Processes are looked at by the thread that searches, which may see more than this one.
        Ok(Self {
            proc,
            own_pid: std::process::id(),
            own_network,
            known: HashMap::new(),
            roots: HashMap::new(),
            container: Process::control_group,
            folders: HashMap::new(),
            last_created: None,
            searches: 0,
            round: 1,
            round_began: Instant::now(),
            #[cfg(test)]
            files: 0,
            search_time,
            buffers: Buffers::default(),
            logs,
        })
    }

    /// The same, where processes of one container are told by something else.
    #[cfg(test)]
    pub(super) fn contained_by(mut self, container: fn(&Process) -> Option<Vec<u8>>) -> Self {
        self.container = container;
        self
    }

    pub(super) fn process(&self, pid: Pid) -> Option<&Process> {
        self.known.get(&pid).map(|known| &known.process)
    }

    /// The owner of a socket that was open at the time `asked`, and its ancestors.
    pub(super) fn owner(&mut self, inode: u32, asked: Instant) -> Result<Chain, NotFound> {
        self.searches += 1;
        let mut bound = self.bound();
        if asked > self.round_began {
            self.begin_round();
            self.refresh();
        } else if let Some(pid) = self.seen_with(inode)
            && let Some((_, Some(holder))) = self.look(pid, inode, &mut bound, None)
            && holder.holds_socket
        {
            return self.ascend(holder, inode, &mut bound);
        }
        let mut denied = false;
        let (mut order, mut crowded) = self.order();
        // A process may have been forked while the others were read.
        for round in 0..2 {
            for pid in order {
                match self.look(pid, inode, &mut bound, Some(MANY_FILES)) {
                    Some((Read::Cut, _)) if processor_time() > bound.until => {
                        return Err(NotFound::TimedOut);
                    }
                    Some((Read::Cut, _)) => crowded.push(pid),
                    Some((_, Some(holder))) if holder.holds_socket => {
                        return self.ascend(holder, inode, &mut bound);
                    }
                    Some((Read::Denied, _)) => denied = true,
                    _ => {}
                }
            }
            if round > 0 || !self.refresh() {
                break;
            }
            order = self.newcomers();
        }
        for pid in crowded {
            match self.look(pid, inode, &mut bound, None) {
                Some((Read::Cut, _)) => return Err(NotFound::TimedOut),
                Some((_, Some(holder))) if holder.holds_socket => {
                    return self.ascend(holder, inode, &mut bound);
                }
                Some((Read::Denied, _)) => denied = true,
                _ => {}
            }
        }
        Err(if denied {
            NotFound::Denied
        } else {
            NotFound::Nobody
        })
    }

    /// From now on what was seen is read again.
    fn begin_round(&mut self) {
        self.round += 1;
        self.round_began = Instant::now();
    }

    /// A process that was seen in this round with the socket open.
    fn seen_with(&self, inode: u32) -> Option<Pid> {
        let has_it = |known: &Known| {
            let seen = known.seen.in_round(self.round);
            seen.is_some_and(|seen| seen.sockets.contains(&inode))
        };
        let mut known = self.known.iter();
        known.find_map(|(pid, known)| has_it(known).then_some(*pid))
    }

    fn bound(&self) -> Bound {
        Bound {
            until: processor_time() + self.search_time,
            files: 0,
        }
    }

    /// The processes of `chain` from its owner upwards, as far as each still is the child of the next. A process whose
    /// parent ends becomes another's child at once: whoever is its parent now was so while it was read, and nobody else
    /// had its number.
    fn lineage(&self, chain: &[Holder]) -> Vec<ProcessKey> {
        let mut lineage = Vec::with_capacity(chain.len());
        let parents = chain.iter().skip(1).map(|holder| Some(holder.pid));
        for (holder, next) in chain.iter().zip(parents.chain([None])) {
            let Some(process) = self.process(holder.pid) else {
                break;
            };
            let Some(parent) = process.parent() else {
                break;
            };
            lineage.push(process.key());
            if next != Some(parent) {
                break;
            }
        }
        lineage
    }

    /// The task whose attempt log `supervisor` has open, and the process with the number `runner` that it has started
    /// for it; none unless there is one such log, and that process is its child while the log is open.
    pub(super) fn started(
        &mut self,
        supervisor: ProcessKey,
        runner: Pid,
    ) -> Option<(ProcessKey, TaskContext)> {
        let mut bound = self.bound();
        let runner = self.child(supervisor, runner)?;
        // Which log is open now.
        self.begin_round();
        let read = self.look(supervisor.pid, 0, &mut bound, None)?;
        let (Read::Whole, Some(holder)) = read else {
            return None;
        };
        let [task] = holder.logs.as_slice() else {
            return None;
        };
        let is_same = self.child(supervisor, runner.pid) == Some(runner);
        is_same.then(|| (runner, task.clone()))
    }

    /// The process with the number `child`, if it is a child of `parent`.
    pub(super) fn child(&mut self, parent: ProcessKey, child: Pid) -> Option<ProcessKey> {
        self.refresh();
        let is_child = |process: &&Process| process.parent() == Some(parent.pid);
        let child = self.living(child).filter(is_child)?.key();
        self.living(parent.pid).filter(|it| it.key() == parent)?;
        Some(child)
    }

    /// The process that has a number now.
    fn living(&mut self, pid: Pid) -> Option<&Process> {
        let known = self.process(pid);
        if known.is_some_and(|process| process.parent().is_none()) {
            self.known.remove(&pid);
        }
        self.know(pid).then(|| self.process(pid))?
    }

    /// Reads one process's open files.
    fn look(
        &mut self,
        pid: Pid,
        inode: u32,
        bound: &mut Bound,
        most_files: Option<u32>,
    ) -> Option<(Read, Option<Holder>)> {
        let folder = self.log_folder(pid)?;
        let known = self.known.get_mut(&pid)?;
        known.is_new = false;
        if let Some(seen) = known.seen.in_round(self.round)
            && known.process.parent().is_some()
        {
            return Some((Read::Whole, Some(seen.holder(pid, inode))));
        }
        let seen = &mut known.seen;
        *seen = Seen {
            sockets: std::mem::take(&mut seen.sockets),
            ..Seen::default()
        };
        seen.sockets.clear();
        let mut holds_socket = false;
        let mut files = 0_u32;
        let logs = &self.logs;
        let read = known.process.each_file(&mut self.buffers, |link| {
            if let Some(socket) = process::socket(link) {
                holds_socket |= socket == inode;
                if files < MANY_FILES {
                    seen.sockets.push(socket);
                }
            } else if seen.logs.len() < 2
                && let Some(task) = logs.task(&folder, link)
                && !seen.logs.contains(&task)
            {
                seen.logs.push(task);
            }
            files += 1;
            bound.goes_on() && most_files.is_none_or(|most| files < most)
        });
        known.is_crowded = files >= MANY_FILES;
        #[cfg(test)]
        {
            self.files += u64::from(files);
        }
        if read == Read::Gone {
            self.known.remove(&pid);
            // Its number may be another's by now.
            self.last_created = None;
            return Some((read, None));
        }
        if read == Read::Whole && !known.is_crowded {
            seen.round = self.round;
        }
        let holder = Holder {
            holds_socket,
            ..seen.holder(pid, inode)
        };
        Some((read, Some(holder)))
    }

    /// From a process that holds the socket up to the first process, and from there the shallowest that holds it.
    fn ascend(&mut self, found: Holder, inode: u32, bound: &mut Bound) -> Result<Chain, NotFound> {
        let mut holders = vec![found];
        while let Some(last) = holders.last() {
            let Some(parent) = self.process(last.pid).and_then(Process::parent) else {
                break;
            };
            if parent == 0 || !self.know(parent) {
                break;
            }
            if holders.len() >= MAX_DEPTH {
                return Err(NotFound::TooDeep);
            }
            match self.look(parent, inode, bound, None) {
                Some((Read::Cut, _)) => return Err(NotFound::TimedOut),
                Some((_, Some(holder))) => holders.push(holder),
                _ => break,
            }
        }
        let owner = holders.iter().rposition(|holder| holder.holds_socket);
        holders.drain(..owner.unwrap_or(0));
        for holder in &mut holders {
            if let Some(process) = self.known.get(&holder.pid) {
                holder.title = process.process.title();
            }
        }
        let owner = holders.first().map(|owner| owner.pid);
        if let Some(known) = owner.and_then(|owner| self.known.get_mut(&owner)) {
            known.last_found = self.searches;
        }
        Ok(Chain {
            lineage: self.lineage(&holders),
            roots: owner.and_then(|owner| self.roots_beside(owner)),
            holders,
        })
    }

    /// Processes that may hold a new socket, the likeliest first, and those of them that have very many files.
    fn order(&self) -> (Vec<Pid>, Vec<Pid>) {
        let mut order: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.near)
            .map(|(pid, known)| {
                let files = known.process.count_files();
                let is_crowded = match files {
                    Some(files) => files > u64::from(MANY_FILES),
                    None => known.is_crowded,
                };
                let unchanged = !known.is_new && !known.process.may_have_opened_files(files);
                let last = u64::MAX - known.last_found;
                let age = u64::MAX - known.process.start_time;
                (is_crowded, unchanged, last, age, *pid)
            })
            .collect();
        order.sort_unstable();
        let few = order.partition_point(|(is_crowded, ..)| !is_crowded);
        let crowded = order.split_off(few);
        let order = order.into_iter().map(|(.., pid)| pid).collect();
        (order, crowded.into_iter().map(|(.., pid)| pid).collect())
    }

    fn newcomers(&self) -> Vec<Pid> {
        let new = self
            .known
            .iter()
            .filter(|(_, known)| known.is_new && known.near);
        new.map(|(pid, _)| *pid).collect()
    }

    /// Gets to know processes that were created since the last time, and forgets those that have ended. False when
    /// there was nothing new.
    fn refresh(&mut self) -> bool {
        // The last field is the number that was last given to a process.
        let load = process::read_file(&self.proc, c"loadavg", 256);
        let created =
            load.and_then(|load| load.rsplit(|byte| *byte == b' ').next().map(<[u8]>::to_vec));
        if created.is_some() && created == self.last_created {
            return false;
        }
        self.last_created = created;
        let pids = self.list();
        self.known.retain(|pid, _| pids.binary_search(pid).is_ok());
        for pid in pids {
            self.know(pid);
        }
        true
    }

    /// Every process id there is, sorted.
    fn list(&mut self) -> Vec<Pid> {
        let mut pids = Vec::with_capacity(self.known.len() + 64);
        if seek(&self.proc, SeekFrom::Start(0)).is_err() {
            return pids;
        }
        let mut entries = RawDir::new(&self.proc, self.buffers.entries());
        while let Some(Ok(entry)) = entries.next() {
            let name = std::str::from_utf8(entry.file_name().to_bytes());
            if let Ok(name) = name
                && let Ok(pid) = name.parse()
            {
                pids.push(pid);
            }
        }
        pids.sort_unstable();
        pids
    }

    /// Gets to know a process; false if there is none, or no room.
    fn know(&mut self, pid: Pid) -> bool {
        if self.known.contains_key(&pid) {
            return true;
        }
        if pid == self.own_pid || self.known.len() >= MAX_PROCESSES {
            return false;
        }
        let Some(process) = Process::open(pid) else {
            return false;
        };
        let near = process.shares_network(&self.own_network, &mut self.buffers);
        let mounts = process.mounts(&mut self.buffers);
        let known = Known {
            process,
            seen: Seen::default(),
            mounts,
            last_found: 0,
            near,
            is_new: true,
            is_crowded: false,
        };
        self.known.insert(pid, known);
        true
    }

    /// Where a process sees the folder of attempt logs.
    fn log_folder(&mut self, pid: Pid) -> Option<Arc<[u8]>> {
        let known = self.known.get(&pid)?;
        let mounts = known.mounts.as_ref();
        if let Some(folder) = mounts.and_then(|it| self.folders.get(it)) {
            return Some(Arc::clone(folder));
        }
        let configured = self.logs.folder();
        let Some(folder) = known.process.resolve(configured, &mut self.buffers) else {
            // It may not be there yet.
            return Some(configured.as_os_str().as_encoded_bytes().into());
        };
        let folder: Arc<[u8]> = folder.into();
        if let Some(mounts) = mounts
            && self.folders.len() < MAX_CONTROL_GROUPS
        {
            self.folders.insert(mounts.clone(), Arc::clone(&folder));
        }
        Some(folder)
    }

    /// The worker of a process's container.
    fn roots_beside(&mut self, pid: Pid) -> Option<Roots> {
        let container = self.container;
        let group = container(self.process(pid)?)?;
        let before = self.roots.get(&group).copied();
        let lives = |key: ProcessKey| {
            let process = self.process(key.pid);
            process.is_some_and(|it| it.key() == key && it.parent().is_some())
        };
        if let Some(before) = before.filter(|roots| lives(roots.now.key)) {
            return Some(before);
        }
        let near = self.known.values().filter(|known| known.near);
        let workers = near.filter_map(|known| {
            let title = known.process.title();
            // Few have such a title, and each file that is read takes its time.
            let is_beside = || container(&known.process).as_ref() == Some(&group);
            (title.is_a_workers() && is_beside()).then_some((&known.process, title))
        });
        let now = Roots::elect(workers.collect(), |pid| self.process(pid), MAX_DEPTH);
        let roots = match (before, now) {
            (None, now) => Roots::new(now?),
            (Some(before), None) => return Some(before),
            (Some(before), Some(now)) => before.followed_by(now),
        };
        if before.is_some() || self.roots.len() < MAX_CONTROL_GROUPS {
            self.roots.insert(group, roots);
        }
        Some(roots)
    }
}

#[cfg(test)]
mod tests;
