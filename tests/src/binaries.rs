//! Where the programs under test are.

use std::path::{Path, PathBuf};

use crate::scratch::{Scratch, everyone_may_enter};

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The control plane and command line.
    pub sidewind: PathBuf,
    /// The data plane.
    pub proxy: PathBuf,
}

impl Binaries {
    /// Finds them in `SIDEWIND_BIN_DIR`, or in the target directory that this program was built into.
    ///
    /// Where other users may not enter that directory, they are copied to `scratch`, since sidecars run as a user of
    /// their own.
    ///
    /// # Panics
    /// When they are not there, with what to do.
    pub fn find(scratch: &Scratch) -> Self {
        let directory = directory();
        let find = |name: &str| {
            let path = directory.join(name);
            assert!(
                path.is_file(),
                "{} is missing: run `cargo build --workspace` first, or name another directory in SIDEWIND_BIN_DIR",
                path.display()
            );
            reachable(&path, scratch)
        };
        Self {
            sidewind: find("sidewind"),
            proxy: find("sidewind-proxy"),
        }
    }
}

/// A program that other users may run too: itself, or a copy in `scratch`.
///
/// # Panics
/// When it cannot be copied.
pub fn reachable(program: &Path, scratch: &Scratch) -> PathBuf {
    if program.parent().is_some_and(everyone_may_enter) {
        return program.into();
    }
    let copy = scratch.join(program.file_name().unwrap_or_default());
    std::fs::copy(program, &copy)
        .unwrap_or_else(|error| panic!("cannot copy {program:?}: {error}"));
    copy
}

/// Whether a program is found in `PATH`.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// The directory that holds them.
pub fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("SIDEWIND_BIN_DIR") {
        return directory.into();
    }
    let own = std::env::current_exe().expect("the path of this program");
    let directory = own.parent().unwrap_or(Path::new("/"));
    // Test programs lie in target/<profile>/deps, others in target/<profile>.
    match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().unwrap_or(directory).into(),
        _ => directory.into(),
    }
}
