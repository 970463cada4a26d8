//! What a mesh peer names as its destination: HBONE's `:authority`, and a request's header.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::destination(bytes));
