//! What a server says in HTTP/1 before its response.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::interim(bytes));
