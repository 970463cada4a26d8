//! The header fields of a request, and what becomes of them on the way through.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::headers(bytes));
