use std::sync::{Barrier, Mutex};

use super::*;

const LONG: Duration = Duration::from_secs(10);

/// A destination that does what the test says, one step for each write, then takes everything.
struct Scripted {
    steps: Vec<Step>,
    written: Arc<Mutex<Vec<u8>>>,
    reopened: Arc<AtomicBool>,
}

enum Step {
    Take(usize),
    Fail(io::ErrorKind),
    Wait(Arc<Barrier>),
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let step = if self.steps.is_empty() {
            None
        } else {
            Some(self.steps.remove(0))
        };
        let count = match step {
            Some(Step::Fail(kind)) => return Err(kind.into()),
            Some(Step::Take(count)) => count.min(bytes.len()),
            Some(Step::Wait(barrier)) => {
                barrier.wait();
                barrier.wait();
                bytes.len()
            }
            None => bytes.len(),
        };
        self.written
            .lock()
            .unwrap()
            .extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Reopen for Scripted {
    fn reopen(&mut self) -> io::Result<()> {
        self.reopened.store(true, Relaxed);
        Ok(())
    }
}

struct Log {
    log: AccessLog,
    dropped: Arc<Counter>,
    written: Arc<Mutex<Vec<u8>>>,
    reopened: Arc<AtomicBool>,
}

fn scripted(steps: Vec<Step>) -> Log {
    let (written, reopened) = (
        Arc::<Mutex<Vec<u8>>>::default(),
        Arc::<AtomicBool>::default(),
    );
    let output = Scripted {
        steps,
        written: Arc::clone(&written),
        reopened: Arc::clone(&reopened),
    };
    let dropped = Arc::<Counter>::default();
    let log = AccessLog::with_output(output, false, Arc::clone(&dropped)).unwrap();
    Log {
        log,
        dropped,
        written,
        reopened,
    }
}

impl Log {
    fn written(&self) -> String {
        self.log.shutdown(LONG);
        String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn short_and_interrupted_writes_lose_nothing() {
    let log = scripted(vec![
        Step::Take(1),
        Step::Fail(io::ErrorKind::Interrupted),
        Step::Fail(io::ErrorKind::WouldBlock),
        Step::Take(2),
    ]);
    log.log.write(b"one\ntwo\n".to_vec(), 2);
    assert_eq!(log.written(), "one\ntwo\n");
    assert_eq!(log.dropped.get(), 0);
}

#[test]
fn a_failed_write_is_counted_and_the_next_line_begins_on_a_line_of_its_own() {
    let log = scripted(vec![Step::Take(2), Step::Fail(io::ErrorKind::StorageFull)]);
    log.log.write(b"one\ntwo\n".to_vec(), 2);
    log.log.write(b"three\n".to_vec(), 1);
    assert_eq!(log.written(), "on\nthree\n");
    assert_eq!(log.dropped.get(), 2);
    assert!(
        log.reopened.load(Relaxed),
        "a file that failed is opened anew"
    );
}

#[test]
fn lines_are_dropped_and_counted_while_the_destination_is_stuck() {
    let barrier = Arc::new(Barrier::new(2));
    let log = scripted(vec![Step::Wait(Arc::clone(&barrier))]);
    log.log.write(b"stuck\n".to_vec(), 1);
    barrier.wait();
    for _ in 0..QUEUE_BATCHES + 10 {
        log.log.write(b"a\nb\n".to_vec(), 2);
    }
    assert_eq!(log.dropped.get(), 20);
    log.log.shutdown(Duration::from_millis(1));
    barrier.wait();
    assert_eq!(log.written().lines().count(), 1 + 2 * QUEUE_BATCHES);
}

#[test]
fn a_stuck_destination_does_not_keep_the_process_from_ending() {
    let barrier = Arc::new(Barrier::new(2));
    let log = scripted(vec![Step::Wait(Arc::clone(&barrier))]);
    log.log.write(b"stuck\n".to_vec(), 1);
    barrier.wait();
    // Would hang for ever if it waited for the writer.
    log.log.shutdown(Duration::from_millis(1));
    barrier.wait();
}

#[test]
fn a_file_that_was_moved_away_is_opened_anew_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let metrics = Metrics::new();
    let log = AccessLog::start(Destination::File(path.clone()), false, &metrics).unwrap();
    log.write(b"one\n".to_vec(), 1);
    log.shutdown(LONG);
    let moved = directory.path().join("access.log.1");
    std::fs::rename(&path, &moved).unwrap();
    log.write(b"two\n".to_vec(), 1);
    log.shutdown(LONG);
    log.reopen();
    log.write(b"three\n".to_vec(), 1);
    log.shutdown(LONG);
    assert_eq!(std::fs::read_to_string(moved).unwrap(), "one\ntwo\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    let again = AccessLog::start(Destination::File(path.clone()), false, &metrics).unwrap();
    again.write(b"four\n".to_vec(), 1);
    again.shutdown(LONG);
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "three\nfour\n",
        "a file is appended to"
    );
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let path = PathBuf::from("/nowhere/access.log");
    let error = AccessLog::start(Destination::File(path), false, &Metrics::new()).unwrap_err();
    let said = crate::errors::Chain(&error).to_string();
    assert!(
        said.starts_with("the access log /nowhere/access.log cannot be opened: "),
        "{said}"
    );
}
