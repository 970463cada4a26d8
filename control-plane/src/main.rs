//! The `sidewind` program: server and command line of the control plane.

use std::process::ExitCode;

fn main() -> ExitCode {
    sidewind_control_plane::cli::main()
}
