//! Finding the Airflow task behind a connection.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use crate::airflow::{AttemptLogs, DEFAULT_TEMPLATE, Finder, Owner, SocketPair};

/// What looks among the processes beside the proxy.
#[derive(Debug)]
pub struct TaskSearch(Finder);

impl TaskSearch {
    /// Looks for attempt logs below `folder`.
    ///
    /// # Errors
    /// Where `/proc` or the kernel's socket diagnosis cannot be opened.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let logs = AttemptLogs::new(folder, DEFAULT_TEMPLATE)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Self(Finder::new(logs, Duration::from_millis(50))?))
    }

    /// The DAG whose task has the socket with these ends.
    ///
    /// # Errors
    /// What was found instead, or why nothing was.
    pub fn dag_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<String, String> {
        match self
            .0
            .search(SocketPair { local, remote }, tokio::time::Instant::now())
        {
            Ok(found) => match found.answer {
                Ok(Owner::Task(found)) => Ok(found.task.dag_id),
                other => Err(format!("{other:?}")),
            },
            Err(unknown) => Err(format!("{unknown:?}")),
        }
    }
}
