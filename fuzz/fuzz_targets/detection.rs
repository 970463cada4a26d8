//! The first bytes of a client, and TLS ClientHellos among them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::detection(bytes));
