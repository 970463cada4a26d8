//! The processes of the workload, where the sidecar shares their PID namespace: a job is over when all have ended.

use std::{fs, io, path::Path, process, time::Duration};

/// How often they are looked for.
const INTERVAL: Duration = Duration::from_millis(500);

/// In how many looks in a row there must be none: one process may start the next as it ends.
const LOOKS: u32 = 3;

/// Process 1 of a namespace that containers share is the pause container's, or stands for the whole of it.
const FIRST: u32 = 1;

/// The processes beside this one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours {
    own: u32,
}

/// This process is the first of its PID namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "--end-with-workload needs the workload's PID namespace, and this process has one of its own: set \
     `shareProcessNamespace: true` (Kubernetes) or `\"pidMode\": \"task\"` (ECS), or run the command by `run -- COMMAND`"
)]
pub(crate) struct NotShared;

impl Neighbours {
    /// Of this process.
    ///
    /// # Errors
    /// [`NotShared`], where there can be none.
    pub(crate) fn new() -> Result<Self, NotShared> {
        let own = process::id();
        if own == FIRST {
            return Err(NotShared);
        }
        Ok(Self { own })
    }

    /// Ends when there have been processes beside this one and there are none any more.
    pub(crate) async fn gone(self) {
        self.none_left(Path::new("/proc"), false).await;
    }

    /// The same once all are told to end: whoever has gone before the first look is gone, too.
    pub(crate) async fn ended(self) {
        self.none_left(Path::new("/proc"), true).await;
    }

    async fn none_left(self, proc: &Path, mut seen: bool) {
        let mut none = 0;
        loop {
            match self.look(proc) {
                Ok(true) => (seen, none) = (true, 0),
                Ok(false) => none += 1,
                // What cannot be seen may well be there.
                Err(error) => {
                    tracing::debug!(%error, "the processes beside this one cannot be seen")
                }
            }
            if seen && none >= LOOKS {
                return;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Whether there is one. What has no command line is a thread of the kernel's, or has ended and was not reaped.
    fn look(self, proc: &Path) -> io::Result<bool> {
        for entry in fs::read_dir(proc)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            if number.is_none_or(|number: u32| number == self.own || number == FIRST) {
                continue;
            }
            let line = fs::read(entry.path().join("cmdline"));
            if line.is_ok_and(|line| !line.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_a_living_process_that_is_neither_this_one_nor_the_first() {
        let proc = tempfile::tempdir().unwrap();
        let put = |number: &str, line: &str| {
            let directory = proc.path().join(number);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("cmdline"), line).unwrap();
        };
        let neighbours = Neighbours { own: 7 };
        for (number, line, expected) in [
            ("1", "/pause\0", false),
            ("7", "sidewind-proxy\0run\0", false),
            ("sys", "", false),
            ("8", "", false),
            ("9", "python\0task.py\0", true),
        ] {
            put(number, line);
            assert_eq!(neighbours.look(proc.path()).unwrap(), expected, "{number}");
        }
        assert!(neighbours.look(&proc.path().join("none")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_never_seen_is_waited_for_until_all_are_told_to_end() {
        let proc = tempfile::tempdir().unwrap();
        let neighbours = Neighbours { own: 7 };
        let minute = Duration::from_secs(60);
        let not_begun = neighbours.none_left(proc.path(), false);
        assert!(tokio::time::timeout(minute, not_begun).await.is_err());
        let told = neighbours.none_left(proc.path(), true);
        tokio::time::timeout(minute, told).await.unwrap();
    }
}
