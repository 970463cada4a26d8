//! A client's bytes in HTTP/1, on their way to hyper.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::heads(bytes));
