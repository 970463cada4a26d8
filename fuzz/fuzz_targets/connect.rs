//! The head of a mesh peer's CONNECT.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::connect(bytes));
