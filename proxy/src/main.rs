//! The program `sidewind-proxy`; everything is in the library, so that `benches/` reach it too.

use std::process::ExitCode;

/// Returns memory to the system when connections have gone; the C library's allocator keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sidewind_proxy::main()
}
