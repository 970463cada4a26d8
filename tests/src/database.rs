//! A PostgreSQL for control planes: on a Unix socket, so that it is reached from every network namespace.

use std::path::PathBuf;
use std::time::Duration;

use crate::invocation::Invocation;
use crate::place::Place;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::PATIENCE;
use crate::workloads::{postgres_program, user_number};

/// An empty database, running or not.
#[derive(Debug)]
pub struct Database {
    home: PathBuf,
    uid: Option<u32>,
    process: Option<Process>,
}

impl Database {
    /// Makes it and starts it.
    ///
    /// # Panics
    /// When PostgreSQL is not installed, or does not start.
    #[track_caller]
    pub fn start(scratch: &Scratch) -> Self {
        let root = rustix::process::geteuid().is_root();
        let uid = root.then(|| user_number("postgres"));
        let home = scratch.directory("database", uid);
        let mut database = Self {
            home,
            uid,
            process: None,
        };
        let initialise = database.program("initdb").args([
            "--no-sync",
            "--auth=trust",
            "--username=postgres",
            "--pgdata",
        ]);
        initialise
            .arg(database.home.join("data"))
            .timeout(Duration::from_secs(90))
            .finish()
            .success();
        database.start_again(scratch);
        database
    }

    /// Starts it after it was stopped.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn start_again(&mut self, scratch: &Scratch) {
        let server = self
            .program("postgres")
            .arg("-D")
            .arg(self.home.join("data"))
            .arg("-k")
            .arg(&self.home)
            .args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let mut process = server.start("database", scratch);
        process.wait_until("PostgreSQL answers", PATIENCE, || {
            self.try_query("select 1").is_ok()
        });
        self.process = Some(process);
    }

    /// `kill -9`, as when its machine is lost.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// What `--store` takes.
    pub fn url(&self) -> String {
        let home = self.home.display();
        format!("postgres://postgres@localhost/postgres?host={home}")
    }

    /// Rows of a query, one a line.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_query(&self, sql: &str) -> Result<String, String> {
        let asked = self
            .program("psql")
            .arg("-h")
            .arg(&self.home)
            .args(["-U", "postgres", "-Atc", sql])
            .timeout(Duration::from_secs(20))
            .finish();
        match asked.code() {
            Some(0) => Ok(asked.out().trim().to_owned()),
            _ => Err(asked.err()),
        }
    }

    fn program(&self, name: &str) -> Invocation {
        Place::Host.program(postgres_program(name)).user(self.uid)
    }
}
