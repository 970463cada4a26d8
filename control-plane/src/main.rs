//! The `sidewind` program: server and command line of the control plane.

use std::process::ExitCode;

/// Returns memory to the system when proxies have gone; the C library's allocator keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sidewind_control_plane::cli::main()
}
