//! The header fields of a response, and what becomes of them on the way through.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::response(bytes));
