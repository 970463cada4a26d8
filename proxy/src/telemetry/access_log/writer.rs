//! The thread that writes the access log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::telemetry::logs::Throttle;
use crate::telemetry::metrics::{Counter, Metrics};

/// Batches that may wait for the writer: at 64 KiB or a little more each, about 1 MiB.
const QUEUE_BATCHES: usize = 16;

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Standard output.
    Stdout,
    /// Nowhere.
    Off,
    /// A file that is appended to.
    File(PathBuf),
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("the access log {destination} cannot be opened")]
pub(crate) struct AccessLogError {
    destination: String,
    source: io::Error,
}

/// The process's access log. Clones write to the same.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    sender: Option<SyncSender<Message>>,
    reopen: Arc<AtomicBool>,
    dropped: Arc<Counter>,
    with_query: bool,
}

#[derive(Debug)]
enum Message {
    Batch {
        bytes: Vec<u8>,
        lines: u64,
    },
    /// Looks at the reopen flag.
    Wake,
    /// Answers when everything before it is written.
    Stop(SyncSender<()>),
}

impl AccessLog {
    /// Opens the destination and starts the writer. `with_query` logs the queries of paths, which
    /// may hold secrets.
    ///
    /// # Errors
    /// Where the file cannot be opened or the thread not started.
    pub(crate) fn start(
        destination: Destination,
        with_query: bool,
        metrics: &Metrics,
    ) -> Result<Self, AccessLogError> {
        let name = match &destination {
            Destination::File(path) => path.display().to_string(),
            Destination::Stdout | Destination::Off => "standard output".to_owned(),
        };
        let dropped = Arc::clone(&metrics.dropped_log_lines);
        Self::try_start(destination, with_query, dropped).map_err(|source| AccessLogError {
            destination: name,
            source,
        })
    }

    fn try_start(
        destination: Destination,
        with_query: bool,
        dropped: Arc<Counter>,
    ) -> io::Result<Self> {
        let (file, path) = match destination {
            Destination::Off => {
                let reopen = Arc::default();
                return Ok(Self {
                    sender: None,
                    reopen,
                    dropped,
                    with_query,
                });
            }
            // A descriptor of its own, without the line buffer of `std::io::stdout`.
            Destination::Stdout => (File::from(io::stdout().as_fd().try_clone_to_owned()?), None),
            Destination::File(path) => (open(&path)?, Some(path)),
        };
        Self::with_output(Output { file, path }, with_query, dropped)
    }

    fn with_output<W: Reopen>(
        output: W,
        with_query: bool,
        dropped: Arc<Counter>,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE_BATCHES);
        let reopen = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            output,
            reopen: Arc::clone(&reopen),
            dropped: Arc::clone(&dropped),
            in_a_line: false,
        };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run(&receiver))?;
        Ok(Self {
            sender: Some(sender),
            reopen,
            dropped,
            with_query,
        })
    }

    /// Whether lines go nowhere.
    pub(super) fn is_off(&self) -> bool {
        self.sender.is_none()
    }

    /// Whether queries are logged.
    pub(super) fn with_query(&self) -> bool {
        self.with_query
    }

    /// Hands lines to the writer; drops and counts them where it is too far behind.
    pub(super) fn write(&self, bytes: Vec<u8>, lines: u64) {
        let Some(sender) = &self.sender else { return };
        if sender.try_send(Message::Batch { bytes, lines }).is_err() {
            self.dropped.add(lines);
        }
    }

    /// Opens the file anew before the next line, for a rotation that has moved it away (SIGHUP).
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Relaxed);
        if let Some(sender) = &self.sender {
            // Where the queue is full the next batch does as well.
            let _ = sender.try_send(Message::Wake);
        }
    }

    /// Waits until everything that was handed over is written, for at most `timeout`: a reader of
    /// standard output that has stopped reading must not keep the process from ending.
    ///
    /// Workers hand over the rest of their lines when their `Telemetry` is dropped, so this comes
    /// after. Blocks the thread.
    #[expect(
        clippy::disallowed_methods,
        reason = "the process is ending and blocks on purpose"
    )]
    pub(crate) fn shutdown(&self, timeout: Duration) {
        let Some(sender) = &self.sender else { return };
        let (done, written) = sync_channel(1);
        // A full queue is emptied by a writer that works; one that does not is given up on.
        let deadline = std::time::Instant::now() + timeout;
        let mut message = Message::Stop(done);
        while let Err(error) = sender.try_send(message) {
            use std::sync::mpsc::TrySendError::{Disconnected, Full};
            match error {
                Full(unsent) if std::time::Instant::now() < deadline => message = unsent,
                Full(_) | Disconnected(_) => return,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let _ = written.recv_timeout(left);
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

/// A destination that may be opened anew.
trait Reopen: Write + Send + 'static {
    fn reopen(&mut self) -> io::Result<()>;
}

struct Output {
    file: File,
    /// None for standard output, which cannot be opened anew.
    path: Option<PathBuf>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Reopen for Output {
    fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = open(path)?;
        }
        Ok(())
    }
}

struct Writer<W> {
    output: W,
    reopen: Arc<AtomicBool>,
    dropped: Arc<Counter>,
    /// A failed write left a part of a line behind.
    in_a_line: bool,
}

impl<W: Reopen> Writer<W> {
    fn run(mut self, receiver: &Receiver<Message>) {
        for message in receiver {
            if self.reopen.swap(false, Relaxed) {
                self.try_reopen();
            }
            match message {
                Message::Batch { bytes, lines } => self.write(&bytes, lines),
                Message::Wake => {}
                Message::Stop(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, bytes: &[u8], lines: u64) {
        static FAILED: Throttle = Throttle::new();
        let result = match self.in_a_line {
            true => self.write_all(b"\n").and_then(|()| self.write_all(bytes)),
            false => self.write_all(bytes),
        };
        if let Err(error) = result {
            self.dropped.add(lines);
            if let Some(unsaid) = FAILED.admit() {
                tracing::warn!(%error, lines, unsaid, "the access log could not be written");
            }
            // The disk may have been full, or the file's file system taken away.
            self.try_reopen();
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the writer has a thread of its own"
    )]
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.output.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (done, rest) = bytes.split_at(written.min(bytes.len()));
                    self.in_a_line = !done.ends_with(b"\n");
                    bytes = rest;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares a terminal or pipe with the proxy may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn try_reopen(&mut self) {
        static FAILED: Throttle = Throttle::new();
        match self.output.reopen() {
            Ok(()) => {}
            Err(error) => {
                if let Some(unsaid) = FAILED.admit() {
                    tracing::warn!(%error, unsaid, "the access log could not be opened anew");
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
