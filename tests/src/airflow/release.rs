//! Airflow from PyPI, installed once for this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::place::Place;

/// How long PyPI and the making of the database may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// A line of Airflow's releases that is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 3.3: tasks reach the database through the API servers alone.
    Three,
    /// 2.11: tasks use the database themselves.
    Two,
}

impl Release {
    fn name(self) -> &'static str {
        match self {
            Self::Three => "3.3",
            Self::Two => "2.11",
        }
    }
}

/// An Airflow that is there.
#[derive(Clone, Debug)]
pub struct Installed {
    directory: PathBuf,
}

impl Installed {
    /// Installs it where it is missing.
    ///
    /// # Panics
    /// When it cannot be installed.
    #[track_caller]
    pub fn find(release: Release) -> Self {
        let install = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/airflow");
        let mut install = Place::Host.program(install).arg(release.name());
        if let Some(directory) = std::env::var_os("SIDEWIND_CACHE_DIR") {
            install = install.env("SIDEWIND_CACHE_DIR", directory);
        }
        let printed = install.timeout(INSTALL_TIMEOUT).finish().success();
        Self {
            directory: printed.trim().into(),
        }
    }

    /// A program of its virtual environment.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("venv/bin").join(name)
    }

    /// A PostgreSQL cluster with its tables, to be copied.
    pub(super) fn database(&self) -> PathBuf {
        self.directory.join("database")
    }

    /// Where its virtual environment is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
