//! What the operating system says about the process, under the names that every Prometheus client
//! library uses, and what was built.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{Computed, ComputedCounter};

/// Ticks per second of `/proc/self/stat`: the kernel's USER_HZ, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Registers the families of this file.
pub(super) fn register(registry: &mut Registry) {
    registry.register(
        "sidewind_build_info",
        "1, with what was built as labels",
        BuildInfo,
    );
    registry.register(
        "process_cpu_seconds",
        "User and system CPU time of the process",
        ComputedCounter(|| cpu_seconds(&fs::read_to_string("/proc/self/stat").ok()?)),
    );
    registry.register(
        "process_resident_memory_bytes",
        "Resident memory of the process",
        Computed(|| resident_bytes(&fs::read_to_string("/proc/self/status").ok()?)),
    );
    registry.register(
        "process_open_fds",
        "Open file descriptors",
        Computed(open_fds),
    );
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |t| t.as_secs_f64());
    registry.register(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970",
        Computed(move || Some(started)),
    );
}

/// Fields 14 and 15 of proc_pid_stat(5). The second field, the program's name, may hold blanks and
/// brackets, so counting begins behind the last bracket.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// The line `VmRSS:` of proc_pid_status(5), which is in units of 1,024 bytes.
fn resident_bytes(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some((kibibytes * 1024) as f64)
}

fn open_fds() -> Option<f64> {
    // One of them is the directory that is being read.
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(entries.saturating_sub(1) as f64)
}

#[derive(Debug)]
struct BuildInfo;

#[derive(Debug, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    profile: &'static str,
}

impl EncodeMetric for BuildInfo {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        let labels = BuildLabels {
            version: env!("CARGO_PKG_VERSION"),
            profile,
        };
        encoder.encode_family(&labels)?.encode_gauge(&1_u64)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_blanks_and_brackets() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 5 6 20 0 1 0 100 1 1";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_open_files() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t   8 kB\n"), Some(8192.0));
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(resident_bytes(&status).unwrap() > 100_000.0);
        assert!(open_fds().unwrap() >= 3.0);
    }
}
