//! The server name in a TLS ClientHello.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sidewind_proxy::fuzzing::tls_hello(bytes));
