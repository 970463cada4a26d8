//! What the kernel says of a process and of the machine.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

/// Proportional set size in bytes: private memory, and a share of what others map too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pss(pub u64);

/// The kernel's USER_HZ, the same on every architecture that Sidewind runs on.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process with all its threads, ended ones included.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(process: u32) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let ticks = parse_stat(&stat)
        .ok_or_else(|| io::Error::other(format!("/proc/{process}/stat reads: {stat}")))?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Fields 14 and 15 of `/proc/PID/stat`, counted after the name, which may hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The proportional set size of a process.
///
/// # Errors
/// When there is no such process, or it may not be looked at.
pub fn pss(process: u32) -> io::Result<Pss> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = std::fs::read_to_string(&path)?;
    parse_kibibytes(&text, "Pss:")
        .map(Pss)
        .ok_or_else(|| io::Error::other(format!("{path} names no Pss")))
}

/// Memory that a process has resident, in bytes. May be asked of every process, which [`pss`] may not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Resident {
    /// At present.
    pub now: u64,
    /// The most since it began.
    pub peak: u64,
}

/// The resident memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn resident(process: u32) -> io::Result<Resident> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path)?;
    let field = |name| {
        parse_kibibytes(&text, name)
            .ok_or_else(|| io::Error::other(format!("{path} names no {name}")))
    };
    Ok(Resident {
        now: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

/// A field of `/proc`, in bytes.
fn parse_kibibytes(text: &str, field: &str) -> Option<u64> {
    let kibibytes: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(field))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()?;
    Some(kibibytes * 1024)
}

/// The facts that figures depend on.
pub fn machine() -> BTreeMap<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    BTreeMap::from([
        ("cpu".to_owned(), model.unwrap_or_default()),
        ("cores".to_owned(), cores.to_string()),
        (
            "kernel".to_owned(),
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        (
            "load average at the end".to_owned(),
            read("/proc/loadavg").trim().to_owned(),
        ),
    ])
}

/// Raises the limit of open files to `wanted` where the system lets this user, and otherwise as far as it does. What it
/// is then is given back; children inherit it.
///
/// # Errors
/// When the system refuses even the present hard limit.
pub fn raise_open_files(wanted: u64) -> io::Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let raise_to = |limit: Option<u64>| {
        let raised = Rlimit {
            current: limit,
            maximum: limit,
        };
        setrlimit(Resource::Nofile, raised).map(|()| limit.unwrap_or(u64::MAX))
    };
    match hard {
        Some(hard) if hard < wanted => raise_to(Some(wanted)).or_else(|_| raise_to(Some(hard))),
        hard => raise_to(hard),
    }
    .map_err(io::Error::from)
}

/// Stops this thread, which is one that keeps a schedule and does nothing else.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing else runs on the thread, and the schedule is what is measured by"
)]
pub fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// The middle one, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_spaces_shifts_no_field() {
        let stat = "42 (a ) (b) S 1 42 42 0 -1 4194560 500 0 0 0 70 30 0 0 20 0 1 0 100";
        assert_eq!(parse_stat(stat), Some(100));
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn pss_is_read_in_bytes() {
        let text = "55e-7ff ---p 00000000 00:00 0  [rollup]\nRss:   9000 kB\nPss:      2048 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(parse_kibibytes(text, "Pss:"), Some(2 * 1024 * 1024));
        assert_eq!(parse_kibibytes("Rss: 1 kB\n", "Pss:"), None);
    }

    #[test]
    fn our_own_figures_can_be_read() {
        let own = std::process::id();
        assert!(pss(own).unwrap().0 > 0);
        let resident = resident(own).unwrap();
        assert!(resident.now > 0 && resident.peak >= resident.now);
        assert!(cpu_time(own).unwrap() < Duration::from_secs(3600));
    }

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0]), Some(2.5));
        assert_eq!(median([]), None);
    }
}
